"""Columns of texts from manifests, which may hold bytes that are none."""

from __future__ import annotations

import pyarrow as pa

Text = str | bytes | None  # bytes: what is not valid UTF-8


def texts(column: pa.ChunkedArray) -> list[Text]:
    """The texts of a column."""
    chunks = [chunk.dictionary_decode() if pa.types.is_dictionary(column.type) else chunk for chunk in column.chunks]
    texts: list[Text] = []
    for chunk in chunks:
        try:
            texts.extend(chunk.to_pylist())
        except UnicodeDecodeError:
            texts.extend(_decoded(value) for value in chunk.cast(pa.large_binary()).to_pylist())
    return texts


def shown(value: str | bytes) -> str:
    """A text as a message may show it."""
    text = repr(value[:200])
    return text if len(value) <= 200 else f"{text}... ({len(value)} long)"


def _decoded(value: bytes | None) -> Text:
    try:
        return value if value is None else value.decode()
    except UnicodeDecodeError:
        return value
