"""The voices' benchmark says what it should, and counts what the networks do."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import soundfile
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import roofline, voices
from s3gen import S3GenModel
from tests.conftest import speech_like

ARGUMENTS = ["--device", "cpu", "--model", "random:tiny", "--threads", "1", "--rounds", "2"]
FAKE = """
import json, sys
from safetensors.torch import load_file

inputs = load_file(sys.argv[1] + "/inputs.safetensors")
print(json.dumps({"torch": "fake"}), flush=True)
for line in sys.stdin:
    samples = sum(len(inputs[name + "/wav"]) for name in json.loads(line))
    seconds = sum(len(inputs[name + "/wav"]) / int(inputs[name + "/rate"]) for name in json.loads(line))
    answer = {"seconds": seconds, "cpu_seconds": 2 * seconds, "samples": samples - WRONG, "peak_bytes": 7}
    print(json.dumps(answer), flush=True)
"""


@pytest.fixture(name="reference")
def _reference(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setitem(roofline._SIZES, "cpu", (64, 128))
    script = tmp_path / "fake.py"
    script.write_text(FAKE.replace("WRONG", "0"))
    monkeypatch.setattr(voices, "_SCRIPT", script)
    return script


def run(tmp_path: Path, *arguments: str) -> tuple[int, dict[str, Any]]:
    path = tmp_path / "report.json"
    code = voices.main([*ARGUMENTS, *arguments, "--report", str(path)])
    return code, json.loads(path.read_text()) if path.exists() else {}


@pytest.mark.usefixtures("reference")
def test_report_lacks_a_figure(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = ["--count", "5", "--sample", "3", "--seconds", "0.5", "1", "--reference-python", sys.executable]
    code, found = run(tmp_path, *given)
    assert code == 0
    assert set(found["contenders"]) == set(voices.NAMES)
    assert (found["workload"]["clips"], found["workload"]["sample_clips"]) == (5, 3)
    assert 0.5 <= found["workload"]["seconds"]["min"] <= found["workload"]["seconds"]["max"] <= 1
    assert found["contenders"]["reference"]["times_reference"] == pytest.approx({"median": 1, "min": 1, "max": 1})
    batched = found["contenders"]["batched"]
    assert batched["clips"] == 5
    assert 0 < batched["times_reference"]["min"] <= batched["times_reference"]["max"]
    said = capsys.readouterr().out
    assert all(f"| {name} |" in said for name in voices.NAMES.values())


@pytest.mark.usefixtures("reference")
def test_ratio_compares_other_clips(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A package as fast as the fake per second of clip is as fast, though the one has more clips and longer ones."""
    monkeypatch.setattr(voices, "flops", lambda model, seconds: seconds)
    costs = {
        "reference": voices.Cost(wall=2.0, cpu=4.0, peak_bytes=0),
        "batched": voices.Cost(wall=6.0, cpu=3.0, peak_bytes=0),
    }
    short = [voices.Clip(name="a", wav=torch.zeros(10), rate=10)]
    given = {"reference": short, "batched": short * 6}
    found = voices._figures(None, "batched", given, [voices.Round(costs=costs, matrix_rate=2.0)])
    assert found["times_reference"]["median"] == pytest.approx(2)
    assert found["times_reference_in_cpu_seconds"]["median"] == pytest.approx(8)
    assert found["share_of_matrix_rate"]["median"] == pytest.approx(0.5)


def test_reference_is_needed(reference: Path, tmp_path: Path) -> None:
    folder = tmp_path / "clips"
    folder.mkdir()
    soundfile.write(folder / "long.wav", speech_like(10.7, 8_000).numpy(), 8_000)
    soundfile.write(folder / "short.flac", speech_like(0.6, 16_000).numpy(), 16_000)
    code, found = run(tmp_path, "--clips", str(folder))
    assert code == 0
    assert set(found["contenders"]) == {"single", "batched"}
    assert found["workload"]["seconds"]["max"] == 10
    assert found["contenders"]["single"]["times_reference"] is None


def test_reference_that_made_something_else_is_believed(
    reference: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    reference.write_text(FAKE.replace("WRONG", "1"))
    code, found = run(tmp_path, "--count", "1", "--seconds", "0.5", "0.6", "--reference-python", sys.executable)
    assert (code, found) == (1, {})
    assert "samples where" in capsys.readouterr().err


def test_clips_drawn_twice_are_others() -> None:
    first, again, other = (voices.draw(7, (0.5, 0.9), seed) for seed in (1, 1, 2))
    assert all(torch.equal(a.wav, b.wav) for a, b in zip(first, again, strict=True))
    assert [len(clip.wav) for clip in first] != [len(clip.wav) for clip in other]
    assert {clip.rate for clip in first} == {16_000, 24_000}
    assert len({clip.name for clip in first}) == 7


@torch.no_grad()
def test_operations_are_counted_wrongly(tiny_model: S3GenModel) -> None:
    sizes = tiny_model.config.tokenizer
    for frames, tokens in ((160, 40), (161, 41)):
        with FlopCounterMode(display=False) as counter:
            tiny_model.tokenizer.encoder([torch.randn(frames, sizes.mels)])
        attention = sizes.layers * 4 * tokens**2 * sizes.dim  # which the counter does not know on a CPU
        assert voices.tokenizer_flops(sizes, frames) == counter.get_total_flops() + attention

    speaker = tiny_model.config.speaker
    for frames, places in ((160, 80), (161, 81)):
        with FlopCounterMode(display=False) as counter:
            tiny_model.speaker_encoder.embed(torch.randn(1, frames, speaker.mels))
        width, channels = speaker.bottleneck * speaker.growth, speaker.init_channels
        for count in speaker.blocks:
            channels = (channels + count * speaker.growth) // 2
        contexts = sum(speaker.blocks) * places * width * (width + speaker.growth)
        last = 2 * 2 * channels * speaker.embed_dim
        assert voices.speaker_flops(speaker, frames) == counter.get_total_flops() - contexts - last
