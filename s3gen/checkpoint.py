"""Checkpoints: found on disk, at a URL or on the hub, read safely, and brought to one form.

Whatever the format, `read` returns weights under their published names (see `names`), weight norm folded, derived
buffers dropped; `assign` gives them to a model and refuses anything missing or left over. Nothing here unpickles code.

Formats: Chatterbox (``s3gen.safetensors``, ``s3gen.pt``), Chatterbox Turbo (``s3gen_meanflow.safetensors``), the
published Hugging Face layout (``config.json`` and ``model.safetensors``), CosyVoice2's folder (see `s3gen.cosyvoice`).
"""

from __future__ import annotations

import io
import json
import os
import re
import zipfile
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from s3gen import cosyvoice, names
from s3gen.fields import HUB_KEYS
from s3gen.location import Folder, Remote, is_hub_id, locate
from s3gen.onnx_layers import Layer, read_layers

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
KNOWN_FILES = (WEIGHTS_FILE, "s3gen.safetensors", "s3gen.pt", "s3gen_meanflow.safetensors")
CHOICES = (*KNOWN_FILES, cosyvoice.FLOW_FILE)  # what `file=` chooses a whole model by, among files of known names
CONFIG_KEY = "s3gen_config"  # lets a single file of another size than the published one describe itself
_PLAIN_NAME = re.compile(r"[\w.-]+")  # stands in Markdown for itself
# (magnitude, direction) of weight norm in torch's two forms.
_WEIGHT_NORM = (
    (".parametrizations.weight.original0", ".parametrizations.weight.original1"),
    (".weight_g", ".weight_v"),
)
_NORMED = re.compile(r"\.(parametrizations\.weight\.original1|weight_v)$")
_LISTED = 12  # names that an error shows
_SHOWN = 80  # letters of an entry that an error shows
_MOST_CONFIG_BYTES = 1 << 20


@dataclass(frozen=True, kw_only=True, slots=True)
class Checkpoint:
    """Weights by published name, and the configuration that came with them, if any.

    Attributes:
        source: the path or URL that they were read from.
        origin: the format and the file in Markdown, without the path.
    """

    weights: dict[str, Tensor]
    config: dict[str, Any] | None
    source: str
    origin: str


def read(
    where: str | os.PathLike[str], *, file: str | None = None, storage_options: Mapping[str, Any] | None = None
) -> Checkpoint:
    """Read a checkpoint.

    Args:
        where: a folder, a file, an fsspec URL of either (fsspec must be installed), or a hub id.
        file: which file, when the folder holds several; ``flow.pt`` for CosyVoice2's folder, ``hift.pt`` for its
            vocoder alone.
        storage_options: fsspec's options for a URL.

    Raises:
        FileNotFoundError: nothing is there, no file of a known name, or not all of CosyVoice2's.
        ImportError: CosyVoice2's folder, and onnx is not installed; or a URL, and fsspec is not.
        ValueError: several files, an unknown format, a file that cannot be read as what it claims to be, or a
            ``config.json`` that contradicts the weights beside it.
    """
    place = locate(str(where), _wanted(file), alternatives=file is None, options=storage_options)
    name = _choose(place, file)
    config: dict[str, Any] | None
    if name in (cosyvoice.FLOW_FILE, cosyvoice.VOCODER_FILE):
        found, config = _cosyvoice(name, place)
    else:
        weights, metadata = _parse(name, place)
        config = _configuration(place, metadata.get(CONFIG_KEY), name)
        found = _canonical(weights)
    origin = _origin(name, found)
    if is_hub_id(str(where)) and not Path(where).exists():
        origin += f" of `{where}`"
    return Checkpoint(weights=found, config=config, source=place.describe(name), origin=origin)


def present(files: Iterable[str]) -> list[str]:
    """The checkpoints that a folder with files of these names holds, each by the name that `file=` chooses it by."""
    there = set(files)
    return [name for name in CHOICES if name in there]


def _wanted(file: str | None) -> list[str]:
    """The files that a checkpoint may be made of."""
    if file is None:
        return [CONFIG_FILE, *KNOWN_FILES, *cosyvoice.FILES]
    return [CONFIG_FILE, *(cosyvoice.FILES if file == cosyvoice.FLOW_FILE else [file])]


def _origin(name: str, weights: Mapping[str, Tensor]) -> str:
    if name in cosyvoice.FILES:
        return f"CosyVoice2, `{name}`"
    turbo = "flow.decoder.estimator.time_embed_mixer.weight" in weights
    layout = "Hugging Face layout" if name == WEIGHTS_FILE else "Chatterbox Turbo" if turbo else "Chatterbox"
    return f"{layout}, `{name}`" if _PLAIN_NAME.fullmatch(name) else layout


def _choose(place: Folder | Remote, file: str | None) -> str:
    if file is not None:
        if PurePosixPath(file).name != file or not place.has(file):
            raise FileNotFoundError(f"no file {file!r} in {place.describe()}; there are: {_list(place.names())}")
        return file
    names_there = place.names()
    if place.only is not None:
        return place.only
    known = present(names_there)
    if not known:
        vocoder = cosyvoice.VOCODER_FILE
        alone = f"; file={vocoder!r} reads the vocoder alone (HiFTNetModel)" if vocoder in names_there else ""
        raise FileNotFoundError(
            f"no checkpoint in {place.describe()}: expected one of {', '.join(KNOWN_FILES)}, or all of "
            f"{', '.join(cosyvoice.FILES)}; there are: {_list(names_there)}{alone}"
        )
    if len(known) > 1:
        raise ValueError(
            f"{place.describe()} holds several checkpoints: {', '.join(known)}. Choose one with file= "
            "(in a job's configuration: model_file)"
        )
    return known[0]


def _cosyvoice(name: str, place: Folder | Remote) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """CosyVoice2's folder, or its vocoder alone: weights and configuration."""
    if name == cosyvoice.VOCODER_FILE:
        vocoder = _canonical(cosyvoice.vocoder_weights(_parse_torch(name, place, aside=cosyvoice.TRAINING_COUNTERS)))
        return vocoder, _sizes(cosyvoice.vocoder_config, vocoder, f"{place.describe(name)} cannot be read as a vocoder")
    if missing := [file for file in cosyvoice.FILES if not place.has(file)]:
        raise FileNotFoundError(
            f"{place.describe()} holds no whole checkpoint of CosyVoice2: {', '.join(missing)} missing, "
            f"of {', '.join(cosyvoice.FILES)}"
        )
    weights: dict[str, Tensor] = {}
    # The graphs first: while one is read it is in memory twice.
    for file, named in (
        (cosyvoice.SPEAKER_FILE, cosyvoice.speaker_weights),
        (cosyvoice.TOKENIZER_FILE, cosyvoice.tokenizer_weights),
    ):
        weights |= named(_layers(file, place), place.describe(file))
    for file, plain in (
        (cosyvoice.FLOW_FILE, cosyvoice.flow_weights),
        (cosyvoice.VOCODER_FILE, cosyvoice.vocoder_weights),
    ):
        weights |= plain(_parse_torch(file, place, aside=cosyvoice.TRAINING_COUNTERS))
    found = _canonical(weights)
    return found, _sizes(cosyvoice.model_config, found, f"{place.describe()} cannot be read as a model")


def _sizes(
    config: Callable[[Mapping[str, Tensor]], dict[str, Any]], weights: Mapping[str, Tensor], failure: str
) -> dict[str, Any]:
    try:
        return config(weights)
    except ValueError as error:
        raise ValueError(f"{failure} of CosyVoice2: {error}") from error


def _layers(name: str, place: Folder | Remote) -> list[Layer]:
    return read_layers(place.read(name), source=place.describe(name), beside=place.read)


def _parse(name: str, place: Folder | Remote) -> tuple[dict[str, Tensor], dict[str, str]]:
    if name.endswith(".safetensors"):
        return _parse_safetensors(name, place)
    if name.endswith((".pt", ".pth", ".bin")):
        return _parse_torch(name, place), {}
    raise ValueError(f"{place.describe(name)} is no checkpoint that can be read: expected .safetensors or .pt")


def _parse_safetensors(name: str, place: Folder | Remote) -> tuple[dict[str, Tensor], dict[str, str]]:
    try:
        if isinstance(place, Folder):
            with safetensors.safe_open(place.path / name, framework="pt") as opened:
                return {key: opened.get_tensor(key) for key in opened.keys()}, opened.metadata() or {}  # noqa: SIM118
        data = place.read(name)
        weights = safetensors.torch.load(data)  # checks the header, which is JSON of no great depth from here on
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
        return weights, header.get("__metadata__", {})
    except (safetensors.SafetensorError, ValueError, KeyError, MemoryError, RuntimeError) as error:
        reason = str(error) or type(error).__name__
        raise ValueError(f"{place.describe(name)} is no readable safetensors file: {reason}") from error


def _parse_torch(name: str, place: Folder | Remote, aside: Collection[str] = ()) -> dict[str, Tensor]:
    """A state dictionary; numbers under the names `aside` are left out."""
    try:
        source = place.path / name if isinstance(place, Folder) else io.BytesIO(place.read(name))
        _refuse_packed(source)
        state = torch.load(source, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged or hostile file can make the reader raise anything
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise ValueError(
            f"{place.describe(name)} cannot be read as plain weights ({reason}). Files that hold "
            "pickled code are refused; convert it to safetensors with the tool that wrote it"
        ) from error
    if isinstance(state, Mapping):
        state = {key: value for key, value in state.items() if not (key in aside and isinstance(value, int))}
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        raise ValueError(f"{place.describe(name)} is not a state dictionary: its values must all be tensors")
    if strange := [str(key) for key, value in state.items() if not isinstance(key, str) or not _is_whole(value)]:
        raise ValueError(
            f"{place.describe(name)} holds {len(strange)} entries that are no plain tensors with all their values: "
            f"{_list(strange)}"
        )
    return dict(state)


def _refuse_packed(source: Path | io.BytesIO) -> None:
    """ValueError: a zip archive with compressed entries. Torch writes none; they may unfold to any size."""
    if zipfile.is_zipfile(source):
        with zipfile.ZipFile(source) as archive:
            if packed := [entry.filename for entry in archive.infolist() if entry.compress_type != zipfile.ZIP_STORED]:
                raise ValueError(f"its entry {packed[0]!r} is compressed")
    if not isinstance(source, Path):
        source.seek(0)


def _is_whole(value: Tensor) -> bool:
    """Whether each value of a tensor is stored: a view that repeats a few could claim any size."""
    if value.layout is not torch.strided or value.device.type != "cpu" or value.is_quantized:
        return False
    return value.numel() * value.element_size() <= value.untyped_storage().nbytes()


def _configuration(place: Folder | Remote, embedded: str | None, name: str) -> dict[str, Any] | None:
    """What the file says of itself, and ``config.json`` beside ``model.safetensors``: they must say the same."""
    within = None if embedded is None else _json(embedded, place.describe(name))
    if name != WEIGHTS_FILE or not place.has(CONFIG_FILE):
        return within
    beside = _json(place.read(CONFIG_FILE), place.describe(CONFIG_FILE))
    if within is not None:
        _refuse_difference(beside, within, place.describe(CONFIG_FILE), place.describe(name))
    return beside


def _refuse_difference(beside: Mapping[str, Any], within: Mapping[str, Any], config: str, weights: str) -> None:
    for key in sorted((beside.keys() | within.keys()) - HUB_KEYS):
        if key not in beside or key not in within or beside[key] != within[key]:
            here, there = (str(of.get(key, "nothing"))[:_SHOWN] for of in (beside, within))
            raise ValueError(
                f"{config} says {here} of {key[:_SHOWN]}, and {weights} says {there}: one of them was edited, or is "
                f"another model's. Without {CONFIG_FILE} the weights' own word counts"
            )


def _json(text: str | bytes, where: str) -> dict[str, Any]:
    if len(text) > _MOST_CONFIG_BYTES:
        raise ValueError(f"{where} has a configuration of {len(text)} bytes; {_MOST_CONFIG_BYTES} is the most")
    try:
        config = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where} holds no configuration in JSON: {error}") from error
    if not isinstance(config, dict):
        raise ValueError(f"{where} must hold a JSON object, not {type(config).__name__}")
    return config


def _canonical(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Published names, plain float32 weights, no derived buffers."""
    kept = {key: value for key, value in weights.items() if not names.is_derived(key)}
    folded: dict[str, Tensor] = {}
    for key, value in kept.items():
        magnitude = _partner(key, this=1)
        if magnitude is not None and magnitude in kept:
            folded[_NORMED.sub(".weight", key)] = _fold(key, kept[magnitude], value)
        elif _partner(key, this=0) not in kept:
            folded[key] = value
    found: dict[str, Tensor] = {}
    for key, value in folded.items():
        name = names.to_published(names.to_ours(key))
        if name in found:
            raise ValueError(f"{name} is there twice, once of them as {key}")
        found[name] = value.float() if value.is_floating_point() else value
    return found


def _partner(key: str, this: int) -> str | None:
    """The other half's key of a weight-normed weight, given its magnitude's (`this` = 0) or direction's (1)."""
    for pair in _WEIGHT_NORM:
        if key.endswith(pair[this]):
            return key.removesuffix(pair[this]) + pair[1 - this]
    return None


def _fold(key: str, magnitude: Tensor, direction: Tensor) -> Tensor:
    direction = direction.float()
    norm = torch.linalg.vector_norm(direction, dim=tuple(range(1, direction.dim())), keepdim=True)
    if magnitude.shape != norm.shape:
        raise ValueError(f"the magnitude of {key} is {tuple(magnitude.shape)}, not {tuple(norm.shape)}")
    return direction * (magnitude.float() / norm)


def published_shapes(model: nn.Module, prefix: str = "") -> dict[str, torch.Size]:
    """Published names and shapes of a model's weights; `prefix` stands before this model's own names."""
    return {name: weight.shape for name, weight in published_weights(model, prefix).items()}


def published_weights(model: nn.Module, prefix: str = "") -> dict[str, Tensor]:
    """A model's weights under their published names and in their published shapes."""
    weights = {}
    for key, weight in model.state_dict().items():
        ours = prefix + key
        weights[names.to_published(ours)] = weight[..., None] if names.is_pointwise(ours) else weight
    return weights


def assign(model: nn.Module, weights: Mapping[str, Tensor], *, source: str, prefix: str = "") -> None:
    """Give `weights` (published names) to `model`, all of them and nothing else.

    Raises:
        ValueError: names that are missing or unexpected, shapes or types that differ, or values that are not finite,
            listed.
    """
    shapes = published_shapes(model, prefix)
    problems = []
    if missing := sorted(shapes.keys() - weights.keys()):
        problems.append(f"{len(missing)} missing: {_list(missing)}")
    if unexpected := sorted(weights.keys() - shapes.keys()):
        problems.append(f"{len(unexpected)} unexpected: {_list(unexpected)}")
    different = [
        f"{name} is {tuple(weights[name].shape)}, not {tuple(shape)}"
        for name, shape in shapes.items()
        if name in weights and weights[name].shape != shape
    ]
    if different:
        problems.append(f"{len(different)} of another shape: {_list(different, '; ')}")
    if typed := [f"{name} is {w.dtype}" for name, w in weights.items() if name in shapes and w.dtype != torch.float32]:
        problems.append(f"{len(typed)} of another type: {_list(typed, '; ')}")
    elif broken := [name for name in shapes if name in weights and not bool(torch.isfinite(weights[name]).all())]:
        problems.append(f"{len(broken)} with values that are not finite: {_list(broken)}")
    if problems:
        raise ValueError(f"the weights of {source} do not fit this model. " + ". ".join(problems))
    state = {}
    for name, weight in weights.items():
        ours = names.to_ours(name)
        state[ours.removeprefix(prefix)] = weight[..., 0] if names.is_pointwise(ours) else weight
    model.load_state_dict(state, strict=True, assign=True)
    model.requires_grad_(False)


def _list(entries: list[str], separator: str = ", ") -> str:
    more = f"{separator}and {len(entries) - _LISTED} more" if len(entries) > _LISTED else ""
    return (separator.join(entries[:_LISTED]) + more) or "nothing"
