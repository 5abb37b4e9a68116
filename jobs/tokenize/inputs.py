"""What recordings a job is given: Parquet files that say it themselves, or a table of where each one lies.

| INPUT | ids |
|---|---|
| a folder or glob of audio files | paths without suffix, from the folder (or the glob's fixed part) on |
| a .csv or .jsonl list, or Parquet files, with `path` | `id`, else `voice_id` |
| tars as WebDataset has them | `id` of a sample's json, else its key |
| Parquet files with `audio`, as `datasets` stores it | `id`, else its path without suffix, else file and row |
| the output of a job of speech | those of its shards |
"""

from __future__ import annotations

import logging
import posixpath
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pyarrow as pa

from jobs.audio.audiofile import READABLE_SUFFIXES
from jobs.errors import InputError
from jobs.manifest.manifest import SUFFIXES
from jobs.storage.inputs import base_of, expand
from jobs.storage.lists import beside, read_list, suffix_of
from jobs.storage.urls import Options, absolute_url, is_url, refuse_secrets
from jobs.tokenize.columns import misfits
from jobs.tokenize.loose_columns import joined, table_of
from jobs.tokenize.outputs import is_output, shards_of
from jobs.tokenize.tars import tar_rows

log = logging.getLogger(__name__)

LISTS = ("csv", "jsonl")
KINDS = {
    "audio": READABLE_SUFFIXES,
    "tar": frozenset({"tar"}),
    "Parquet": frozenset(suffix.lstrip(".") for suffix in SUFFIXES),
}
RECORDINGS = frozenset().union(*KINDS.values())  # suffixes
SCAN_THREADS = 16
SHOWN_NAMES = 3


def find_audio(where: str, options: Options | None = None, *, besides: Sequence[str] = ()) -> list[str] | pa.Table:
    """The recordings of an input.

    Args:
        where: a path, glob, folder or URL, as above.
        besides: files and folders that are no input, wherever they lie: what the job itself makes.

    Returns:
        URLs of Parquet files, or a table with `id`, `path` (absolute), in tars also `tar_offset` and `tar_bytes`, and
        whatever else is said of each recording; in the order of the list, or of the files' names.

    Raises:
        InputError: no such input, nothing in it, several kinds of files, or one that cannot be read; or the output of
            a job that is not finished.
    """
    url = absolute_url(where)
    own = tuple(f"{absolute_url(each).rstrip('/')}/" for each in besides)
    found = [file for file in expand(url, options, hidden=True) if not f"{file}/".startswith(own)]
    if suffix_of(url) in LISTS and found == [url]:
        return _listed(url, options)
    base = base_of(url, found)
    found = found if found == [url] else _without_hidden(url, base, found)
    if is_output(folder := f"{url.rstrip('/')}/", found):
        found = shards_of(folder, found, options)
    kinds = {kind: [file for file in found if suffix_of(file) in suffixes] for kind, suffixes in KINDS.items()}
    present = [kind for kind, files in kinds.items() if files]
    if len(present) > 1:
        counts = ", ".join(f"{len(kinds[kind])} {kind}" for kind in present)
        raise InputError(f"{url} has files of several kinds ({counts}); give a glob of one, such as {url}/*.tar")
    if not present:
        raise InputError(
            f"no recordings in {url}: audio files, .tar or .parquet files, or a .csv or .jsonl list are needed"
            + (f", it has {', '.join(posixpath.basename(file) for file in found[:SHOWN_NAMES])}" if found else "")
        )
    files = kinds[present[0]]
    if present[0] == "Parquet":
        return files
    return _in_tars(files, options) if present[0] == "tar" else _audio_files(base, files)


def _listed(url: str, options: Options | None) -> pa.Table:
    rows = read_list(url, options)
    if not rows:
        raise InputError(f"{url} has no rows; give one for each recording")
    names = set().union(*rows)
    for wanted, known in (("path", {"path"}), ("id or voice_id", {"id", "voice_id"})):
        if not names & known:
            raise InputError(f"{url} has no column {wanted}; it has {', '.join(sorted(map(str, names)))}")
    return _checked(url, _without_audio(table_of([_placed(url, number, row) for number, row in enumerate(rows, 1)])))


def _placed(url: str, number: int, row: Mapping[str, Any]) -> dict[str, Any]:
    path = row.get("path")
    if isinstance(path, str) and is_url(path):
        try:
            refuse_secrets(path)
        except InputError as error:
            raise InputError(f"{url}, row {number}: path: {error}") from None
    return {
        "id": row.get("id", row.get("voice_id")),
        **row,
        "path": beside(url, path) if isinstance(path, str) else None,
    }


def _in_tars(files: Sequence[str], options: Options | None) -> pa.Table:
    with ThreadPoolExecutor(SCAN_THREADS) as pool:
        tables = [table_of(rows) for rows in pool.map(lambda url: tar_rows(url, options), files) if rows]
    if not tables:
        raise InputError(f"{files[0]} and what else is given are tars without recordings")
    return _checked(None, _without_audio(joined(tables)))


def _checked(url: str | None, table: pa.Table) -> pa.Table:
    """Refuses a list with a column that is of no use, by its first row that has something there.

    Args:
        url: of the list; None: of tars, which are said in the rows.
    """
    for name, wanted in misfits(table.schema):
        number = table[name].is_valid().to_pylist().index(True)
        where = f"{table['path'][number]}, sample {table['id'][number]}" if url is None else f"{url}, row {number + 1}"
        raise InputError(
            f"{where}: {name} is {str(table[name][number])[:200]} ({table[name].type}); it must be {wanted}"
        )
    return table


def _without_audio(table: pa.Table) -> pa.Table:
    """A list says where recordings are: what it calls `audio` is something else."""
    taken = set(table.column_names) - {"audio"}
    name = "source_audio"
    while name in taken:
        name = f"source_{name}"
    return table.rename_columns([name if each == "audio" else each for each in table.column_names])


def _audio_files(base: str, files: Sequence[str]) -> pa.Table:
    ids = [posixpath.splitext(file.removeprefix(base))[0] for file in files]
    return pa.table({"id": pa.array(ids, pa.string()), "path": pa.array(files, pa.string())})


def _without_hidden(url: str, base: str, found: Sequence[str]) -> list[str]:
    shown = [file for file in found if not _is_hidden(file.removeprefix(base))]
    left = [file for file in found if suffix_of(file) in RECORDINGS and _is_hidden(file.removeprefix(base))]
    if left:
        log.warning(
            "%s: %d files are left out whose names, or folders' names, begin with a dot or an underscore, such as %s",
            url, len(left), left[0],
        )  # fmt: skip
    return shown


def _is_hidden(name: str) -> bool:
    return any(part.startswith((".", "_")) for part in name.split("/"))
