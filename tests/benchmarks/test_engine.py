"""The benchmark runs where only the model's own needs are installed, and says all that it should."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from benchmarks import engine, machine, roofline
from benchmarks.contenders import Reference

ROOT = Path(__file__).parents[2]
FAKE = Path(__file__).with_name("fake_reference.py")
BLOCKED = ("ray", "pyarrow", "pydantic", "matplotlib", "fsspec", "s3fs", "soundfile", "huggingface_hub", "jobs")
ARGUMENTS = ["--device", "cpu", "--model", "random:tiny", "--threads", "1", "--tokens", "9", "5", "4"]
ALONE = f"""
import sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {BLOCKED!r}:
            raise ImportError("blocked: " + name)

sys.meta_path.insert(0, Blocked())
from benchmarks import engine, machine, roofline
roofline._SIZES["cpu"], roofline._COPIED_BYTES["cpu"] = (64, 128), 1000
sys.exit(engine.main(sys.argv[1:]))
"""
SPREAD = {"median", "min", "max"}


@pytest.fixture(name="quick")
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(roofline._SIZES, "cpu", (64, 128))
    monkeypatch.setitem(roofline._COPIED_BYTES, "cpu", 1000)
    monkeypatch.setattr(machine, "loading_bytes", lambda model: 1_000_000)
    monkeypatch.setattr(engine, "_SCRIPTS", {"reference": FAKE, "ray_data": FAKE})


def test_benchmark_needs_more_than_the_model_does(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    command = [sys.executable, "-c", ALONE, *ARGUMENTS, "--rounds", "1", "--report", str(path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "| this package, batched |" in done.stdout
    assert "left out: the reference, one by one: neither --reference-python" in done.stdout
    found = json.loads(path.read_text())
    assert set(found["contenders"]) == {"single", "batched"}
    assert set(found["left_out"]) == {"reference", "ray_data"}
    assert found["memory_after_loading_bytes"] > 1e8, "torch alone is more than that"


def test_report_lacks_a_figure(quick: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "report.json"
    extra = ["--reference-python", sys.executable, "--rounds", "2", "--sample", "2", "--report", str(path)]
    assert engine.main([*ARGUMENTS, *extra]) == 0
    found = json.loads(path.read_text())
    assert set(found["contenders"]) == {"reference", "single", "batched"}
    for name, figures in found["contenders"].items():
        check_contender(figures, cpu=name != "reference")
    # The fake makes a second of audio a second.
    assert found["contenders"]["reference"]["real_time_factor"]["median"] == pytest.approx(1)
    ours = found["contenders"]["batched"]
    assert ours["times_reference"] == pytest.approx(ours["audio_seconds_per_second"])
    assert {"cpu", "cores", "threads", "torch", "python", "date", "system"} <= set(found["machine"])
    assert found["options"]["dtype"] == "float32"
    assert set(found["machine_rates"]["matrix_flops_per_second"]["float32"]) == SPREAD
    assert found["machine_rates"]["memory_bytes_per_second"] > 0
    assert set(found["estimator"]) == {"single", "batched"}
    workload = found["workload"]
    assert (workload["utterances"], workload["sample_utterances"], workload["batches"]) == (3, 2, 1)
    assert 0 < workload["padding_share"] < 1
    assert 0 < workload["padding"]["encoder"] < workload["padding"]["vocoder"] < 1
    assert found["gpu"] is None
    assert found["reference"] == {"reference": {"torch": "fake"}}
    assert found["left_out"] == {"ray_data": "--ray-data was not given"}
    said = capsys.readouterr().out
    assert "| the reference, one by one | 1 (1 .. 1) | 1 |" in said
    assert "- the reference, one by one: torch fake" in said


def check_contender(figures: dict[str, Any], *, cpu: bool) -> None:
    spreads = ["audio_seconds_per_second", "real_time_factor", "times_reference"]
    spreads += ["flops_per_second", "share_of_matrix_rate"] + ["cpu_seconds_per_audio_second"] * cpu
    for name in spreads:
        assert set(figures[name]) == SPREAD, name
        assert 0 < figures[name]["min"] <= figures[name]["median"] <= figures[name]["max"], name
    assert figures["peak_bytes"] > 0
    assert figures["audio_seconds"] > 0


@pytest.mark.parametrize("there", [False, True])
def test_ray_data_is_left_out_in_silence(
    quick: None, there: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[str] = []
    monkeypatch.setattr(Reference, "can_import", lambda _, module: asked.append(module) or there)
    assert engine.main([*ARGUMENTS, "--reference-python", sys.executable, "--ray-data", "--rounds", "1"]) == 0
    said = capsys.readouterr().out
    assert ("| the reference in Ray Data | 1 (1 .. 1) |" in said) == there
    assert ("left out: the reference in Ray Data: there is no ray[data]" in said) != there
    assert asked == ["ray.data"]


def test_contenders_always_go_in_the_same_order(monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []

    class Named:
        def __init__(self, name: str) -> None:
            self.name = name

        def measure(self) -> None:
            order.append(self.name)

    monkeypatch.setattr(engine, "matrix_rate", lambda device, dtype: 1.0)
    contenders: Any = {name: Named(name) for name in ("a", "b", "c")}
    for turned in (False, True):
        engine._round(contenders, engine.torch.device("cpu"), "float32", turned=turned)
    assert order == ["a", "b", "c", "c", "b", "a"]


def test_gpu_that_cannot_be_watched_costs_the_whole_run(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(make: object, device: object) -> None:
        raise ValueError("the profiler saw no work on a GPU")

    monkeypatch.setattr(engine.trace, "record", refused)
    batched: Any = SimpleNamespace(batches=[[0]], speak=len)
    left_out: dict[str, str] = {}
    assert engine._traced(batched, engine.torch.device("cuda"), left_out) is None
    assert left_out == {"gpu": "the profiler saw no work on a GPU"}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--rounds", "0"], "--rounds is 0"),
        (["--seconds", "4", "1"], "--seconds is 4.0 1.0"),
        (["--prompt-seconds", "0", "1"], "--prompt-seconds is 0.0 1.0"),
        (["--tokens", "0"], "--tokens is [0]"),
        (["--meanflow", "--model", "some/folder"], "some/folder says itself"),
        (["--dtype", "float8"], "float8"),
        (["--reference-python", "a", "--reference-wheels", "b"], "not allowed with"),
    ],
)
def test_impossible_option_is_found_out_after_minutes(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        engine.main(["--device", "cpu", *arguments])
    assert stopped.value.code == 2
    assert said in capsys.readouterr().err


def test_reference_that_does_not_start_passes(quick: None, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    bare = tmp_path / "python"
    bare.write_text("#!/bin/sh\necho no such package >&2\nexit 3\n")
    bare.chmod(0o755)
    assert engine.main([*ARGUMENTS, "--reference-python", str(bare)]) == 1
    assert "ended with 3; it said:\nno such package" in capsys.readouterr().err


def test_large_parent_counts_as_a_large_model() -> None:
    ballast = bytearray(700_000_000)  # a process begins with its parent's peak, for some ways of asking
    ballast[::4096] = b"x" * len(ballast[::4096])
    assert machine.peak_resident_bytes() > 700_000_000
    assert machine.loading_bytes("random:tiny") < 700_000_000
