"""What `s3gen plan` sees of what stops a job at its start, and of what is made already."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from jobs.config.config import config_from
from jobs.ledger.ledger import Ledger
from jobs.manifest.manifest import Manifest
from jobs.plan import make_plan
from jobs.storage.folders import Folder
from jobs.voices.table import VoiceTable
from tests.jobs.command import cli
from tests.jobs.inputs import good_rows, write_clips, write_config, write_manifest
from tests.jobs.made_job import bare_record


@pytest.fixture
def job(table: Path, tmp_path: Path) -> dict[str, Any]:
    """A configuration with which all is well."""
    manifest = write_manifest(tmp_path / "manifest.parquet", good_rows(6) | {"tokens": [[1] * 1_000] * 6})
    values = {"model": "random:tiny", "manifest": str(manifest), "voices": str(table)}
    return values | {"output": str(tmp_path / "out"), "shard_rows": 2}


def _begin(job: dict[str, Any], limit: int | None = None, **changes: Any) -> Ledger:
    """The job in its output, as a run begins it; the first shard is made."""
    config = config_from(job, [f"{key}={json.dumps(value)}" for key, value in changes.items()])
    plan = make_plan(Manifest.scan(config.manifest), config.shard_rows, limit)
    prints = {"model": "as it was", **VoiceTable.open(config.voices).fingerprints}
    frozen = {
        "config": config.frozen(),
        "fingerprints": prints,
        "limit": limit,
        "versions": {},
        "threads": 1,
        "gpus": 0.0,
    }
    ledger = Ledger.start(Folder(config.output), frozen, plan)
    attempt = ledger.attempt(0)
    ledger.commit(attempt, bare_record(attempt=attempt.id, plan=plan.digest, rows=2, rows_done=2))
    return ledger


def _planned(job: dict[str, Any], folder: Path, *options: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(cli("plan", write_config(folder / "job.yaml", **job), "--json", *options).stdout)
    return found


def test_rows_that_are_made_are_billed_again(job: dict[str, Any], tmp_path: Path) -> None:
    whole = _planned(job, tmp_path, "--speed", "2")
    assert (whole["is_begun"], whole["rows_left"], whole["problems"]) == (False, 6, [])
    # On other machines it is the same job.
    _begin(job, workers=7)
    rest = _planned(job, tmp_path, "--speed", "2")
    assert (rest["is_begun"], rest["rows_left"], rest["problems"]) == (True, 4, [])
    assert rest["gpu_hours"] == pytest.approx(whole["gpu_hours"] * 4 / 6)
    assert rest["audio_hours"] == whole["audio_hours"]
    text = cli("plan", tmp_path / "job.yaml", "--speed", "2").stdout
    assert "begun: 4 rows are left, and what follows is for these\nworker-hours: " in text
    assert "problems" not in text


def test_a_trial_is_planned_as_the_whole_job_that_is_begun(job: dict[str, Any], tmp_path: Path) -> None:
    _begin(job)
    assert _planned(job, tmp_path, "--limit", "3")["rows_left"] == 3
    _begin(job | {"output": f"{job['output']}-trial-3"})
    assert "limit: was null, is 3" in _planned(job, tmp_path, "--limit", "3")["problems"][0]


def test_plan_passes_over_what_stops_synth(job: dict[str, Any], tmp_path: Path) -> None:
    _begin(job, seed=5)
    job["model"] = str(tmp_path / "nope")
    config = write_config(tmp_path / "job.yaml", **job)
    planned, made = cli("plan", config), cli("synth", config)
    assert (planned.exit_code, made.exit_code) == (0, 2)
    said = planned.stdout.partition("problems, for which synth would refuse the job:\n")[2]
    assert "  output: " in said
    assert "was begun as another job:\n    model: was " in said
    assert "\n    seed: was 5, is 0\n" in said
    assert "  model: nothing is at '" in said


def test_plan_bills_a_job_whose_table_was_appended_to(job: dict[str, Any], tmp_path: Path) -> None:
    job["voices"] = str(shutil.copy(job["voices"], tmp_path / "voices.parquet"))
    _begin(job)
    write_clips(tmp_path / "clips")
    (tmp_path / "clips/anna.wav").rename(tmp_path / "clips/dora.wav")
    words = (tmp_path / "clips", "--out", job["voices"], "--append", "--model", "random:tiny")
    appended = cli("voices", *words)
    assert "4 in " in appended.stdout, appended.output
    (problem,) = _planned(job, tmp_path)["problems"]
    assert "fingerprints.voices: was " in problem
    # Two hashes say nothing of what to do.
    assert (
        f"\n{job['voices']} had other voices when the job began (was it appended to?): put that table back" in problem
    )
    made = cli("synth", tmp_path / "job.yaml")
    assert made.exit_code == 2
    assert f"{job['voices']} had other voices when the job began" in made.stderr


def test_a_table_that_is_another_file_is_to_be_put_back(job: dict[str, Any], tmp_path: Path) -> None:
    _begin(job)
    job["voices"] = str(shutil.copy(job["voices"], tmp_path / "voices.parquet"))
    (problem,) = _planned(job, tmp_path)["problems"]
    assert "  voices: was " in problem
    assert "had other voices" not in problem


@pytest.mark.parametrize("model", ["nope", "./nope", "random:tinny", "a/b/c"])
def test_a_model_that_is_not_there_is_found_when_the_job_begins(
    job: dict[str, Any], tmp_path: Path, model: str
) -> None:
    (problem,) = _planned(job | {"model": model}, tmp_path)["problems"]
    assert "owner/name" in problem
    assert cli("synth", write_config(tmp_path / "job.yaml", **(job | {"model": model}))).exit_code == 2


def test_a_model_that_may_be_there_is_asked_of_the_hub(job: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    for model in ("ResembleAI/chatterbox", "s3://bucket/model", str(tmp_path / "model"), "random:full"):
        assert _planned(job | {"model": model}, tmp_path)["problems"] == []


def test_a_folder_of_recordings_passes_for_an_output(job: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "out/audio").mkdir(parents=True)
    (tmp_path / "out/audio/mine.wav").write_bytes(b"mine")
    (problem,) = _planned(job, tmp_path)["problems"]
    assert "audio/mine.wav: this is another folder" in problem


def test_a_job_of_tokens_passes_for_the_same(job: dict[str, Any], tmp_path: Path) -> None:
    ledger = _begin(job)
    path = tmp_path / "out/job.json"
    path.write_text(json.dumps({**ledger.job, "kind": "tokenize", "table": str(tmp_path / "t.parquet")}))
    (problem,) = _planned(job, tmp_path)["problems"]
    assert "holds a job of tokenize; choose another output" in problem
    path.write_text("{")
    (problem,) = _planned(job, tmp_path)["problems"]
    assert "job.json is damaged" in problem
