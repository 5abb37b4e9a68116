"""The counts of a run as Ray's metrics, for Prometheus: the driver tells them, from reports and from what it sees."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import ray
from ray.util import metrics

from jobs.crew.sight import STATES, Sight
from jobs.ledger.records import ShardReport
from jobs.progress import Meter
from s3gen.constants import SAMPLE_RATE

# Counters by name: what they count, and the label that tells its kinds apart. Ray puts ray_ before each name.
COUNTERS: Mapping[str, tuple[str, str | None]] = {
    "s3gen_shards_done": ("shards", None),
    "s3gen_rows_done": ("rows that were made", None),
    "s3gen_rows_failed": ("rows in the failures table", "error"),
    "s3gen_rows_suspect": ("rows that were made and do not pass a check", "check"),
    "s3gen_audio_seconds": ("seconds of audio", None),
    "s3gen_retries": ("times that a shard was handed out again", None),
    "s3gen_stage_seconds": ("seconds that workers spent on shards, waits included", "stage"),
}
GAUGES: Mapping[str, tuple[str, str | None]] = {
    "s3gen_progress": ("share of the job's rows that are done, 0 to 1", None),
    "s3gen_speed": ("seconds of audio per second, of late", None),
    "s3gen_padding_share": ("padding among what the vocoder computes, 0 to 1", None),
    "s3gen_workers": ("workers", "state"),
}


class Metrics:
    """Ray's metrics of one run, while Ray is connected.

    Args:
        meter: of the run.
        output: that it works on, a URL: the label that all of them have.
    """

    def __init__(self, meter: Meter, output: str) -> None:
        self._meter, self._output = meter, output
        self._counters = {name: metrics.Counter(name, text, _labels(label)) for name, (text, label) in COUNTERS.items()}
        self._gauges = {name: metrics.Gauge(name, text, _labels(label)) for name, (text, label) in GAUGES.items()}

    def take(self, report: ShardReport) -> None:
        """One shard more."""
        self._count("s3gen_shards_done", 1)
        self._count("s3gen_rows_done", report.rows_done)
        self._count("s3gen_audio_seconds", report.samples / SAMPLE_RATE)
        self._count("s3gen_retries", report.tries - 1)
        self._count_all("s3gen_rows_failed", report.errors)
        self._count_all("s3gen_rows_suspect", report.problems)
        self._count_all("s3gen_stage_seconds", report.seconds)

    def look(self, workers: Sequence[Sight]) -> None:
        """The run as it is now, with its workers."""
        meter = self._meter
        self._gauges["s3gen_progress"].set(meter.progress, self._tags())
        self._gauges["s3gen_speed"].set(meter.speed, self._tags())
        self._gauges["s3gen_padding_share"].set(meter.padding_share, self._tags())
        states = Counter(worker.state for worker in workers)
        for state in STATES:
            self._gauges["s3gen_workers"].set(states[state], self._tags(state=state))

    def _count_all(self, name: str, found: Mapping[str, float]) -> None:
        _, label = COUNTERS[name]
        for kind, value in found.items():
            self._count(name, value, **{str(label): kind})

    def _count(self, name: str, value: float, **kind: str) -> None:
        if value > 0:  # of nothing Ray makes an error
            self._counters[name].inc(value, self._tags(**kind))

    def _tags(self, **kind: str) -> dict[str, str]:
        return {"output": self._output, **kind}


def _labels(label: str | None) -> tuple[str, ...]:
    return ("output",) if label is None else ("output", label)


def endpoints() -> list[str]:
    """Where Prometheus finds the metrics of each machine of the connected cluster; none where Ray has no agent."""
    alive = [node for node in ray.nodes() if node["Alive"] and node["MetricsExportPort"] > 0]
    return [f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics" for node in alive]
