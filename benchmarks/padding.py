"""How much padding the encoder and the vocoder are given: the estimator takes its rows end to end, without any."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import nn

from s3gen import S3GenModel


def shares(model: S3GenModel, speak: Callable[[], object]) -> dict[str, float]:
    """The share of padding, by part, in what is computed while `speak` runs: 0 .. 1."""
    with _watched(model.flow, "encode") as encoded, _watched(model.mel2wav, "inference") as vocoded:
        speak()
    given = {
        "encoder": [(*tokens.shape, lengths) for (tokens, lengths, *_), _ in encoded],
        "vocoder": [(mel.shape[0], mel.shape[2], named["lengths"]) for (mel, *_), named in vocoded],
    }
    return {part: _share(calls) for part, calls in given.items()}


def _share(calls: Sequence[tuple[int, int, Sequence[int]]]) -> float:
    cells = sum(rows * longest for rows, longest, _ in calls)
    return 1 - sum(sum(lengths) for *_, lengths in calls) / cells


@contextmanager
def _watched(module: nn.Module, name: str) -> Iterator[list[tuple[tuple[Any, ...], dict[str, Any]]]]:
    """Within it, the arguments of a module's method."""
    calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
    method = getattr(module, name)

    def watching(*given: Any, **named: Any) -> Any:
        calls.append((given, named))
        return method(*given, **named)

    setattr(module, name, watching)
    try:
        yield calls
    finally:
        delattr(module, name)
