"""A Ray cluster of several nodes on this machine: a head that takes no workers, and nodes that come and go."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ray.cluster_utils import Cluster

from tests.chaos.processes import Process, Role, below, own_processes

STORE_BYTES = 80 * 2**20
# A node that is gone is found out after some seconds, and not after Ray's quarter of a minute.
HEALTH = {
    "health_check_initial_delay_ms": 1_000,
    "health_check_period_ms": 1_000,
    "health_check_failure_threshold": 4,
}


class Nodes:
    """The nodes beside the head. `cluster_of` makes it.

    Attributes:
        address: of the head, for `ray_address`.
        alive: the nodes that were not killed.
    """

    def __init__(self, cluster: Cluster, environment: Mapping[str, str]) -> None:
        self._cluster, self._environment = cluster, dict(environment)
        self.address: str = cluster.address
        self.alive: list[Any] = []

    def add(self, cpus: int = 1) -> Any:
        """A new node, once the head knows it."""
        node = self._cluster.add_node(num_cpus=cpus, object_store_memory=STORE_BYTES, env_vars=self._environment)
        self.alive.append(node)
        return node

    def kill(self, node: Any, *, with_workers: bool) -> None:
        """SIGKILL to its raylet, and to its workers with it; without, they are left to notice."""
        self.alive.remove(node)
        family = below(_raylet(node))
        os.kill(_raylet(node), signal.SIGKILL)
        if with_workers:
            for process in family:
                process.send(signal.SIGKILL)
        self._cluster.remove_node(node, allow_graceful=False)

    def drain(self, node: Any) -> None:
        """Tells Ray that the machine is about to go, as whoever hears of a spot notice does."""
        words = ["--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "spot", "--node-id", node.node_id]
        command = str(Path(sys.executable).with_name("ray"))
        subprocess.run([command, "drain-node", "--address", self.address, *words], check=True, capture_output=True)

    def busy(self) -> list[Any]:
        """The nodes on which a worker is."""
        return [node for node in self.alive if any(each.role is Role.WORKER for each in below(_raylet(node)))]

    def family(self) -> list[Process]:
        """All processes of the cluster."""
        roots = {
            info.process.pid
            for node in self._cluster.list_all_nodes()
            for infos in node.all_processes.values()
            for info in infos
        }
        above = [process for process in own_processes() if process.pid in roots]
        return [*above, *(process for root in roots for process in below(root))]


@contextmanager
def cluster_of(cpus: list[int], folder: Path, environment: Mapping[str, str]) -> Iterator[Nodes]:
    """A head, and nodes with so many CPUs each; all of it gone afterwards.

    Args:
        folder: for Ray's own files; its path is short, since it holds sockets.
        environment: of the nodes' processes, workers among them.
    """
    head = {
        "num_cpus": 0,
        "include_dashboard": False,
        "object_store_memory": STORE_BYTES,
        "temp_dir": str(folder / "ray"),
        "env_vars": dict(environment),
        "_system_config": HEALTH,
    }
    cluster = Cluster(initialize_head=True, head_node_args=head)
    try:
        nodes = Nodes(cluster, environment)
        for count in cpus:
            nodes.add(count)
        yield nodes
    finally:
        cluster.shutdown()


def _raylet(node: Any) -> int:
    pid: int = node.all_processes["raylet"][0].process.pid
    return pid
