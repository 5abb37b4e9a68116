"""The crew: workers on this machine or a cluster, each with few tasks in hand; the driver owns the truth.

A worker is any object with ``run(task)``, made in an actor of its own by a *recipe*. Actors die, and their tasks go
back to the schedule; actors that cannot be made are tried again a bounded number of times; every wait ends. Only small
reports come back: audio never passes the object store.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import ray
import ray.exceptions

from jobs.actor import MOST_AT_ONCE, Hand, Recipe
from jobs.errors import JobError
from jobs.placement import Share, auto_workers
from jobs.schedule import BrokenWorker, Schedule
from jobs.session import nodes, passed_environment

log = logging.getLogger(__name__)

POLL_SECONDS = 1.0  # the longest the driver waits before it looks at signals and the lease again
RESIZE_SECONDS = 10.0  # between two looks at how large the cluster is
DRAIN_SECONDS = 12.0  # for tasks in hand when the run is asked to stop
START_SECONDS = 1800.0  # for a worker to load its model, a download included
PATIENCE_SECONDS = 20.0  # without any worker placed, before the user is told what is waited for
START_ERRORS = 3  # errors in a row while making a worker, with none at work, that end the run
START_DEATHS = 10  # the same, for workers that were killed while they were made
FIRST_BACKOFF_SECONDS, LAST_BACKOFF_SECONDS = 0.5, 30.0

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
