"""YAML from outside: the plain kind, bounded; and values from outside as an error may show them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import yaml

from jobs.errors import InputError
from jobs.storage.urls import is_url

MAX_BYTES = 1 << 16  # ten times the longest of configs/
MAX_VALUES = 1_000  # keys and values; a configuration needs a hundred, and reading YAML takes 50 us each
MAX_DEPTH = 32  # of nested YAML; a configuration needs three
MAX_SHOWN = 200  # characters of a value in an error


class _StrictLoader(yaml.SafeLoader):
    """SafeLoader without what a configuration has no use for.

    Aliases and merges (bombs), tags (values of other kinds than they look), doubled keys (silent losses), keys that are
    no text.
    """

    depth = 0
    values = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        event = self.peek_event()
        if self.check_event(yaml.AliasEvent):
            raise yaml.composer.ComposerError(None, None, "aliases (*name) are not allowed", event.start_mark)
        if event.tag is not None:
            raise yaml.composer.ComposerError(None, None, "tags (!name) are not allowed", event.start_mark)
        self.values += 1
        if self.values > MAX_VALUES:
            raise yaml.composer.ComposerError(None, None, f"more than {MAX_VALUES} values", event.start_mark)
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise yaml.composer.ComposerError(None, None, "nested too deeply", event.start_mark)
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            problem = None
            if key.tag != "tag:yaml.org,2002:str":
                problem = "a key must be a name (in quotes, if it looks like something else)"
            elif key.value in seen:
                problem = f"the key {shown(key.value)} is there twice"
            if problem is not None:
                raise yaml.constructor.ConstructorError(None, None, problem, key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def parse_yaml(text: str, where: str, *, secret: bool = False) -> Any:
    """The value of a YAML text.

    Args:
        where: what the errors call it.
        secret: they show nothing of the text.

    Raises:
        InputError: it is none, or one with what a configuration has no use for.
    """
    try:
        # A subclass of SafeLoader: it makes no objects.
        return yaml.load(text, Loader=_StrictLoader)  # noqa: S506
    except yaml.MarkedYAMLError as error:
        # The mark's snippet, and for values the problem too, would show the text itself.
        line = f" line {error.problem_mark.line + 1}" if error.problem_mark else ""
        reason = "" if secret else f": {str(error.problem)[:MAX_SHOWN]}"
        raise InputError(f"{where}{line}: not valid YAML{reason}") from None
    except (yaml.YAMLError, ValueError, OverflowError) as error:
        reason = "" if secret else f": {str(error).partition(chr(10))[0][:MAX_SHOWN]}"
        raise InputError(f"{where}: not valid YAML{reason}") from None


def read_mapping(path: str | os.PathLike[str], what: str) -> dict[str, Any]:
    """The keys and values of a file.

    Args:
        what: it is called in errors; only of a "configuration" they show values.

    Raises:
        InputError: no such file, or another kind of content.
    """
    where = f"{what} {legible(os.fspath(path))}"
    try:
        with Path(path).open("rb") as file:
            data = file.read(MAX_BYTES + 1)
        text = data.decode("utf-8-sig")
    except FileNotFoundError:
        raise InputError(f"{where}: {_missing(path)}") from None
    except IsADirectoryError:
        raise InputError(f"{where}: {_folder(path)}") from None
    except OSError as error:
        raise InputError(f"{where}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise InputError(f"{where}: not a text file in UTF-8") from None
    except ValueError:
        raise InputError(f"{where}: cannot be read: no path holds a NUL") from None
    if len(data) > MAX_BYTES:
        raise InputError(f"{where}: larger than {MAX_BYTES} bytes, this is no {what} file")
    values = parse_yaml(text, where, secret=what != "configuration")
    if not isinstance(values, dict):
        raise InputError(f"{where}: must hold keys and values (key: value), this holds {_kind(values)}")
    return values


def _missing(path: str | os.PathLike[str]) -> str:
    if is_url(os.fspath(path)):
        return "not a local file; copy it to this machine"
    return f"no such file, seen from {os.getcwd()}"


def _folder(path: str | os.PathLike[str]) -> str:
    if (Path(path) / "job.json").exists():
        return "this is the output of a job; `s3gen resume` goes on with it"
    return "this is a folder, a YAML file is wanted"


def _kind(value: Any) -> str:
    names = {"NoneType": "nothing", "list": "a list", "str": "a text"}
    return names.get(type(value).__name__, f"a {type(value).__name__}")


def shown(value: Any) -> str:
    """A value as YAML would have it, on one line, cut where it is long."""
    try:
        text = "null" if value is None else str(value).lower() if isinstance(value, bool) else repr(value)
    except ValueError:  # Python writes no whole number of more than 4,300 digits
        text = "a number of thousands of digits"
    return text if len(text) <= MAX_SHOWN else text[:MAX_SHOWN] + "..."


def legible(name: str) -> str:
    """A key or path as it is, or, where it is long or holds what no terminal should get, as ``shown`` writes it."""
    return name if name.isprintable() and len(name) <= 2 * MAX_SHOWN else shown(name)
