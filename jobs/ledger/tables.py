"""The tables that a job leaves: which columns the index, the failures and the duplicates have."""

from __future__ import annotations

import base64
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.ipc as ipc

from jobs.formats.writers import pick
from jobs.manifest.columns import FAILURE_COLUMNS
from jobs.manifest.manifest import Ints
from jobs.manifest.rows import Failure
from jobs.plan import Plan

INDEX_SCHEMA = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("voice_id", pa.string(), nullable=False),
        pa.field("shard", pa.string(), nullable=False),  # path, relative to the output
        pa.field("row", pa.int64(), nullable=False),  # in the shard, from 0
        pa.field("samples", pa.int64(), nullable=False),
        pa.field("duration", pa.float64(), nullable=False),  # seconds
        # Samples that were cut off as silence, beside those that are stored.
        pa.field("trimmed_start", pa.int64(), nullable=False),
        pa.field("trimmed_end", pa.int64(), nullable=False),
        pa.field("sha256", pa.string(), nullable=False),  # hex, of the stored audio bytes
        # As jobs.measures.checks.Measures defines them.
        pa.field("peak", pa.float32(), nullable=False),
        pa.field("rms_db", pa.float32(), nullable=False),
        pa.field("silence", pa.float32(), nullable=False),
        pa.field("clipped", pa.float32(), nullable=False),
        pa.field("dc", pa.float32(), nullable=False),
        pa.field("click_start", pa.float32(), nullable=False),
        pa.field("click_end", pa.float32(), nullable=False),
        pa.field("loudness", pa.float32(), nullable=False),
        pa.field("snr", pa.float32(), nullable=False),
        # As jobs/measures/ defines them; null where there is no text, and where the job asks for none.
        pa.field("letters_per_second", pa.float32()),
        pa.field("dnsmos_sig", pa.float32()),
        pa.field("dnsmos_bak", pa.float32()),
        pa.field("dnsmos_ovr", pa.float32()),
        pa.field("problems", pa.string(), nullable=False),  # names of checks, joined by commas; mostly empty
        # Before which of its tokens a row was cut, ascending; empty where it was made as one.
        pa.field("cuts", pa.list_(pa.field("element", pa.int32(), nullable=False)), nullable=False),
    ]
)
DUPLICATES_COLUMNS = ("id", "voice_id", "shard", "row")  # those that the index has


@dataclass(frozen=True, kw_only=True, slots=True)
class Tables:
    """The columns of the tables of one job.

    Attributes:
        index: of the parts that shards leave of it, too; with ``id`` and ``voice_id``.
        failures: as ``failures_schema`` makes it.
    """

    index: pa.Schema
    failures: pa.Schema

    @classmethod
    def of(cls, job: Mapping[str, Any], columns: pa.Schema) -> Tables:
        """Those that ``job["schemas"]`` has, packed, under ``table`` and ``failures``; else those of a job of audio.

        Args:
            columns: of the manifest.
        """
        if "schemas" not in job:
            return cls(index=INDEX_SCHEMA, failures=failures_schema(columns))
        schemas = job["schemas"]
        return cls(index=unpacked(schemas["table"]), failures=unpacked(schemas["failures"]))

    @property
    def duplicates(self) -> pa.Schema:
        """Of the list of doubled ids."""
        return pa.schema([field for field in self.index if field.name in DUPLICATES_COLUMNS])


def packed(schema: pa.Schema) -> str:
    """A schema as a text, for JSON."""
    return base64.b64encode(schema.serialize().to_pybytes()).decode("ascii")


def unpacked(text: str) -> pa.Schema:
    """What ``packed`` was given."""
    return ipc.read_schema(pa.py_buffer(base64.b64decode(text)))


def failures_schema(columns: pa.Schema) -> pa.Schema:
    """The columns of the failures table of a manifest with these columns.

    First ``id``, ``voice_id``, ``error`` (code), ``message``, ``manifest`` (URL), ``row`` (in that file, from 0), then
    the manifest's other columns. One of those that is called ``error``, ``message`` or ``manifest`` gets ``own_``
    before its name, as often as it takes.
    """
    head = [columns.field("id"), columns.field("voice_id")]
    head += [pa.field(name, kind) for name, kind in FAILURE_COLUMNS.items()]
    others = [field for field in columns if field.name not in ("id", "voice_id")]
    return pa.schema([*head, *renamed(others, {field.name for field in head}, "own_")]).remove_metadata()


def renamed(fields: Sequence[pa.Field], reserved: Collection[str], prefix: str) -> list[pa.Field]:
    """The fields under names of their own: those with a reserved name get the prefix, as often as it takes."""
    taken = {field.name for field in fields} | set(reserved)
    found: list[pa.Field] = []
    for field in fields:
        name = field.name
        if name in reserved:
            while name in taken:
                name = f"{prefix}{name}"
            taken.add(name)
        found.append(field.with_name(name))
    return found


def failures_table(failures: Sequence[Failure], table: pa.Table, origins: tuple[list[str], Ints]) -> pa.Table:
    """The failures of a shard with their rows' own columns, in manifest order.

    Args:
        table: the shard's rows, as ``Manifest.read`` gave them.
        origins: where each of its rows comes from, as ``Manifest.origins`` gave them.
    """
    ordered = sorted(failures, key=lambda failure: failure.position)
    positions = np.array([failure.position for failure in ordered], np.int64)
    failed = pick(table, positions.tolist())
    urls, rows = origins
    added = {
        "error": pa.array([failure.error for failure in ordered], pa.string()),
        "message": pa.array([failure.message for failure in ordered], pa.string()),
        "manifest": pa.array([urls[at] for at in positions.tolist()], pa.string()),
        "row": pa.array(rows[positions], pa.int64()),
    }
    others = [name for name in table.column_names if name not in ("id", "voice_id")]
    columns = [failed["id"], failed["voice_id"], *added.values(), *(failed[name] for name in others)]
    return pa.Table.from_arrays(columns, schema=failures_schema(table.schema))


def remaining(failures: pa.Table, shard: int, plan: Plan) -> pa.Table:
    """A shard's failures without those that a later round tries again."""
    taken = plan.is_taken_up(shard, failures["manifest"].to_pylist(), failures["row"].to_numpy())
    return pick(failures, np.flatnonzero(~taken).tolist()) if taken.any() else failures
