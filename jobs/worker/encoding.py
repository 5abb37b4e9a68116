"""Waves to audio files, measured, on threads beside the engine's, with room for a few batches at a time.

libsndfile, numpy and hashlib let go of Python's lock while they work on a clip.
"""

from __future__ import annotations

import hashlib
import queue
import threading
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import torch

from jobs.audio.audiofile import Samples, encode
from jobs.audio.mastering import Mastering
from jobs.config.config import JobConfig
from jobs.engine.batch import Batch, Item, Trouble, fault
from jobs.manifest.rows import Row
from jobs.measures.checks import explain, measure, problems
from jobs.measures.dnsmos import Dnsmos
from jobs.worker.pieces import Pieces
from jobs.worker.spool import Encoded

BATCHES = 2  # delivered and not yet all spooled, of all shards together; a batch's waves are one buffer

_Results = list[tuple[Item, "Future[Encoded | Trouble]"]]


class Abandoned(Exception):
    """Nobody waits for this shard's clips any more."""


class Encoders:
    """The threads, and the room for waves, of one worker.

    Args:
        threads: how many clips are encoded at the same time.
        config: names the encoding, and says which waves are unfit.

    Raises:
        InputError: as `Mastering` and `Dnsmos`.
    """

    def __init__(self, threads: int, config: JobConfig) -> None:
        # There are as many of them as cores: torch, which resamples, would take all cores in each.
        self._pool = ThreadPoolExecutor(threads, "encoder", torch.set_num_threads, (1,))
        self._config, self._mastering = config, Mastering(config.wave)
        self._dnsmos = None if config.mos is None else Dnsmos()
        self.room = threading.Semaphore(BATCHES)

    def submit(self, row: Row, made: Samples | Callable[[], Samples] | Trouble) -> Future[Encoded | Trouble]:
        """A clip, or what is wrong with its wave, or why there is none.

        Args:
            made: the wave, what fetches it, or why there is none.
        """
        return self._pool.submit(_encoded, row, made, self._config, self._mastering, self._dnsmos)


class Intake:
    """The clips of one shard: waves go in on the engine's thread, files come out on the shard's own, in that order.

    A row that was cut comes out with the batch that has the last of its pieces, or the first that failed.

    Args:
        pieces: of such rows, as empty as the intake.
    """

    def __init__(self, encoders: Encoders, pieces: Pieces) -> None:
        self._encoders, self._pieces = encoders, pieces
        self._queue: queue.SimpleQueue[_Results | None] = queue.SimpleQueue()
        self._abandoned = False

    def put(self, batch: Batch, result: list[Samples] | Trouble) -> None:
        """Takes a batch in; blocks while there is no room for it.

        Raises:
            Abandoned: nobody takes the clips out.
        """
        made: Sequence[Samples | Trouble] = [result] * len(batch) if isinstance(result, Trouble) else result
        rows = list(zip(batch, made, strict=True))
        self._encoders.room.acquire()
        if self._abandoned:
            self._encoders.room.release()
            raise Abandoned
        self._queue.put([(item, clip) for item, each in rows if (clip := self._submit(item, each)) is not None])

    def _submit(self, item: Item, made: Samples | Trouble) -> Future[Encoded | Trouble] | None:
        whole = made if item.piece is None else self._pieces.add(item, item.piece, made)
        return None if whole is None else self._encoders.submit(item.row, whole)

    def end(self) -> None:
        """Says that no more batches come. Without it, `clips` waits for ever."""
        self._queue.put(None)

    def clips(self) -> Generator[tuple[Item, Encoded | Trouble], None, None]:
        """Every row in the order of its batches, once its clip is encoded; to be closed when it is left early.

        What encoding raised comes out here.
        """
        results: _Results | None = []
        try:
            while (results := self._queue.get()) is not None:
                try:
                    for item, future in results:
                        yield item, future.result()
                finally:
                    self._encoders.room.release()
        finally:
            self._abandoned = True
            while results is not None:
                results = self._discard()

    def _discard(self) -> _Results | None:
        """Makes room for other shards; waits for the end, since the engine may be about to put one more batch in."""
        results = self._queue.get()
        if results is not None:
            for _, future in results:
                future.cancel()
            self._encoders.room.release()
        return results


def _encoded(
    row: Row,
    made: Samples | Callable[[], Samples] | Trouble,
    config: JobConfig,
    mastering: Mastering,
    dnsmos: Dnsmos | None,
) -> Encoded | Trouble:
    if isinstance(made, Trouble):
        return made
    wave = made() if callable(made) else made
    trouble = fault(len(row.tokens), wave)
    if trouble is not None:
        return trouble
    mastered, rate = mastering.master(wave), config.wave.sample_rate
    measures = measure(mastered.samples, rate)
    found = problems(measures, config.checks)
    if found and config.on_bad_audio == "fail_row":
        return Trouble("bad_audio", explain(measures, config.checks))
    data = encode(mastered.samples, config.audio, rate)
    return Encoded(
        samples=len(mastered.samples),
        trimmed_start=mastered.trimmed_start,
        trimmed_end=mastered.trimmed_end,
        data=data,
        sha256=hashlib.sha256(data).hexdigest(),
        measures=measures,
        problems=tuple(found),
        opinion=None if dnsmos is None else dnsmos.opinion(mastered.samples, rate),
    )
