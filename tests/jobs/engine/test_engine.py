"""The engine's thread, on a device whose batches arrive when the test says so."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from typing import Any

import numpy as np
import pytest
import torch

from jobs.audio.audiofile import Samples
from jobs.crew.schedule import BrokenWorker
from jobs.engine import engine as engines
from jobs.engine.batch import Batch, Item, Trouble
from jobs.engine.engine import Engine
from jobs.manifest.rows import Row
from s3gen import Solver, Voice

SECONDS = 20  # that a test waits before it fails


class Device:
    """Stands for model and device: queues batches at once, makes them only when they are awaited; keeps a diary."""

    device = torch.device("cpu")

    def __init__(self) -> None:
        self.diary: list[str] = []
        self.fault: Callable[[list[int]], None] = lambda batch: None
        self.lost: Callable[[list[int]], None] = lambda batch: None
        self.threads: set[int] = set()

    def synthesize(self, tokens: Sequence[torch.Tensor], *args: Any, **kwargs: Any) -> list[torch.Tensor]:
        rows = [int(row[0]) for row in tokens]
        self.threads.add(threading.get_ident())
        self.diary.append(f"queue {_name(rows)}")
        self.fault(rows)
        return [torch.full((3,), float(row)) for row in rows]

    def fetch(self, waves: Sequence[torch.Tensor], stream: None) -> Awaited:
        return Awaited(self, [int(wave[0]) for wave in waves])


class Awaited:
    ready = False

    def __init__(self, device: Device, rows: list[int]) -> None:
        self._device, self._rows = device, rows

    def take(self) -> list[Samples]:
        self._device.diary.append(f"take {_name(self._rows)}")
        self._device.lost(self._rows)
        return [np.full(3, row, np.float32) for row in self._rows]


def _name(rows: Sequence[int]) -> str:
    return "+".join(map(str, rows))


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Iterator[Device]:
    device = Device()
    monkeypatch.setattr(engines, "Fetch", device.fetch)
    yield device
    assert len(device.threads) <= 1, "CUDA graphs and OpenMP's threads belong to one thread"


class Delivered:
    """What the engine delivered of one order."""

    def __init__(self) -> None:
        self.rows: list[int] = []
        self.troubles: list[tuple[int, str]] = []
        self.done: Future[None] = Future()

    def __call__(self, batch: Batch, result: list[Samples] | Trouble) -> None:
        if isinstance(result, Trouble):
            self.troubles.append((batch[0].row.position, result.error))
            return
        assert [int(wave[0]) for wave in result] == [item.row.position for item in batch]
        self.rows += [item.row.position for item in batch]


def _engine(device: Device) -> Engine:
    return Engine(device, solver=Solver(), start_fade=True)  # type: ignore[arg-type]


def _batch(*numbers: int) -> Batch:
    voice = Voice(torch.zeros(1, dtype=torch.int64), torch.zeros(2, 80), torch.zeros(192))
    return [Item(Row(number, f"r{number}", "v", np.array([number]), 0), voice) for number in numbers]


def _make(engine: Engine, *batches: Batch) -> Delivered:
    delivered = Delivered()
    delivered.done = engine.make(batches, delivered)
    return delivered


def test_the_next_batch_is_queued_before_the_last_one_is_awaited_and_never_a_third(device: Device) -> None:
    made = _make(_engine(device), _batch(0), _batch(1), _batch(2), _batch(3))
    made.done.result(SECONDS)
    assert device.diary == ["queue 0", "queue 1", "take 0", "queue 2", "take 1", "queue 3", "take 2", "take 3"]
    assert made.rows == [0, 1, 2, 3]


def test_the_device_does_not_run_dry_between_two_shards(device: Device) -> None:
    engine = _engine(device)
    started, go = threading.Event(), threading.Event()
    engine.call(lambda: None)
    held = threading.Thread(target=engine.call, args=(lambda: (started.set(), go.wait(SECONDS)),))
    held.start()
    started.wait(SECONDS)
    first, second = _make(engine, _batch(0), _batch(1)), _make(engine, _batch(2), _batch(3))
    go.set()
    second.done.result(SECONDS)
    assert first.done.done()
    held.join()
    assert device.diary == ["queue 0", "queue 1", "take 0", "queue 2", "take 1", "queue 3", "take 2", "take 3"]


def test_a_shard_with_none_behind_it_is_not_left_on_the_device(device: Device) -> None:
    made = _make(_engine(device), _batch(0))
    made.done.result(SECONDS)
    assert made.rows == [0]


def test_a_shard_is_done_when_its_last_batch_is_there_whatever_the_next_one_does(device: Device) -> None:
    engine = _engine(device)
    go = threading.Event()

    def wait_at_three(rows: list[int]) -> None:
        if rows == [3]:
            assert first.done.done()
            go.set()

    device.fault = wait_at_three
    ready = threading.Event()
    held = threading.Thread(target=engine.call, args=(lambda: ready.wait(SECONDS),))
    held.start()
    first, second = _make(engine, _batch(0)), _make(engine, _batch(1), _batch(2), _batch(3))
    ready.set()
    second.done.result(SECONDS)
    held.join()
    assert go.is_set()


def test_out_of_memory_with_a_batch_in_flight_first_lands_that_and_tries_again(device: Device) -> None:
    failures = iter([MemoryError("two at a time")])

    def crowded(rows: list[int]) -> None:
        if rows == [1, 2, 3] and (error := next(failures, None)):
            raise error

    device.fault = crowded
    made = _make(_engine(device), _batch(0), _batch(1, 2, 3))
    made.done.result(SECONDS)
    assert device.diary == ["queue 0", "queue 1+2+3", "take 0", "queue 1+2+3", "take 1+2+3"]
    assert made.rows == [0, 1, 2, 3]


def test_out_of_memory_splits_the_batch_in_hand_and_keeps_the_one_in_flight(device: Device) -> None:
    def small(rows: list[int]) -> None:
        if len(rows) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")

    device.fault = small
    made = _make(_engine(device), _batch(0), _batch(1, 2, 3, 4, 5), _batch(6))
    made.done.result(SECONDS)
    assert made.rows == [0, 1, 2, 3, 4, 5, 6]
    queued = [line for line in device.diary if line.startswith("queue")]
    assert queued == [
        *("queue 0", "queue 1+2+3+4+5", "queue 1+2+3+4+5", "queue 1+2+3", "queue 1+2"),
        *("queue 3", "queue 4+5", "queue 6"),
    ]


def test_every_later_batch_starves_again_before_it_is_split(device: Device) -> None:
    starved = 0

    def small(rows: list[int]) -> None:
        nonlocal starved
        if len(rows) > 2:
            starved += 1
            raise MemoryError

    device.fault = small
    engine = _engine(device)
    # The first batch fits and is no larger than those that do not: two rows are the most that fits.
    batches = [_batch(0, 1), _batch(2, 3, 4, 5), _batch(6, 7, 8, 9), _batch(10, 11, 12), _batch(13, 14)]
    made = _make(engine, *batches)
    made.done.result(SECONDS)
    again = _make(engine, _batch(20, 21, 22, 23))
    again.done.result(SECONDS)
    assert made.rows + again.rows == [*range(15), 20, 21, 22, 23]
    # Once beside the batch before it, and once alone.
    assert starved == 2
    assert [line for line in device.diary if line.startswith("queue")][-4:] == [
        *("queue 12", "queue 13+14"),
        *("queue 20+21", "queue 22+23"),
    ]


def test_a_batch_that_starved_only_in_company_makes_later_ones_small(device: Device) -> None:
    failures = iter([MemoryError("two at a time")])

    def crowded(rows: list[int]) -> None:
        if rows == [1, 2, 3] and (error := next(failures, None)):
            raise error

    device.fault = crowded
    made = _make(_engine(device), _batch(0), _batch(1, 2, 3), _batch(4, 5, 6))
    made.done.result(SECONDS)
    assert device.diary[-1] == "take 4+5+6"


def test_one_long_row_that_starved_makes_later_batches_small(device: Device) -> None:
    def one(rows: list[int]) -> None:
        if rows == [0]:
            raise MemoryError

    device.fault = one
    made = _make(_engine(device), _batch(0), _batch(1, 2, 3))
    made.done.result(SECONDS)
    assert made.troubles == [(0, "out_of_memory")]
    assert "queue 1+2+3" in device.diary


def test_a_guilty_row_is_found_without_trying_its_batch_twice(device: Device) -> None:
    def guilty(rows: list[int]) -> None:
        if 2 in rows:
            raise RuntimeError("unlucky")

    device.fault = guilty
    made = _make(_engine(device), _batch(0), _batch(1, 2))
    made.done.result(SECONDS)
    assert made.troubles == [(2, "synthesis_error")]
    assert made.rows == [0, 1]
    assert device.diary.count("queue 1+2") == 1


def test_a_device_that_fails_while_it_is_awaited_ends_all_orders_now_and_later(device: Device) -> None:
    def lost(rows: list[int]) -> None:
        if rows == [1]:
            raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")

    device.lost = lost
    engine = _engine(device)
    first, second = _make(engine, _batch(0), _batch(1)), _make(engine, _batch(2), _batch(3))
    for made in (first, second, _make(engine, _batch(4))):
        with pytest.raises(BrokenWorker, match="illegal memory access"):
            made.done.result(SECONDS)
    assert first.rows == [0]
    assert "queue 4" not in device.diary


def test_a_device_that_breaks_while_a_batch_is_queued_ends_the_shard_in_flight_too(device: Device) -> None:
    def fault(rows: list[int]) -> None:
        if rows == [1]:
            raise torch.AcceleratorError("CUDA error: device-side assert triggered")

    device.fault = fault
    engine = _engine(device)
    ready = threading.Event()
    held = threading.Thread(target=engine.call, args=(lambda: ready.wait(SECONDS),))
    held.start()
    first, second = _make(engine, _batch(0)), _make(engine, _batch(1))
    ready.set()
    for made in (first, second):
        with pytest.raises(BrokenWorker, match="device-side assert"):
            made.done.result(SECONDS)
    held.join()


def test_a_shard_whose_clips_nobody_takes_ends_and_the_next_one_is_made(device: Device) -> None:
    def full(batch: Batch, result: Any) -> None:
        raise OSError("no space left")

    engine = _engine(device)
    failed = engine.make([_batch(0), _batch(1), _batch(2), _batch(3)], full)
    with pytest.raises(OSError, match="no space"):
        failed.result(SECONDS)
    assert "queue 3" not in device.diary
    made = _make(engine, _batch(4))
    made.done.result(SECONDS)
    assert made.rows == [4]


def test_a_shard_without_rows_is_done_at_once(device: Device) -> None:
    _make(_engine(device)).done.result(SECONDS)
    assert device.diary == []
