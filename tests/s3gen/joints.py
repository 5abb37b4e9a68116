"""What a stream adds at the borders of its chunks, and streams that are wrong there.

A vocoder of random weights makes a wave that is rough everywhere, and a chunk that is vocoded alone is quieter at its
ends than inside. So roughness alone tells no joint: what counts is the roughness of the difference from the wave that
was made in one.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest
import torch

from s3gen import stream_vocoder
from s3gen.source import HarmonicSource
from s3gen.stream_reach import Reach

FRAME = 480
NO_JOINT = 1e-9  # rounding to float32, squared
FAINT_JOINT = 1e-6  # of first chunks that are too short to wait for all that they depend on
A_JOINT = 0.05


def roughness(wave: torch.Tensor) -> torch.Tensor:
    """Energy of the second difference around every border of two frames: (frames - 1,)."""
    bent = torch.diff(wave.double(), n=2).square()
    return torch.stack([bent[border - 4 : border + 2].mean() for border in range(FRAME, len(wave), FRAME)])


def joints(pieces: list[torch.Tensor], whole: torch.Tensor) -> float:
    """Energy of the second difference that pieces (1, S) add to a wave at their ends, in parts of its own."""
    ends = torch.cumsum(torch.tensor([piece.shape[1] for piece in pieces if piece.shape[1]]), 0)[:-1] // FRAME - 1
    added = roughness((torch.cat(pieces, dim=1) - whole)[0])
    return float(added[ends].mean() / roughness(whole[0]).mean())


def _phase_begins_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    extend = HarmonicSource.extend

    def anew(source, f0, state, *, frames):
        return extend(source, f0, dataclasses.replace(state, turns=torch.zeros_like(state.turns)), frames=frames)

    monkeypatch.setattr(HarmonicSource, "extend", anew)


def _nothing_is_held_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream_vocoder, "reach", lambda vocoder: Reach(left=15, right=0))


def _nothing_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream_vocoder, "reach", lambda vocoder: Reach(left=0, right=20))


SLIPS: dict[str, Callable[[pytest.MonkeyPatch], None]] = {
    "phase begins anew": _phase_begins_anew,
    "nothing is held back": _nothing_is_held_back,
    "no left context": _nothing_is_kept,
}
