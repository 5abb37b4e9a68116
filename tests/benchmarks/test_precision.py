"""Every dtype has its errors against float32, and none of them is made up."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

from benchmarks import precision, utterances
from benchmarks.precision import VOCODER, snr_db
from s3gen import S3GenModel

DTYPES = ["tf32", "bfloat16", "float16"]


@pytest.fixture(name="found", scope="module")
def _found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    path = tmp_path_factory.mktemp("precision") / "report.json"
    arguments = ["--device", "cpu", "--model", "random:tiny", "--threads", "1", "--tokens", "9", "25"]
    assert precision.main([*arguments, "--prompt-seconds", "0.5", "1", "--report", str(path)]) == 0
    return json.loads(path.read_text())


def test_dtype_or_utterance_is_left_out(found: dict[str, Any]) -> None:
    assert list(found["errors"]) == [*DTYPES, VOCODER]
    for dtype in DTYPES:
        assert len(found["errors"][dtype]) == 2
        for errors in found["errors"][dtype]:
            assert 1e-5 < errors["mel_error"] < 0.1, dtype
            assert 10 < errors["given_source_snr_db"] < 90, dtype
            assert 0 < errors["f0_rms_hz"] < 20, dtype
    for errors in found["errors"][VOCODER]:
        assert 30 < errors["given_source_snr_db"] < 90


def test_emulation_or_random_weights_are_kept_quiet(found: dict[str, Any]) -> None:
    said = precision.markdown(found)
    assert found["tf32"] == "emulated"
    assert "TF32 is emulated" in said
    assert "Random weights are not trained ones" in said
    assert said.count("\n| ") == 1 + len(DTYPES) + 1


def test_worst_utterance_is_the_best(found: dict[str, Any]) -> None:
    errors = [
        {"mel_error": mel, "given_source_snr_db": snr, "snr_db": snr, "f0_rms_hz": 1.0}
        for mel, snr in ((1e-3, 40.0), (5e-3, 20.0), (2e-3, 30.0))
    ]
    said = precision.markdown(found | {"errors": {"tf32": errors}})
    assert "| tf32 | 2.0e-03 (5.0e-03) | 30.0 (20.0) | 30.0 (20.0) | 1 (1) |" in said


def test_float32_differs_from_itself(tiny_model: S3GenModel) -> None:
    (spoken,) = utterances.of_tokens([9], (0.5, 0.5))
    exact = precision.speak(tiny_model, spoken, "float32")
    errors = precision.compare(tiny_model, spoken, exact, "float32")
    assert errors["mel_error"] == 0
    assert errors["f0_rms_hz"] == 0
    assert errors["snr_db"] > 2000


def test_ratio_is_of_amplitudes_and_not_of_power() -> None:
    exact = torch.ones(100)
    assert snr_db(exact + 0.1, exact) == pytest.approx(20, abs=1e-4)
