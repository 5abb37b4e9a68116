"""What is wrong with a row, as the failures table says it."""

from __future__ import annotations

from typing import NamedTuple

from jobs.manifest.texts import Text, shown


class Problem(NamedTuple):
    """Why a row cannot be made."""

    error: str  # a code: docs/formats.md has them all
    message: str


def bad_text(column: str, value: bytes | None) -> Problem:
    """Of an id: there is none, or it is not UTF-8."""
    if value is None:
        return Problem(f"null_{column}", f"{column} is null")
    return Problem(f"bad_{column}", f"{column} is not valid UTF-8: {shown(value)}")


def text_problem(column: str, value: Text) -> Problem | None:
    """What is wrong with an id, if anything."""
    return None if isinstance(value, str) else bad_text(column, value)
