"""`s3gen` in a process of its own, with a folder of its own for temporary files and one for what it says."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from tests.chaos.processes import Process, below

COMMAND = "from jobs.cli import main; main()"


class Driver:
    """One run of the command.

    Args:
        folder: empty; its path is short, as it holds Ray's sockets.
        environment: beside this process's own.
        command: Python code in the place of the command line.
    """

    def __init__(
        self, folder: Path, arguments: list[str], environment: Mapping[str, str], command: str = COMMAND
    ) -> None:
        self.scratch = folder / "t"
        self.scratch.mkdir(parents=True)
        self._log = folder / "log"
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-c", command, *arguments],
                env={**os.environ, **environment, "TMPDIR": str(self.scratch)},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        self.began = time.monotonic()

    @property
    def said(self) -> str:
        """All of its output by now."""
        return self._log.read_text(errors="replace")

    @property
    def running(self) -> bool:
        """Whether it has not ended yet."""
        return self.process.poll() is None

    def family(self) -> list[Process]:
        """The processes below it, while it lives."""
        return below(self.process.pid)

    def send(self, number: signal.Signals) -> None:
        """A signal to the driver alone."""
        self.process.send_signal(number)

    def wait(self, seconds: float) -> int | None:
        """Its exit code, negative for a signal; None when it has not ended in time."""
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            return None

    def end(self) -> None:
        """Kills it, should it still run."""
        if self.running:
            self.process.kill()
            self.process.wait()
