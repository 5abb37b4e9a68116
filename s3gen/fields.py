"""What both published configurations share: how their fields are checked, written and read."""

from __future__ import annotations

import dataclasses
import difflib
import json
from collections.abc import Mapping
from typing import Any, ClassVar, Self, get_args, get_type_hints

# Keys that the hub's tools write into every config.json and that say nothing about the model.
HUB_KEYS = frozenset(
    {"architectures", "auto_map", "dtype", "torch_dtype", "transformers_version", "_name_or_path", "hidden_size"}
)

# What a file may ask for: building a model takes time and memory for each layer, before any weight is looked at.
_MOST_SIZE = 2**16
_MOST_NUMBER = 1e6
_MOST_LAYERS = 64  # of one kind: fields that end in ...
_LAYERS = ("blocks", "layers")
_MOST_STAGES = 16  # entries of a list
_MAY_BE_ZERO = frozenset({"fmin", "nb_harmonics"})


class PublishedConfig:
    """A configuration with its published names: tuples for lists, JSON, and errors that name the key."""

    __slots__ = ()
    model_type: ClassVar[str]
    later: ClassVar[frozenset[str]] = frozenset()  # fields that came after the first release

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):  # type: ignore[arg-type]
            value = getattr(self, field.name)
            if isinstance(value, list):
                object.__setattr__(self, field.name, _tuples(value))
        kinds = get_type_hints(type(self))
        for field in dataclasses.fields(self):  # type: ignore[arg-type]
            _check_value(field.name, getattr(self, field.name), kinds[field.name])
        self._check()

    def _check(self) -> None:
        raise NotImplementedError

    def to_dict(self) -> dict[str, Any]:
        """The configuration as JSON types, with its ``model_type``.

        Fields of `later` are left out at their default: what was written before they came, and its fingerprint, stay.
        """
        values = json.loads(json.dumps(dataclasses.asdict(self)))  # type: ignore[call-overload]
        for field in dataclasses.fields(self):  # type: ignore[arg-type]
            if field.name in self.later and values[field.name] == field.default:
                del values[field.name]
        return {"model_type": self.model_type, **values}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Build from a ``config.json``'s contents.

        Raises:
            ValueError: a key that is no field of this configuration, or another model's configuration.
        """
        values = {key: value for key, value in values.items() if key not in HUB_KEYS}
        model_type = values.pop("model_type", cls.model_type)
        if model_type != cls.model_type:
            raise ValueError(f"this configuration is of model_type {_shown(model_type)}, not {cls.model_type!r}")
        known = [field.name for field in dataclasses.fields(cls)]  # type: ignore[arg-type]
        for key in values:
            if key not in known:
                close = difflib.get_close_matches(key, known, n=1)
                hint = f"; did you mean {close[0]!r}?" if close else ""
                raise ValueError(f"{cls.__name__} has no field {_shown(key)} (value {_shown(values[key])}){hint}")
        return cls(**values)


def _tuples(value: Any) -> Any:
    return tuple(_tuples(item) for item in value) if isinstance(value, list | tuple) else value


def _check_value(name: str, value: Any, kind: Any) -> None:
    """ValueError: the value is not of the field's type, or beyond what any model of this kind has."""
    if inner := get_args(kind):  # a tuple of any length
        if not isinstance(value, tuple) or not 1 <= len(value) <= _MOST_STAGES:
            raise ValueError(f"{name} is {_shown(value)}, not a list of 1 to {_MOST_STAGES} entries")
        for item in value:
            _check_value(name, item, inner[0])
    elif kind is int:
        least = 0 if name in _MAY_BE_ZERO or name.endswith(_LAYERS) else 1
        most = _MOST_LAYERS if name.endswith(_LAYERS) else _MOST_SIZE
        if type(value) is not int or not least <= value <= most:
            raise ValueError(f"{name} is {_shown(value)}, not a whole number from {least} to {most}")
    elif kind is float:
        if type(value) not in (int, float) or not abs(value) <= _MOST_NUMBER:
            raise ValueError(f"{name} is {_shown(value)}, not a number of at most {_MOST_NUMBER:g}")
    elif type(value) is not kind:
        raise ValueError(f"{name} is {_shown(value)}, not {'true or false' if kind is bool else 'a text'}")


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 100 else f"{text[:100]}..."


def require(name: str, value: Any, allowed: Any, why: str) -> None:
    if value != allowed:
        raise ValueError(f"{name} is {value!r}, but only {allowed!r} is supported: {why}")
