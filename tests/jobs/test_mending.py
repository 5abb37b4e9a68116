"""Failures are a to-do list: rows whose cause is mended come out of the same job, or out of another one."""

from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq
import pytest

from jobs import making
from jobs.storage.folders import Folder
from jobs.verify.verify import verify
from jobs.voices.build import VoiceBuild
from jobs.voices.parts import VoiceMaker
from jobs.voices.sources import Source
from s3gen import S3GenModel
from tests.jobs.command import cli
from tests.jobs.crew.test_poison import PoisonedCrew
from tests.jobs.inputs import build_table, good_rows, write_clips, write_config, write_manifest
from tests.jobs.poisoned_worker import Poisoned
from tests.jobs.ray_session import local_ray

__all__ = ["local_ray"]

NEW_VOICE = "dora"


def read(output: Path, name: str) -> list[dict[str, object]]:
    rows: list[dict[str, object]] = pq.read_table(output / name).to_pylist()
    return rows


@pytest.mark.usefixtures("local_ray")
def test_rows_that_failed_stay_failed_when_their_cause_is_mended(
    tiny_model: S3GenModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_clips(tmp_path / "clips")
    voices = tiny_model.voice_fingerprint()
    table = build_table(tiny_model, tmp_path / "clips", tmp_path / "voices.parquet")
    columns = good_rows(4) | {"text": ["a", "b", "c", "d"]}
    columns["tokens"][1] = [Poisoned.FAULTY]
    columns["voice_id"][2] = NEW_VOICE
    output, other = tmp_path / "out", tmp_path / "other"
    config = write_config(
        tmp_path / "job.yaml",
        manifest=str(write_manifest(tmp_path / "manifest.parquet", columns)),
        voices=str(table),
        output=str(output),
        shard_rows=2,
        batch={"max_frames": 8_192},
        engine={"device": "cpu", "n_cfm_timesteps": 1},
    )
    with monkeypatch.context() as patch:
        patch.setattr(making, "Crew", PoisonedCrew)
        assert cli("synth", config).exit_code == 3
    errors = {row["id"]: row["error"] for row in read(output, "failures.parquet")}
    assert errors == {"row-0001": "synthesis_error", "row-0002": "unknown_voice"}
    shards = {str(row["shard"]) for row in read(output, "index.parquet")}
    audio = {shard: (output / shard).read_bytes() for shard in shards}

    # Whatever was wrong with the machine is mended.
    result = cli("resume", output, "--retry-failed")
    assert result.exit_code == 3, result.output
    assert "3 of 4 rows made" in result.stdout
    assert [row["id"] for row in read(output, "index.parquet")] == ["row-0000", "row-0003", "row-0001"]
    assert [row["id"] for row in read(output, "failures.parquet")] == ["row-0002"]
    assert {name: (output / name).read_bytes() for name in audio} == audio
    assert verify(str(output)).findings == []
    again = cli("resume", output, "--retry-failed")
    assert again.exit_code == 3
    assert "no row is to be tried again" in again.stdout
    assert cli("synth", config).exit_code == 3

    # A voice that was missing is there.
    build = VoiceBuild(str(table), None, voice_fingerprint=voices, max_seconds=None, append=True)
    maker = VoiceMaker(tiny_model, Folder(build.parts_url), max_seconds=build.max_seconds)
    sources = [Source(NEW_VOICE, str(tmp_path / "clips" / "anna.wav"))]
    build.finish([maker.run(part) for part in build.parts(sources)], [])
    made = cli("synth", config, "--manifest", output / "failures.parquet", "--set", f"output={other}")
    assert made.exit_code == 0, made.output
    (shard,) = (other / "audio").iterdir()
    (kept,) = read(other, f"audio/{shard.name}")
    assert (kept["id"], kept["voice_id"], kept["text"]) == ("row-0002", NEW_VOICE, "c")
