"""The model on a thread of its own, which makes batches one after the other and never lets the device wait for them.

`S3GenModel.synthesize` only queues work on CUDA. So the next batch is queued while the device still computes the one
before it, across the border of two shards too. On a CPU a batch is there when the call returns.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TypeVar

import torch

from jobs.audio.audiofile import Samples
from jobs.crew.pulse import Pulse
from jobs.crew.schedule import BrokenWorker
from jobs.engine.batch import Batch, Trouble, broken, halves, trouble_of
from jobs.engine.room import Room
from jobs.engine.transfer import Fetch
from s3gen import S3GenModel, Solver

IN_FLIGHT = 2  # batches that are queued on the device and not yet fetched

T = TypeVar("T")

# A batch that was made and its waves, or a batch of one row and why it could not be made.
Deliver = Callable[[Batch, list[Samples] | Trouble], None]


@dataclass(eq=False, slots=True)
class _Order:
    """The batches of one shard."""

    deliver: Deliver
    done: Future[None] = field(default_factory=Future)
    flying: int = 0
    queued: bool = False  # all there are, or all there ever will be
    error: BaseException | None = None

    def give(self, batch: Batch, result: list[Samples] | Trouble) -> None:
        """Delivers a batch, or drops it when the order has failed."""
        if self.error is None:
            try:
                self.deliver(batch, result)
            except BaseException as error:
                self.error = error

    def settle(self) -> None:
        """Says that the order is done, once it is."""
        if self.queued and not self.flying and not self.done.done():
            if self.error is None:
                self.done.set_result(None)
            else:
                self.done.set_exception(self.error)


@dataclass(frozen=True, slots=True)
class _Flight:
    """A batch that is queued on the device."""

    order: _Order
    batch: Batch
    fetch: Fetch


class Engine:
    """Makes batches with one model, on one thread.

    One thread, since much belongs to a thread: torch's number of CPU threads and OpenMP's pool of them, CUDA graphs,
    the current stream.

    Args:
        model: on its device.
        solver: of the flow.
        start_fade: as for `S3GenModel.synthesize`.
        pulse: moves on with each batch.
    """

    def __init__(self, model: S3GenModel, *, solver: Solver, start_fade: bool, pulse: Pulse | None = None) -> None:
        self._model, self._solver, self._start_fade = model, solver, start_fade
        self._pulse = Pulse() if pulse is None else pulse
        self._room = Room()
        self._on_cuda = model.device.type == "cuda"
        self._copies = torch.cuda.Stream(model.device) if self._on_cuda else None
        self._flights: deque[_Flight] = deque()
        self._broken: BrokenWorker | None = None
        # The number is the caller's: threads that begin later would not all have it.
        self._thread = ThreadPoolExecutor(1, "engine", torch.set_num_threads, (torch.get_num_threads(),))

    def call(self, function: Callable[[], T]) -> T:
        """What a function returns when it runs on the engine's thread."""
        return self._thread.submit(function).result()

    def make(self, batches: Sequence[Batch], deliver: Deliver) -> Future[None]:
        """Makes batches, after those of earlier calls.

        Where a batch fails as a whole its halves are made, down to the rows that are guilty.

        Args:
            batches: each of at least one row.
            deliver: gets what was made, in this order, on the engine's thread, which waits meanwhile: that it blocks
                is how memory is bounded. What it raises ends this call's batches and no other's.

        Returns:
            Done when everything was delivered. Its exception is what `deliver` raised, or BrokenWorker.
        """
        order = _Order(deliver)
        self._thread.submit(self._fulfil, order, batches)
        return order.done

    def _fulfil(self, order: _Order, batches: Sequence[Batch]) -> None:
        try:
            if self._broken is not None:
                raise self._broken
            self._queue_all(order, batches)
        except BaseException as error:
            self._give_up(order, error)
        order.queued = True
        order.settle()
        # Behind the next shard, if that waits already: its first batches are queued before these last ones are awaited.
        self._thread.submit(self._land_rest, order)

    def _queue_all(self, order: _Order, batches: Sequence[Batch]) -> None:
        pending = [*reversed(batches)]
        while pending and order.error is None:
            while len(self._flights) >= IN_FLIGHT:
                self._land()
            batch = pending.pop()
            if self._room.is_too_small_for(batch):
                pending += reversed(halves(batch))
                continue
            crowded = bool(self._flights)
            trouble = self._queue(order, batch)
            if trouble is None:
                self._room.held(batch)
                while self._flights and self._ready():
                    self._land()
                continue
            self._make_free()
            if crowded and trouble.starved:
                pending.append(batch)
            elif len(batch) > 1:
                if trouble.starved:
                    self._room.starved(batch)
                pending += reversed(halves(batch))
            else:
                order.give(batch, trouble)

    def _make_free(self) -> None:
        """Gives the device back all memory that no batch needs."""
        while self._flights:
            self._land()
        if self._on_cuda:
            self._awaited(torch.cuda.empty_cache)

    def _queue(self, order: _Order, batch: Batch) -> Trouble | None:
        try:
            waves = self._model.synthesize(
                [torch.tensor(item.tokens) for item in batch],
                [item.voice for item in batch],
                [item.row.seed for item in batch],
                solver=self._solver,
                start_fade=self._start_fade,
                starts=[item.start for item in batch],
            )
            fetch = Fetch(waves, self._copies)
        except Exception as error:
            return trouble_of(error)
        self._flights.append(_Flight(order, batch, fetch))
        order.flying += 1
        return None

    def _land_rest(self, order: _Order) -> None:
        try:
            while order.flying:
                self._land()
        except BaseException as error:
            self._give_up(order, error)

    def _ready(self) -> bool:
        return self._awaited(lambda: self._flights[0].fetch.ready)

    def _land(self) -> None:
        """Delivers the oldest batch in flight."""
        waves = self._awaited(self._flights[0].fetch.take)
        self._pulse.beat()
        flight = self._flights.popleft()
        flight.order.give(flight.batch, waves)
        flight.order.flying -= 1
        flight.order.settle()

    def _awaited(self, look: Callable[[], T]) -> T:
        # Nobody knows which of the batches that were queued has failed, nor what else is gone with it.
        try:
            return look()
        except Exception as error:
            raise broken(error) from error

    def _give_up(self, order: _Order, error: BaseException) -> None:
        """Ends an order; all of them, now and later, when the device is of no more use."""
        order.error = order.error or error
        if isinstance(error, BrokenWorker):
            self._broken = error
            for flight in self._flights:
                flight.order.error = flight.order.error or error
                flight.order.flying -= 1
                flight.order.settle()
            self._flights.clear()
