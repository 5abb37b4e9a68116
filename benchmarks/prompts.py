"""Speed against the prompt's length: ``python -m benchmarks.prompts [--device cuda]``.

A job may cut its voices (``prompt_seconds``), and what the flow costs follows prompt and generated frames. The same
utterances in batches, their voices cut to one length after another, in turn and again and again, the order turned from
round to round.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from typing import Any

import torch

from benchmarks import choices, machine, report
from benchmarks.contenders import Ours
from benchmarks.utterances import Utterance
from s3gen import S3GenModel
from s3gen.ragged import plan_batches

DEFAULTS: dict[str, dict[str, Any]] = {
    "cpu": {"utterances": 4, "seconds": (1, 4), "max_frames": 8192, "dtype": "float32"},
    "cuda": {"utterances": 256, "seconds": (2, 15), "max_frames": 32768, "dtype": "bfloat16"},
}
CUTS = (1.0, 2.0, 3.0, 5.0, 10.0)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print and write the report."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.prompts", description="Speed against prompt length.")
    choices.add_model(parser)
    choices.add_engine(parser, DEFAULTS)
    choices.add_utterances(parser, DEFAULTS)
    parser.add_argument("--cuts", type=float, nargs="+", default=CUTS, help="prompt lengths in seconds")
    parser.add_argument("--rounds", type=int, default=3, help="how often each length is measured")
    options = choices.parse(parser, arguments, DEFAULTS)
    if min(options.cuts) <= 0:
        parser.error(f"--cuts is {options.cuts}, but a prompt is longer than 0 seconds")
    found = measure(options)
    print(markdown(found))
    choices.write(found, options.report)
    return 0


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Audio seconds per second by prompt length, as the report has them."""
    device = torch.device(options.device)
    model = choices.load(options).to(device).prepare(dtype=options.dtype, compile=options.compile)
    model.warm_up(options.max_frames)
    options.prompt_seconds = (max(options.cuts),) * 2
    utterances = choices.spoken(options)
    contenders = {cut: _cut_to(cut, model, utterances, options.max_frames) for cut in sorted(options.cuts)}
    for contender in contenders.values():
        contender.speak(contender.batches[-1])
    audio = sum(each.seconds for each in utterances)
    speeds: dict[float, list[float]] = {cut: [] for cut in contenders}
    for turn in range(options.rounds):
        for cut, contender in reversed(contenders.items()) if turn % 2 else contenders.items():
            speeds[cut].append(audio / contender.measure().wall)
    return {
        "kind": "prompts",
        "machine": machine.describe(device),
        "options": choices.reported(options),
        "utterances": len(utterances),
        "utterance_seconds": report.spread(each.seconds for each in utterances),
        "prompts": [_line(cut, contender, speeds[cut]) for cut, contender in contenders.items()],
    }


def _cut_to(seconds: float, model: S3GenModel, utterances: Sequence[Utterance], max_frames: int) -> Ours:
    cut = [dataclasses.replace(each, voice=each.voice.cut(seconds)) for each in utterances]
    return Ours(model, cut, plan_batches([each.frames for each in cut], max_frames))


def _line(cut: float, contender: Ours, speeds: Sequence[float]) -> dict[str, Any]:
    made = sum(each.row.made for each in contender.utterances)
    return {
        "prompt_seconds": cut,
        "frames_per_made_frame": sum(each.frames for each in contender.utterances) / made,
        "audio_seconds_per_second": report.spread(speeds),
    }


def markdown(found: dict[str, Any]) -> str:
    """The report for a reader."""
    options, lengths = found["options"], report.in_range(found["utterance_seconds"], "{:.1f}")
    lines = [
        machine.line(found["machine"]),
        "",
        f"{report.engine(options)}, {found['utterances']} utterances of {lengths} s in batches of up to "
        f"{options['max_frames']} frames; median (smallest .. largest) of {options['rounds']} rounds.",
        "",
        "| prompt, s | frames in the flow per frame made | audio seconds per second |",
        "|---|---|---|",
    ]
    for each in found["prompts"]:
        speed = report.in_range(each["audio_seconds_per_second"], "{:.3g}")
        lines.append(f"| {each['prompt_seconds']:g} | {each['frames_per_made_frame']:.2f} | {speed} |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
