"""Reports become a picture, the same one every time."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import plot

COMMON = {
    "machine": {"cpu": "Some CPU", "threads": 2, "date": "2026-01-02T03:04:05+00:00"},
    "options": {"dtype": "float32", "meanflow": False},
}


def spread(value: float) -> dict[str, float]:
    return {"median": value, "min": value, "max": value}


def engine(*names: str) -> dict[str, Any]:
    figures = {"audio_seconds_per_second": spread(12.5), "times_reference": spread(25)}
    return COMMON | {"kind": "engine", "contenders": dict.fromkeys(names, figures)}


PROMPTS = COMMON | {
    "kind": "prompts",
    "prompts": [{"prompt_seconds": cut, "audio_seconds_per_second": spread(1 / cut)} for cut in (1, 2, 5)],
}


def drawn(folder: Path, *reports: dict[str, Any]) -> str:
    paths = []
    for place, report in enumerate(reports):
        path = folder / f"{place}.json"
        path.write_text(json.dumps(report))
        paths.append(str(path))
    assert plot.main([*paths, "--out", str(folder / "plot.svg")]) == 0
    return (folder / "plot.svg").read_text()


def test_second_drawing_differs_or_bears_a_date(tmp_path: Path) -> None:
    reports = (engine("reference", "batched"), PROMPTS)
    picture = drawn(tmp_path, *reports)
    assert picture == drawn(tmp_path, *reports)
    assert "<dc:date>" not in picture


def test_contender_is_missing_from_the_picture(tmp_path: Path) -> None:
    picture = drawn(tmp_path, engine("reference", "batched"), PROMPTS)
    for text in ("reference,", "batched", "12.5", "25 ×", "prompt, seconds", "2 threads of Some CPU", "2026-01-02"):
        assert text in picture, text
    assert "Ray Data" not in picture


def test_report_of_another_kind_is_drawn_as_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        drawn(tmp_path, COMMON | {"kind": "precision"})
    assert "kind 'precision'" in capsys.readouterr().err
