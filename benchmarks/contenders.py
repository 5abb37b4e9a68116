"""Who is measured: this package's model in batches, and the reference in processes of its own."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.machine import forget_peak, peak_bytes
from benchmarks.roofline import wait_for
from benchmarks.utterances import Utterance
from parity.exchange import Plan, reference_command, reference_environment
from s3gen import S3GenModel, Solver


@dataclass(frozen=True, kw_only=True, slots=True)
class Cost:
    """Of making some audio: seconds by the clock, seconds of all threads on CPUs (None: unknown), peak memory."""

    wall: float
    cpu: float | None
    peak_bytes: int


class Ours:
    """This package's model on batches of utterances, one after another, the waves brought to the host."""

    def __init__(
        self,
        model: S3GenModel,
        utterances: list[Utterance],
        batches: Sequence[Sequence[int]],
        solver: Solver | None = None,
    ) -> None:
        self.utterances = utterances
        self._solver = solver
        self.batches = batches
        self._model = model

    def measure(self, steps: int | None = None) -> Cost:
        """Speak all of them once, in so many solver steps instead of the model's own number."""
        device = self._model.device
        forget_peak(device)
        wait_for(device)
        begun, cpu_begun = time.perf_counter(), time.process_time()
        made = [self.speak(batch, steps) for batch in self.batches]
        wait_for(device)
        wall, cpu = time.perf_counter() - begun, time.process_time() - cpu_begun
        _check_samples("this package", sum(len(wave) for wave in made), self.utterances)
        return Cost(wall=wall, cpu=cpu, peak_bytes=peak_bytes(device))

    def speak(self, batch: Sequence[int], steps: int | None = None) -> torch.Tensor:
        """One batch's waves end to end, in host memory; on CUDA they are there once the device has been waited for."""
        rows = [self.utterances[place] for place in batch]
        waves = self._model.synthesize(
            [row.tokens for row in rows],
            [row.voice for row in rows],
            list(batch),
            n_cfm_timesteps=steps,
            solver=self._solver,
        )
        # To pinned memory and without waiting, so that the next batch is queued while this one is made.
        return torch.cat(waves).to("cpu", non_blocking=True)


@dataclass(frozen=True, kw_only=True, slots=True)
class Reference:
    """Where the reference can be imported: an interpreter, and a folder of packages besides its own."""

    python: Path
    packages: Path | None = None

    @classmethod
    def from_wheels(cls, wheels: Path, folder: Path) -> Reference:
        """This interpreter with the wheels of a folder, installed into another one without any network.

        What the wheels lack is taken from this interpreter's own packages, above all its torch for CUDA; so their
        own demands, which name other versions of it, are not followed.

        Raises:
            ValueError: there are no wheels.
            RuntimeError: they cannot be installed.
        """
        found = sorted(str(wheel) for wheel in wheels.glob("*.whl"))
        if not found:
            raise ValueError(f"there are no wheels in {wheels}; docs/benchmarks.md says how to fetch them")
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--target"]
        done = subprocess.run([*command, str(folder), *found], capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"the wheels of {wheels} cannot be installed:\n{done.stderr[-2000:]}")
        return cls(python=Path(sys.executable), packages=folder)

    def can_import(self, module: str) -> bool:
        """Whether its processes could."""
        command = [str(self.python), "-P", "-c", f"import {module}"]
        return not subprocess.run(command, env=self.environment(1), capture_output=True).returncode

    def environment(self, threads: int) -> dict[str, str]:
        """Of its processes."""
        path = {} if self.packages is None else {"PYTHONPATH": str(self.packages)}
        return reference_environment(threads) | path


class Peer:
    """The reference in a process of its own, which waits while others are measured.

    The process says on stdout, in a line of JSON, when it is ready; then it reads a list of utterances' names per
    line and answers with ``seconds``, ``cpu_seconds``, ``samples`` and ``peak_bytes``.
    """

    def __init__(self, process: subprocess.Popen[str], errors: Path, utterances: list[Utterance]) -> None:
        self.utterances = utterances
        self._process = process
        self._errors = errors
        self.about = self._read()

    def measure(self) -> Cost:
        """Speak all of them once."""
        return self.speak(self.utterances)

    def speak(self, utterances: Sequence[Utterance]) -> Cost:
        """Speak these, which are among those of its plan.

        Raises:
            RuntimeError: it ended, with the end of what it said; or it made other samples than were asked for.
        """
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # if it has ended, there is no answer either
            self._process.stdin.write(json.dumps([utterance.name for utterance in utterances]) + "\n")
            self._process.stdin.flush()
        answer = self._read()
        _check_samples("the reference", answer["samples"], utterances)
        return Cost(wall=answer["seconds"], cpu=answer["cpu_seconds"], peak_bytes=answer["peak_bytes"])

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            said = self._errors.read_text(errors="replace")[-4000:]
            raise RuntimeError(f"the reference ended with {self._process.wait()}; it said:\n{said}")
        return json.loads(line)


@contextlib.contextmanager
def started(
    script: Path, reference: Reference, plan: Plan, utterances: list[Utterance], device: str, threads: int
) -> Iterator[Peer]:
    """A process of the reference that runs a script on a plan that lies in its folder."""
    errors = plan.folder / f"{script.stem}.log"
    with (
        errors.open("w") as log,
        subprocess.Popen(
            [*reference_command(reference.python, script, plan.folder), device],
            env=reference.environment(threads),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        ) as process,
    ):
        try:
            yield Peer(process, errors, utterances)
        finally:
            process.communicate()  # closes its stdin, at which it ends


def add_inputs(plan: Plan, utterances: Sequence[Utterance]) -> None:
    """Put them into a plan, by name."""
    for utterance in utterances:
        voice = utterance.voice
        given = {"prompt_token": voice.prompt_token, "prompt_feat": voice.prompt_feat, "embedding": voice.embedding}
        plan.inputs[utterance.name] = {"tokens": utterance.tokens, **given}


def _check_samples(who: str, made: int, utterances: Sequence[Utterance]) -> None:
    asked = sum(utterance.samples for utterance in utterances)
    if made != asked:
        raise RuntimeError(f"{who} made {made} samples where {asked} were asked for")
