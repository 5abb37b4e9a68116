"""What streams cost is measured chunk by chunk, and how far they are from the whole is that of their own cut."""

from __future__ import annotations

import json
from typing import Any

import pytest

from benchmarks import streaming
from benchmarks.streaming import Choice

ARGUMENTS = ["--device", "cpu", "--model", "random:tiny", "--meanflow", "--threads", "1", "--tokens", "24"]
ARGUMENTS += ["--prompt-seconds", "0.4", "0.6", "--rounds", "1", "--chunk-tokens", "10", "40"]


@pytest.fixture(name="found", scope="module")
def _found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    path = tmp_path_factory.mktemp("streaming") / "report.json"
    assert streaming.main([*ARGUMENTS, "--left-seconds", "0", "2", "--report", str(path)]) == 0
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def test_a_cut_is_left_out_or_the_first_chunk_taken_for_a_later_one(found: dict[str, Any]) -> None:
    cuts = [(each["chunk_tokens"], each["left_seconds"]) for each in found["choices"]]
    assert cuts == [(10, 0.0), (10, 2.0), (40, 0.0), (40, 2.0)]
    for each in found["choices"]:
        assert each["first_tokens"] == each["chunk_tokens"] + 3
        assert each["first_seconds"]["min"] > 0
        assert (each["real_time_factor"] is None) == (each["chunk_tokens"] == 40)


def test_one_chunk_is_far_from_the_whole_or_less_context_is_nearer(found: dict[str, Any]) -> None:
    none, all_of_it, *whole = [each["mel_distances"] for each in found["choices"]]
    assert all(0 < near < far for near, far in zip(all_of_it, none, strict=True))
    assert all(far < 1e-6 for distances in whole for far in distances)


def test_factors_are_of_other_chunks_than_those_between() -> None:
    times = [[9.0, 0.5, 0.25, 7.0], [8.0, 6.0]]
    assert streaming._factors(times, Choice(50, 1.0)) == {"median": 0.1875, "min": 0.125, "max": 0.25}


def test_the_table_lacks_a_choice(found: dict[str, Any]) -> None:
    said = streaming.markdown(found)
    assert said.count("\n| ") == 1 + 4
    assert "| 10 | 2 | 13 | " in said
    assert "a random model is not a trained one" in said


@pytest.mark.parametrize("wrong", [["--chunk-tokens", "0"], ["--left-seconds", "-1"]])
def test_a_cut_that_is_none_is_measured(wrong: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        streaming.main([*ARGUMENTS, *wrong])
    assert wrong[0] in capsys.readouterr().err
