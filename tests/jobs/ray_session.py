"""One Ray for all tests that can share it: starting another takes seconds."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import ray


@pytest.fixture(scope="session")
def local_ray() -> Iterator[None]:
    """A local Ray with two GPUs that only Ray believes in; modules import this fixture, the first one starts it."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    if not ray.is_initialized():
        ray.init(
            address="local",
            num_cpus=2,
            num_gpus=2,
            include_dashboard=False,
            log_to_driver=False,
            logging_level="error",
            object_store_memory=100 * 2**20,
            _system_config={"metrics_report_interval_ms": 1_000},  # of its own it would be ten seconds
        )
    yield
    ray.shutdown()
