"""Integers as users give them: Python's or numpy's, and no truth values."""

from __future__ import annotations

import operator
from typing import SupportsIndex


def integer(value: object) -> int | None:
    """The Python integer that `value` is; None if it is none."""
    if isinstance(value, bool) or not isinstance(value, SupportsIndex):
        return None
    try:
        return operator.index(value)
    except TypeError:  # an array or tensor of several, or of others than integers
        return None
