"""Rows beyond `max_tokens` in a job that splits them: what is made, what the index says, and what is refused."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import soundfile
import torch

from jobs.changes import job_changes
from jobs.config.config import JobConfig, config_from
from jobs.errors import InputError
from jobs.finish import finalise
from jobs.ledger.ledger import Ledger
from jobs.manifest.manifest import Manifest
from jobs.manifest.rows import check_rows
from jobs.manifest.token_lists import MOST_TOKENS
from jobs.plan import make_plan
from jobs.report.report import read, render
from jobs.storage.folders import Folder
from jobs.verify.verify import verify
from jobs.voices.table import VoiceTable
from jobs.worker.worker import Worker, fingerprints
from s3gen import S3GenModel, Splitting
from s3gen.constants import SAMPLES_PER_TOKEN, SILENCE_TOKEN
from tests.conftest import relative_error
from tests.jobs import made_job
from tests.jobs.command import cli
from tests.jobs.inputs import good_rows, write_config, write_manifest
from tests.jobs.manifest.test_manifest import table_of

SPLIT = {"on_long": "split", "max_tokens": 48}
LONG = {1: 100, 4: 49}  # tokens of rows that are cut
CUTS = {1: [26, 39, 52, 76], 4: [24]}  # two of the first row's are in pauses
PATHS = {"model": "random:tiny", "manifest": "m", "voices": "v", "output": "o"}


def _columns() -> dict[str, list[Any]]:
    columns = good_rows(6)
    for row, count in LONG.items():
        columns["tokens"][row] = [(7 * row + 3 * place) % 6_561 for place in range(count)]
    columns["tokens"][1][50:54] = [SILENCE_TOKEN] * 4
    columns["tokens"][1][25:27] = [SILENCE_TOKEN] * 2
    return columns


def _ledger(model: S3GenModel, table: Path, folder: Path, columns: dict[str, list[Any]], **choices: Any) -> Ledger:
    folder.mkdir()
    manifest = write_manifest(folder / "manifest.parquet", columns)
    paths = {"manifest": str(manifest), "voices": str(table), "output": str(folder / "out")}
    values = {"model": "random:tiny", "shard_rows": 100, "engine": {"n_cfm_timesteps": 2}, **SPLIT, **paths}
    config = config_from({**values, **choices})
    voices = VoiceTable.open(str(table))
    job = {"config": config.frozen(), "fingerprints": fingerprints(model, voices), "versions": {}, "limit": None}
    return Ledger.start(Folder(config.output), job, make_plan(Manifest.scan(str(manifest)), config.shard_rows))


def _make(ledger: Ledger, model: Any, table: Path, max_frames: int = 8_192) -> None:
    Worker(ledger, model, VoiceTable.open(str(table)), max_frames=max_frames).run(0)


def _index(ledger: Ledger) -> list[dict[str, Any]]:
    (name,) = ledger.folder.list("ledger/index/")
    rows: list[dict[str, Any]] = pq.read_table(io.BytesIO(ledger.folder.read(name))).to_pylist()
    return rows


def _failures(ledger: Ledger) -> dict[str, str]:
    (name,) = ledger.folder.list("ledger/failures/")
    rows = pq.read_table(io.BytesIO(ledger.folder.read(name))).to_pylist()
    return {row["id"]: row["error"] for row in rows}


def _waves(ledger: Ledger) -> list[torch.Tensor]:
    (name,) = ledger.folder.list("audio/")
    clips = pq.read_table(io.BytesIO(ledger.folder.read(name)))["audio"].to_pylist()
    return [torch.from_numpy(soundfile.read(io.BytesIO(clip["bytes"]), dtype="float32")[0]) for clip in clips]


class Model:
    """The real one, behind a fault; it takes down the lengths of the rows of each batch."""

    def __init__(self, model: S3GenModel, fault: Callable[[Sequence[Sequence[int]]], None]) -> None:
        self._model, self._fault = model, fault
        self.device = model.device
        self.batches: list[list[int]] = []

    def synthesize(self, tokens: Sequence[torch.Tensor], *args: Any, **kwargs: Any) -> list[torch.Tensor]:
        self.batches.append([len(row) for row in tokens])
        self._fault([row.tolist() for row in tokens])
        return self._model.synthesize(tokens, *args, **kwargs)


def test_a_long_row_is_made_as_another_than_the_library_makes(
    tiny_model: S3GenModel, table: Path, tmp_path: Path
) -> None:
    """Its pieces in batches with other rows', and one piece at a time, and by the library in one call."""
    ledgers = [_ledger(tiny_model, table, tmp_path / name, _columns(), keep_inputs=True) for name in ("a", "b")]
    spying = Model(tiny_model, lambda tokens: None)
    _make(ledgers[0], spying, table, max_frames=300)
    _make(ledgers[1], tiny_model, table, max_frames=1)
    assert len(spying.batches) < 10
    assert max(length for batch in spying.batches for length in batch) <= SPLIT["max_tokens"]
    (name,) = ledgers[0].folder.list("audio/")
    rows = pq.read_table(io.BytesIO(ledgers[0].folder.read(name))).to_pylist()
    voices = VoiceTable.open(str(table)).get_many(row["voice_id"] for row in rows)
    wanted = tiny_model.synthesize(
        [row["tokens"] for row in rows],
        [voices[row["voice_id"]] for row in rows],
        [row["seed"] for row in rows],
        n_cfm_timesteps=2,
        splitting=Splitting(max_tokens=48),
    )
    for here, there, want in zip(_waves(ledgers[0]), _waves(ledgers[1]), wanted, strict=True):
        # Beside the tolerance of batches there is the rounding to 16 bits.
        assert relative_error(here, want.clamp(-1, 1)) < 5e-3
        assert relative_error(there, want.clamp(-1, 1)) < 5e-3


def test_the_index_hides_which_rows_were_cut_and_where(tiny_model: S3GenModel, table: Path, tmp_path: Path) -> None:
    ledger = _ledger(tiny_model, table, tmp_path / "job", _columns())
    _make(ledger, tiny_model, table)
    columns = _columns()
    for number, row in enumerate(_index(ledger)):
        assert row["cuts"] == CUTS.get(number, [])
        assert row["samples"] == SAMPLES_PER_TOKEN * len(columns["tokens"][number])
    finalise(ledger)
    assert verify(ledger.folder.url).findings == []
    said = f"{len(CUTS)} %s of more than 48 tokens"
    assert f"{said % 'utterances'} made in pieces" in ledger.folder.read("README.md").decode()
    assert said % "rows" in render(read(ledger, None))


def test_a_piece_that_fails_fails_its_row_twice_or_its_neighbours(
    tiny_model: S3GenModel, table: Path, tmp_path: Path
) -> None:
    columns = _columns()
    columns["tokens"][1][30] = 6_560  # three pieces read it

    def fault(tokens: Sequence[Sequence[int]]) -> None:
        if any(6_560 in row for row in tokens):
            raise RuntimeError("unlucky number")

    ledger = _ledger(tiny_model, table, tmp_path / "job", columns)
    _make(ledger, Model(tiny_model, fault), table)
    assert _failures(ledger) == {"row-0001": "synthesis_error"}
    assert [row["id"] for row in _index(ledger)] == [f"row-{number:04d}" for number in (0, 2, 3, 4, 5)]
    assert finalise(ledger).rows_failed == 1


def test_memory_that_runs_out_takes_a_row_that_was_cut_along(
    tiny_model: S3GenModel, table: Path, tmp_path: Path
) -> None:
    def fault(tokens: Sequence[Sequence[int]]) -> None:
        if len(tokens) > 2:
            raise MemoryError("two rows at most")

    model = Model(tiny_model, fault)
    ledger = _ledger(tiny_model, table, tmp_path / "job", _columns())
    _make(ledger, model, table)
    assert max(map(len, model.batches)) > 2
    assert [row["cuts"] for row in _index(ledger)] == [CUTS.get(number, []) for number in range(6)]


def test_a_job_that_did_not_ask_for_it_splits_rows(tiny_model: S3GenModel, table: Path, tmp_path: Path) -> None:
    ledger = _ledger(tiny_model, table, tmp_path / "job", _columns(), on_long="fail_row")
    _make(ledger, tiny_model, table)
    assert _failures(ledger) == {f"row-{number:04d}": "too_long" for number in LONG}


def test_a_row_without_end_is_made() -> None:
    """Its wave would have to be in memory."""
    lengths = [MOST_TOKENS, MOST_TOKENS + 1]
    table = table_of(["hour", "more"], [[5] * length for length in lengths])
    rows, failures = check_rows(table, job_seed=0, max_tokens=1_500, splitting=Splitting(max_tokens=1_500))
    assert [(row.id, len(row.cuts)) for row in rows] == [("hour", 63)]
    message = "90001 tokens, more than an hour, 90000, the most that is made in pieces"
    assert [(failure.error, failure.message) for failure in failures] == [("too_long", message)]


@pytest.mark.parametrize("splitting", [None, Splitting(max_tokens=MOST_TOKENS + 10)])
def test_splitting_fails_a_row_that_is_made_without(splitting: Splitting | None) -> None:
    lengths = [MOST_TOKENS + 10, MOST_TOKENS + 11]
    table = table_of(["within", "more"], [[5] * length for length in lengths])
    rows, failures = check_rows(table, job_seed=0, max_tokens=MOST_TOKENS + 10, splitting=splitting)
    assert [(row.id, row.cuts) for row in rows] == [("within", ())]
    assert [failure.message for failure in failures] == ["90011 tokens, more than max_tokens, 90010"]


@pytest.mark.parametrize("changed", [{"on_long": "fail_row"}, {"max_tokens": 60}, {"silence_tokens": [1]}])
def test_a_resume_cuts_elsewhere(changed: dict[str, Any]) -> None:
    was, now = config_from({**PATHS, **SPLIT}).frozen(), config_from({**PATHS, **SPLIT, **changed}).frozen()
    assert [key for key, _, _ in job_changes({"config": was}, {"config": now})] == list(changed)


@pytest.mark.parametrize(
    ("choices", "says"),
    [
        ({"on_long": "cut"}, "on_long: 'cut' is refused: give fail_row or split"),
        ({"on_long": "split", "max_tokens": 47}, "on_long: max_tokens is 47, but .* at least 48"),
        ({"silence_tokens": [4299, 6561]}, "silence_tokens: 6561 is refused: give less than 6561"),
        ({"silence_tokens": 4299}, r"silence_tokens: 4299 is refused: give a list, such as \[1, 2\]"),
        ({"silence_tokens": ["a"]}, "silence_tokens: 'a' is refused: give a whole number"),
    ],
)
def test_a_wrong_choice_is_refused_without_the_right_one(choices: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError, match=says):
        config_from({**PATHS, **choices})


def test_a_short_limit_is_refused_where_nothing_is_cut() -> None:
    assert config_from({**PATHS, "max_tokens": 5}).splitting is None
    config: JobConfig = config_from({**PATHS, **SPLIT, "silence_tokens": [7, 1]})
    assert config.splitting == Splitting(max_tokens=48, silence_tokens=(7, 1))


def test_verify_believes_whatever_the_index_says_of_cuts(tmp_path: Path) -> None:
    tokens = [[5] * 100, [6] * 12, [7] * 60]
    columns = {"id": ["u0", "u1", "u2"], "voice_id": ["v"] * 3, "tokens": tokens}
    manifest = str(write_manifest(tmp_path / "manifest.parquet", columns))
    ledger = made_job.start(str(tmp_path / "out"), manifest, on_long="split", max_tokens=60)
    made_job.make_all(ledger)
    finalise(ledger)
    assert [row["cuts"] for row in _index(ledger)] == [[25, 50, 75], [], []]
    assert verify(ledger.folder.url).findings == []
    job = json.loads(ledger.folder.read("job.json"))
    job["config"]["max_tokens"] = 80
    ledger.folder.put("job.json", json.dumps(job).encode())
    said = [finding.message for finding in verify(ledger.folder.url).findings]
    assert said == ["'u0' was cut at [25, 50, 75], the job cuts it at [50]"]


def test_a_plan_counts_pieces_as_rows_or_says_that_they_will_fail(table: Path, tmp_path: Path) -> None:
    manifest = write_manifest(tmp_path / "manifest.parquet", _columns())
    paths = {"manifest": str(manifest), "voices": str(table), "output": str(tmp_path / "out")}
    config = write_config(tmp_path / "job.yaml", **paths, **SPLIT)
    found = json.loads(cli("plan", config, "--json").stdout)
    assert (found["sampled_cut"], found["sampled_failures"], found["rows"]) == (2, {}, 6)
    assert found["audio_hours"] == pytest.approx(sum(map(len, _columns()["tokens"])) / 25 / 3_600)
    assert found["row_seconds"][2] == 4
    assert "rows that will be cut into pieces: 2" in cli("plan", config).stdout
    found = json.loads(cli("plan", config, "--json", "--set", "on_long=fail_row").stdout)
    assert (found["sampled_cut"], found["sampled_failures"]) == (0, {"too_long": 2})


def test_a_row_tried_again_is_cut_elsewhere(tiny_model: S3GenModel, table: Path, tmp_path: Path) -> None:
    """Its other seed is the whole row's."""
    columns = _columns()
    table_rows = pq.read_table(write_manifest(tmp_path / "m.parquet", columns))
    splitting = Splitting(max_tokens=48)
    first, _ = check_rows(table_rows, job_seed=0, max_tokens=48, splitting=splitting)
    again, _ = check_rows(
        table_rows, job_seed=0, max_tokens=48, splitting=splitting, reseeded=np.array([0, 1, 0, 0, 0, 0])
    )
    assert again[1].seed != first[1].seed
    assert list(again[1].cuts) == CUTS[1]
    assert replace(again[1], seed=first[1].seed, reseeded=False, tokens=first[1].tokens) == first[1]
