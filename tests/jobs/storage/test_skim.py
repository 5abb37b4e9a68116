"""Reading a little of a file, forwards."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest

from jobs.storage import skim
from jobs.storage.skim import LEAST_BLOCK, NEAR, Skimmed


@pytest.fixture
def fetched(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """What is asked for: from, to."""
    found: list[tuple[int, int]] = []
    plain = skim.read_part

    def noted(url: str, start: int, stop: int, *more: object) -> bytes:
        found.append((start, stop))
        return plain(url, start, stop, *more)  # type: ignore[arg-type]

    monkeypatch.setattr(skim, "read_part", noted)
    return found


def _file(path: Path, size: int) -> bytes:
    data = np.random.default_rng(0).bytes(size)
    path.write_bytes(data)
    return data


@pytest.mark.parametrize("step", [700, 100_000, 3 << 20])
def test_bytes_are_fetched_twice_or_in_vain(tmp_path: Path, fetched: list[tuple[int, int]], step: int) -> None:
    """A member's header and a little more, then the next member."""
    data = _file(tmp_path / "x", 12 << 20)
    file = Skimmed(str(tmp_path / "x"))
    for at in range(0, min(len(data), 2_000 * step), step):
        file.seek(at)
        assert file.read(512) == data[at : at + 512]
        assert file.tell() == at + 512
        file.seek(at + 511)  # tarfile looks whether there is so much
        assert file.read(1) == data[at + 511 : at + 512]
    assert all(before[1] <= after[0] for before, after in itertools.pairwise(fetched))
    if step > NEAR + LEAST_BLOCK:
        assert fetched == [(at, at + LEAST_BLOCK) for at in range(0, len(data), step)]
    else:
        assert len(fetched) < 10


def test_the_end_of_a_file_or_a_long_piece_is_not_what_it_is(tmp_path: Path) -> None:
    data = _file(tmp_path / "x", 300_000)
    file = Skimmed(str(tmp_path / "x"))
    assert file.read(200) == data[:200]
    assert file.read(250_000) == data[200:250_200]
    assert file.read(100_000) == data[250_200:]
    assert file.read(10) == b""
    file.seek(400_000)
    assert file.read(10) == b""
    file.seek(5)
    assert file.read(7) == data[5:12]
    with pytest.raises(FileNotFoundError):
        Skimmed(str(tmp_path / "none"))
