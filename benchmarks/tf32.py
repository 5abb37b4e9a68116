"""TF32 where no hardware has it: products of float32 numbers that are first rounded to 10 bits of mantissa.

NVIDIA's tensor cores take float32 operands as TF32 (8 bits of exponent, 10 of mantissa), multiply exactly and add in
float32. Rounding the operands of every matrix product and convolution before an ordinary float32 product gives the
same but for the order of additions.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

_aten = torch.ops.aten
# The two factors among the arguments of each operation.
_FACTORS = {
    _aten.mm: (0, 1),
    _aten.bmm: (0, 1),
    _aten.matmul: (0, 1),
    _aten.linear: (0, 1),
    _aten.addmm: (1, 2),
    _aten.baddbmm: (1, 2),
    _aten.convolution: (0, 1),
}
_DROPPED_BITS = 13  # of float32's 23


def rounded(x: Tensor) -> Tensor:
    """Float32 numbers to the nearest that TF32 has, ties to even; infinities and NaN stay."""
    bits = x.view(torch.int32)
    half = (1 << (_DROPPED_BITS - 1)) - 1
    nearest = (bits + half + ((bits >> _DROPPED_BITS) & 1)) & -(1 << _DROPPED_BITS)
    return torch.where(x.isfinite(), nearest.view(torch.float32), x)


class Tf32Products(TorchDispatchMode):
    """Within it, products of float32 tensors on a CPU are as in TF32; other types are left alone."""

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        packet = func.overloadpacket
        if packet is _aten._scaled_dot_product_flash_attention_for_cpu and args[0].dtype == torch.float32:
            return _attention(*args, **kwargs)
        factors = _FACTORS.get(packet, ())
        return func(*(_operand(arg) if place in factors else arg for place, arg in enumerate(args)), **kwargs)


def _operand(x: Tensor) -> Tensor:
    return rounded(x) if x.dtype == torch.float32 else x


def _attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    dropout: float = 0.0,
    is_causal: bool = False,
    *,
    attn_mask: Tensor | None = None,
    scale: float | None = None,
) -> tuple[Tensor, Tensor]:
    """The fused attention's two products, apart. The second result is for a backward pass that nobody runs."""
    if dropout or is_causal:
        raise NotImplementedError("attention with dropout or a causal mask is not emulated")
    scores = rounded(query) @ rounded(key).transpose(-2, -1) * (scale or 1 / math.sqrt(query.shape[-1]))
    weights = torch.softmax(scores if attn_mask is None else scores + attn_mask, dim=-1)
    return rounded(weights) @ rounded(value), scores.new_empty(0)
