"""The same utterances are timed after prompts of every length."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import prompts

ARGUMENTS = ["--device", "cpu", "--model", "random:tiny", "--threads", "1", "--tokens", "25", "25"]


def test_prompts_are_not_cut(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "report.json"
    assert prompts.main([*ARGUMENTS, "--cuts", "4", "1", "--rounds", "2", "--report", str(path)]) == 0
    found = json.loads(path.read_text())
    assert [each["prompt_seconds"] for each in found["prompts"]] == [1, 4]
    assert [each["frames_per_made_frame"] for each in found["prompts"]] == [2, 5]
    for each in found["prompts"]:
        speed = each["audio_seconds_per_second"]
        assert 0 < speed["min"] <= speed["median"] <= speed["max"]
    assert "| 4 | 5.00 | " in capsys.readouterr().out


def test_prompt_of_no_length_is_found_out_after_minutes(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        prompts.main([*ARGUMENTS, "--cuts", "0"])
    assert "longer than 0" in capsys.readouterr().err
