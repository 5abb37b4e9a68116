"""The formats that shards are stored in, by their configuration key `format`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from jobs.formats.features import json_features
from jobs.formats.lhotse_shar import write_cuts, write_recordings
from jobs.formats.writers import Sound, WriteShard, write_parquet, write_webdataset


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardFormat:
    """How shards are stored.

    Attributes:
        prefix: what the names of shard files begin with.
        suffix: of them.
        write: writes one.
        write_cuts: writes the file beside it that says what is heard, where that is one of its own.
        features: what `datasets` has to be told of the columns (see `json_features`), where the shards do not say it.
    """

    prefix: str = ""
    suffix: str
    write: WriteShard
    write_cuts: Callable[[Path, pa.Table, Sound], None] | None = None
    features: Callable[[pa.Schema, str, int], list[dict[str, Any]]] | None = None

    @property
    def pattern(self) -> str:
        """A glob for the shard files of an output."""
        return f"audio/{self.prefix}*.{self.suffix}"


FORMATS = {
    "parquet": ShardFormat(suffix="parquet", write=write_parquet),
    "webdataset": ShardFormat(suffix="tar", write=write_webdataset, features=json_features),
    "lhotse": ShardFormat(prefix="recording.", suffix="tar", write=write_recordings, write_cuts=write_cuts),
}
