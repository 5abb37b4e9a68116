"""The waves of an utterance's pieces become one (see `splitting`).

Shape letters: S samples.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from s3gen.constants import SAMPLES_PER_TOKEN, exact_div
from s3gen.splitting import Piece

_HALF_FADE = exact_div(SAMPLES_PER_TOKEN, 2)  # samples on either side of a cut


def join(parts: Sequence[Piece], waves: Sequence[Tensor]) -> Tensor:
    """The wave of an utterance, from those of its pieces.

    Args:
        parts: all pieces, in order.
        waves: (S,) each, 960 samples for every token that the piece reads.

    Returns:
        (S,) 960 samples for every token of the utterance. Beyond 20 ms from a cut they are those of one piece.

    Raises:
        ValueError: a wave of another length.
    """
    return torch.cat(list(runs(parts, waves)))


def runs(parts: Sequence[Piece], waves: Iterable[Tensor]) -> Iterator[Tensor]:
    """What `join` puts one behind the other: by turns what is kept of a piece, and the fade into the next.

    It takes the waves when it comes to them, and lets go of each after the next.
    """
    before: Tensor | None = None  # the end of the last piece, as long as the fade
    for part, wave in zip(parts, waves, strict=True):
        if len(wave) != (part.end - part.start) * SAMPLES_PER_TOKEN:
            raise ValueError(f"{len(wave)} samples for a piece of {part.end - part.start} tokens")
        begin, end = ((cut - part.start) * SAMPLES_PER_TOKEN for cut in (part.first, part.last))
        if before is not None:
            yield cross_fade(before, wave[begin - _HALF_FADE : begin + _HALF_FADE])
            begin += _HALF_FADE
        if part is parts[-1]:
            yield wave[begin:end]
        else:
            yield wave[begin : end - _HALF_FADE]
            before = wave[end - _HALF_FADE : end + _HALF_FADE]


def cross_fade(before: Tensor, after: Tensor) -> Tensor:
    """From one wave to another, at a power that neither sinks nor rises on the way.

    Two pieces speak the same tokens from the same noise, but the phase of their pitch was summed up from different
    beginnings: in a pause they are much alike, in the middle of a vowel they may have nothing in common. Straight lines
    keep the power of the first kind, quarter circles that of the second; here the lines are scaled by what the two do
    have in common (M. Fink, M. Holters, U. Zölzer, "Signal-matched power-complementary cross-fading and dry-wet
    mixing", DAFx 2016).

    Args:
        before, after: (S,) float, the same stretch of time.

    Returns:
        (S,), nowhere larger than the larger of the two is anywhere.
    """
    rising = (torch.arange(len(before), dtype=before.dtype, device=before.device) + 0.5) / len(before)
    falling = 1 - rising
    common = F.cosine_similarity(before, after, dim=0).clamp(min=0)
    mixed = before * falling + after * rising
    mixed = mixed * (rising.square() + falling.square() + 2 * common * rising * falling).rsqrt()
    peak = torch.maximum(before.abs().amax(), after.abs().amax())
    return mixed.clamp(-peak, peak)
