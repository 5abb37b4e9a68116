"""The report of a job: one HTML page that holds everything it shows, made from the output alone."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.resources import files

import jinja2

from jobs.config.config import config_from
from jobs.errors import InputError
from jobs.ledger.ledger import Ledger
from jobs.ledger.records import CommitRecord
from jobs.plan import ShardSet
from jobs.report.choice import Choice
from jobs.report.failures import Failures, shard_tables, table_batches
from jobs.report.numbers import Numbers
from jobs.report.page import Material, page_of
from jobs.report.players import CUTS, Player, players
from jobs.report.rows import index_frames, shard_frames
from jobs.report.run import run_of
from jobs.status import EXACT_RECORDS, status
from jobs.storage.faults import as_input
from jobs.storage.folders import Folder
from jobs.storage.urls import Options, absolute_url

REPORT = "report.html"
MAX_BYTES = 10_000_000


@dataclass(frozen=True, slots=True)
class Written:
    """A report that was written."""

    url: str
    bytes: int


def write_report(output: str, options: Options | None = None, *, out: str | None = None) -> Written:
    """Makes the page of a job, finished or not, and writes it.

    Args:
        out: where to, a local path or a URL; without, ``report.html`` in the output.

    Raises:
        InputError: no job was begun there, or one of another kind; or nobody may read it, or write the page.
        StorageError: something that was committed is gone or damaged, or a store does not answer.
    """
    folder = Folder(output, options)
    with as_input("output"):
        page = _fitting(read(Ledger.open(folder), options))
    place, name = (folder, REPORT) if out is None else _place(out, options)
    with as_input("output" if out is None else "--out"):
        place.put(name, page)
    return Written(place.path(name), len(page))


def _fitting(material: Material) -> bytes:
    """The page, with clips cut further where texts and pictures leave them too little room."""
    page = render(material).encode("utf-8", "backslashreplace")
    for seconds in CUTS:
        if len(page) <= MAX_BYTES:
            break
        page = render(_shortened(material, seconds)).encode("utf-8", "backslashreplace")
    return page


def _shortened(material: Material, seconds: float) -> Material:
    samples, suspects, extremes = (
        [player.shortened(seconds) for player in each]
        for each in (material.samples, material.suspects, material.extremes)
    )
    return replace(material, samples=samples, suspects=suspects, extremes=extremes)


def _place(out: str, options: Options | None) -> tuple[Folder, str]:
    parent, _, name = absolute_url(out).rpartition("/")
    if out.endswith("/") or os.path.isdir(out):
        raise InputError(f"--out: {out!r} is a folder; give a file, such as {out.rstrip('/')}/{REPORT}")
    return Folder(parent or "/", options), name


def render(material: Material) -> str:
    """The page, as HTML."""
    loader = jinja2.FunctionLoader(lambda name: (files("jobs.report") / name).read_text("utf-8"))
    environment = jinja2.Environment(loader=loader, autoescape=True, undefined=jinja2.StrictUndefined)
    return environment.get_template("report.html.jinja").render(page=page_of(material))


def read(ledger: Ledger, options: Options | None) -> Material:
    """Everything about a job that the page needs: one pass over its rows, and some of its records and clips.

    Raises:
        InputError: the job makes no speech.
        StorageError: something that was committed is gone or damaged.
    """
    if ledger.kind != "synth":
        raise InputError(f"{ledger.folder.url}: a job that makes no speech has nothing for a report; see s3gen status")
    folder, now = ledger.folder, status(ledger.folder.url, options)
    summary = ledger.summary()
    records, done = _records(ledger)
    numbers, choice, failures = Numbers(), Choice(ledger.job["config"]["seed"]), Failures()
    for frame in shard_frames(folder, records) if summary is None else index_frames(folder):
        numbers.add(frame)
        choice.add(frame)
    for table in shard_tables(ledger, records) if summary is None else table_batches(folder):
        failures.add(table)
    share = len(records) / max(done, 1)
    samples, suspects, extremes = _players(folder, choice, config_from(ledger.job["config"]).wave.sample_rate)
    return Material(
        url=folder.url,
        job=ledger.job,
        files=len(ledger.plan.manifest.files) - len(ledger.rounds),
        rounds=len(ledger.rounds),
        tried_again=len(ledger.plan.taken_up),
        status=now,
        duplicates=0 if summary is None else summary.duplicates,
        numbers=numbers,
        shards=len(records) if summary is None else done,
        records=len(records),
        failures=failures,
        run=run_of(records, share=share, speed=now.speed),
        stored_bytes=sum(_stored_bytes(record) for record in records) / (share or 1),
        samples=samples,
        suspects=suspects,
        extremes=extremes,
        reading_at=time.time(),
    )


def _stored_bytes(record: CommitRecord) -> int:
    return sum(file.bytes for file in (record.audio, record.cuts) if file)


def _players(folder: Folder, choice: Choice, rate: int) -> list[list[Player]]:
    """Of voices, suspects and extremes; all of them together fit on the page."""
    chosen = [choice.voices(), choice.suspects(), choice.extremes()]
    made = iter(players(folder, [pick for picks in chosen for pick in picks], rate))
    return [[next(made) for _ in picks] for picks in chosen]


def _records(ledger: Ledger) -> tuple[list[CommitRecord], int]:
    """The records of all shards that are done, or of a sample spread evenly over them; and how many are done."""
    done: ShardSet = ledger.committed()
    shards: Sequence[int] = list(done)
    if len(shards) > EXACT_RECORDS:
        shards = [shards[n * len(shards) // EXACT_RECORDS] for n in range(EXACT_RECORDS)]
    return ledger.read_some(shards), len(done)
