"""Speaking rates are of the text that a row has, and of its own audio."""

from __future__ import annotations

import unicodedata

import pyarrow as pa
import pytest

from jobs.measures.speaking import letter_rates, letters


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("", 0),
        (" ... -- !?", 0),
        ("It's 12:30.", 7),
        ("你好，世界。", 4),
        ("Ça alors, é", 8),
        ("한국어", 3),
    ],
)
def test_spaces_and_marks_are_counted_as_speech(text: str, count: int) -> None:
    assert letters(text) == count
    assert letters(unicodedata.normalize("NFD", text)) == count


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.dictionary(pa.int32(), pa.string())])
def test_a_row_gets_the_rate_of_another(kind: pa.DataType) -> None:
    columns = pa.table({"text": pa.array(["abcdef", None, "", "ab"], pa.string()).cast(kind)})
    assert letter_rates(columns, [2.0, 1.0, 1.0, 0.5]) == [3.0, None, 0.0, 4.0]


def test_what_is_no_text_stops_the_job() -> None:
    assert letter_rates(pa.table({"speaker": ["a"]}), [1.0]) == [None]
    assert letter_rates(pa.table({"text": [17]}), [1.0]) == [None]
    offsets = pa.array([0, 2, 4], pa.int32()).buffers()[1]
    torn = pa.StringArray.from_buffers(2, offsets, pa.py_buffer(b"ab\xff\xfe"))
    assert letter_rates(pa.table({"text": torn}), [1.0, 1.0]) == [2.0, None]
    assert letter_rates(pa.table({"text": ["abc"]}), [0.0]) == [None]
