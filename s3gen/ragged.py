"""Ragged batches: rows of different lengths, padded on the right, and the masks that keep padding out.

Shape letters: B rows, T positions.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def group_size(device_type: str) -> int:
    """What goes through the encoder (tokens) and the vocoder (frames) at once, padding included.

    Rows of like length, so that little of it is padding. On a CPU a row of some seconds is as much as pays; on a GPU a
    group is over a thousand launches, which take longer than the work of 40 seconds.
    """
    return 256 if device_type == "cpu" else 4_096


def on_device(tensor: Tensor, device: torch.device) -> Tensor:
    """A CPU tensor on a device. On CUDA the copy is queued: the caller does not wait for what runs there."""
    if device.type != "cuda" or tensor.device.type != "cpu":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


def rows_on_device(rows: Sequence[Tensor], device: torch.device) -> list[Tensor]:
    """CPU rows (T_i, ...) on a device, moved in one piece; rows that are there stay as they are."""
    if all(row.device == device for row in rows):
        return list(rows)
    return list(on_device(torch.cat([row.cpu() for row in rows]), device).split([len(row) for row in rows]))


def length_mask(lengths: Sequence[int], device: torch.device) -> Tensor | None:
    """Where a right-padded batch holds data: (B, T) bool with T the longest, or None when every row is as long.

    None lets the layers skip the mask altogether; a mask of all True would give the same numbers.
    """
    if min(lengths) == max(lengths):
        return None
    columns = torch.arange(max(lengths), device=device)
    return columns[None, :] < on_device(torch.tensor(lengths), device)[:, None]


def zero_padding(x: Tensor, mask: Tensor | None) -> Tensor:
    """`x` (B, C, T) with zeros where `mask` (B, T) is False. Padding must be finite: 0 x NaN is NaN."""
    return x if mask is None else x * mask[:, None, :].to(x.dtype)


def pad_rows(rows: Sequence[Tensor]) -> Tensor:
    """Rows of (T_i, ...) side by side, padded with zeros on the right: (B, T, ...)."""
    return torch.nn.utils.rnn.pad_sequence(list(rows), batch_first=True)


def plan_batches(lengths: Sequence[int], max_frames: int) -> list[list[int]]:
    """Group rows into padded batches of at most `max_frames` cells, like lengths together, longest first.

    There are as few batches as filling each to the brim would make, and none is larger than that number needs: the
    last one is not a small rest.

    Args:
        lengths: each row's length (frames, prompt included).
        max_frames: rows x longest row of a batch; a row that is longer on its own is a batch of one.

    Returns:
        Row numbers per batch. It follows from the arguments alone; rows of equal length keep their order.

    Raises:
        ValueError: `max_frames` below 1.
    """
    if max_frames < 1:
        raise ValueError(f"max_frames is {max_frames}, but a batch needs at least one frame")
    if not lengths:
        return []
    order = sorted(range(len(lengths)), key=lambda row: -lengths[row])
    ordered = [lengths[row] for row in order]
    fewest = len(_fill(ordered, max_frames))
    low, high = 0, max_frames  # of the budget: too little, enough
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if len(_fill(ordered, middle)) <= fewest else (middle, high)
    starts = _fill(ordered, high)
    return [order[start:end] for start, end in zip(starts, [*starts[1:], len(order)], strict=True)]


def _fill(ordered: Sequence[int], max_frames: int) -> list[int]:
    """Where batches begin when each is filled to the brim; `ordered` lengths, longest first."""
    starts: list[int] = []
    for place in range(len(ordered)):
        if not starts or (place - starts[-1] + 1) * ordered[starts[-1]] > max_frames:
            starts.append(place)
    return starts


def padding_share(lengths: Sequence[int], batches: Sequence[Sequence[int]]) -> float:
    """The share of right-padded batches that is padding: 0 .. 1.

    Args:
        lengths: each row's length.
        batches: row numbers per batch.
    """
    cells = sum(len(batch) * max(lengths[row] for row in batch) for batch in batches)
    return 1 - sum(lengths[row] for batch in batches for row in batch) / cells if cells else 0.0
