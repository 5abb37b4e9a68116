"""The model card: the README.md of a saved checkpoint, which says what it is, where it is from and how to load it.

It is meant to be published, so it names no paths.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from s3gen import __version__
from s3gen.constants import SAMPLE_RATE, TOKEN_RATE, VOCAB_SIZE
from s3gen.fingerprint import fingerprint, voice_fingerprint

_PARTS = {
    "tokenizer.": "speech tokenizer (S3, version 2)",
    "speaker_encoder.": "speaker encoder (CAMPPlus)",
    "flow.": "flow",
    "mel2wav.": "vocoder (HiFTNet)",
}
_HEAD = "---\nlibrary_name: s3gen\ntags:\n- audio\n- speech\n- s3gen\n---"
_LEFT_TO_SAY = (
    "## What only its maker can say\n\n"
    "The licence (`license:` in the head of this file), the languages, and what the weights were trained on. Weights "
    "that were converted keep the licence that they had."
)


def model_card(weights: Mapping[str, Tensor], config: Mapping[str, Any], *, file: str, origin: str | None) -> str:
    """The text of a card.

    Args:
        weights: by published name; those of a vocoder alone without their prefix.
        config: what ``config.json`` holds of them.
        file: the name of the file of weights.
        origin: where the weights are from, in words; None when nobody knows.
    """
    title, what, name = _kind(config)
    parts = (
        f"{_HEAD}\n\n# {title}",
        what,
        _sizes(weights),
        _origin(weights, config, file, origin),
        f'## How to load it\n\n```python\nfrom s3gen import {name}\n\nmodel = {name}.from_pretrained("FOLDER")\n```',
        _LEFT_TO_SAY,
    )
    return "\n\n".join(parts) + "\n\n"


def _kind(config: Mapping[str, Any]) -> tuple[str, str, str]:
    """What the model is called, what it does, and its class."""
    if config["model_type"] == "hiftnet":
        rate, bins = config["sampling_rate"], config["in_channels"]
        return (
            "HiFTNet",
            f"A vocoder: log-mel frames of {bins} bins go in, audio at {rate} Hz comes out.",
            "HiFTNetModel",
        )
    flow = "a mean-flow of few steps, without guidance" if config["meanflow"] else "a flow with guidance"
    what = (
        f"Speech tokens (integers from 0 to {VOCAB_SIZE - 1}, {TOKEN_RATE} per second) and a reference voice go in, "
        f"{SAMPLE_RATE // 1000} kHz audio comes out, by {flow} and a vocoder. Where the tokens come from, a language "
        "model or a recording, it does not know."
    )
    return "S3Gen", what, "S3GenModel"


def _sizes(weights: Mapping[str, Tensor]) -> str:
    """A table of the parts and how many numbers each has."""
    rows = ["| part | numbers |", "|---|--:|"]
    for prefix, label in _PARTS.items():
        if numbers := sum(weight.numel() for name, weight in weights.items() if name.startswith(prefix)):
            rows.append(f"| {label} | {numbers:,} |")
    size = sum(weight.numel() * weight.element_size() for weight in weights.values())
    rows.append(f"| all, {size / 1e6:,.1f} MB | {sum(weight.numel() for weight in weights.values()):,} |")
    return "\n".join(rows)


def _origin(weights: Mapping[str, Tensor], config: Mapping[str, Any], file: str, origin: str | None) -> str:
    lines = [
        *([f"- read from: {origin}"] if origin else []),
        f"- written by: s3gen {__version__}, as `{file}`",
        f"- fingerprint: `{fingerprint(weights, config)}`",
    ]
    if any(name.startswith("tokenizer.") for name in weights):
        digest = voice_fingerprint(weights, config)
        lines.append(f"- voice fingerprint: `{digest}`; voice tables of models that share it are of use with this one")
    return "## Where it is from\n\n" + "\n".join(lines)
