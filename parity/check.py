"""Holds the full-size model against the reference: ``python -m parity.check --reference-python PYTHON``.

Both run on the same random weights and inputs, float32, CPU. The weights reach this package's model through a file that
the reference itself has saved, so that the reading of checkpoints is part of what is checked.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor

from parity import cases, cosyvoice
from parity.exchange import Answer, Plan, formula_weights, write_weights
from parity.rows import (
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
from parity.signals import Clip, read_clips, synthetic_clips
from s3gen import S3GenConfig, S3GenModel
from s3gen.checkpoint import published_weights
from s3gen.constants import FRAMES_PER_TOKEN, SAMPLE_RATE

_SHIPPED_VOICES = Path(__file__).parent.parent / "demo" / "voices"


def main(arguments: Sequence[str] | None = None) -> int:
    """Compare, print a table, write the report; 0 when every row is within its limit, else 1."""
    options = _parser().parse_args(arguments)
    torch.set_num_threads(options.threads)
    clips = _clips(options.voices)
    begun = time.perf_counter()
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="parity-", dir=options.folder) as folder:
        for meanflow in (False, True):
            answer, found = _compare(Path(folder), clips, options, meanflow=meanflow)
            rows += found
        if options.cosyvoice_source:
            places = {"source": options.cosyvoice_source, "python": options.reference_python}
            rows += cosyvoice.compare(Path(folder), clips, **places, threads=options.threads)
    facts = {
        **answer.versions,
        "python": platform.python_version(),
        "threads": options.threads,
        "clips": ", ".join(clip.name for clip in clips),
        "seconds": round(time.perf_counter() - begun),
        "the reference's own finalize=False": answer.notes["finalize=False"],
    }
    print(_markdown(rows, facts))
    if options.report:
        _write(options.report, rows, facts)
    failed = [row for row in rows if not row.ok]
    print(f"\n{len(rows) - len(failed)} of {len(rows)} within their limits")
    return 1 if failed else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m parity.check", description="Full-size parity with the reference.")
    parser.add_argument("--reference-python", type=Path, required=True, help="Python of the reference's environment")
    parser.add_argument(
        "--cosyvoice-source",
        type=Path,
        help="checkout of FunAudioLLM/CosyVoice with submodules: CosyVoice2 is held, too",
    )
    parser.add_argument("--voices", type=Path, help="folder of reference clips (wav, flac, ogg)")
    parser.add_argument("--report", type=Path, help="where the table goes: .md or .json")
    parser.add_argument("--folder", type=Path, help="where temporary files go (3 GB)")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="CPU threads, on both sides")
    return parser


def _clips(folder: Path | None) -> list[Clip]:
    if folder is None and not _SHIPPED_VOICES.is_dir():
        return synthetic_clips()
    return read_clips(folder or _SHIPPED_VOICES)


def _compare(
    root: Path, clips: Sequence[Clip], options: argparse.Namespace, *, meanflow: bool
) -> tuple[Answer, list[Row]]:
    """Ask the reference, load what it saved, compare."""
    name = "s3gen_meanflow" if meanflow else "s3gen"
    plan = Plan(folder=root / name, weights=root / f"{name}-plain.safetensors", meanflow=meanflow)
    weights = _plan(plan, clips, meanflow=meanflow)
    answer = plan.run(options.reference_python, options.threads, checkpoints=name)
    model = S3GenModel.from_pretrained(plan.folder, file=f"{name}.safetensors")
    if model.config.meanflow != meanflow:
        raise ValueError(f"{name}.safetensors was read as a model with meanflow={model.config.meanflow}")
    rows = list(_weight_rows(model, weights, plan.folder, name))
    for path in plan.folder.glob("*.*t*"):
        path.unlink()  # a gigabyte each
    with torch.inference_mode():
        rows += _rows(model, plan, answer, meanflow=meanflow)
    return answer, [Row(**{**asdict(row), "case": f"{name}: {row.case}"}) for row in rows]


def _plan(plan: Plan, clips: Sequence[Clip], *, meanflow: bool) -> Mapping[str, Tensor]:
    """Write the weights and fill the plan; the voice parts are the same in both models and are compared once."""
    with torch.device("meta"):
        shapes = S3GenModel(S3GenConfig(meanflow=meanflow))
    weights = formula_weights(shapes)
    write_weights(weights, plan.weights)
    voices = cases.prompts(S3GenModel.from_pretrained("random:full"), clips)
    cases.add_mels(plan, cases.MEANFLOW if meanflow else cases.BASE, voices)
    if not meanflow:
        cases.add_references(plan, clips)
        cases.add_long_clips(plan, clips)
        cases.add_audio_case(plan, clips[0])
        cases.add_source_case(plan)
        plan.add("start", "fade", {})
    return weights


def _weight_rows(model: S3GenModel, weights: Mapping[str, Tensor], folder: Path, name: str) -> Iterator[Row]:
    loaded = published_weights(model)
    worst = max(relative_error(loaded[key], value) for key, value in weights.items())
    yield Row(quantity="weights", case=f"{name}.safetensors, worst tensor", error=worst, limit=WEIGHT_LIMIT)
    for file in (f"{name}.pt", "old_names.safetensors"):
        same = S3GenModel.from_pretrained(folder / file).fingerprint() == model.fingerprint()
        yield Row(quantity="weights", case=f"{file} equal to {name}.safetensors", error=float(not same), limit=0)


def _rows(model: S3GenModel, plan: Plan, answer: Answer, *, meanflow: bool) -> Iterator[Row]:
    for call in plan.calls:
        compare = _COMPARISONS[call["call"]]
        given, expected = plan.inputs[call["case"]], answer.outputs[call["case"]]
        for row in compare(model, given, expected, **call["options"]):
            yield Row(**{**asdict(row), "case": call["case"]})
    yield from batch_rows(model, plan, answer, cases.BATCHED_STEPS[meanflow])


def _embed(model: S3GenModel, given: Mapping[str, Tensor], expected: Mapping[str, Tensor], rate: int) -> Iterator[Row]:
    found = model.embed_ref(given["wav"], rate)
    frames = FRAMES_PER_TOKEN * expected["prompt_token"].shape[1]
    yield differences_row("prompt tokens", found["prompt_token"][0], expected["prompt_token"][0], expected["margin"])
    yield error_row("prompt_feat", found["prompt_feat"], expected["prompt_feat"][:, :frames])
    yield error_row("embedding", found["embedding"], expected["embedding"])


def _tokenize(model: S3GenModel, given: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> Iterator[Row]:
    yield differences_row("tokens", model.tokenizer([given["wav"]])[0][0], expected["tokens"], expected["margin"])
    yield error_row("tokenizer mel", model.tokenizer.mel(given["wav"]), expected["mel"])


def _mel(
    model: S3GenModel, given: Mapping[str, Tensor], expected: Mapping[str, Tensor], steps: int, finalize: bool = True
) -> Iterator[Row]:
    yield error_row("mel", own_mel(model, given, steps, finalize=finalize), expected["mel"])


def _mel_from_audio(
    model: S3GenModel, given: Mapping[str, Tensor], expected: Mapping[str, Tensor], rate: int, steps: int
) -> Iterator[Row]:
    tokens, noise = given["tokens"], given["noise"][None]
    mel = model(tokens, ref_wav=given["wav"], ref_sr=rate, finalize=True, n_cfm_timesteps=steps, noise=noise)
    yield error_row("mel", mel[0], expected["mel"])


def _speak(model: S3GenModel, given: Mapping[str, Tensor], expected: Mapping[str, Tensor], steps: int) -> Iterator[Row]:
    """Each stage from the reference's result of the one before, then all from the tokens on."""
    mel = own_mel(model, given, steps)
    yield error_row("mel", mel, expected["mel"])
    vocoder, drawn = model.mel2wav, {"phase": given["phase"][None], "noise": given["source_noise"][None]}
    yield error_row("F0", vocoder.f0(expected["mel"][None])[0], expected["f0"])
    yield voiced_row(expected["f0"])
    source = vocoder.source(expected["f0"][None], **drawn)
    yield error_row("source, same F0", source[0, 0], expected["source"], SOURCE_LIMIT)
    wave = vocoder.decode(expected["mel"][None], expected["source"][None, None])
    yield error_row("wave, same mel and source", wave[0], expected["wave"])
    whole = vocoder.decode(mel[None], vocoder.source(vocoder.f0(mel[None]), **drawn))
    limit = WHOLE_LIMIT * max(1.0, whole.shape[1] / SAMPLE_RATE / 2)
    yield error_row("wave, whole chain", whole[0], expected["wave"], limit)
    limited = int((expected["wave"].abs() >= vocoder.config.audio_limit).sum())
    yield Row(quantity="samples at the limiter", case="", error=limited, limit=0)


def _source(model: S3GenModel, given: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> Iterator[Row]:
    source = model.mel2wav.source(given["f0"][None], phase=given["phase"][None], noise=given["noise"][None])
    yield error_row("source, same F0", source[0, 0], expected["source"], SOURCE_LIMIT)


def _fade(model: S3GenModel, given: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> Iterator[Row]:
    yield error_row("fade", model.start_fade, expected["fade"])


_COMPARISONS = {
    "embed": _embed,
    "tokenize": _tokenize,
    "mel": _mel,
    "mel_from_audio": _mel_from_audio,
    "speak": _speak,
    "source": _source,
    "fade": _fade,
}


def _markdown(rows: Sequence[Row], facts: Mapping[str, object]) -> str:
    lines = [f"- {name}: {value}" for name, value in facts.items()]
    lines += ["", "| quantity | case | error | limit | ok |", "|---|---|---|---|---|"]
    for row in rows:
        error = f"{row.error:.0f}" if row.limit == 0 else f"{row.error:.1e}"
        limit = "0" if row.limit == 0 else f"{row.limit:.1e}"
        lines.append(f"| {row.quantity} | {row.case} | {error} | {limit} | {'yes' if row.ok else 'NO'} |")
    return "\n".join(lines)


def _write(path: Path, rows: Sequence[Row], facts: Mapping[str, object]) -> None:
    if path.suffix == ".json":
        table = [{**asdict(row), "ok": row.ok} for row in rows]
        path.write_text(json.dumps({"facts": facts, "rows": table}, indent=1) + "\n")
    else:
        path.write_text(f"# Parity with the reference\n\n{_markdown(rows, facts)}\n")


if __name__ == "__main__":
    sys.exit(main())
