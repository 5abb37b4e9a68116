"""Jobs of speech, from a checked configuration to a finished output; and the resume of a job of any kind.

Everything is checked first: until `Ledger.start` nothing is written.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any, Literal

from rich.console import Console

from jobs.audio.watermark import Watermark
from jobs.config.config import JobConfig, config_from
from jobs.crew.actor import Recipe
from jobs.crew.crew import Crew
from jobs.crew.isolation import Case
from jobs.crew.placement import Share
from jobs.crew.schedule import Schedule
from jobs.engine.models import check_solver, open_model
from jobs.errors import InputError, JobError
from jobs.estimate.budget import ASSUMED_GPU_FRAMES, CPU_FRAMES, LEAST_FRAMES, Calibration
from jobs.ledger.ledger import Ledger
from jobs.making import Outcome, run, versions
from jobs.manifest.manifest import Manifest
from jobs.measures.dnsmos import Dnsmos
from jobs.plan import Plan, make_plan
from jobs.retry import mendable
from jobs.storage.faults import as_input
from jobs.storage.folders import Folder
from jobs.storage.urls import Options
from jobs.tokenize import runs as tokenize_runs
from jobs.trial import trial_output
from jobs.voices.table import VoiceTable
from jobs.worker.worker import Order, fingerprints

log = logging.getLogger(__name__)

CALIBRATION_SECONDS = 1_800.0  # the least that finding the frame budget may take


def synth(config: JobConfig, limit: int | None, console: Console) -> Outcome:
    """Runs a job from its configuration, or goes on with it where its output is begun.

    Args:
        limit: make a trial of the first rows, in an output of its own (see `trial_output`).

    Raises:
        InputError: bad input, or a change that the begun output refuses; nothing was started or written.
        JobError: the job is not finished.
    """
    if limit is not None:
        config = config.model_copy(update={"output": trial_output(config.output, limit)})
    job = Synthesis.of(config, limit)
    folder = Folder(config.output, config.storage_options)
    ledger = Ledger.found(folder)
    if ledger is not None:
        ledger.check_unchanged(job.frozen, job.plan)
    return job.run(folder, console)


def resume(
    output: str, overrides: list[str], options: Options, console: Console, *, retry_failed: bool = False
) -> Outcome:
    """Goes on with the job in an output, from what the output itself records. Raises as `synth`.

    Args:
        retry_failed: when it is finished, take up the rows again that failed of what another try may mend.
    """
    folder = Folder(output, options)
    with as_input("output"):
        ledger = Ledger.open(folder)
    if ledger.kind == tokenize_runs.KIND:
        return tokenize_runs.resume(ledger, overrides, options, console, retry_failed=retry_failed)
    values = {**ledger.job["config"], "output": folder.url}
    config = config_from(values, overrides, storage_options=options)
    if config.output != folder.url:
        raise InputError(f"--set output={config.output}: the job is in {folder.url} and goes on there")
    ledger.check_unchanged({"config": config.frozen() | {"output": ledger.job["config"]["output"]}})
    summary = ledger.summary()
    if summary is not None and not (retry_failed and mendable(summary)):
        return Outcome(output=folder.url, model=config.model, summary=summary, made_shards=0)
    job = Synthesis.of(config, ledger.job["limit"])
    ledger.check_unchanged({"fingerprints": job.frozen["fingerprints"]}, job.plan)
    return job.run(folder, console, retry=retry_failed)


@dataclass(frozen=True, kw_only=True, slots=True)
class Synthesis:
    """A job of speech, described; a `jobs.making.Trade`.

    Attributes:
        frozen: the job as the ledger keeps it, but for what is found when it begins.
    """

    config: JobConfig
    frozen: dict[str, Any]
    plan: Plan

    @classmethod
    def of(cls, config: JobConfig, limit: int | None) -> Synthesis:
        """Reads all inputs, writes nothing."""
        options = config.storage_options
        manifest = Manifest.scan(config.manifest, options)
        voices = VoiceTable.open(config.voices, options)
        model = open_model(config.model, config.model_file, "cpu", options)
        voices.check_model(model.voice_fingerprint())
        check_solver(model, config)
        if config.mos is not None:
            Dnsmos()
        if config.wave.watermark:
            Watermark()
        frozen = {
            "config": config.frozen(),
            "fingerprints": fingerprints(model, voices),
            "limit": limit,
            "versions": versions(),
        }
        return cls(config=config, frozen=frozen, plan=make_plan(manifest, config.shard_rows, limit))

    @property
    def device(self) -> Literal["auto", "cpu", "cuda"]:
        """See `Trade.device`."""
        return self.config.engine.device

    def run(self, folder: Folder, console: Console, *, retry: bool = False) -> Outcome:
        """See `jobs.making.run`."""
        summary, made = run(self, folder, console, retry=retry)
        return Outcome(output=folder.url, model=self.config.model, summary=summary, made_shards=made)

    def begin(self, folder: Folder, share: Share) -> Ledger:
        """The job in its output, with what a resume shall find as it was here: neither follows from the configuration.

        Samples on a CPU depend on the number of threads in their last bits; a batch's rows on each other in theirs.
        Whether it has GPUs tells what a trial's speed is the speed of.
        """
        batch = {"max_frames": _frame_budget(self.config, share)}
        job = {**self.frozen, "config": {**self.frozen["config"], "batch": batch}}
        return Ledger.start(folder, {**job, "threads": share.threads, "gpus": share.gpus}, self.plan)

    def recipe(self, ledger: Ledger) -> Recipe:
        """See `Trade.recipe`."""
        return Recipe(
            make="jobs.worker.worker:Worker.open",
            arguments={
                "output": ledger.folder.url,
                "options": self.config.storage_options,
                "max_frames": self._max_frames(ledger),
                "threads": ledger.job["threads"],
            },
        )

    def order(self, ledger: Ledger, shard: int, case: Case) -> Order:
        """See `Trade.order`."""
        most = self._max_frames(ledger)
        smaller = min(most, max(LEAST_FRAMES, most >> case.halvings)) if case.halvings else None
        return Order(shard, case.probe, case.guilty, smaller, case.tries)

    def _max_frames(self, ledger: Ledger) -> int:
        given = self.config.batch.max_frames
        frozen: int = ledger.job["config"]["batch"]["max_frames"]
        return frozen if given == "auto" else given


def _frame_budget(config: JobConfig, share: Share) -> int:
    """`batch.max_frames` as a number.

    Raises:
        JobError: it is auto, and no worker could find it.
    """
    if config.batch.max_frames != "auto":
        return config.batch.max_frames
    if not share.gpus:
        return CPU_FRAMES
    # Where a worker would be: this process may have no GPU.
    recipe = Recipe(
        make="jobs.estimate.budget:open_calibrator",
        arguments={
            "config": config.frozen(),
            "options": config.storage_options,
            "threads": share.threads,
            "gpus": share.gpus,
        },
    )
    schedule, found = Schedule([0]), list[Calibration]()
    describe = "finding the frame budget".format
    # It has no pulse: loading, compiling and measuring count as one.
    stall = max(config.stall_seconds, CALIBRATION_SECONDS)
    crew = Crew(recipe, workers=1, share=share, describe=describe, stall_seconds=stall)
    crew.work(schedule, lambda task, calibration: found.append(calibration))
    if not found:
        raise JobError(
            f"batch.max_frames: auto did not come to a number: {schedule.given_up[0]}; give one, such as "
            f"--set batch.max_frames={ASSUMED_GPU_FRAMES}"
        )
    log.info("%s", found[0])
    return found[0].max_frames
