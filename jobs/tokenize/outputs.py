"""The output of a job of speech as an input: the shards that its index names.

It may be a copy on a file system that nothing is written to, or one without its ledger: what is there is known from the
names of its files, and what counts from its index.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from jobs.errors import InputError
from jobs.ledger.layout import INDEX, JOB, ROUND_NAME, finished_name
from jobs.ledger.parts import BATCH_ROWS
from jobs.storage.inputs import open_input
from jobs.storage.urls import Options

AUDIO, LEDGER = "audio/", "ledger/"


def is_output(folder: str, files: Sequence[str]) -> bool:
    """Whether a job was begun in a folder.

    Args:
        folder: its URL, with a slash at its end.
        files: URLs of all that is in it.
    """
    return f"{folder}{JOB}" in files


def shards_of(folder: str, files: Sequence[str], options: Options | None) -> list[str]:
    """URLs of the shards of a finished job; none of a job of tokens. Args as for `is_output`.

    Raises:
        InputError: it is not finished, or its index or a shard is gone or damaged.
    """
    names = {file.removeprefix(folder): file for file in files}
    given = f"give the files that are to count, such as {folder}{AUDIO}*"
    if not _is_finished(names):
        resume = ["s3gen", "resume", folder.rstrip("/"), *(["--storage-options", "FILE"] if options else [])]
        raise InputError(
            f"the job in {folder.rstrip('/')} is not finished: rows that it has yet to make would be missing, and some "
            f"might be there twice; finish it ({shlex.join(resume)}), or {given}"
        )
    if not any(name.startswith(AUDIO) for name in names):
        return []
    index = [name for name in names if name == INDEX or name.startswith(f"{INDEX}/")]
    if not index:
        raise InputError(f"{folder}{INDEX} is missing, which says which audio counts; put it back, or {given}")
    shards = sorted({shard for name in index for shard in _named_in(names[name], options)})
    for shard in shards:
        if shard not in names:
            raise InputError(f"{folder}{shard} is missing, which {INDEX} names; put it back, or {given}")
    return [names[shard] for shard in shards]


def _is_finished(names: Mapping[str, str]) -> bool:
    if not any(name.startswith(LEDGER) for name in names):
        return True  # a copy for readers: whoever made it has seen to that
    rounds = {int(match[1]) for name in names if (match := ROUND_NAME.match(name))}
    return finished_name(len(rounds)) in names


def _named_in(index: str, options: Options | None) -> set[str]:
    """The shards that a file of the index names."""
    found: set[str] = set()
    try:
        with open_input(index, options) as file:
            for batch in pq.ParquetFile(file).iter_batches(batch_size=BATCH_ROWS, columns=["shard"], use_threads=False):
                found.update(pc.unique(batch["shard"]).to_pylist())
    except (pa.ArrowException, OSError, KeyError) as error:
        raise InputError(f"{index} cannot be read as the index of a job: {error}") from None
    return found
