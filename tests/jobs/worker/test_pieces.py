"""Pieces of rows between the engine and the encoders: every row comes out once and whole, and memory holds none."""

from __future__ import annotations

import gc
import io
import itertools
import weakref
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from jobs.audio.audiofile import Samples
from jobs.config.config import JobConfig, config_from
from jobs.engine.batch import Item, Trouble
from jobs.manifest.rows import Row
from jobs.worker.encoding import Encoders, Intake
from jobs.worker.pieces import Pieces
from jobs.worker.spool import Encoded
from s3gen import Splitting, Voice
from s3gen.constants import SAMPLES_PER_TOKEN
from s3gen.crossfade import join
from s3gen.splitting import pieces

VOICE = Voice(torch.zeros(1, dtype=torch.int64), torch.zeros(2, 80), torch.zeros(192))
SPLITTING = Splitting(max_tokens=48)


@pytest.fixture
def waiting(tmp_path: Path) -> Iterator[Pieces]:
    with (tmp_path / "pieces").open("w+b") as file:
        yield Pieces(file)


def _config() -> JobConfig:
    return config_from({"model": "random:tiny", "manifest": "m", "voices": "v", "output": "o", "audio": "wav"})


def _items(position: int, tokens: int) -> list[Item]:
    row = np.arange(tokens)
    cuts = tuple(SPLITTING.cuts(row))
    return list(Item(Row(position, f"r{position}", "v", row, 0, cuts=cuts), VOICE).pieces())


def _wave(item: Item, seed: int = 0) -> Samples:
    return np.random.default_rng([item.start, seed]).standard_normal(SAMPLES_PER_TOKEN * len(item.tokens), np.float32)


def _add(waiting: Pieces, item: Item, made: Samples | Trouble) -> object:
    assert item.piece is not None
    return waiting.add(item, item.piece, made)


def test_a_short_row_is_cut() -> None:
    (item,) = _items(0, 48)
    assert (item.piece, item.start, len(item.tokens)) == (None, 0, 48)


def test_a_row_is_joined_wrongly_when_its_pieces_come_in_another_order(waiting: Pieces) -> None:
    items = _items(3, 90)
    parts = pieces(90, items[0].row.cuts)
    want = join(parts, [torch.from_numpy(_wave(item)) for item in items]).numpy()
    assert len(items) == 4
    for position, order in enumerate(itertools.permutations(range(len(items)))):
        mixed = [_items(position, 90)[place] for place in order]
        answers = [_add(waiting, item, _wave(item)) for item in mixed]
        assert answers[:-1] == [None] * 3
        whole = answers[-1]
        assert callable(whole)
        assert np.array_equal(whole(), want)


def test_a_row_fails_twice_or_after_it_failed_it_is_made(waiting: Pieces) -> None:
    starved, wrong = Trouble("out_of_memory", "none left"), Trouble("synthesis_error", "no")
    first, *others = _items(5, 90)
    assert _add(waiting, others[0], _wave(others[0])) is None
    assert _add(waiting, first, starved) is starved
    assert _add(waiting, others[1], wrong) is None
    assert _add(waiting, others[2], _wave(others[2])) is None
    # Its neighbour is made all the same.
    answers = [_add(waiting, item, _wave(item)) for item in _items(6, 90)]
    assert [callable(answer) for answer in answers] == [False, False, False, True]


def test_a_piece_of_a_wrong_length_is_joined(waiting: Pieces) -> None:
    item = _items(5, 90)[1]
    trouble = _add(waiting, item, _wave(item)[:-1])
    expected = SAMPLES_PER_TOKEN * len(item.tokens)
    message = f"{expected - 1} samples for {len(item.tokens)} tokens, not {expected}"
    assert trouble == Trouble("wrong_length", message)


def test_pieces_wait_in_memory_for_their_row(tmp_path: Path) -> None:
    with (tmp_path / "pieces").open("w+b") as file:
        intake = Intake(Encoders(1, _config()), Pieces(file))
        wave = _wave(_items(0, 90)[0])
        gone = weakref.ref(wave)
        intake.put([_items(0, 90)[0]], [wave])
        del wave
        gc.collect()
        assert gone() is None
        intake.end()
        assert list(intake.clips()) == []


def test_rows_that_were_cut_come_out_in_pieces_or_in_the_place_of_others(tmp_path: Path) -> None:
    """Two long rows and a short one, their pieces over several batches; one has samples that are not finite."""
    long, short, spoilt = _items(0, 90), _items(1, 9), _items(2, 60)
    broken = _wave(spoilt[1])
    broken[len(broken) // 2] = np.nan
    batches = [
        ([long[1], spoilt[1]], [_wave(long[1]), broken]),
        ([long[0], long[3], short[0]], [_wave(long[0]), _wave(long[3]), _wave(short[0])]),
        ([spoilt[0], long[2]], [_wave(spoilt[0]), _wave(long[2])]),
    ]
    with (tmp_path / "pieces").open("w+b") as file:
        intake = Intake(Encoders(1, _config()), Pieces(file))
        clips: list[tuple[Item, Encoded | Trouble]] = []
        found = intake.clips()
        for batch, waves in batches[:2]:
            intake.put(list(batch), list(waves))
        clips.append(next(found))
        intake.put(*batches[2])
        intake.end()
        clips += list(found)
    assert [item.row.position for item, _ in clips] == [1, 2, 0]
    made = [clip for _, clip in clips]
    assert isinstance(made[0], Encoded)
    assert isinstance(made[1], Trouble)
    assert made[1].error == "not_finite"
    assert isinstance(made[2], Encoded)
    assert made[2].samples == 90 * SAMPLES_PER_TOKEN
    wave, _ = soundfile.read(io.BytesIO(made[2].data), dtype="float32")
    want = join(pieces(90, long[0].row.cuts), [torch.from_numpy(_wave(item)) for item in long]).numpy()
    assert np.abs(wave - want.clip(-1, 1)).max() < 2**-14
