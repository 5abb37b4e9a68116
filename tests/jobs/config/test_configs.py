"""The files of ``configs/`` are what their users take them for: they load, and explain every key once."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from jobs.config.config import JobConfig, config_from, load_config
from s3gen import S3GenModel
from tests.jobs.command import cli
from tests.jobs.inputs import build_table, good_rows, write_clips, write_manifest

CONFIGS = Path(__file__).parents[3] / "configs"
FILES = sorted(CONFIGS.glob("*.yaml"))
EXPLAINED = CONFIGS / "local.yaml"
# `#key: value`, as against `# some words`.
UNSET = re.compile(r"^(\s*)#(?=[a-z_]+:)", re.MULTILINE)
KEY = re.compile(r"^(\s*)#?([a-z_]+):(?: (.*))?$")


@pytest.fixture(name="inputs", scope="module")
def _inputs(tiny_model: S3GenModel, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("inputs")
    write_clips(folder / "clips")
    return {
        "manifest": write_manifest(folder / "manifest.parquet", good_rows(3)),
        "voices": build_table(tiny_model, folder / "clips", folder / "voices.parquet"),
        "output": folder / "out",
    }


def keys(section: type[BaseModel], prefix: str = "") -> dict[str, Any]:
    """Dotted names of all keys that take a value, with their defaults."""
    found: dict[str, Any] = {}
    for name, field in section.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            found |= keys(field.annotation, f"{prefix}{name}.")
        else:
            found[f"{prefix}{name}"] = field.get_default(call_default_factory=True)
    return found


def written(text: str) -> list[tuple[str, str, bool]]:
    """The keys of a file in order, dotted, with the comment above each and whether the key is set."""
    found, above, section = [], "", ""
    for line in text.splitlines():
        match = KEY.match(line)
        if match and match[3] is None:
            section = f"{match[2]}."
        elif match:
            name = f"{section}{match[2]}" if match[1] else match[2]
            found.append((name, above, not line.lstrip().startswith("#")))
        above = f"{above} {line.strip('# ')}".strip() if line.lstrip().startswith("# ") else ""
    return found


def test_names_of_the_starting_points_change() -> None:
    assert [path.name for path in FILES] == ["cluster.yaml", "demo.yaml", "local.yaml", "node8.yaml", "spot.yaml"]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_starting_point_is_refused(path: Path) -> None:
    load_config(path)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_starting_point_does_not_begin_with_a_users_own_paths(path: Path, inputs: dict[str, Path]) -> None:
    given = [f"--set={key}={value}" for key, value in {"model": "random:tiny", **inputs}.items()]
    result = cli("plan", path, *given)
    assert result.exit_code == 0, result.output
    assert "rows: 3 in" in result.output


def test_key_is_explained_nowhere_or_twice() -> None:
    found = [name for name, _, _ in written(EXPLAINED.read_text())]
    assert sorted(found) == sorted(keys(JobConfig))


def test_key_stands_there_without_a_word() -> None:
    for name, comment, _ in written(EXPLAINED.read_text()):
        assert len(comment) > 20, f"{name} is not explained in {EXPLAINED}"


def test_default_is_another_than_the_one_shown() -> None:
    required = {name for name, default in keys(JobConfig).items() if default is PydanticUndefined}
    everything = yaml.safe_load(UNSET.sub(r"\1", EXPLAINED.read_text()))
    assert config_from(everything) == config_from({name: everything[name] for name in required})
    assert config_from(everything) == load_config(EXPLAINED)
