"""The plan of the house: which floors of the batch system import which."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2] / "jobs"


def imported(path: Path) -> Iterator[tuple[str, ...]]:
    """The modules of the batch system that a file imports, anywhere in it, as parts of their names."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "jobs":
            for alias in node.names:
                parts = (*node.module.split(".")[1:], alias.name)
                yield parts if ROOT.joinpath(*parts).with_suffix(".py").exists() else parts[:-1]
        elif isinstance(node, ast.Import):
            yield from (tuple(alias.name.split(".")[1:]) for alias in node.names if alias.name.startswith("jobs."))


def graph(depth: int) -> dict[str, set[str]]:
    """Who imports whom, of rooms (depth 2) or floors (1); a room that lies on no floor is one of its own."""
    found: dict[str, set[str]] = {}
    for path in sorted(ROOT.rglob("*.py")):
        here = "/".join(path.relative_to(ROOT).with_suffix("").parts[:depth])
        others = {"/".join(parts[:depth]) for parts in imported(path)}
        found.setdefault(here, set()).update(others - {here})
    return found


@pytest.mark.parametrize("depth", [1, 2])
def test_a_floor_or_a_room_reaches_back(depth: int) -> None:
    who = graph(depth)
    assert len(who) > (30, 100)[depth - 1]
    assert sum(map(len, who.values())) > (100, 300)[depth - 1]
    try:
        TopologicalSorter(who).prepare()
    except CycleError as error:
        pytest.fail(f"they import each other: {' -> '.join(reversed(error.args[1]))}")


def test_the_contributors_plan_lacks_a_floor() -> None:
    plan = (ROOT.parent / "docs/contributing.md").read_text(encoding="utf-8")
    floors = {path.parent.name for path in ROOT.glob("*/__init__.py")}
    assert len(floors) > 10
    assert not {name for name in floors if f"`{name}/`" not in plan}
