"""What all benchmarks of the model let one choose: where it runs, which model, and what is spoken."""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks import utterances
from benchmarks.utterances import Utterance
from parity.exchange import formula_weights
from s3gen import S3GenModel, checkpoint
from s3gen.config import RANDOM_MODELS
from s3gen.precision import DTYPES

_COUNTS = ("utterances", "sample", "rounds", "max_frames", "threads")
_RANGES = ("seconds", "prompt_seconds")


def add_model(parser: argparse.ArgumentParser) -> None:
    """Where what runs."""
    add = parser.add_argument
    add("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    add("--model", default="random:full", help="random:full, random:tiny, or a checkpoint as S3GenModel reads it")
    add("--meanflow", action="store_true", help="the mean-flow variant of a random model: 2 steps, no guidance")
    add("--threads", type=int, default=torch.get_num_threads(), help="CPU threads")
    add("--seed", type=int, default=0, help="of lengths, tokens and voices")
    add("--report", type=Path, help="where the figures go, as JSON")


def add_utterances(parser: argparse.ArgumentParser, defaults: Mapping[str, Mapping[str, Any]]) -> None:
    """What is spoken; `defaults` by device."""
    add = parser.add_argument
    pair = {"type": float, "nargs": 2, "metavar": ("SHORTEST", "LONGEST")}
    add("--utterances", type=int, help=f"how many ({_said(defaults, 'utterances')})")
    add("--seconds", **pair, help=f"of an utterance ({_said(defaults, 'seconds')})")
    add("--tokens", type=int, nargs="+", help="instead of both: the utterances' numbers of tokens, 25 a second")
    if "prompt_seconds" in defaults["cpu"]:
        add("--prompt-seconds", **pair, help=f"of a voice ({_said(defaults, 'prompt_seconds')})")


def add_engine(parser: argparse.ArgumentParser, defaults: Mapping[str, Mapping[str, Any]]) -> None:
    """How this package computes."""
    add = parser.add_argument
    add("--dtype", choices=DTYPES, help=f"of the flow ({_said(defaults, 'dtype')})")
    add("--compile", action="store_true", help="torch.compile and CUDA graphs")
    add("--max-frames", type=int, help=f"of a batch, rows x longest row ({_said(defaults, 'max_frames')})")


def _said(defaults: Mapping[str, Mapping[str, Any]], name: str) -> str:
    values = {
        device: " to ".join(map(str, value)) if isinstance(value, tuple) else str(value)
        for device, value in ((device, given[name]) for device, given in defaults.items())
    }
    return values["cpu"] if len(set(values.values())) == 1 else f"{values['cpu']}; on CUDA {values['cuda']}"


def parse(
    parser: argparse.ArgumentParser, arguments: Sequence[str] | None, defaults: Mapping[str, Mapping[str, Any]]
) -> argparse.Namespace:
    """The options, the device's defaults filled in, and the threads set; ends the program where they cannot be."""
    options = parser.parse_args(arguments)
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch sees no CUDA device here; --device cpu runs anywhere")
    for name, value in defaults[options.device].items():
        if getattr(options, name) is None:
            setattr(options, name, value)
    for name in _COUNTS:
        if getattr(options, name, 1) < 1:
            parser.error(f"--{name.replace('_', '-')} is {getattr(options, name)}, but must be at least 1")
    for name in _RANGES:
        shortest, longest = getattr(options, name, (1, 1))
        if not 0 < shortest <= longest:
            parser.error(f"--{name.replace('_', '-')} is {shortest} {longest}, but wants the shortest first, above 0")
    if getattr(options, "tokens", None) and min(options.tokens) < 1:
        parser.error(f"--tokens is {options.tokens}, but every utterance needs at least one")
    if options.meanflow and options.model not in RANDOM_MODELS:
        parser.error(f"--meanflow is for {' and '.join(RANDOM_MODELS)}; {options.model} says itself which it is")
    torch.set_num_threads(options.threads)
    return options


def spoken(options: argparse.Namespace) -> list[Utterance]:
    """The utterances that the options ask for."""
    if options.tokens is not None:
        return utterances.of_tokens(options.tokens, options.prompt_seconds, options.seed)
    return utterances.draw(options.utterances, options.seconds, options.prompt_seconds, options.seed)


def load(options: argparse.Namespace) -> S3GenModel:
    """The model that the options ask for, on the CPU."""
    if not options.meanflow:
        return S3GenModel.from_pretrained(options.model)
    with torch.device("meta"):
        model = S3GenModel(dataclasses.replace(RANDOM_MODELS[options.model](), meanflow=True))
    checkpoint.assign(model, formula_weights(model), source="random weights")
    return model


def reported(options: argparse.Namespace) -> dict[str, Any]:
    """The options that a report repeats."""
    names = ("device", "model", "meanflow", "dtype", "compile", "max_frames", "rounds", "seed")
    return {name: getattr(options, name) for name in names if hasattr(options, name)}


def write(found: Mapping[str, Any], path: Path | None) -> None:
    """A report as JSON, where one is asked for."""
    if path:
        path.write_text(json.dumps(found, indent=1) + "\n")
