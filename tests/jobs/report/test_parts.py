"""What the report is made of: counts that do not depend on how rows come, choices, charts, the course of a run."""

from __future__ import annotations

import io
import re
import tarfile
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from jobs.errors import StorageError
from jobs.formats.clips import read_clip
from jobs.formats.writers import Sound, write_parquet, write_webdataset
from jobs.ledger.records import CommitRecord
from jobs.reasons import REASONS
from jobs.report.choice import SHOWN_VOICES, Choice
from jobs.report.failures import Failures
from jobs.report.mel_picture import MAX_COLUMNS, WINDOW, _levels, mel_picture
from jobs.report.numbers import Numbers
from jobs.report.quality import QUALITIES
from jobs.report.run import LANES, PIECES, WorkTime, run_of
from jobs.report.words import count, length, number, percent, plain, size
from jobs.storage.folders import Folder
from s3gen.constants import MEL_BINS, SAMPLE_RATE, SAMPLES_PER_TOKEN
from tests.jobs.made_job import bare_record

ROOT = Path(__file__).parents[3]


def frame(rows: int, voices: int, seed: int = 0) -> pd.DataFrame:
    """Rows as an index has them; every fiftieth is beyond a check."""
    random = np.random.default_rng(seed)
    level = random.normal(-25, 4, rows).astype(np.float32)
    values = {
        "id": [f"row-{n}" for n in range(rows)],
        "voice_id": [f"voice-{n}" for n in random.integers(0, voices, rows)],
        "shard": [f"audio/{n // 50:07d}-a.parquet" for n in range(rows)],
        "row": np.arange(rows) % 50,
        "samples": SAMPLES_PER_TOKEN * random.integers(1, 400, rows),
        "peak": random.uniform(0, 1, rows).astype(np.float32),
        "rms_db": level,
        **{name: random.uniform(0, 1, rows).astype(np.float32) for name in ("silence", "clipped", "dc")},
        **{name: random.uniform(0, 2, rows).astype(np.float32) for name in ("click_start", "click_end")},
        "loudness": (level - 2).clip(-70),
        "snr": random.uniform(-20, 100, rows).astype(np.float32),
        "letters_per_second": [None if n % 3 == 0 else float(n % 23) for n in range(rows)],
        "dnsmos_ovr": np.full(rows, np.nan, np.float32),
        "joints": [n % 3 if n % 10 == 4 else 0 for n in range(rows)],
        "problems": ["dc,click_end" if n % 50 == 7 else "" for n in range(rows)],
    }
    return pd.DataFrame(values)


def pieces(whole: pd.DataFrame, step: int) -> list[pd.DataFrame]:
    """The same rows in frames, with the voices as categories, as Parquet gives them."""
    parts = [whole.iloc[start : start + step] for start in range(0, len(whole), step)]
    return [part.assign(voice_id=part["voice_id"].astype("category")) for part in parts]


@pytest.mark.parametrize("step", [1_000, 137, 20])
def test_counts_depend_on_how_the_rows_come(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jobs.report.numbers.FOLD_ROWS", 20)
    whole = frame(1_000, 12)
    numbers = Numbers()
    for part in pieces(whole, step):
        numbers.add(part)
    assert (numbers.rows, numbers.samples) == (1_000, whole["samples"].sum())
    assert (numbers.suspect, dict(numbers.problems)) == (20, {"dc": 20, "click_end": 20})
    assert numbers.joined == (whole["joints"] > 0).sum() == 67
    table = numbers.voices.table()
    means = {name: (name, "mean") for name in ("loudness", "snr", "letters_per_second")}
    wanted = whole.groupby("voice_id").agg(rows=("samples", "size"), samples=("samples", "sum"), **means)
    assert table["samples"].is_monotonic_decreasing
    for name in ("rows", "samples", *means):
        assert np.allclose(table.sort_index()[name], wanted[name])
    assert table["suspect"].sum() == 20
    assert table["dnsmos_ovr"].isna().all()
    assert [quality.column for quality in numbers.qualities.there()] == [*means]
    assert [chart.title for chart in numbers.qualities.histograms()] == ["Loudness", "Signal to noise", "Speaking rate"]
    seconds = whole["samples"] / SAMPLE_RATE
    assert numbers.lengths.quantile(0.5) == pytest.approx(seconds.quantile(0.5, interpolation="lower"), abs=0.04)
    assert numbers.lengths.quantile(0) == pytest.approx(seconds.min())
    assert numbers.lengths.quantile(1) == pytest.approx(seconds.max())
    for quality in QUALITIES[:3]:
        spread, values = numbers.qualities.spreads[quality.column], whole[quality.column].dropna()
        assert spread.total == len(values)
        assert spread.quantile(0.5) == pytest.approx(values.quantile(0.5, interpolation="lower"), abs=quality.step)


def test_voices_without_number_fill_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jobs.report.numbers.MAX_VOICES", 10)
    monkeypatch.setattr("jobs.report.numbers.FOLD_ROWS", 20)
    whole = frame(2_000, 500)
    numbers = Numbers()
    for part in pieces(whole, 50):
        numbers.add(part)
    table = numbers.voices.table()
    assert set(table.index) == set(whole["voice_id"].unique()[:10])  # the first that occur
    assert table["samples"].sum() + numbers.voices.beyond["samples"] == whole["samples"].sum()
    assert table["rows"].sum() + numbers.voices.beyond["rows"] == 2_000


@pytest.mark.parametrize("voices", [5, 200])
def test_the_choice_depends_on_how_the_rows_come(voices: int) -> None:
    whole = frame(1_000, voices)
    picked = []
    for step in (1_000, 137, 40):
        choice = Choice(3)
        for part in pieces(whole, step):
            choice.add(part)
        picked.append((choice.voices(), choice.suspects(), choice.extremes()))
        assert len({pick.voice_id for pick in choice.voices()}) == min(voices, SHOWN_VOICES)
    assert picked[0] == picked[1] == picked[2]
    other = Choice(4)
    other.add(whole)
    assert other.voices() != picked[0][0]


def test_what_is_heard_is_what_is_worst() -> None:
    whole = frame(1_000, 5)
    whole.loc[whole.index % 100 == 7, "dc"] *= -1  # an offset is as bad downwards
    choice = Choice(0)
    choice.add(whole)
    suspects = whole[whole["problems"] != ""]
    found = choice.suspects()
    assert {(pick.id, pick.value) for pick in found if pick.reason == "dc"} == set(
        suspects.loc[suspects["dc"].abs().nlargest(3).index, ["id", "dc"]].itertuples(index=False, name=None)
    )
    assert len({pick.value > 0 for pick in found if pick.reason == "dc"}) == 2
    assert all(pick.problems == "dc,click_end" for pick in found)
    assert len({(pick.shard, pick.row) for pick in found}) == len(found)
    extremes = {pick.reason: pick.id for pick in choice.extremes()}
    assert extremes["quietest"] == whole.loc[whole["loudness"].idxmin(), "id"]
    assert extremes["noisiest"] == whole.loc[whole["snr"].idxmin(), "id"]
    assert {"slowest", "fastest"} <= set(extremes)
    assert not any("DNSMOS" in reason for reason in extremes)
    assert extremes["longest"] == whole.loc[whole["samples"].idxmax(), "id"]


def test_a_voices_sample_is_of_a_length_that_can_be_heard() -> None:
    whole = frame(400, 3)
    choice = Choice(0)
    choice.add(whole)
    assert all(1 <= pick.samples / SAMPLE_RATE <= 10 for pick in choice.voices())
    short = whole.assign(samples=SAMPLES_PER_TOKEN)
    choice = Choice(0)
    choice.add(short)
    assert len(choice.voices()) == 3


def records(times: list[tuple[float, float]], **values: object) -> list[CommitRecord]:
    return [
        bare_record(shard=n, started_at=1e9 + start, finished_at=1e9 + end, samples=60 * SAMPLE_RATE, **values)
        for n, (start, end) in enumerate(times)
    ]


def test_a_pause_takes_no_room_and_is_told() -> None:
    made = records([(0, 50), (50, 100), (3_700, 3_800)])
    time = WorkTime.of(made, all_there=True)
    assert time.total == 200
    assert time.at(np.array([1e9 + 50, 1e9 + 100, 1e9 + 2_000, 1e9 + 3_700, 1e9 + 3_800])).tolist() == [
        50,
        100,
        100,
        100,
        200,
    ]
    run = run_of(made, speed=0.9)
    assert run is not None
    assert [(pause.at, pause.label) for pause in run.pauses] == [(50, "60.0 min")]
    # As much audio as there is: three minutes in 200 seconds.
    mean = np.mean([float(bar.label.split()[0]) for bar in run.throughput.bars])
    assert mean == pytest.approx(180 / 200, rel=0.02)


def test_a_sample_of_records_is_worth_as_much_as_all() -> None:
    made = records([(10 * n, 10 * n + 10) for n in range(100)])
    whole, sample = run_of(made, speed=6), run_of(made[::10], share=0.1, speed=6)
    assert whole is not None
    assert sample is not None
    assert whole.throughput.most == "6 × real time"
    means = [np.mean([float(bar.label.split()[0]) for bar in run.throughput.bars]) for run in (whole, sample)]
    assert means[1] == pytest.approx(means[0], rel=0.12)


def test_workers_that_had_trouble_are_shown_first() -> None:
    made = [
        bare_record(shard=n, worker=f"w{n}", tries=2 if n == 90 else 1, started_at=1e9 + n, finished_at=1e9 + n + 5)
        for n in range(100)
    ]
    run = run_of(made, speed=1)
    assert run is not None
    assert (run.workers, len(run.lanes), run.again) == (100, LANES, 1)
    lane = next(lane for lane in run.lanes if lane.worker == "w90")
    assert "1 again" in lane.facts
    assert [(piece.again, piece.label) for piece in lane.pieces] == [(True, "shard 90: 1 row, 5.0 s, try 2")]


def test_a_worker_of_many_shards_is_drawn_with_few_pieces() -> None:
    made = [
        bare_record(
            shard=n, worker="w", tries=2 if n % 500 == 250 else 1, started_at=1e9 + n - 1, finished_at=1e9 + n + 1
        )
        for n in range(4_000)
    ]
    run = run_of(made, speed=1)
    assert run is not None
    assert PIECES > len(run.lanes[0].pieces) >= 9
    assert sum(piece.again for piece in run.lanes[0].pieces) == 8


def test_a_shard_that_was_read_ahead_counts_as_slow() -> None:
    """A minute of audio each, made in 100, 50 and 50 s: a worker reads the next shard while it makes one."""
    made = records([(0, 100), (20, 150), (110, 200)])
    run = run_of(made, speed=1)
    assert run is not None
    assert run.speeds is not None
    assert dict(run.speeds.facts) == {
        "least": "0.6 ×",
        "5 %": "0.6 ×",
        "median": "1.2 ×",
        "95 %": "1.2 ×",
        "most": "1.2 ×",
    }


def test_nothing_done_yet_has_no_course() -> None:
    assert run_of([], speed=0) is None


@pytest.mark.parametrize("write", [write_parquet, write_webdataset])
def test_a_clip_is_that_of_its_row(tmp_path: Path, write: object) -> None:
    clips = [bytes([n % 251]) * (1 + n) for n in range(230)]  # three row groups
    table = pa.table({"id": [f"{n}.json" for n in range(230)], "voice_id": ["v"] * 230})
    name = "shard.parquet" if write is write_parquet else "shard.tar"
    sound = Sound(suffix="flac", rate=SAMPLE_RATE, samples=[1] * 230)
    write(tmp_path / name, table, iter(clips), sound)  # type: ignore[operator]
    folder = Folder(str(tmp_path))
    assert [read_clip(folder, name, n) for n in (0, 99, 100, 150, 229)] == [clips[n] for n in (0, 99, 100, 150, 229)]
    with pytest.raises(StorageError, match=r"row 230 of .*fewer rows"):
        read_clip(folder, name, 230)


@pytest.mark.parametrize("name", ["shard.parquet", "shard.tar"])
def test_a_shard_that_is_no_shard_is_an_error_that_names_it(tmp_path: Path, name: str) -> None:
    folder = Folder(str(tmp_path))
    with pytest.raises(StorageError, match=f"{name} is missing"):
        read_clip(folder, name, 0)
    pq.write_table(pa.table({"audio": ["text"]}), tmp_path / "shard.parquet")
    with tarfile.open(tmp_path / "shard.tar", "w") as tar:
        tar.add(tmp_path, "folder", recursive=False)
    with pytest.raises(StorageError, match=f"row 0 of .*{name} cannot be read"):
        read_clip(folder, name, 0)


def test_a_tone_is_where_it_belongs_and_silence_is_black() -> None:
    time = np.arange(2 * SAMPLE_RATE) / SAMPLE_RATE
    wave = (0.3 * np.sin(2 * np.pi * 3_000 * time)).astype(np.float32)
    wave[SAMPLE_RATE:] = 0
    picture = Image.open(io.BytesIO(mel_picture(wave, SAMPLE_RATE)))
    assert picture.size == (200, MEL_BINS)
    light = np.asarray(picture.convert("L"), np.int64)
    # 3 kHz is 31 of the 51 mels up to 12 kHz, and the picture's first line is its top.
    assert abs(int(light[:, 50].argmax()) - MEL_BINS * (1 - 31.4 / 51.1)) <= 2
    assert light[:, 50].max() > 240
    assert light[:, 150].max() < 15


def test_white_noise_is_equally_light_at_all_pitches() -> None:
    """And as light as it is: a sine at full scale is at 0 dB, noise by its share of the FFT's window."""
    noise = np.random.default_rng(0).normal(0, 0.01, 30 * SAMPLE_RATE).astype(np.float32)
    levels = 10 * np.log10((10 ** (_levels(noise, SAMPLE_RATE) / 10)).mean(axis=1))
    window = np.hanning(WINDOW)
    expected = 10 * np.log10(0.01**2 * np.square(window).sum() / (window.sum() / 2) ** 2)
    assert np.abs(levels - expected).max() < 1.5


@pytest.mark.parametrize("samples", [0, 1, 720, SAMPLES_PER_TOKEN, 25 * SAMPLE_RATE])
def test_pictures_of_any_length(samples: int) -> None:
    picture = Image.open(io.BytesIO(mel_picture(np.zeros(samples, np.float32), SAMPLE_RATE)))
    picture.load()
    assert 1 <= picture.size[0] <= MAX_COLUMNS
    assert np.asarray(picture.convert("L")).max() < 15


def test_a_failure_code_has_no_explanation() -> None:
    text = (ROOT / "docs/formats.md").read_text(encoding="utf-8")
    table = text[text.index("### Failures") : text.index("### job.json")]
    table = table[table.index("| `error` | |") :].partition("\n\n")[0]
    codes = {code for line in table.splitlines()[2:] for code in re.findall(r"`(\w+)`", line.split(" | ")[0])}
    assert codes >= {"bad_id", "worker_hung", "bad_audio"}
    assert codes == set(REASONS)


def test_failed_rows_of_any_type_are_shown() -> None:
    broken = pa.array([b"\xff\xfe", None, b"ok"], pa.binary()).cast(pa.string(), safe=False)
    failures = Failures()
    for _ in range(3):
        failures.add(
            pa.table(
                {
                    "id": broken,
                    "voice_id": pa.array(["v", None, "w"]).dictionary_encode(),
                    "error": ["bad_id", "null_id", "bad_id"],
                    "message": ["m", "n", "o"],
                }
            )
        )
    assert failures.by_rows() == [("bad_id", 6), ("null_id", 3)]
    assert failures.examples["bad_id"] == [("\\xff\\xfe", "v", "m"), ("ok", "w", "o"), ("\\xff\\xfe", "v", "m")]
    assert failures.examples["null_id"][0] == ("(none)", "(none)", "n")


def test_words() -> None:
    assert [length(value) for value in (0, 0.48, 42.26, 99.96, 750, 7_200, 3.6e7)] == [
        *("0.00 s", "0.48 s", "42.3 s", "1.7 min", "12.5 min", "2.0 h", "10,000.0 h")
    ]
    assert [percent(*pair) for pair in ((0, 0), (0, 5), (5, 5), (1, 3), (1, 400), (1, 10**6), (10**6 - 1, 10**6))] == [
        *("0 %", "0 %", "100 %", "33.3 %", "0.25 %", "under 0.01 %", "over 99.99 %")
    ]
    assert [number(value) for value in (0, 18.24, 0.034, -0.5, 1_234.5, 1e-20)] == [
        *("0", "18.2", "0.034", "−0.5", "1,234", "0")
    ]
    assert [size(value) for value in (0, 999, 1_000, 1.55e9, 99_960)] == [
        "0 bytes",
        "999 bytes",
        "1.0 kB",
        "1.6 GB",
        "100 kB",
    ]
    assert count(1_234_567) == "1,234,567"
    assert plain("a\u202eb\x00\n") == "a\\u{202e}b\\u{0}\\u{a}"
    assert plain("") == "(empty)"
    assert plain("x" * 500, 10) == "x" * 9 + "…"
    assert len(plain("\u202e" * 500)) == 120
