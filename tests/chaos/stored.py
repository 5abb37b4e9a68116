"""The rows of an output's shards in each format, read by this room's own means: what wrote them is on trial."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import tarfile
from collections.abc import Callable, Iterator
from pathlib import PurePosixPath

import pyarrow.parquet as pq
import soundfile

from jobs.storage.folders import Folder

Row = tuple[int, str, int]  # its number in the manifest, digest of its samples, how many they are
RECORDINGS, CUTS = "audio/recording.", "audio/cuts."


def stored_rows(folder: Folder) -> Iterator[tuple[str, list[Row]]]:
    """Each file of ``audio/``, named by the index or not, with its rows.

    A list of cuts is one with its recordings; one that is alone has no rows, and recordings that are alone have theirs
    under numbers that no manifest has.
    """
    names = folder.list("audio/")
    for name in names:
        lists = f"{CUTS}{PurePosixPath(name).stem.removeprefix('recording.')}.jsonl.gz"
        if name.startswith(RECORDINGS):
            numbers = _cut_numbers(folder.read(lists)) if lists in names else None
            yield name, _recorded(folder.read(name), numbers)
        elif name.startswith(CUTS):
            if f"{RECORDINGS}{name.removeprefix(CUTS).removesuffix('.jsonl.gz')}.tar" not in names:
                yield name, []
        else:
            read: Callable[[bytes], list[Row]] = _sampled if name.endswith(".tar") else _tabled
            yield name, read(folder.read(name))


def _tabled(data: bytes) -> list[Row]:
    table = pq.read_table(io.BytesIO(data), columns=["number", "audio"])
    clips = (clip["bytes"] for clip in table["audio"].to_pylist())
    return [(number, *_decoded(clip)) for number, clip in zip(table["number"].to_pylist(), clips, strict=True)]


def _sampled(data: bytes) -> list[Row]:
    """Of WebDataset: a clip, then what is known of it, under one key."""
    members = _members(data)
    pairs = zip(members[::2], members[1::2], strict=True)
    return [(json.loads(said)["number"], *_decoded(clip)) for (_, clip), (_, said) in pairs]


def _recorded(data: bytes, numbers: list[int] | None) -> list[Row]:
    clips = [clip for name, clip in _members(data) if not name.endswith(".json")]
    return [(number, *_decoded(clip)) for number, clip in zip(numbers or [-1] * len(clips), clips, strict=True)]


def _cut_numbers(data: bytes) -> list[int]:
    return [json.loads(line)["custom"]["number"] for line in gzip.decompress(data).splitlines()]


def _members(data: bytes) -> list[tuple[str, bytes]]:
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        return [(member.name, tar.extractfile(member).read()) for member in tar]  # type: ignore[union-attr]


def _decoded(clip: bytes) -> tuple[str, int]:
    samples, _ = soundfile.read(io.BytesIO(clip), dtype="int16")
    return hashlib.sha256(samples.tobytes()).hexdigest(), len(samples)
