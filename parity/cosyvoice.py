"""CosyVoice2's published modules against this package's model, which is read from the folder that they write."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor

from parity import cases
from parity.exchange import Answer, Plan, formula_weights, write_weights
from parity.rows import (
    FIDELITY,
    SOURCE_LIMIT,
    WEIGHT_LIMIT,
    WHOLE_LIMIT,
    Row,
    batch_rows,
    differences_row,
    error_row,
    own_mel,
    relative_error,
    voiced_row,
)
from parity.signals import Clip
from s3gen import S3GenConfig, S3GenModel
from s3gen.checkpoint import published_weights
from s3gen.constants import FRAMES_PER_TOKEN, SAMPLE_RATE
from s3gen.cosyvoice import FILES
from s3gen.interpolated_source import InterpolatedSource

SCRIPT = Path(__file__).with_name("cosyvoice_reference.py")
_BATCHED_STEPS = 4
_SECONDS = 2.0


def config() -> S3GenConfig:
    """The published model's."""
    return S3GenConfig(vocoder_harmonic_source="sinegen2", encode_lookahead=False)


def weights() -> dict[str, Tensor]:
    """Weights by formula for it."""
    with torch.device("meta"):
        model = S3GenModel(config())
    return formula_weights(model)


def compare(root: Path, clips: Sequence[Clip], *, source: Path, python: Path, threads: int) -> list[Row]:
    """Ask the published modules, load what they saved, compare.

    Args:
        root: for temporary files.
        clips: voices.
        source: a checkout of FunAudioLLM/CosyVoice with its submodules.
        python: of the reference's environment.
        threads: of both sides.
    """
    given = weights()
    plan = Plan(folder=root / "cosyvoice2", weights=root / "cosyvoice2-plain.safetensors", script=SCRIPT, source=source)
    write_weights(given, plan.weights)
    _fill(plan, clips)
    answer = plan.run(python, threads, checkpoints="cosyvoice2")
    model = S3GenModel.from_pretrained(plan.folder)
    rows = list(_weight_rows(model, given))
    for file in FILES:
        (plan.folder / file).unlink()  # a gigabyte in all
    with torch.inference_mode():
        rows += _rows(model, plan, answer)
    return [Row(**{**asdict(row), "case": f"CosyVoice2: {row.case}"}) for row in rows]


def _fill(plan: Plan, clips: Sequence[Clip]) -> None:
    voices = cases.prompts(S3GenModel.from_pretrained("random:full"), clips)
    cases.add_mels(plan, cases.BASE, voices)
    for clip in clips:
        plan.add(f"{clip.name}, {SAMPLE_RATE} Hz", "embed", {"wav": clip.at(SAMPLE_RATE, _SECONDS)}, rate=SAMPLE_RATE)
    for exact in (False, True):
        f0, noise = cases.switching_f0(), cases.source_noise(cases.SOURCE_CASE, len(cases.switching_f0()))["noise"]
        case = f"{cases.SOURCE_CASE}, float{64 if exact else 32}"
        plan.add(case, "source", {"f0": f0, "noise": noise}, exact=exact)


def _weight_rows(model: S3GenModel, given: Mapping[str, Tensor]) -> Iterator[Row]:
    """The speaker encoder's are folded in the graph: its vectors are compared instead."""
    loaded = published_weights(model)
    compared = [name for name in given if not name.startswith("speaker_encoder.")]
    worst = max(relative_error(loaded[name], given[name]) for name in compared)
    yield Row(quantity="weights", case="the four files, worst tensor", error=worst, limit=WEIGHT_LIMIT)
    same = model.config == config() and isinstance(model.mel2wav.source, InterpolatedSource)
    yield Row(quantity="configuration that differs", case="the four files", error=float(not same), limit=0)


def _rows(model: S3GenModel, plan: Plan, answer: Answer) -> Iterator[Row]:
    for call in plan.calls:
        given, expected = plan.inputs[call["case"]], answer.outputs[call["case"]]
        for row in _COMPARISONS[call["call"]](model, given, expected, **call["options"]):
            yield Row(**{**asdict(row), "case": call["case"]})
    yield from batch_rows(model, plan, answer, _BATCHED_STEPS)


def _embed(model: S3GenModel, given: Mapping[str, Tensor], expected: Mapping[str, Tensor], rate: int) -> Iterator[Row]:
    found = model.embed_ref(given["wav"], rate)
    frames = FRAMES_PER_TOKEN * len(expected["prompt_token"])
    yield differences_row("prompt tokens", found["prompt_token"][0], expected["prompt_token"], expected["margin"])
    yield error_row("prompt_feat", found["prompt_feat"][0], expected["prompt_feat"][:frames])
    yield error_row("embedding", found["embedding"][0], expected["embedding"])


def _mel(
    model: S3GenModel, given: Mapping[str, Tensor], expected: Mapping[str, Tensor], steps: int, finalize: bool
) -> Iterator[Row]:
    yield error_row("mel", own_mel(model, given, steps, finalize=finalize), expected["mel"])


def _speak(model: S3GenModel, given: Mapping[str, Tensor], expected: Mapping[str, Tensor], steps: int) -> Iterator[Row]:
    """Each stage from the reference's result of the one before, then all from the tokens on."""
    mel = own_mel(model, given, steps)
    yield error_row("mel", mel, expected["mel"])
    vocoder, noise = model.mel2wav, given["source_noise"][None]
    yield error_row("F0", vocoder.f0(expected["mel"][None])[0], expected["f0"])
    yield voiced_row(expected["f0"])
    source = vocoder.source(expected["f0"][None], noise=noise)[0, 0]
    yield error_row("source, same F0, phase in float64", source, expected["exact_source"])
    # The reference takes a sum in float32 times 480 x 2 pi: its own error grows with the seconds.
    own = relative_error(expected["source"], expected["exact_source"])
    yield error_row("source, same F0", source, expected["source"], SOURCE_LIMIT + own)
    wave = vocoder.decode(expected["mel"][None], expected["source"][None, None])
    yield error_row("wave, same mel and source", wave[0], expected["wave"])
    whole = vocoder.decode(mel[None], vocoder.source(vocoder.f0(mel[None]), noise=noise))[0]
    limit = WHOLE_LIMIT * max(1.0, len(source) / SAMPLE_RATE / 2)
    yield error_row("wave, whole chain, phase in float64", whole, expected["exact_wave"], limit)
    own = relative_error(expected["wave"], expected["exact_wave"])
    yield error_row("wave, whole chain", whole, expected["wave"], limit + own)


def _source(
    model: S3GenModel, given: Mapping[str, Tensor], expected: Mapping[str, Tensor], exact: bool
) -> Iterator[Row]:
    source = model.mel2wav.source(given["f0"][None], noise=given["noise"][None])
    yield error_row("source, same F0", source[0, 0], expected["source"], FIDELITY if exact else SOURCE_LIMIT)


_COMPARISONS = {"embed": _embed, "mel": _mel, "speak": _speak, "source": _source}
