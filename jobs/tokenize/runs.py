"""Jobs of tokens, from a checked configuration to a finished token manifest: what `s3gen tokenize` starts.

Everything is checked first: until the job is begun nothing is written. Where the input does not say itself where each
recording is, as Parquet files do, the list that was made of it is kept in the job's folder, and is the job's manifest
from then on: what the input's folder gets later is not part of the job.
"""

from __future__ import annotations

import hashlib
import logging
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import Console

from jobs.config.config import checked
from jobs.crew.actor import Recipe
from jobs.crew.isolation import Case
from jobs.crew.placement import Share
from jobs.engine.models import open_model
from jobs.errors import InputError
from jobs.ledger.ledger import Ledger
from jobs.ledger.tables import packed
from jobs.ledger.tally import Summary
from jobs.making import Outcome, run, versions
from jobs.manifest.manifest import Manifest, described
from jobs.plan import Plan, make_plan
from jobs.retry import mendable
from jobs.storage.faults import as_input
from jobs.storage.folders import Folder
from jobs.storage.urls import Options
from jobs.tokenize.columns import check_audio_columns
from jobs.tokenize.config import TokenizeConfig
from jobs.tokenize.inputs import find_audio
from jobs.tokenize.worker import columns_of, fingerprints
from jobs.worker.worker import Order

log = logging.getLogger(__name__)

KIND = "tokenize"
LIST_GROUP_ROWS = 8_192  # of a list that is kept


def tokenize(config: TokenizeConfig, console: Console) -> Outcome:
    """Runs a job of tokens, or goes on with it where it is begun.

    Raises:
        InputError: bad input, or a change that the begun job refuses; nothing was started or written.
        JobError: the job is not finished.
    """
    folder = Folder(config.folder, config.storage_options)
    ledger = Ledger.found(folder)
    if ledger is not None:
        return go_on(ledger, config, console)
    return Tokenizing.of(config).run(folder, console)


def resume(
    ledger: Ledger, overrides: list[str], options: Options, console: Console, *, retry_failed: bool = False
) -> Outcome:
    """Goes on with a job of tokens from what its folder records. Raises as `tokenize`.

    Args:
        retry_failed: when it is finished, take up the rows again that failed of what another try may mend.
    """
    config = checked(TokenizeConfig, ledger.job["config"], overrides, storage_options=options)
    return go_on(ledger, config, console, retry=retry_failed)


def go_on(ledger: Ledger, config: TokenizeConfig, console: Console, *, retry: bool = False) -> Outcome:
    """The same with a configuration. Raises as `tokenize`."""
    ledger.check_unchanged({"kind": KIND, "config": config.frozen()})
    summary = ledger.summary()
    if summary is not None and not (retry and mendable(summary, KIND)):
        _check_there(ledger)
        return _outcome(ledger.folder, config, summary, 0)
    return Tokenizing.again(config, ledger).run(ledger.folder, console, retry=retry)


def _check_there(ledger: Ledger) -> None:
    folder, name = ledger.public_index
    if not folder.exists(name) and not folder.list(f"{name}/"):
        raise InputError(
            f"{folder.path(name)} is gone, and the job that made it, {ledger.folder.url}, is finished; delete that "
            "folder, too, to make it anew"
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Tokenizing:
    """A job of tokens, described; a `jobs.making.Trade`.

    Attributes:
        frozen: the job as the ledger keeps it.
        listed: the list of recordings that its folder is to keep: name and content; None where Parquet files have it.
    """

    config: TokenizeConfig
    frozen: dict[str, Any]
    plan: Plan
    listed: tuple[str, bytes] | None = None

    @classmethod
    def of(cls, config: TokenizeConfig) -> Tokenizing:
        """Reads all inputs, writes nothing."""
        model = open_model(config.model, config.model_file, "cpu", config.storage_options)
        manifest, listed = _found(config)
        if not manifest.rows:
            raise InputError(f"INPUT: {config.input} has no rows; give one with at least one recording")
        columns = columns_of(manifest, config)
        frozen = {
            "kind": KIND,
            "table": config.out,
            "schemas": {"table": packed(columns.table), "failures": packed(columns.failures)},
            "config": config.frozen(),
            "fingerprints": fingerprints(model),
            "limit": None,
            "listed": None if listed is None else listed[0],
            "versions": versions(),
        }
        return cls(config=config, frozen=frozen, plan=make_plan(manifest, config.shard_rows), listed=listed)

    @classmethod
    def again(cls, config: TokenizeConfig, ledger: Ledger) -> Tokenizing:
        """The job that a ledger has; of its inputs what can have changed is looked at.

        Raises:
            InputError: another model, or Parquet files that are not as they were.
        """
        model = open_model(config.model, config.model_file, "cpu", config.storage_options)
        ledger.check_unchanged({"fingerprints": fingerprints(model)})
        if ledger.job["listed"] is None:
            manifest, _ = _found(config)
            ledger.check_unchanged({}, make_plan(manifest, config.shard_rows))
        else:
            log.info("going on with the %d recordings that were found when the job began", ledger.plan.rows)
        return cls(config=config, frozen=ledger.job, plan=ledger.plan)

    @property
    def device(self) -> Literal["auto"]:
        """See `Trade.device`."""
        return "auto"

    def run(self, folder: Folder, console: Console, *, retry: bool = False) -> Outcome:
        """See `jobs.making.run`."""
        return _outcome(folder, self.config, *run(self, folder, console, retry=retry))

    def begin(self, folder: Folder, share: Share) -> Ledger:
        """See `Trade.begin`. What it adds: rounding on a CPU, and so perhaps a token, depends on its threads."""
        files = {} if self.listed is None else dict([self.listed])
        return Ledger.start(folder, {**self.frozen, "threads": share.threads}, self.plan, files)

    def recipe(self, ledger: Ledger) -> Recipe:
        """See `Trade.recipe`."""
        return Recipe(
            make="jobs.tokenize.worker:TokenizeWorker.open",
            arguments={
                "output": ledger.folder.url,
                "options": self.config.storage_options,
                "threads": ledger.job["threads"],
            },
        )

    def order(self, ledger: Ledger, shard: int, case: Case) -> Order:
        """See `Trade.order`."""
        return Order(shard, case.probe, case.guilty, tries=case.tries, halvings=case.halvings)


def _found(config: TokenizeConfig) -> tuple[Manifest, tuple[str, bytes] | None]:
    """The manifest of an input, and where it is a list that was made here, that list: name in the folder, and content.

    Raises:
        InputError: there is none, or nobody may read it.
        StorageError: its store does not answer.
    """
    options = config.storage_options
    with as_input("INPUT"):
        found = find_audio(config.input, options, besides=[config.out, config.folder])
        if isinstance(found, pa.Table):
            return _listed(found)
        return Manifest.of(found, options, check=check_audio_columns), None


def _listed(table: pa.Table) -> tuple[Manifest, tuple[str, bytes]]:
    with tempfile.TemporaryDirectory(prefix="s3gen-") as scratch:
        path = Path(scratch) / "list.parquet"
        pq.write_table(table, path, row_group_size=LIST_GROUP_ROWS, compression="zstd")
        data = path.read_bytes()
        # By its content: two runs that begin at once do not overwrite each other's.
        name = f"ledger/sources-{hashlib.sha256(data).hexdigest()[:32]}.parquet"
        file, groups = described(name, path)
        columns = pq.read_schema(path).remove_metadata()
    return Manifest(files=(file,), columns=columns, groups=(groups,)), (name, data)


def _outcome(folder: Folder, config: TokenizeConfig, summary: Summary, made: int) -> Outcome:
    return Outcome(output=folder.url, model=config.model, summary=summary, made_shards=made, table=config.out)
