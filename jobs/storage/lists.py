"""Lists of files: the rows of a .csv or .jsonl file, and where the paths in it lead."""

from __future__ import annotations

import csv
import io
import json
import posixpath
from collections import Counter
from collections.abc import Iterator
from typing import Any

from jobs.errors import InputError, JobError
from jobs.storage.inputs import open_input
from jobs.storage.urls import Options, is_url


def read_list(url: str, options: Options | None = None) -> list[dict[str, Any]]:
    """The rows of a .csv or .jsonl file; those of a .csv hold texts, and None where a line is too short.

    Raises:
        InputError: no such file, or not what its suffix says.
    """
    suffix = suffix_of(url)
    try:
        with open_input(url, options) as file:
            text = file.read().decode("utf-8-sig")
        return list(_csv_rows(text) if suffix == "csv" else _jsonl_rows(text))
    except FileNotFoundError:
        raise InputError(f"no such file: {url}") from None
    except JobError:
        raise
    except (ValueError, RecursionError, csv.Error, OSError, MemoryError) as error:
        raise InputError(f"{url} cannot be read as {suffix}: {error or type(error).__name__}") from None


def _csv_rows(text: str) -> Iterator[dict[str, Any]]:
    reader = csv.DictReader(io.StringIO(text, newline=""))
    for name, times in Counter(reader.fieldnames or ()).items():
        if name and times > 1:
            raise ValueError(f"the column {name!r} is there {times} times; give each one name")
    # What a line has beyond the last column comes under None.
    for row in reader:
        yield {name: value for name, value in row.items() if name is not None}


def _jsonl_rows(text: str) -> Iterator[dict[str, Any]]:
    for line in text.split("\n"):
        if line.strip():
            row = json.loads(line)
            if not isinstance(row, dict):
                raise json.JSONDecodeError("not an object", line, 0)
            yield row


def beside(url: str, path: str) -> str:
    """A path that a file at `url` names: relative ones begin at that file's folder."""
    return path if not path or is_url(path) or path.startswith("/") else f"{url.rpartition('/')[0]}/{path}"


def suffix_of(name: str) -> str:
    """The last suffix of a name, lower case, without the dot."""
    return posixpath.splitext(name)[1].lower().lstrip(".")
