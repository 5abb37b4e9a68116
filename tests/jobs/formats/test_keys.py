"""Ids as names of files."""

from __future__ import annotations

import hashlib
import re
import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs.formats.keys import id_of, key_of

ids = st.text(st.characters(exclude_categories=["Cs"]), max_size=200)


@given(ids)
def test_a_key_is_a_plain_name_and_gives_its_id_back(row_id: str) -> None:
    key = key_of(row_id)
    assert re.fullmatch(r"[A-Za-z0-9_~%-]{1,120}", key)
    assert id_of(key) in (row_id, None)
    if len(row_id.encode()) <= 40:  # every byte escaped makes 120
        assert id_of(key) == row_id


@given(st.lists(ids, unique=True, max_size=50))
def test_two_ids_never_share_a_key(row_ids: list[str]) -> None:
    assert len({key_of(row_id) for row_id in row_ids}) == len(row_ids)


@pytest.mark.parametrize(
    ("row_id", "key"),
    [
        ("plain-id_7", "plain-id_7"),
        ("a/b.c", "a%2Fb%2Ec"),
        ("../../etc/passwd", "%2E%2E%2F%2E%2E%2Fetc%2Fpasswd"),
        ("100%", "100%25"),
        ("a%2Fb", "a%252Fb"),
        ("ü", "%C3%BC"),
        ("", "%"),
        ("%", "%25"),
        ("a" * 120, "a" * 120),
        ("a" * 121, "a" * 80 + hashlib.sha256(b"a" * 121).hexdigest()[:32]),
    ],
)
def test_keys_are_what_the_documentation_says(row_id: str, key: str) -> None:
    assert key_of(row_id) == key


def test_an_id_that_imitates_a_shortened_key_does_not_collide_with_it() -> None:
    long = "x" * 500
    imitation = key_of(long)
    assert key_of(imitation) != key_of(long)
    assert id_of(key_of(imitation)) == imitation
    assert id_of(key_of(long)) is None


def test_ids_of_ten_kilobytes_that_differ_at_their_end_stay_apart() -> None:
    keys = {key_of("x" * 10_000 + letter) for letter in string.ascii_letters}
    assert len(keys) == len(string.ascii_letters)
    assert {len(key) for key in keys} == {112}
