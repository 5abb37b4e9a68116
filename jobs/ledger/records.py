"""What one try at a shard is called, and what it leaves behind when it is done."""

from __future__ import annotations

import hashlib
import json
import os
import socket
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields

import pyarrow as pa

NULL_LENGTH = -1  # what a null counts as in a digest of ids


@dataclass(frozen=True, kw_only=True, slots=True)
class StoredFile:
    """A file of the output that a record vouches for."""

    name: str  # relative to the output
    bytes: int
    sha256: str


@dataclass(frozen=True, kw_only=True, slots=True)
class CommitRecord:
    """What one try made of one shard."""

    shard: int
    attempt: str
    plan: str  # digest of the plan
    ids: str  # digest of the ids of all rows, see ``ids_digest``
    rows: int  # of the manifest; rows_done + rows_failed
    rows_done: int
    rows_failed: int
    samples: int  # of audio, all rows
    errors: dict[str, int]  # rows that failed, by code
    problems: dict[str, int]  # rows that were made and do not pass a check, by its name; a row may count under several
    positions: int  # that the vocoder was given, padding included; see ``padding``
    padding: int  # among them
    worker: str  # that made it, see ``worker_name``
    tries: int  # how often the shard was handed out by the run that made it, this time included
    started_at: float  # unix time at which the work on the shard began
    finished_at: float  # and ended
    audio: StoredFile | None  # None when no row could be made
    index: StoredFile | None
    failures: StoredFile | None  # None when no row failed
    cuts: StoredFile | None = None  # beside the audio, in the format lhotse

    def files(self) -> list[StoredFile]:
        """All files that the record names."""
        return [file for file in (self.audio, self.cuts, self.index, self.failures) if file is not None]

    def to_bytes(self) -> bytes:
        """As JSON."""
        return json.dumps(asdict(self), indent=1).encode()

    @classmethod
    def from_bytes(cls, data: bytes) -> CommitRecord:
        """From JSON. ValueError when it is no record."""
        try:
            values = json.loads(data)
            for key in ("audio", "cuts", "index", "failures"):
                values[key] = None if values[key] is None else StoredFile(**values[key])
            return cls(**values)
        except (TypeError, KeyError) as error:
            raise ValueError(f"not a commit record: {error}") from None


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardReport:
    """What a worker tells of a shard; the fields of its record mean the same here.

    Attributes:
        counted: False when another try had committed it before, and this one's files are gone; or it was a probe.
        seconds: that went by, by stage: read, make, publish. Of several shards at once they overlap.
    """

    shard: int
    rows_done: int
    rows_failed: int
    samples: int
    errors: Mapping[str, int]
    problems: Mapping[str, int]
    positions: int
    padding: int
    worker: str
    tries: int
    counted: bool
    seconds: Mapping[str, float]

    @classmethod
    def of(cls, record: CommitRecord, *, counted: bool, seconds: Mapping[str, float]) -> ShardReport:
        """Of a shard that has a record."""
        told = {field.name for field in fields(cls)} - {"counted", "seconds"}
        return cls(**{name: getattr(record, name) for name in told}, counted=counted, seconds=seconds)

    @classmethod
    def of_probe(
        cls, shard: int, *, samples: Sequence[int], errors: Sequence[str], problems: Sequence[str] = (), tries: int
    ) -> ShardReport:
        """Of rows that were made to see whether they can be.

        Args:
            samples: of each row that was made.
            errors: the code of each that was not.
            problems: every check that a row has not passed.
        """
        return cls(
            shard=shard,
            rows_done=len(samples),
            rows_failed=len(errors),
            samples=sum(samples),
            errors=counts(errors),
            problems=counts(problems),
            positions=0,
            padding=0,
            worker=worker_name(),
            tries=tries,
            counted=False,
            seconds={},
        )


def worker_name() -> str:
    """This process, as records name it: host and process id, ``host:pid``."""
    return f"{socket.gethostname()}:{os.getpid()}"


def counts(names: Iterable[str]) -> dict[str, int]:
    """How often each name occurs, in their order."""
    return dict(sorted(Counter(names).items()))


def ids_digest(column: pa.Array | pa.ChunkedArray) -> str:
    """Hex sha256 over ids in their order: each as its length in bytes (int64, little-endian) and its bytes.

    Args:
        column: any kind of text. A null has the length -1 and no bytes.
    """
    digest = hashlib.sha256()
    for value in text_bytes(column):
        length = NULL_LENGTH if value is None else len(value)
        digest.update(length.to_bytes(8, "little", signed=True))
        digest.update(value or b"")
    return digest.hexdigest()


def text_bytes(column: pa.Array | pa.ChunkedArray) -> list[bytes | None]:
    """The texts of a column of any kind of text as they are stored, UTF-8 or not."""
    chunks = column.chunks if isinstance(column, pa.ChunkedArray) else [column]
    plain = [chunk.dictionary_decode() if pa.types.is_dictionary(chunk.type) else chunk for chunk in chunks]
    return [value for chunk in plain for value in chunk.cast(pa.large_binary()).to_pylist()]


@dataclass(frozen=True, slots=True)
class Attempt:
    """One try at a shard: names that no other try has."""

    shard: int
    id: str

    @property
    def stem(self) -> str:
        """Shard and attempt."""
        return f"{self.shard:07d}-{self.id}"

    def audio_name(self, ext: str, prefix: str = "") -> str:
        """Of the shard file; ``ext`` without a dot."""
        return f"audio/{prefix}{self.stem}.{ext}"

    @property
    def cuts_name(self) -> str:
        """Of the file beside it, in the format lhotse."""
        return f"audio/cuts.{self.stem}.jsonl.gz"

    @property
    def index_name(self) -> str:
        """Of the part of the index."""
        return f"ledger/index/{self.stem}.parquet"

    @property
    def failures_name(self) -> str:
        """Of the part of the failures table."""
        return f"ledger/failures/{self.stem}.parquet"
