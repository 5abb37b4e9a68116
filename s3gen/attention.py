"""Self-attention of packed rows: every row attends to itself alone.

Three ways to the same numbers: row by row on a CPU, in one variable-length kernel on CUDA in half precision, and over
a padded batch with a mask where neither fits.

Shape letters: P packed positions, A heads, E width of a head, T positions of a row.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from s3gen.packing import Packing
from s3gen.scratch import Scratch

# Up to here the scores of all heads of a row stay in the cache, and three large steps beat the fused kernel's tiles.
_PLAIN_LENGTH = 448


def attend(qkv: Tensor, heads: int, packing: Packing, scratch: Scratch) -> Tensor:
    """Scaled dot-product attention within each row.

    Args:
        qkv: (P, 3 x A x E): queries, keys and values side by side, each head by head.
        heads: A.
        packing: where the rows lie.
        scratch: memory for what comes between, and for the result.

    Returns:
        (P, A x E); finite but meaningless where there is no row.
    """
    if qkv.device.type == "cpu":
        return by_row(qkv, heads, packing, scratch)
    if qkv.device.type == "cuda" and qkv.dtype in (torch.bfloat16, torch.float16):
        return variable_length(qkv, heads, packing)
    return over_padding(qkv, heads, packing)


def by_row(qkv: Tensor, heads: int, packing: Packing, scratch: Scratch) -> Tensor:
    """`attend`, one row after the other: no padding, no mask."""
    split = qkv.unflatten(1, (3, heads, -1))  # (P, 3, A, E)
    attended = scratch.empty("attended", (len(qkv), qkv.shape[1] // 3))
    attended.index_fill_(0, packing.gaps, 0.0)
    for start, end in packing.runs():
        query, key, value = split[start:end].permute(1, 2, 0, 3)  # (A, T, E) each
        row = _row(query, key, value, scratch)
        attended[start:end].unflatten(1, (heads, -1)).copy_(row.transpose(0, 1))
    return attended


def _row(query: Tensor, key: Tensor, value: Tensor, scratch: Scratch) -> Tensor:
    heads, length, width = query.shape
    if length > _PLAIN_LENGTH or query.dtype not in (torch.float32, torch.float64):
        return F.scaled_dot_product_attention(query[None], key[None], value[None])[0]
    scores = scratch.empty("scores", (heads, length, length))
    torch.baddbmm(scores, query, key.transpose(1, 2), beta=0, alpha=1 / math.sqrt(width), out=scores)
    return torch.bmm(torch.softmax(scores, 2, out=scores), value)


def varlen_attn(
    query: Tensor, key: Tensor, value: Tensor, query_bounds: Tensor, key_bounds: Tensor, query_run: int, key_run: int
) -> Tensor:
    """Torch's own. Imported here: its module brings torch's compiler, which takes as long to import as torch."""
    from torch.nn.attention import varlen

    attended: Tensor = varlen.varlen_attn(query, key, value, query_bounds, key_bounds, query_run, key_run)  # type: ignore[assignment]
    return attended


def variable_length(qkv: Tensor, heads: int, packing: Packing) -> Tensor:
    """`attend` in one kernel over all runs, gaps included."""
    query, key, value = qkv.unflatten(1, (3, heads, -1)).unbind(1)  # (P, A, E) each
    bounds, longest = packing.bounds, packing.longest
    return varlen_attn(query, key, value, bounds, bounds, longest, longest).flatten(1)


def over_padding(qkv: Tensor, heads: int, packing: Packing) -> Tensor:
    """`attend` by way of a right-padded batch with a mask over its keys."""
    cells, mask, real = packing.padded
    query, key, value = qkv[cells].unflatten(2, (3, heads, -1)).permute(2, 0, 3, 1, 4)  # (rows, A, T, E) each
    keys = None if mask is None else mask[:, None, None, :]
    attended = F.scaled_dot_product_attention(query, key, value, attn_mask=keys).transpose(1, 2).flatten(2)
    result = qkv.new_zeros(qkv.shape[0], qkv.shape[1] // 3)
    return result.index_copy_(0, cells.flatten()[real], attended.flatten(0, 1)[real])
