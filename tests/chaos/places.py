"""Where the jobs of a campaign write to: a local folder, or an S3 server of its own."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from tests.jobs.object_stores import RcloneServer, moto_server

StoreName = Literal["local", "moto", "rclone"]
REMOTE_POLL_SECONDS = 0.2


@dataclass(frozen=True, kw_only=True, slots=True)
class Place:
    """A folder for outputs.

    Attributes:
        environment: that leads there.
        poll: seconds between two looks at it that cost it nothing to speak of.
        server: to be killed and started again, where there is one that keeps what it has.
    """

    url: str
    environment: dict[str, str] = field(default_factory=dict)
    poll: float = 0.05
    server: RcloneServer | None = None

    @property
    def pid(self) -> int | None:
        """Of the server."""
        return None if self.server is None else self.server.pid


@contextmanager
def place_of(store: StoreName, folder: Path) -> Iterator[Place]:
    """The place, for the length of the block."""
    match store:
        case "local":
            yield Place(url=str(folder / "outputs"))
        case "moto":
            with moto_server() as endpoint, _environment(endpoint.environment()) as variables:
                yield Place(url=endpoint.make_bucket(), environment=variables, poll=REMOTE_POLL_SECONDS)
        case "rclone":
            with RcloneServer(folder / "buckets") as server, _environment(server.endpoint.environment()) as variables:
                url = server.make_bucket()
                yield Place(url=url, environment=variables, poll=REMOTE_POLL_SECONDS, server=server)


@contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[dict[str, str]]:
    """Of this process too, which reads the outputs."""
    before = dict(os.environ)
    os.environ.update(variables)
    try:
        yield dict(variables)
    finally:
        os.environ.clear()
        os.environ.update(before)
