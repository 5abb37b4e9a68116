"""What only a real Ray shows: actors that die, that cannot start, that are pinned to GPUs. One Ray for all of it."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
import ray

from jobs.crew import crew as crews
from jobs.crew.actor import Recipe
from jobs.crew.crew import Crew, explain
from jobs.crew.member import Member
from jobs.crew.placement import Share
from jobs.crew.schedule import Schedule
from jobs.crew.session import connected, draining, is_gone, plan_share
from jobs.errors import InputError, JobError, StorageError
from tests.jobs.ray_session import local_ray

__all__ = ["local_ray"]

FAKES = "tests.jobs.fake_workers"
SMALL = Share(cpus=0.5, gpus=0, threads=1)
MOST_SECONDS = 120.0  # for what may take some on a busy machine, and must not take for ever

pytestmark = pytest.mark.usefixtures("local_ray")


def _work(
    name: str,
    tasks: int,
    *,
    workers: int = 1,
    share: Share = SMALL,
    should_stop: Any = lambda: False,
    payload: Any = lambda task: task,
    stall_seconds: float | None = None,
    **arguments: Any,
) -> tuple[dict[int, Any], Schedule]:
    reports: dict[int, Any] = {}
    schedule = Schedule(range(tasks))
    recipe = Recipe(make=f"{FAKES}:{name}", arguments=arguments)
    crew = Crew(recipe, workers=workers, share=share, payload=payload, stall_seconds=stall_seconds)
    crew.work(schedule, reports.__setitem__, should_stop)
    return reports, schedule


def test_every_task_is_done_once_and_the_actors_are_gone() -> None:
    reports, _ = _work("Doubler", 20, workers=2)
    assert reports == {task: 2 * task for task in range(20)}
    until = time.monotonic() + MOST_SECONDS
    while ray.available_resources().get("CPU", 0) < 2 and time.monotonic() < until:
        time.sleep(0.1)
    assert ray.available_resources()["CPU"] == 2


@pytest.mark.parametrize(("share", "gpus"), [(1.0, 2), (0.5, 1)])
def test_two_workers_have_a_gpu_each_or_share_one(tmp_path: Path, share: float, gpus: int) -> None:
    have = plan_share(2, share, own=True)
    assert (have.cpus, have.gpus) == (1, share)
    reports, _ = _work("Placed", 2, workers=2, share=have, together=2, folder=str(tmp_path))
    assert len({report["pid"] for report in reports.values()}) == 2
    # Which one is shared depends on which an earlier test's actors have given back.
    assert len({gpu for report in reports.values() for gpu in report["gpus"]}) == gpus
    assert all(report["visible"] == ",".join(map(str, report["gpus"])) for report in reports.values())


def test_more_gpus_than_there_are_is_refused_at_once() -> None:
    with pytest.raises(InputError, match=r"workers: 5 with 0\.5 GPUs .* has 2 CPUs and 2 GPUs"):
        plan_share(5, 0.5, own=True)


@pytest.mark.parametrize("fault", ["kill", "exit", "broken", "error"])
def test_a_worker_that_dies_or_raises_costs_a_try_and_nothing_else(
    tmp_path: Path, fault: str, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "1-once").write_text(fault)
    reports, schedule = _work("Faulty", 4, folder=str(tmp_path))
    assert sorted(reports) == [0, 1, 2, 3]
    assert schedule.given_up == {}
    # A worker that raised goes on; one that is dead, or of no more use, is replaced.
    assert len({pid for _, pid in reports.values()}) == (1 if fault == "error" else 2)
    assert "1 failed, try 1" in caplog.text


@pytest.mark.parametrize("fault", ["kill", "error"])
def test_a_poison_task_is_given_up_after_three_tries_and_the_rest_is_done(tmp_path: Path, fault: str) -> None:
    (tmp_path / "0-always").write_text(fault)
    reports, schedule = _work("Faulty", 3, workers=2, folder=str(tmp_path))
    assert sorted(reports) == [1, 2]
    assert list(schedule.given_up) == [0]
    assert ("died" if fault == "kill" else "the fault is error") in schedule.given_up[0]


@pytest.mark.parametrize("fault", ["kill", "broken"])
def test_the_neighbour_of_a_task_that_breaks_its_worker_is_done_and_costs_no_try(
    tmp_path: Path, fault: str, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "0-once").write_text(fault)
    (tmp_path / "1-hangs").touch()
    reports, schedule = _work("Several", 5, folder=str(tmp_path))
    assert sorted(reports) == [0, 1, 2, 3, 4]
    assert schedule.given_up == {}
    assert "0 was lost among others" in caplog.text
    assert "1 was lost among others" in caplog.text
    assert "failed, try" not in caplog.text


def test_a_task_that_kills_every_worker_is_tried_alone_and_given_up(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "0-always").write_text("kill")
    (tmp_path / "1-hangs").touch()
    reports, schedule = _work("Several", 4, folder=str(tmp_path))
    assert sorted(reports) == [1, 2, 3]
    assert list(schedule.given_up) == [0]
    assert [record.getMessage()[:15] for record in caplog.records if "failed" in record.msg] == [
        f"0 failed, try {number}" for number in (1, 2, 3)
    ]
    assert (tmp_path / "company-of-0").read_text().split() == ["2", "1", "1", "1"]


def test_an_error_of_one_task_counts_for_it_alone_and_the_worker_goes_on(tmp_path: Path) -> None:
    (tmp_path / "0-always").write_text("error")
    reports, schedule = _work("Several", 6, folder=str(tmp_path))
    assert sorted(reports) == [1, 2, 3, 4, 5]
    assert list(schedule.given_up) == [0]
    assert len({pid for _, pid in reports.values()}) == 1


def test_a_worker_gets_its_second_task_while_it_has_the_first(tmp_path: Path) -> None:
    reports, _ = _work("Spread", 3, together=2, folder=str(tmp_path))
    assert sorted(reports) == [0, 1, 2]


def test_no_worker_takes_a_second_task_that_another_one_waits_for(tmp_path: Path) -> None:
    # Two tasks and two workers, of which one is there first: it must leave one to the other.
    reports, _ = _work("Spread", 2, workers=2, together=2, folder=str(tmp_path))
    assert len(set(reports.values())) == 2


@pytest.mark.parametrize("how", ["asleep", "stopped"])
def test_a_worker_that_does_nothing_more_holds_its_task_for_ever(
    tmp_path: Path, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    reports, schedule = _work("Stuck", 4, workers=2, stall_seconds=4, folder=str(tmp_path), times=1, how=how)
    assert sorted(reports) == [0, 1, 2, 3]
    assert schedule.given_up == {}
    assert "did nothing for 4 s" in caplog.text
    (hung,) = (int(path.name) for path in tmp_path.iterdir())
    assert _ends(hung)


def test_a_worker_cannot_tell_over_a_task_that_it_gets_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the crew makes of it is in test_crew_faults; here it is seen to get there."""
    felt, seen = Member.felt, tmp_path / "seen"

    def feel(member: Member, pulse: int, now: float) -> None:
        before = member.got_on
        felt(member, pulse, now)
        if member.tasks and member.got_on > before:
            seen.touch()

    monkeypatch.setattr(Member, "felt", feel)
    monkeypatch.setattr(crews, "PULSE_SECONDS", 0.1)
    reports, _ = _work("Slow", 1, until=str(seen), seconds=MOST_SECONDS)
    assert reports == {0: True}


def test_a_worker_of_no_more_use_lives_on(tmp_path: Path) -> None:
    (tmp_path / "0-once").write_text("broken")
    (tmp_path / "tell").touch()
    _work("Faulty", 2, folder=str(tmp_path))
    assert _ends(int((tmp_path / "tell").read_text()))


def _ends(pid: int) -> bool:
    until = time.monotonic() + MOST_SECONDS
    while Path(f"/proc/{pid}").exists() and time.monotonic() < until:
        time.sleep(0.1)
    return not Path(f"/proc/{pid}").exists()


def test_a_worker_that_can_never_start_ends_the_run_with_its_first_error(tmp_path: Path) -> None:
    with pytest.raises(JobError, match=r"no worker can start.* no model here, try 0"):
        _work("Unstartable", 3, folder=str(tmp_path), times=1000, fault="error")
    assert len(list(tmp_path.iterdir())) == crews.START_ERRORS


def test_workers_killed_while_they_start_do_not_end_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crews, "FIRST_BACKOFF_SECONDS", 0.01)
    reports, _ = _work("Unstartable", 2, folder=str(tmp_path), times=4, fault="kill")
    assert sorted(reports) == [0, 1]


def test_a_run_that_is_asked_to_stop_drops_what_takes_too_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crews, "DRAIN_SECONDS", 1.0)
    begun = tmp_path / "begun"
    reports, schedule = _work("Sleeper", 5, should_stop=begun.exists, seconds=1_000.0, begun=str(begun))
    assert reports == {}
    assert schedule.in_hand == 1
    assert time.time() - begun.stat().st_mtime < 500


def test_a_run_that_is_asked_to_stop_takes_what_is_nearly_done() -> None:
    reports: dict[int, Any] = {}
    schedule = Schedule(range(50))
    crew = Crew(Recipe(make=f"{FAKES}:Sleeper", arguments={"seconds": 0.5}), workers=1, share=SMALL)
    crew.work(schedule, reports.__setitem__, lambda: len(reports) >= 2)
    assert 2 <= len(reports) <= 3
    assert schedule.in_hand == 0


def test_credentials_in_the_environment_reach_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    # Set after Ray began, as on a cluster that somebody else started.
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    monkeypatch.setenv("UNRELATED_SECRET", "x")
    names = ["AWS_ENDPOINT_URL", "UNRELATED_SECRET"]
    reports, _ = _work("Environment", 2, payload=names.__getitem__)
    assert reports == {0: "http://127.0.0.1:1", 1: None}


def test_a_worker_beside_a_busy_program_spends_its_time_waiting_for_its_own_threads() -> None:
    reports, _ = _work("Spins", 1)
    assert reports == {0: ("20000", True)}


def test_a_new_ray_cannot_say_which_machines_are_drained(caplog: pytest.LogCaptureFixture) -> None:
    # Not a public function of Ray's; the answer with machines that are drained is a fake's in test_crew_faults.
    with caplog.at_level("DEBUG", "jobs"):
        assert draining() == set()
    assert caplog.records == []
    (here,) = ray.nodes()
    assert (is_gone(here["NodeID"]), is_gone("0" * 56)) == (False, True)


def test_a_ray_that_is_there_already_is_used_and_left_running() -> None:
    with connected(None):
        assert ray.is_initialized()
    assert ray.is_initialized()


def test_reasons_are_one_line() -> None:
    assert explain(ValueError("a\n  b")) == "ValueError: a b"
    assert explain(StorageError("cannot write")) == "cannot write"
    assert explain(RuntimeError()) == "RuntimeError"
