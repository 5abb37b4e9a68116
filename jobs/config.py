"""The configuration of a job: YAML and ``--set key=value`` in, one checked and frozen ``JobConfig`` out.

Every key is documented in ``configs/local.yaml``. Every error is an ``InputError`` that names the key, shows the value
and says what would be right.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, field_validator
from pydantic_core import ErrorDetails

from jobs.errors import InputError
from jobs.urls import absolute_url, is_url

MAX_CONFIG_BYTES = 1 << 16  # ten times the longest of configs/
MAX_VALUES = 1_000  # keys and values; a configuration needs a hundred, and reading YAML takes 50 us each
MAX_DEPTH = 32  # of nested YAML; a configuration needs three
MAX_SHOWN = 200  # characters of a value in an error
SECRET_KEYS = ("storage_options",)


def _without_nul(value: str) -> str:
    if "\0" in value:
        raise ValueError(f"{_shown(value)} is refused: no path or name holds a NUL")
    return value


def _absolute(value: str) -> str:
    try:
        return absolute_url(value)
    except InputError as error:
        raise ValueError(str(error)) from None


def _absolute_model(value: str) -> str:
    """A path is made absolute; ``owner/name`` stays a hub id unless there is such a path here."""
    if value.startswith("random:"):
        return value
    local = value.startswith((".", "/", "~")) or os.path.exists(value)
    return _absolute(value) if local or is_url(value) or not value.strip() else value


Text = Annotated[str, Field(max_length=4_096), AfterValidator(_without_nul)]
Place = Annotated[Text, AfterValidator(_absolute)]
ModelName = Annotated[Text, AfterValidator(_absolute_model)]  # random:tiny, a folder, a file, a URL, or a hub id
Count = Annotated[int, Field(ge=1, le=10**9)]
Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]


class _Section(BaseModel):
    # Strict: a quoted number or a yes/no in a number's place is a mistake, not something to convert.
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class BatchConfig(_Section):
    """How much goes through the model at once."""

    max_frames: Count | Literal["auto"] = "auto"  # rows x longest row, in mel frames of 20 ms, prompt included


class EngineConfig(_Section):
    """How the model runs. All of it changes samples, so a resume refuses a change."""

    device: Literal["auto", "cpu", "cuda"] = "auto"  # "auto": a GPU where the worker has one, else the CPU
    # s3gen.precision.DTYPES, said again: reading a configuration does not wait for torch.
    dtype: Literal["float32", "tf32", "bfloat16", "float16"] = "float32"  # of the flow
    n_cfm_timesteps: Count | None = None  # steps of the flow's solver; None: the model's own
    # Use the first seconds of a voice; None: all of it.
    prompt_seconds: Annotated[float, Field(gt=0, le=3_600, allow_inf_nan=False)] | None = None
    compile: bool = False  # torch.compile, and CUDA graphs on a GPU


class ChecksConfig(_Section):
    """What a wave may measure, as jobs/checks.py defines it, without being suspect. None switches a check off."""

    max_silence: Share | None = 0.9  # of the frames
    max_clipped: Share | None = 0.001  # of the samples
    max_dc: Share | None = 0.03  # of full scale
    max_click: Annotated[float, Field(ge=0, le=2, allow_inf_nan=False)] | None = 0.1  # of full scale


class RunConfig(_Section):
    """How a job of any kind is run: the keys on which nothing depends that it makes."""

    workers: Count | Literal["auto"] = 1
    # On a GPU; 0.5 puts two workers on one.
    gpus_per_worker: Annotated[float, Field(gt=0, le=1_024, allow_inf_nan=False)] = 1.0
    ray_address: Text | None = None  # None: a Ray of this process's own
    # Without progress for so long, a worker is ended.
    stall_seconds: Annotated[float, Field(ge=1, le=10**6, allow_inf_nan=False)] = 1_800.0
    storage_options: dict[str, Any] = Field(default_factory=dict, repr=False)
    log_level: Literal["debug", "info", "warning", "error"] = "info"

    @field_validator("gpus_per_worker")
    @classmethod
    def _share_or_whole(cls, value: float) -> float:
        if value > 1 and value != int(value):
            raise ValueError(f"{value} is refused: give a share of one GPU (at most 1) or a whole number of them")
        return value

    @field_validator("ray_address")
    @classmethod
    def _without_credentials(cls, value: str | None) -> str | None:
        if value is not None and "@" in value:
            raise ValueError("an address with credentials would be stored; give host and port only")
        return value

    def frozen(self) -> dict[str, Any]:
        """What ``job.json`` keeps: everything but ``storage_options``, with absolute paths, as plain JSON values."""
        return self.model_dump(mode="json", exclude=set(SECRET_KEYS))


Config = TypeVar("Config", bound=RunConfig)


class JobConfig(RunConfig):
    """One job of speech, as its user wrote it, checked."""

    model: ModelName
    model_file: Text | None = None  # which file of a folder that holds several checkpoints
    manifest: Place  # path, glob or URL of Parquet
    voices: Place  # the voice table
    output: Place
    format: Literal["parquet", "webdataset"] = "parquet"
    audio: Literal["flac", "wav"] = "flac"
    shard_rows: Annotated[int, Field(ge=1, le=1_000_000)] = 512
    seed: Annotated[int, Field(ge=-(2**63), lt=2**64)] = 0
    start_fade: bool = True
    max_tokens: Count = 1_500
    on_bad_audio: Literal["keep", "fail_row"] = "keep"
    keep_inputs: bool = False
    batch: BatchConfig = BatchConfig()
    engine: EngineConfig = EngineConfig()
    checks: ChecksConfig = ChecksConfig()


def load_config(
    path: str | os.PathLike[str], overrides: Sequence[str] = (), *, storage_options: Mapping[str, Any] | None = None
) -> JobConfig:
    """The configuration of a YAML file with ``key=value`` changes (dotted keys, YAML values).

    Relative paths in it count from the current directory. ``storage_options`` goes before the file's own.

    Raises:
        InputError: with a message for the user.
    """
    return config_from(_read_mapping(path, "configuration"), overrides, storage_options=storage_options)


def config_from(
    values: Mapping[str, Any], overrides: Sequence[str] = (), *, storage_options: Mapping[str, Any] | None = None
) -> JobConfig:
    """Like ``load_config``, from a mapping: what ``JobConfig.frozen`` gave, for one."""
    return checked(JobConfig, values, overrides, storage_options=storage_options)


def checked(
    kind: type[Config],
    values: Mapping[str, Any],
    overrides: Sequence[str] = (),
    *,
    storage_options: Mapping[str, Any] | None = None,
) -> Config:
    """The same for the configuration of a job of any kind."""
    merged = _with_overrides(values, overrides)
    if storage_options:
        merged["storage_options"] = dict(storage_options)
    if isinstance(merged.get("storage_options"), str):
        merged["storage_options"] = load_storage_options(merged["storage_options"])
    if merged.get("storage_options", {}) is None:
        merged["storage_options"] = {}
    _refuse_unknown_keys(merged, kind, kind, "")
    _refuse_unbuilt(merged)
    try:
        return kind.model_validate(merged)
    except ValidationError as error:
        raise InputError("\n".join(_explain(error, kind))) from None


def load_storage_options(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The mapping in a YAML or JSON file of storage options; its values appear in no message."""
    return _read_mapping(path, "storage options")


# --- YAML -------------------------------------------------------------------------------------------------------------


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
                problem = f"the key {_shown(key.value)} is there twice"
            if problem is not None:
                raise yaml.constructor.ConstructorError(None, None, problem, key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def _parse_yaml(text: str, where: str, *, secret: bool = False) -> Any:
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


def _read_mapping(path: str | os.PathLike[str], what: str) -> dict[str, Any]:
    where = f"{what} {_legible(os.fspath(path))}"
    try:
        with Path(path).open("rb") as file:
            data = file.read(MAX_CONFIG_BYTES + 1)
        text = data.decode("utf-8-sig")
    except FileNotFoundError:
        raise InputError(f"{where}: no such file") from None
    except OSError as error:
        raise InputError(f"{where}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise InputError(f"{where}: not a text file in UTF-8") from None
    except ValueError:
        raise InputError(f"{where}: cannot be read: no path holds a NUL") from None
    if len(data) > MAX_CONFIG_BYTES:
        raise InputError(f"{where}: larger than {MAX_CONFIG_BYTES} bytes, this is no {what} file")
    values = _parse_yaml(text, where, secret=what != "configuration")
    if not isinstance(values, dict):
        raise InputError(f"{where}: must hold keys and values (key: value), this holds {_kind(values)}")
    return values


def _kind(value: Any) -> str:
    names = {"NoneType": "nothing", "list": "a list", "str": "a text"}
    return names.get(type(value).__name__, f"a {type(value).__name__}")


# --- overrides --------------------------------------------------------------------------------------------------------


def _with_overrides(values: Mapping[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    merged = _copied(values)
    for text in overrides:
        if len(text) > MAX_CONFIG_BYTES:
            raise InputError(f"--set {_legible(text)}: longer than {MAX_CONFIG_BYTES} characters")
        key, equals, value = text.partition("=")
        key = key.strip()
        if not equals or not all(key.split(".")):
            raise InputError(f"--set {_shown(key or text)}: give key=value, for example --set workers=4")
        if key.count(".") >= MAX_DEPTH:
            raise InputError(f"--set {_legible(key)}: nested too deeply")
        secret = key.split(".")[0] in SECRET_KEYS
        _assign(merged, key, _parse_yaml(value, f"--set {_legible(key)}", secret=secret))
    return merged


def _copied(values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: _copied(value) if isinstance(value, Mapping) else value for key, value in values.items()}


def _assign(values: dict[str, Any], key: str, value: Any) -> None:
    *parents, last = key.split(".")
    for depth, parent in enumerate(parents, 1):
        inner = values.setdefault(parent, {})
        if not isinstance(inner, dict):
            above = _legible(".".join(parents[:depth]))
            raise InputError(f"--set {_legible(key)}: {above} is a single value and has no keys below it")
        values = inner
    values[last] = value


# --- what is refused --------------------------------------------------------------------------------------------------

UNBUILT: dict[str, dict[str, str]] = {
    "format": {"lhotse": "give parquet or webdataset"},
    "audio": {"ogg": "give flac or wav", "mp3": "give flac or wav", "opus": "give flac or wav"},
}


def _refuse_unbuilt(values: Mapping[str, Any]) -> None:
    """Choices that are planned get an error of their own: they are neither typing mistakes nor silently ignored."""
    for key, choices in UNBUILT.items():
        value: Any = values
        for part in key.split("."):
            value = value.get(part) if isinstance(value, Mapping) else None
        if isinstance(value, str) and value in choices:
            raise InputError(f"{key}: {_shown(value)} is not supported yet; {choices[value]}")


def _refuse_unknown_keys(
    values: Mapping[str, Any], kind: type[BaseModel], section: type[BaseModel], prefix: str
) -> None:
    for key, value in values.items():
        if key not in section.model_fields:
            raise InputError(f"{prefix}{_legible(key)}: unknown key{_suggestion(key, kind, section, prefix)}")
        inner = section.model_fields[key].annotation
        if isinstance(inner, type) and issubclass(inner, BaseModel) and isinstance(value, Mapping):
            _refuse_unknown_keys(value, kind, inner, f"{prefix}{key}.")


def _suggestion(key: str, kind: type[BaseModel], section: type[BaseModel], prefix: str) -> str:
    everywhere = {f"{path}": path.rpartition(".")[2] for path in _all_keys(kind, "")}
    close = difflib.get_close_matches(f"{prefix}{key}", list(everywhere), n=1, cutoff=0.75)
    if not close:
        names = difflib.get_close_matches(key, list(everywhere.values()), n=1, cutoff=0.7)
        close = [path for path, name in everywhere.items() if names and name == names[0]]
    if close:
        return f"; did you mean {close[0]}?"
    names = sorted(section.model_fields, key=lambda name: name in RunConfig.model_fields)  # those of all jobs come last
    return f"; the keys {'of ' + prefix[:-1] if prefix else 'here'} are {', '.join(names)}"


def _all_keys(section: type[BaseModel], prefix: str) -> Iterator[str]:
    for name, field in section.model_fields.items():
        yield f"{prefix}{name}"
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from _all_keys(field.annotation, f"{prefix}{name}.")


def _explain(error: ValidationError, kind: type[BaseModel]) -> Iterator[str]:
    """One line per key, whichever of a union's members pydantic complained about."""
    found: dict[str, list[ErrorDetails]] = {}
    for item in error.errors(include_url=False):
        found.setdefault(_key_of(item["loc"], kind), []).append(item)
    for key, items in found.items():
        if items[0]["type"] == "value_error":  # the project's own words, with the value where it may be shown
            yield f"{key}: {items[0]['ctx']['error']}"
            continue
        silent = items[0]["type"] == "missing" or key.split(".")[0] in SECRET_KEYS
        shown = "" if silent else f"{_shown(items[0]['input'])} is refused: "
        wanted = " or ".join(dict.fromkeys(_reason(item).removeprefix("give ") for item in items))
        yield f"{key}: {shown}{'' if items[0]['type'] == 'missing' else 'give '}{wanted}{_meant(items)}"


# What else the dtypes are called, where it looks too little like the name.
OTHER_NAMES = {"fp32": "float32", "float": "float32", "float64": "float32", "fp16": "float16", "half": "float16"}


def _meant(items: Sequence[ErrorDetails]) -> str:
    """A suggestion, where one of a few choices was probably meant."""
    for item in items:
        if item["type"] == "literal_error" and isinstance(item["input"], str):
            choices = re.findall(r"'([^']*)'", str(item["ctx"]["expected"]))
            other = OTHER_NAMES.get(item["input"])
            close = [other] if other in choices else difflib.get_close_matches(item["input"], choices, n=1)
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


_PLAIN = {
    "missing": "this key is required",
    "int_type": "give a whole number",
    "int_from_float": "give a whole number",
    "float_type": "give a number",
    "bool_type": "give true or false",
    "string_type": "give a text (in quotes, if it looks like something else)",
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


def _shown(value: Any) -> str:
    try:
        text = "null" if value is None else str(value).lower() if isinstance(value, bool) else repr(value)
    except ValueError:  # Python writes no whole number of more than 4,300 digits
        text = "a number of thousands of digits"
    return text if len(text) <= MAX_SHOWN else text[:MAX_SHOWN] + "..."


def _legible(name: str) -> str:
    """A key or path as it is, or, where it is long or holds what no terminal should get, as ``_shown`` writes it."""
    return name if name.isprintable() and len(name) <= 2 * MAX_SHOWN else _shown(name)
