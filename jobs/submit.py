"""A job through Ray's job API: packed, sent to a cluster's head, followed to its exit code.

What is sent (the configuration, the entrypoint, the environment) can be read by everybody who reaches the cluster's
dashboard. So no credentials are: the cluster has its own, in the environment in which it was started, or in a file on
its machines.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import shlex
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import yaml
from ray.exceptions import RayError
from ray.job_submission import JobStatus, JobSubmissionClient

from jobs.config.config import JobConfig
from jobs.errors import InputError, JobError, Unfinished
from jobs.head import connect

CONFIG_NAME = "job.yaml"
PATHS = ("model", "manifest", "voices", "output")
# `s3gen synth` commits what it can after SIGTERM, for up to 28 s; Ray would kill it after 3.
ENVIRONMENT = {"RAY_JOB_STOP_WAIT_TIME_S": "30"}
LEFT_HERE = [".git", ".venv"]  # of a working directory, beside what its .gitignore names
EXIT_CODES = (0, 1, 2, 3)  # of `s3gen synth`
NO_SUCH_COMMAND = 127  # of the shell that starts it
POLL_SECONDS = 5.0  # between two looks at a whole log, where it cannot be followed
QUIET_SECONDS = 60.0  # without a line of the log: time to ask whether the job is still there
PATIENCE_SECONDS = 300.0  # with a head that no longer answers
SHOWN_REASON = 2_000  # characters

Failed = (OSError, RuntimeError, RayError, aiohttp.ClientError)  # what Ray's client raises of a head in trouble


@dataclass(frozen=True, kw_only=True, slots=True)
class SubmitOrder:
    """What is to be sent.

    Attributes:
        address: of the head's dashboard, http://HEAD:8265.
        limit: of ``s3gen synth --limit``.
        working_dir: a folder whose content travels along, such as a clone of this project.
        storage_options: absolute path of a file with storage options, on the machines of the cluster.
        environment: of the command on the cluster, beside what it needs in any case.
    """

    config: JobConfig
    address: str
    limit: int | None = None
    working_dir: str | None = None
    storage_options: str | None = None
    environment: Mapping[str, str] = field(default_factory=dict)


def submit(order: SubmitOrder) -> Submitted:
    """Sends a job to a cluster.

    Raises:
        InputError: there is no such cluster, or it refuses the job; nothing runs.
        Unfinished: interrupted; the cluster may have the job.
    """
    _refuse_secrets(order)
    entrypoint, output = _entrypoint(order), _output(order)
    job_id = f"s3gen-{secrets.token_hex(6)}"
    with tempfile.TemporaryDirectory(prefix="s3gen-submit-") as folder:
        pack(order, Path(folder))
        sent = Submitted(connect(order.address), job_id, order.address, output)
        variables = {**ENVIRONMENT, **order.environment}
        sent.send(entrypoint, {"working_dir": folder, "excludes": LEFT_HERE, "env_vars": variables})
    return sent


def pack(order: SubmitOrder, folder: Path) -> None:
    """Fills an empty folder with what travels: the configuration, beside links to what the working directory has.

    Raises:
        InputError: the working directory is none.
    """
    if order.working_dir is not None:
        try:
            entries = sorted(Path(order.working_dir).resolve(strict=True).iterdir())
        except OSError as error:
            raise InputError(f"--working-dir {order.working_dir}: no folder to read: {error.strerror}") from None
        for entry in entries:
            if entry.name != CONFIG_NAME:
                (folder / entry.name).symlink_to(entry)
    values = {**order.config.frozen(), "ray_address": "auto"}
    text = yaml.safe_dump(values, sort_keys=False, allow_unicode=True)
    (folder / CONFIG_NAME).write_text(text, encoding="utf-8")


def local_paths(config: JobConfig) -> list[str]:
    """The keys whose values are paths and no URLs, which every machine of a cluster has to have."""
    return [key for key in PATHS if os.path.isabs(getattr(config, key))]


def _refuse_secrets(order: SubmitOrder) -> None:
    if order.config.storage_options:
        raise InputError(
            "storage_options: are not sent, since whoever reaches the cluster's dashboard could read them; set AWS_... "
            "where the cluster is started (ray start), or put them into a file on its machines and name that file "
            "with --storage-options"
        )
    if order.storage_options is not None and not os.path.isabs(order.storage_options):
        raise InputError(
            f"--storage-options {order.storage_options}: is not sent, but read on the cluster's head; give the "
            "absolute path that it has there"
        )


def _output(order: SubmitOrder) -> str:
    if order.limit is None:
        return order.config.output
    from jobs.trial import trial_output

    return trial_output(order.config.output, order.limit)


def _entrypoint(order: SubmitOrder) -> str:
    words = ["s3gen", "synth", CONFIG_NAME]
    if order.limit is not None:
        words += ["--limit", str(order.limit)]
    if order.storage_options is not None:
        words += ["--storage-options", order.storage_options]
    return shlex.join(words)


class Submitted:
    """A job that a cluster takes, or has taken.

    Attributes:
        id: of the submission, as ``ray job`` knows it.
    """

    def __init__(self, client: JobSubmissionClient, job_id: str, address: str, output: str) -> None:
        self._client, self.id, self._address, self._output = client, job_id, address, output

    def send(self, entrypoint: str, environment: dict[str, Any]) -> None:
        """Uploads the package and starts the job.

        Raises:
            InputError: the cluster refuses it.
            Unfinished: interrupted; the cluster may have it.
        """
        try:
            self._client.submit_job(entrypoint=entrypoint, submission_id=self.id, runtime_env=environment)
        except KeyboardInterrupt:
            raise Unfinished(
                f"interrupted before the cluster had answered; it may run {self.id} all the same\n{self.hints()}"
            ) from None
        except (*Failed, ValueError) as error:
            if not self._is_there():  # it may have been the answer that was lost
                raise InputError(f"--address {self._address}: the cluster did not take the job: {error}") from None

    def _is_there(self) -> bool:
        try:
            self._client.get_job_info(self.id)
        except Failed:
            return False
        return True

    def hints(self) -> str:
        """How to see, follow and stop it from elsewhere."""
        at = f"--address {shlex.quote(self._address)}"
        return "\n".join(
            [
                f"see it:    s3gen status {shlex.quote(self._output)}",
                f"follow it: ray job logs {at} --follow {self.id}",
                f"stop it:   ray job stop {at} {self.id}",
            ]
        )

    def follow(self, write: Callable[[str], None]) -> int:
        """Hands on the job's log until it ends; the exit code of its command.

        Raises:
            InputError: the cluster has no ``s3gen``.
            Unfinished: interrupted, or nobody reads what is written, or the head stopped answering; the job goes on
                without this process.
            JobError: Ray stopped the job, or could not start it.
        """
        try:
            return self._exit_code(self._followed(write))
        except (KeyboardInterrupt, _Unseen):
            raise Unfinished(f"{self.id} goes on without this command\n{self.hints()}") from None

    def _followed(self, write: Callable[[str], None]) -> Any:
        """What Ray knows of the job, once that is over."""
        log = _Log(write)
        lost_at: float | None = None
        while True:
            is_tailed = self._is_tailed(log)
            try:
                info = self._client.get_job_info(self.id)
            except Failed as error:
                lost_at = lost_at or time.monotonic()
                if time.monotonic() - lost_at > PATIENCE_SECONDS:
                    raise Unfinished(
                        f"{self._address} does not answer any more ({error}); {self.id} may be going on\n{self.hints()}"
                    ) from None
            else:
                lost_at = None
                if info.status.is_terminal():
                    self._read(log, "the rest of the log cannot be read: {}\n")
                    return info
                if not is_tailed:
                    self._read(log)
            time.sleep(1.0 if is_tailed else POLL_SECONDS)

    def _is_tailed(self, log: _Log) -> bool:
        """Hands on the log as it grows; whether that ended in order. Some proxies let no web socket pass."""
        try:
            asyncio.run(self._tail(log))
        except Failed:
            return False
        return True

    def _read(self, log: _Log, complaint: str = "") -> None:
        """Hands on what is new in the whole log, which the head may no longer have: its machine may be gone."""
        try:
            text = self._client.get_job_logs(self.id)
        except Failed as error:
            if complaint:
                log.say(complaint.format(error))
        else:
            log.add(text)

    async def _tail(self, log: _Log) -> None:
        """The log as it grows, until the head ends it or the job is over."""
        log.rewind()
        lines = self._client.tail_job_logs(self.id)
        while True:
            chunk = asyncio.ensure_future(anext(lines, None))
            # A head that is gone without a word would be waited for without end.
            while not (await asyncio.wait({chunk}, timeout=QUIET_SECONDS))[0]:
                status = await asyncio.to_thread(self._client.get_job_status, self.id)
                if status.is_terminal():
                    chunk.cancel()
                    return
            text = chunk.result()
            if text is None:
                return
            log.append(text)

    def _exit_code(self, info: Any) -> int:
        code, reason = info.driver_exit_code, str(info.message or "")[:SHOWN_REASON]
        if info.status == JobStatus.STOPPED:
            raise JobError(f"{self.id} was stopped; what is committed stays, the same command goes on")
        if code is None:
            raise JobError(f"{self.id}: Ray could not run it: {reason}")
        if code == NO_SUCH_COMMAND:
            raise InputError(
                f"{self.id}: the cluster's head has no command s3gen; install this package on all its machines, into "
                "the environment in which ray start is run, with its commands on the PATH"
            )
        if code not in EXIT_CODES:
            raise JobError(f"{self.id}: s3gen synth was ended from outside, with exit code {code}")
        return int(code)


class _Unseen(Exception):
    """The log cannot be shown: its reader is gone, or the disk is full."""


class _Log:
    """What was shown of a log that is read from its beginning again after each lost connection."""

    def __init__(self, write: Callable[[str], None]) -> None:
        self._write = write
        self._shown = self._read = 0  # characters

    def rewind(self) -> None:
        self._read = 0

    def append(self, text: str) -> None:
        self._read += len(text)
        new = self._read - self._shown
        if new > 0:
            self.say(text[-new:])
            self._shown = self._read

    def add(self, text: str) -> None:
        """The whole of it."""
        self.rewind()
        self.append(text)

    def say(self, text: str) -> None:
        """Something that is no part of it."""
        try:
            self._write(text)
        except OSError as error:  # not to be taken for the head's
            raise _Unseen from error
