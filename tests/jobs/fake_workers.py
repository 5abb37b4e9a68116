"""Workers with a fault, for the tests of the crew; Ray's processes import them from here."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import ray

from jobs.crew.pulse import Pulse
from jobs.crew.schedule import BrokenWorker


class Doubler:
    """Does its work."""

    def run(self, task: int) -> int:
        return 2 * task


class Placed:
    """Tells where it is, once as many workers as wanted have a task in hand."""

    def __init__(self, together: int, folder: str) -> None:
        self._together, self._folder = together, Path(folder)

    def run(self, task: int) -> dict[str, Any]:
        (self._folder / str(os.getpid())).touch()
        while len(list(self._folder.iterdir())) < self._together:
            time.sleep(0.02)
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        return {"pid": os.getpid(), "gpus": [int(gpu) for gpu in ray.get_gpu_ids()], "visible": visible}


class Faulty:
    """Does what the file of a task's number says, and deletes the file first when it says so only once."""

    def __init__(self, folder: str) -> None:
        self._folder = Path(folder)

    def run(self, task: int) -> tuple[int, int]:
        for once in (True, False):
            path = self._folder / f"{task}-{'once' if once else 'always'}"
            if path.exists():
                fault = path.read_text()
                if once:
                    path.unlink()
                self._fail(fault)
        return task, os.getpid()

    def _fail(self, fault: str) -> None:
        if fault == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if fault == "exit":
            os._exit(1)
        if (tell := self._folder / "tell").exists():
            tell.write_text(str(os.getpid()))
        if fault == "broken":
            raise BrokenWorker("poisoned")
        raise ValueError(f"the fault is {fault}")


class Several(Faulty):
    """The same with two tasks in hand: the file `N-hangs` makes task N hang, once; faults wait until one hangs.

    Tells with how many tasks in hand each run began.
    """

    tasks_at_once = 2

    def __init__(self, folder: str) -> None:
        super().__init__(folder)
        self._running = 0

    def run(self, task: int) -> tuple[int, int]:
        self._running += 1
        hangs = self._folder / f"{task}-hangs"
        try:
            if hangs.exists():
                hangs.rename(self._folder / "hanging")
                time.sleep(100)
            while list(self._folder.glob("*-hangs")):
                time.sleep(0.02)
            with (self._folder / f"company-of-{task}").open("a") as file:
                file.write(f"{self._running}\n")
            return super().run(task)
        finally:
            self._running -= 1


class Spread:
    """Takes two tasks at once, and holds them all until as many as given are begun; tells who had which."""

    tasks_at_once = 2

    def __init__(self, together: int, folder: str) -> None:
        self._together, self._folder = together, Path(folder)

    def run(self, task: int) -> int:
        (self._folder / str(task)).touch()
        while len(list(self._folder.iterdir())) < self._together:
            time.sleep(0.02)
        return os.getpid()


class Unstartable:
    """Fails while it is made: a number of times, or for ever."""

    def __init__(self, folder: str, times: int, fault: str) -> None:
        tries = len(list(Path(folder).iterdir()))
        (Path(folder) / f"try-{tries}-{os.getpid()}").touch()
        if tries < times:
            if fault == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            raise ValueError(f"no model here, try {tries}")

    def run(self, task: int) -> int:
        return task


class Sleeper:
    """Takes its time over each task; a file, where one is named, tells that it has begun."""

    def __init__(self, seconds: float, begun: str | None = None) -> None:
        self._seconds, self._begun = seconds, begun

    def run(self, task: int) -> int:
        if self._begun is not None:
            Path(self._begun).touch()
        time.sleep(self._seconds)
        return task


class Stuck:
    """Hangs over task 0: asleep, or stopped as a whole. As often as told; tells which process did what."""

    def __init__(self, folder: str, times: int, how: str) -> None:
        self._folder, self._times, self._how = Path(folder), times, how

    def run(self, task: int) -> int:
        tries = len(list(self._folder.iterdir()))
        if task == 0 and tries < self._times:
            (self._folder / str(os.getpid())).touch()
            if self._how == "stopped":
                os.kill(os.getpid(), signal.SIGSTOP)
            time.sleep(1_000)
        return os.getpid()


class Slow:
    """Gets on with a task until a file is there, or for so long at most; tells whether it was there."""

    def __init__(self, until: str, seconds: float) -> None:
        self._until, self._seconds, self.pulse = Path(until), seconds, Pulse()

    def run(self, task: int) -> bool:
        last = time.monotonic() + self._seconds
        while not self._until.exists() and time.monotonic() < last:
            time.sleep(0.1)
            self.pulse.beat()
        return self._until.exists()


class Environment:
    """Tells a variable of its process."""

    def run(self, task: str) -> str | None:
        return os.environ.get(task)


class Spins:
    """Tells how OpenMP's threads are to wait, and whether that was said before torch was there to read it."""

    def __init__(self) -> None:
        self._in_time = "torch" not in sys.modules

    def run(self, task: int) -> tuple[str | None, bool]:
        return os.environ.get("GOMP_SPINCOUNT"), self._in_time
