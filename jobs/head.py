"""The head of a Ray cluster, as its job API is reached: through the dashboard's port, from any machine."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import socket
from collections.abc import Iterator
from urllib.parse import urlsplit

from ray import exceptions
from ray.exceptions import RayError
from ray.job_submission import JobSubmissionClient

from jobs.errors import InputError

KNOCK_SECONDS = 10.0  # for the head to accept a connection
PORTS = {"http": 80, "https": 443}
HEADERS = "RAY_JOB_HEADERS"  # as of Ray's own command line: JSON, for heads behind something that asks who one is
# Ray's client follows these whatever address it is given.
OVERRIDES = ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS")
CHATTY = (
    "ray.dashboard.modules.dashboard_sdk",
    "ray.dashboard.modules.job.sdk",
    "ray._private.runtime_env.packaging",
    "ray._private.runtime_env.working_dir",
)
EXAMPLE = "http://HEAD:8265"
# Before tokens came, Ray had no such class; an empty tuple catches nothing.
AuthenticationError = getattr(exceptions, "AuthenticationError", ())


def connect(address: str) -> JobSubmissionClient:
    """Ray's client for the head whose dashboard is at ``address``.

    Raises:
        InputError: it is no such address, nothing answers there, or what answers takes no jobs.
    """
    host, port = _place(address)
    headers = _headers()
    _hush()
    try:
        # Ray itself would try for minutes.
        socket.create_connection((host, port), KNOCK_SECONDS).close()
        with _without_overrides():
            return JobSubmissionClient(address, headers=headers)
    except (OSError, OverflowError) as error:
        raise InputError(
            f"--address {address}: no Ray dashboard answers there: {error}; is the head up (ray start --head, with "
            "ray[default] installed), and does this machine reach it (else: ssh -L 8265:localhost:8265 HEAD, and "
            "--address http://localhost:8265)?"
        ) from None
    except AuthenticationError:
        raise InputError(
            f"--address {address}: this cluster asks for its token; set RAY_AUTH_MODE=token, and have the token in "
            "~/.ray/auth_token or RAY_AUTH_TOKEN"
        ) from None
    except (RuntimeError, ValueError, RayError) as error:
        raise InputError(f"--address {address}: what answers there takes no jobs: {error}") from None


def _place(address: str) -> tuple[str, int]:
    try:
        parts = urlsplit(address)
        host, port = parts.hostname, parts.port
    except ValueError:
        host, port = None, None
    if host is None or parts.scheme not in PORTS:
        raise InputError(
            f"--address {address!r} is not the URL of a cluster's dashboard; give one such as {EXAMPLE} (8265 unless "
            "the cluster was started with another --dashboard-port; 6379 and 10001 speak other languages)"
        )
    if parts.username is not None or parts.password is not None:
        raise InputError(f"--address: a URL with credentials would be shown; give {EXAMPLE}, and them in {HEADERS}")
    return host, PORTS[parts.scheme] if port is None else port


def _headers() -> dict[str, str] | None:
    text = os.environ.get(HEADERS)
    if text is None:
        return None
    try:
        headers = json.loads(text)
    except ValueError:
        headers = None
    if not isinstance(headers, dict) or not all(isinstance(value, str) for value in headers.values()):
        raise InputError(f'{HEADERS}: give a JSON object of texts, such as {{"Authorization": "Bearer ..."}}')
    return headers


@contextlib.contextmanager
def _without_overrides() -> Iterator[None]:
    kept = {name: os.environ.pop(name) for name in OVERRIDES if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(kept)


def _hush() -> None:
    """Ray's client says each of its steps."""
    for name in CHATTY:
        logging.getLogger(name).setLevel(logging.ERROR)
