"""The crew: workers on this machine or a cluster, each with few tasks in hand; the driver owns the truth.

A worker is any object with ``run(task)``, made in an actor of its own by a *recipe*. Actors die, and their tasks go
back to the schedule; actors that do nothing any more are ended; actors that cannot be made are tried again a bounded
number of times; every wait ends. Only small reports come back: audio never passes the object store.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Literal

import ray
import ray.exceptions

from jobs.crew.actor import CALLS_AT_ONCE, MOST_AT_ONCE, Hand, Recipe
from jobs.crew.endings import lost_machine, starved_machine
from jobs.crew.inbox import Inbox
from jobs.crew.isolation import Death
from jobs.crew.member import NO_TASK, Call, Member
from jobs.crew.placement import Share, auto_workers
from jobs.crew.schedule import BrokenWorker, Schedule
from jobs.crew.session import draining, is_gone, nodes, passed_environment
from jobs.crew.sight import Sight
from jobs.errors import JobError

log = logging.getLogger(__name__)

POLL_SECONDS = 1.0  # the longest the driver waits before it looks at signals, the lease and its workers again
RESIZE_SECONDS = 10.0  # between two looks at the cluster's machines
PULSE_SECONDS = 10.0  # between two questions whether a worker gets on
DRAIN_SECONDS = 12.0  # for tasks in hand when the run is asked to stop
START_SECONDS = 1800.0  # for a worker to load its model, a download included
PATIENCE_SECONDS = 20.0  # without any worker placed, before the user is told what is waited for
START_ERRORS = 3  # errors in a row while making a worker, with none at work, that end the run
START_DEATHS = 10  # the same, for workers that were killed while they were made
FIRST_BACKOFF_SECONDS, LAST_BACKOFF_SECONDS = 0.5, 30.0
SHOWN_TASKS = 5  # of those in hand, in a message
LOST_SECONDS, MOST_LOST = 60.0, 20  # how long a lost worker stays to be seen, and how many

OnReport = Callable[[int, Any], None]
OnLook = Callable[[Sequence[Sight]], None]


class Crew:
    """The workers of one run.

    Args:
        recipe: how each of them is made.
        workers: how many, or "auto": as many as the cluster has room for, growing with it.
        share: what each asks of its machine.
        payload: what a worker gets for a task number.
        describe: what a task is called in messages.
        stall_seconds: without any progress, after which a worker with a task in hand is ended; None for no limit.
    """

    def __init__(
        self,
        recipe: Recipe,
        *,
        workers: int | Literal["auto"],
        share: Share,
        payload: Callable[[int], Any] = lambda task: task,
        describe: Callable[[int], str] = str,
        stall_seconds: float | None = None,
    ) -> None:
        self._payload, self._describe = payload, describe
        self._wanted, self._share, self._stall = workers, share, stall_seconds
        self._ask_every = PULSE_SECONDS if stall_seconds is None else min(PULSE_SECONDS, stall_seconds / 4)
        # Once in the object store, for all actors that are ever made.
        self._stored = ray.put(recipe)
        self._actors = ray.remote(Hand).options(
            num_cpus=share.cpus, num_gpus=share.gpus, max_restarts=0, max_concurrency=CALLS_AT_ONCE
        )
        self._members: list[Member] = []
        self._gone: deque[tuple[float, Sight]] = deque(maxlen=MOST_LOST)  # when each was lost
        self._inbox: Inbox[Call] = Inbox()
        self._draining: set[str] = set()
        self._target = self._size()
        self._resized = self._last_placed = self._looked = time.monotonic()
        self._hire_after = 0.0
        self._most_at_once = MOST_AT_ONCE
        self._may_hand_out = True  # something has changed since it was tried: of many workers, most only say they live
        self._start_failures: list[tuple[bool, str]] = []  # since the last worker that got ready: died, why
        self._said_waiting = False

    def work(
        self,
        schedule: Schedule,
        on_report: OnReport,
        should_stop: Callable[[], bool] = lambda: False,
        on_look: OnLook = lambda workers: None,
    ) -> None:
        """Runs the schedule until it is finished or told to stop; tasks that were given up are in the schedule.

        Args:
            on_report: gets the number and the report of each task that is done.
            should_stop: asked about once a second.
            on_look: gets the workers as they are, about once a second. What any of these raises ends the run at once.

        Raises:
            JobError: no worker can be made; the first error is in the message.
        """
        try:
            while not schedule.finished and not should_stop():
                self._hire()
                looked = self._look_at_clock(schedule)
                if self._may_hand_out:
                    self._hand_out(schedule)
                if looked:  # and whoever can be is at work again
                    on_look(self.sights())
                self._listen(schedule, on_report)
            self._drain(schedule, on_report, on_look)
        finally:
            for member in self._members:
                member.kill()
            self._members.clear()

    def places(self) -> list[dict[str, Any]]:
        """Where the actors are: pid, node and GPU ids of each that is placed."""
        return [member.place for member in self._members if member.place]

    def sights(self) -> list[Sight]:
        """The workers as they are, and those that were lost of late."""
        now = time.monotonic()
        while self._gone and now - self._gone[0][0] > LOST_SECONDS:
            self._gone.popleft()
        lost = [replace(sight, seconds=now - when) for when, sight in self._gone]
        return [*lost, *(member.sight(now) for member in self._members)]

    # --- making and ending workers ------------------------------------------------------------------------------------

    def _size(self) -> int:
        if self._wanted != "auto":
            return self._wanted
        return max(1, auto_workers(nodes(), self._share.gpus))

    def _resize(self, now: float) -> None:
        """Looks at which machines there are, and which of them are about to go."""
        self._target, self._resized, self._draining = self._size(), now, draining()
        surplus = len(self._members) - self._target
        for member in [m for m in self._members if m.stage == "placing"][: max(surplus, 0)]:
            self._dismiss(member)

    def _hire(self) -> None:
        """Makes actors until there are as many as wanted, soon after each other only when they do not fail."""
        now = time.monotonic()
        if now - self._resized > RESIZE_SECONDS:
            self._resize(now)
        if now < self._hire_after:
            return
        while len(self._members) < self._target:
            member = Member(self._actors.remote(), now)
            self._ask(member, member.actor.place.remote())
            self._members.append(member)

    def _ask(self, member: Member, reference: Any, task: int = NO_TASK, tries: int = 1) -> Call:
        call = Call(member, task, reference, tries, time.monotonic())
        member.calls.append(call)
        self._inbox.expect(reference, call)
        return call

    def _dismiss(self, member: Member, *, lost: bool = False) -> None:
        if lost:
            now = time.monotonic()
            self._gone.append((now, member.sight(now, "lost")))
        member.kill()
        self._members.remove(member)

    def _start_failed(self, *, died: bool, reason: str) -> None:
        failures = self._start_failures
        failures.append((died, reason))
        wait = min(LAST_BACKOFF_SECONDS, FIRST_BACKOFF_SECONDS * 2 ** (len(failures) - 1))
        self._hire_after = time.monotonic() + wait
        log.warning("a worker could not start: %s", reason)
        ready = any(member.stage == "ready" for member in self._members)
        # Of many that begin at once, those of one bad machine fail before the others are ready.
        loading = any(member.stage == "loading" for member in self._members)
        errors = sum(1 for was_death, _ in failures if not was_death)
        enough = errors >= START_ERRORS or len(failures) >= START_DEATHS
        if enough and not ready and (not loading or len(failures) >= START_DEATHS + 2 * self._target):
            first = next((why for was_death, why in failures if not was_death), failures[0][1])
            raise JobError(f"no worker can start, after {len(failures)} tries; the first error: {first}")

    # --- tasks and answers --------------------------------------------------------------------------------------------

    def _hand_out(self, schedule: Schedule) -> None:
        """A task for every worker, then a second one, and so on; these only while each other worker could get one."""
        self._may_hand_out = False
        now = time.monotonic()
        able = [m for m in self._members if m.stage == "ready" and m.place["node"] not in self._draining]
        # A worker that has waited long for its place may never get one.
        others = sum(1 for m in self._members if m.stage != "placing" or now - m.since < PATIENCE_SECONDS) - 1
        for held in range(self._most_at_once):
            for member in able:
                if len(member.calls) != held or held >= member.room:
                    continue
                task = schedule.next(member.tasks, spare=others if held else 0)
                if task is None:
                    continue
                if not held:
                    member.got_on = now
                self._ask(member, member.actor.run.remote(self._payload(task)), task, schedule.case(task).tries)

    def _listen(self, schedule: Schedule, on_report: OnReport) -> None:
        """Waits a moment for any answer, and deals with all that are there."""
        # What a worker has done counts, whatever became of it since.
        for call, answer in sorted(self._inbox.take(POLL_SECONDS), key=lambda each: isinstance(each[1], Exception)):
            if call is call.member.asked:
                self._felt(call.member, answer, schedule)
            elif call in call.member.calls:
                self._may_hand_out = True
                self._answered(call, answer, schedule, on_report)

    def _answered(self, call: Call, answer: Any, schedule: Schedule, on_report: OnReport) -> None:
        member = call.member
        if isinstance(answer, ray.exceptions.RayTaskError):
            self._raised(call, answer.cause, schedule)
        elif isinstance(answer, Exception):
            self._died(member, answer, schedule)
        elif member.stage != "ready":
            self._moved_on(call, answer)
        else:
            member.calls.remove(call)
            member.got_on = time.monotonic()
            if schedule.done(call.task):
                on_report(call.task, answer)
            else:
                log.info("%s: that did no harm; %s", self._describe(call.task), self._fate(call.task, schedule))

    def _moved_on(self, call: Call, answer: Any) -> None:
        """Loads what is placed; what is loaded is ready."""
        member = call.member
        member.calls.remove(call)
        member.since = time.monotonic()
        if member.stage == "loading":
            member.stage, member.room = "ready", answer
            self._start_failures.clear()
            return
        member.place, member.stage, self._last_placed = answer, "loading", member.since
        self._ask(member, member.actor.load.remote(self._stored, passed_environment()))
        log.debug("a worker is process %(pid)s on node %(node)s with GPUs %(gpus)s", answer)

    def _felt(self, member: Member, answer: Any, schedule: Schedule) -> None:
        if not isinstance(answer, Exception):
            member.felt(answer, time.monotonic())
        elif not member.calls:
            self._died(member, answer, schedule)

    # --- what goes wrong ----------------------------------------------------------------------------------------------

    def _raised(self, call: Call, cause: BaseException, schedule: Schedule) -> None:
        member, reason = call.member, explain(cause)
        if member.stage != "ready":
            self._dismiss(member)
            self._start_failed(died=False, reason=reason)
        elif isinstance(cause, BrokenWorker):
            self._lost(member, Death(reason=reason), schedule)
        else:
            member.calls.remove(call)
            member.got_on = time.monotonic()
            tries = schedule.failed(call.task, reason)
            then = self._fate(call.task, schedule)
            log.warning("%s failed, try %d: %s; %s", self._describe(call.task), tries, reason, then)

    def _died(self, member: Member, error: Exception, schedule: Schedule) -> None:
        # Ray's own text goes on for a page.
        log.debug("process %s: %s", member.place.get("pid"), error)
        node = member.place.get("node")
        if lost_machine(error) or (node is not None and is_gone(node)):
            self._moved(member, f"{member.name} was lost with its machine", schedule)
        elif member.stage != "ready":
            self._dismiss(member, lost=True)
            self._start_failed(died=True, reason=f"{member.name} died")
        elif starved_machine(error):
            reason = f"{member.name} was ended by Ray, since its machine had too little memory"
            self._lost(member, Death(reason=reason, starved=True), schedule)
        else:
            self._lost(member, Death(reason=f"{member.name} died"), schedule)

    def _moved(self, member: Member, reason: str, schedule: Schedule) -> None:
        """What a worker had in hand goes back at no cost."""
        for task in member.tasks:
            schedule.moved(task, reason)
            log.warning("%s: %s; %s", self._describe(task), reason, self._fate(task, schedule))
        if not member.tasks:
            log.info("%s; it had nothing in hand", reason)
        self._dismiss(member, lost=True)
        self._hire_after = time.monotonic() + FIRST_BACKOFF_SECONDS

    def _lost(self, member: Member, death: Death, schedule: Schedule) -> None:
        """What a worker had in hand goes back: one task is to blame for the loss, of several none is."""
        tasks = member.tasks
        self._dismiss(member, lost=True)
        if not tasks:
            log.warning("%s; it had nothing in hand", death.reason)
        if death.starved and len(tasks) > 1:
            self._most_at_once = min(self._most_at_once, len(tasks) - 1)
        if len(tasks) == 1:
            tries = schedule.died(tasks[0], death)
            then = self._fate(tasks[0], schedule)
            log.warning("%s failed, try %d: %s; %s", self._describe(tasks[0]), tries, death.reason, then)
            return
        for task in tasks:
            schedule.lost(task)
            then = "it is tried again by itself"
            log.warning("%s was lost among others: %s; %s", self._describe(task), death.reason, then)

    def _fate(self, task: int, schedule: Schedule) -> str:
        if task in schedule.given_up:
            return "given up"
        probe = schedule.case(task).probe
        if probe is None:
            return "it is tried again"
        first, end = probe
        return f"its rows {first} to {end - 1} are tried next" if end else "its rows are looked through for the cause"

    # --- time ---------------------------------------------------------------------------------------------------------

    def _look_at_clock(self, schedule: Schedule) -> bool:
        """Looks at everybody, about once a second; returns whether it has."""
        now = time.monotonic()
        if now - self._looked < min(POLL_SECONDS, self._ask_every):
            return False
        self._looked, self._may_hand_out = now, True
        for member in list(self._members):
            if member.stage == "ready":
                self._look_at(member, now, schedule)
            elif member.stage == "loading" and now - member.since > START_SECONDS:
                self._dismiss(member)
                self._start_failed(died=False, reason=f"it was not ready after {START_SECONDS:g} s")
        self._look_at_places(now)
        return True

    def _look_at(self, member: Member, now: float, schedule: Schedule) -> None:
        """Whether a worker gets on, and whether it is still wanted where it is."""
        if member.calls and self._stall is not None and now - member.got_on > self._stall:
            self._lost(member, Death(reason=f"{member.name} did nothing for {self._stall:g} s", hung=True), schedule)
        elif not member.calls and member.place["node"] in self._draining:
            log.info("process %s ends, since its machine is being drained", member.place["pid"])
            self._dismiss(member)
        elif member.asked is None and now - member.asked_at > self._ask_every:
            member.asked = Call(member, NO_TASK, member.actor.pulse.remote())
            member.asked_at = now
            self._inbox.expect(member.asked.reference, member.asked)

    def _look_at_places(self, now: float) -> None:
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

    def _drain(self, schedule: Schedule, on_report: OnReport, on_look: OnLook) -> None:
        """Takes the reports of tasks in hand that end soon; the others are dropped, and nothing of them is visible."""
        until = time.monotonic() + DRAIN_SECONDS
        if schedule.in_hand:
            held = [self._describe(task) for member in self._members for task in member.tasks]
            names = ", ".join(held[:SHOWN_TASKS]) + (" and others" if len(held) > SHOWN_TASKS else "")
            log.info("stopping: waiting up to %g s for %d in hand: %s", DRAIN_SECONDS, len(held), names)
        while schedule.in_hand and time.monotonic() < until:
            self._listen(schedule, on_report)
            on_look(self.sights())


def explain(error: BaseException) -> str:
    """An exception as one short line."""
    text = " ".join(str(error).split())
    if isinstance(error, JobError) and text:
        return text
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
