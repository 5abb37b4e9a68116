"""One job that is made while all around it dies: run after run, and what is checked in between."""

from __future__ import annotations

import random
import shutil
import signal
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from jobs.ledger.lease import read_lease
from jobs.ledger.ledger import exists
from jobs.storage.folders import Folder
from tests.chaos.audit import Finding, made_again, tried_again
from tests.chaos.driver import Driver
from tests.chaos.faults import Fault, Kind, Run
from tests.chaos.places import Place
from tests.chaos.processes import Process, Role, own_processes, wait_until
from tests.chaos.strikes import FINISHED, REPORTED, STUCK_SECONDS, UNFINISHED, Scene, strike
from tests.chaos.watch import Watch, committed, tries_in
from tests.jobs.ray_nodes import Nodes, cluster_of

STOP_SECONDS = 30.0  # for a driver to end when it is asked to
GONE_SECONDS = 30.0  # for what a driver has started to end after it
NODES = 2  # of the cluster, with a CPU each
QUIET = {"OMP_NUM_THREADS": "1", "RAY_USAGE_STATS_ENABLED": "0"}
POLITE = (Kind.SIGTERM, Kind.SIGINT, Kind.SECOND, Kind.DRIVER_WAITING)  # none of them ends a try at a shard


@dataclass(kw_only=True, slots=True)
class Blow:
    """A fault that was dealt.

    Attributes:
        at: by the monotonic clock.
        repeated: seconds for which tries at shards had been open that were lost with it.
        pause: seconds until the next shard was committed; None when none was to come.
        made_again: shards that had been committed before it.
    """

    kind: Kind
    at: float
    repeated: float = 0.0
    pause: float | None = None
    made_again: int = 0


class DisturbedJob:
    """A job in an output of its own.

    Args:
        folder: for its drivers.
        config: the job's.
        shards: how many it has.
        stack: ends what was started for it.
    """

    def __init__(
        self,
        folder: Path,
        config: Path,
        place: Place,
        output: Folder,
        shards: int,
        *,
        watch: Watch,
        rng: random.Random,
        stack: ExitStack,
        say: Callable[[str], None],
    ) -> None:
        self._folder, self._config, self._place, self._output, self._shards = folder, config, place, output, shards
        self._watch, self._rng, self._stack, self._say = watch, rng, stack, say
        self._cluster: Nodes | None = None
        self._there_before: set[int] = set()
        self.blows: list[Blow] = []
        self.findings: list[Finding] = []
        self.drivers = 0
        self.agents: dict[Process, float] = {}  # of Ray, and when their driver had ended

    def make(self, run: Run) -> Counter[Kind]:
        """One run; returns its faults for which there was no occasion."""
        before, tries = committed(self._output), tries_in(self._output)
        self._there_before = {each.pid for each in own_processes()}
        scene = Scene(
            driver=self._start(cluster=run.cluster),
            folder=self._output,
            place=self._place,
            rng=self._rng,
            cluster=self._nodes() if run.cluster else None,
            another=lambda: self._start(cluster=run.cluster),
            findings=self.findings,
        )
        first = len(self.blows)
        missed = Counter(fault.kind for fault in run.faults if not self._deal(scene, fault))
        self._end(scene, self.blows[first:])
        self._compare(before, tries, self.blows[first:])
        return missed

    def _start(self, *, cluster: bool) -> Driver:
        address = self._nodes().address if cluster else "null"
        change = ["--set", f"ray_address={address}"]
        begun = exists(self._output)
        what = ["resume", self._output.url] if begun else ["synth", str(self._config)]
        if not begun:
            change += ["--set", f"output={self._output.url}"]
        driver = Driver(self._folder / f"d{self.drivers}", [*what, *change], {**QUIET, **self._place.environment})
        self._watch.add_place(driver.scratch)
        self.drivers += 1
        return driver

    def _nodes(self) -> Nodes:
        if self._cluster is None:
            scratch = self._folder / "n"
            scratch.mkdir(parents=True)
            self._watch.add_place(scratch)
            environment = {**QUIET, **self._place.environment, "TMPDIR": str(scratch)}
            self._cluster = self._stack.enter_context(cluster_of([1] * NODES, scratch, environment))
        return self._cluster

    # --- faults -------------------------------------------------------------------------------------------------------

    def _deal(self, scene: Scene, fault: Fault) -> bool:
        if not self._is_due(scene, fault):
            return False
        at = time.monotonic()
        if not strike(scene, fault):
            return False
        self.blows.append(Blow(kind=fault.kind, at=at))
        self._say(f"run {self.drivers}, {self._watch.count} of {self._shards} shards: {fault.kind}")
        return True

    def _is_due(self, scene: Scene, fault: Fault) -> bool:
        """Waits for the fault's moment; False when the run ends before, or is past it."""
        if fault.kind is Kind.DRIVER_STARTING:
            left = scene.driver.began + fault.delay - time.monotonic()
            return not wait_until(lambda: not scene.driver.running, max(left, 0.0))
        finishing = fault.kind is Kind.DRIVER_FINISHING
        goal = self._shards if finishing else min(self._watch.count + fault.after, self._shards)
        if not finishing and self._watch.count >= self._shards:
            return False

        def come() -> bool:
            at_it = scene.holds_lease if finishing else scene.workers
            return self._watch.count >= goal and bool(at_it())

        if not wait_until(lambda: come() or not scene.driver.running, STUCK_SECONDS):
            self.findings.append(Finding("slow", f"no progress before: {fault.kind}:\n{scene.driver.said[-2000:]}"))
            return False
        if fault.kind is not Kind.DRIVER_WAITING:  # which waits by itself, for another moment
            wait_until(lambda: not scene.driver.running, fault.delay)
        return scene.driver.running

    # --- after a run --------------------------------------------------------------------------------------------------

    def _end(self, scene: Scene, blows: list[Blow]) -> None:
        last = blows[-1].kind if blows else None
        seconds = STOP_SECONDS if last in (Kind.SIGTERM, Kind.SIGINT) else STUCK_SECONDS
        began = time.monotonic()
        scene.expect(scene.driver, seconds, scene.codes, str(last or "nothing"), self._may_finish)
        self._say(f"  the driver ended with {scene.driver.process.returncode} after {time.monotonic() - began:.1f} s")
        if not wait_until(lambda: not self._strays(scene), GONE_SECONDS, poll=0.2):
            strays = ", ".join(f"{each.pid} {each.command[:80]}" for each in self._strays(scene))
            self.findings.append(Finding("process", f"after: {last}: still alive: {strays}"))
        self._leave_to_ray()
        if scene.driver.process.returncode in (FINISHED, UNFINISHED, REPORTED) and last is not Kind.RAYLET:
            self._check_lease(str(last))
        self._count_lost_work(scene, blows)

    def _may_finish(self) -> bool:
        """The end of a small job needs no worker: once all shards are there, what happens to those is too late."""
        return self._watch.count >= self._shards

    def _strays(self, scene: Scene) -> list[Process]:
        """What the driver has started and left. A cluster has processes of its own: of those only the workers."""
        if scene.cluster is not None:
            return scene.workers()
        ours = (each for each in self._orphans() if each.pid not in self._there_before)
        return [each for each in ours if each.role not in (Role.AGENT, Role.IDLE)]

    def _leave_to_ray(self) -> None:
        """Agents have time to end; idle workers never would, since this process is their parent and not process 1."""
        for process in self._orphans():
            if process.role is Role.AGENT:
                self.agents.setdefault(process, time.monotonic())
            elif process.role is Role.IDLE:
                process.send(signal.SIGKILL)

    def _orphans(self) -> list[Process]:
        """All that is alive, but for the cluster and the store."""
        own = {self._place.pid, *(each.pid for each in (self._cluster.family() if self._cluster else ()))}
        return [each for each in own_processes() if each.pid not in own]

    def _check_lease(self, after: str) -> None:
        state = read_lease(self._output)
        if state is not None and not state.released:
            self.findings.append(Finding("lease", f"after: {after}: the lease was not released by {state}"))

    def _count_lost_work(self, scene: Scene, blows: list[Blow]) -> None:
        """A temporary folder that is still there was a try that did not end; the fault that ended it explains it."""
        explained = any(blow.kind not in POLITE for blow in blows)
        for path, seen in self._watch.left_behind():
            if explained:
                blow = next((blow for blow in blows if blow.at >= seen), blows[-1])
                blow.repeated += max(0.0, blow.at - seen)
            else:
                self.findings.append(Finding("scratch", f"{path.name} was left behind by a run that nothing killed"))
            shutil.rmtree(path, ignore_errors=True)
        others = sorted(path.name for path in scene.driver.scratch.iterdir() if path.name != "ray")
        if others and not explained:
            self.findings.append(Finding("scratch", f"left behind in the folder for temporary files: {others}"))

    def _compare(self, before: dict[int, str], tries: dict[str, int], blows: list[Blow]) -> None:
        found = [*made_again(before, committed(self._output)), *tried_again(before, tries, tries_in(self._output))]
        self.findings += found
        if blows:
            blows[-1].made_again += sum(finding.count for finding in found)
