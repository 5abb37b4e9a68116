"""Recordings in, committed shards of speech tokens out; what `jobs.worker.worker` is for speech.

A shard's recordings go to the model in groups, on a thread of its own: one group is read while the one before is
computed. Which recordings share a group follows from the shard and its order alone.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch

from jobs.config.config import checked
from jobs.crew.pulse import Pulse
from jobs.engine.batch import Trouble, trouble_of
from jobs.engine.models import device_of, open_model, settle
from jobs.ledger.ledger import Ledger
from jobs.ledger.records import CommitRecord, ShardReport, counts, ids_digest, worker_name
from jobs.ledger.tables import failures_table
from jobs.manifest.manifest import Ints, Manifest
from jobs.storage.folders import Folder
from jobs.storage.inputs import base_of
from jobs.storage.urls import Options, is_url
from jobs.tokenize.columns import TokenColumns
from jobs.tokenize.config import TokenizeConfig
from jobs.tokenize.rows import Heard, Recordings, Shard
from jobs.worker.uploads import Upload
from jobs.worker.worker import Order
from s3gen import S3GenModel

GROUP_CLIPS = 64
GROUP_SECONDS = 640.0  # of sound that goes to the model together, or one recording more
GROUP_RATE = 48_000  # Hz; at higher ones seconds count for more, as they do in memory


def columns_of(manifest: Manifest, config: TokenizeConfig) -> TokenColumns:
    """The columns of a job's input and tables."""
    # What lies in the ledger, such as rows that are tried again, is relative to it.
    urls = [file.url for file in manifest.files if is_url(file.url) or os.path.isabs(file.url)]
    return TokenColumns(manifest.columns, config.voice, base_of(config.input, urls))


class TokenizeWorker:
    """Makes shards of one job of tokens, with one model.

    Attributes:
        tasks_at_once: as for `Worker`: one is read or published while another one is computed.
        pulse: moves on with each recording, group and file.
    """

    def __init__(self, ledger: Ledger, model: S3GenModel, *, options: Options | None = None) -> None:
        self._ledger, self._model = ledger, model
        self.tasks_at_once = 2
        self.pulse = Pulse()
        config = checked(TokenizeConfig, ledger.job["config"])
        self._columns = columns_of(ledger.plan.manifest, config)
        self._recordings = Recordings(ledger.plan, self._columns, options, self.pulse)
        # Torch's number of threads belongs to a thread.
        self._thread = ThreadPoolExecutor(1, "tokenizer", torch.set_num_threads, (torch.get_num_threads(),))

    @classmethod
    def open(cls, *, output: str, options: Options, threads: int) -> TokenizeWorker:
        """Opens the job in a folder and loads its model, onto a GPU where this process sees one.

        Raises:
            InputError: no such job; or the model is not the one that the job was begun with.
        """
        settle(threads)
        ledger = Ledger.open(Folder(output, options))
        config = checked(TokenizeConfig, ledger.job["config"])
        model = open_model(config.model, config.model_file, device_of("auto"), options)
        ledger.check_unchanged({"fingerprints": fingerprints(model)})
        return cls(ledger, model, options=options)

    def run(self, order: Order | int) -> ShardReport:
        """Makes and commits one shard, or what else the order says. When it raises, nothing of the shard is visible."""
        order = Order(order) if isinstance(order, int) else order
        started_at, began = time.time(), time.monotonic()
        shard = self._make(order)
        made = time.monotonic()
        if order.probe is not None:
            return _probe_report(order, shard)
        with tempfile.TemporaryDirectory(prefix="s3gen-") as folder:
            record, counted = self._commit(order, shard, Path(folder), started_at)
        seconds = {"make": made - began, "publish": time.monotonic() - made}
        return ShardReport.of(record, counted=counted, seconds=seconds)

    def _make(self, order: Order) -> Shard:
        shard = Shard()
        before = None
        for group in _groups(self._recordings.of(order, shard), order.halvings):
            ahead = group, self._thread.submit(self._tokens, group)
            if before is not None:
                self._take(shard, before[0], before[1].result())
            before = ahead
        if before is not None:
            self._take(shard, before[0], before[1].result())
        return shard

    def _take(self, shard: Shard, group: Sequence[Heard], found: Sequence[Ints | Trouble]) -> None:
        self.pulse.beat()
        for heard, tokens in zip(group, found, strict=True):
            if isinstance(tokens, Trouble):
                shard.fail(heard.position, tokens.error, tokens.message)
            else:
                shard.tokens[heard.position], shard.seconds[heard.position] = tokens, heard.seconds

    def _tokens(self, group: Sequence[Heard]) -> list[Ints | Trouble]:
        """The tokens of each recording, or why there are none.

        In halves, where they are too much together or one of them is refused.
        """
        try:
            found = self._model.tokenize_clips([each.samples for each in group], [each.rate for each in group])
            every = torch.cat(found).cpu().numpy().astype(np.int32)
            return list(np.split(every, np.cumsum([len(tokens) for tokens in found])[:-1]))
        except ValueError as error:
            trouble = Trouble("not_tokenized", str(error))
        except Exception as error:
            trouble = trouble_of(error)
        if len(group) == 1:
            return [trouble]
        # Outside of the handlers: the exception's traceback holds the tensors of the failed attempt.
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        middle = (len(group) + 1) // 2
        return self._tokens(group[:middle]) + self._tokens(group[middle:])

    def _commit(self, order: Order, shard: Shard, scratch: Path, started_at: float) -> tuple[CommitRecord, bool]:
        planned = self._ledger.plan.shard(order.shard)
        attempt = self._ledger.attempt(order.shard)
        upload = Upload(self._ledger, attempt, scratch, self.pulse)
        known = pa.concat_tables(shard.known)
        index = failures = None
        if shard.tokens:
            index = upload.write_table(attempt.index_name, self._columns.made(known, shard.tokens, shard.seconds))
        if shard.failures:
            table = failures_table(shard.failures, known, self._ledger.plan.origins(planned))
            failures = upload.write_table(attempt.failures_name, table)
        record = CommitRecord(
            shard=order.shard,
            attempt=attempt.id,
            plan=self._ledger.digest_of(order.shard),
            ids=ids_digest(known["id"]),
            rows=planned.rows,
            rows_done=len(shard.tokens),
            rows_failed=len(shard.failures),
            samples=sum(shard.samples),
            errors=counts(failure.error for failure in shard.failures),
            problems={},
            positions=0,
            padding=0,
            worker=worker_name(),
            tries=order.tries,
            started_at=started_at,
            finished_at=time.time(),
            audio=None,
            index=index,
            failures=failures,
        )
        return record, upload.publish(record)


def fingerprints(model: S3GenModel) -> dict[str, str]:
    """What a job of tokens is bound to, beside its configuration and its input."""
    return {"model": model.voice_fingerprint()}


def _groups(heard: Iterable[Heard], halvings: int) -> Iterator[list[Heard]]:
    """Args: halvings: how often the usual size was too much for the memory that there is."""
    most_clips, most_seconds = GROUP_CLIPS >> halvings, GROUP_SECONDS / 2**halvings
    group: list[Heard] = []
    seconds = 0.0
    for each in heard:
        group.append(each)
        seconds += each.seconds * max(1.0, each.rate / GROUP_RATE)
        if len(group) >= most_clips or seconds >= most_seconds:
            yield group
            group, seconds = [], 0.0
    if group:
        yield group


def _probe_report(order: Order, shard: Shard) -> ShardReport:
    errors = [failure.error for failure in shard.failures]
    return ShardReport.of_probe(order.shard, samples=shard.samples, errors=errors, tries=order.tries)
