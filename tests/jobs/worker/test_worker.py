"""One shard in, one committed shard out, without Ray: the real model, or the real model with a fault."""

from __future__ import annotations

import hashlib
import io
import json
import os
import random
import tarfile
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import soundfile
import torch

from jobs.config.config import config_from
from jobs.crew.isolation import Death
from jobs.crew.schedule import BrokenWorker
from jobs.errors import InputError, StorageError, StorageUnknown
from jobs.finish import finalise
from jobs.ledger.ledger import Ledger
from jobs.ledger.records import ShardReport, counts, worker_name
from jobs.manifest.manifest import Manifest
from jobs.manifest.seeds import derived_seed
from jobs.plan import make_plan
from jobs.storage.folders import Folder
from jobs.voices.table import VoiceTable
from jobs.worker import encoding
from jobs.worker.spool import Spool
from jobs.worker.worker import Order, Worker, fingerprints
from s3gen import S3GenModel, Solver
from s3gen.constants import SAMPLES_PER_TOKEN
from tests.jobs.inputs import good_rows, write_manifest

FEW_STEPS = {"n_cfm_timesteps": 2}  # where the number does not matter


class FaultyModel:
    """The real model behind a fault: called with the token rows of each batch, to raise or to spoil the waves."""

    def __init__(self, model: S3GenModel, fault: Callable[[list[list[int]], list[torch.Tensor]], None]) -> None:
        self._model, self._fault = model, fault
        self.device = model.device
        self.batches: list[int] = []

    def synthesize(self, tokens: Sequence[torch.Tensor], *args: Any, **kwargs: Any) -> list[torch.Tensor]:
        self.batches.append(len(tokens))
        waves = [torch.zeros(SAMPLES_PER_TOKEN * len(row)) for row in tokens]
        self._fault([row.tolist() for row in tokens], waves)
        return waves


def _ledger(model: S3GenModel, table: Path, tmp_path: Path, columns: dict[str, Any], **config: Any) -> Ledger:
    manifest = write_manifest(tmp_path / "manifest.parquet", columns)
    output = tmp_path / f"out{len(list(tmp_path.iterdir()))}"
    values = {
        "model": "random:tiny",
        "manifest": str(manifest),
        "voices": str(table),
        "output": str(output),
        "shard_rows": 100,
        **config,
    }
    job_config = config_from(values)
    job = {
        "config": job_config.frozen(),
        "fingerprints": fingerprints(model, VoiceTable.open(str(table))),
        "versions": {},
        "limit": None,
    }
    return Ledger.start(Folder(str(output)), job, make_plan(Manifest.scan(str(manifest)), job_config.shard_rows))


def _run(ledger: Ledger, model: Any, table: Path, max_frames: int = 8192) -> ShardReport:
    return Worker(ledger, model, VoiceTable.open(str(table)), max_frames=max_frames).run(0)


def _files(ledger: Ledger, prefix: str = "") -> list[str]:
    return [name for name in ledger.folder.list(prefix) if not name.startswith(("job.json", "ledger/plan"))]


def _audio(ledger: Ledger) -> list[dict[str, Any]]:
    (name,) = ledger.folder.list("audio/")
    rows: list[dict[str, Any]] = pq.read_table(io.BytesIO(ledger.folder.read(name))).to_pylist()
    return rows


def _failures(ledger: Ledger) -> list[dict[str, Any]]:
    (name,) = ledger.folder.list("ledger/failures/")
    rows: list[dict[str, Any]] = pq.read_table(io.BytesIO(ledger.folder.read(name))).to_pylist()
    return rows


def _bad_and_good() -> dict[str, Any]:
    columns = good_rows(12)
    columns["text"] = [f"text {i}" for i in range(12)]
    columns["tokens"][1] = [6561, *columns["tokens"][1], 6562]
    columns["tokens"][2] = []
    columns["tokens"][3] = None
    columns["tokens"][4] = [1, 7000]
    columns["voice_id"][5] = "nobody"
    columns["voice_id"][6] = None
    columns["id"][7] = None
    columns["id"][9] = columns["id"][8]
    columns["tokens"][10] = [5] * 31
    return columns


BAD = {
    2: "empty_tokens",
    3: "null_tokens",
    4: "token_out_of_range",
    5: "unknown_voice",
    6: "null_voice_id",
    7: "null_id",
    9: "duplicate_id",
    10: "too_long",
}


@pytest.mark.parametrize("kind", ["parquet", "webdataset"])
def test_good_rows_are_made_and_bad_rows_fail_with_their_reason(
    tiny_model: S3GenModel, table: Path, tmp_path: Path, kind: str
) -> None:
    columns = _bad_and_good()
    ledger = _ledger(tiny_model, table, tmp_path, columns, format=kind, max_tokens=30)
    report = _run(ledger, tiny_model, table)
    assert (report.rows_done, report.rows_failed, report.counted) == (4, 8, True)
    failures = _failures(ledger)
    assert [(row["row"], row["error"]) for row in failures] == sorted(BAD.items())
    assert [row["text"] for row in failures] == [columns["text"][row] for row in BAD]
    assert {row["manifest"] for row in failures} == {str(tmp_path / "manifest.parquet")}

    (record,) = ledger.records()
    assert record.errors == report.errors == counts(BAD.values())
    assert record.positions - record.padding == 2 * record.samples / SAMPLES_PER_TOKEN
    assert record.index is not None
    index = pq.read_table(io.BytesIO(ledger.folder.read(record.index.name))).to_pylist()
    good = [row for row in range(12) if row not in BAD]
    assert [(row["id"], row["row"]) for row in index] == [(columns["id"][row], n) for n, row in enumerate(good)]
    clips = _tar_clips(ledger) if kind == "webdataset" else [row["audio"]["bytes"] for row in _audio(ledger)]
    for row, clip, number in zip(index, clips, good, strict=True):
        tokens = [token for token in columns["tokens"][number] if token < 6561]
        assert row["samples"] == SAMPLES_PER_TOKEN * len(tokens) == soundfile.info(io.BytesIO(clip)).frames
        assert row["sha256"] == hashlib.sha256(clip).hexdigest()


def _tar_clips(ledger: Ledger) -> list[bytes]:
    (name,) = ledger.folder.list("audio/")
    with tarfile.open(fileobj=io.BytesIO(ledger.folder.read(name))) as tar:
        return [tar.extractfile(m).read() for m in tar if m.name.endswith(".flac")]  # type: ignore[union-attr]


def test_the_audio_of_a_row_is_what_synthesize_makes_of_it_alone(
    tiny_model: S3GenModel, table: Path, tmp_path: Path
) -> None:
    columns = good_rows(6)
    columns["seed"] = [7, None, -1, None, 2**40, 0]
    ledger = _ledger(tiny_model, table, tmp_path, columns, audio="wav", seed=3, keep_inputs=True)
    _run(ledger, tiny_model, table)
    voices = VoiceTable.open(str(table))
    for row, given in zip(_audio(ledger), columns["seed"], strict=True):
        seed = derived_seed(3, row["id"]) if given is None else given
        voice = voices.get(row["voice_id"])
        assert voice is not None
        (want,) = tiny_model.synthesize([torch.tensor(row["tokens"])], [voice], [seed])
        got, _ = soundfile.read(io.BytesIO(row["audio"]["bytes"]), dtype="float32")
        assert len(got) == len(want)
        np.testing.assert_allclose(got, want.numpy(), atol=2e-3)
        assert row["seed"] == given


def test_the_same_shard_has_the_same_bytes_and_another_seed_has_not(
    tiny_model: S3GenModel, table: Path, tmp_path: Path
) -> None:
    contents = []
    for seed in (1, 1, 2):
        ledger = _ledger(tiny_model, table, tmp_path, good_rows(6), seed=seed, engine=FEW_STEPS)
        _run(ledger, tiny_model, table)
        contents.append(ledger.folder.read(ledger.folder.list("audio/")[0]))
    assert contents[0] == contents[1] != contents[2]


def test_prompt_seconds_and_the_solver_do_not_reach_the_model(
    tiny_model: S3GenModel, table: Path, tmp_path: Path
) -> None:
    prompts: list[int] = []

    class Listening(FaultyModel):
        def synthesize(self, tokens: Sequence[torch.Tensor], voices: Any, *args: Any, **kwargs: Any) -> Any:
            prompts.extend(len(voice.prompt_token) for voice in voices)
            assert kwargs == {
                "solver": Solver(method="heun", steps=3, guidance_interval=(0.0, 0.5)),
                "start_fade": False,
                "starts": [0] * len(tokens),
            }
            return super().synthesize(tokens)

    engine = {"prompt_seconds": 0.2, "solver": "heun", "n_cfm_timesteps": 3, "guidance_interval": [0, 0.5]}
    ledger = _ledger(tiny_model, table, tmp_path, good_rows(6), engine=engine, start_fade=False)
    _run(ledger, Listening(tiny_model, lambda tokens, waves: None), table)
    assert prompts == [5] * 6


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory"),
        torch.AcceleratorError("CUDA error: out of memory"),
    ],
)
def test_out_of_memory_splits_the_batch_and_loses_no_row(
    tiny_model: S3GenModel, table: Path, tmp_path: Path, error: Exception
) -> None:
    def too_large(tokens: list[list[int]], waves: list[torch.Tensor]) -> None:
        if len(tokens) > 3:
            raise error

    model = FaultyModel(tiny_model, too_large)
    ledger = _ledger(tiny_model, table, tmp_path, good_rows(10))
    assert _run(ledger, model, table).rows_done == 10
    assert model.batches[0] == 10
    assert sum(size for size in model.batches if size <= 3) == 10


def test_a_row_that_never_fits_fails_alone(tiny_model: S3GenModel, table: Path, tmp_path: Path) -> None:
    def fault(tokens: list[list[int]], waves: list[torch.Tensor]) -> None:
        if any(len(row) == 40 for row in tokens):
            raise MemoryError("40 tokens")

    columns = good_rows(8)
    columns["tokens"][3] = [1] * 40
    ledger = _ledger(tiny_model, table, tmp_path, columns)
    assert _run(ledger, FaultyModel(tiny_model, fault), table).rows_done == 7
    assert [(row["id"], row["error"]) for row in _failures(ledger)] == [("row-0003", "out_of_memory")]


def test_a_row_that_makes_the_model_raise_is_isolated_from_its_neighbours(
    tiny_model: S3GenModel, table: Path, tmp_path: Path
) -> None:
    def fault(tokens: list[list[int]], waves: list[torch.Tensor]) -> None:
        if any(4242 in row for row in tokens):
            raise RuntimeError("unlucky\nnumber")

    columns = good_rows(16)
    columns["tokens"] = [[1, 2, 3] for _ in range(16)]
    columns["tokens"][5] = columns["tokens"][11] = [4242]
    model = FaultyModel(tiny_model, fault)
    ledger = _ledger(tiny_model, table, tmp_path, columns)
    assert _run(ledger, model, table).rows_done == 14
    failures = _failures(ledger)
    assert [(row["id"], row["error"]) for row in failures] == [
        ("row-0005", "synthesis_error"),
        ("row-0011", "synthesis_error"),
    ]
    assert failures[0]["message"] == "RuntimeError: unlucky number"
    assert len(model.batches) < 16


def test_nan_and_a_wrong_length_fail_the_row_and_are_never_stored(
    tiny_model: S3GenModel, table: Path, tmp_path: Path
) -> None:
    def spoil(tokens: list[list[int]], waves: list[torch.Tensor]) -> None:
        for number, row in enumerate(tokens):
            if row == [1]:
                waves[number][100] = float("nan")
            if row == [2]:
                waves[number] = waves[number][:-1]

    columns = good_rows(5)
    columns["tokens"] = [[1], [3, 4], [2], [5], [6]]
    ledger = _ledger(tiny_model, table, tmp_path, columns)
    assert _run(ledger, FaultyModel(tiny_model, spoil), table).rows_done == 3
    assert {row["id"]: row["error"] for row in _failures(ledger)} == {
        "row-0000": "not_finite",
        "row-0002": "wrong_length",
    }


def test_a_poisoned_device_blames_no_row(
    tiny_model: S3GenModel, table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fault(tokens: list[list[int]], waves: list[torch.Tensor]) -> None:
        raise torch.AcceleratorError("CUDA error: device-side assert triggered")

    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(scratch))
    ledger = _ledger(tiny_model, table, tmp_path, good_rows(4))
    with pytest.raises(BrokenWorker, match="device-side assert"):
        _run(ledger, FaultyModel(tiny_model, fault), table)
    assert _files(ledger) == []
    assert os.listdir(scratch) == []


def test_a_shard_without_one_good_row_is_committed_without_audio(
    tiny_model: S3GenModel, table: Path, tmp_path: Path
) -> None:
    columns = good_rows(3)
    columns["voice_id"] = ["nobody"] * 3
    ledger = _ledger(tiny_model, table, tmp_path, columns)
    report = _run(ledger, tiny_model, table)
    assert (report.rows_done, report.rows_failed, report.samples) == (0, 3, 0)
    assert _files(ledger, "audio/") == []
    assert finalise(ledger).rows_failed == 3


@pytest.mark.parametrize("where", ["audio/", "ledger/index/"])
def test_a_write_that_surely_failed_leaves_nothing(
    tiny_model: S3GenModel, table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    ledger = _ledger(tiny_model, table, tmp_path, good_rows(3))
    _fail_writes(ledger, monkeypatch, where, StorageError("no space"))
    with pytest.raises(StorageError, match="no space"):
        _run(ledger, tiny_model, table)
    monkeypatch.undo()
    assert _files(ledger) == []
    assert _run(ledger, tiny_model, table).counted


@pytest.mark.parametrize("error", [StorageUnknown("timed out"), StorageError("refused")])
def test_a_commit_that_failed_takes_the_files_of_a_record_that_may_have_landed(
    tiny_model: S3GenModel, table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    ledger = _ledger(tiny_model, table, tmp_path, good_rows(3))
    _fail_writes(ledger, monkeypatch, "ledger/commits/", error)
    with pytest.raises(type(error)):
        _run(ledger, tiny_model, table)
    monkeypatch.undo()
    assert [name.split("/")[0] for name in _files(ledger)] == ["audio", "ledger"]
    # Of a try that did not count the end takes them.
    assert _run(ledger, tiny_model, table).counted
    finalise(ledger)
    assert len(_files(ledger, "audio/")) == 1


def _fail_writes(ledger: Ledger, monkeypatch: pytest.MonkeyPatch, where: str, error: Exception) -> None:
    for method in ("upload", "put", "create"):
        original = getattr(ledger.folder, method)

        def failing(name: str, *args: Any, original: Callable[..., Any] = original) -> Any:
            if name.startswith(where):
                raise error
            return original(name, *args)

        monkeypatch.setattr(ledger.folder, method, failing)


def test_a_second_try_of_a_committed_shard_changes_nothing(tiny_model: S3GenModel, table: Path, tmp_path: Path) -> None:
    ledger = _ledger(tiny_model, table, tmp_path, good_rows(3))
    assert _run(ledger, tiny_model, table).counted
    before = {name: ledger.folder.read(name) for name in _files(ledger)}
    assert not _run(ledger, tiny_model, table).counted
    assert {name: ledger.folder.read(name) for name in _files(ledger)} == before


def test_a_worker_refuses_another_model_than_the_jobs(tiny_model: S3GenModel, table: Path, tmp_path: Path) -> None:
    ledger = _ledger(tiny_model, table, tmp_path, good_rows(3))
    job = json.loads(ledger.folder.read("job.json"))
    job["fingerprints"]["model"] = "0" * 64
    ledger.folder.put("job.json", json.dumps(job).encode())
    with pytest.raises(InputError, match="model"):
        Worker.open(output=ledger.folder.url, options={}, max_frames=8192, threads=torch.get_num_threads())


def test_a_probe_makes_rows_that_it_was_not_asked_for_or_publishes_something(
    tiny_model: S3GenModel, table: Path, tmp_path: Path
) -> None:
    seen: list[list[int]] = []
    columns = good_rows(8)
    columns["tokens"] = [[row] for row in range(8)]
    columns["tokens"][3] = []
    ledger = _ledger(tiny_model, table, tmp_path, columns)
    model = FaultyModel(tiny_model, lambda tokens, waves: seen.extend(tokens))
    worker = Worker(ledger, model, VoiceTable.open(str(table)), max_frames=8192)  # type: ignore[arg-type]
    guilty = {4: Death(reason="died")}
    assert worker.run(Order(0, probe=(2, 6), guilty=guilty)).rows_done == 2
    assert sorted(seen) == [[2], [5]]
    assert worker.run(Order(0, probe=(0, 0))).rows_done == 0
    assert _files(ledger) == []


def test_nobody_knows_who_made_a_shard_at_what_time_and_cost(
    tiny_model: S3GenModel, table: Path, tmp_path: Path
) -> None:
    ledger = _ledger(tiny_model, table, tmp_path, good_rows(6), engine=FEW_STEPS)
    began = time.time()
    report = Worker(ledger, tiny_model, VoiceTable.open(str(table)), max_frames=8_192).run(Order(0, tries=3))
    (record,) = ledger.records()
    assert (record.worker, record.tries) == (report.worker, report.tries) == (worker_name(), 3)
    assert record.worker.endswith(f":{os.getpid()}")
    assert 0 < record.padding == report.padding
    assert began <= record.started_at < record.finished_at <= time.time()
    assert list(report.seconds) == ["read", "make", "publish"]
    assert 0 < sum(report.seconds.values()) < time.time() - began


def test_a_row_that_killed_its_workers_is_forgotten_or_its_neighbours_change(
    tiny_model: S3GenModel, table: Path, tmp_path: Path
) -> None:
    guilty = {2: Death(reason="its worker (process 7) died"), 4: Death(reason="did nothing for 9 s", hung=True)}
    clips = []
    for order in (Order(0), Order(0, guilty=guilty)):
        ledger = _ledger(tiny_model, table, tmp_path, good_rows(6), audio="wav", engine=FEW_STEPS)
        worker = Worker(ledger, tiny_model, VoiceTable.open(str(table)), max_frames=8192)
        report = worker.run(order)
        assert (report.rows_done, report.rows_failed) == (6 - len(order.guilty), len(order.guilty))
        found = {row["id"]: soundfile.read(io.BytesIO(row["audio"]["bytes"]))[0] for row in _audio(ledger)}
        clips.append(found)
    failures = [(row["id"], row["error"]) for row in _failures(ledger)]
    assert failures == [("row-0002", "worker_crashed"), ("row-0004", "worker_hung")]
    assert "did nothing for 9 s" in _failures(ledger)[1]["message"]
    assert set(clips[0]) - set(clips[1]) == {"row-0002", "row-0004"}
    for row_id, clip in clips[1].items():
        np.testing.assert_allclose(clip, clips[0][row_id], atol=2e-3)


def test_an_order_with_a_smaller_budget_is_made_in_batches_as_large_as_ever(
    tiny_model: S3GenModel, table: Path, tmp_path: Path
) -> None:
    model = FaultyModel(tiny_model, lambda tokens, waves: None)
    ledger = _ledger(tiny_model, table, tmp_path, good_rows(8))
    worker = Worker(ledger, model, VoiceTable.open(str(table)), max_frames=8192)  # type: ignore[arg-type]
    assert worker.run(Order(0, max_frames=1)).rows_done == 8
    assert model.batches == [1] * 8


def test_a_worker_that_gets_on_looks_as_if_it_hung(tiny_model: S3GenModel, table: Path, tmp_path: Path) -> None:
    beats: list[int] = []
    ledger = _ledger(tiny_model, table, tmp_path, good_rows(4))
    model = FaultyModel(tiny_model, lambda tokens, waves: beats.append(worker.pulse.count))
    worker = Worker(ledger, model, VoiceTable.open(str(table)), max_frames=1)  # type: ignore[arg-type]
    worker.run(0)
    assert beats == sorted(set(beats))  # on between each two batches
    published = worker.pulse.count - beats[-1]
    assert published >= 3  # the last batch, and the two files


@pytest.mark.parametrize("audio", ["flac", "wav"])
def test_bytes_do_not_depend_on_how_many_encode_nor_on_who_is_first(
    tiny_model: S3GenModel, table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, audio: str
) -> None:
    real = encoding.encode
    contents = []
    for encoders in (1, 4, 4):
        rng = random.Random(len(contents))

        def late(*args: Any, rng: random.Random = rng) -> bytes:
            time.sleep(rng.random() / 50)
            return real(*args)

        if contents:
            monkeypatch.setattr(encoding, "encode", late)
        ledger = _ledger(tiny_model, table, tmp_path, good_rows(16), audio=audio, engine=FEW_STEPS)
        worker = Worker(ledger, tiny_model, VoiceTable.open(str(table)), max_frames=256, encoders=encoders)
        worker.run(0)
        contents.append(ledger.folder.read(ledger.folder.list("audio/")[0]))
        (record,) = ledger.records()
        assert record.index is not None
        sums = pq.read_table(io.BytesIO(ledger.folder.read(record.index.name))).column("sha256").to_pylist()
        assert sums == [hashlib.sha256(row["audio"]["bytes"]).hexdigest() for row in _audio(ledger)]
    assert contents[0] == contents[1] == contents[2]


class Gate:
    """A model's thread that waits at the first batch of a shard until it is let through, and tells that it is there."""

    def __init__(self) -> None:
        self.reached, self.open = threading.Event(), threading.Event()

    def wait(self) -> None:
        self.reached.set()
        assert self.open.wait(SECONDS)


SECONDS = 20  # that a test waits before it fails


def _several(model: S3GenModel, table: Path, tmp_path: Path, shards: int) -> Ledger:
    """A job of shards of two rows; row n has n + 1 tokens."""
    columns = good_rows(2 * shards)
    columns["tokens"] = [[1] * (row + 1) for row in range(2 * shards)]
    return _ledger(model, table, tmp_path, columns, shard_rows=2, engine=FEW_STEPS)


def test_the_next_shard_is_read_while_one_is_computed_and_the_last_one_uploaded(
    tiny_model: S3GenModel, table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger = _several(tiny_model, table, tmp_path, 3)
    uploading, computing, read = Gate(), Gate(), Gate()
    upload, manifest_read = ledger.folder.upload, Manifest.read

    def slow_upload(name: str, path: Any) -> None:
        if name.startswith("audio/0000000-"):
            uploading.wait()
        upload(name, path)

    def at_shard(tokens: list[list[int]], waves: list[torch.Tensor]) -> None:
        if len(tokens[0]) in (3, 4):  # of shard 1
            computing.wait()

    def seen_read(self: Manifest, spans: Any, options: Any) -> Any:
        if spans[0].start == 4:  # of shard 2
            read.reached.set()
        return manifest_read(self, spans, options)

    monkeypatch.setattr(ledger.folder, "upload", slow_upload)
    monkeypatch.setattr(Manifest, "read", seen_read)
    worker = Worker(ledger, FaultyModel(tiny_model, at_shard), VoiceTable.open(str(table)), max_frames=8192)  # type: ignore[arg-type]
    with ThreadPoolExecutor(3) as pool:
        first = pool.submit(worker.run, 0)
        assert uploading.reached.wait(SECONDS)
        second = pool.submit(worker.run, 1)
        assert computing.reached.wait(SECONDS)
        third = pool.submit(worker.run, 2)
        assert read.reached.wait(SECONDS)
        # All three at once: none of the others is done.
        assert [future.done() for future in (first, second, third)] == [False, False, False]
        computing.open.set()
        uploading.open.set()
        assert [future.result(SECONDS).rows_done for future in (first, second, third)] == [2, 2, 2]
    assert finalise(ledger).rows_done == 6


@pytest.mark.parametrize("part", ["encoder", "upload", "spool", "read"])
def test_a_shard_that_fails_beside_others_harms_none_of_them(
    tiny_model: S3GenModel, table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: str
) -> None:
    ledger = _several(tiny_model, table, tmp_path, 5)
    _break_second_shard(ledger, monkeypatch, part)
    worker = Worker(
        ledger,
        FaultyModel(tiny_model, lambda tokens, waves: None),  # type: ignore[arg-type]
        VoiceTable.open(str(table)),
        max_frames=1,
    )
    with ThreadPoolExecutor(3) as pool:
        futures = [pool.submit(worker.run, shard) for shard in range(5)]
        for shard, future in enumerate(futures):
            if shard == 1:
                with pytest.raises(StorageError, match="broken"):
                    future.result(SECONDS)
            else:
                assert future.result(SECONDS).counted
    assert ledger.committed() == {0, 2, 3, 4}
    assert not [name for name in _files(ledger) if "/0000001" in name]
    monkeypatch.undo()
    assert worker.run(1).counted
    assert finalise(ledger).rows_done == 10


def _break_second_shard(ledger: Ledger, monkeypatch: pytest.MonkeyPatch, part: str) -> None:
    """Its rows have 3 and 4 tokens, at positions 0 and 1 of its table."""
    encode, upload, keep, read = encoding.encode, ledger.folder.upload, Spool.keep, Manifest.read
    sizes = (3 * SAMPLES_PER_TOKEN, 4 * SAMPLES_PER_TOKEN)

    def fail_if(condition: bool) -> None:
        if condition:
            raise StorageError("broken")

    def bad_encode(samples: Any, audio: str, rate: int) -> bytes:
        fail_if(len(samples) in sizes)
        return encode(samples, audio, rate)

    def bad_upload(name: str, path: Any) -> None:
        fail_if(name.startswith("ledger/index/0000001"))
        upload(name, path)

    def bad_keep(self: Spool, position: int, encoded: Any) -> None:
        fail_if(encoded.samples in sizes)
        keep(self, position, encoded)

    def bad_read(self: Manifest, spans: Any, options: Any) -> Any:
        fail_if(spans[0].start == 2)
        return read(self, spans, options)

    place, name, bad = {
        "encoder": (encoding, "encode", bad_encode),
        "upload": (ledger.folder, "upload", bad_upload),
        "spool": (Spool, "keep", bad_keep),
        "read": (Manifest, "read", bad_read),
    }[part]
    monkeypatch.setattr(place, name, bad)


def test_the_frame_budget_cuts_batches_and_leaves_the_audio(
    tiny_model: S3GenModel, table: Path, tmp_path: Path
) -> None:
    waves = []
    for max_frames in (1, 8192):
        ledger = _ledger(tiny_model, table, tmp_path, good_rows(6), audio="wav", engine=FEW_STEPS)
        _run(ledger, tiny_model, table, max_frames)
        clips = [row["audio"]["bytes"] for row in _audio(ledger)]
        waves.append([soundfile.read(io.BytesIO(clip), dtype="float32")[0] for clip in clips])
    for alone, batched in zip(*waves, strict=True):
        np.testing.assert_allclose(alone, batched, atol=2e-3)
