"""How many workers there are and what share of a machine each gets. Decisions only: no Ray."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

# `workers: auto` without GPUs: more threads than this speed one model replica up less than another replica would.
AUTO_CPUS = 4
# The most that a GPU worker asks for; a cluster's CPUs are others' too. All that a worker does beside the model was
# measured to take 0.8 ms of a core for a second of speech, most of it FLAC: 3.2 cores at 4,000 times real time. One
# more feeds the GPU.
GPU_WORKER_CPUS = 6
SMALL_SHARES = (0.5, 0.25, 0.1, 0.01)  # of one CPU, when there are more workers than CPUs


@dataclass(frozen=True, slots=True)
class Node:
    """One machine as Ray counts it."""

    cpus: float
    gpus: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Share:
    """What one worker asks of its machine."""

    cpus: float
    gpus: float
    threads: int  # of the model on the CPU

    def slots(self, nodes: Sequence[Node]) -> int:
        """How many such workers the machines hold."""
        return sum(self._slots(node) for node in nodes)

    def _slots(self, node: Node) -> int:
        # A hair more than there is, so that 10 x 0.1 fits into 1.
        by_cpu = int(node.cpus / self.cpus + 1e-9)
        return min(by_cpu, int(node.gpus / self.gpus + 1e-9)) if self.gpus else by_cpu


def auto_workers(nodes: Sequence[Node], gpus_per_worker: float) -> int:
    """`workers: auto`: as many as the GPUs hold; without GPUs, one per `AUTO_CPUS` cores, at least one per machine."""
    if gpus_per_worker:
        return sum(int(node.gpus / gpus_per_worker + 1e-9) for node in nodes)
    return sum(max(1, int(node.cpus) // AUTO_CPUS) for node in nodes if node.cpus >= 1)


def share_of(nodes: Sequence[Node], workers: int | Literal["auto"], gpus_per_worker: float) -> Share:
    """The largest equal share of CPUs with which all workers have room at once.

    Where they have none whatever the share, it is as for as many as there are GPUs for, or one CPU: some work, and the
    others wait for the cluster to grow.
    """
    available = auto_workers(nodes, gpus_per_worker)
    wanted = available if workers == "auto" else min(workers, available) if gpus_per_worker else workers
    most = int(max((node.cpus for node in nodes), default=1))
    whole = range(min(most, GPU_WORKER_CPUS) if gpus_per_worker else most, 0, -1)
    for cpus in (*whole, *SMALL_SHARES):
        share = Share(cpus=cpus, gpus=gpus_per_worker, threads=_threads(cpus))
        if nodes and share.slots(nodes) >= wanted:
            return share
    return Share(cpus=1, gpus=gpus_per_worker, threads=1)


def _threads(cpus: float) -> int:
    """One per CPU of the share; a smaller OMP_NUM_THREADS of the user is kept."""
    limit = os.environ.get("OMP_NUM_THREADS", "")
    threads = max(1, int(cpus))
    return min(threads, int(limit)) if limit.isdigit() and int(limit) else threads
