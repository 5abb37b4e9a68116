"""How much text is spoken in a second, where a manifest has the texts."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence

import pyarrow as pa

from jobs.manifest.columns import is_text
from jobs.manifest.texts import texts

TEXT = "text"  # the manifest's column


def letters(text: str) -> int:
    """Letters and digits of a text, of any script; spaces, punctuation and marks that stand on letters are none."""
    return sum(map(str.isalnum, unicodedata.normalize("NFC", text)))


def letter_rates(columns: pa.Table, seconds: Sequence[float]) -> list[float | None]:
    """Letters per second of audio, pauses included, of each row; None where there is no text or no audio.

    Args:
        columns: of the rows, as the manifest has them. Without a column ``text`` that holds texts there is no rate.
        seconds: of each row's audio.
    """
    if TEXT not in columns.column_names or not is_text(columns.schema.field(TEXT).type):
        return [None] * len(seconds)
    return [
        letters(text) / length if isinstance(text, str) and length else None
        for text, length in zip(texts(columns[TEXT]), seconds, strict=True)
    ]
