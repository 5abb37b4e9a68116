"""What the documentation tells its readers to run, runs.

Every ```bash and ```python block of README.md and docs/ is run, in order, in one folder and one Python namespace per
document. A comment ``<!-- not run: why -->`` above a block leaves it out, ``<!-- exits with 3 -->`` says what its last
command ends with. Weights that would have to be downloaded are
replaced by random ones, the head of a cluster by one on this machine; the folder has clips under the names that the
texts use, and for the documents that a reader comes to from the README the job that it makes.
"""

from __future__ import annotations

import ast
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

from jobs.ledger import tables
from jobs.ledger.records import CommitRecord
from jobs.manifest.columns import FAILURE_COLUMNS, FORBIDDEN
from jobs.voices import table as voices
from s3gen import S3GenModel
from tests.jobs.command import cli
from tests.jobs.inputs import build_table, good_rows, write_clips, write_config, write_manifest
from tests.jobs.ray_session import local_ray  # noqa: F401 - a fixture
from tests.warm_commands import run_script

ROOT = Path(__file__).parents[1]
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^```(bash|python)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LEFT_OUT = re.compile(r"<!-- not run: \S.* -->\n$")
EXIT_CODE = re.compile(r"<!-- exits with (\d) -->\n$")
WEIGHTS = "ResembleAI/chatterbox"
HEAD = "http://HEAD:8265"
BEGINS_WITHOUT_A_JOB = "README.md"
SCRIPT_SECONDS = 300.0
LINK = re.compile(r"\[[^\]]*\]\((?!https?:)([^)#]*)#?([^)]*)\)")


@dataclass(frozen=True)
class Block:
    place: str  # document and line
    language: str
    code: str
    exit_code: int


def blocks(document: Path) -> list[Block]:
    text = document.read_text(encoding="utf-8")
    found = []
    for match in BLOCK.finditer(text):
        before = text[: match.start()]
        if not LEFT_OUT.search(before):
            place, code = f"{document.name}:{before.count(chr(10)) + 1}", match[2].replace(WEIGHTS, "random:tiny")
            exits = EXIT_CODE.search(before)
            found.append(Block(place, match[1], code, int(exits[1]) if exits else 0))
    return found


@pytest.fixture(scope="module", name="finished")
def _finished(local_ray: None, tiny_model: S3GenModel, tmp_path_factory: pytest.TempPathFactory) -> Path:  # noqa: F811
    """What a reader of the README has: a configuration, its inputs, its output."""
    folder = tmp_path_factory.mktemp("finished")
    write_clips(folder / "clips")
    build_table(tiny_model, folder / "clips", folder / "my_voices.parquet")
    write_manifest(folder / "my_manifest.parquet", good_rows(3))
    names = {"voices": "my_voices.parquet", "manifest": "my_manifest.parquet", "output": "my_speech"}
    write_config(folder / "my_job.yaml", **names)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert cli("synth", "my_job.yaml").exit_code == 0
    clips_of_the_texts(folder)
    return folder


def clips_of_the_texts(folder: Path) -> None:
    shutil.copytree(ROOT / "demo/voices", folder / "my_clips")
    shutil.copy(ROOT / "demo/voices/en-us.wav", folder / "reference.wav")


@pytest.fixture(name="place")
def _place() -> Iterator[Path]:
    """A folder with a short path."""
    with TemporaryDirectory() as folder:
        yield Path(folder)


@pytest.mark.cluster
@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_reader_is_told_something_that_does_not_run(
    document: Path, tmp_path: Path, place: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = blocks(document)
    folder = tmp_path
    if document.name == BEGINS_WITHOUT_A_JOB:
        clips_of_the_texts(folder)
    elif found:
        folder = request.getfixturevalue("finished")
    monkeypatch.chdir(folder)
    names: dict[str, Any] = {}
    for block in found:
        code = block.code
        if HEAD in code:
            code = code.replace(HEAD, request.getfixturevalue("ray_head"))
        if block.language == "python":
            exec(compile(code, block.place, "exec"), names)
        else:
            request.getfixturevalue("local_ray")
            result = run_script(code, folder, place, SCRIPT_SECONDS)
            assert result.returncode == block.exit_code, f"{block.place}\n{result.stdout}"


def test_nothing_is_run() -> None:
    """The pattern above still finds blocks of both kinds."""
    found = [block for document in DOCUMENTS for block in blocks(document)]
    assert {block.language for block in found} == {"bash", "python"}
    assert any("s3gen synth" in block.code for block in found)


def test_reader_appends_to_the_table_of_a_job_that_refuses_it_from_then_on() -> None:
    appended = [
        (block, out[1])
        for document in DOCUMENTS
        for block in blocks(document)
        for line in block.code.splitlines()
        if "--append" in line and (out := re.search(r"--out (\S+)", line))
    ]
    assert appended
    for block, out in appended:
        assert re.search(rf"^cp \S+ {re.escape(out)}$", block.code, re.MULTILINE), f"{block.place}: {out} is no copy"


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_link_leads_nowhere(document: Path) -> None:
    for name, anchor in LINK.findall(document.read_text(encoding="utf-8")):
        target = document.parent / name if name else document
        assert target.exists(), f"{document.name} links to {name}"
        assert not anchor or anchor in anchors(target), f"{document.name} links to {name}#{anchor}"


def anchors(document: Path) -> set[str]:
    """Of its headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", document.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


CODE = re.compile(r"""(?:Problem|Trouble|Rejected)\(\s*"(\w+)"|VoiceFailure\(shown_id, shown_path, "(\w+)\"""")


def test_file_has_a_column_or_a_code_that_the_documentation_lacks() -> None:
    # null_ and bad_ are completed by the column's name.
    codes = {"null_id", "null_voice_id", "null_tokens", "bad_id", "bad_voice_id"}
    for path in ROOT.glob("jobs/**/*.py"):
        codes |= {first or second for first, second in CODE.findall(path.read_text(encoding="utf-8"))}
    assert {"silent", "not_finite", "duplicate_voice_id", "synthesis_error"} <= codes
    columns = {*voices.SCHEMA.names, *tables.INDEX_SCHEMA.names, *tables.DUPLICATES_COLUMNS}
    columns |= {*FORBIDDEN, *FAILURE_COLUMNS, *(field.name for field in fields(CommitRecord))}
    text = (ROOT / "docs/formats.md").read_text(encoding="utf-8")
    assert not {name for name in codes | columns if f"`{name}`" not in text}


MESSAGE = re.compile(r"\*\*`([^`]+)`\*\*")


def test_message_is_explained_that_nobody_prints() -> None:
    """The texts of the sources, with a mark where a value goes."""
    said = "\n".join(text for path in [*ROOT.glob("jobs/**/*.py"), *ROOT.glob("s3gen/*.py")] for text in texts(path))
    messages = MESSAGE.findall((ROOT / "docs/troubleshooting.md").read_text(encoding="utf-8"))
    assert len(messages) > 20
    lost = [part for message in messages for part in message.split("...") if part.strip(" ;:()'") not in said]
    assert not lost


def texts(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value
        elif isinstance(node, ast.JoinedStr):
            yield "".join(part.value if isinstance(part, ast.Constant) else "\0" for part in node.values)
