"""Speed beside the reference: ``python -m benchmarks.engine --device cpu|cuda --reference-python PYTHON``.

The same weights and the same utterances go through up to four contenders in turn, again and again, their order turned
round from round to round, so that a machine that grows slower or faster meanwhile favours none:

- the reference, one utterance at a time, in its own environment and process;
- the reference inside Ray Data's ``map_batches``, as a pipeline would be written with it (``--ray-data``);
- this package, one utterance at a time;
- this package in batches under a frame budget.

The slow ones may take a sample of the utterances; every figure is per second of the audio that its contender made.
Needs torch, torchaudio, numpy and safetensors; what the reference needs lies in its environment.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import functools
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks import machine, report, trace, utterances
from benchmarks.contenders import Ours, Peer, Reference, add_inputs, started
from benchmarks.report import Round
from benchmarks.roofline import matrix_rate, memory_rate
from benchmarks.utterances import Utterance
from parity.exchange import Plan, formula_weights, write_weights
from s3gen import S3GenModel, checkpoint
from s3gen.config import RANDOM_MODELS
from s3gen.precision import DTYPES
from s3gen.ragged import plan_batches

# What is measured where nothing is said: minutes on two cores, and on a GPU.
DEFAULTS: dict[str, dict[str, Any]] = {
    "cpu": {"utterances": 8, "sample": 8, "seconds": (1, 4), "prompt_seconds": (2, 3), "max_frames": 8192},
    "cuda": {"utterances": 512, "sample": 24, "seconds": (2, 15), "prompt_seconds": (3, 5), "max_frames": 32768},
}
_DTYPE = {"cpu": "float32", "cuda": "bfloat16"}
_TRACED_BATCHES = 3
_REPORTED = ("device", "model", "meanflow", "dtype", "compile", "max_frames", "rounds", "seed")
_SCRIPTS = {"reference": "reference_worker.py", "ray_data": "ray_data.py"}


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print and write the report; 1 when something failed, or loading takes more memory than it may."""
    options = parsed(arguments)
    torch.set_num_threads(options.threads)
    try:
        found = measure(options)
    except RuntimeError as error:
        print(error, file=sys.stderr)
        return 1
    print(report.markdown(found))
    if options.report:
        options.report.write_text(json.dumps(found, indent=1) + "\n")
    return 0 if found["memory_after_loading_bytes"] <= machine.LOADING_LIMIT_BYTES else 1


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Everything that is measured, as the report has it."""
    device = torch.device(options.device)
    everything = spoken(options)
    few = utterances.sample(everything, options.sample)
    batches = plan_batches([each.frames for each in everything], options.max_frames)
    with tempfile.TemporaryDirectory(prefix="benchmark-", dir=options.folder) as folder, contextlib.ExitStack() as held:
        model = load(options.model, meanflow=options.meanflow)
        peers, left_out = _peers(options, model, few, Path(folder), held)
        model = model.to(device).prepare(dtype=options.dtype, compile=options.compile)
        ours = {
            "single": Ours(model, few, [[place] for place in range(len(few))]),
            "batched": Ours(model, everything, batches),
        }
        _warm_up(model, peers, ours, options.max_frames)
        rounds = [_round(peers | ours, device, options.dtype, turned=bool(n % 2)) for n in range(options.rounds)]
        traced = _traced(ours["batched"], device)
    return {
        "kind": "engine",
        "machine": machine.describe(device),
        "options": {name: getattr(options, name) for name in _REPORTED},
        "workload": report.workload(everything, few, batches),
        "machine_rates": report.machine_rates(rounds, memory_rate(device)),
        "contenders": report.contenders(model, peers | ours, rounds, options.dtype),
        "estimator": report.estimator(model, ours, rounds, options.dtype),
        "gpu": None if traced is None else dataclasses.asdict(traced),
        "memory_after_loading_bytes": machine.loading_bytes(options.model),
        "reference": {name: peer.about for name, peer in peers.items()},
        "left_out": left_out,
    }


def parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The options, with the device's own defaults."""
    parser = _parser()
    options = parser.parse_args(arguments)
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch sees no CUDA device here; --device cpu runs anywhere")
    for name, value in (DEFAULTS[options.device] | {"dtype": _DTYPE[options.device]}).items():
        if getattr(options, name) is None:
            setattr(options, name, value)
    for name in ("utterances", "sample", "rounds", "max_frames", "threads"):
        if getattr(options, name) < 1:
            parser.error(f"--{name.replace('_', '-')} is {getattr(options, name)}, but must be at least 1")
    for name in ("seconds", "prompt_seconds"):
        if not 0 < getattr(options, name)[0] <= getattr(options, name)[1]:
            parser.error(f"--{name.replace('_', '-')} wants the shortest and the longest, above 0")
    if options.meanflow and options.model not in RANDOM_MODELS:
        parser.error(f"--meanflow is for {' and '.join(RANDOM_MODELS)}; {options.model} says itself which it is")
    return options


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.engine", description="Speed beside the reference.")
    add = parser.add_argument
    add("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    add("--model", default="random:full", help="random:full, random:tiny, or a checkpoint as S3GenModel reads it")
    add("--meanflow", action="store_true", help="the mean-flow variant of a random model: 2 steps, no guidance")
    add("--dtype", choices=DTYPES, help="of this package's flow (float32 on a CPU, bfloat16 on CUDA)")
    add("--compile", action="store_true", help="torch.compile and CUDA graphs in this package")
    add("--max-frames", type=int, help="of a batch: rows x longest row, prompt included (8192, 32768 on CUDA)")
    add("--utterances", type=int, help="how many for the batches (8, 512 on CUDA)")
    add("--sample", type=int, help="how many of them for the contenders that take one at a time (8, 24 on CUDA)")
    add("--seconds", type=float, nargs=2, metavar=("SHORTEST", "LONGEST"), help="of an utterance (1 4, on CUDA 2 15)")
    add("--tokens", type=int, nargs="+", help="instead: the utterances' numbers of tokens, 25 a second")
    add("--prompt-seconds", type=float, nargs=2, metavar=("SHORTEST", "LONGEST"), help="of a voice (2 3, on CUDA 3 5)")
    add("--rounds", type=int, default=3, help="how often each contender is measured")
    add("--seed", type=int, default=0, help="of lengths, tokens and voices")
    add("--threads", type=int, default=torch.get_num_threads(), help="CPU threads, of every contender")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--reference-python", type=Path, help="Python of an environment that has the reference")
    which.add_argument("--reference-wheels", type=Path, help="folder of the reference's wheels, installed for this run")
    add("--ray-data", action="store_true", help="the reference inside Ray Data too, if its environment has ray")
    add("--report", type=Path, help="where the figures go, as JSON")
    add("--folder", type=Path, help="where temporary files go (1 GB)")
    return parser


def spoken(options: argparse.Namespace) -> list[Utterance]:
    """The utterances that the options ask for."""
    if options.tokens is not None:
        return utterances.of_tokens(options.tokens, options.prompt_seconds, options.seed)
    return utterances.draw(options.utterances, options.seconds, options.prompt_seconds, options.seed)


def load(where: str, *, meanflow: bool) -> S3GenModel:
    """A model on the CPU; `meanflow` asks for that variant of a random one."""
    if not meanflow:
        return S3GenModel.from_pretrained(where)
    with torch.device("meta"):
        model = S3GenModel(dataclasses.replace(RANDOM_MODELS[where](), meanflow=True))
    checkpoint.assign(model, formula_weights(model), source="random weights")
    return model


def _peers(
    options: argparse.Namespace, model: S3GenModel, few: list[Utterance], folder: Path, held: contextlib.ExitStack
) -> tuple[dict[str, Peer], dict[str, str]]:
    """The reference's contenders, started, and why others are left out."""
    reference = _reference(options, folder)
    if reference is None:
        return {}, dict.fromkeys(_SCRIPTS, "neither --reference-python nor --reference-wheels was given")
    left_out = {}
    if not options.ray_data:
        left_out["ray_data"] = "--ray-data was not given"
    elif not reference.can_import("ray.data"):
        left_out["ray_data"] = "there is no ray[data] in the reference's environment"
    plan = Plan(folder=folder / "plan", weights=folder / "weights.safetensors", meanflow=model.config.meanflow)
    write_weights(checkpoint.published_weights(model), plan.weights)
    add_inputs(plan, few)
    plan.write(options.threads)
    peers = {}
    for name, script in _SCRIPTS.items():
        if name not in left_out:
            peer = started(Path(__file__).with_name(script), reference, plan, few, options.device, options.threads)
            peers[name] = held.enter_context(peer)
    return peers, left_out


def _reference(options: argparse.Namespace, folder: Path) -> Reference | None:
    if options.reference_wheels:
        return Reference.from_wheels(options.reference_wheels, folder / "packages")
    return Reference(python=options.reference_python) if options.reference_python else None


def _warm_up(model: S3GenModel, peers: dict[str, Peer], ours: dict[str, Ours], max_frames: int) -> None:
    """Have everybody do once what only the first time takes long."""
    model.warm_up(max_frames)
    for steps in (None, 1):
        ours["batched"].speak(ours["batched"].batches[-1], steps)
        ours["single"].speak([0], steps)
    for peer in peers.values():
        peer.speak(peer.utterances[:1])


def _round(contenders: dict[str, Peer | Ours], device: torch.device, dtype: str, *, turned: bool) -> Round:
    """Everybody's turn, and what the machine can do meanwhile."""
    rates = {kind: matrix_rate(device, kind) for kind in {"float32", dtype}}
    costs, one_step = {}, {}
    for name, contender in reversed(contenders.items()) if turned else contenders.items():
        costs[name] = contender.measure()
        if isinstance(contender, Ours):
            one_step[name] = contender.measure(steps=1)
    return Round(costs=costs, one_step=one_step, matrix_rates=rates)


def _traced(batched: Ours, device: torch.device) -> trace.Trace | None:
    if device.type != "cuda":
        return None
    batches = [batched.batches[place % len(batched.batches)] for place in range(_TRACED_BATCHES)]
    return trace.record([functools.partial(batched.speak, batch) for batch in batches], device)


if __name__ == "__main__":
    sys.exit(main())
