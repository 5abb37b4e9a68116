"""The data-set card: what it says, what it must not say, and that it is its reader's once it is edited."""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import yaml

from jobs.card import card, write_card
from jobs.errors import InputError, StorageUnknown
from jobs.finish import finalise
from jobs.ledger.ledger import Ledger
from jobs.ledger.tally import Summary
from jobs.report.numbers import Numbers
from s3gen.card_mark import CARD
from tests.jobs import made_job, shown_job


def finished(folder: Path, **config: Any) -> tuple[Ledger, Summary]:
    ledger = shown_job.start(str(folder / "out"), shown_job.write_manifest(folder / "manifest.parquet"), **config)
    shown_job.make_all(ledger)
    return ledger, finalise(ledger)


def read(ledger: Ledger) -> tuple[dict[str, Any], str]:
    """The head, and the text after it."""
    _, head, text = ledger.folder.read(CARD).decode().split("---\n", 2)
    return yaml.safe_load(head), text


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> tuple[Ledger, Summary]:
    return finished(tmp_path_factory.mktemp("card"))


def test_a_card_says_that_its_speech_is_synthetic(job: tuple[Ledger, Summary]) -> None:
    ledger, summary = job
    write_card(ledger, summary)
    head, text = read(ledger)
    assert head["task_categories"] == ["text-to-speech"]
    assert "synthetic" in head["tags"]
    assert head["size_categories"] == ["n<1K"]
    assert head["configs"][0]["data_files"] == [{"split": "train", "path": "audio/*.parquet"}]
    assert "**All speech in this data set is synthetic" in text
    assert "No person has said" in text
    assert "37 utterances, 38.5 s of audio, 5 voices" in text
    assert "3 more rows could not be made (null\\_tokens 2, token\\_out\\_of\\_range 1)" in text
    assert "| de\\/carl\\.2 | 8 | 8.1 s |" in text
    assert "| clipping | 0.001 | 1 (2.7 %) |" in text
    assert "by the seed 3 of the job" in text
    cells = r"^\| `(\w+)` \|.*\| (\d+) \| (.*) \| (.*) \| (.*) \|$"
    measured = {row[0]: row for row in re.findall(cells, text, re.MULTILINE)}
    assert set(measured) == {"loudness", "snr"}
    assert {row[1] for row in measured.values()} == {"37"}
    assert all(re.fullmatch(r"−\d+\.\d LUFS", value) for value in measured["loudness"][2:])
    assert ledger.job["plan"] in text


def test_voices_that_are_too_many_to_count_are_counted(
    job: tuple[Ledger, Summary], monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger, summary = job
    with monkeypatch.context() as patch:
        patch.setattr("jobs.report.numbers.MAX_VOICES", 3)
        write_card(ledger, summary)
    _, text = read(ledger)
    assert "37 utterances, 38.5 s of audio, more than 3 voices" in text
    rows = re.findall(r"^\| .* \| (\d+) \| [\d.]+ m?s \|$", text[: text.index("## Checks")], re.MULTILINE)
    assert len(rows) == 4
    assert sum(map(int, rows)) == 37


def test_a_published_card_names_no_place_of_its_maker(tmp_path: Path) -> None:
    ledger, summary = finished(tmp_path, model=f"{tmp_path}/weights", voices="s3://private-bucket/voices.parquet")
    write_card(ledger, summary)
    _, text = read(ledger)
    assert "model: weights" in text
    assert str(tmp_path) not in text
    assert "private-bucket" not in text


def test_random_weights_are_not_passed_off_as_speech(tmp_path: Path) -> None:
    ledger, summary = finished(tmp_path, model="random:tiny")
    write_card(ledger, summary)
    assert "The weights of the model were random, for a trial: this is noise." in read(ledger)[1]


def test_trimmed_audio_is_said_to_be_as_long_as_its_tokens(job: tuple[Ledger, Summary], tmp_path: Path) -> None:
    write_card(*job)
    assert "has the length that its tokens ask for;" in read(job[0])[1]
    ledger, summary = finished(tmp_path, wave={"trim_db": 40.0})
    write_card(ledger, summary)
    assert "has the length that its tokens ask for, but for the silence that was trimmed;" in read(ledger)[1]


def test_an_edited_card_is_overwritten(job: tuple[Ledger, Summary], caplog: pytest.LogCaptureFixture) -> None:
    ledger, summary = job
    write_card(ledger, summary)
    own = ledger.folder.read(CARD)
    write_card(ledger, summary)
    assert ledger.folder.read(CARD) == own
    for edited in (own + b"\nLicence: CC0.\n", own.replace(b"synthetic", b"lovely"), b"# Mine\n", b""):
        ledger.folder.put(CARD, edited)
        with caplog.at_level(logging.INFO, "jobs"):
            write_card(ledger, summary)
        assert ledger.folder.read(CARD) == edited
        assert "left as it is" in caplog.text
    ledger.folder.put(CARD, own)
    write_card(ledger, Summary(**{**vars_of(summary), "rows_failed": 0}))
    assert "could not be made" not in read(ledger)[1]  # its own one is renewed


def vars_of(summary: Summary) -> dict[str, Any]:
    from dataclasses import asdict

    return asdict(summary)


def test_hostile_names_are_marked_up(job: tuple[Ledger, Summary]) -> None:
    ledger, summary = job
    write_card(ledger, summary)
    text = read(ledger)[1]
    assert "<script" not in re.sub(r"\\[^\w\s]", "", text)
    assert "\\<script\\>" in text


def test_a_card_that_cannot_be_written_keeps_a_job_from_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    ledger = made_job.start(str(tmp_path / "out"), made_job.write_manifest(tmp_path / "in" / "manifest.parquet"))
    made_job.make_all(ledger)

    def failing(error: Exception) -> None:
        monkeypatch.setattr("jobs.card.card", Mock(side_effect=error))

    failing(StorageUnknown("the store does not answer"))
    with pytest.raises(StorageUnknown):
        finalise(ledger)
    assert ledger.summary() is None
    failing(InputError("seed: was -1"))
    assert finalise(ledger).rows_done == 12
    assert ledger.summary() is not None
    assert not ledger.folder.exists(CARD)
    assert "README.md is not written, which changes nothing else: InputError: seed: was -1" in caplog.text


@pytest.mark.parametrize(
    ("rows", "size"),
    [
        (0, "n<1K"),
        (999, "n<1K"),
        (1_000, "1K<n<10K"),
        (99_999, "10K<n<100K"),
        (10**6, "1M<n<10M"),
        (10**12, "10B<n<100B"),
    ],
)
def test_sizes_are_those_of_the_hub(job: tuple[Ledger, Summary], rows: int, size: str) -> None:
    ledger, summary = job
    columns = ledger.plan.manifest.columns
    text = card(ledger.job, columns, Summary(**{**vars_of(summary), "rows_done": rows}), Numbers())
    head = yaml.safe_load(text.split("---\n", 2)[1])
    assert head["size_categories"] == [size]
    assert ("configs" in head) == bool(rows)  # of nothing there are no files to read


@pytest.mark.parametrize("shard_format", ["parquet", "webdataset", "lhotse"])
def test_the_hubs_library_reads_the_audio_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shard_format: str
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    datasets = pytest.importorskip("datasets")
    manifest = made_job.write_manifest(tmp_path / "in" / "manifest.parquet")
    ledger = made_job.start(str(tmp_path / "out"), manifest, format=shard_format, keep_inputs=True)
    made_job.make_all(ledger)
    write_card(ledger, finalise(ledger))
    assert ("dataset_info" in read(ledger)[0]) == (shard_format == "webdataset")
    place = {"path": str(tmp_path / "out"), "cache_dir": str(tmp_path / "cache")}
    files = datasets.load_dataset_builder(**place).config.data_files
    assert {split: sorted(Path(name).name for name in names) for split, names in files.items()} == {
        "train": sorted(path.name for path in (tmp_path / "out/audio").iterdir() if path.suffix != ".gz")
    }
    if shard_format != "parquet":  # of tars it makes Parquet first, for which it wants torchcodec
        monkeypatch.setattr(datasets.Audio, "encode_example", lambda self, value: value)
    found = datasets.load_dataset(**place)["train"]
    assert found.num_rows == 12
    assert isinstance(found.features["audio" if shard_format == "parquet" else "flac"], datasets.Audio)
    if shard_format == "webdataset":
        kept = set(found.features["json"])
        assert kept == {"id", "voice_id", "text", "tokens", "seed"}
        assert found.features["json"]["tokens"] == datasets.List(datasets.Value("int32"))
