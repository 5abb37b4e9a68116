"""Exit codes and messages of the command line: bad input of every kind, and what it must leave untouched."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs import runs
from jobs.cli import main
from tests.jobs.command import cli
from tests.jobs.inputs import good_rows, write_clips, write_config, write_manifest
from tests.jobs.ray_session import local_ray

__all__ = ["local_ray"]


@pytest.fixture
def job(table: Path, tmp_path: Path) -> dict[str, Any]:
    """A configuration with which all is well."""
    manifest = write_manifest(tmp_path / "manifest.parquet", good_rows(6))
    return {"manifest": str(manifest), "voices": str(table), "output": str(tmp_path / "out"), "shard_rows": 2}


def _refused(job: dict[str, Any], tmp_path: Path, *arguments: str) -> str:
    """Runs `synth`, which must refuse; returns its message."""
    result = cli("synth", write_config(tmp_path / "job.yaml", **job), *arguments)
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    assert result.stderr.startswith("error: ")
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "out").exists()
    return result.stderr


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("vioces", "x", "vioces: unknown key; did you mean voices?"),
        ("shard_rows", 0, "shard_rows: 0"),
        ("shard_rows", "many", "'many'"),
        ("workers", -1, "-1"),
        ("format", "shar", "'shar' is refused: give parquet, webdataset or lhotse"),
        ("audio", "aac", "'aac'"),
        ("batch", {"max_frame": 1}, "batch.max_frames"),
        ("engine", {"dtype": "bf16"}, "did you mean bfloat16?"),
        ("manifest", "nowhere/*.parquet", "nowhere/*.parquet"),
        ("voices", "nowhere.parquet", "nowhere.parquet"),
        ("model", "random:huge", "random:huge"),
        ("model", "./nowhere", "nowhere"),
        ("engine", {"device": "cuda"}, "engine.device: cuda"),
    ],
)
def test_bad_configurations_are_refused_with_the_value_and_nothing_is_written(
    job: dict[str, Any], tmp_path: Path, key: str, value: Any, message: str
) -> None:
    if key == "engine" and "device" in value:
        _without_gpu()
    assert message in _refused(job | {key: value}, tmp_path)


@pytest.mark.parametrize("address", ["127.0.0.1:1", "nowhere", "ray://127.0.0.1:10001", "127.0.0.1:99999"])
def test_a_cluster_that_does_not_answer_is_refused_at_once(
    job: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, address: str
) -> None:
    def tries_for_minutes(**options: Any) -> None:
        pytest.fail("Ray was asked")

    monkeypatch.setattr("ray.is_initialized", lambda: False)
    monkeypatch.setattr("ray.init", tries_for_minutes)
    assert address in _refused(job | {"ray_address": address}, tmp_path)


def _without_gpu() -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"id": ["a"], "tokens": [[1]]}, "no column 'voice_id'"),
        ({**good_rows(2), "audio": [1, 2]}, "'audio'"),
        ({**good_rows(2), "id": pa.array([1, 2])}, "'id' is int64"),
    ],
)
def test_a_manifest_that_is_none_is_refused(
    job: dict[str, Any], tmp_path: Path, columns: dict[str, Any], message: str
) -> None:
    write_manifest(tmp_path / "manifest.parquet", columns)
    assert message in _refused(job, tmp_path)


def test_a_truncated_manifest_is_refused(job: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "manifest.parquet"
    path.write_bytes(path.read_bytes()[:-20])
    assert str(path) in _refused(job, tmp_path)


def test_the_voices_of_another_model_are_refused(job: dict[str, Any], tmp_path: Path, table: Path) -> None:
    rows = pq.read_table(table)
    settings = json.loads(rows.schema.metadata[b"s3gen_voices"]) | {"voice_fingerprint": "0" * 64}
    metadata = {"s3gen_voices": json.dumps(settings), "s3gen_voices_digest": "1"}
    pq.write_table(rows.replace_schema_metadata(metadata), tmp_path / "other.parquet")
    assert "s3gen voices --model" in _refused(job | {"voices": str(tmp_path / "other.parquet")}, tmp_path)


@pytest.mark.parametrize(
    "arguments",
    [
        ["synth", "nowhere.yaml"],
        ["plan", "nowhere.yaml"],
        ["resume", "nowhere"],
        ["status", "nowhere"],
        ["status", "nowhere", "--json"],
        ["verify", "nowhere"],
        ["voices", "nowhere", "--out", "v.parquet", "--model", "random:tiny"],
        ["voices", ".", "--out", "v.parquet", "--model", "random:none"],
        ["status", ".", "--storage-options", "nowhere.yaml"],
        ["synth", "nowhere.yaml", "--limit", "0"],
        ["voices", ".", "--model", "random:tiny"],
        ["frobnicate"],
    ],
)
def test_what_is_not_there_is_exit_2_without_a_traceback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    result = cli(*arguments)
    assert result.exit_code == 2
    assert result.stderr
    assert result.stdout == ""
    assert "Traceback" not in result.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("max_seconds", ["0.1", "nan", "-3"])
def test_voices_cut_shorter_than_a_voice_are_refused(tmp_path: Path, max_seconds: str) -> None:
    write_clips(tmp_path / "clips")
    out = tmp_path / "v.parquet"
    result = cli("voices", tmp_path / "clips", "--out", out, "--model", "random:tiny", "--max-seconds", max_seconds)
    assert result.exit_code == 2, result.output
    assert "--max-seconds" in result.stderr
    assert not out.exists()


def test_the_name_of_a_clip_commands_the_terminal(tmp_path: Path) -> None:
    write_clips(tmp_path / "clips")
    (tmp_path / "clips" / "a\x1b[31mEVIL\nfake: all is well.wav").write_bytes(b"")
    result = cli("voices", tmp_path / "clips", "--out", tmp_path / "v.parquet", "--model", "random:tiny")
    assert result.exit_code == 3, result.output
    said = result.stdout.splitlines()
    assert len(said) == 3
    assert said[2].startswith(r"  'a\x1b[31mEVIL\nfake: all is well': ")
    assert result.stdout.replace("\n", "").isprintable()


def test_an_unexpected_error_is_one_line_and_exit_1(
    job: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: Any) -> None:
        raise ZeroDivisionError("oh")

    monkeypatch.setattr(runs, "synth", fail)
    config = write_config(tmp_path / "job.yaml", **job)
    plain, debug = cli("synth", config), cli("synth", config, "--debug")
    assert (plain.exit_code, debug.exit_code) == (1, 1)
    assert plain.stderr == "error: ZeroDivisionError: oh (--debug shows where)\n"
    assert "Traceback" in debug.stderr


def test_ctrl_c_is_exit_1_without_a_traceback(
    job: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*args: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(runs, "synth", interrupted)
    result = cli("synth", write_config(tmp_path / "job.yaml", **job))
    assert result.exit_code == 1
    assert result.stderr.startswith("error: stopped")


@pytest.mark.parametrize("manifest", ["other: manifest.parquet", "[x].parquet"])
def test_a_manifest_given_as_an_option_is_a_path_whatever_it_looks_like(
    job: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, manifest: str
) -> None:
    monkeypatch.chdir(tmp_path)
    write_manifest(tmp_path / manifest, good_rows(4))
    config = write_config(tmp_path / "job.yaml", **job)
    assert json.loads(cli("plan", config, "--manifest", manifest, "--json").stdout)["rows"] == 4


@pytest.mark.usefixtures("local_ray")
def test_a_whole_job_in_a_bucket(job: dict[str, Any], tmp_path: Path, table: Path, s3: str) -> None:
    import s3fs

    store = s3fs.S3FileSystem(use_listings_cache=False)
    store.put_file(job["manifest"], f"{s3}/in/manifest.parquet")
    for clip in table.parent.glob("clips/**/*.wav"):
        store.put_file(str(clip), f"{s3}/clips/{clip.relative_to(table.parent / 'clips')}")
    made = cli("voices", f"{s3}/clips", "--out", f"{s3}/voices.parquet", "--model", "random:tiny")
    assert made.exit_code == 0, made.output
    places = {"manifest": f"{s3}/in/*.parquet", "voices": f"{s3}/voices.parquet", "output": f"{s3}/out"}
    result = cli("synth", write_config(tmp_path / "job.yaml", **(job | places)))
    assert result.exit_code == 0, result.output
    assert cli("verify", f"{s3}/out").exit_code == 0
    status = json.loads(cli("status", f"{s3}/out", "--json").stdout)
    assert (status["state"], status["rows_done"]) == ("finished", 6)
    everything = b"".join(store.cat(name) for name in store.find(f"{s3}/out"))
    assert b"testsecret-of-the-environment" not in everything
    assert "testsecret" not in result.output


def test_status_does_not_load_ray() -> None:
    code = (
        "import jobs.cli, jobs.status, jobs.verify.verify, sys; print(*sorted({'ray', 'soundfile'} & set(sys.modules)))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.split() == []


def test_no_room_reads_parquet_with_arrows_threads() -> None:
    """One that drops a Python buffer while the interpreter shuts down aborts the process, with all work done."""
    paths = list(Path(main.callback.__code__.co_filename).parent.rglob("*.py"))  # type: ignore[union-attr]
    assert len(paths) > 100
    for path in paths:
        code = path.read_text()
        assert "pq.read_table(" not in code, path
        for call in re.findall(r"\.(?:iter_batches|read_row_groups?)\((?:[^()]|\([^()]*\))*\)", code):
            assert "use_threads=False" in call, f"{path}: {call}"
