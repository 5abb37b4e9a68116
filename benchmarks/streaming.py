"""How soon a stream speaks and whether it keeps up: ``python -m benchmarks.streaming [--device cuda] [--model WHERE]``.

The same utterances as streams, one at a time, for every choice of chunk and left context. All tokens are there at
once, so that only the computation is timed, from asking for a wave to having it on the host:

- the first audio: what comes on top of waiting for the tokens that it needs;
- the real-time factor of every later chunk but the last, its time over the duration of its tokens: below 1, a stream
  keeps up with speech that is played while it is made.

Beside them stands what chunks change: the relative L2 distance of the mel from that of the whole utterance, of the same
noise, in float32.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from benchmarks import choices, machine, report
from benchmarks.utterances import Utterance
from s3gen import S3GenModel
from s3gen.config import RANDOM_MODELS
from s3gen.constants import FRAMES_PER_TOKEN, LOOKAHEAD_TOKENS, TOKEN_RATE
from s3gen.precision import DTYPES
from s3gen.stream import Stream
from s3gen.synthesis import Synthesis

DEFAULTS: dict[str, dict[str, Any]] = {
    "cpu": {
        "utterances": 1, "seconds": (6, 6), "prompt_seconds": (2, 2), "chunk_tokens": (12, 25, 50),
        "left_seconds": (1.0, 2.0), "dtype": "float32", "rounds": 1,
    },
    "cuda": {
        "utterances": 4, "seconds": (20, 20), "prompt_seconds": (5, 5), "chunk_tokens": (5, 12, 25, 50),
        "left_seconds": (1.0, 2.0, 4.0, 8.0), "dtype": "bfloat16", "rounds": 3,
    },
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Choice:
    """How a stream is cut."""

    chunk_tokens: int
    left_seconds: float


@dataclass(frozen=True, slots=True)
class Heard(Synthesis):
    """A synthesis that keeps the mels it makes, (frames, 80) each."""

    kept: list[Tensor] = field(default_factory=list)

    def mels(self, *args: Any, **named: Any) -> list[Tensor]:
        """As `Synthesis.mels`."""
        mels = Synthesis.mels(self, *args, **named)
        self.kept.extend(mels)
        return mels


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print and write the report."""
    parser = _parser()
    options = choices.parse(parser, arguments, DEFAULTS)
    if min(options.chunk_tokens) < 1 or min(options.left_seconds) < 0:
        parser.error("--chunk-tokens must be at least 1, and --left-seconds not negative")
    found = measure(options)
    print(markdown(found))
    choices.write(found, options.report)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.streaming", description="How soon a stream speaks.")
    choices.add_model(parser)
    choices.add_utterances(parser, DEFAULTS)
    add = parser.add_argument
    add("--dtype", choices=DTYPES, help="of the flow (float32; on CUDA bfloat16)")
    add("--compile", action="store_true", help="torch.compile and CUDA graphs")
    add("--chunk-tokens", type=int, nargs="+", help="tokens of a chunk, 25 a second (12 25 50; on CUDA 5, too)")
    add("--left-seconds", type=float, nargs="+", help="of left context (1 2; on CUDA 4 and 8, too)")
    add("--rounds", type=int, help="how often each choice is timed (1; on CUDA 3)")
    return parser


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Latency, real-time factor and distance by choice, as the report has them."""
    device = torch.device(options.device)
    model = choices.load(options).to(device)
    spoken = choices.spoken(options)
    cuts = [Choice(*cut) for cut in itertools.product(options.chunk_tokens, options.left_seconds)]
    far = {cut: [distance(model, each, cut) for each in spoken] for cut in cuts}
    model.prepare(dtype=options.dtype, compile=options.compile)
    if device.type == "cuda" or options.compile:
        for cut in cuts:  # kernels are chosen and compiled for every length
            timed(model, spoken[0], cut)
    times: dict[Choice, list[list[float]]] = {cut: [] for cut in cuts}
    for turn in range(options.rounds):
        for cut in reversed(cuts) if turn % 2 else cuts:
            times[cut] += [timed(model, each, cut) for each in spoken]
    return {
        "kind": "streaming",
        "machine": machine.describe(device),
        "options": choices.reported(options),
        "utterance_seconds": report.spread(each.seconds for each in spoken),
        "prompt_seconds": report.spread(len(each.voice.prompt_token) / TOKEN_RATE for each in spoken),
        "random_weights": options.model in RANDOM_MODELS,
        "choices": [
            {
                "chunk_tokens": cut.chunk_tokens,
                "left_seconds": cut.left_seconds,
                "first_tokens": cut.chunk_tokens + LOOKAHEAD_TOKENS,
                "first_seconds": report.spread(chunks[0] for chunks in times[cut]),
                "real_time_factor": _factors(times[cut], cut),
                "mel_distances": far[cut],
            }
            for cut in cuts
        ],
    }


def _factors(times: Sequence[Sequence[float]], cut: Choice) -> dict[str, float] | None:
    """Of the chunks between the first and the last; None where there are none."""
    factors = [seconds * TOKEN_RATE / cut.chunk_tokens for chunks in times for seconds in chunks[1:-1]]
    return report.spread(factors) if factors else None


def timed(model: S3GenModel, utterance: Utterance, cut: Choice) -> list[float]:
    """Seconds from asking for each wave of a stream to having it on the host."""
    found, began = [], time.perf_counter()
    stream = Stream(model.synthesis, utterance.voice, chunk_tokens=cut.chunk_tokens, left_seconds=cut.left_seconds)
    for wave in stream.over([utterance.tokens]):
        wave.cpu()
        now = time.perf_counter()
        found.append(now - began)
        began = now
    return found


@torch.no_grad()
def distance(model: S3GenModel, utterance: Utterance, cut: Choice) -> float:
    """How far the mel of a stream is from that of the whole utterance, relative L2."""
    parts = model.synthesis
    heard = Heard(parts.flow, parts.mel2wav, parts.start_fade)
    stream = Stream(heard, utterance.voice, chunk_tokens=cut.chunk_tokens, left_seconds=cut.left_seconds)
    known, new = 0, []  # tokens of each chunk's left context, and the frames behind it
    for _ in stream.over([utterance.tokens]):
        new.append(heard.kept[-1][FRAMES_PER_TOKEN * known :])
        known = 0 if stream.state is None else stream.state.context
    whole = model(utterance.tokens, ref_dict=utterance.voice.to_ref(), finalize=True)[0].T.double()
    return float((torch.cat(new).double() - whole).norm() / whole.norm())


def markdown(found: Mapping[str, Any]) -> str:
    """The report for a reader."""
    lengths, prompts = (report.in_range(found[name], "{:.1f}") for name in ("utterance_seconds", "prompt_seconds"))
    lines = [
        machine.line(found["machine"]),
        "",
        f"{report.engine(found['options'])}, utterances of {lengths} s after prompts of {prompts} s; times are the "
        "median (worst) of all utterances and rounds, distances (float32) the median of utterances"
        + ("; a random model is not a trained one." if found["random_weights"] else "."),
        "",
        "| tokens of a chunk | left context, s | tokens before the first audio | first audio after, ms | "
        "real-time factor | mel from the whole one |",
        "|---|---|---|---|---|---|",
    ]
    for each in found["choices"]:
        first, factor = each["first_seconds"], each["real_time_factor"]
        lines.append(
            f"| {each['chunk_tokens']} | {each['left_seconds']:g} | {each['first_tokens']} | "
            f"{1000 * first['median']:.3g} ({1000 * first['max']:.3g}) | "
            + (f"{factor['median']:.3g} ({factor['max']:.3g})" if factor else "")
            + f" | {statistics.median(each['mel_distances']):.2g} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
