"""Voices per second beside the reference: ``python -m benchmarks.voices --device cpu|cuda --reference-python PYTHON``.

What a voice table costs: the same weights and the same clips go through three contenders in turn, again and again,
their order turned round from round to round, so that a machine that grows slower or faster meanwhile favours none:

- the reference's ``embed_ref``, clip by clip, in its own environment and process, without autograd;
- this package's ``embed_ref``, clip by clip;
- this package's ``embed_refs``, which makes batches.

Whatever is found is brought to host memory. Reading and decoding files is not part of it.
"""

from __future__ import annotations

import argparse
import contextlib
import random
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks import choices, machine
from benchmarks.contenders import Cost, Peer, Reference, started
from benchmarks.report import in_range, spread
from benchmarks.roofline import matrix_rate, wait_for
from parity.exchange import Plan, write_weights
from parity.signals import babble, read_clips
from s3gen import S3GenModel, checkpoint
from s3gen.config import SpeakerConfig, TokenizerConfig
from s3gen.constants import SAMPLE_RATE, TOKENIZER_RATE

NAMES = {
    "reference": "the reference, one by one",
    "single": "this package, one by one",
    "batched": "this package, batched",
}
DEFAULTS: dict[str, dict[str, Any]] = {
    "cpu": {"count": 16, "sample": 16, "seconds": (3, 10)},
    "cuda": {"count": 512, "sample": 32, "seconds": (3, 10)},
}
_CUT_SECONDS = 10  # of clips from files, as in a voice table
_BABBLE_SECONDS = 40  # from which the clips are cut
_PITCHES = (95, 140, 210)  # Hz
_MEL_RATE = 100  # frames per second, of both networks
_MEMORY_TAPS = 31  # of the tokenizer's memory
_SCRIPT = Path(__file__).with_name("voices_worker.py")

Figures = dict[str, Any]
Ref = Mapping[str, Tensor]


@dataclass(frozen=True, kw_only=True, slots=True)
class Clip:
    """A name, samples (N,) float32 and their rate in Hz."""

    name: str
    wav: Tensor
    rate: int

    @property
    def samples(self) -> int:
        return len(self.wav)

    @property
    def seconds(self) -> float:
        return len(self.wav) / self.rate


class Ours:
    """This package's model on clips."""

    def __init__(self, model: S3GenModel, clips: list[Clip], embed: Callable[[list[Clip]], list[Ref]]) -> None:
        self.clips = clips
        self._model, self._embed = model, embed

    @classmethod
    def single(cls, model: S3GenModel, clips: list[Clip]) -> Ours:
        return cls(model, clips, lambda some: [model.embed_ref(clip.wav, clip.rate) for clip in some])

    @classmethod
    def batched(cls, model: S3GenModel, clips: list[Clip]) -> Ours:
        return cls(model, clips, lambda some: model.embed_refs([c.wav for c in some], [c.rate for c in some]))

    def measure(self) -> Cost:
        """Embed all of them once."""
        device = self._model.device
        machine.forget_peak(device)
        wait_for(device)
        begun, cpu_begun = time.perf_counter(), time.process_time()
        refs = [{name: value.cpu() for name, value in ref.items()} for ref in self._embed(self.clips)]
        wall, cpu = time.perf_counter() - begun, time.process_time() - cpu_begun
        if len(refs) != len(self.clips):
            raise RuntimeError(f"this package made {len(refs)} voices of {len(self.clips)} clips")
        return Cost(wall=wall, cpu=cpu, peak_bytes=machine.peak_bytes(device))


@dataclass(frozen=True, kw_only=True, slots=True)
class Round:
    """Everybody's turn once, and the rate of matrix products then, in FLOP/s."""

    costs: Mapping[str, Cost]
    matrix_rate: float


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print and write the report; 1 when something failed."""
    options = choices.parse(_parser(), arguments, DEFAULTS)
    try:
        found = measure(options)
    except RuntimeError as error:
        print(error, file=sys.stderr)
        return 1
    print(markdown(found))
    choices.write(found, options.report)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.voices", description="Voices beside the reference.")
    parser.set_defaults(tokens=None)
    choices.add_model(parser)
    add = parser.add_argument
    add("--clips", type=Path, help=f"folder of audio files, cut at {_CUT_SECONDS} s; else made-up ones")
    add("--count", type=int, help="how many made-up clips (16; on CUDA 512), half at 24 and half at 16 kHz")
    add("--seconds", type=float, nargs=2, metavar=("SHORTEST", "LONGEST"), help="of a made-up clip (3 to 10)")
    add("--sample", type=int, help="how many of the clips for those who take one at a time (16; on CUDA 32)")
    add("--rounds", type=int, default=3, help="how often each contender is measured")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--reference-python", type=Path, help="Python of an environment that has the reference")
    which.add_argument("--reference-wheels", type=Path, help="folder of the reference's wheels, installed for this run")
    add("--folder", type=Path, help="where temporary files go (1 GB)")
    return parser


def measure(options: argparse.Namespace) -> Figures:
    """Everything that is measured, as the report has it."""
    device = torch.device(options.device)
    clips = read(options.clips) if options.clips else draw(options.count, options.seconds, options.seed)
    few = random.Random(options.seed).sample(clips, min(options.sample, len(clips)))
    with tempfile.TemporaryDirectory(prefix="benchmark-", dir=options.folder) as folder, contextlib.ExitStack() as held:
        model = choices.load(options)
        peers = dict(_peers(options, model, few, Path(folder), held))
        model = model.to(device)
        contenders = peers | {"single": Ours.single(model, few), "batched": Ours.batched(model, clips)}
        for contender in contenders.values():
            contender.measure()  # once for what only the first time takes long
        rounds = [_round(contenders, device, turned=bool(number % 2)) for number in range(options.rounds)]
    given = {"reference": few, "single": few, "batched": clips}
    return {
        "kind": "voices",
        "machine": machine.describe(device),
        "options": choices.reported(options),
        "workload": {"clips": len(clips), "sample_clips": len(few), "seconds": spread(each.seconds for each in clips)},
        "matrix_flops_per_second": spread(turn.matrix_rate for turn in rounds),
        "contenders": {name: _figures(model, name, given, rounds) for name in contenders},
        "reference": {name: peer.about for name, peer in peers.items()},
    }


def read(folder: Path) -> list[Clip]:
    """The clips of a folder, as a voice table would have them."""
    return [Clip(name=c.name, wav=c.wav[: _CUT_SECONDS * c.rate].clone(), rate=c.rate) for c in read_clips(folder)]


def draw(count: int, seconds: Sequence[float], seed: int) -> list[Clip]:
    """So many pieces of made-up voices."""
    chance = random.Random(seed)
    shortest, longest = seconds
    total = max(_BABBLE_SECONDS, longest)
    sources = [
        (rate, babble(total, rate, pitch=pitch, seed=pitch))
        for pitch in _PITCHES
        for rate in (SAMPLE_RATE, TOKENIZER_RATE)
    ]
    clips = []
    for number in range(count):
        rate, source = sources[number % len(sources)]
        samples = int(chance.uniform(shortest, longest) * rate)
        start = chance.randrange(len(source) - samples + 1)
        clips.append(Clip(name=f"clip-{number:04d}", wav=source[start : start + samples].clone(), rate=rate))
    return clips


def _peers(
    options: argparse.Namespace, model: S3GenModel, clips: list[Clip], folder: Path, held: contextlib.ExitStack
) -> Iterator[tuple[str, Peer]]:
    if options.reference_wheels:
        reference = Reference.from_wheels(options.reference_wheels, folder / "packages")
    elif options.reference_python:
        reference = Reference(python=options.reference_python)
    else:
        return
    plan = Plan(folder=folder / "plan", weights=folder / "weights.safetensors", meanflow=model.config.meanflow)
    write_weights(checkpoint.published_weights(model), plan.weights)
    plan.inputs = {clip.name: {"wav": clip.wav, "rate": torch.tensor([clip.rate])} for clip in clips}
    plan.write(options.threads)
    yield "reference", held.enter_context(started(_SCRIPT, reference, plan, clips, options.device, options.threads))


def _round(contenders: Mapping[str, Peer | Ours], device: torch.device, *, turned: bool) -> Round:
    rate = matrix_rate(device, "float32")
    order = list(contenders.items())
    return Round(costs={name: each.measure() for name, each in (order[::-1] if turned else order)}, matrix_rate=rate)


def _figures(model: S3GenModel, name: str, given: Mapping[str, Sequence[Clip]], rounds: Sequence[Round]) -> Figures:
    """A contender's figures; ratios are of the same round, and per second of clip where clips differ."""
    clips, costs = given[name], [turn.costs[name] for turn in rounds]
    work = sum(flops(model, clip.seconds) for clip in clips)
    times = {"wall": None, "cpu": None}
    if "reference" in rounds[0].costs:
        their_work = sum(flops(model, clip.seconds) for clip in given["reference"])
        for kind in times:
            pairs = [(getattr(turn.costs[name], kind), getattr(turn.costs["reference"], kind)) for turn in rounds]
            times[kind] = spread(theirs / their_work / (ours / work) for ours, theirs in pairs)
    return {
        "clips": len(clips),
        "clips_per_second": spread(len(clips) / cost.wall for cost in costs),
        "cpu_seconds_per_clip": spread(cost.cpu / len(clips) for cost in costs),
        "times_reference": times["wall"],
        "times_reference_in_cpu_seconds": times["cpu"],
        "flops_per_second": spread(work / cost.wall for cost in costs),
        "share_of_matrix_rate": spread(
            work / cost.wall / turn.matrix_rate for cost, turn in zip(costs, rounds, strict=True)
        ),
        "peak_bytes": max(cost.peak_bytes for cost in costs),
    }


def flops(model: S3GenModel, seconds: float) -> float:
    """Floating-point operations of both networks for a clip, a multiplication and an addition being two."""
    frames = int(seconds * _MEL_RATE)
    return tokenizer_flops(model.config.tokenizer, frames) + speaker_flops(model.config.speaker, frames - 2)


def tokenizer_flops(sizes: TokenizerConfig, frames: int) -> float:
    """Of the tokenizer's encoder for so many mel frames."""
    middle = -(-frames // 2)
    tokens = -(-middle // 2)
    stem = 3 * sizes.dim * (sizes.mels * middle + sizes.dim * tokens)
    block = tokens * sizes.dim * (12 * sizes.dim + _MEMORY_TAPS + 2 * tokens)
    return 2 * (stem + sizes.layers * block)


def speaker_flops(sizes: SpeakerConfig, frames: int) -> float:
    """Of the speaker encoder for so many filter bank frames; the contexts, one per hundred positions, are left out."""
    rows, wide = sizes.mels, sizes.head_channels
    head = 9 * wide * (rows + wide * (8 * rows // 2 // 2 + 8 * rows // 4 // 2 + rows // 8)) + wide**2 * (
        rows // 2 + rows // 4
    )
    places, channels = -(-frames // 2), sizes.init_channels
    width = sizes.bottleneck * sizes.growth
    rest = 5 * channels * wide * rows // 8
    for count in sizes.blocks:
        rest += sum((channels + number * sizes.growth) * width + 3 * width * sizes.growth for number in range(count))
        channels += count * sizes.growth
        rest += channels * channels // 2
        channels //= 2
    return 2 * (frames * head + places * rest)


def markdown(found: Figures) -> str:
    """The report for a reader."""
    said = found["workload"]
    return "\n".join(
        [
            machine.line(found["machine"]),
            "",
            f"Clips: {said['clips']} of {in_range(said['seconds'], '{:.1f}')} s; one by one: {said['sample_clips']} of "
            f"them. Median (smallest .. largest) of {found['options']['rounds']} rounds.",
            "",
            "| | clips per second | times the reference | the same in CPU seconds | CPU s per clip | TFLOP/s |"
            " of the matrix rate | peak memory, GB |",
            "|---|---|---|---|---|---|---|---|",
            *(_line(NAMES[name], found["contenders"][name]) for name in NAMES if name in found["contenders"]),
            "",
            f"- float32 matrix products: {in_range(found['matrix_flops_per_second'], '{:.3g}', 1e12)} TFLOP/s",
        ]
    )


def _line(name: str, figures: Figures) -> str:
    cells = [
        name,
        in_range(figures["clips_per_second"], "{:.3g}"),
        in_range(figures["times_reference"], "{:.3g}"),
        in_range(figures["times_reference_in_cpu_seconds"], "{:.3g}"),
        in_range(figures["cpu_seconds_per_clip"], "{:.3g}"),
        in_range(figures["flops_per_second"], "{:.3g}", 1e12),
        in_range(figures["share_of_matrix_rate"], "{:.0%}"),
        f"{figures['peak_bytes'] / 1e9:.2f}",
    ]
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    sys.exit(main())
