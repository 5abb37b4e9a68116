"""What the documentation tells its readers to run, runs.

Every ```bash and ```python block of README.md and docs/ is run, in order, in one folder and one Python namespace per
document. A comment ``<!-- not run: why -->`` above a block leaves it out. Weights that would have to be downloaded are
replaced by random ones; the folder has clips under the names that the texts use.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import pytest

from jobs import tables, voices
from jobs.manifest import FAILURE_COLUMNS, FORBIDDEN
from jobs.records import CommitRecord

ROOT = Path(__file__).parents[1]
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^```(bash|python)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LEFT_OUT = re.compile(r"<!-- not run: \S.* -->\n$")
WEIGHTS = "ResembleAI/chatterbox"
LINK = re.compile(r"\[[^\]]*\]\((?!https?:)([^)#]+)[^)]*\)")


@dataclass(frozen=True)
class Block:
    place: str  # document and line
    language: str
    code: str


def blocks(document: Path) -> list[Block]:
    text = document.read_text(encoding="utf-8")
    found = []
    for match in BLOCK.finditer(text):
        if not LEFT_OUT.search(text[: match.start()]):
            line = text.count("\n", 0, match.start()) + 1
            found.append(Block(f"{document.name}:{line}", match[1], match[2].replace(WEIGHTS, "random:tiny")))
    return found


@pytest.fixture(name="folder")
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(ROOT / "demo/voices", tmp_path / "my_clips")
    shutil.copy(ROOT / "demo/voices/en-us.wav", tmp_path / "reference.wav")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_reader_is_told_something_that_does_not_run(document: Path, folder: Path) -> None:
    names: dict[str, Any] = {}
    for block in blocks(document):
        if block.language == "python":
            exec(compile(block.code, block.place, "exec"), names)
        else:
            run_bash(block, folder)


def run_bash(block: Block, folder: Path) -> None:
    # The commands of this environment, whether or not it is activated.
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    result = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", block.code],
        cwd=folder, env=environment, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=300,
    )  # fmt: skip
    assert result.returncode == 0, f"{block.place}\n{result.stdout}\n{result.stderr}"


def test_nothing_is_run() -> None:
    """The pattern above still finds blocks of both kinds."""
    found = [block for document in DOCUMENTS for block in blocks(document)]
    assert {block.language for block in found} == {"bash", "python"}
    assert any("s3gen synth" in block.code for block in found)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_link_leads_nowhere(document: Path) -> None:
    for target in LINK.findall(document.read_text(encoding="utf-8")):
        assert (document.parent / target).exists(), f"{document.name} links to {target}"


CODE = re.compile(r"""(?:_Problem|Trouble|Rejected)\(\s*"(\w+)"|VoiceFailure\(shown_id, shown_path, "(\w+)\"""")


def test_file_has_a_column_or_a_code_that_the_documentation_lacks() -> None:
    # null_ and bad_ are completed by the column's name.
    codes = {"null_id", "null_voice_id", "null_tokens", "bad_id", "bad_voice_id"}
    for path in (ROOT / "jobs").glob("*.py"):
        codes |= {first or second for first, second in CODE.findall(path.read_text(encoding="utf-8"))}
    assert {"silent", "not_finite", "duplicate_voice_id", "synthesis_error"} <= codes
    columns = {*voices.SCHEMA.names, *tables.INDEX_SCHEMA.names, *tables.DUPLICATES_COLUMNS}
    columns |= {*FORBIDDEN, *FAILURE_COLUMNS, *(field.name for field in fields(CommitRecord))}
    text = (ROOT / "docs/formats.md").read_text(encoding="utf-8")
    assert not {name for name in codes | columns if f"`{name}`" not in text}
