"""What a command prints, when nobody reads it or there is no room for it."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import IO, TextIO

import click
import pytest

from jobs.cli import main
from jobs.command import Context, command, print_part
from jobs.errors import InputError
from jobs.live import showing
from jobs.progress import Meter
from jobs.streams import unprinted
from tests.jobs.made_job import start, write_manifest

log = logging.getLogger("jobs.somewhere")

LONG = "a line of the result " * 1_000


def _broken_pipe() -> TextIO:
    end, start = os.pipe()
    os.close(end)
    return os.fdopen(start, "w", encoding="utf-8")


def _full_disk() -> TextIO:
    return open("/dev/full", "w", encoding="utf-8")


BROKEN = pytest.mark.parametrize("opened", [_broken_pipe, _full_disk])


@pytest.fixture
def broken(opened: Callable[[], TextIO]) -> TextIO:
    return opened()  # not closed: that fails, unless what it holds was dropped


def _code(work: click.Command) -> object:
    with pytest.raises(SystemExit) as ended:
        work.main([], standalone_mode=True)
    return ended.value.code


@BROKEN
@pytest.mark.parametrize("terminal", [False, True])
def test_a_run_ends_when_nobody_reads_its_log(broken: TextIO, terminal: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[int] = []

    @click.command()
    @command
    def work(context: Context) -> int:
        meter = Meter(100)
        with showing(meter, context.console) as changed:
            for shard in range(100):
                meter.add(done=1, failed=0, audio_seconds=1)
                meter.started -= 60
                changed([])
                log.warning("shard %d failed; %s", shard, LONG)
                done.append(shard)
        return 3

    if terminal:
        monkeypatch.setenv("TERM", "xterm")
        monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setattr(sys, "stderr", broken)
    assert _code(work) == 3
    assert len(done) == 100
    broken.close()


@BROKEN
@pytest.mark.parametrize("code", [0, 3])
def test_a_finished_job_is_called_a_failure_since_its_result_went_nowhere(
    broken: TextIO, code: int, opened: object, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    @click.command()
    @command
    def work(context: Context) -> int:
        for _ in range(3):
            click.echo(LONG)
        return code

    monkeypatch.setattr(sys, "stdout", broken)
    assert _code(work) == code
    assert sys.stdout is broken
    said = (
        "" if opened is _broken_pipe else "warning: not all of the result could be printed: No space left on device\n"
    )
    assert capfd.readouterr().err == said
    broken.close()


@BROKEN
def test_bad_input_that_cannot_be_told_passes_for_an_unfinished_job(
    broken: TextIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    @click.command()
    @command
    def work(context: Context) -> int:
        raise InputError("no such manifest")

    monkeypatch.setattr(sys, "stderr", broken)
    assert _code(work) == 2
    broken.close()


@BROKEN
def test_who_follows_a_log_for_nobody_does_not_learn_so(broken: TextIO, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[OSError | None] = []

    @click.command()
    @command
    def work(context: Context) -> int:
        seen.append(unprinted())
        with pytest.raises(OSError, match=r"Broken pipe|No space left"):
            print_part("a part")
        return 0

    monkeypatch.setattr(sys, "stdout", broken)
    assert _code(work) == 0
    assert seen == [None]
    broken.close()


def test_a_job_is_watched_for_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ledger = start(str(tmp_path / "out"), write_manifest(tmp_path / "manifest.parquet"))
    waits: list[float] = []
    monkeypatch.setattr("jobs.commands.status.time", SimpleNamespace(sleep=lambda seconds: waits.append(seconds)))
    with ledger.lease(), _broken_pipe() as pipe:
        monkeypatch.setattr(sys, "stdout", pipe)
        with pytest.raises(SystemExit) as ended:
            main(["status", ledger.folder.url, "--watch"])
    assert (ended.value.code, waits) == (0, [])


def test_python_gives_an_exit_code_of_its_own_for_what_it_could_not_flush(tmp_path: Path) -> None:
    start(str(tmp_path / "out"), write_manifest(tmp_path / "manifest.parquet"))
    words = [sys.executable, "-c", "from jobs.cli import main; main()", "status", str(tmp_path / "out")]

    def ended(stdout: IO[str], stderr: IO[str] | int) -> subprocess.CompletedProcess[str]:
        return subprocess.run([*words, "--watch"], stdout=stdout, stderr=stderr, text=True, timeout=60)

    with _broken_pipe() as pipe:
        read = ended(pipe, subprocess.PIPE)
    assert (read.returncode, read.stderr) == (0, "")
    with _full_disk() as disk:
        assert ended(disk, disk).returncode == 0


def test_a_terminal_obeys_an_error(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")

    @click.command()
    @command
    def work(context: Context) -> int:
        log.warning("shard 1: \x1b]0;owned\x07\x9b31m: \r%s", "it is tried again")
        raise InputError("a\x1b[2Jb:\n  was 1,\tis 2")

    assert _code(work) == 2
    said, *error = capsys.readouterr().err.splitlines()
    assert said == r"warning: shard 1: \x1b]0;owned\x07\x9b31m: \x0dit is tried again"
    assert error == [r"error: a\x1b[2Jb:", "  was 1,\tis 2"]
