"""The session with Ray: connecting to a cluster or starting one, and what machines it has."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
from collections.abc import Iterator
from typing import Literal

import ray
from ray.exceptions import RayError

from jobs.crew.placement import Node, Share, share_of
from jobs.errors import InputError

log = logging.getLogger(__name__)

KNOCK_SECONDS = 10.0  # for a cluster's head to accept a connection
OBJECT_STORE_BYTES = 128 * 2**20  # reports are small; Ray's default takes a third of the memory

# Of the driver's environment, what workers on other machines need: credentials, endpoints, caches, proxies.
PASSED_ENVIRONMENT = ("AWS_", "S3_", "HF_", "GOOGLE_", "GCS_", "AZURE_", "FSSPEC_", "HTTP_", "HTTPS_", "NO_PROXY")


@contextlib.contextmanager
def connected(address: str | None) -> Iterator[None]:
    """Ray for the length of the block: the cluster at ``address``, or one of this process's own.

    A Ray that this process has started already is used as it is.

    Raises:
        InputError: no cluster answers there.
    """
    if ray.is_initialized():
        yield
        return
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    # Since Ray 2.50 this is its own coming default; without it, each start warns about the change.
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    own = {"include_dashboard": False, "object_store_memory": OBJECT_STORE_BYTES}
    if address is not None:
        _knock(address)
    try:
        ray.init(
            address=address or "local",
            log_to_driver=False,
            logging_level=logging.ERROR,
            configure_logging=True,
            **({} if address else own),
        )
    # RayError: of a cluster that asks for a token, for one.
    except (ConnectionError, ValueError, RuntimeError, TimeoutError, RayError) as error:
        raise InputError(f"ray_address: no Ray cluster answers at {address or 'local'}: {error}") from None
    try:
        yield
    finally:
        ray.shutdown()


def _knock(address: str) -> None:
    """Refuses an address where nothing listens: Ray itself would try for minutes."""
    if address == "auto":
        return
    host, _, port = address.rpartition(":")
    if "://" in address or not host or not port.isdigit():
        raise InputError(
            f"ray_address: {address!r} is not the address of a cluster's head; give its host:port (6379 unless set "
            "otherwise), or auto on a machine of the cluster"
        )
    try:
        socket.create_connection((host.strip("[]"), int(port)), KNOCK_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise InputError(f"ray_address: no Ray cluster answers at {address}: {error}") from None


def nodes() -> list[Node]:
    """The machines of the connected cluster that are alive and stay so."""
    leaving = draining()
    alive = [node["Resources"] for node in ray.nodes() if node["Alive"] and node["NodeID"] not in leaving]
    return [Node(cpus=float(found.get("CPU", 0)), gpus=float(found.get("GPU", 0))) for found in alive]


def draining() -> set[str]:
    """The ids of machines that will soon be gone: Ray drains them, since they are idle or their time is over.

    Ray's own libraries ask in the same way, but no public function does. Where a version of Ray lacks it, there are
    none.
    """
    try:
        from ray._private.state import state

        return set(state.get_draining_nodes())
    except Exception as error:
        log.debug("cannot ask which machines are being drained: %s", error)
        return set()


def is_gone(node: str) -> bool:
    """Whether a machine, by its id, is dead or being drained."""
    alive = {found["NodeID"] for found in ray.nodes() if found["Alive"]}
    return node not in alive or node in draining()


def plan_share(workers: int | Literal["auto"], gpus_per_worker: float, *, own: bool) -> Share:
    """What each worker gets of the connected cluster.

    Args:
        gpus_per_worker: 0 for none.
        own: this is this process's own Ray, which never grows.

    Raises:
        InputError: the workers would wait for GPUs for ever.
    """
    have = nodes()
    share = share_of(have, workers, gpus_per_worker)
    cpus, gpus = sum(node.cpus for node in have), sum(node.gpus for node in have)
    if own and workers != "auto" and share.slots(have) < workers:
        raise InputError(
            f"workers: {workers} with {gpus_per_worker:g} GPUs each do not fit on this machine, which has {cpus:g} "
            f"CPUs and {gpus:g} GPUs; give fewer workers, a smaller gpus_per_worker, or engine.device=cpu"
        )
    return share


def passed_environment() -> dict[str, str]:
    """The variables of the driver that its workers get, wherever they are."""
    return {name: value for name, value in os.environ.items() if name.upper().startswith(PASSED_ENVIRONMENT)}
