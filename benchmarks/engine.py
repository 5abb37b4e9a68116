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
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks import choices, machine, padding, report, trace, utterances
from benchmarks.contenders import Ours, Peer, Reference, add_inputs, started
from benchmarks.report import Round
from benchmarks.roofline import matrix_rate, memory_rate
from benchmarks.utterances import Utterance
from parity.exchange import Plan, write_weights
from s3gen import S3GenModel, checkpoint
from s3gen.ragged import plan_batches

# What is measured where nothing is said: some minutes on two cores, and on a GPU.
DEFAULTS: dict[str, dict[str, Any]] = {
    "cpu": {
        "utterances": 8, "sample": 8, "seconds": (1, 4), "prompt_seconds": (2, 3),
        "max_frames": 8192, "dtype": "float32",
    },
    "cuda": {
        "utterances": 512, "sample": 24, "seconds": (2, 15), "prompt_seconds": (3, 5),
        "max_frames": 32768, "dtype": "bfloat16",
    },
}  # fmt: skip
_TRACED_BATCHES = 3
_SCRIPTS = {
    "reference": Path(__file__).with_name("reference_worker.py"),
    "ray_data": Path(__file__).with_name("ray_data.py"),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print and write the report; 1 when something failed, or loading takes more memory than it may."""
    options = choices.parse(_parser(), arguments, DEFAULTS)
    try:
        found = measure(options)
    except RuntimeError as error:
        print(error, file=sys.stderr)
        return 1
    print(report.markdown(found))
    choices.write(found, options.report)
    return 0 if found["memory_after_loading_bytes"] <= machine.LOADING_LIMIT_BYTES else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.engine", description="Speed beside the reference.")
    choices.add_model(parser)
    choices.add_engine(parser, DEFAULTS)
    choices.add_utterances(parser, DEFAULTS)
    add = parser.add_argument
    add("--sample", type=int, help="how many of the utterances for those who take one at a time (8; on CUDA 24)")
    add("--rounds", type=int, default=3, help="how often each contender is measured")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--reference-python", type=Path, help="Python of an environment that has the reference")
    which.add_argument("--reference-wheels", type=Path, help="folder of the reference's wheels, installed for this run")
    add("--ray-data", action="store_true", help="the reference inside Ray Data too, if its environment has ray")
    add("--folder", type=Path, help="where temporary files go (1 GB)")
    return parser


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Everything that is measured, as the report has it."""
    device = torch.device(options.device)
    everything = choices.spoken(options)
    few = utterances.sample(everything, options.sample)
    batches = plan_batches([each.frames for each in everything], options.max_frames)
    with tempfile.TemporaryDirectory(prefix="benchmark-", dir=options.folder) as folder, contextlib.ExitStack() as held:
        model = choices.load(options)
        peers, left_out = _peers(options, model, few, Path(folder), held)
        model = model.to(device).prepare(dtype=options.dtype, compile=options.compile)
        ours = {
            "single": Ours(model, few, [[place] for place in range(len(few))]),
            "batched": Ours(model, everything, batches),
        }
        padded = _warm_up(model, peers, ours, options.max_frames)
        rounds = [_round(peers | ours, device, options.dtype, turned=bool(n % 2)) for n in range(options.rounds)]
        gpu = _traced(ours["batched"], device, left_out)
    return {
        "kind": "engine",
        "machine": machine.describe(device),
        "options": choices.reported(options),
        "workload": report.workload(everything, few, batches) | {"padding": padded},
        "machine_rates": report.machine_rates(rounds, memory_rate(device)),
        "contenders": report.contenders(model, peers | ours, rounds, options.dtype),
        "estimator": report.estimator(model, ours, rounds, options.dtype),
        "gpu": gpu,
        "memory_after_loading_bytes": machine.loading_bytes(options.model),
        "reference": {name: peer.about for name, peer in peers.items()},
        "left_out": left_out,
    }


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
            peer = started(script, reference, plan, few, options.device, options.threads)
            peers[name] = held.enter_context(peer)
    return peers, left_out


def _reference(options: argparse.Namespace, folder: Path) -> Reference | None:
    if options.reference_wheels:
        return Reference.from_wheels(options.reference_wheels, folder / "packages")
    return Reference(python=options.reference_python) if options.reference_python else None


def _warm_up(model: S3GenModel, peers: dict[str, Peer], ours: dict[str, Ours], max_frames: int) -> dict[str, float]:
    """Have everybody do once what only the first time takes long; the share of padding in the parts of the model."""
    model.warm_up(max_frames)
    batched = ours["batched"]
    padded = padding.shares(model, lambda: [batched.speak(batch, 1) for batch in batched.batches])
    batched.speak(batched.batches[-1])
    for steps in (None, 1):
        ours["single"].speak([0], steps)
    for peer in peers.values():
        peer.speak(peer.utterances[:1])
    return padded


def _round(contenders: dict[str, Peer | Ours], device: torch.device, dtype: str, *, turned: bool) -> Round:
    """Everybody's turn, and what the machine can do meanwhile."""
    rates = {kind: matrix_rate(device, kind) for kind in {"float32", dtype}}
    costs, one_step = {}, {}
    for name, contender in reversed(contenders.items()) if turned else contenders.items():
        costs[name] = contender.measure()
        if isinstance(contender, Ours):
            one_step[name] = contender.measure(steps=1)
    return Round(costs=costs, one_step=one_step, matrix_rates=rates)


def _traced(batched: Ours, device: torch.device, left_out: dict[str, str]) -> dict[str, float] | None:
    if device.type != "cuda":
        return None
    batches = [batched.batches[place % len(batched.batches)] for place in range(_TRACED_BATCHES)]
    try:
        found = trace.record([functools.partial(batched.speak, batch) for batch in batches], device)
    except (ValueError, RuntimeError) as error:  # not every machine lets its GPU be watched
        left_out["gpu"] = str(error)
        return None
    return dataclasses.asdict(found)


if __name__ == "__main__":
    sys.exit(main())
