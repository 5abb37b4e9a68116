"""How each kind of fault is dealt, and what the driver's exit code must be after it."""

from __future__ import annotations

import random
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from jobs.errors import JobError
from jobs.ledger.lease import read_lease
from jobs.storage.folders import Folder
from tests.chaos.audit import Finding
from tests.chaos.driver import Driver
from tests.chaos.faults import Fault, Kind
from tests.chaos.places import Place
from tests.chaos.processes import Process, Role, own_processes, wait_until
from tests.jobs.ray_nodes import Nodes

STUCK_SECONDS = 240.0  # without a shard, or an end: something waits for ever
TAKE_SECONDS = 90.0  # for a second driver to start, and to wait for a lease that lapses
STORE_SECONDS = 3.0  # that a store is away, at most
FINISHED, UNFINISHED, REPORTED = 0, 1, 3  # exit codes
WAITS = "waiting up to"  # a driver that found a lease
REFUSED = "another run is alive"


@dataclass(kw_only=True, slots=True)
class Scene:
    """One run, as faults see it.

    Attributes:
        another: starts a second driver on the same job.
        codes: with which the driver may end.
    """

    driver: Driver
    folder: Folder
    place: Place
    rng: random.Random
    cluster: Nodes | None
    another: Callable[[], Driver]
    findings: list[Finding]
    codes: set[int] = field(default_factory=lambda: {FINISHED, REPORTED})

    def workers(self) -> list[Process]:
        """Of this run's driver, or of the cluster."""
        family = self.driver.family() if self.cluster is None else own_processes()
        return [process for process in family if process.role is Role.WORKER]

    def holds_lease(self) -> bool:
        """Whether the driver has begun with its run."""
        return _holder(self.folder) == self.driver.process.pid

    def expect(
        self,
        driver: Driver,
        seconds: float,
        codes: set[int],
        after: str,
        may_finish: Callable[[], bool] = lambda: False,
    ) -> None:
        """Notes it when a driver does not end in time, or with another exit code.

        Args:
            may_finish: asked once it has ended: whether it may have finished the job where it need not.
        """
        code = driver.wait(seconds)
        if UNFINISHED in codes and may_finish():
            codes = codes | {FINISHED, REPORTED}
        if code is None:
            driver.end()
            self.findings.append(Finding("slow", f"after: {after}: not ended in {seconds:g} s:\n{driver.said[-2000:]}"))
        elif code not in codes:
            wanted = " or ".join(map(str, sorted(codes)))
            message = f"after: {after}: exit code {code}, not {wanted}:\n{driver.said[-2000:]}"
            self.findings.append(Finding("exit", message))


def strike(scene: Scene, fault: Fault) -> bool:
    """Deals a fault whose moment has come; False when there was nothing to hit."""
    match fault.kind:
        case Kind.WORKER:
            return _kill_one(scene, scene.workers())
        case Kind.RAYLET:
            scene.codes = {UNFINISHED}
            return _kill_one(scene, [each for each in scene.driver.family() if each.role is Role.RAYLET])
        case Kind.NODE:
            return _kill_node(scene)
        case Kind.STORE:
            return _kill_store(scene)
        case Kind.SIGTERM | Kind.SIGINT:
            scene.driver.send(signal.Signals[fault.kind.name])
            scene.codes = {UNFINISHED}
        case Kind.DRIVER_WAITING:
            return _kill_waiting(scene, fault.delay)
        case Kind.SECOND:
            _refuse_second(scene)
        case Kind.FROZEN:
            return _take_over(scene)
        case _:
            scene.driver.send(signal.SIGKILL)
            scene.codes = {-signal.SIGKILL}
    return True


def _kill_one(scene: Scene, processes: list[Process]) -> bool:
    return bool(processes) and scene.rng.choice(processes).send(signal.SIGKILL)


def _kill_node(scene: Scene) -> bool:
    if scene.cluster is None:
        return False
    scene.cluster.kill(scene.rng.choice(scene.cluster.alive), with_workers=scene.rng.random() < 0.5)
    scene.cluster.add()
    return True


def _kill_store(scene: Scene) -> bool:
    server = scene.place.server
    if server is None:
        return False
    server.kill()
    time.sleep(scene.rng.uniform(0.2, STORE_SECONDS))
    server.start()
    return True


def _kill_waiting(scene: Scene, delay: float) -> bool:
    second = scene.another()
    wait_until(lambda: WAITS in second.said or not second.running, TAKE_SECONDS)
    wait_until(lambda: not second.running, delay)
    waited = second.running and WAITS in second.said
    second.end()
    return waited


def _refuse_second(scene: Scene) -> None:
    second = scene.another()
    second.wait(TAKE_SECONDS)
    if scene.driver.running or REFUSED in second.said:
        scene.expect(second, 0, {UNFINISHED}, "second driver on a live job")


def _take_over(scene: Scene) -> bool:
    """Stops the driver's clock until another one has its lease; the other one is the run's driver then."""
    first = scene.driver
    first.send(signal.SIGSTOP)
    second = scene.another()
    took = wait_until(lambda: _holder(scene.folder) == second.process.pid or not second.running, TAKE_SECONDS)
    first.send(signal.SIGCONT)
    if not took or not second.running:
        said = second.said[-2000:]
        second.end()
        scene.findings.append(Finding("lease", f"a second driver did not take over from a frozen one:\n{said}"))
        return False
    scene.driver = second
    scene.expect(first, STUCK_SECONDS, {UNFINISHED}, "driver frozen until another took over")
    return True


def _holder(folder: Folder) -> int | None:
    try:
        state = read_lease(folder)
    except JobError:  # a store that is away
        return None
    return None if state is None or state.released else state.pid
