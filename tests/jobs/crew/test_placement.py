"""Shares of machines."""

from __future__ import annotations

import pytest

from jobs.crew.placement import Node, auto_workers, share_of


@pytest.fixture(autouse=True)
def _without_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)


@pytest.mark.parametrize(
    ("nodes", "workers", "gpus", "cpus", "threads"),
    [
        ([Node(2, 0)], 1, 0, 2, 2),
        ([Node(2, 0)], 2, 0, 1, 1),
        ([Node(2, 0)], 3, 0, 0.5, 1),
        ([Node(2, 0)], 50, 0, 0.01, 1),
        ([Node(16, 0)], "auto", 0, 4, 4),
        ([Node(8, 0), Node(8, 0)], 3, 0, 4, 4),  # not 16 / 3, of which one machine holds only one
        ([Node(16, 1)], 1, 1, 6, 6),
        ([Node(16, 1)], 4, 0.25, 4, 4),
        ([Node(6, 1)], 2, 0.5, 3, 3),
        ([Node(4, 8)], "auto", 1, 0.5, 1),
        ([Node(6, 2)], 9, 1, 3, 3),  # more than there are GPUs: as for two
        ([Node(0, 0), Node(4, 0)], 1, 0, 4, 4),  # a head node without CPUs
        ([], 1, 0, 1, 1),
    ],
)
def test_workers_get_the_largest_equal_share(
    nodes: list[Node], workers: int, gpus: float, cpus: float, threads: int
) -> None:
    share = share_of(nodes, workers, gpus)
    assert (share.cpus, share.gpus, share.threads) == (cpus, gpus, threads)


def test_ten_shares_of_a_tenth_fit_into_one() -> None:
    nodes = [Node(10, 1)]
    assert share_of(nodes, 10, 0.1).slots(nodes) == 10
    assert auto_workers(nodes, 0.1) == 10


def test_auto_means_one_worker_per_gpu_or_per_four_cores() -> None:
    assert auto_workers([Node(96, 8), Node(4, 1)], 1.0) == 9
    assert auto_workers([Node(96, 8)], 0.5) == 16
    assert auto_workers([Node(2, 0), Node(9, 0)], 0) == 3


def test_a_users_limit_of_threads_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    assert share_of([Node(16, 0)], 1, 0).threads == 2
