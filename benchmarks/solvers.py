"""What each solver costs and how far it goes astray: ``python -m benchmarks.solvers [--device cuda] [--model WHERE]``.

The same utterances by one choice of solver after another. Speed is measured in turn and again and again, the order
turned from round to round; beside the first it is that of the processor's own time on a CPU, where other programs may
run. Distances are of the same noise, in float32, one utterance at a time:

- mel: relative L2 distance of the generated frames;
- wave: spectral convergence, the relative distance of the waves' STFT magnitudes (Arik et al., arXiv 1808.06719), of
  vocoded mels that are all given the source of the 10-step reference;

once from the reference, the model's own number of Euler steps at its own guidance, and once from a very fine solution
of the same equation (``--fine``). A choice that guides otherwise solves another equation: the last column, the mel's
distance from a fine solution that is guided as the choice is, says how much of its distance is the solver's.

A choice is METHOD:STEPS[:GUIDANCE[:FIRST-LAST]], where FIRST and LAST are the times, from 0 (noise) to 1 (mel), between
which there is guidance: ``heun:5``, ``euler:10:0``, ``euler:10:0.7:0-0.5``.

Random weights are not trained ones. Their velocity follows the fastest of the sines that time is given as, 1,000
radians from noise to mel, so that no method shows its order; with ``--calm`` it sees only those slower than 5 radians.
A mean-flow model has Euler's steps alone: ``--solvers euler:1 euler:4 --fine euler:20``.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks import choices, machine, report, utterances
from benchmarks.contenders import Cost, Ours
from benchmarks.utterances import Utterance
from s3gen import S3GenModel, Solver
from s3gen.config import RANDOM_MODELS
from s3gen.ragged import plan_batches

DEFAULTS: dict[str, dict[str, Any]] = {
    "cpu": {
        "utterances": 2, "sample": 2, "seconds": (1, 3), "prompt_seconds": (1, 2),
        "max_frames": 8192, "dtype": "float32",
    },
    "cuda": {
        "utterances": 256, "sample": 16, "seconds": (2, 15), "prompt_seconds": (3, 5),
        "max_frames": 32768, "dtype": "bfloat16",
    },
}  # fmt: skip
SOLVERS = [
    "euler:5", "euler:7", "euler:20", "midpoint:3", "midpoint:5", "midpoint:10", "heun:3", "heun:5", "heun:10",
    "euler:10:0", "euler:10:0.7:0-0.2", "euler:10:0.7:0-0.5", "euler:10:0.7:0.1-1",
]  # fmt: skip
_CALM_RADIANS = 5.0  # from noise to mel
_WINDOW, _HOP = 1_024, 256  # of the STFT, in samples
_COLUMNS = {
    "mel": "mel from the reference",
    "wave": "wave from the reference",
    "fine_mel": "mel from the fine one",
    "fine_wave": "wave from the fine one",
    "own_mel": "mel from a fine one guided alike",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print and write the report; 1 where the model cannot have one of the solvers."""
    parser = _parser()
    options = choices.parse(parser, arguments, DEFAULTS)
    if options.calm and options.model not in RANDOM_MODELS:
        parser.error(f"--calm is for {' and '.join(RANDOM_MODELS)}; {options.model} is left as it is")
    try:
        found = measure(options)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 1
    print(markdown(found))
    choices.write(found, options.report)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.solvers", description="What each solver costs.")
    choices.add_model(parser)
    choices.add_engine(parser, DEFAULTS)
    choices.add_utterances(parser, DEFAULTS)
    add = parser.add_argument
    add("--solvers", nargs="+", default=SOLVERS, type=_checked, help="METHOD:STEPS[:GUIDANCE[:FIRST-LAST]]")
    add("--fine", default="midpoint:100", type=_checked, help="METHOD:STEPS of the fine solutions (midpoint:100)")
    add("--calm", action="store_true", help="of random weights: a velocity that changes slowly with time")
    add("--sample", type=int, help="how many of the utterances for distances (2; on CUDA 16)")
    add("--rounds", type=int, default=3, help="how often each solver is timed")
    return parser


def _checked(text: str) -> str:
    solver_of(text)
    return text


def solver_of(text: str) -> Solver:
    """A solver as the command line says it.

    Raises:
        ArgumentTypeError: it says none.
    """
    try:
        method, steps, *guided = text.split(":")
        guidance, interval = (*guided, *("", "0-1")[len(guided) :])
        first, last = map(float, interval.split("-"))
        return Solver(
            method=method,
            steps=int(steps),
            guidance=float(guidance) if guidance else None,
            guidance_interval=(first, last),
        )
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text} is no METHOD:STEPS[:GUIDANCE[:FIRST-LAST]]: {error}") from None


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Speed and distances by solver, as the report has them."""
    device = torch.device(options.device)
    model = choices.load(options)
    if options.calm:
        calm(model)
    model = model.to(device)
    reference = f"euler:{model.flow.default_steps}"
    solvers = {name: solver_of(name) for name in dict.fromkeys([reference, *options.solvers])}
    evaluations = {name: sum(model.flow.course(solver).halves) for name, solver in solvers.items()}
    everything = choices.spoken(options)
    few = utterances.sample(everything, options.sample)
    far = [distances(model, each, seed, solvers, solver_of(options.fine)) for seed, each in enumerate(few)]
    costs = _costs(model.prepare(dtype=options.dtype, compile=options.compile), everything, solvers, options)
    audio = sum(each.seconds for each in everything)
    return {
        "kind": "solvers",
        "machine": machine.describe(device),
        "options": choices.reported(options) | {"fine": options.fine, "calm": options.calm},
        "utterance_seconds": report.spread(each.seconds for each in everything),
        "sample": len(few),
        "random_weights": options.model in RANDOM_MODELS,
        "solvers": [
            {
                "solver": name,
                "evaluations": evaluations[name],
                "audio_seconds_per_second": report.spread(audio / cost.wall for cost in costs[name]),
                "beside_reference": report.spread(_times(costs[reference], device) / _times(costs[name], device)),
                "distances": [each[name] for each in far],
            }
            for name in solvers
        ],
    }


def calm(model: S3GenModel) -> None:
    """Have the velocity see only the slow ones of the sines that time is given as."""
    weight = model.flow.estimator.time_mlp.linear_1.weight
    half = weight.shape[1] // 2
    radians = 1_000 * torch.logspace(0, -4, half)
    with torch.no_grad():
        weight[:, (radians > _CALM_RADIANS).repeat(2)] = 0.0


def _costs(
    model: S3GenModel, spoken: list[Utterance], solvers: Mapping[str, Solver], options: argparse.Namespace
) -> dict[str, list[Cost]]:
    """What speaking all of them took in each round, by solver."""
    batches = plan_batches([each.frames for each in spoken], options.max_frames)
    contenders = {name: Ours(model, spoken, batches, solver=solver) for name, solver in solvers.items()}
    for contender in contenders.values():
        contender.measure()
    costs: dict[str, list[Cost]] = {name: [] for name in solvers}
    for turn in range(options.rounds):
        for name, contender in reversed(contenders.items()) if turn % 2 else contenders.items():
            costs[name].append(contender.measure())
    return costs


def _times(costs: Sequence[Cost], device: torch.device) -> np.ndarray:
    """Seconds of each round: by the clock, on a CPU those of its threads."""
    return np.array([cost.cpu if device.type == "cpu" else cost.wall for cost in costs])


@torch.no_grad()
def distances(
    model: S3GenModel, utterance: Utterance, seed: int, solvers: Mapping[str, Solver], fine: Solver
) -> dict[str, dict[str, float]]:
    """How far each solver's mel and wave are from the first one's and from fine ones, for one utterance."""
    limits: dict[Solver, Tensor] = {}

    def limit(solver: Solver) -> Tensor:
        rate = model.flow.course(solver).guidance
        exact = replace(fine, guidance=rate, guidance_interval=solver.guidance_interval)
        if exact not in limits:
            limits[exact] = _mel(model, utterance, seed, exact)
        return limits[exact]

    mels = {name: _mel(model, utterance, seed, solver) for name, solver in solvers.items()}
    reference = next(iter(solvers))
    source = model.mel2wav.source(model.mel2wav.f0(mels[reference]), seed=seed)
    wave = _spectrum(model, mels[reference], source)
    fine_mel = limit(solvers[reference])
    fine_wave = _spectrum(model, fine_mel, source)
    found = {}
    for name, solver in solvers.items():
        spectrum = _spectrum(model, mels[name], source)
        found[name] = {
            "mel": _relative(mels[name], mels[reference]),
            "wave": _relative(spectrum, wave),
            "fine_mel": _relative(mels[name], fine_mel),
            "fine_wave": _relative(spectrum, fine_wave),
            "own_mel": _relative(mels[name], limit(solver)),
        }
    return found


def _mel(model: S3GenModel, utterance: Utterance, seed: int, solver: Solver) -> Tensor:
    return model(utterance.tokens, ref_dict=utterance.voice.to_ref(), finalize=True, seed=seed, solver=solver)


def _spectrum(model: S3GenModel, mel: Tensor, source: Tensor) -> Tensor:
    """STFT magnitudes of the wave."""
    wave = model.mel2wav.decode(mel, source)
    window = torch.hann_window(_WINDOW, device=wave.device)
    return torch.stft(wave, _WINDOW, _HOP, window=window, return_complex=True).abs()


def _relative(other: Tensor, exact: Tensor) -> float:
    return float((other.double() - exact.double()).norm() / exact.double().norm())


def markdown(found: Mapping[str, Any]) -> str:
    """The report for a reader: medians, of rounds and of utterances."""
    options, lengths = found["options"], report.in_range(found["utterance_seconds"], "{:.1f}")
    said = "a random model is not a trained one" + (", and this one is calm" if options["calm"] else "")
    lines = [
        machine.line(found["machine"]),
        "",
        f"{report.engine(options)}, utterances of {lengths} s; speed is the median of {options['rounds']} rounds, "
        f"distances (float32) that of {found['sample']} utterances; the fine solution is {options['fine']}"
        + (f"; {said}." if found["random_weights"] else "."),
        "",
        f"| solver | network evaluations | audio s per s | beside the first | {' | '.join(_COLUMNS.values())} |",
        "|---|---|---|---|" + "---|" * len(_COLUMNS),
    ]
    for each in found["solvers"]:
        cells = [statistics.median(far[column] for far in each["distances"]) for column in _COLUMNS]
        speed, beside = each["audio_seconds_per_second"]["median"], each["beside_reference"]["median"]
        lines.append(
            f"| {each['solver']} | {each['evaluations']} | {speed:.3g} | {beside:.2f} | "
            + " | ".join(f"{cell:.1e}" if cell else "0" for cell in cells)
            + " |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
