"""Eyes on a job from outside: which shards are committed when, which tries at shards are open where."""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from jobs.errors import JobError
from jobs.storage.folders import Folder

COMMITS = "ledger/commits/"
RECORD = re.compile(r"^ledger/commits/[0-9a-f]+/(\d+)(?:\.([0-9a-f]+))?\.json$")
TRY = re.compile(r"^audio/(?:recording\.|cuts\.)?(\d+)-[0-9a-f]+\.")
SCRATCH = "s3gen-*"  # a worker's temporary folder, for as long as it has a shard in hand


class Watch:
    """Looks again and again, in a thread. ``watching`` makes it.

    Attributes:
        count: committed shards when it last looked.
        tries: by temporary folder, when it was first seen, by the monotonic clock.
    """

    def __init__(self, folder: Folder, poll: float) -> None:
        self._folder, self._poll = folder, poll
        self._places: set[Path] = set()
        self._steps: list[tuple[float, int]] = []
        self._ended = threading.Event()
        self.count = 0
        self.tries: dict[Path, float] = {}

    def add_place(self, folder: Path) -> None:
        """Temporary folders may come up in there."""
        self._places = {*self._places, folder}

    def next_commit(self, after: float) -> float | None:
        """Seconds from an instant until the next shard was committed; None when none was."""
        known = 0
        for instant, count in list(self._steps):
            if instant > after and count > known:
                return instant - after
            known = max(known, count)
        return None

    def left_behind(self) -> list[tuple[Path, float]]:
        """The temporary folders that are still there, and when each was first seen; in this order."""
        self.look()
        return sorted(((path, seen) for path, seen in self.tries.items() if path.exists()), key=lambda item: item[1])

    def look(self) -> None:
        """Once. A store that does not answer has nothing new."""
        now = time.monotonic()
        for place in self._places:
            for path in place.glob(SCRATCH):
                self.tries.setdefault(path, now)
        try:
            count = len(record_names(self._folder))
        except JobError:
            return
        if count != self.count:
            self.count = count
            self._steps.append((time.monotonic(), count))

    def keep_looking(self) -> None:
        """Until ``end``."""
        while not self._ended.wait(self._poll):
            self.look()

    def end(self) -> None:
        """No more looks."""
        self._ended.set()


@contextmanager
def watching(folder: Folder, poll: float) -> Iterator[Watch]:
    """A watch on an output during the block."""
    watch = Watch(folder, poll)
    thread = threading.Thread(target=watch.keep_looking, name="watch", daemon=True)
    thread.start()
    try:
        yield watch
    finally:
        watch.end()
        thread.join(60)


def record_names(folder: Folder) -> dict[int, str]:
    """By shard, the name of the commit record that counts: the final one, or else the smallest."""
    found: dict[int, tuple[str, str]] = {}
    for name in folder.list(COMMITS):
        if match := RECORD.match(name):
            entry = (match[2] or "", name)
            found[int(match[1])] = min(found.get(int(match[1]), entry), entry)
    return {shard: name for shard, (_, name) in found.items()}


def committed(folder: Folder) -> dict[int, str]:
    """By shard, the try that counts."""
    return {shard: json.loads(folder.read(name))["attempt"] for shard, name in record_names(folder).items()}


def tries_in(folder: Folder) -> dict[str, int]:
    """The shard of each file in ``audio/``."""
    return {name: int(match[1]) for name in folder.list("audio/") if (match := TRY.match(name))}
