"""All rows of a shard as it is stored: the id and the audio file of each."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
import zlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from jobs.formats.keys import key_of
from jobs.formats.lhotse_shar import SPOKEN

MALFORMED = (LookupError, TypeError, AttributeError, EOFError, zlib.error)


class Clip(NamedTuple):
    """A row as it is stored.

    Attributes:
        data: its audio file.
        cut: in the format lhotse its cut, without what comes from the manifest's own columns; else None.
    """

    id: str
    data: bytes
    cut: dict[str, Any] | None = None


def stored_clips(name: str, data: bytes) -> Iterator[Clip]:
    """Of a Parquet shard, or a tar shard for WebDataset.

    Args:
        name: of the file.

    Raises:
        pa.ArrowException, OSError, tarfile.TarError, ValueError, KeyError: it is damaged.
    """
    if name.endswith(".parquet"):
        for batch in pq.ParquetFile(pa.BufferReader(data)).iter_batches(
            batch_size=64, columns=["id", "audio"], use_threads=False
        ):
            for row in batch.to_pylist():
                yield Clip(row["id"], row["audio"]["bytes"])
        return
    for _, clip, told in _pairs(data):
        yield Clip(told["id"], clip)


def shar_clips(data: bytes, cuts: bytes) -> Iterator[Clip]:
    """Of the two files of a shard for lhotse.

    Args:
        data: the tar of recordings.
        cuts: the list of cuts.

    Raises:
        OSError, tarfile.TarError, ValueError: they are damaged, or not of the same rows.
    """
    try:
        lines = iter(gzip.decompress(cuts).splitlines())
        for key, clip, recording in _pairs(data):
            cut = json.loads(next(lines, b"null"))
            (spoken,) = cut["supervisions"]
            if not key == cut["id"] == key_of(spoken["id"]) or recording != cut["recording"]:
                raise ValueError(f"the recording {key!r} and the cut {cut['id']!r} are in one place")
            known = {name: value for name, value in spoken.items() if name not in SPOKEN}
            yield Clip(spoken["id"], clip, {**cut, "supervisions": [known], "custom": {}})
        if next(lines, None) is not None:
            raise ValueError("there are more cuts than recordings")
    except MALFORMED as error:
        raise ValueError(f"it is no list of cuts as lhotse has them: {type(error).__name__}") from None


def _pairs(data: bytes) -> Iterator[tuple[str, bytes, Any]]:
    """Key, audio file and JSON of each row of a tar."""
    with tarfile.open(fileobj=io.BytesIO(data), mode="r:") as tar:
        clip: tuple[str, bytes] | None = None
        for member in tar:
            key, _, suffix = member.name.partition(".")
            content = tar.extractfile(member)
            if content is None:
                raise ValueError(f"{member.name} is not a file")
            if suffix != "json":
                clip = (key, content.read())
            elif clip is None or clip[0] != key:
                raise ValueError(f"{member.name} does not follow its audio")
            else:
                yield (*clip, json.load(content))
                clip = None
        if clip is not None:
            raise ValueError(f"{clip[0]} has no json")
