"""What an output says about its job, before, while and after it runs."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from jobs.errors import InputError
from jobs.finish import finalise
from jobs.ledger.lease import Timing, is_live, read_lease
from jobs.ledger.ledger import Ledger
from jobs.ledger.tally import Tally
from jobs.plan import ShardSet
from jobs.retry import begin_retry
from jobs.status import Observer, status
from tests.jobs.command import cli
from tests.jobs.made_job import bare_record, make, make_all, prepare, start


def test_a_job_from_its_start_to_its_end(place: str, manifest: str) -> None:
    ledger = start(place, manifest)
    begun = status(place)
    assert (begun.state, begun.shards_done, begun.shards_total, begun.rows_total) == ("stopped", 0, 4, 14)
    assert (begun.rows_done, begun.rows_failed, begun.audio_seconds, begun.speed) == (0, 0, 0.0, 0.0)
    assert begun.eta_seconds is None

    with ledger.lease():
        make(ledger, 0)
        make(ledger, 1)
        running = status(place)
        assert (running.state, running.shards_done, running.rows_done, running.rows_failed) == ("running", 2, 7, 1)
        assert running.audio_seconds > 0
        assert running.speed > 0
        assert (running.errors, running.problems, running.retries) == ({"token_out_of_range": 1}, {}, 1)
        assert running.padding == pytest.approx(0.1)
        # 6 rows are left, of the mean length of the 8 so far.
        assert running.eta_seconds == pytest.approx(6 / 8 * running.audio_seconds / running.speed)
    assert status(place).state == "stopped"

    make_all(ledger)
    before = status(place)
    assert (before.state, before.shards_done) == ("stopped", 4)  # all is made, but it is not finished
    finalise(ledger)
    finished = status(place)
    assert (finished.state, finished.rows_done, finished.rows_failed, finished.eta_seconds) == ("finished", 12, 2, 0.0)
    assert finished.audio_seconds == before.audio_seconds
    assert finished.speed == pytest.approx(before.speed)
    told = ("errors", "problems", "retries", "padding")
    assert [getattr(finished, name) for name in told] == [getattr(before, name) for name in told]


def test_the_keys_are_those_of_the_contract(tmp_path: Path, manifest: str) -> None:
    start(str(tmp_path / "out"), manifest)
    values = json.loads(json.dumps(status(str(tmp_path / "out")).as_dict()))
    assert list(values) == [
        *("state", "shards_total", "shards_done", "rows_total", "rows_done", "rows_failed"),
        *("audio_seconds", "speed", "eta_seconds", "errors", "problems", "retries", "padding", "estimated"),
    ]


def test_an_output_without_a_job_is_bad_input(place: str) -> None:
    with pytest.raises(InputError, match="no job was begun here"):
        status(place)


def test_a_run_that_is_silent_for_half_a_minute_counts_as_stopped(tmp_path: Path, manifest: str) -> None:
    ledger = start(str(tmp_path / "out"), manifest)
    with ledger.lease(timing=Timing(beat=1e6)) as lease:
        state = read_lease(ledger.folder)
        assert is_live(state, Timing(wall=lambda: lease.state.beat_at + 29))
        assert not is_live(state, Timing(wall=lambda: lease.state.beat_at + 31))
        late = status(ledger.folder.url, timing=Timing(wall=lambda: lease.state.beat_at + 31))
        assert late.state == "stopped"


def test_many_shards_are_told_from_a_sample_of_their_records(
    place: str, manifest: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger = start(place, manifest)
    for shard in (0, 1, 3):
        make(ledger, shard)
    exact = status(place)
    assert not exact.estimated
    monkeypatch.setattr("jobs.status.EXACT_RECORDS", 2)
    read: list[str] = []
    plain = Ledger.read_record
    monkeypatch.setattr(Ledger, "read_record", lambda self, shard, name: read.append(name) or plain(self, shard, name))
    found = status(place)
    assert found.estimated
    assert len(read) == 2
    # Shards 0 and 1 are the sample: 7 rows of 8 made; of 10 rows in the three shards.
    assert (found.shards_done, found.rows_done, found.rows_failed) == (3, 9, 1)
    records = [next(record for record in ledger.records() if record.shard == shard) for shard in (0, 1)]
    assert found.audio_seconds == pytest.approx(sum(record.samples for record in records) / 24_000 / 8 * 10)


def _observer(ledger: Any) -> Observer:
    observer = Observer.__new__(Observer)
    observer._ledger, observer._records = ledger, {}
    return observer


def test_whoever_watches_a_long_job_reads_its_records_again_and_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jobs.status.EXACT_RECORDS", 100)
    read: list[int] = []
    ledger: Any = SimpleNamespace(read_some=lambda wanted: [read.append(n) or bare_record(shard=n) for n in wanted])
    observer, done = _observer(ledger), ShardSet(20_000)
    for end in range(50, 20_001, 50):
        done.add(range(end))
        assert observer._tally(done).shards == min(end, 100)
    # Of those that are new, each time fewer belong to the sample: 100 x ln(20,000 / 100), and the first 100.
    assert len(read) < 100 * 8
    assert len(observer._records) == 100


@pytest.mark.parametrize(("workers", "pauses"), [(1, 0), (1, 2), (200, 1)])
def test_the_speed_of_a_sample_is_about_that_of_all(monkeypatch: pytest.MonkeyPatch, workers: int, pauses: int) -> None:
    """Of few workers most time lies between the shards of a sample; it is no pause, but a pause is one."""
    shards = 20_000
    starts = np.arange(shards) * 60.0 / workers
    for pause in range(pauses):
        starts[(pause + 1) * shards // 4 :] += 40 * 3600
    records = [
        bare_record(shard=n, rows=10, rows_done=10, samples=24_000 * 60, started_at=start, finished_at=start + 60)
        for n, start in enumerate(starts.tolist())
    ]
    done = ShardSet(shards)
    done.add(range(shards))
    ledger: Any = SimpleNamespace(read_some=lambda wanted: [records[n] for n in wanted])
    monkeypatch.setattr("jobs.status.EXACT_RECORDS", 500)
    sample = _observer(ledger)._tally(done)
    assert sample.shards == 500
    assert sample.speed * shards / 500 == pytest.approx(Tally.of(records).speed, rel=0.1)


@pytest.mark.parametrize(
    ("times", "busy"),
    [
        ([(0, 10)], 10),
        ([(0, 10), (0, 10)], 10),  # two workers at once
        ([(0, 10), (5, 15), (20, 22)], 17),  # a pause between two runs does not count
        ([(20, 22), (0, 30), (5, 6)], 30),
    ],
)
def test_speed_is_audio_per_second_in_which_something_was_in_work(times: list[tuple[int, int]], busy: int) -> None:
    records = [
        bare_record(shard=n, samples=24_000 * 60, started_at=1e9 + start, finished_at=1e9 + end)
        for n, (start, end) in enumerate(times)
    ]
    tally = Tally.of(records)
    assert tally.speed == pytest.approx(60 * len(times) / busy)
    assert tally.shards == len(times)


# --- the command ------------------------------------------------------------------------------------------------------


@pytest.fixture
def running(tmp_path: Path, manifest: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A job of which one more shard is done whenever whoever watches it waits; then it is finished."""
    ledger = start(str(tmp_path / "out"), manifest)
    left = iter(range(len(ledger.plan)))

    def wait(seconds: float) -> None:
        assert seconds == 7
        shard = next(left, None)
        if shard is None:
            finalise(ledger)
        else:
            make(ledger, shard)

    monkeypatch.setattr("jobs.commands.status.time", SimpleNamespace(sleep=wait))
    with ledger.lease():
        yield ledger.folder.url


def test_a_job_is_watched_after_its_end_or_not_to_its_end(running: str) -> None:
    result = cli("status", running, "--watch", "7")
    assert result.exit_code == 0
    *lines, last = result.stdout.splitlines()
    assert [line.split(",")[0] for line in lines] == [f"running: {rows}/14 rows" for rows in (0, 4, 8, 12, 14)]
    assert last.startswith("finished: 14/14 rows, 2 failed (null_tokens 1, token_out_of_range 1), 0:00:")


def test_a_program_that_watches_gets_more_than_json(running: str) -> None:
    found = [json.loads(line) for line in cli("status", running, "--json", "--watch=7").stdout.splitlines()]
    assert [each["state"] for each in found] == ["running"] * 5 + ["finished"]
    assert [each["shards_done"] for each in found] == [0, 1, 2, 3, 4, 4]


def test_a_terminal_scrolls_while_a_job_is_watched(running: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    output = cli("status", running, "--watch", "7").stdout
    assert output.count("\x1b[1A") >= 5 * 3  # up again over what was drawn before
    assert "retries: 2 times a shard was handed out again" in output.rpartition("finished")[2]


def test_a_stopped_job_is_watched_for_ever(tmp_path: Path, manifest: str) -> None:
    start(str(tmp_path / "out"), manifest)
    result = cli("status", tmp_path / "out", "--watch")
    assert result.stdout == "stopped: 0/14 rows, 0:00:00 of audio, 0.0 x real time\n"


def test_the_end_of_watching_looks_like_a_failure(
    tmp_path: Path, manifest: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(seconds: float) -> None:
        raise KeyboardInterrupt

    _while_it_waits(monkeypatch, interrupt)
    early = cli("status", tmp_path / "out", "--watch")
    assert (early.exit_code, early.stdout) == (0, "")
    with start(str(tmp_path / "out"), manifest).lease():
        result = cli("status", tmp_path / "out", "--watch")
    assert (result.exit_code, result.stderr) == (0, "")


def _while_it_waits(monkeypatch: pytest.MonkeyPatch, does: Callable[[float], object]) -> None:
    monkeypatch.setattr("jobs.commands.status.time", SimpleNamespace(sleep=does))


def test_a_job_is_watched_before_its_model_is_loaded(
    tmp_path: Path, manifest: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits: list[float] = []

    def wait(seconds: float) -> None:
        waits.append(seconds)
        if len(waits) == 3:
            start(str(tmp_path / "out"), manifest)

    _while_it_waits(monkeypatch, wait)
    result = cli("status", tmp_path / "out", "--watch", "3600", "--json")
    assert (result.exit_code, waits) == (0, [5, 5, 5])
    assert json.loads(result.stdout)["state"] == "stopped"
    assert result.stderr == f"{tmp_path / 'out'}: no job was begun here yet; waiting up to 0:10:00 for one\n"


def test_a_job_that_never_begins_is_waited_for_without_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    _while_it_waits(monkeypatch, waits.append)
    result = cli("status", tmp_path / "out", "--watch")
    assert (result.exit_code, sum(waits)) == (2, 600)
    assert result.stderr.endswith("no job was begun here (there is no job.json)\n")


def test_whoever_watches_a_finished_job_misses_its_next_round(
    tmp_path: Path, manifest: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger = start(str(tmp_path / "out"), manifest)
    for shard in range(len(ledger.plan)):
        assert ledger.commit(*prepare(ledger, shard, trouble=lambda row: "bad_audio" if row.id == "u3" else None))
    observer = Observer(ledger.folder.url)
    finalise(ledger)
    first = observer.look()
    with ledger.lease():
        again = begin_retry(ledger)
        assert again is not None
        running = observer.look()
        assert (running.state, running.shards_total) == ("running", first.shards_total + 1)
        make(again, first.shards_total)
        finalise(again)
    last = observer.look()
    assert (first.state, last.state) == ("finished", "finished")
    assert (first.rows_failed, running.rows_failed, last.rows_failed) == (3, 2, 2)


@pytest.mark.parametrize(
    ("watch", "says"),
    [
        ("out", "'out' is not a number of seconds; give OUTPUT first"),
        ("0", "0 is not between 0.5 and 86400 seconds"),
        ("nan", "nan is not between 0.5 and 86400 seconds"),
    ],
)
def test_a_watch_of_nobody_knows_how_many_seconds(watch: str, says: str) -> None:
    result = cli("status", "--watch", watch, "out")
    assert result.exit_code == 2
    assert says in " ".join(result.stderr.split())
