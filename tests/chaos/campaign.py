"""A campaign: one job undisturbed, then the same job while all around it dies, and the two held side by side."""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from jobs.ledger.layout import FINISHED
from jobs.storage.folders import Folder
from tests.chaos.audit import Finding, Output, audit, verified
from tests.chaos.driver import Driver
from tests.chaos.faults import KILLS, Kind, Run, plan
from tests.chaos.inputs import Inputs
from tests.chaos.job import QUIET, Blow, DisturbedJob
from tests.chaos.places import Place
from tests.chaos.processes import own_processes
from tests.chaos.strikes import REPORTED, STUCK_SECONDS
from tests.chaos.watch import committed, watching

MOST_JOBS = 6  # each is an occasion more for faults that need a rare one
AGENT_SECONDS = 90.0  # within which Ray's agents end by themselves, after their driver


@dataclass(kw_only=True, slots=True)
class Result:
    """What a campaign has come to.

    Attributes:
        seconds: of all disturbed jobs.
        missed: faults for which no occasion came.
    """

    rows: int
    shards: int
    undisturbed_seconds: float
    seconds: float = 0.0
    jobs: int = 0
    drivers: int = 0
    blows: list[Blow] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    missed: Counter[Kind] = field(default_factory=Counter)

    @property
    def kills(self) -> int:
        """SIGKILLs that were dealt."""
        return sum(blow.kind in KILLS for blow in self.blows)


class Campaign:
    """Jobs over the same inputs, each in an output of its own.

    Args:
        folder: empty and with a short path, since it holds Ray's sockets.
        say: is told what happens.

    Raises:
        RuntimeError: the job does not even end undisturbed.
    """

    def __init__(self, folder: Path, inputs: Inputs, place: Place, say: Callable[[str], None]) -> None:
        self._folder, self._inputs, self._place, self._say = folder, inputs, place, say
        began = time.monotonic()
        output = self._undisturbed()
        self._reference = Output.read(output)
        shards = len(committed(output))
        self._result = Result(rows=inputs.rows, shards=shards, undisturbed_seconds=time.monotonic() - began)
        say(f"undisturbed: {shards} shards in {self._result.undisturbed_seconds:.0f} s")

    def run(self, counts: Mapping[Kind, int], seed: int) -> Result:
        """Deals all faults, over as many jobs as it takes, and holds each job against the undisturbed one."""
        result, left = self._result, Counter(counts)
        began = time.monotonic()
        while left and result.jobs < MOST_JOBS:
            left = self._disturb(result.jobs, plan(left, seed + result.jobs), random.Random(f"{seed} {result.jobs}"))
            result.jobs += 1
        result.missed = left
        result.seconds = time.monotonic() - began
        return result

    def _undisturbed(self) -> Folder:
        url = self._folder / "reference"
        driver = Driver(self._folder / "u", ["synth", str(self._inputs.config), "--set", f"output={url}"], QUIET)
        code = driver.wait(STUCK_SECONDS)
        if code != REPORTED:
            driver.end()
            raise RuntimeError(f"the undisturbed run ended with exit code {code}:\n{driver.said}")
        return Folder(str(url))

    def _disturb(self, number: int, runs: list[Run], rng: random.Random) -> Counter[Kind]:
        """One job from its beginning to its end; returns the faults for which there was no occasion."""
        output = Folder(f"{self._place.url}/job-{number}")
        missed: Counter[Kind] = Counter()
        with ExitStack() as stack:
            watch = stack.enter_context(watching(output, self._place.poll))
            job = DisturbedJob(
                self._folder / f"j{number}",
                self._inputs.config,
                self._place,
                output,
                self._result.shards,
                watch=watch,
                rng=rng,
                stack=stack,
                say=self._say,
            )
            for run in [*runs, Run(())]:
                # What is finished has no occasion left; but once more is looked whether it stays as it is.
                over = output.exists(FINISHED) and bool(run.faults)
                missed += Counter(fault.kind for fault in run.faults) if over else job.make(run)
            for blow in job.blows:
                blow.pause = watch.next_commit(blow.at)
        self._result.blows += job.blows
        self._result.drivers += job.drivers
        self._say(f"job {number}: reading it again")
        whole = [*audit(Output.read(output), self._reference, self._inputs.rows), *verified(output)]
        self._result.findings += [*job.findings, *_overdue(job), *whole]
        return missed


def _overdue(job: DisturbedJob) -> Iterator[Finding]:
    """Ray's agents that should have ended by themselves."""
    alive = set(own_processes())
    for agent, left in job.agents.items():
        if agent in alive and time.monotonic() - left > AGENT_SECONDS:
            yield Finding("process", f"still alive {AGENT_SECONDS:g} s after its driver: {agent}")
