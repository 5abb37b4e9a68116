"""What `datasets` makes of columns that are stored as JSON in tars, as a card's head tells it.

Untold, it guesses types from the first five rows, and fails where these have only nulls, empty lists or a NaN.
"""

from __future__ import annotations

from typing import Any

import pyarrow as pa


def json_features(columns: pa.Schema, suffix: str, rate: int) -> list[dict[str, Any]]:
    """The features of a shard's samples, in the simplified form that YAML has of them.

    Args:
        columns: that are stored beside the audio, as `json_value` writes them.
        suffix: of the audio files.
        rate: Hz.
    """
    audio = {"audio": {"sampling_rate": rate}}
    own = [{"name": name, "dtype": "string"} for name in ("__key__", "__url__")]
    return [{"name": suffix, "dtype": audio}, {"name": "json", **_struct(columns)}, *own]


def _struct(fields: pa.Schema | pa.StructType) -> dict[str, Any]:
    return {"struct": [{"name": field.name, **_feature(field.type)} for field in fields]}


def _feature(kind: pa.DataType) -> dict[str, Any]:
    """Of the form that `json_value` gives to a value of this type."""
    if pa.types.is_dictionary(kind):
        return _feature(kind.value_type)
    if isinstance(kind, pa.BaseExtensionType):
        return _feature(kind.storage_type)
    if pa.types.is_struct(kind):
        return _struct(kind)
    if pa.types.is_map(kind):
        key, item = _feature(kind.key_type), _feature(kind.item_type)
        return _list(_list(key if key == item else {"dtype": "string"}))
    if pa.types.is_nested(kind):
        return _list(_feature(kind.value_type))
    return {"dtype": _leaf(kind)}


def _list(feature: dict[str, Any]) -> dict[str, Any]:
    return {"list": feature["dtype"] if feature.keys() == {"dtype"} else feature}


def _leaf(kind: pa.DataType) -> str:
    if pa.types.is_uint64(kind):
        return "string"  # of digits: of larger integers than int64 has it makes none
    if pa.types.is_integer(kind) or pa.types.is_boolean(kind) or pa.types.is_null(kind):
        return str(kind)
    if pa.types.is_floating(kind):
        return "float64" if pa.types.is_float64(kind) else "float32"
    return "int64" if pa.types.is_duration(kind) else "string"
