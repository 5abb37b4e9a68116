"""What is wrong with a configuration, in words for its user: each names the key, the value and the way out."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from types import NoneType
from typing import Any, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from jobs.config.plain_yaml import legible, shown
from jobs.errors import InputError

SECRET_KEYS = ("storage_options",)  # whose values no error shows
EXAMPLES = {
    "model": "ResembleAI/chatterbox",
    "manifest": "my_manifest.parquet",
    "voices": "my_voices.parquet",
    "output": "my_speech",
}


def refuse_unknown_keys(
    values: Mapping[str, Any], kind: type[BaseModel], section: type[BaseModel] | None = None, prefix: str = ""
) -> None:
    """Raises InputError for the first key that a configuration of a kind has not, with what was probably meant.

    Args:
        section: of the configuration, that the values are for; None for all of it.
        prefix: of its keys, with the dot.
    """
    section = section or kind
    for key, value in values.items():
        if key not in section.model_fields:
            raise InputError(f"{prefix}{legible(key)}: unknown key{_suggestion(key, kind, section, prefix)}")
        inner = section.model_fields[key].annotation
        if isinstance(inner, type) and issubclass(inner, BaseModel) and isinstance(value, Mapping):
            refuse_unknown_keys(value, kind, inner, f"{prefix}{key}.")


def _suggestion(key: str, kind: type[BaseModel], section: type[BaseModel], prefix: str) -> str:
    everywhere = {f"{path}": path.rpartition(".")[2] for path in _all_keys(kind, "")}
    close = difflib.get_close_matches(f"{prefix}{key}", list(everywhere), n=1, cutoff=0.75)
    if not close:
        names = difflib.get_close_matches(key, list(everywhere.values()), n=1, cutoff=0.7)
        close = [path for path, name in everywhere.items() if names and name == names[0]]
    if close:
        return f"; did you mean {close[0]}?"
    # What a job of any kind has comes last.
    names = sorted(section.model_fields, key=lambda name: name not in section.__annotations__)
    return f"; the keys {'of ' + prefix[:-1] if prefix else 'here'} are {', '.join(names)}"


def _all_keys(section: type[BaseModel], prefix: str) -> Iterator[str]:
    for name, field in section.model_fields.items():
        yield f"{prefix}{name}"
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from _all_keys(field.annotation, f"{prefix}{name}.")


def explain(error: ValidationError, kind: type[BaseModel]) -> Iterator[str]:
    """One line per key, whichever of a union's members pydantic complained about."""
    found: dict[str, list[ErrorDetails]] = {}
    for item in error.errors(include_url=False):
        found.setdefault(_key_of(item["loc"], kind), []).append(item)
    for key, items in found.items():
        if items[0]["type"] == "value_error":  # the project's own words, with the value where it may be shown
            yield f"{key}: {items[0]['ctx']['error']}"
            continue
        if items[0]["type"] == "missing":
            yield f"{key}: this key is required{f', such as {key}: {EXAMPLES[key]}' if key in EXAMPLES else ''}"
            continue
        refused = "" if key.split(".")[0] in SECRET_KEYS else f"{shown(items[0]['input'])} is refused: "
        reasons = [_reason(item).removeprefix("give ") for item in items]
        wanted = " or ".join(dict.fromkeys([*reasons, *_nothing(key, kind)]))
        yield f"{key}: {refused}give {wanted}{_meant(items)}{_below(key, items[0], kind)}"


# What else dtypes, devices, encodings and formats are called, where it looks too little like the name.
OTHER_NAMES = {
    **{"fp32": "float32", "float": "float32", "float64": "float32", "fp16": "float16", "half": "float16"},
    **{"gpu": "cuda", "opus": "ogg", "shar": "lhotse"},
}


def _meant(items: Sequence[ErrorDetails]) -> str:
    """A suggestion, where one of a few choices was probably meant."""
    for item in items:
        if item["type"] == "literal_error" and isinstance(item["input"], str):
            choices = re.findall(r"'([^']*)'", str(item["ctx"]["expected"]))
            given = item["input"].lower()
            other = OTHER_NAMES.get(given)
            close = [other] if other in choices else difflib.get_close_matches(given, choices, n=1)
            if close:
                return f"; did you mean {close[0]}?"
    return ""


def _key_of(loc: tuple[int | str, ...], kind: type[BaseModel]) -> str:
    """The dotted key: pydantic's location without the names of a union's members."""
    section: type[BaseModel] | None = kind
    names: list[str] = []
    for part in loc:
        if section is None or part not in section.model_fields:
            break
        names.append(str(part))
        inner = section.model_fields[str(part)].annotation
        section = inner if isinstance(inner, type) and issubclass(inner, BaseModel) else None
    return ".".join(names)


def _nothing(key: str, kind: type[BaseModel]) -> list[str]:
    """How a key that may be without a value says so."""
    section: Any = kind
    *parents, name = key.split(".")
    for parent in parents:
        section = section.model_fields[parent].annotation
    return ["null"] if NoneType in get_args(section.model_fields[name].annotation) else []


def _below(key: str, item: ErrorDetails, kind: type[BaseModel]) -> str:
    """The keys of a section, where a single value was given for it."""
    if not item["type"].startswith("model_"):
        return ""
    section: Any = kind.model_fields[key].annotation
    return f", such as {' or '.join(f'{key}.{name}' for name in section.model_fields)}"


_PLAIN = {
    "int_type": "give a whole number",
    "int_from_float": "give a whole number",
    "float_type": "give a number",
    "bool_type": "give true or false",
    "string_type": "give a text (in quotes, if it looks like something else)",
    "list_type": "give a list, such as [1, 2]",
    "dict_type": "give keys and values, or the path of a YAML or JSON file with them",
    "model_type": "give keys and values below it",
    "model_attributes_type": "give keys and values below it",
    "finite_number": "give a finite number",
    "string_too_long": "give a text of at most 4096 characters",
    "string_unicode": "give a text of whole Unicode characters",
}


def _reason(item: ErrorDetails) -> str:
    context = item.get("ctx", {})
    match item["type"]:
        case "greater_than_equal":
            return f"give {context['ge']} or a larger number"
        case "greater_than":
            return f"give more than {context['gt']}"
        case "less_than" | "less_than_equal":
            return f"give less than {context['lt']}" if "lt" in context else f"give at most {context['le']}"
        case "literal_error":
            return f"give {str(context['expected']).replace(chr(39), '')}"
        case other:
            return _PLAIN.get(other, str(item["msg"]))
