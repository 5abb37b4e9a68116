"""The job that is disturbed: many short rows, some bad, some with another row's id; a few seconds of work per shard.

Each row carries its number in a column of its own, ``number``, by which it is found again whatever its id.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from s3gen import S3GenModel
from tests.jobs.inputs import VOICES, build_table, write_clips, write_config

FILES = 3
GROUP_ROWS = 100
BAD_EVERY, DOUBLED_EVERY = 41, 67
WORKERS = 2
SOLVER_STEPS = 40  # more than anybody wants: so that there is time to die in a shard
MAX_FRAMES = 600  # a few batches per shard


@dataclass(frozen=True, kw_only=True, slots=True)
class Inputs:
    """Of the campaign's jobs; the output is given with each."""

    config: Path
    rows: int


def write_inputs(folder: Path, rows: int, shard_rows: int, seed: int, shard_format: str) -> Inputs:
    """Clips, a voice table, a manifest in several files, a configuration."""
    write_clips(folder / "clips")
    voices = build_table(S3GenModel.from_pretrained("random:tiny"), folder / "clips", folder / "voices.parquet")
    table = _rows(rows, random.Random(seed))
    size = -(-rows // FILES)
    for number in range(FILES):
        part = table.slice(number * size, size)
        pq.write_table(part, folder / f"manifest-{number}.parquet", row_group_size=GROUP_ROWS)
    config = write_config(
        folder / "job.yaml",
        manifest=str(folder / "manifest-*.parquet"),
        voices=str(voices),
        output=str(folder / "reference"),
        shard_rows=shard_rows,
        format=shard_format,
        workers=WORKERS,
        seed=seed,
        batch={"max_frames": MAX_FRAMES},
        engine={"n_cfm_timesteps": SOLVER_STEPS, "device": "cpu"},
    )
    return Inputs(config=config, rows=rows)


def _rows(count: int, rng: random.Random) -> pa.Table:
    voices = sorted(VOICES)
    ids: list[str | None] = [f"row-{number:06d}" for number in range(count)]
    tokens: list[list[int | None] | None] = [
        [rng.randrange(6561) for _ in range(rng.randint(2, 8))] for _ in range(count)
    ]
    voice: list[str | None] = [rng.choice(voices) for _ in range(count)]
    for turn, number in enumerate(range(BAD_EVERY - 1, count, BAD_EVERY)):
        _spoil(turn, number, {"id": ids, "tokens": tokens, "voice_id": voice})
    for turn, number in enumerate(range(DOUBLED_EVERY, count, DOUBLED_EVERY)):
        ids[number] = ids[number - 1 if turn % 2 else number // 2]  # a neighbour's id, or one of another shard
    return pa.table(
        {
            "id": pa.array(ids, pa.string()),
            "tokens": pa.array(tokens, pa.list_(pa.int32())),
            "voice_id": pa.array(voice, pa.string()),
            "number": pa.array(range(count), pa.int64()),
        }
    )


def _spoil(turn: int, number: int, columns: dict[str, list[Any]]) -> None:
    """One kind of bad row after the other."""
    name, value = (
        ("tokens", None),
        ("tokens", []),
        ("tokens", [5, 9_999]),
        ("voice_id", "nobody"),
        ("id", None),
    )[turn % 5]
    columns[name][number] = value
