"""What of the machine may not decide whether a test passes: its account, its proxy, its terminal, its speed."""

from __future__ import annotations

import os

from hypothesis import HealthCheck, settings


def shut_out() -> None:
    """For this process and all that it starts; to be called before test modules are imported."""
    # All accounts are made up, and all servers on this machine: no profile and no proxy of its user leads there.
    for name in [name for name in os.environ if name.startswith("AWS_") or name.lower().endswith("_proxy")]:
        del os.environ[name]
    os.environ |= {
        "AWS_CONFIG_FILE": os.devnull,
        "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        "AWS_EC2_METADATA_DISABLED": "true",
    }
    # A width of its own would break lines elsewhere.
    for name in ("COLUMNS", "LINES"):
        os.environ.pop(name, None)
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")


def choose_examples() -> None:
    """The same ones in every run, and no limit of time; ``--hypothesis-profile search`` draws new ones."""
    settings.register_profile("search", deadline=None, derandomize=False, suppress_health_check=[HealthCheck.too_slow])
    settings.register_profile("gate", settings.get_profile("search"), derandomize=True)
    settings.load_profile("gate")
