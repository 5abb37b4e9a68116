"""`s3gen submit` to a real head. Beside tests/test_docs.py, which needs one too, so that it idles for neither long."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from jobs.command import PLAN_COMMAND
from jobs.config.config import JobConfig, load_config
from jobs.head import connect
from jobs.submit import SubmitOrder, Submitted, submit
from s3gen import S3GenModel
from tests.jobs.inputs import build_table, good_rows, write_clips, write_config, write_manifest

SECRET = "wJalrXUtnFEMI-K7MDENG"
PLAN = "s3gen plan my_job.yaml --set workers=2"


@pytest.fixture(name="table")
def _table(tiny_model: S3GenModel, tmp_path: Path) -> Path:
    write_clips(tmp_path / "clips")
    return build_table(tiny_model, tmp_path / "clips", tmp_path / "voices.parquet")


@pytest.fixture(name="no_detour")
def _no_detour(monkeypatch: pytest.MonkeyPatch) -> None:
    # Ray's client would go there, whatever address it is given.
    monkeypatch.setenv("RAY_ADDRESS", "http://127.0.0.1:1")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)


def configured(folder: Path, table: Path, rows: dict[str, list[Any]]) -> JobConfig:
    folder.mkdir()
    paths = {"voices": str(table), "output": str(folder / "out"), "manifest": str(folder / "m.parquet")}
    if rows:
        write_manifest(folder / "m.parquet", rows)
    return load_config(write_config(folder / "job.yaml", **paths, batch={"max_frames": 4096}))


def test_exit_code_is_lost_on_the_way_or_a_credential_is_not(
    ray_head: str, no_detour: None, table: Path, tmp_path: Path
) -> None:
    broken = good_rows(2)
    broken["voice_id"][1] = "nobody"
    jobs: dict[int, dict[str, list[Any]]] = {2: {}, 3: broken}
    code = tmp_path / "code"
    code.mkdir()
    (code / "notes.txt").write_text("to be there")

    def sent(wanted: int) -> Submitted:
        config = configured(tmp_path / str(wanted), table, jobs[wanted])
        trial: dict[str, Any] = {"limit": 2, "environment": {PLAN_COMMAND: PLAN}} if wanted == 3 else {}
        return submit(SubmitOrder(config=config, address=ray_head, working_dir=str(code), **trial))

    def followed(submitted: Submitted) -> tuple[int, str, str]:
        shown: list[str] = []
        return submitted.follow(shown.append), "".join(shown), submitted.id

    # The documentation has one that ends with 0.
    with ThreadPoolExecutor(len(jobs)) as threads:
        results = dict(zip(jobs, threads.map(followed, [sent(wanted) for wanted in jobs]), strict=True))
    assert {wanted: code for wanted, (code, _, _) in results.items()} == {2: 2, 3: 3}, results
    assert "error: " in results[2][1]
    assert "failed: 1 row" in results[3][1]
    assert f"what the whole job would take: {PLAN} --speed " in results[3][1], "the packed file is named"
    assert (tmp_path / "3/out-trial-2/failures.parquet").exists()
    assert json.loads((tmp_path / "3/out-trial-2/job.json").read_text())["config"]["ray_address"] == "auto"
    assert_no_secret(ray_head, results[3][2])


def assert_no_secret(address: str, job_id: str) -> None:
    """In what the dashboard shows of a job."""
    shown = connect(address).get_job_info(job_id)
    assert SECRET not in shown.model_dump_json()
    assert shown.entrypoint == "s3gen synth job.yaml --limit 2"
