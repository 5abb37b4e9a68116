"""Doing once, before the first batch, what that would otherwise wait for: kernels, memory, compilation."""

from __future__ import annotations

from collections.abc import Callable

import torch

from s3gen.constants import FRAMES_PER_TOKEN, MEL_BINS
from s3gen.voice import Voice

_ROW_FRAMES = 512  # of a row that only warms up, half of it prompt


def warm_up(synthesize: Callable[[list[torch.Tensor], list[Voice]], object], speaker_dim: int, max_frames: int) -> None:
    """Synthesise a batch of one row and one of a whole budget.

    Args:
        synthesize: of tokens and voices.
        speaker_dim: of the voices' vectors.
        max_frames: the budget.
    """
    half = max(1, min(max_frames, _ROW_FRAMES) // (2 * FRAMES_PER_TOKEN))
    row = torch.zeros(half, dtype=torch.int64)
    voice = Voice(
        prompt_token=row, prompt_feat=torch.zeros(FRAMES_PER_TOKEN * half, MEL_BINS), embedding=torch.ones(speaker_dim)
    )
    for rows in sorted({1, max(1, max_frames // _ROW_FRAMES)}):
        try:
            synthesize([row] * rows, [voice] * rows)
        except torch.OutOfMemoryError:
            # The batches to come may be smaller; and whoever runs them splits what is too large.
            torch.cuda.empty_cache()
