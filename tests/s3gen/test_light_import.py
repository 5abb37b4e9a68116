"""The library stays light, imports go one way, and the rates are stated once."""

from __future__ import annotations

import ast
import io
import subprocess
import sys
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
HEAVY = ("ray", "pyarrow", "fsspec", "s3fs", "soundfile")
RATES = {24_000, 16_000, 480, 960, 6_561}

BLOCKED = f"""
import sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {HEAVY!r}:
            raise ImportError("blocked: " + name)

sys.meta_path.insert(0, Blocked())
"""

SYNTHESISE = """
import torch
from s3gen import HiFTNetConfig, HiFTNetModel, S3GenConfig, S3GenModel

model = S3GenModel.from_pretrained("random:tiny")
time = torch.arange(16_000) / 16_000
ref = model.embed_ref(0.3 * torch.sin(2 * torch.pi * 220 * time), 16_000)
(wave,) = model.synthesize([torch.arange(7)], [ref], [1])
assert wave.shape == (7 * 960,), wave.shape
assert wave.isfinite().all() and wave.abs().max() > 0
model.save_pretrained(sys.argv[1])
S3GenModel.from_pretrained(sys.argv[1])
loaded = [name for name in sys.modules if name.partition(".")[0] in HEAVY or name.partition(".")[0] == "jobs"]
assert not loaded, loaded
"""


def run_python(code: str, *args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code, *args], capture_output=True, text=True, cwd=ROOT, timeout=120)


def test_model_needs_something_of_the_batch_system(tmp_path: Path) -> None:
    result = run_python(f"{BLOCKED}\nHEAVY = {HEAVY!r}\n{SYNTHESISE}", str(tmp_path))
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("name", HEAVY)
def test_the_block_itself_blocks_nothing(name: str) -> None:
    result = run_python(f"{BLOCKED}\nimport {name}")
    assert "blocked: " + name in result.stderr


@pytest.mark.parametrize("module", ["s3gen.model", "jobs.estimate.estimate"])
def test_an_import_brings_torch_s_compiler_which_takes_as_long_as_torch(module: str) -> None:
    result = run_python(f"import {module}, sys; print('torch' in sys.modules, 'torch._dynamo' in sys.modules)")
    assert result.stdout.split() == ["True", "False"], result.stderr


def sources(package: str) -> list[Path]:
    found = sorted((ROOT / package).rglob("*.py"))
    assert len(found) > 5, f"no sources of {package} under {ROOT}"
    return found


def imports(path: Path) -> Iterator[tuple[str, int]]:
    """Top-level names that a file imports, anywhere in it, with the column of the statement."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((alias.name.partition(".")[0], node.col_offset) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative imports hide which way they go"
            yield str(node.module).partition(".")[0], node.col_offset


def test_model_imports_the_batch_system() -> None:
    for path in sources("s3gen"):
        names = {name for name, _ in imports(path)}
        assert not names & {"jobs", "ray", "pyarrow", "soundfile", "s3fs"}, path.name


def test_storage_is_reached_past_its_one_room() -> None:
    users = {path.relative_to(ROOT).as_posix() for package in ("s3gen", "jobs") for path in sources(package)
             if any(name in ("fsspec", "s3fs") for name, _ in imports(path))}  # fmt: skip
    assert users == {"jobs/storage/filesystems.py", "s3gen/location.py"}
    columns = [column for name, column in imports(ROOT / "s3gen/location.py") if name == "fsspec"]
    assert all(columns), "s3gen/location.py must import fsspec only inside the function that needs it"


@pytest.mark.parametrize("package", ["s3gen", "jobs"])
def test_rate_is_written_down_a_second_time(package: str) -> None:
    for path in sources(package):
        relative = path.relative_to(ROOT).as_posix()
        if relative == "s3gen/constants.py":
            continue
        # s3gen/config.py may state published defaults, which are fields of its dataclasses.
        allowed = published_defaults(path) if relative == "s3gen/config.py" else set()
        for line, value in numbers(path):
            assert value not in RATES or line in allowed, f"{relative}:{line} has the literal {value}"


def numbers(path: Path) -> Iterator[tuple[int, int]]:
    """The integer literals of a file with their lines; comments and texts do not count."""
    for token in tokenize.generate_tokens(io.StringIO(path.read_text(encoding="utf-8")).readline):
        if token.type == tokenize.NUMBER:
            try:
                yield token.start[0], int(token.string, 0)
            except ValueError:
                continue  # a float


def published_defaults(path: Path) -> set[int]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    classes = [
        node for node in tree.body if isinstance(node, ast.ClassDef) and node.name in ("S3GenConfig", "HiFTNetConfig")
    ]
    assert len(classes) == 2
    return {field.lineno for node in classes for field in node.body if isinstance(field, ast.AnnAssign)}
