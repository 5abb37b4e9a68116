"""The Dockerfile, read, since no image is built here: what it names is there, and it installs as the README says."""

from __future__ import annotations

import re
import tomllib
from fnmatch import fnmatch
from pathlib import Path

ROOT = Path(__file__).parents[1]
LINES = re.sub(r"^#.*\n", "", (ROOT / "Dockerfile").read_text(), flags=re.MULTILINE).replace("\\\n", "")
INSTRUCTIONS = [tuple(line.split(maxsplit=1)) for line in LINES.splitlines() if line.strip()]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def given(instruction: str) -> list[str]:
    return [value for name, value in INSTRUCTIONS if name == instruction]


def copied() -> list[str]:
    return [source for value in given("COPY") for source in value.split()[:-1]]


def test_image_lacks_a_file_that_is_not_in_the_repository_or_is_kept_from_it() -> None:
    let_in = [line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    for source in copied():
        assert (ROOT / source).exists(), source
    assert sorted(let_in) == sorted(copied())


def test_package_is_installed_without_one_of_its_folders() -> None:
    packages = PROJECT["tool"]["setuptools"]["packages"]["find"]["include"]
    tops = {package.partition(".")[0] for package in packages}
    named = {PROJECT["project"]["readme"], *PROJECT["project"]["license-files"], "pyproject.toml", "constraints.txt"}
    assert sorted({*tops, *named}) == sorted(copied())


def test_package_below_a_package_is_left_out() -> None:
    patterns = PROJECT["tool"]["setuptools"]["packages"]["find"]["include"]
    inner = {".".join(path.parent.relative_to(ROOT).parts) for path in ROOT.glob("jobs/**/__init__.py")}
    folders = {".".join(path.parent.relative_to(ROOT).parts) for path in ROOT.glob("jobs/**/*.py")}
    assert inner == folders
    assert len(inner) > 10
    assert not [name for name in inner if not any(fnmatch(name, pattern) for pattern in patterns)]


def test_image_is_installed_in_another_way_than_a_reader_of_the_readme() -> None:
    (line,) = [run for run in given("RUN") if "pip install" in run]
    words = line.removeprefix("python -m ").replace(" --no-cache-dir", "").removesuffix(" boto3")
    assert f"`{words}`" in (ROOT / "README.md").read_text()
    assert re.search(r"^boto3==", (ROOT / "constraints.txt").read_text(), re.MULTILINE)


def test_python_of_the_image_is_one_that_the_package_refuses() -> None:
    (image,) = given("FROM")
    python = re.fullmatch(r"python:(3\.\d+)-slim-\w+", image)
    assert python is not None
    assert PROJECT["project"]["requires-python"] == f">={python[1]}"


def test_image_starts_a_command_that_it_has_not() -> None:
    (command,) = given("CMD")
    assert command.split('"')[1] in PROJECT["project"]["scripts"]


def test_program_is_installed_and_nobody_says_what_for() -> None:
    (line,) = [run for run in given("RUN") if "apt-get install" in run]
    programs = re.search(r"--no-install-recommends ([\w -]+?) +&&", line)
    assert programs is not None
    comments = re.findall(r"^# (.*)", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    assert not [name for name in programs[1].split() if not re.search(rf"\b{name}\b", " ".join(comments))]


def test_image_cannot_read_a_checkpoint_that_the_library_can() -> None:
    (line,) = [run for run in given("RUN") if "pip install" in run]
    assert '".[cosyvoice]"' in line
    assert "cosyvoice" in PROJECT["project"]["optional-dependencies"]
