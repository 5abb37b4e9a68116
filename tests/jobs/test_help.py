"""Help that teaches: what the commands say of themselves, and what becomes of a slip in a command line."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import click
import pytest

from jobs import cli as group
from jobs.cli import COMMANDS, main
from tests.jobs.command import cli

EXAMPLE = re.compile(r"^ +s3gen (?P<line>\S.*?)(?: {2,}.*)?$", re.MULTILINE)
WITHOUT_EXIT_CODES = {"completion"}


def examples(text: str) -> list[str]:
    """The command lines of a help text, without `s3gen` and without what a shell makes of them."""
    return [match["line"].partition(" > ")[0] for match in EXAMPLE.finditer(text.partition("Options:")[0])]


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_s_help_has_no_example_or_one_that_it_refuses(name: str) -> None:
    result = cli(name, "--help")
    assert result.exit_code == 0
    lines = [shlex.split(line) for line in examples(result.output) if not line.startswith("[")]
    assert lines, result.output
    command = main.get_command(click.Context(main), name)
    assert command is not None
    for words in lines:
        assert words[0] == name
        command.make_context(name, words[1:])  # raises for what the command does not know


@pytest.mark.parametrize("name", sorted(set(COMMANDS) - WITHOUT_EXIT_CODES))
def test_a_script_has_to_guess_what_an_exit_code_means(name: str) -> None:
    text = cli(name, "--help").output.partition("Options:")[0]
    codes = re.findall(r"^ +(\d)  \S", text.partition("Exit codes:")[2], re.MULTILINE)
    assert codes[0] == "0"
    assert "2" in codes
    assert codes == sorted(codes)


def test_the_group_s_own_examples_do_not_run() -> None:
    lines = [shlex.split(line) for line in examples(cli("--help").output) if not line.startswith(("[", "COMMAND"))]
    assert [words[0] for words in lines][:2] == ["voices", "plan"]
    for words in lines:
        command = main.get_command(click.Context(main), words[0])
        assert command is not None
        command.make_context(words[0], words[1:])


def test_commands_are_listed_by_the_alphabet_or_cut_short() -> None:
    listed = cli("--help").output.partition("Commands:\n")[2]
    assert re.findall(r"^  (\S+)", listed, re.MULTILINE) == list(COMMANDS)
    assert not re.findall(r"^.*\.\.\.$", listed, re.MULTILINE)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["sinth", "job.yaml"], "No such command 'sinth'; did you mean synth?"),
        (["frobnicate"], f"No such command 'frobnicate'; the commands are {', '.join(COMMANDS)}"),
        (["no\x1b[31m"], r"'no\x1b[31m'"),
        (["plan", "job.yaml", "--limt", "3"], "--limit"),
        (["plan", "job.yaml", "--limit", "many"], "'many' is not a valid integer"),
        (["plan"], "Missing argument 'CONFIG'"),
        (["--debugg", "plan"], "--debug"),
        ([], "Usage: s3gen [OPTIONS] COMMAND"),
    ],
)
def test_a_slip_is_answered_without_a_way_out(words: list[str], message: str) -> None:
    result = cli(*words)
    assert result.exit_code == 2
    assert message in result.output
    assert "Traceback" not in result.output
    assert "\x1b" not in result.output


def test_the_configuration_is_given_for_the_output(tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_text("model: random:tiny")
    result = cli("status", tmp_path / "job.yaml")
    assert result.exit_code == 2
    assert "is a file; give the folder that the job writes to" in result.stderr


@pytest.mark.parametrize("words", [["--debug", "status", "nowhere"], ["status", "nowhere", "--debug"]])
def test_debug_works_in_one_place_only(words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = cli(*words)
    assert result.exit_code == 2
    assert "Traceback" in result.stderr
    assert result.stderr.splitlines()[-1].startswith("error: ")


@pytest.mark.parametrize("error", [ImportError("no libfoo.so"), OSError("torn library")])
def test_a_broken_installation_shows_a_traceback_or_hides_the_other_commands(
    monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    real = group.import_module

    def broken(name: str) -> Any:
        if name == "jobs.commands.plan":
            raise error
        return real(name)

    monkeypatch.setattr(group, "import_module", broken)
    plain, debug = cli("plan", "job.yaml", "--limit", "3"), cli("plan", "job.yaml", "--debug")
    assert (plain.exit_code, debug.exit_code) == (1, 1)
    assert plain.stderr.startswith(f"error: plan cannot be loaded: {type(error).__name__}: {error};")
    assert "Traceback" not in plain.stderr
    assert "Traceback" in debug.stderr
    listed = cli("--help")
    assert listed.exit_code == 0
    assert "cannot be loaded" in listed.output
    assert "Make a voice table" in listed.output


def test_an_import_that_fails_inside_a_command_shows_a_traceback() -> None:
    code = "import sys; sys.modules['torch'] = None; from jobs.cli import main; main(['plan', 'configs/local.yaml'])"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert run.returncode == 1
    assert run.stderr.startswith("error: ")
    assert "torch" in run.stderr
    assert "Traceback" not in run.stderr


def test_a_report_of_a_fault_lacks_the_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    cards = [
        SimpleNamespace(name=name, total_memory=size << 30, major=9, minor=0) for name, size in (("A", 80), ("B", 24))
    ]
    monkeypatch.setattr(torch.version, "cuda", "12.8")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_properties", cards.__getitem__)
    lines = cli("--version").output.splitlines()
    assert [line.split()[0] for line in lines] == ["s3gen", "python", "torch", "CUDA", "GPU", "GPU", "ray"]
    assert lines[2:6] == [
        f"torch {torch.__version__}",
        "CUDA 12.8",
        "GPU 0: A, 80 GiB, compute capability 9.0",
        "GPU 1: B, 24 GiB, compute capability 9.0",
    ]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert "CUDA 12.8: torch finds no GPU" in cli("--version").output.splitlines()


def test_the_version_needs_what_is_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    lines = cli("--version").output.splitlines()
    assert lines[0].startswith("s3gen ")
    assert re.match(r"torch \S+ cannot be imported: ModuleNotFoundError", lines[2])
    assert lines[-1].startswith("ray ")
