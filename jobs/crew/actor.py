"""The Ray actor: a process of its own that makes a worker by a recipe and hands it tasks."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib import import_module
from operator import attrgetter
from typing import Any, Protocol

import ray

from jobs.crew.schedule import BrokenWorker
from jobs.ledger.records import worker_name
from jobs.storage.patience import trust_addresses

MOST_AT_ONCE = 4  # tasks in a worker's hands, whatever it asks for
CALLS_AT_ONCE = MOST_AT_ONCE + 1  # one is for the pulse
# How long OpenMP's threads spin when they wait for each other. With GNU's own 300,000 two programs that keep two cores
# busy were measured to slow a model down ten to thirty times, with this twice to ten; alone it is as fast.
SPINS = "20000"
LEAVE_SECONDS = 5.0  # for the answer of a worker that is of no more use to reach the driver


class Runs(Protocol):
    """What a recipe makes.

    One that bears several calls of ``run`` at a time says how many, in an attribute ``tasks_at_once``. One that can
    tell that it gets on has a `Pulse` in an attribute ``pulse``; of the others only the end of a task is seen.
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
        return {
            "name": worker_name(),
            "pid": os.getpid(),
            "node": context.get_node_id(),
            "gpus": [str(gpu) for gpu in ray.get_gpu_ids()],
        }

    def load(self, recipe: Recipe, environment: Mapping[str, str]) -> int:
        """Makes the worker; answers how many tasks it takes at once."""
        os.environ.update(environment)
        if "OMP_WAIT_POLICY" not in os.environ:
            os.environ.setdefault("GOMP_SPINCOUNT", SPINS)  # read when torch is imported, by the recipe
        trust_addresses()
        self._worker = self._threads.submit(recipe).result()
        tasks = min(getattr(self._worker, "tasks_at_once", 1), MOST_AT_ONCE)
        if tasks > 1:
            self._threads = ThreadPoolExecutor(tasks)
        return tasks

    def pulse(self) -> int:
        """A number that is another one when the worker has got on."""
        pulse = getattr(self._worker, "pulse", None)
        return 0 if pulse is None else pulse.count

    def run(self, task: Any) -> Any:
        """One task."""
        if self._worker is None:
            raise RuntimeError("a task came before the worker was loaded")
        try:
            return self._threads.submit(self._worker.run, task).result()
        except BrokenWorker:
            # The driver ends this process when it reads the answer; without a driver it must end as well.
            threading.Timer(LEAVE_SECONDS, os._exit, (1,)).start()
            raise


def _end_with(parent: int) -> None:
    # The driver's death ends its raylet, or makes Ray kill the actor; a long kernel must not outlive either.
    while os.getppid() == parent:
        time.sleep(1.0)
    os._exit(1)
