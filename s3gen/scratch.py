"""Memory that a loop uses again and again.

On a CPU, large temporaries go back to the system and come back as pages that fault: that took up to a seventh of the
solver's time. CUDA's caching allocator needs no such help.
"""

from __future__ import annotations

import math

from torch import Tensor


class Scratch:
    """Named pieces of memory, each as large as the largest that was asked for under its name.

    A piece is overwritten by whoever asks for it next.

    Args:
        like: a tensor of the device and type of all pieces.
    """

    def __init__(self, like: Tensor) -> None:
        self._like = like
        self._pieces: dict[str, Tensor] = {}

    def take(self, name: str, shape: tuple[int, ...]) -> Tensor | None:
        """For an operation's `out`: a piece on a CPU; None elsewhere, where the operation finds its own."""
        return self.empty(name, shape) if self._like.device.type == "cpu" else None

    def empty(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """A contiguous piece of this shape, with whatever stands in it."""
        size = math.prod(shape)
        piece = self._pieces.get(name)
        if piece is None or len(piece) < size:
            piece = self._pieces[name] = self._like.new_empty(size)
        return piece[:size].view(shape)
