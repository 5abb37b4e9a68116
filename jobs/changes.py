"""What a resume finds changed: between the job that was begun and the one that it would go on with."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from jobs.manifest.manifest import ManifestFile
from jobs.plan import Plan

# Of the job's configuration: what may be another on a resume, since no sample depends on it (``batch`` moves samples
# within the batch tolerance).
MAY_CHANGE = frozenset({"workers", "gpus_per_worker", "ray_address", "stall_seconds", "log_level", "batch"})
COMPARED = ("kind", "config", "fingerprints", "limit", "table", "schemas")
SHOWN_FILES = 5  # of a manifest, in an error

Change = tuple[str, str, str]  # the key, what it was, what it is now


def job_changes(was: Mapping[str, Any], now: Mapping[str, Any]) -> list[Change]:
    """What differs between two jobs; of what ``now`` lacks nothing is compared."""
    now = json.loads(json.dumps(dict(now)))
    return [change for part in COMPARED if part in now for change in _changes(part, was.get(part), now[part])]


def _changes(key: str, was: Any, now: Any) -> list[Change]:
    if isinstance(was, Mapping) and isinstance(now, Mapping):
        names = sorted({*was, *now})
        return [
            change
            for name in names
            if not (key == "config" and name in MAY_CHANGE)
            for change in _changes(f"{key}.{name}".removeprefix("config."), was.get(name), now.get(name))
        ]
    return [] if was == now else [(key, json.dumps(was), json.dumps(now))]


def voices_advice(found: Sequence[Change], config: Mapping[str, Any]) -> str:
    """A line more where a job's voice table, in its place, has come to hold other voices; else nothing.

    Args:
        config: of the job that was begun.
    """
    keys = {key for key, _, _ in found}
    if "fingerprints.voices" not in keys or "voices" in keys:
        return ""
    return (
        f"\n{config['voices']} had other voices when the job began (was it appended to?): put that table back, from a "
        "copy or by the same `s3gen voices` commands in the same order"
    )


def plan_changes(was: Plan, now: Plan) -> list[Change]:
    """What differs between two plans of different digests: mostly files of the manifest."""
    old, new = ({file.url: file for file in plan.manifest.files} for plan in (was, now))
    changed = [url for url in sorted({*old, *new}) if old.get(url) != new.get(url)]
    found = [(f"manifest {url}", _file_text(old.get(url)), _file_text(new.get(url))) for url in changed]
    if len(found) > SHOWN_FILES:
        found = [*found[:SHOWN_FILES], ("manifest", f"{len(found) - SHOWN_FILES} more files as planned", "changed too")]
    return found or [("plan", f"{len(was)} shards of {was.rows} rows", f"{len(now)} shards of {now.rows} rows")]


def _file_text(file: ManifestFile | None) -> str:
    if file is None:
        return "absent"
    return f"{file.rows} rows in {file.size} bytes (version {file.etag}, footer {file.footer_digest[:12]})"
