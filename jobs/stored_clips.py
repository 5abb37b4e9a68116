"""All rows of a shard as it is stored: the id and the audio file of each."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from jobs.lhotse_shar import SPOKEN, cut

Clip = tuple[str, bytes]
MALFORMED = (LookupError, TypeError, AttributeError, EOFError, zlib.error, gzip.BadGzipFile)


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
                yield row["id"], row["audio"]["bytes"]
        return
    for _, clip, told in _pairs(data):
        yield told["id"], clip


def shar_clips(data: bytes, cuts: bytes, index: Sequence[Mapping[str, Any]], rate: int) -> Iterator[Clip]:
    """Of the two files of a shard for lhotse, which must say of each row what the index says of it.

    Args:
        data: the tar of recordings.
        cuts: the list of cuts.
        index: the rows that the shard has in the index.
        rate: of the recordings, Hz.

    Raises:
        OSError, tarfile.TarError, ValueError: they are damaged, or say something else.
    """
    try:
        rows, lines = iter(index), iter(gzip.decompress(cuts).splitlines())
        for key, clip, told in _pairs(data):
            row, said = next(rows, None), json.loads(next(lines, b"null"))
            if row is None:
                raise ValueError("there are more recordings than rows in the index")
            (spoken,) = said["supervisions"]
            known = {name: value for name, value in spoken.items() if name not in SPOKEN}
            wanted = cut({"id": spoken["id"], "voice_id": row["voice_id"]}, row["samples"], rate)
            if {**said, "supervisions": [known], "custom": {}} != wanted or told != wanted["recording"]:
                raise ValueError(
                    f"recording or cut of {spoken['id']!r} are not what the index says of row {row['row']}"
                )
            if key != wanted["id"]:
                raise ValueError(f"{key!r} is in the place of the recording of {spoken['id']!r}")
            yield spoken["id"], clip
        if next(lines, None) is not None:
            raise ValueError("there are more cuts than recordings")
    except MALFORMED as error:
        raise ValueError(f"no list of cuts, or no recordings, as lhotse has them: {type(error).__name__}") from None


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
