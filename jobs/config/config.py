"""The configuration of a job: YAML and ``--set key=value`` in, one checked and frozen ``JobConfig`` out.

Every key is documented in ``configs/local.yaml``. Every error is an ``InputError`` that names the key, shows the value
and says what would be right.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
)

from jobs.config.plain_yaml import MAX_BYTES, MAX_DEPTH, legible, parse_yaml, read_mapping, shown
from jobs.config.refusals import SECRET_KEYS, explain, refuse_unknown_keys
from jobs.errors import InputError
from jobs.storage.urls import absolute_url, is_url
from s3gen.constants import SAMPLE_RATE, SILENCE_TOKEN, TOKEN_RATE, TOKENIZER_RATE, VOCAB_SIZE
from s3gen.splitting import Splitting


def _without_nul(value: str) -> str:
    if "\0" in value:
        raise ValueError(f"{shown(value)} is refused: no path or name holds a NUL")
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


def _folder(value: str) -> str:
    """Refuses a local place where no folder can be: one that is a file, or in a file."""
    if not is_url(value):
        # The nearest that is there.
        there = next(str(path) for path in (Path(value), *Path(value).parents) if os.path.exists(path))
        if not os.path.isdir(there):
            raise ValueError(f"{shown(there)} is a file; give a folder, which the job makes if it is not there")
    return value


def _stored_rate(value: int) -> int:
    if value not in STORED_RATES:
        raise ValueError(f"{value} is refused: give one of {', '.join(map(str, STORED_RATES))}")
    return value


def _interval(value: Any) -> Any:
    good = isinstance(value, list) and len(value) == 2 and all(type(each) in (int, float) for each in value)
    if value is not None and not (good and 0 <= value[0] < value[1] <= 1):
        raise ValueError(
            f"{shown(value)} is refused: give two numbers from 0 to 1 that rise, such as [0, 0.6], or null"
        )
    return None if value is None else [float(each) for each in value]


# Hz; 20 ms are whole samples of each.
STORED_RATES = (8_000, TOKENIZER_RATE, 22_050, SAMPLE_RATE, 32_000, 44_100, 48_000)
OPUS_RATES = (8_000, TOKENIZER_RATE, SAMPLE_RATE, 48_000)  # of these, what Opus has

Text = Annotated[str, Field(max_length=4_096), AfterValidator(_without_nul)]
Place = Annotated[Text, AfterValidator(_absolute)]
ModelName = Annotated[Text, AfterValidator(_absolute_model)]  # random:tiny, a folder, a file, a URL, or a hub id
Count = Annotated[int, Field(ge=1, le=10**9)]
Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Token = Annotated[int, Field(ge=0, lt=VOCAB_SIZE)]


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
    # s3gen.solver.METHODS and what Solver says of the rest, said again for the same reason.
    solver: Literal["euler", "midpoint", "heun"] = "euler"  # of the flow
    n_cfm_timesteps: Annotated[int, Field(ge=1, le=10_000)] | None = None  # its steps; None: the model's own
    guidance: Annotated[float, Field(ge=0, le=100, allow_inf_nan=False)] | None = None  # None: the model's own
    # Times of the flow, from 0 to 1, between which there is guidance; None: all.
    guidance_interval: Annotated[list[float] | None, BeforeValidator(_interval)] = None
    # Use the first seconds of a voice; None: all of it.
    prompt_seconds: Annotated[float, Field(gt=0, le=3_600, allow_inf_nan=False)] | None = None
    compile: bool = False  # torch.compile, and CUDA graphs on a GPU

    @property
    def solved(self) -> str:
        """How the flow is, in words."""
        steps = "the model's own number of" if self.n_cfm_timesteps is None else str(self.n_cfm_timesteps)
        words = [f"{steps} flow steps" + ("" if self.solver == "euler" else f" by {self.solver}")]
        words += [] if self.guidance is None else [f"guidance {self.guidance:g}"]
        interval = self.guidance_interval
        words += [] if interval is None else [f"guided from time {interval[0]:g} to {interval[1]:g}"]
        return ", ".join(words)


class ChecksConfig(_Section):
    """What a wave may measure (see jobs/measures/checks.py) without being suspect. None switches a check off."""

    max_silence: Share | None = 0.9  # of the frames
    max_clipped: Share | None = 0.001  # of the samples
    max_dc: Share | None = 0.03  # of full scale
    max_click: Annotated[float, Field(ge=0, le=2, allow_inf_nan=False)] | None = 0.1  # of full scale


class WaveConfig(_Section):
    """What is done to a wave on its way to the file. All of it changes what is stored, so a resume refuses a change."""

    # That the model gets after a row's own; each is the first of the job's silence_tokens.
    trailing_silence_tokens: Annotated[int, Field(ge=0, le=10 * TOKEN_RATE)] = 0
    # How far below the loudest frame silence is, which is cut off at both ends; None: nothing is.
    trim_db: Annotated[float, Field(gt=0, le=120, allow_inf_nan=False)] | None = None
    keep_silence: Annotated[float, Field(ge=0, le=10, allow_inf_nan=False)] = 0.1  # seconds of it, at either end
    sample_rate: Annotated[int, AfterValidator(_stored_rate)] = SAMPLE_RATE  # Hz, as stored
    watermark: bool = False

    @property
    def described(self) -> list[str]:
        """What is done beside a change of the rate, in words."""
        words = []
        if self.trailing_silence_tokens:
            words.append(f"silence tokens added to each row: {self.trailing_silence_tokens}")
        if self.trim_db is not None:
            words.append(
                f"trimmed where it begins or ends {self.trim_db:g} dB below its loudest 20 ms, but for "
                f"{self.keep_silence:g} s"
            )
        return [*words, "with the watermark of resemble-perth"] if self.watermark else words

    def made(self, samples: int) -> int:
        """Of so many stored samples, their length at the model's rate."""
        return samples * SAMPLE_RATE // self.sample_rate


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
    output: Annotated[Place, AfterValidator(_folder)]
    format: Literal["parquet", "webdataset", "lhotse"] = "parquet"
    audio: Literal["flac", "wav", "ogg", "mp3"] = "flac"
    shard_rows: Annotated[int, Field(ge=1, le=1_000_000)] = 512
    seed: Annotated[int, Field(ge=-(2**63), lt=2**64)] = 0
    start_fade: bool = True
    max_tokens: Count = 1_500
    on_long: Literal["fail_row", "split"] = "fail_row"  # of rows with more
    silence_tokens: list[Token] = Field(default=[SILENCE_TOKEN])  # where such rows are best cut
    on_bad_audio: Literal["keep", "fail_row"] = "keep"
    mos: Literal["dnsmos"] | None = None  # what foresees listeners' opinions; None: nothing does
    keep_inputs: bool = False
    batch: BatchConfig = BatchConfig()
    engine: EngineConfig = EngineConfig()
    checks: ChecksConfig = ChecksConfig()
    wave: WaveConfig = WaveConfig()

    @field_validator("on_long")
    @classmethod
    def _leaves_room_for_pieces(cls, value: str, info: ValidationInfo) -> str:
        if value == "split" and "max_tokens" in info.data:
            Splitting(max_tokens=info.data["max_tokens"])
        return value

    @field_validator("wave")
    @classmethod
    def _fits_the_rest(cls, value: WaveConfig, info: ValidationInfo) -> WaveConfig:
        if info.data.get("audio") == "ogg" and value.sample_rate not in OPUS_RATES:
            raise ValueError(
                f"sample_rate {value.sample_rate} is refused: with audio: ogg give one of "
                f"{', '.join(map(str, OPUS_RATES))}, or choose another audio"
            )
        if value.trailing_silence_tokens and info.data.get("silence_tokens") == []:
            raise ValueError(
                f"trailing_silence_tokens {value.trailing_silence_tokens} is refused: silence_tokens is empty, and its "
                "first is what is added"
            )
        return value

    @property
    def tail(self) -> tuple[int, ...]:
        """The tokens that come after those of each row."""
        return tuple(self.silence_tokens[:1]) * self.wave.trailing_silence_tokens

    @property
    def splitting(self) -> Splitting | None:
        """How rows that are too long are cut; None where they fail."""
        if self.on_long == "fail_row":
            return None
        return Splitting(max_tokens=self.max_tokens, silence_tokens=tuple(self.silence_tokens))


def load_config(
    path: str | os.PathLike[str], overrides: Sequence[str] = (), *, storage_options: Mapping[str, Any] | None = None
) -> JobConfig:
    """The configuration of a YAML file with ``key=value`` changes (dotted keys, YAML values).

    Relative paths in it count from the current directory. ``storage_options`` goes before the file's own.

    Raises:
        InputError: with a message for the user.
    """
    return config_from(read_mapping(path, "configuration"), overrides, storage_options=storage_options)


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
    refuse_unknown_keys(merged, kind)
    try:
        return kind.model_validate(merged)
    except ValidationError as error:
        raise InputError("\n".join(explain(error, kind))) from None


def load_storage_options(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The mapping in a YAML or JSON file of storage options; its values appear in no message."""
    return read_mapping(path, "storage options")


def _with_overrides(values: Mapping[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    merged = _copied(values)
    for text in overrides:
        if len(text) > MAX_BYTES:
            raise InputError(f"--set {legible(text)}: longer than {MAX_BYTES} characters")
        key, equals, value = text.partition("=")
        key = key.strip()
        if not equals or not all(key.split(".")):
            raise InputError(f"--set {shown(key or text)}: give key=value, for example --set workers=4")
        if key.count(".") >= MAX_DEPTH:
            raise InputError(f"--set {legible(key)}: nested too deeply")
        secret = key.split(".")[0] in SECRET_KEYS
        _assign(merged, key, parse_yaml(value, f"--set {legible(key)}", secret=secret))
    return merged


def _copied(values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: _copied(value) if isinstance(value, Mapping) else value for key, value in values.items()}


def _assign(values: dict[str, Any], key: str, value: Any) -> None:
    *parents, last = key.split(".")
    for depth, parent in enumerate(parents, 1):
        inner = values.setdefault(parent, {})
        if not isinstance(inner, dict):
            above = legible(".".join(parents[:depth]))
            raise InputError(f"--set {legible(key)}: {above} is a single value and has no keys below it")
        values = inner
    values[last] = value
