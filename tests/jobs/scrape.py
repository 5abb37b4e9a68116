"""What Prometheus would find."""

from __future__ import annotations

import re
import time
import urllib.request
from collections.abc import Callable

from jobs.metrics import endpoints

SECONDS = 30.0  # until it is there

Samples = dict[tuple[str, str], float]

SAMPLE = re.compile(r"^ray_(\w+)\{(.*)\} (\S+)$", re.MULTILINE)
LABEL = re.compile(r'(\w+)="([^"]*)"')


def scraped(output: str, complete: Callable[[Samples], bool]) -> Samples:
    """What a machine tells of an output once all is there: by name and the label that is its kind, or nothing."""
    until = time.monotonic() + SECONDS
    while True:
        with urllib.request.urlopen(endpoints()[0], timeout=10) as answer:
            text = answer.read().decode()
        found: Samples = {}
        for name, labels, value in SAMPLE.findall(text):
            named = dict(LABEL.findall(labels))
            if named.get("output") == output:
                kinds = [named[label] for label in ("error", "check", "state", "stage") if label in named]
                found[name.removesuffix("_total"), "".join(kinds)] = float(value)
        if complete(found) or time.monotonic() > until:
            return found
        time.sleep(0.2)
