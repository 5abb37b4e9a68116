"""Hostile inputs as a user meets them: one message and an exit code, nothing run, nothing outside of the output."""

from __future__ import annotations

import json
import os
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from click.testing import Result

from jobs.errors import InputError
from jobs.finish import finalise
from s3gen import S3GenModel
from tests.jobs import made_job
from tests.jobs.command import cli
from tests.jobs.forged_parquet import CHUNK, COLUMNS, ROW_GROUPS, footer_of
from tests.jobs.inputs import good_rows, write_clips, write_config, write_manifest
from tests.jobs.parquet.test_hostile_parquet import BOMBS, LIES, plain
from tests.jobs.ray_session import local_ray

__all__ = ["local_ray"]


@pytest.fixture
def job(table: Path, tmp_path: Path) -> dict[str, Any]:
    manifest = write_manifest(tmp_path / "manifest.parquet", good_rows(6))
    return {"manifest": str(manifest), "voices": str(table), "output": str(tmp_path / "out"), "shard_rows": 2}


def refused(result: Result, *parts: str) -> None:
    assert result.exit_code == 2, result.output
    assert result.stderr.startswith("error: ")
    assert "Traceback" not in result.output
    assert len(result.stderr) < 3_000
    for part in parts:
        assert part in result.stderr


# --- bad input --------------------------------------------------------------------------------------------------------

HOSTILE_MANIFESTS: dict[str, Callable[[], bytes]] = {
    **{name: build for name, (build, end) in BOMBS.items() if end == "scan"},
    **{name: lambda change=change: change(plain(40)) for name, (change, _) in LIES.items()},
}


@pytest.mark.parametrize("name", HOSTILE_MANIFESTS)
def test_a_hostile_manifest_begins_a_job(job: dict[str, Any], tmp_path: Path, name: str) -> None:
    Path(job["manifest"]).write_bytes(HOSTILE_MANIFESTS[name]())
    refused(cli("synth", write_config(tmp_path / "job.yaml", **job)), job["manifest"])
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", [name for name, (_, end) in BOMBS.items() if end == "read"])
def test_a_plan_of_rows_that_cannot_be_read_ends_in_a_traceback(job: dict[str, Any], tmp_path: Path, name: str) -> None:
    Path(job["manifest"]).write_bytes(BOMBS[name][0]())
    refused(cli("plan", write_config(tmp_path / "job.yaml", **job)), job["manifest"], "(row group 0)")


class Evil:
    def __init__(self, canary: Path) -> None:
        self._canary = canary

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.system, (f"touch {self._canary}",))


def test_a_pickled_model_is_run(job: dict[str, Any], tmp_path: Path) -> None:
    torch.save({"evil": Evil(tmp_path / "canary")}, tmp_path / "s3gen.pt")
    config = write_config(tmp_path / "job.yaml", **job | {"model": str(tmp_path / "s3gen.pt")})
    refused(cli("synth", config), "s3gen.pt", "pickled code are refused")
    write_clips(tmp_path / "clips")
    out = tmp_path / "v.parquet"
    refused(cli("voices", tmp_path / "clips", "--out", out, "--model", tmp_path / "s3gen.pt"), "pickled code")
    assert not (tmp_path / "canary").exists()
    assert not out.exists()


def test_a_model_whose_configuration_is_a_bomb_is_built(job: dict[str, Any], tmp_path: Path) -> None:
    S3GenModel.from_pretrained("random:tiny").save_pretrained(tmp_path / "model")
    config = write_config(tmp_path / "job.yaml", **job | {"model": str(tmp_path / "model")})
    for text in ("[" * 100_000, '{"encoder_num_blocks": 1000000000}', '{"encoder_attention_heads": 0}'):
        (tmp_path / "model" / "config.json").write_text(text)
        # A single file describes itself, so that the folder's configuration must be what is read.
        weights = (tmp_path / "model" / "model.safetensors").read_bytes().replace(b'"s3gen_config"', b'"s3gen_conf_g"')
        (tmp_path / "model" / "model.safetensors").write_bytes(weights)
        refused(cli("synth", config), "model: ")


def test_a_table_that_is_none_or_a_folder_is_used(job: dict[str, Any], tmp_path: Path) -> None:
    whole = Path(job["voices"]).read_bytes()
    for number, data in enumerate((b"", whole[:-50], whole[: len(whole) // 2] + whole[-200:], plain(3))):
        path = tmp_path / f"v{number}.parquet"
        path.write_bytes(data)
        refused(cli("synth", write_config(tmp_path / "job.yaml", **job | {"voices": str(path)})), "voices: ", str(path))
    refused(cli("synth", write_config(tmp_path / "job.yaml", **job | {"voices": str(tmp_path)})), "is a folder")


@pytest.mark.parametrize("seconds", ["inf", "nan", "1e300", "0"])
def test_clips_of_any_length_are_asked_for(tmp_path: Path, seconds: str) -> None:
    write_clips(tmp_path / "clips")
    options = ("--out", tmp_path / "v.parquet", "--model", "random:tiny", "--max-seconds", seconds)
    refused(cli("voices", tmp_path / "clips", *options), "--max-seconds")


# --- rows that cannot be read -----------------------------------------------------------------------------------------


def damage(manifest: Path, group: int) -> None:
    """Zeros where the ids of a row group were."""
    data = bytearray(manifest.read_bytes())
    chunk = footer_of(bytes(data))[ROW_GROUPS][1][1][group][COLUMNS][1][1][0][CHUNK][1]
    start = chunk[9][1]
    data[start : start + 10] = bytes(10)
    manifest.write_bytes(bytes(data))


@pytest.mark.usefixtures("local_ray")
def test_a_damaged_row_group_takes_the_others_with_it_or_ends_as_a_mystery(job: dict[str, Any], tmp_path: Path) -> None:
    manifest = Path(job["manifest"])
    write_manifest(manifest, {**good_rows(6), "tokens": [[1, 2, 3]] * 6})
    pq.write_table(pq.read_table(manifest), manifest, row_group_size=2)
    damage(manifest, 1)
    config = write_config(tmp_path / "job.yaml", **job | {"engine": {"n_cfm_timesteps": 1}})
    result = cli("synth", config)
    assert result.exit_code == 1, result.output
    assert "1 of 3 shards are not done" in result.stderr
    assert f"shard 1 was given up: {manifest}: cannot read rows 2 to 4 (row group 1): " in result.stderr
    assert "Traceback" not in result.output
    status = json.loads(cli("status", tmp_path / "out", "--json").stdout)
    assert (status["shards_done"], status["rows_done"]) == (2, 4)


# --- nothing escapes --------------------------------------------------------------------------------------------------

PATHS = [
    *(
        "../../escaped",
        "/tmp/escaped",
        "..",
        ".",
        "",
        "~root",
        "-rf",
        "$(touch escaped)",
        "a\x00b",
        "a\nb",
        "\u202egpj",
    ),
    *(
        "CON",
        "nul.txt",
        "C:\\escaped",
        "\\\\server\\share",
        "a:b",
        "trailing.",
        "trailing ",
        "x" * 10_000,
        "%2E%2E%2F",
        "é",
    ),
]


@pytest.mark.parametrize("kind", ["parquet", "webdataset"])
def test_an_id_is_a_path(tmp_path: Path, kind: str) -> None:
    count = len(PATHS)
    tokens = [[1, 2]] * count
    (tmp_path / "in").mkdir()
    manifest = write_manifest(tmp_path / "in" / "m.parquet", {"id": PATHS, "voice_id": PATHS, "tokens": tokens})
    output = tmp_path / "work" / "out"
    ledger = made_job.start(str(output), str(manifest), format=kind)
    made_job.make_all(ledger)
    finalise(ledger)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "work"]
    assert [path.name for path in (tmp_path / "work").iterdir()] == ["out"]
    assert not Path("/tmp/escaped").exists()
    assert pq.read_table(output / "index.parquet")["id"].to_pylist() == PATHS
    names = [name for path in sorted((output / "audio").iterdir()) for name in names_in(path, tmp_path / "unpacked")]
    assert len(set(names)) == count * (2 if kind == "webdataset" else 1)
    for name in names:
        assert set(name).isdisjoint('/\\:\x00\n *?"<>|$')
        assert not name.startswith(".")
        assert name.count(".") == 1
        assert len(name) <= 126


def names_in(shard: Path, folder: Path) -> list[str]:
    """The names of files in a shard, which tar unpacks as they are into a folder."""
    if shard.suffix == ".parquet":
        return [audio["path"] for audio in pq.read_table(shard)["audio"].to_pylist()]
    with tarfile.open(shard) as tar:
        members = tar.getmembers()
        tar.extractall(folder, filter="data")
    assert all(member.isreg() and (folder / member.name).is_file() for member in members)
    return [member.name for member in members]


def test_a_link_in_the_output_is_written_through(tmp_path: Path) -> None:
    """A file that is a link is replaced; what it led to stays as it was, also when the end clears away."""
    mine = tmp_path / "mine"
    mine.write_text("mine")
    ledger = made_job.start(str(tmp_path / "out"), made_job.write_manifest(tmp_path / "m.parquet"))
    made_job.make_all(ledger)
    for name in ("index.parquet", "failures.parquet", "audio/0000000-0123456789ab.parquet", "ledger/finished.json"):
        (tmp_path / "out" / name).symlink_to(mine)
    (tmp_path / "out" / "ledger" / "finished.json").unlink()
    finalise(ledger)
    assert mine.read_text() == "mine"
    for name in ("index.parquet", "failures.parquet"):
        assert not (tmp_path / "out" / name).is_symlink()
    assert not (tmp_path / "out" / "audio" / "0000000-0123456789ab.parquet").exists()


def test_a_folder_of_recordings_behind_a_link_is_cleared_away(tmp_path: Path) -> None:
    (tmp_path / "recordings").mkdir()
    (tmp_path / "recordings" / "mine.wav").write_text("mine")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "audio").symlink_to(tmp_path / "recordings")
    with pytest.raises(InputError, match=r"there is no job\.json, but audio/mine\.wav"):
        made_job.start(str(tmp_path / "out"), made_job.write_manifest(tmp_path / "m.parquet"))
    assert (tmp_path / "recordings" / "mine.wav").read_text() == "mine"
