"""Speech tokens as users give them: checked on the CPU before any kernel sees them.

An id out of range on a GPU is a device-side assert that poisons the process, so nothing leaves here unchecked.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from s3gen.constants import START_TOKEN, STOP_TOKEN, VOCAB_SIZE

_SPECIAL = (START_TOKEN, STOP_TOKEN)

TokenRow = Tensor | np.ndarray | Sequence[int]


def check_tokens(tokens: TokenRow) -> Tensor:
    """One utterance's tokens as a 1-D int64 CPU tensor.

    Args:
        tokens: 1-D, integers 0 .. 6560: a tensor or array of any integer dtype, or a sequence of ints.

    Raises:
        ValueError: another dtype or shape, no tokens, or an id out of range; the message shows the value and its place.
    """
    row = integers(tokens, "speech tokens")
    if row.dim() != 1:
        raise ValueError(f"speech tokens must be 1-D for one utterance, not of shape {tuple(row.shape)}")
    if row.numel() == 0:
        raise ValueError("speech tokens are empty: an utterance needs at least one token")
    outside = ((row < 0) | (row >= VOCAB_SIZE)).nonzero()
    if len(outside):
        place = int(outside[0])
        token = int(row[place])
        hint = "; a language model's start and stop tokens are to be left out" if token in _SPECIAL else ""
        raise ValueError(
            f"speech token {token} at position {place} is out of range 0..{VOCAB_SIZE - 1} "
            f"({len(outside)} such token(s) of {row.numel()}){hint}"
        )
    return row


def split_tokens(tokens: TokenRow, lengths: Tensor | Sequence[int] | None) -> list[Tensor]:
    """A batch's tokens, (B, T) or (T,), as one checked row per utterance.

    Args:
        tokens: (B, T) or (T,) integers.
        lengths: (B,) tokens that count in each row, from the left; None when all do.

    Raises:
        ValueError: as `check_tokens`, or lengths that do not fit.
    """
    batch = integers(tokens, "speech tokens")
    if batch.dim() not in (1, 2):
        raise ValueError(f"speech tokens must have shape (T,) or (B, T), not {tuple(batch.shape)}")
    batch = batch[None] if batch.dim() == 1 else batch
    if batch.numel() == 0:
        raise ValueError(f"speech tokens are empty: their shape is {tuple(batch.shape)}")
    every = [batch.shape[1]] * batch.shape[0]
    counts = every if lengths is None else integers(lengths, "speech_token_lens").reshape(-1).tolist()
    if len(counts) != batch.shape[0]:
        raise ValueError(f"speech_token_lens has {len(counts)} entries for a batch of {batch.shape[0]}")
    for count in counts:
        if not 1 <= count <= batch.shape[1]:
            raise ValueError(f"speech_token_lens holds {count}, which is not within 1..{batch.shape[1]}")
    return [check_tokens(row[:count]) for row, count in zip(batch, counts, strict=True)]


def integers(values: TokenRow | int, name: str) -> Tensor:
    """Integers as users give them, of any shape, as an int64 CPU tensor.

    Args:
        values: a tensor of any device, an array, an integer, or (nested) lists of these.
        name: what errors call them.

    Raises:
        ValueError: no integers, or one of over 63 bits.
    """
    if isinstance(values, Tensor):
        tensor = values.detach()
    else:
        array = np.asarray(_on_cpu(values))
        if array.size == 0 and not isinstance(values, np.ndarray):
            array = array.astype(np.int64)
        if array.dtype.kind not in "iu":
            raise ValueError(f"{name} must be integers, not {array.dtype} (first value {_first(array)!r})")
        if array.dtype == np.uint64 and array.size and array.max() > np.iinfo(np.int64).max:
            raise ValueError(f"{name} hold {array.max()}, which is out of range")
        tensor = torch.from_numpy(array.astype(np.int64))
    if tensor.dtype == torch.bool or tensor.is_floating_point() or tensor.is_complex():
        first = tensor.reshape(-1)[:1].tolist()
        raise ValueError(f"{name} must be integers, not {tensor.dtype} (first value {first})")
    return tensor.to(device="cpu", dtype=torch.int64)


def _on_cpu(values: object) -> object:
    """Tensors in lists where numpy, which knows the CPU alone, can read them."""
    if isinstance(values, list | tuple | deque):
        return [_on_cpu(value) for value in values]
    return values.detach().cpu() if isinstance(values, Tensor) else values


def _first(array: np.ndarray) -> object:
    return array.reshape(-1)[0].item() if array.size and array.dtype.kind != "O" else array.tolist()
