"""Whole jobs through the command line, the tiny model and a real Ray: made, stopped, killed, resumed, read back."""

from __future__ import annotations

import io
import json
import os
import secrets
import shlex
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile
from click.testing import Result

from jobs import making
from jobs.crew.crew import Crew
from jobs.formats.keys import key_of
from s3gen.constants import SAMPLES_PER_TOKEN
from tests.jobs.command import cli
from tests.jobs.inputs import VOICES, good_rows, write_clips, write_config, write_manifest
from tests.jobs.ray_session import local_ray
from tests.jobs.scrape import scraped

__all__ = ["local_ray"]

MOST_SECONDS = 120.0  # for what may take some on a busy machine, and must not take for ever
# The command line, which a busy machine does not end before it has said what it has to say.
COMMAND = "from jobs import stop; stop.LEAVE_SECONDS = 100.0; from jobs.cli import main; main()"
AWKWARD_IDS = ["a/b.c", "../up", "ü 100%", "x" * 10_000, "", "-rf", "new\nline", "CON", "id.flac"]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a voice table that the command line has made."""
    folder = tmp_path_factory.mktemp("inputs")
    write_clips(folder / "clips")
    (folder / "clips" / "broken.wav").write_text("no audio")
    result = cli("voices", folder / "clips", "--out", folder / "voices.parquet", "--model", "random:tiny")
    assert result.exit_code == 3, result.output
    assert "broken: unreadable" in result.output
    return folder


def _config(folder: Path, inputs: Path, columns: dict[str, Any], **values: Any) -> Path:
    manifest = write_manifest(folder / "manifest.parquet", columns)
    return write_config(
        folder / "job.yaml",
        **{
            "manifest": str(manifest),
            "voices": str(inputs / "voices.parquet"),
            "output": str(folder / "out"),
            "shard_rows": 4,
            **values,
        },
    )


def _commits(output: Path) -> dict[str, int]:
    """The committed shards and when each was."""
    return {path.name: path.stat().st_mtime_ns for path in output.glob("ledger/commits/*/*.json")}


def _tree(folder: Path) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


# --- made and read back -----------------------------------------------------------------------------------------------


def _awkward_columns() -> tuple[dict[str, Any], dict[int, str]]:
    """A manifest with awkward ids and every kind of bad row, and which rows are to fail how."""
    columns = good_rows(24)
    columns["id"][: len(AWKWARD_IDS)] = AWKWARD_IDS
    columns["text"] = [f"text {i} é" if i % 3 else None for i in range(24)]
    columns["speaker"] = pa.array([{"age": i, "tags": ["x"] * (i % 3)} for i in range(24)])
    columns["raw"] = pa.array([bytes([i, 255]) for i in range(24)])
    columns["when"] = pa.array(range(24), pa.timestamp("us", "UTC"))
    columns["tokens"][9] = None
    columns["tokens"][10] = []
    columns["tokens"][11] = [3, -1]
    columns["tokens"][12] = [3, 6563]
    columns["voice_id"][13] = "nobody"
    columns["voice_id"][14] = None
    columns["id"][15] = None
    columns["id"][17] = columns["id"][16]  # rows 16..19 are one shard
    columns["tokens"][18] = [6561, *columns["tokens"][18], 6562]
    bad = {9: "null_tokens", 10: "empty_tokens", 11: "token_out_of_range", 12: "token_out_of_range"}
    bad |= {13: "unknown_voice", 14: "null_voice_id", 15: "null_id", 17: "duplicate_id"}
    return columns, bad


@pytest.fixture(scope="module", params=["parquet", "webdataset"])
def awkward(
    request: pytest.FixtureRequest, inputs: Path, tmp_path_factory: pytest.TempPathFactory, local_ray: None
) -> tuple[Path, str, Result]:
    """A finished job over such a manifest: its folder, format and what the command said."""
    folder = tmp_path_factory.mktemp(request.param)
    audio = {"parquet": "flac", "webdataset": "wav"}[request.param]
    config = _config(folder, inputs, _awkward_columns()[0], format=request.param, audio=audio, keep_inputs=True)
    return folder, request.param, cli("synth", config)


def _read_back(folder: Path, kind: str) -> Iterator[tuple[str, dict[str, Any], bytes]]:
    """Each row of the shards by way of the index: its id, its columns, its clip."""
    for row in pq.read_table(folder / "out/index.parquet").to_pylist():
        shard = folder / "out" / row["shard"]
        if kind == "parquet":
            found = pq.read_table(shard).to_pylist()[row["row"]]
            yield row["id"], found, found.pop("audio")["bytes"]
        else:
            with tarfile.open(shard) as tar:
                clip, text = tar.getmembers()[2 * row["row"] : 2 * row["row"] + 2]
                assert (clip.name, text.name) == (f"{key_of(row['id'])}.wav", f"{key_of(row['id'])}.json")
                data = [tar.extractfile(member).read() for member in (text, clip)]  # type: ignore[union-attr]
                yield row["id"], json.loads(data[0]), data[1]


def test_every_good_row_is_in_the_shards_once_with_its_own_columns(awkward: tuple[Path, str, Result]) -> None:
    folder, kind, result = awkward
    assert result.exit_code == 3, result.output
    columns, bad = _awkward_columns()
    good = [row for row in range(24) if row not in bad]
    rows = list(_read_back(folder, kind))
    assert [row_id for row_id, _, _ in rows] == [columns["id"][row] for row in good]
    for number, (row_id, found, clip) in zip(good, rows, strict=True):
        assert (found["id"], found["voice_id"]) == (row_id, columns["voice_id"][number])
        assert found["text"] == columns["text"][number]
        assert found["tokens"] == columns["tokens"][number]
        assert found["speaker"] == columns["speaker"][number].as_py()
        tokens = [token for token in columns["tokens"][number] if token < 6561]
        info = soundfile.info(io.BytesIO(clip))
        assert (info.frames, info.samplerate, info.channels) == (SAMPLES_PER_TOKEN * len(tokens), 24_000, 1)
        assert info.subtype == "PCM_16"
        if kind == "parquet":
            assert found["raw"] == columns["raw"][number].as_py()
            assert found["when"] == columns["when"][number].as_py()
    assert len({tuple(clip) for _, _, clip in rows}) == len(rows)


def test_every_bad_row_is_in_the_failures_table_with_its_reason(awkward: tuple[Path, str, Result]) -> None:
    folder, _, result = awkward
    columns, bad = _awkward_columns()
    table = pq.read_table(folder / "out/failures.parquet")
    assert table.column_names[:6] == ["id", "voice_id", "error", "message", "manifest", "row"]
    assert {row["row"]: row["error"] for row in table.to_pylist()} == bad
    assert [row["text"] for row in table.to_pylist()] == [columns["text"][row] for row in bad]
    assert "failed: 8 rows" in result.output
    assert "random, so this is noise" in result.output


def test_a_finished_job_verifies_and_says_so(awkward: tuple[Path, str, Result]) -> None:
    folder, _, _ = awkward
    verified = cli("verify", folder / "out")
    assert verified.exit_code == 0, verified.output
    status = cli("status", folder / "out", "--json")
    found = json.loads(status.stdout)
    assert status.exit_code == 0
    assert (found["state"], found["rows_total"], found["rows_done"], found["rows_failed"]) == ("finished", 24, 16, 8)


@pytest.mark.parametrize("again", ["synth", "resume"])
def test_a_finished_job_is_not_touched_again(awkward: tuple[Path, str, Result], again: str) -> None:
    folder, _, _ = awkward
    before = _tree(folder / "out/audio") | _commits(folder / "out")
    result = cli(again, folder / ("job.yaml" if again == "synth" else "out"))
    assert result.exit_code == 3
    assert "nothing was left to do" in result.output
    assert _tree(folder / "out/audio") | _commits(folder / "out") == before


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ("seed=5", "seed: was 0, is 5"),
        ("engine.n_cfm_timesteps=2", "engine.n_cfm_timesteps: was null, is 2"),
        ("engine.solver=heun", 'engine.solver: was "euler", is "heun"'),
        ("shard_rows=5", "shard_rows: was 4, is 5"),
        ("model=random:full", "model: was"),
        ("keep_inputs=false", "keep_inputs: was true, is false"),
    ],
)
def test_a_change_that_would_change_the_output_is_refused_by_name(
    awkward: tuple[Path, str, Result], change: str, named: str
) -> None:
    folder, _, _ = awkward
    before = _tree(folder)
    result = cli("resume", folder / "out", "--set", change)
    assert result.exit_code == 2
    assert named in result.stderr
    assert "Traceback" not in result.output
    assert _tree(folder) == before


def test_a_changed_manifest_or_table_is_refused(awkward: tuple[Path, str, Result], inputs: Path) -> None:
    folder, _, _ = awkward
    columns = _awkward_columns()[0]
    columns["tokens"][0] = [1, 2, 3, 4, 5]
    other = write_manifest(folder / "other.parquet", columns)
    given = folder / "manifest.parquet"
    kept = given.read_bytes(), given.stat()
    given.write_bytes(other.read_bytes())
    result = cli("synth", folder / "job.yaml")
    given.write_bytes(kept[0])
    os.utime(given, ns=(kept[1].st_atime_ns, kept[1].st_mtime_ns))
    assert result.exit_code == 2
    assert f"manifest {given}" in result.stderr


# --- workers ----------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("local_ray")
def test_a_worker_killed_from_outside_does_not_end_the_job(
    inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    killed: list[int] = []

    class Stricken(Crew):
        """Once a shard is there, a worker that has another one in hand is killed."""

        def work(self, schedule: Any, on_report: Callable[[int, Any], None], *others: Any) -> None:
            def strike(shard: int, report: Any) -> None:
                on_report(shard, report)
                at_work = [sight.name for sight in self.sights() if sight.held]
                if at_work and not killed:
                    killed.append(int(at_work[0].rpartition(":")[2]))
                    os.kill(killed[0], signal.SIGKILL)

            super().work(schedule, strike, *others)

    monkeypatch.setattr(making, "Crew", Stricken)
    result = cli("synth", _config(tmp_path, inputs, good_rows(40), workers=2))
    assert result.exit_code == 0, result.output
    assert f"process {killed[0]}) died" in result.stderr
    assert cli("verify", tmp_path / "out").exit_code == 0
    rows_done = ("s3gen_rows_done", "")
    told = scraped(str(tmp_path / "out"), lambda found: rows_done in found)
    assert 0 < told[rows_done] <= 40  # Ray may be late with some, and may lose some on a busy machine
    assert pq.read_table(tmp_path / "out/index.parquet").num_rows == 40


@pytest.mark.usefixtures("local_ray")
def test_what_cannot_be_made_ends_in_exit_1_with_what_is_left_and_a_resume_makes_it(
    inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = [write_manifest(tmp_path / f"part-{n}.parquet", good_rows(4, seed=n)) for n in range(2)]
    pq.write_table(pq.read_table(parts[1]).set_column(0, "id", [[f"other-{n}" for n in range(4)]]), parts[1])
    hidden = tmp_path / "hidden"

    class Forgetful(Crew):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            parts[1].rename(hidden)

    monkeypatch.setattr(making, "Crew", Forgetful)
    budget = {"max_frames": 8192}  # not auto, which takes a crew of its own
    config = _config(tmp_path, inputs, good_rows(1), manifest=str(tmp_path / "part-*.parquet"), batch=budget)
    result = cli("synth", config)
    monkeypatch.undo()
    assert result.exit_code == 1
    assert "1 of 2 shards are not done" in result.stderr
    assert "part-1.parquet: no such file" in result.stderr
    assert f"s3gen resume {tmp_path}/out" in result.stderr
    assert "Traceback" not in result.output
    before = _commits(tmp_path / "out")
    hidden.rename(parts[1])
    assert cli("resume", tmp_path / "out").exit_code == 0
    assert before.items() < _commits(tmp_path / "out").items()


@pytest.mark.usefixtures("local_ray")
def test_voices_made_by_workers_are_those_made_here(inputs: Path, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr("jobs.voices.build.PART_VOICES", 2)
    out = tmp_path / "v.parquet"
    result = cli("voices", inputs / "clips", "--out", out, "--model", "random:tiny", "--workers", 2)
    assert result.exit_code == 3, result.output
    here, there = pq.read_table(inputs / "voices.parquet"), pq.read_table(out)
    assert there.column("voice_id").to_pylist() == sorted(VOICES)
    for name in ("prompt_token", "tokens", "frames", "duration", "source_digest"):
        assert there.column(name).to_pylist() == here.column(name).to_pylist()
    for mine, theirs in zip(here.column("prompt_feat"), there.column("prompt_feat"), strict=True):
        np.testing.assert_allclose(mine.values.to_numpy(), theirs.values.to_numpy(), atol=1e-4)
    assert not out.with_name("v.parquet.parts").exists()


@pytest.mark.usefixtures("local_ray")
def test_a_trial_goes_to_an_output_of_its_own(inputs: Path, tmp_path: Path) -> None:
    config = _config(tmp_path, inputs, good_rows(20))
    manifest = write_manifest(tmp_path / "my rows.parquet", good_rows(9))
    result = cli("synth", config, "--limit", 3, "--manifest", manifest)
    assert result.exit_code == 0, result.output
    assert "trial of the first 3 rows" in result.stderr
    assert not (tmp_path / "out").exists()
    index = pq.read_table(tmp_path / "out-trial-3/index.parquet")
    assert index.column("id").to_pylist() == ["row-0000", "row-0001", "row-0002"]
    # What it tells its user to do next works as it stands.
    said = dict(line.split(": ", 1) for line in result.stdout.splitlines() if ": s3gen " in line)
    for line in said.values():
        following = cli(*shlex.split(line)[1:])
        assert following.exit_code == 0, following.output
    assert following.stdout.startswith("rows: 9 in ")
    assert "worker-hours: " in following.stdout
    assert (tmp_path / "out-trial-3/report.html").exists()


# --- drivers ----------------------------------------------------------------------------------------------------------


class Driver:
    """`s3gen` in a process of its own, and all processes that it starts."""

    def __init__(self, *arguments: str | Path) -> None:
        self._mark = f"S3GEN_TEST={secrets.token_hex(8)}"
        name, value = self._mark.split("=")
        self.process = subprocess.Popen(
            [sys.executable, "-c", COMMAND, *map(str, arguments)],
            env={**os.environ, name: value},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def wait_for(self, condition: Callable[[], bool], seconds: float = MOST_SECONDS) -> None:
        until = time.monotonic() + seconds
        while not condition():
            assert self.process.poll() is None, self.process.communicate()
            assert time.monotonic() < until
            time.sleep(0.02)

    def family(self) -> list[int]:
        """Itself and the processes that it, or one of them, started; without Ray's agents, which end a minute later."""
        alive = []
        for process in Path("/proc").glob("[0-9]*"):
            try:
                ours = self._mark.encode() in (process / "environ").read_bytes()
                if ours and b"Agent" not in (process / "cmdline").read_bytes():
                    alive.append(int(process.name))
            except OSError:
                continue
        return alive


def test_a_job_that_is_stopped_then_killed_then_resumed_makes_nothing_twice(
    inputs: Path, tmp_path: Path, local_ray: None
) -> None:
    output = tmp_path / "out"
    config = _config(tmp_path, inputs, good_rows(80), workers=2, shard_rows=2)
    stopped = _stop_politely(config, output)
    killed = _kill(output, at_least=len(stopped) + 2)
    assert stopped.items() < killed.items()

    result = cli("resume", output, "--set", "workers=1")
    assert result.exit_code == 0, result.output
    assert killed.items() < _commits(output).items()
    assert cli("verify", output).exit_code == 0
    index = pq.read_table(output / "index.parquet")
    assert index.column("id").to_pylist() == good_rows(80)["id"]
    assert {f"audio/{path.name}" for path in (output / "audio").iterdir()} == set(index.column("shard").to_pylist())


def _stop_politely(config: Path, output: Path) -> dict[str, int]:
    """Runs the job until it has begun, then asks it to stop."""
    driver = Driver("synth", config)
    driver.wait_for(lambda: len(_commits(output)) >= 1)
    driver.process.send_signal(signal.SIGTERM)
    _, stderr = driver.process.communicate(timeout=MOST_SECONDS)
    assert driver.process.returncode == 1
    assert "stopped by SIGTERM" in stderr
    assert f"s3gen resume {output}" in stderr
    assert "Traceback" not in stderr
    assert json.loads(cli("status", output, "--json").stdout)["state"] == "stopped"
    lease = json.loads(next((output / "ledger/lease").iterdir()).read_text())
    assert lease["released"] is True
    return _commits(output)


def _kill(output: Path, at_least: int) -> dict[str, int]:
    """Resumes the job and kills its driver after some shards; its workers end by themselves."""
    driver = Driver("resume", output)
    driver.wait_for(lambda: len(_commits(output)) >= at_least)
    found = json.loads(cli("status", output, "--json").stdout)  # while another process works
    assert (found["state"], found["shards_done"] >= at_least, found["rows_failed"]) == ("running", True, 0)
    driver.process.kill()
    driver.process.communicate()
    until = time.monotonic() + MOST_SECONDS
    while driver.family() and time.monotonic() < until:
        time.sleep(0.1)
    assert driver.family() == []
    assert json.loads(cli("status", output, "--json").stdout)["state"] == "stopped"
    return _commits(output)
