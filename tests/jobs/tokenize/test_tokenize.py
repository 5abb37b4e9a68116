"""Jobs of tokens through the command line: made, stopped, gone on with, and spoken in another voice."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile

from jobs import making
from jobs.crew.crew import Crew
from jobs.finish import finalise
from jobs.parquet.reader import read_parquet
from jobs.storage.folders import Folder
from s3gen import S3GenModel
from s3gen.constants import SAMPLES_PER_TOKEN
from tests.jobs import made_job
from tests.jobs.command import cli
from tests.jobs.inputs import write_config
from tests.jobs.ray_session import local_ray
from tests.jobs.recorded import audio_file, write_audio_parquet, write_folder

__all__ = ["local_ray"]

pytestmark = pytest.mark.usefixtures("local_ray")
FAILURES = "tokens.job/failures.parquet"
NAMES = ["b.wav", "a.flac", "sub/c.d.wav", "e.wav", "f.wav"]


class StoppingCrew(Crew):
    """Its run is interrupted after the first report."""

    def work(self, schedule: Any, on_report: Any, *args: Any, **kwargs: Any) -> None:
        def stop(task: int, report: Any) -> None:
            on_report(task, report)
            raise KeyboardInterrupt

        super().work(schedule, stop, *args, **kwargs)


def _files(folder: Path) -> dict[str, int]:
    """Files and when they were written; not those that are just being written."""
    files = [path for path in folder.rglob("*") if path.suffix != ".part" and path.is_file()]
    return {str(path): path.stat().st_mtime_ns for path in files}


def _tokenize(source: Path | str, out: Path, *more: str) -> Any:
    return cli("tokenize", source, "--out", out, "--model", "random:tiny", "--shard-rows", "2", *more)


def _rows(path: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = pq.read_table(path).to_pylist()
    return rows


def test_a_speaker_cannot_be_given_another_voice(table: Path, tmp_path: Path) -> None:
    """A data set's audio is made tokens, and these are spoken by somebody else, with their columns."""
    first, tokens, second = tmp_path / "first", tmp_path / "tokens.parquet", tmp_path / "second"
    ledger = made_job.start(str(first), made_job.write_manifest(tmp_path / "manifest.parquet"), keep_inputs=True)
    made_job.make_all(ledger)
    finalise(ledger)
    rows = _rows(first / "index.parquet")
    result = _tokenize(first, tokens, "--voice", "bert", "--shard-rows", "5")
    assert result.exit_code == 0, result.output
    assert "12 of 12 recordings tokenized" in result.output
    found = _rows(tokens)
    assert [(row["id"], row["audio_seconds"], len(row["tokens"])) for row in found] == [
        (row["id"], row["duration"], row["samples"] // SAMPLES_PER_TOKEN) for row in rows
    ]
    assert {row["voice_id"] for row in found} == {"bert"}
    assert [len(row["source_tokens"]) for row in found] == [len(row["tokens"]) for row in found]
    config = write_config(
        tmp_path / "job.yaml",
        manifest=str(tokens),
        voices=str(table),
        output=str(second),
        engine={"n_cfm_timesteps": 1},
    )
    assert cli("synth", config).exit_code == 0
    spoken = _rows(second / "index.parquet")
    assert [(row["id"], row["samples"]) for row in spoken] == [(row["id"], row["samples"]) for row in rows]
    assert {row["voice_id"] for row in spoken} == {"bert"}
    shard = _rows(second / spoken[0]["shard"])[0]
    assert (shard["text"], shard["source_tokens"]) == (found[0]["text"], found[0]["source_tokens"])
    assert cli("verify", f"{tokens}.job").exit_code == 0
    status = json.loads(cli("status", f"{tokens}.job", "--json").stdout)
    assert (status["state"], status["rows_done"]) == ("finished", 12)
    assert status["audio_seconds"] == pytest.approx(sum(row["duration"] for row in rows))


def test_what_was_tokenized_is_tokenized_again_or_new_files_get_in(
    tiny_model: S3GenModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, out = write_folder(tmp_path / "in", NAMES), tmp_path / "tokens.parquet"
    with monkeypatch.context() as patch:
        patch.setattr(making, "Crew", StoppingCrew)
        assert _tokenize(folder, out).exit_code == 1
    job = tmp_path / "tokens.parquet.job"
    commits = _files(job / "ledger/commits")
    assert commits
    assert not out.exists()
    (folder / "a0.wav").write_bytes(audio_file(seed=99))

    # Another run of either kind goes on with the recordings that there were.
    with monkeypatch.context() as patch:
        patch.setattr(making, "Crew", StoppingCrew)
        assert cli("resume", job).exit_code == 1
    result = _tokenize(folder, out)
    assert result.exit_code == 0, result.output
    assert "going on with the 5 recordings" in result.stderr
    assert commits.items() <= _files(job / "ledger/commits").items()
    rows = _rows(out)
    assert [row["id"] for row in rows] == ["a", "b", "e", "f", "sub/c.d"]
    for row in rows:
        wav, rate = soundfile.read(next(folder.glob(f"{row['id']}.*")), dtype="float32")
        assert row["tokens"] == tiny_model.tokenize(wav, rate)[0][0].tolist()

    # What is finished stays as it is.
    before = _files(tmp_path)
    for again in (_tokenize(folder, out), cli("resume", job)):
        assert again.exit_code == 0
        assert "nothing was left to do" in again.output
    assert _files(tmp_path) == before
    out.unlink()
    result = _tokenize(folder, out)
    assert (result.exit_code, f"{out} is gone" in result.stderr) == (2, True), result.output


def test_a_job_goes_on_as_another_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clip = {"bytes": audio_file(), "path": "a.wav"}
    source, out = write_audio_parquet(tmp_path / "in.parquet", [clip] * 3, id=["a", "b", "c"]), tmp_path / "t.parquet"
    with monkeypatch.context() as patch:
        patch.setattr(making, "Crew", StoppingCrew)
        assert _tokenize(source, out).exit_code == 1
    before = _files(tmp_path)
    for change, message in (
        (["--voice", "x"], 'voice: was null, is "x"'),
        (["--model", "random:full"], 'model: was "random:tiny", is "random:full"'),
        (["--shard-rows", "3"], "shard_rows: was 2, is 3"),
    ):
        result = _tokenize(source, out, *change)
        assert (result.exit_code, message in result.stderr) == (2, True), result.stderr
    assert cli("resume", f"{out}.job", "--set", "voice=x").exit_code == 2
    assert cli("resume", f"{out}.job", "--set", "wokers=3").exit_code == 2
    assert _files(tmp_path) == before
    write_audio_parquet(source, [clip] * 4, id=["a", "b", "c", "d"])
    result = _tokenize(source, out)
    assert result.exit_code == 2
    assert f"manifest {source}: was 3 rows" in result.stderr


@pytest.mark.parametrize(
    ("source", "out", "more", "message"),
    [
        ("none", "t.parquet", [], "INPUT: no such file"),
        ("empty.parquet", "t.parquet", [], "has no rows"),
        ("text.parquet", "t.parquet", [], "INPUT: .*text.parquet: no column 'audio' and no column 'path'"),
        ("in", "taken.parquet", [], "taken.parquet is there already"),
        ("in", "t.parquet", ["--workers", "many"], "workers: 'many' is refused: give a whole number or auto"),
        ("in", "t.parquet", ["--model", "none/here"], "model: "),
        ("in", "http://127.0.0.1/t.parquet", [], "nothing is written to http"),
    ],
)
def test_bad_input_starts_a_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str, out: str, more: list[str], message: str
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    write_folder(tmp_path / "in", ["a.wav"])
    pq.write_table(
        pa.table({"id": pa.array([], pa.string()), "path": pa.array([], pa.string())}), tmp_path / "empty.parquet"
    )
    pq.write_table(pa.table({"id": ["a"], "text": ["x"]}), tmp_path / "text.parquet")
    (tmp_path / "taken.parquet").write_bytes(b"mine")
    before = _files(tmp_path)
    place = out if "://" in out else tmp_path / out
    result = cli("tokenize", tmp_path / source, "--out", place, "--model", "random:tiny", *more)
    assert result.exit_code == 2, result.output
    assert "Traceback" not in result.output
    assert re.search(message, result.stderr), result.stderr
    assert _files(tmp_path) == before


def test_failures_end_a_job_or_a_job_in_a_store_needs_a_disk(tmp_path: Path, s3: str) -> None:
    clips = Folder(f"{s3}/in")
    for name in ("a.wav", "a.flac", "b.wav", "c.wav"):
        clips.put(name, audio_file() if name != "b.wav" else b"no audio")
    result = cli("tokenize", f"{s3}/in", "--out", f"{s3}/out/tokens", "--model", "random:tiny")
    assert result.exit_code == 3, result.output
    assert "2 of 4 recordings tokenized" in result.output
    assert f"failed: 2 rows, with their reasons in {s3}/out/tokens.job/failures.parquet" in result.output
    out = Folder(f"{s3}/out")
    assert out.list("tokens/") == ["tokens/part-0000.parquet"]
    found = {name: read_parquet(out.read(name)).to_pylist() for name in ("tokens/part-0000.parquet", FAILURES)}
    assert [row["id"] for row in found["tokens/part-0000.parquet"]] == ["a", "c"]
    assert [(row["id"], row["error"], row["path"]) for row in found[FAILURES]] == [
        ("a", "duplicate_id", f"{s3}/in/a.wav"),
        ("b", "unreadable", f"{s3}/in/b.wav"),
    ]
    again = cli("resume", f"{s3}/out/tokens.job", "--retry-failed")
    assert again.exit_code == 3, again.output
    assert "no row is to be tried again" in again.output
