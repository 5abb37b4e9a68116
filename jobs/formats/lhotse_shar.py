"""Shards as lhotse has them (Shar): a tar of recordings, and beside it a list of cuts, which say what is heard.

Of each row there is one recording of one channel, one cut of all of it, and in the cut one supervision. lhotse takes
the two files for one shard where the names of both have the same place in their order, and rows of one place in both
for one utterance. What the objects have follows lhotse 1.33: `lhotse/shar/writers` and `lhotse/cut/mono.py` at v1.33.0
of lhotse-speech/lhotse.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa

from jobs.formats.keys import key_of
from jobs.formats.writers import Sound, add_member, json_value, plain_tar

SPOKEN = ("text", "language")  # columns that a supervision has a field for
LEVEL = 6  # of gzip


def write_recordings(path: Path, columns: pa.Table, clips: Iterable[bytes], sound: Sound) -> None:
    """The tar: `key.flac`, then `key.json`, the recording, for which lhotse puts the bytes of the file before it."""
    ids = columns.column("id").to_pylist()
    with plain_tar(path) as tar:
        for row_id, clip, samples in zip(ids, clips, sound.samples, strict=True):
            key = key_of(row_id)
            add_member(tar, f"{key}.{sound.suffix}", clip)
            add_member(tar, f"{key}.json", json.dumps(recording(key, samples, sound.rate)).encode("ascii"))


def write_cuts(path: Path, columns: pa.Table, sound: Sound) -> None:
    """The list: gzip of a line of JSON for each row; see `cut`."""
    # Without a name and a time in its header: the same rows, the same bytes.
    with path.open("wb") as file, gzip.GzipFile("", "wb", LEVEL, file, mtime=0) as lines:
        for row, samples in enumerate(sound.samples):
            values = {name: json_value(columns.column(name)[row]) for name in columns.column_names}
            lines.write(json.dumps(cut(values, samples, sound.rate), allow_nan=False).encode("ascii") + b"\n")


def recording(key: str, samples: int, rate: int) -> dict[str, Any]:
    """A recording whose bytes are elsewhere in the shard."""
    return {
        "id": key,
        "sources": [{"type": "shar", "channels": [0], "source": ""}],
        "sampling_rate": rate,
        "num_samples": samples,
        "duration": samples / rate,
        "channel_ids": [0],
    }


def cut(values: dict[str, Any], samples: int, rate: int) -> dict[str, Any]:
    """All of a recording, with what is said of it.

    Args:
        values: of the shard's columns, `id` and `voice_id` among them, as `json_value` gives them. Texts in the columns
            of `SPOKEN` are the supervision's; the other columns are the cut's own fields. Structs are texts of JSON
            there, since lhotse looks into objects for manifests of its own, and fails at some that are none.
    """
    key, duration = key_of(values["id"]), samples / rate
    spoken = {name: values[name] for name in SPOKEN if isinstance(values.get(name), str)}
    own = {name: value for name, value in values.items() if name not in ("id", "voice_id", *spoken)}
    supervision = {"id": values["id"], "recording_id": key, "start": 0.0, "duration": duration, "channel": 0}
    return {
        "id": key,
        "start": 0.0,
        "duration": duration,
        "channel": 0,
        "supervisions": [{**supervision, **spoken, "speaker": values["voice_id"]}],
        "recording": recording(key, samples, rate),
        "custom": {name: json.dumps(value) if isinstance(value, dict) else value for name, value in own.items()},
        "type": "MonoCut",
    }
