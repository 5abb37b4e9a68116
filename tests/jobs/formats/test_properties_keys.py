"""Ids as names of files, whatever the ids are.

What holds: a key is one plain name of at most 120 ASCII bytes, the same everywhere; two ids have two keys, whatever
their case, length or form in Unicode; and up to 120 escaped bytes the key gives its id back. What does not: ids that
differ in the case of ASCII letters alone have keys that do, too, so a file system that knows no case cannot hold both
unpacked side by side. Nothing in a job depends on it, since keys are names inside of tar files.
"""

from __future__ import annotations

import re
import unicodedata
from urllib.parse import unquote

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from jobs.formats.keys import DIGEST_DIGITS, MAX_KEY_BYTES, PREFIX_BYTES, id_of, key_of

bounded = settings(max_examples=300)
characters = st.characters(exclude_categories=["Cs"])
short = st.text(characters, max_size=40)
hostile = st.sampled_from(
    [
        "../../x",
        "/etc",
        "..",
        ".",
        "%",
        "%2E",
        "%%",
        "a%",
        "~",
        "CON",
        "nul",
        "C:",
        "\x00",
        "\n",
        "\u202e",
        "a b",
        "a\\b",
    ]
)
# Around the length where keys are shortened, and far beyond.
long = st.builds(lambda text, times: text * times, st.text(characters, min_size=1, max_size=3), st.integers(1, 4_000))
# Ids that look like keys of others.
imitations = st.one_of(short, hostile, long).map(key_of)
ids = st.one_of(short, hostile, long, imitations)


@bounded
@given(ids)
@example("x" * MAX_KEY_BYTES)
@example("x" * (MAX_KEY_BYTES + 1))
@example("a" * PREFIX_BYTES + "0" * DIGEST_DIGITS)
@example("a" * PREFIX_BYTES + "A" * DIGEST_DIGITS)
def test_a_key_is_other_than_one_plain_name(row_id: str) -> None:
    key = key_of(row_id)
    assert re.fullmatch(r"[A-Za-z0-9_~%-]+", key)
    assert len(key) <= MAX_KEY_BYTES
    assert key == key_of(row_id)
    assert unicodedata.normalize("NFC", key) == unicodedata.normalize("NFKD", key) == key


@bounded
@given(ids)
def test_a_key_gives_another_id_back(row_id: str) -> None:
    given_back = id_of(key_of(row_id))
    escaped = sum(1 if re.fullmatch(r"[A-Za-z0-9_~-]", c) else 3 * len(c.encode()) for c in row_id)
    if escaped <= MAX_KEY_BYTES:
        assert given_back == row_id
        # And for those who know nothing of this project.
        assert row_id == "" or unquote(key_of(row_id)) == row_id
    else:
        assert given_back is None


@bounded
@given(ids, ids)
@example("é", "e\u0301")
@example("A", "a")
@example("", "%")
@example("x" * 200, "x" * 80)
def test_two_ids_have_one_key(one: str, other: str) -> None:
    assert (key_of(one) == key_of(other)) == (one == other)


@bounded
@given(ids, ids)
def test_keys_that_a_file_system_without_case_confuses_are_of_other_ids_than_it_says(one: str, other: str) -> None:
    if key_of(one).lower() == key_of(other).lower():
        assert one.lower() == other.lower()


@pytest.mark.parametrize("row_id", ["CON", "nul", "aux", "com1"])
def test_a_name_that_windows_keeps_for_itself_is_another_key(row_id: str) -> None:
    """Readers of tar files do not mind; unpacked on an older Windows, such a file cannot be made."""
    assert key_of(row_id) == row_id
