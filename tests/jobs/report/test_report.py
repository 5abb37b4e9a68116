"""The report page: what it says of a job, and what a job cannot make it do."""

from __future__ import annotations

import base64
import io
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import soundfile

from jobs.config.config import STORED_RATES
from jobs.errors import InputError, StorageError
from jobs.finish import finalise
from jobs.ledger.ledger import Ledger
from jobs.report import report
from jobs.report.choice import EXTREMES, SHOWN_VOICES, WORST_ROWS
from jobs.report.mel_picture import MAX_COLUMNS
from jobs.report.players import CUTS, PLAYERS_BYTES, _fitting
from jobs.report.report import MAX_BYTES, REPORT, write_report
from jobs.retry import begin_retry
from jobs.storage.folders import Folder
from s3gen.constants import MEL_BINS, SAMPLE_RATE
from tests.jobs import made_job, shown_job
from tests.jobs.command import cli


class Reader(HTMLParser):
    """What a browser would make of a page: its elements and its text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.words: list[str] = []
        self.feed(page)
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    def all(self, tag: str) -> list[dict[str, str]]:
        return [attributes for found, attributes in self.elements if found == tag]


@pytest.fixture(scope="module")
def ledger(tmp_path_factory: pytest.TempPathFactory) -> Ledger:
    """A finished job."""
    folder = tmp_path_factory.mktemp("shown")
    ledger = shown_job.start(str(folder / "out"), shown_job.write_manifest(folder / "manifest.parquet"))
    shown_job.make_all(ledger)
    finalise(ledger)
    return ledger


def page_of(ledger: Ledger) -> Reader:
    write_report(ledger.folder.url)
    return Reader(ledger.folder.read(REPORT).decode())


@pytest.fixture(scope="module")
def page(ledger: Ledger) -> Reader:
    return page_of(ledger)


def test_numbers_are_those_of_the_job(page: Reader) -> None:
    assert "The job is finished" in page.text
    assert "Rows made 37 of 40" in page.text
    assert "Voices 5" in page.text
    assert "Failed rows 3 7.5 %" in page.text
    assert [tile["class"] for tile in page.all("div") if tile.get("class") in ("bad", "warn")] == ["bad", "warn"]
    assert "Beyond a check 1 2.7 %" in page.text
    assert re.search(r"audio, s loudness, LUFS SNR, dB beyond a check", page.text)
    assert re.search(r"de/carl\.2 8 8\.12 −\d+\.\d −?\d+\.\d 1", page.text)
    assert "Signal to noise" in page.text
    assert "Speaking rate" not in page.text  # it has no texts
    assert "DNSMOS" not in page.text
    assert "null_tokens 2 The row has no tokens." in page.text
    assert "token_out_of_range 1" in page.text
    assert "node-2:43 3 shards, 11.7 s of audio, 1 again" in page.text
    assert "a pause: 60.0 min" in page.text
    assert "1 shard took more than one try" in page.text
    assert "10.0 % of what the vocoder computed was padding" in page.text
    assert "made/up" in page.text


def test_hostile_ids_are_text_and_nothing_else(page: Reader) -> None:
    for hostile in (shown_job.SCRIPT, shown_job.IMAGE, shown_job.TEMPLATE):
        assert hostile in page.text
    tags = {tag for tag, _ in page.elements}
    assert not tags & {"script", "iframe", "object", "embed", "form", "base"}
    for tag, attributes in page.elements:
        assert not any(name.startswith("on") for name in attributes), (tag, attributes)
    sections = {attributes["id"] for attributes in page.all("section")}
    assert sections == {"voices", "checks", "distribution", "failures", "run", "made"}
    # Neither a terminal's escapes nor a text that runs backwards.
    assert "\x1b" not in page.text
    assert "\u202e" not in page.text


def test_the_page_needs_no_network(page: Reader) -> None:
    for _, attributes in page.elements:
        for name in ("src", "href", "srcset", "data", "action"):
            assert attributes.get(name, "data:").startswith(("data:", "#")), attributes
    policy = next(meta["content"] for meta in page.all("meta") if meta.get("http-equiv") == "Content-Security-Policy")
    assert "default-src 'none'" in policy
    styles = "".join(page.words)
    assert "url(" not in styles
    assert "@import" not in styles


def test_players_hold_what_is_stored(page: Reader, ledger: Ledger) -> None:
    """One for each of five voices, one beyond a check, and three of which each is at an end of one scale or of two."""
    assert len(page.all("audio")) == 9
    assert len(page.all("img")) == 9
    stored = set()
    for record in ledger.records():
        assert record.audio is not None
        for _, clip in clips_of(ledger.folder, record.audio.name):
            stored.add(soundfile.read(io.BytesIO(clip), dtype="int16")[0].tobytes())
    for audio in page.all("audio"):
        kind, _, data = audio["src"].partition(";base64,")
        assert kind == "data:audio/flac"
        wave, rate = soundfile.read(io.BytesIO(base64.b64decode(data)), dtype="int16")
        assert rate == SAMPLE_RATE
        assert wave.tobytes() in stored


def clips_of(folder: Folder, name: str) -> list[tuple[str, bytes]]:
    import pyarrow.parquet as pq

    rows = pq.read_table(io.BytesIO(folder.read(name)), columns=["id", "audio"]).to_pylist()
    return [(row["id"], row["audio"]["bytes"]) for row in rows]


def test_everything_that_is_seen_or_heard_has_a_text(page: Reader) -> None:
    assert all(image["alt"] for image in page.all("img"))
    assert all(audio["aria-label"] for audio in page.all("audio"))
    assert all(picture["aria-label"] for picture in page.all("svg"))
    assert page.all("html")[0]["lang"] == "en"


def test_the_same_output_gives_the_same_page(ledger: Ledger, page: Reader) -> None:
    assert Reader(page_of_text(ledger)).elements == page.elements


def page_of_text(ledger: Ledger) -> str:
    return report.render(report.read(ledger, None))


@pytest.mark.parametrize("shards", [0, 1, 4])
def test_a_job_under_way_is_shown_as_one(tmp_path: Path, shards: int) -> None:
    ledger = shown_job.start(str(tmp_path / "out"), shown_job.write_manifest(tmp_path / "manifest.parquet"))
    for shard in range(shards):
        shown_job.make(ledger, shard)
    page = page_of(ledger)
    assert "The job is stopped" in page.text
    assert f"{shards} of 10 shards are done" in page.text
    assert f"s3gen resume {ledger.folder.url}" in page.text
    assert ("Failed rows 1" in page.text) == (shards == 4)
    assert bool(page.all("audio")) == bool(shards)


def stored(ledger: Ledger) -> float:
    return report.read(ledger, None).stored_bytes


def test_of_many_shards_a_sample_is_read_and_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jobs.report.report.EXACT_RECORDS", 3)
    ledger = shown_job.start(str(tmp_path / "out"), shown_job.write_manifest(tmp_path / "manifest.parquet"))
    for shard in range(6):
        shown_job.make(ledger, shard)
    page = page_of(ledger)
    assert "failures are those of 3 of the 6 shards" in page.text
    sample = stored(ledger)
    monkeypatch.setattr("jobs.report.report.EXACT_RECORDS", 6)
    assert sample == pytest.approx(stored(ledger), rel=0.3)  # and not half of it
    monkeypatch.setattr("jobs.report.report.EXACT_RECORDS", 3)
    shown_job.make_all(ledger)
    finalise(ledger)
    whole = page_of(ledger)
    assert "failures are those of" not in whole.text  # the index is read
    assert "Voices 5" in whole.text
    assert "A sample of the shards is drawn" in whole.text


def test_rows_that_are_tried_again_are_not_failures_twice(tmp_path: Path) -> None:
    ledger = made_job.start(str(tmp_path / "out"), made_job.write_manifest(tmp_path / "in" / "manifest.parquet"))
    troubles = {"u3": "not_finite", "u4": "bad_audio", "u7": "worker_hung"}
    for shard in range(len(ledger.plan)):
        ledger.commit(*made_job.prepare(ledger, shard, trouble=lambda row: troubles.get(row.id)))
    finalise(ledger)
    assert "Failed rows 5" in page_of(ledger).text
    assert begin_retry(ledger) is not None
    underway = page_of(Ledger.open(ledger.folder)).text
    assert "Failed rows 2" in underway
    assert "worker_hung" not in underway
    for troubles in ({"u3": "bad_audio", "u4": "bad_audio", "u7": "worker_hung"}, {"u3": "bad_audio"}):
        ledger = Ledger.open(ledger.folder)
        for shard in set(range(len(ledger.plan))) - ledger.committed():
            ledger.commit(*made_job.prepare(ledger, shard, trouble=lambda row, codes=troubles: codes.get(row.id)))
        finalise(ledger)
        if len(ledger.rounds) < 2:
            begin_retry(ledger)
    done = page_of(ledger).text
    assert "Rows made 11 of 14" in done
    assert "Failed rows 3" in done
    assert "tried again 3 failed rows in 2 rounds" in done
    assert "(1 file, 14 rows)" in done
    card = ledger.folder.read("README.md").decode()
    assert "with another one, since they had failed with it: 1 row" in card  # u3 is not made, u7 has kept its own


@pytest.mark.parametrize("shard_format", ["parquet", "webdataset", "lhotse"])
def test_the_report_of_any_store_and_format(place: str, tmp_path: Path, shard_format: str) -> None:
    manifest = made_job.write_manifest(tmp_path / "in" / "manifest.parquet")
    audio = {"parquet": "wav", "webdataset": "mp3", "lhotse": "ogg"}[shard_format]
    ledger = made_job.start(place, manifest, format=shard_format, audio=audio)
    made_job.make_all(ledger)
    finalise(ledger)
    page = page_of(ledger)
    assert len(page.all("audio")) >= 3
    assert "cannot be heard" not in page.text
    assert "loudness, LUFS SNR, dB letters/s beyond a check" in page.text
    assert "Speaking rate" in page.text
    assert "| `letters_per_second` | letters and digits per second |" in ledger.folder.read("README.md").decode()


def test_a_shard_that_is_gone_costs_its_players_and_no_more(tmp_path: Path) -> None:
    ledger = made_job.start(str(tmp_path / "out"), made_job.write_manifest(tmp_path / "in" / "manifest.parquet"))
    made_job.make_all(ledger)
    finalise(ledger)
    whole = len(page_of(ledger).all("audio"))
    record = next(ledger.records())
    assert record.audio is not None
    for damage in (b"", b"no parquet", ledger.folder.read(record.audio.name)[:-400], None):
        if damage is None:
            ledger.folder.delete(record.audio.name)
        else:
            ledger.folder.put(record.audio.name, damage)
        page = page_of(ledger)
        assert "cannot be heard" in page.text
        assert 0 < len(page.all("audio")) < whole


def test_an_index_that_is_gone_is_said(tmp_path: Path) -> None:
    ledger = made_job.start(str(tmp_path / "out"), made_job.write_manifest(tmp_path / "in" / "manifest.parquet"))
    made_job.make_all(ledger)
    finalise(ledger)
    ledger.folder.put("index.parquet", b"no parquet")
    with pytest.raises(StorageError, match=r"index\.parquet cannot be read"):
        write_report(ledger.folder.url)
    ledger.folder.delete("index.parquet")
    with pytest.raises(StorageError, match=r"index\.parquet is missing"):
        write_report(ledger.folder.url)
    result = cli("report", ledger.folder.url)
    assert (result.exit_code, result.stdout) == (1, "")


def test_a_job_that_makes_no_speech_has_no_report(ledger: Ledger) -> None:
    other = Ledger.open(ledger.folder)
    other.job["kind"] = "tokenize"
    with pytest.raises(InputError, match="makes no speech"):
        report.read(other, None)


def test_the_worst_case_stays_below_the_limit() -> None:
    """White noise, which FLAC cannot make smaller: at the shortest cut all players fit, and with them the rest."""
    most = SHOWN_VOICES + WORST_ROWS * 5 + len(EXTREMES)
    at_worst = most * CUTS[-1] * max(STORED_RATES) * 2 * 1.02 * 4 / 3
    assert at_worst < PLAYERS_BYTES
    pictures = most * (MEL_BINS * (MAX_COLUMNS + 1) + 1_000) * 4 / 3
    assert PLAYERS_BYTES + pictures < MAX_BYTES - 1_000_000  # texts and charts


def test_long_clips_are_cut_until_all_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    noise = np.random.default_rng(0).uniform(-1, 1, 12 * SAMPLE_RATE).astype(np.float32)
    short = noise[: 2 * SAMPLE_RATE]
    monkeypatch.setattr("jobs.report.players.PLAYERS_BYTES", 880_000)
    sounds = _fitting([noise, None, short], SAMPLE_RATE)
    assert [sound and sound[1] for sound in sounds] == [10.0, None, 2.0]
    monkeypatch.setattr("jobs.report.players.PLAYERS_BYTES", 9_000_000)
    assert [sound and sound[1] for sound in _fitting([noise, None, short], SAMPLE_RATE)] == [12.0, None, 2.0]


def test_a_page_that_is_too_large_for_its_texts_is_written(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = len(page_of_text(ledger).encode())
    monkeypatch.setattr("jobs.report.report.CUTS", (1.0, 0.5, 0.2))
    monkeypatch.setattr("jobs.report.report.MAX_BYTES", whole - 1)
    page = page_of(ledger)
    assert len(ledger.folder.read(REPORT)) < whole
    waves = [soundfile.read(io.BytesIO(base64.b64decode(each["src"].partition(",")[2]))) for each in page.all("audio")]
    assert max(len(wave) for wave, _ in waves) == SAMPLE_RATE  # and no shorter than need be
    assert "(its first 1.0 s are here)" in page.text


def test_the_command_writes_the_page_where_it_is_told(ledger: Ledger, tmp_path: Path) -> None:
    out = tmp_path / "pages" / "speech.html"
    result = cli("report", ledger.folder.url, "--out", out)
    assert result.exit_code == 0
    assert result.stdout.startswith(f"{out}  (")
    assert re.search(r"\(\d+ kB\)", result.stdout)
    assert out.read_bytes().startswith(b"<!DOCTYPE html>")
    for arguments, message in (
        (("report", tmp_path), "no job was begun here"),
        (("report", ledger.folder.url, "--out", tmp_path), "give a file, such as"),
    ):
        result = cli(*arguments)
        assert (result.exit_code, result.stdout) == (2, "")
        assert message in result.stderr
