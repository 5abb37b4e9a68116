"""Shards of tokens by the real worker and the tiny model, in this process."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile
import torch

from jobs.audio import audiofile
from jobs.config.config import checked
from jobs.crew.isolation import Case, Death
from jobs.crew.placement import Share
from jobs.crew.schedule import BrokenWorker
from jobs.finish import finalise
from jobs.ledger.ledger import Ledger
from jobs.ledger.records import ids_digest
from jobs.retry import begin_retry, mendable
from jobs.storage.folders import Folder
from jobs.tokenize import rows as tokenize_rows
from jobs.tokenize import worker as tokenize_worker
from jobs.tokenize.config import TokenizeConfig
from jobs.tokenize.runs import Tokenizing
from jobs.tokenize.worker import TokenizeWorker
from jobs.verify.verify import verify
from jobs.worker.worker import Order
from s3gen import S3GenModel
from tests.conftest import speech_like
from tests.jobs import made_job
from tests.jobs.recorded import audio_file, write_audio_parquet, write_folder, write_tar


class StrangeModel:
    """The real one, with memory for so many seconds and dislikes."""

    def __init__(self, model: S3GenModel, error: Exception, *, seconds: float = 1e9, refused: int = 0) -> None:
        self._model, self._error, self._seconds, self._refused = model, error, seconds, refused
        self.device = model.device
        self.calls: list[int] = []

    def tokenize_clips(self, wavs: Sequence[np.ndarray], rates: Sequence[int]) -> list[torch.Tensor]:
        self.calls.append(len(wavs))
        if self._refused in rates:
            raise ValueError(f"{self._refused} Hz is too much")
        if sum(len(wav) / rate for wav, rate in zip(wavs, rates, strict=True)) > self._seconds:
            raise self._error
        return self._model.tokenize_clips(wavs, rates)


def begin(source: Path | str, folder: Path, **settings: Any) -> Ledger:
    values = {"input": str(source), "out": str(folder / "tokens.parquet"), "model": "random:tiny", **settings}
    config = checked(TokenizeConfig, values)
    share = Share(cpus=1, gpus=0, threads=1)
    return Tokenizing.of(config).begin(Folder(config.folder), share)


def made(ledger: Ledger, model: Any) -> list[dict[str, Any]]:
    """The token manifest, when all shards are made here."""
    worker = TokenizeWorker(ledger, model)
    for shard in range(len(ledger.plan)):
        assert worker.run(shard).counted
    finalise(ledger)
    rows: list[dict[str, Any]] = pq.read_table(ledger.job["table"]).to_pylist()
    return rows


def failed(ledger: Ledger) -> dict[str | None, str]:
    table = pq.read_table(f"{ledger.folder.url}/failures.parquet")
    return dict(zip(table["id"].to_pylist(), table["error"].to_pylist(), strict=True))


def tokens_of(model: S3GenModel, path: Path) -> list[int]:
    wav, rate = soundfile.read(path, dtype="float32")
    found: list[int] = model.tokenize(wav, rate)[0][0].tolist()
    return found


def test_tokens_are_those_of_another_recording(
    tiny_model: S3GenModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokenize_worker, "GROUP_CLIPS", 2)
    names = ["b.wav", "a.flac", "sub/c.d.wav", "e.wav", "f.wav"]
    folder = write_folder(tmp_path / "in", names)
    (folder / "e.wav").write_bytes(audio_file(1.1, 24_000, seed=9))
    rows = made(begin(folder, tmp_path, shard_rows=3), tiny_model)
    assert [row["id"] for row in rows] == ["a", "b", "e", "f", "sub/c.d"]
    for row in rows:
        assert row["tokens"] == tokens_of(tiny_model, next(folder.glob(f"{row['id']}.*")))
        assert "path" not in row  # a table that is published
        assert row["voice_id"] == row["id"]
    assert rows[2]["audio_seconds"] == 1.1


def test_every_kind_of_input_gives_other_tokens(tiny_model: S3GenModel, tmp_path: Path) -> None:
    names = ["a.wav", "b.wav", "c.wav"]
    folder = write_folder(tmp_path / "in", names)
    data = {name: (folder / name).read_bytes() for name in names}
    write_tar(tmp_path / "x.tar", {**data, "c.json": {"id": "c", "text": "said"}})
    write_audio_parquet(tmp_path / "audio.parquet", [{"bytes": data[name], "path": name} for name in names])
    write_audio_parquet(
        tmp_path / "paths.parquet", [{"bytes": None, "path": f"in/{name}"} for name in names], id=["a", "b", "c"]
    )
    pq.write_table(
        pa.table({"id": ["a", "b", "c"], "path": [f"in/{name}" for name in names]}), tmp_path / "list.parquet"
    )
    (tmp_path / "list.csv").write_text("id,path\na,in/a.wav\nb,in/b.wav\nc,in/c.wav\n")
    want = [(name[0], tokens_of(tiny_model, folder / name)) for name in names]
    for source in ("in", "x.tar", "audio.parquet", "paths.parquet", "list.parquet", "list.csv"):
        ledger = begin(tmp_path / source, tmp_path / f"out-{source}", voice="v", shard_rows=2)
        rows = made(ledger, tiny_model)
        assert [(row["id"], row["tokens"]) for row in rows] == want, source
        assert {row["voice_id"] for row in rows} == {"v"}
    assert pq.read_table(tmp_path / "out-x.tar/tokens.parquet")["text"].to_pylist() == [None, None, "said"]


@pytest.mark.parametrize("kind", ["parquet", "webdataset"])
def test_shards_that_were_made_here_cannot_be_read(tiny_model: S3GenModel, tmp_path: Path, kind: str) -> None:
    manifest = made_job.write_manifest(tmp_path / "manifest.parquet")
    first = made_job.start(str(tmp_path / "made"), manifest, format=kind, keep_inputs=True)
    made_job.make_all(first)
    finalise(first)
    index = pq.read_table(tmp_path / "made/index.parquet").to_pylist()
    rows = made(begin(tmp_path / "made", tmp_path, shard_rows=5), tiny_model)
    texts = {row["id"]: row["text"] for row in pq.read_table(manifest).to_pylist()}
    assert [(row["id"], row["voice_id"], row["text"], row["audio_seconds"]) for row in rows] == [
        (row["id"], row["voice_id"], texts[row["id"]], row["duration"]) for row in index
    ]
    assert [len(row["tokens"]) for row in rows] == [len(row["source_tokens"]) for row in rows]


def test_bad_recordings_take_their_shard_with_them(
    tiny_model: S3GenModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokenize_rows, "MOST_SECONDS", 1.0)
    folder = write_folder(tmp_path / "in", ["a.wav", "a.flac", "good.wav"])
    noise = np.random.default_rng(0).uniform(-0.3, 0.3, 24_000)
    broken = noise.copy()
    broken[12_000] = np.nan
    soundfile.write(folder / "nan.wav", broken, 24_000, subtype="FLOAT")
    soundfile.write(folder / "loud.wav", noise * 1e12, 24_000, subtype="FLOAT")
    soundfile.write(folder / "long.wav", np.tile(noise, 2), 24_000)
    soundfile.write(folder / "odd.wav", noise, 44_101)
    soundfile.write(folder / "short.wav", noise[:200], 16_000)
    soundfile.write(folder / "silent.wav", noise * 0, 24_000)
    soundfile.write(folder / "stereo.wav", np.stack([noise, noise], 1), 48_000)
    (folder / "text.wav").write_text("no audio")
    (folder / "empty.wav").write_bytes(b"")
    ledger = begin(folder, tmp_path)
    (folder / "good.wav").rename(folder / "gone")
    rows = made(ledger, tiny_model)
    assert failed(ledger) == {
        "a": "duplicate_id",
        "nan": "not_finite",
        "loud": "too_loud",
        "long": "too_long",
        "odd": "not_tokenized",
        "short": "too_short",
        "text": "unreadable",
        "empty": "unreadable",
        "good": "not_found",
    }
    assert [row["id"] for row in rows] == ["a", "silent", "stereo"]


def test_rows_without_ids_or_recordings_take_their_shard_with_them(tiny_model: S3GenModel, tmp_path: Path) -> None:
    clip = audio_file()
    ids = pa.array([b"a", None, b"\xff", b"b", b"c", b"d", b"d"], pa.binary()).cast(pa.string(), safe=False)
    voices = pa.array([b"v", b"v", b"v", None, b"\xfe", b"v", b"v"], pa.binary()).cast(pa.string(), safe=False)
    audio = [{"bytes": clip}] * 5 + [{"bytes": None}, None]
    write_audio_parquet(tmp_path / "x.parquet", audio, id=ids, voice_id=voices)
    ledger = begin(tmp_path / "x.parquet", tmp_path)
    assert [(row["id"], row["voice_id"]) for row in made(ledger, tiny_model)] == [("a", "v"), ("b", "b")]
    (record,) = ledger.records()
    assert record.errors == {"null_id": 1, "bad_id": 1, "bad_voice_id": 1, "null_path": 1, "duplicate_id": 1}
    assert (record.rows, record.rows_done, record.ids) == (7, 2, ids_digest(ids))


def test_a_json_that_cannot_be_read_is_a_null_id_without_a_cause(tiny_model: S3GenModel, tmp_path: Path) -> None:
    write_tar(tmp_path / "x.tar", {"a.wav": audio_file(), "a.json": b"{torn", "b.wav": audio_file()})
    ledger = begin(tmp_path / "x.tar", tmp_path)
    assert [set(row) for row in made(ledger, tiny_model)] == [{"id", "voice_id", "tokens", "audio_seconds"}]
    (row,) = pq.read_table(f"{ledger.folder.url}/failures.parquet").to_pylist()
    assert (row["id"], row["error"]) == (None, "null_id")
    assert row["message"].startswith("what is said of sample a cannot be read: Expecting property name")


def test_the_failures_of_a_job_are_no_input(tiny_model: S3GenModel, tmp_path: Path) -> None:
    clip = audio_file()
    write_tar(tmp_path / "x.tar", {"a.wav": clip, "b.wav": clip, "b.json": {"row": 5}})
    ledger = begin(tmp_path / "x.tar", tmp_path / "1")
    (tmp_path / "x.tar").rename(tmp_path / "moved.tar")
    assert made(ledger, tiny_model) == []
    assert failed(ledger) == {"a": "not_found", "b": "not_found"}
    (tmp_path / "moved.tar").rename(tmp_path / "x.tar")
    again = begin(f"{ledger.folder.url}/failures.parquet", tmp_path / "2")
    rows = made(again, tiny_model)
    assert [(row["id"], row["source_row"], len(row["tokens"])) for row in rows] == [("a", None, 10), ("b", 5, 10)]


def test_a_tar_that_was_cut_since_is_read_beyond_its_end(tiny_model: S3GenModel, tmp_path: Path) -> None:
    clip = audio_file()
    path = write_tar(tmp_path / "x.tar", {"a.wav": clip, "b.wav": clip})
    ledger = begin(path, tmp_path)
    path.write_bytes(path.read_bytes()[: len(clip) + 1_500])
    assert [row["id"] for row in made(ledger, tiny_model)] == ["a"]
    assert failed(ledger) == {"b": "unreadable"}


def test_a_run_that_was_killed_before_its_job_began_is_in_the_way(tiny_model: S3GenModel, tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "in", ["a.wav"])
    ledger = begin(folder, tmp_path)
    (tmp_path / "tokens.parquet.job/job.json").unlink()
    (folder / "b.wav").write_bytes(audio_file())
    again = begin(folder, tmp_path)
    assert again.plan.digest != ledger.plan.digest
    assert [row["id"] for row in made(again, tiny_model)] == ["a", "b"]


@pytest.mark.parametrize(
    "error",
    [MemoryError(), torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("DefaultCPUAllocator: no memory")],
)
def test_out_of_memory_loses_a_shard(tiny_model: S3GenModel, tmp_path: Path, error: Exception) -> None:
    folder = write_folder(tmp_path / "in", ["a.wav", "b.wav", "c.wav", "d.wav"])
    (folder / "e.wav").write_bytes(audio_file(1.2))
    model = StrangeModel(tiny_model, error, seconds=1.0)
    ledger = begin(folder, tmp_path)
    assert [row["id"] for row in made(ledger, model)] == ["a", "b", "c", "d"]
    assert failed(ledger) == {"e": "out_of_memory"}
    assert model.calls == [5, 3, 2, 1, 2, 1, 1]


def test_a_broken_gpu_fails_its_rows(tiny_model: S3GenModel, tmp_path: Path) -> None:
    ledger = begin(write_folder(tmp_path / "in", ["a.wav", "b.wav"]), tmp_path)
    model = StrangeModel(tiny_model, RuntimeError("CUDA error: an illegal memory access"), seconds=0)
    with pytest.raises(BrokenWorker):
        TokenizeWorker(ledger, model).run(0)  # type: ignore[arg-type]
    assert ledger.committed() == set()


def test_probes_are_published_or_guilty_rows_are_made(tiny_model: S3GenModel, tmp_path: Path) -> None:
    ledger = begin(write_folder(tmp_path / "in", ["a.wav", "b.wav", "c.wav"]), tmp_path)
    worker = TokenizeWorker(ledger, tiny_model)
    report = worker.run(Order(0, probe=(1, 3)))
    assert (report.rows_done, report.counted) == (2, False)
    assert ledger.committed() == set()
    assert ledger.folder.list("ledger/index/") == []
    death = Death(reason="it died", hung=True)
    assert worker.run(Order(0, guilty={1: death}, tries=4)).counted
    (record,) = ledger.records()
    assert (record.rows_done, record.errors, record.tries) == (2, {"worker_hung": 1}, 4)


def test_the_pulse_stands_still_while_recordings_are_read(tiny_model: S3GenModel, tmp_path: Path) -> None:
    ledger = begin(write_folder(tmp_path / "in", ["a.wav", "b.wav", "c.wav"]), tmp_path)
    worker = TokenizeWorker(ledger, tiny_model)
    worker.run(0)
    assert worker.pulse.count == 3 + 1 + 1  # recordings, groups, files


def test_long_recordings_are_in_memory_together(
    tiny_model: S3GenModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokenize_worker, "GROUP_SECONDS", 0.7)
    ledger = begin(write_folder(tmp_path / "in", [f"{n}.wav" for n in range(5)]), tmp_path)
    model = StrangeModel(tiny_model, MemoryError())
    made(ledger, model)
    assert model.calls == [2, 2, 1]


@pytest.mark.parametrize("kind", ["rows", "list", "tar"])
@pytest.mark.parametrize("out", ["tokens.parquet", "tokens"])
def test_recordings_that_were_in_a_crash_are_lost(tiny_model: S3GenModel, tmp_path: Path, kind: str, out: str) -> None:
    """A round, and one more: of rows whose audio is in no table of failures, of rows by path, of parts of tars."""
    names = [f"{name}.wav" for name in "abcdef"]
    folder = write_folder(tmp_path / "in", names)
    (folder / "f.wav").write_bytes(b"no audio")
    data = {name: (folder / name).read_bytes() for name in names}
    want = {name[0]: tokens_of(tiny_model, folder / name) for name in names[:-1]}
    source = folder
    if kind == "rows":
        source = tmp_path / "rows"
        source.mkdir()
        for at in (0, 3):
            write_audio_parquet(source / f"{at}.parquet", [{"bytes": data[name]} for name in names[at : at + 3]])
        want = {f"{row // 3 * 3}/{row % 3}": tokens for row, tokens in enumerate(want.values())}
    elif kind == "tar":
        source = write_tar(tmp_path / "x.tar", data)
    ledger = begin(source, tmp_path, out=str(tmp_path / out), shard_rows=3)
    death = Death(reason="it died", hung=False)
    worker = TokenizeWorker(ledger, tiny_model)
    worker.run(Order(0, guilty={1: death, 2: death}))
    worker.run(Order(1, guilty={0: death}))
    assert mendable(finalise(ledger), "tokenize") == {"worker_crashed": 3}

    again = begin_retry(ledger)
    assert again is not None
    TokenizeWorker(again, tiny_model).run(Order(2, guilty={1: death}))
    assert finalise(again).rows_done == 4
    assert verify(again.folder.url).findings == []
    last = begin_retry(again)
    assert last is not None
    TokenizeWorker(last, tiny_model).run(3)
    summary = finalise(last)
    assert (summary.rows_done, summary.errors) == (5, {"unreadable": 1})
    assert verify(last.folder.url).findings == []
    assert {row["id"]: row["tokens"] for row in pq.read_table(tmp_path / out).to_pylist()} == want
    (failure,) = pq.read_table(f"{ledger.folder.url}/failures.parquet").to_pylist()
    assert (failure["error"], failure["row"]) == ("unreadable", 2 if kind == "rows" else 5)
    assert begin_retry(last) is None
    config = checked(TokenizeConfig, ledger.job["config"])
    assert Tokenizing.again(config, last).plan.digest == last.plan.digest


def test_a_recording_that_is_not_finite_is_tried_for_ever(tiny_model: S3GenModel, tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", np.full(24_000, np.nan), 24_000, subtype="FLOAT")
    ledger = begin(tmp_path / "a.wav", tmp_path)
    assert made(ledger, tiny_model) == []
    assert begin_retry(ledger) is None


@pytest.mark.parametrize("out", ["tokens.parquet", "tokens"])
def test_a_job_beside_its_recordings_finds_itself(tiny_model: S3GenModel, tmp_path: Path, out: str) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    write_audio_parquet(folder / "a.parquet", [{"bytes": audio_file()}] * 2, id=["a", "b"])
    ledger = begin(folder, tmp_path, out=str(folder / out), shard_rows=1)
    TokenizeWorker(ledger, tiny_model).run(0)
    trade = Tokenizing.again(checked(TokenizeConfig, ledger.job["config"]), ledger)
    assert trade.plan.digest == ledger.plan.digest
    if out == "tokens":
        (folder / out).mkdir()
        (folder / out / "part-0000.parquet").write_bytes(b"half of it")
        Tokenizing.again(checked(TokenizeConfig, ledger.job["config"]), ledger)
    # Killed before it had begun.
    Path(f"{folder / out}.job/job.json").unlink()
    assert Tokenizing.of(checked(TokenizeConfig, ledger.job["config"])).plan.digest == ledger.plan.digest


def test_a_worker_without_memory_tries_the_same_again(tiny_model: S3GenModel, tmp_path: Path) -> None:
    names = [f"{n}.wav" for n in range(20)]
    ledger = begin(write_folder(tmp_path / "in", names), tmp_path)
    model = StrangeModel(tiny_model, MemoryError())
    worker = TokenizeWorker(ledger, model)  # type: ignore[arg-type]
    worker.run(Order(0, probe=(0, 20)))
    worker.run(Order(0, probe=(0, 20), halvings=3))
    worker.run(Order(0, probe=(0, 20), halvings=5))
    assert model.calls == [20, 8, 8, 4, *[2] * 10]
    trade = Tokenizing.again(checked(TokenizeConfig, ledger.job["config"]), ledger)
    assert trade.order(ledger, 0, Case(halvings=2, tries=3)) == Order(0, tries=3, halvings=2)


def test_a_recording_at_a_high_rate_fills_the_memory(
    tiny_model: S3GenModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokenize_rows, "MOST_SAMPLES", 48_000)
    folder = write_folder(tmp_path / "in", ["a.wav"])
    silence = np.zeros(96_000, np.float32)
    soundfile.write(folder / "b.wav", silence[:48_001], 96_000)
    soundfile.write(folder / "c.wav", silence[:48_000], 48_000)
    unknown = tmp_path / "in/d.flac"
    soundfile.write(unknown, silence, 96_000)
    data = bytearray(unknown.read_bytes())
    data[21] &= 0xF0  # the number of samples in STREAMINFO
    data[22:26] = bytes(4)
    unknown.write_bytes(data)
    read = []
    monkeypatch.setattr(
        audiofile, "_read_mono", lambda sound, most, kept=audiofile._read_mono: read.append(most) or kept(sound, most)
    )
    ledger = begin(folder, tmp_path)
    assert [row["id"] for row in made(ledger, tiny_model)] == ["a", "c"]
    assert failed(ledger) == {"b": "too_long", "d": "too_long"}
    assert sorted(read) == [48_001] * 3  # b is not even decoded
    messages = pq.read_table(f"{ledger.folder.url}/failures.parquet")["message"].to_pylist()
    assert messages[0] == "more than 0.5 s, the most at 96000 Hz; cut it into utterances"


def test_a_recording_of_a_minute_loses_tokens(tiny_model: S3GenModel, tmp_path: Path) -> None:
    soundfile.write(tmp_path / "long.wav", speech_like(53.0, 16_000).numpy(), 16_000)
    (row,) = made(begin(tmp_path / "long.wav", tmp_path), tiny_model)
    assert (len(row["tokens"]), row["audio_seconds"]) == (53 * 25, 53.0)
