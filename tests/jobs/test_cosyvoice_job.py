"""A whole job with a model in CosyVoice2's folder, as with any other: from voices to verify."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from s3gen.constants import SAMPLES_PER_TOKEN
from tests.jobs.command import cli
from tests.jobs.inputs import good_rows, write_clips, write_config, write_manifest
from tests.jobs.ray_session import local_ray
from tests.s3gen.cosyvoice_folder import tiny_model, write_folder

__all__ = ["local_ray"]

pytest.importorskip("onnx")


def test_a_job_cannot_be_made_with_cosyvoices_folder(tmp_path: Path, local_ray: None) -> None:
    model = write_folder(tmp_path / "CosyVoice2", tiny_model())
    write_clips(tmp_path / "clips")
    voices = cli("voices", tmp_path / "clips", "--out", tmp_path / "voices.parquet", "--model", model)
    assert voices.exit_code == 0, voices.output
    columns = good_rows(6)
    config = write_config(
        tmp_path / "job.yaml",
        model=str(model),
        manifest=str(write_manifest(tmp_path / "manifest.parquet", columns)),
        voices=str(tmp_path / "voices.parquet"),
        output=str(tmp_path / "out"),
        shard_rows=3,
    )
    made = cli("synth", config)
    assert made.exit_code == 0, made.output
    checked = cli("verify", tmp_path / "out")
    assert checked.exit_code == 0, checked.output
    index = pq.read_table(tmp_path / "out" / "index.parquet").to_pylist()
    lengths = {row["id"]: row["samples"] for row in index}
    expected = zip(columns["id"], columns["tokens"], strict=True)
    assert lengths == {name: SAMPLES_PER_TOKEN * len(tokens) for name, tokens in expected}
    status = json.loads(cli("status", tmp_path / "out", "--json").output)
    assert (status["state"], status["rows_done"], status["rows_failed"]) == ("finished", 6, 0)


def test_a_folder_that_is_not_whole_begins_a_job(tmp_path: Path) -> None:
    model = write_folder(tmp_path / "CosyVoice2", tiny_model())
    (model / "campplus.onnx").unlink()
    write_clips(tmp_path / "clips")
    voices = cli("voices", tmp_path / "clips", "--out", tmp_path / "voices.parquet", "--model", model)
    assert voices.exit_code == 2
    assert "campplus.onnx missing" in voices.output.replace("\n", " ")
