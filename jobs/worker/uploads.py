"""The files of one try at a shard: written here, uploaded, committed."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from jobs.crew.pulse import Pulse
from jobs.errors import StorageUnknown
from jobs.ledger.ledger import Ledger
from jobs.ledger.records import Attempt, CommitRecord, StoredFile


@dataclass(frozen=True, slots=True)
class Upload:
    """The files of one try, under their names in the output.

    Args:
        scratch: an empty local folder, as large as the shard.
        pulse: moves on with each file.
    """

    ledger: Ledger
    attempt: Attempt
    scratch: Path
    pulse: Pulse

    def local(self, name: str) -> Path:
        """Where a file is to be written before it is uploaded."""
        return self.scratch / name.replace("/", "-")

    def stored(self, name: str) -> StoredFile:
        """A file that was written to its local place, for the record."""
        path = self.local(name)
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        return StoredFile(name=name, bytes=path.stat().st_size, sha256=digest)

    def write_table(self, name: str, table: pa.Table) -> StoredFile:
        """Writes a table to its local place, as Parquet."""
        pq.write_table(table, self.local(name), compression="zstd")
        return self.stored(name)

    def publish(self, record: CommitRecord) -> bool:
        """Uploads all files that a record names, and commits it; returns whether it counts.

        After a failure that leaves no doubt the files of this try are deleted; otherwise they stay until the job ends,
        since a record that names them may have landed.

        Raises:
            StorageError: it surely does not count.
            StorageUnknown: it may.
        """
        try:
            for file in record.files():
                self.ledger.folder.upload(file.name, self.local(file.name))
                self.pulse.beat()
        except StorageUnknown:
            raise
        except Exception:
            self.ledger.discard(self.attempt, record)
            raise
        # Whatever this raises, nothing is deleted: a record that landed against all that is known of it would name
        # files that are gone. Those of a try that did not count go at the end.
        return self.ledger.commit(self.attempt, record)
