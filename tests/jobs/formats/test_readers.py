"""What a job writes, read by the libraries that people have: `datasets` and `webdataset`."""

from __future__ import annotations

import io
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np
import pyarrow as pa
import pytest
import soundfile
import yaml

from jobs.config.config import config_from
from jobs.finish import finalise
from jobs.formats.features import json_features
from jobs.formats.writers import Sound, write_webdataset
from jobs.ledger.ledger import Ledger
from jobs.manifest.manifest import Manifest
from jobs.plan import make_plan
from jobs.storage.folders import Folder
from jobs.voices.table import VoiceTable
from jobs.worker.worker import Worker, fingerprints
from s3gen import S3GenModel
from tests.jobs.inputs import good_rows, write_manifest

ROWS = 7
IDS = ["plain", "dir/../b.c", "é\n'\"", "x" * 300, "日本.flac", "a b&c=d", "%41"]
SAMPLE_RATE, SAMPLES_PER_TOKEN = 24_000, 960


@dataclass(frozen=True)
class Job:
    """A finished job, and what it was given."""

    output: Path
    columns: dict[str, Any]

    @property
    def samples(self) -> dict[str, int]:
        return {each: SAMPLES_PER_TOKEN * len(row) for each, row in zip(IDS, self.columns["tokens"], strict=True)}


@pytest.fixture(scope="module")
def jobs(tiny_model: S3GenModel, table: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Job]:
    """A job of each format: three shards, made, committed and finished as any."""
    folder = tmp_path_factory.mktemp("readers")
    columns = good_rows(ROWS) | {"id": IDS, "text": [f"Text {n}, «quoted»." for n in range(ROWS)]}
    columns["tags"] = pa.array([["a"], [], ["b", "c"], None, ["d"], [], []], pa.list_(pa.string()))
    columns["weight"] = pa.array([0.5, None, 1, 2, 3, 4, 5], pa.float32())
    manifest = write_manifest(folder / "manifest.parquet", columns)
    made = {}
    for kind, audio in (("parquet", "flac"), ("webdataset", "wav")):
        given = {"model": "random:tiny", "manifest": str(manifest), "voices": str(table), "shard_rows": 3}
        config = config_from(given | {"output": str(folder / kind), "format": kind, "audio": audio})
        voices = VoiceTable.open(str(table))
        job = {"config": config.frozen(), "fingerprints": fingerprints(tiny_model, voices), "limit": None}
        plan = make_plan(Manifest.scan(str(manifest)), config.shard_rows)
        ledger = Ledger.start(Folder(config.output), {**job, "versions": {}, "threads": 1}, plan)
        worker = Worker(ledger, tiny_model, voices, max_frames=2_048)
        for shard in range(len(plan)):
            worker.run(shard)
        finalise(ledger)
        made[kind] = Job(folder / kind, columns)
    return made


@pytest.fixture
def datasets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The library, with its cache in the test's folder, and without a network."""
    for name, value in {"HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}.items():
        monkeypatch.setenv(name, value)
    import datasets

    datasets.disable_progress_bars()
    return datasets


def _heard(rows: Iterator[dict[str, Any]] | Any) -> dict[str, int]:
    """Samples of every row's audio, decoded, by id."""
    found = {}
    for row in rows:
        wave, rate = soundfile.read(io.BytesIO(row["audio"]["bytes"]), dtype="float32")
        assert rate == SAMPLE_RATE
        assert np.isfinite(wave).all()
        assert wave.ndim == 1
        found[row["id"]] = len(wave)
    return found


@pytest.mark.parametrize("streaming", [False, True])
def test_datasets_takes_the_audio_for_bytes_or_loses_a_column(
    jobs: dict[str, Job], datasets: Any, tmp_path: Path, streaming: bool
) -> None:
    job = jobs["parquet"]
    files = str(job.output / "audio/*.parquet")
    read = datasets.load_dataset(
        "parquet", data_files=files, split="train", streaming=streaming, cache_dir=str(tmp_path / "cache")
    )
    # From the shards' own metadata: nobody has to cast.
    assert read.features["audio"] == datasets.Audio(sampling_rate=SAMPLE_RATE)
    # Decoding is torchcodec's, which needs a torch of its own build; what it would get are these bytes.
    rows = list(read.cast_column("audio", datasets.Audio(sampling_rate=SAMPLE_RATE, decode=False)))
    assert _heard(rows) == job.samples
    by_id = {row["id"]: row for row in rows}
    assert [by_id[each]["text"] for each in IDS] == job.columns["text"]
    assert [by_id[each]["tags"] for each in IDS] == job.columns["tags"].to_pylist()
    assert [by_id[each]["weight"] for each in IDS] == job.columns["weight"].to_pylist()
    assert [by_id[each]["voice_id"] for each in IDS] == job.columns["voice_id"]


def test_datasets_reads_a_whole_output_by_its_audio_folder(jobs: dict[str, Job], datasets: Any, tmp_path: Path) -> None:
    job = jobs["parquet"]
    read = datasets.load_dataset(str(job.output / "audio"), split="train", cache_dir=str(tmp_path / "cache"))
    assert read.num_rows == ROWS
    assert _heard(read.cast_column("audio", datasets.Audio(decode=False))) == job.samples


def test_webdataset_cuts_keys_or_mixes_up_rows(jobs: dict[str, Job]) -> None:
    import webdataset

    job = jobs["webdataset"]
    shards = [str(path) for path in sorted((job.output / "audio").glob("*.tar"))]
    assert len(shards) == 3
    rows = list(webdataset.WebDataset(shards, shardshuffle=False).decode())
    assert [row["json"]["id"] for row in rows] == IDS
    assert _heard({"id": row["json"]["id"], "audio": {"bytes": row["wav"]}} for row in rows) == job.samples
    assert [row["json"]["text"] for row in rows] == job.columns["text"]
    assert [row["json"]["tags"] for row in rows] == job.columns["tags"].to_pylist()
    keys = [row["__key__"] for row in rows]
    assert len(set(keys)) == ROWS
    assert [unquote(key) for key in keys if len(key) < 112] == [each for each in IDS if len(each) < 100]


NAN = float("nan")
LATE: dict[str, pa.Array] = {  # nothing that tells a type in the first rows, of which `datasets` guesses it
    "text": pa.array([None] * 8 + ["x"] * 4),
    "score": pa.array([0.5, NAN, None, -math.inf] * 3, pa.float32()),
    "tags": pa.array([[]] * 8 + [["a", None]] * 4, pa.large_list(pa.string())),
    "rates": pa.array([None] * 8 + [[1.5, None]] * 4, pa.list_(pa.float64())),
    "of": pa.array([None] * 8 + [{"who": "x", "when": [{"n": 1}]}] * 4),
    "day": pa.array([None] * 8 + [20_000] * 4, pa.int32()).cast(pa.date32()),
    "pairs": pa.array([None] * 8 + [[("a", "b")]] * 4, pa.map_(pa.string(), pa.string())),
    "kind": pa.array(["p", "q"] * 6).dictionary_encode(),
    "none: at, all": pa.nulls(12),
}


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("columns", [LATE, {"seed": pa.array([1, 2**64 - 1] * 6, pa.uint64())}], ids=["late", "large"])
def test_datasets_guesses_the_types_of_columns_in_tars(
    datasets: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, columns: dict[str, pa.Array], streaming: bool
) -> None:
    # As decoding it, writing audio is torchcodec's.
    monkeypatch.setattr(datasets.Audio, "encode_example", lambda self, value: value)
    table = pa.table({"id": [f"u{n}" for n in range(12)], "voice_id": ["v"] * 12, **columns})
    (tmp_path / "audio").mkdir()
    for n in range(2):
        sound = Sound(suffix="flac", rate=8_000, samples=[1] * 6)
        write_webdataset(tmp_path / f"audio/{n}.tar", table.slice(6 * n, 6), [b"fLaC"] * 6, sound)
    features = json_features(table.schema, "flac", 8_000)
    configs = [{"config_name": "default", "data_files": "audio/*.tar"}]
    head = yaml.safe_dump({"configs": configs, "dataset_info": {"features": features}})
    (tmp_path / "README.md").write_text(f"---\n{head}---\n")
    read = datasets.load_dataset(str(tmp_path), split="train", streaming=streaming, cache_dir=str(tmp_path / "cache"))
    assert read.features["flac"] == datasets.Audio(sampling_rate=8_000)
    rows = [row["json"] for row in read.select_columns(["json"])]
    want = table.to_pylist()
    for row in rows:
        row |= {"seed": int(row["seed"])} if "seed" in row else {}  # a text of digits
    for row in want:
        row |= {"day": "2024-10-04", "pairs": [["a", "b"]]} if row.get("day") else {}
    assert repr(rows) == repr(want)  # in which NaN equals itself
