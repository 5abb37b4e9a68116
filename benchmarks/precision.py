"""What each dtype costs in exactness: ``python -m benchmarks.precision [--device cuda] [--model WHERE]``.

The same utterances in float32 and in every other dtype, one by one. Per dtype:

- mel: relative L2 error against float32's;
- wave, same source: its signal-to-noise ratio against float32's when the vocoder is given the dtype's mel, but the
  source of float32;
- wave: the same of the whole chain, in which F0 follows the dtype's mel and the phase follows F0: over some seconds
  two waves of equal sound drift apart;
- F0: root mean square of the difference.

And the vocoder's convolutions alone in TF32, given float32's mel and source. A CPU has no TF32: there the products of
all that a GPU would make in TF32 are emulated (`benchmarks.tf32`). Random weights are not trained ones: figures that
decide something should come from one's own model (``--model``).
"""

from __future__ import annotations

import argparse
import contextlib
import math
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from benchmarks import choices, machine
from benchmarks.tf32 import Tf32Products
from benchmarks.utterances import Utterance
from s3gen import S3GenModel
from s3gen.config import RANDOM_MODELS
from s3gen.precision import DTYPES

DEFAULTS: dict[str, dict[str, Any]] = {
    "cpu": {"utterances": 4, "seconds": (1, 4), "prompt_seconds": (2, 3)},
    "cuda": {"utterances": 16, "seconds": (2, 15), "prompt_seconds": (3, 5)},
}
VOCODER = "float32, the vocoder in tf32"
_COLUMNS = {
    "mel_error": "mel, relative L2",
    "given_source_snr_db": "wave, same source, dB",
    "snr_db": "wave, dB",
    "f0_rms_hz": "F0, Hz",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Spoken:
    """An utterance: mel (1, 80, T), F0 (1, T), source (1, 1, S) and wave (1, S)."""

    mel: Tensor
    f0: Tensor
    source: Tensor
    wave: Tensor


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print and write the report."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.precision", description="What each dtype costs.")
    choices.add_model(parser)
    choices.add_utterances(parser, DEFAULTS)
    options = choices.parse(parser, arguments, DEFAULTS)
    found = measure(options)
    print(markdown(found))
    choices.write(found, options.report)
    return 0


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Errors by dtype and utterance, as the report has them."""
    device = torch.device(options.device)
    model = choices.load(options).to(device)
    spoken = choices.spoken(options)
    exact = [speak(model.prepare(dtype="float32"), utterance, "float32") for utterance in spoken]
    errors = {
        dtype: [compare(model.prepare(dtype=dtype), *pair, dtype) for pair in zip(spoken, exact, strict=True)]
        for dtype in DTYPES
        if dtype != "float32"
    }
    errors[VOCODER] = [vocoder_alone(model.prepare(dtype="tf32"), each) for each in exact]
    return {
        "kind": "precision",
        "machine": machine.describe(device),
        "options": choices.reported(options),
        "utterance_seconds": [each.seconds for each in spoken],
        "tf32": "real" if device.type == "cuda" else "emulated",
        "random_weights": options.model in RANDOM_MODELS,
        "errors": errors,
    }


def products(dtype: str, device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """Where a model prepared for `dtype` computes as a GPU would: in TF32 what is float32, emulated on a CPU."""
    return Tf32Products() if device.type == "cpu" and dtype != "float32" else contextlib.nullcontext()


@torch.no_grad()
def speak(model: S3GenModel, utterance: Utterance, dtype: str) -> Spoken:
    """By a model prepared for `dtype`; the F0 predictor and the source never leave float32."""
    with products(dtype, model.device):
        mel = model(utterance.tokens, ref_dict=utterance.voice.to_ref(), finalize=True)
    f0 = model.mel2wav.f0(mel)
    source = model.mel2wav.source(f0)
    return Spoken(mel=mel, f0=f0, source=source, wave=vocode(model, mel, source, dtype))


def vocode(model: S3GenModel, mel: Tensor, source: Tensor, dtype: str) -> Tensor:
    """Mel and source to the wave, the convolutions as `dtype` has them."""
    with products(dtype, model.device):
        return model.mel2wav.decode(mel, source)


def compare(model: S3GenModel, utterance: Utterance, exact: Spoken, dtype: str) -> dict[str, float]:
    """The errors of one utterance."""
    coarse = speak(model, utterance, dtype)
    return {
        "mel_error": float((coarse.mel.double() - exact.mel.double()).norm() / exact.mel.double().norm()),
        "given_source_snr_db": snr_db(vocode(model, coarse.mel, exact.source, dtype), exact.wave),
        "snr_db": snr_db(coarse.wave, exact.wave),
        "f0_rms_hz": float((coarse.f0.double() - exact.f0.double()).square().mean().sqrt()),
    }


def vocoder_alone(model: S3GenModel, exact: Spoken) -> dict[str, float]:
    """The error of the vocoder's convolutions in TF32, all else being float32's."""
    return {"given_source_snr_db": snr_db(vocode(model, exact.mel, exact.source, "tf32"), exact.wave)}


def snr_db(coarse: Tensor, exact: Tensor) -> float:
    """Signal-to-noise ratio in dB."""
    noise = (coarse.double() - exact.double()).square().sum()
    return 10 * math.log10(float(exact.double().square().sum()) / max(float(noise), sys.float_info.min))


def markdown(found: dict[str, Any]) -> str:
    """The report for a reader: the median and, behind it, the worst utterance."""
    count, seconds = len(found["utterance_seconds"]), found["utterance_seconds"]
    lines = [
        machine.line(found["machine"]),
        "",
        f"{found['options']['model']}; {count} utterances of {min(seconds):.1f} to {max(seconds):.1f} s; against "
        "float32: median (worst).",
        *(["Random weights are not trained ones: --model gives one's own model's."] if found["random_weights"] else []),
        *(["TF32 is emulated: a CPU has none."] if found["tf32"] == "emulated" else []),
        "",
        f"| | {' | '.join(_COLUMNS.values())} |",
        "|---|" + "---|" * len(_COLUMNS),
    ]
    for name, errors in found["errors"].items():
        cells = [_cell(column, [each[column] for each in errors if column in each]) for column in _COLUMNS]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(column: str, values: Sequence[float]) -> str:
    if not values:
        return ""
    decibels = column.endswith("db")
    worst = min(values) if decibels else max(values)
    form = "{:.1f} ({:.1f})" if decibels else "{:.1e} ({:.1e})" if column == "mel_error" else "{:.2g} ({:.2g})"
    return form.format(statistics.median(values), worst)


if __name__ == "__main__":
    sys.exit(main())
