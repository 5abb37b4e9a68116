"""Ray: workers on this machine or a cluster, each with few tasks in hand; the driver owns the truth.

A worker is any object with ``run(task)``, made in an actor of its own by a *recipe*. Actors die, and their tasks go
back to the schedule; actors that cannot be made are tried again a bounded number of times; every wait ends. Only small
reports come back: audio never passes the object store.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from importlib import import_module
from operator import attrgetter
from types import FrameType
from typing import Any, Literal, Protocol

import ray
import ray.exceptions

from jobs.errors import InputError, JobError
from jobs.placement import Node, Share, auto_workers, share_of
from jobs.schedule import BrokenWorker, Schedule

log = logging.getLogger(__name__)

POLL_SECONDS = 1.0  # the longest the driver waits before it looks at signals and the lease again
RESIZE_SECONDS = 10.0  # between two looks at how large the cluster is
DRAIN_SECONDS = 12.0  # for tasks in hand when the run is asked to stop
KNOCK_SECONDS = 10.0  # for a cluster's head to accept a connection
START_SECONDS = 1800.0  # for a worker to load its model, a download included
PATIENCE_SECONDS = 20.0  # without any worker placed, before the user is told what is waited for
START_ERRORS = 3  # errors in a row while making a worker, with none at work, that end the run
START_DEATHS = 10  # the same, for workers that were killed while they were made
FIRST_BACKOFF_SECONDS, LAST_BACKOFF_SECONDS = 0.5, 30.0
MOST_AT_ONCE = 4  # tasks in a worker's hands, whatever it asks for
OBJECT_STORE_BYTES = 128 * 2**20  # reports are small; Ray's default takes a third of the memory

# Of the driver's environment, what workers on other machines need: credentials, endpoints, caches, proxies.
PASSED_ENVIRONMENT = ("AWS_", "S3_", "HF_", "GOOGLE_", "GCS_", "AZURE_", "FSSPEC_", "HTTP_", "HTTPS_", "NO_PROXY")


class Runs(Protocol):
    """What a recipe makes.

    One that bears several calls of ``run`` at a time says how many, in an attribute ``tasks_at_once``.
    """

    def run(self, task: Any) -> Any:
        """Does one task; what it returns is small."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    """How a worker is made, in its own process: by what is called with these arguments.

    Attributes:
        make: its address, ``package.module:name.of.it``; only the name travels.
        arguments: plain values.
    """

    make: str
    arguments: Mapping[str, Any]

    def __call__(self) -> Runs:
        """Imports and calls it."""
        module, _, path = self.make.partition(":")
        worker: Runs = attrgetter(path)(import_module(module))(**self.arguments)
        return worker


# --- inside the actor -------------------------------------------------------------------------------------------------


class Hand:
    """The Ray actor: makes a worker and hands it tasks. Ends by itself when its raylet is gone."""

    def __init__(self) -> None:
        threading.Thread(target=_end_with, args=(os.getppid(),), name="raylet-watch", daemon=True).start()
        # Much belongs to a thread, torch's settings for one; Ray's own would not be the same for every task.
        self._threads = ThreadPoolExecutor(1)
        self._worker: Runs | None = None

    def place(self) -> dict[str, Any]:
        """Answers once the actor runs: where, and with which GPUs."""
        context = ray.get_runtime_context()
        return {"pid": os.getpid(), "node": context.get_node_id(), "gpus": [str(gpu) for gpu in ray.get_gpu_ids()]}

    def load(self, recipe: Recipe, environment: Mapping[str, str]) -> int:
        """Makes the worker; answers how many tasks it takes at once."""
        os.environ.update(environment)
        self._worker = self._threads.submit(recipe).result()
        tasks = min(getattr(self._worker, "tasks_at_once", 1), MOST_AT_ONCE)
        if tasks > 1:
            self._threads = ThreadPoolExecutor(tasks)
        return tasks

    def run(self, task: Any) -> Any:
        """One task."""
        if self._worker is None:
            raise RuntimeError("a task came before the worker was loaded")
        return self._threads.submit(self._worker.run, task).result()


def _end_with(parent: int) -> None:
    # The driver's death ends its raylet, or makes Ray kill the actor; a long kernel must not outlive either.
    while os.getppid() == parent:
        time.sleep(1.0)
    os._exit(1)


# --- the session ------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def connected(address: str | None) -> Iterator[None]:
    """Ray for the length of the block: the cluster at ``address``, or one of this process's own.

    A Ray that this process has started already is used as it is.

    Raises:
        InputError: no cluster answers there.
    """
    if ray.is_initialized():
        yield
        return
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    # Since Ray 2.50 this is its own coming default; without it, each start warns about the change.
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    own = {"include_dashboard": False, "object_store_memory": OBJECT_STORE_BYTES}
    if address is not None:
        _knock(address)
    try:
        ray.init(
            address=address or "local",
            log_to_driver=False,
            logging_level=logging.ERROR,
            configure_logging=True,
            **({} if address else own),
        )
    except (ConnectionError, ValueError, RuntimeError, TimeoutError) as error:
        raise InputError(f"ray_address: no Ray cluster answers at {address or 'local'}: {error}") from None
    try:
        yield
    finally:
        ray.shutdown()


def _knock(address: str) -> None:
    """Refuses an address where nothing listens: Ray itself would try for minutes."""
    if address == "auto":
        return
    host, _, port = address.rpartition(":")
    if "://" in address or not host or not port.isdigit():
        raise InputError(
            f"ray_address: {address!r} is not the address of a cluster's head; give its host:port (6379 unless set "
            "otherwise), or auto on a machine of the cluster"
        )
    try:
        socket.create_connection((host.strip("[]"), int(port)), KNOCK_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise InputError(f"ray_address: no Ray cluster answers at {address}: {error}") from None


def nodes() -> list[Node]:
    """The machines of the connected cluster that are alive."""
    alive = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return [Node(cpus=float(found.get("CPU", 0)), gpus=float(found.get("GPU", 0))) for found in alive]


class Stop:
    """SIGINT and SIGTERM while a run is under way.

    Outside of ``graceful`` blocks they raise KeyboardInterrupt, which unwinds the run at once; inside they are only
    noted, for whoever asks ``requested``. A second SIGINT raises in any case.
    """

    def __init__(self) -> None:
        self.signal: str | None = None
        self._graceful = False

    @property
    def requested(self) -> bool:
        """Whether one of them has come."""
        return self.signal is not None

    @contextlib.contextmanager
    def listening(self) -> Iterator[Stop]:
        """Takes the signals over; to be entered after Ray has started, which sets handlers of its own."""
        if threading.current_thread() is not threading.main_thread():
            yield self
            return
        before = {number: signal.signal(number, self._heard) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield self
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    @contextlib.contextmanager
    def graceful(self) -> Iterator[None]:
        """The block looks at ``requested`` itself, often."""
        self._graceful = True
        try:
            yield
        finally:
            self._graceful = False

    def _heard(self, number: int, frame: FrameType | None) -> None:
        again = self.requested
        self.signal = signal.Signals(number).name
        if not self._graceful or (again and number == signal.SIGINT):
            raise KeyboardInterrupt


# --- the crew ---------------------------------------------------------------------------------------------------------

Stage = Literal["placing", "loading", "ready"]

NO_TASK = -1


@dataclass(slots=True)
class _Member:
    """One actor, and what the driver waits for from it.

    Attributes:
        calls: by the object reference of the answer, the task; `NO_TASK` until it is ready.
        room: how many tasks it takes at once.
    """

    actor: Any
    stage: Stage
    since: float
    calls: dict[Any, int]
    room: int = 1
    place: dict[str, Any] = field(default_factory=dict)


class Crew:
    """The workers of one run.

    Args:
        recipe: how each of them is made.
        workers: how many, or "auto": as many as the cluster has room for, growing with it.
        share: what each asks of its machine.
        payload: what a worker gets for a task number.
        describe: what a task is called in messages.
    """

    def __init__(
        self,
        recipe: Recipe,
        *,
        workers: int | Literal["auto"],
        share: Share,
        payload: Callable[[int], Any] = lambda task: task,
        describe: Callable[[int], str] = str,
    ) -> None:
        self._recipe, self._payload, self._describe = recipe, payload, describe
        self._wanted, self._share = workers, share
        # Once in the object store, for all actors that are ever made.
        self._stored = ray.put(recipe)
        self._members: list[_Member] = []
        self._target = self._size()
        self._resized = self._last_placed = time.monotonic()
        self._hire_after = 0.0
        self._start_failures: list[tuple[bool, str]] = []  # since the last worker that got ready: died, why
        self._said_waiting = False

    def work(
        self,
        schedule: Schedule,
        on_report: Callable[[int, Any], None],
        should_stop: Callable[[], bool] = lambda: False,
    ) -> None:
        """Runs the schedule until it is finished or told to stop; tasks that were given up are in the schedule.

        Args:
            on_report: gets the number and the report of each task that is done.
            should_stop: asked about once a second. What either of them raises ends the run at once.

        Raises:
            JobError: no worker can be made; the first error is in the message.
        """
        try:
            while not schedule.finished and not should_stop():
                self._hire()
                self._hand_out(schedule)
                self._listen(schedule, on_report)
            self._drain(schedule, on_report)
        finally:
            for member in self._members:
                _kill(member)
            self._members.clear()

    def places(self) -> list[dict[str, Any]]:
        """Where the actors are: pid, node and GPU ids of each that is placed."""
        return [member.place for member in self._members if member.place]

    def _size(self) -> int:
        if self._wanted != "auto":
            return self._wanted
        return max(1, auto_workers(nodes(), self._share.gpus))

    def _hire(self) -> None:
        """Makes actors until there are as many as wanted, soon after each other only when they do not fail."""
        now = time.monotonic()
        if now - self._resized > RESIZE_SECONDS:
            self._target, self._resized = self._size(), now
        if now < self._hire_after:
            return
        while len(self._members) < self._target:
            actor = (
                ray.remote(Hand)
                .options(
                    num_cpus=self._share.cpus,
                    num_gpus=self._share.gpus,
                    max_restarts=0,
                    max_concurrency=MOST_AT_ONCE,
                )
                .remote()
            )
            self._members.append(_Member(actor, "placing", now, {actor.place.remote(): NO_TASK}))

    def _hand_out(self, schedule: Schedule) -> None:
        """A task for every worker, then a second one, and so on; these only while each other worker could get one."""
        ready = [member for member in self._members if member.stage == "ready"]
        for held in range(MOST_AT_ONCE):
            for member in ready:
                if len(member.calls) != held or held >= member.room:
                    continue
                task = schedule.next(member.calls.values(), spare=self._target - 1 if held else 0)
                if task is not None:
                    member.calls[member.actor.run.remote(self._payload(task))] = task

    def _listen(self, schedule: Schedule, on_report: Callable[[int, Any], None]) -> None:
        """Waits a moment for any answer, and deals with all that are there."""
        waiting = {call: member for member in self._members for call in member.calls}
        if not waiting:
            time.sleep(POLL_SECONDS / 10)
            return
        ready, _ = ray.wait(list(waiting), num_returns=1, timeout=POLL_SECONDS)
        if ready:
            ready, _ = ray.wait(list(waiting), num_returns=len(waiting), timeout=0)
        answers = [(waiting[call], call, _answer(call)) for call in ready]
        # What a worker has done counts, whatever became of it since.
        for member, call, answer in sorted(answers, key=lambda each: isinstance(each[2], Exception)):
            if call in member.calls:
                self._answered(member, call, answer, schedule, on_report)
        self._look_at_clock()

    def _answered(
        self, member: _Member, call: Any, answer: Any, schedule: Schedule, on_report: Callable[[int, Any], None]
    ) -> None:
        if isinstance(answer, ray.exceptions.RayTaskError):
            self._raised(member, call, answer.cause, schedule)
        elif isinstance(answer, ray.exceptions.RayError):
            self._died(member, answer, schedule)
        elif member.stage != "ready":
            self._got_on(member, call, answer)
        else:
            task = member.calls.pop(call)
            schedule.done(task)
            on_report(task, answer)

    def _got_on(self, member: _Member, call: Any, answer: Any) -> None:
        """Loads what is placed; what is loaded is ready."""
        del member.calls[call]
        if member.stage == "loading":
            member.stage, member.room = "ready", answer
            self._start_failures.clear()
            return
        member.place, member.stage, member.since = answer, "loading", time.monotonic()
        member.calls[member.actor.load.remote(self._stored, passed_environment())] = NO_TASK
        self._last_placed = time.monotonic()
        log.debug("a worker is process %(pid)s on node %(node)s with GPUs %(gpus)s", answer)

    def _raised(self, member: _Member, call: Any, cause: BaseException, schedule: Schedule) -> None:
        reason = explain(cause)
        if member.stage != "ready":
            self._dismiss(member)
            self._start_failed(died=False, reason=reason)
        elif isinstance(cause, BrokenWorker):
            self._dismiss(member)
            self._lost(member, reason, schedule)
        else:
            self._task_failed(member.calls.pop(call), reason, schedule)

    def _died(self, member: _Member, error: Exception, schedule: Schedule) -> None:
        self._dismiss(member)
        pid = member.place.get("pid", "not yet started")
        # Ray's own text goes on for a page; its first lines say who died, and of what where that is known.
        reason = f"its worker (process {pid}) died"
        log.debug("process %s: %s", pid, error)
        if member.stage == "ready":
            self._lost(member, reason, schedule)
        else:
            self._start_failed(died=True, reason=reason)

    def _lost(self, member: _Member, reason: str, schedule: Schedule) -> None:
        """What a worker had in hand goes back: one task is to blame for the loss, of several none is."""
        tasks = list(member.calls.values())
        member.calls.clear()
        if len(tasks) == 1:
            self._task_failed(tasks[0], reason, schedule)
            return
        for task in tasks:
            schedule.lost(task)
            log.warning("%s was lost among others: %s; it is tried again by itself", self._describe(task), reason)

    def _task_failed(self, task: int, reason: str, schedule: Schedule) -> None:
        tries = schedule.failed(task, reason)
        then = "given up" if task in schedule.given_up else "it is tried again"
        log.warning("%s failed, try %d: %s; %s", self._describe(task), tries, reason, then)

    def _start_failed(self, *, died: bool, reason: str) -> None:
        failures = self._start_failures
        failures.append((died, reason))
        wait = min(LAST_BACKOFF_SECONDS, FIRST_BACKOFF_SECONDS * 2 ** (len(failures) - 1))
        self._hire_after = time.monotonic() + wait
        log.warning("a worker could not start: %s", reason)
        at_work = any(member.stage == "ready" for member in self._members)
        errors = sum(1 for was_death, _ in failures if not was_death)
        if not at_work and (errors >= START_ERRORS or len(failures) >= START_DEATHS):
            first = next((why for was_death, why in failures if not was_death), failures[0][1])
            raise JobError(f"no worker can start, after {len(failures)} tries; the first error: {first}")

    def _dismiss(self, member: _Member) -> None:
        _kill(member)
        self._members.remove(member)

    def _look_at_clock(self) -> None:
        now = time.monotonic()
        for member in [m for m in self._members if m.stage == "loading" and now - m.since > START_SECONDS]:
            self._dismiss(member)
            self._start_failed(died=False, reason=f"it was not ready after {START_SECONDS:g} s")
        if any(member.stage != "placing" for member in self._members):
            self._last_placed, self._said_waiting = now, False
        elif now - self._last_placed > PATIENCE_SECONDS and not self._said_waiting:
            self._said_waiting = True
            have = nodes()
            log.warning(
                "waiting for room: a worker needs %g CPUs and %g GPUs; the cluster has %d machines with %g CPUs and %g "
                "GPUs, of which others may use some",
                *(self._share.cpus, self._share.gpus, len(have)),
                *(sum(node.cpus for node in have), sum(node.gpus for node in have)),
            )

    def _drain(self, schedule: Schedule, on_report: Callable[[int, Any], None]) -> None:
        """Takes the reports of tasks in hand that end soon; the others are dropped, and nothing of them is visible."""
        until = time.monotonic() + DRAIN_SECONDS
        while schedule.in_hand and time.monotonic() < until:
            self._listen(schedule, on_report)


def plan_share(workers: int | Literal["auto"], gpus_per_worker: float, *, own: bool) -> Share:
    """What each worker gets of the connected cluster.

    Args:
        gpus_per_worker: 0 for none.
        own: this is this process's own Ray, which never grows.

    Raises:
        InputError: the workers would wait for GPUs for ever.
    """
    have = nodes()
    share = share_of(have, workers, gpus_per_worker)
    cpus, gpus = sum(node.cpus for node in have), sum(node.gpus for node in have)
    if own and workers != "auto" and share.slots(have) < workers:
        raise InputError(
            f"workers: {workers} with {gpus_per_worker:g} GPUs each do not fit on this machine, which has {cpus:g} "
            f"CPUs and {gpus:g} GPUs; give fewer workers, a smaller gpus_per_worker, or engine.device=cpu"
        )
    return share


def passed_environment() -> dict[str, str]:
    """The variables of the driver that its workers get, wherever they are."""
    return {name: value for name, value in os.environ.items() if name.upper().startswith(PASSED_ENVIRONMENT)}


def explain(error: BaseException) -> str:
    """An exception as one short line."""
    text = " ".join(str(error).split())
    if isinstance(error, JobError) and text:
        return text
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _answer(call: Any) -> Any:
    """What a call returned, or the exception that it ended with."""
    try:
        return ray.get(call)
    except ray.exceptions.RayError as error:
        return error


def _kill(member: _Member) -> None:
    with contextlib.suppress(Exception):  # it is dead, or its node is
        ray.kill(member.actor, no_restart=True)
