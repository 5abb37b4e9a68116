"""Checkpoints: found on disk, at a URL or on the hub, read safely, and brought to one form.

Whatever the format, `read` returns weights under their published names (see `names`), weight norm folded, derived
buffers dropped; `assign` gives them to a model and refuses anything missing or left over. Nothing here unpickles code.

Formats: Chatterbox (``s3gen.safetensors``, ``s3gen.pt``), Chatterbox Turbo (``s3gen_meanflow.safetensors``), the
published Hugging Face layout (``config.json`` and ``model.safetensors``).
"""

from __future__ import annotations

import io
import json
import os
import re
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from s3gen import names

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
KNOWN_FILES = (WEIGHTS_FILE, "s3gen.safetensors", "s3gen.pt", "s3gen_meanflow.safetensors")
CONFIG_KEY = "s3gen_config"  # lets a single file of another size than the published one describe itself
_HUB_ID = re.compile(r"^[\w.-]+/[\w.-]+$")
_PLAIN_NAME = re.compile(r"[\w.-]+")  # stands in Markdown for itself
# (magnitude, direction) of weight norm in torch's two forms.
_WEIGHT_NORM = (
    (".parametrizations.weight.original0", ".parametrizations.weight.original1"),
    (".weight_g", ".weight_v"),
)
_NORMED = re.compile(r"\.(parametrizations\.weight\.original1|weight_v)$")
_LISTED = 12  # names that an error shows
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
        file: which file, when the folder holds several.
        storage_options: fsspec's options for a URL.

    Raises:
        FileNotFoundError: nothing is there, or no file of a known name.
        ValueError: several files, an unknown format, or a file that cannot be read as what it claims to be.
    """
    place = _locate(str(where), file, dict(storage_options or {}))
    name = _choose(place, file)
    weights, metadata = _parse(name, place)
    config = _json(place, metadata.get(CONFIG_KEY), name)
    found = _canonical(weights)
    origin = _origin(name, found)
    if is_hub_id(str(where)) and not Path(where).exists():
        origin += f" of `{where}`"
    return Checkpoint(weights=found, config=config, source=place.describe(name), origin=origin)


def present(files: Iterable[str]) -> list[str]:
    """The checkpoints that a folder with files of these names holds, each by the name that `file=` chooses it by."""
    there = set(files)
    return [name for name in KNOWN_FILES if name in there]


def _origin(name: str, weights: Mapping[str, Tensor]) -> str:
    turbo = "flow.decoder.estimator.time_embed_mixer.weight" in weights
    layout = "Hugging Face layout" if name == WEIGHTS_FILE else "Chatterbox Turbo" if turbo else "Chatterbox"
    return f"{layout}, `{name}`" if _PLAIN_NAME.fullmatch(name) else layout


@dataclass(frozen=True, slots=True)
class _Folder:
    """A local folder that checkpoints are read from."""

    path: Path
    only: str | None = None  # the file that was asked for by its path

    def names(self) -> list[str]:
        return [self.only] if self.only else sorted(entry.name for entry in self.path.iterdir() if entry.is_file())

    def has(self, name: str) -> bool:
        return (self.path / name).is_file()

    def read(self, name: str) -> bytes:
        return (self.path / name).read_bytes()

    def describe(self, name: str = "") -> str:
        return str(self.path / name)


@dataclass(frozen=True, slots=True)
class _Remote:
    """The same for a folder behind an fsspec URL."""

    filesystem: Any
    path: str
    url: str
    only: str | None = None

    def names(self) -> list[str]:
        if self.only:
            return [self.only]
        return sorted(PurePosixPath(entry).name for entry in self.filesystem.ls(self.path, detail=False))

    def has(self, name: str) -> bool:
        return _kind(self.filesystem, f"{self.path}/{name}") == "file"

    def read(self, name: str) -> bytes:
        return bytes(self.filesystem.cat_file(f"{self.path}/{name}"))

    def describe(self, name: str = "") -> str:
        return f"{self.url.rstrip('/')}/{name}" if name else self.url


def is_hub_id(where: str) -> bool:
    """Whether a text has the form ``owner/name``; there may be no such repository."""
    return _HUB_ID.match(where) is not None and not where.startswith(".")


def _locate(where: str, file: str | None, options: dict[str, Any]) -> _Folder | _Remote:
    if "://" in where:
        return _locate_remote(where, options)
    path = Path(where).expanduser()
    if path.is_dir():
        return _Folder(path)
    if path.is_file():
        return _Folder(path.parent, only=path.name)
    if is_hub_id(where):
        return _Folder(_download(where, file))
    raise FileNotFoundError(
        f"no checkpoint at {where!r}: not a file or folder here, and not of the form of a hub id (owner/name), "
        "a URL (s3://...), 'random:tiny' or 'random:full'"
    )


def _locate_remote(url: str, options: dict[str, Any]) -> _Remote:
    try:
        import fsspec
    except ImportError as error:
        raise ImportError(f"reading {url!r} needs fsspec: pip install fsspec (and s3fs for s3://)") from error
    filesystem, path = fsspec.core.url_to_fs(url, **options)
    path = path.rstrip("/")
    kind = _kind(filesystem, path)
    if kind == "file":
        parent, _, name = path.rpartition("/")
        return _Remote(filesystem, parent, url.rstrip("/").rpartition("/")[0], only=name)
    if kind != "directory":
        raise FileNotFoundError(f"no checkpoint at {url!r}: no such file or folder")
    return _Remote(filesystem, path, url)


def _kind(filesystem: Any, path: str) -> str | None:
    """ "file", "directory", or None where there is nothing; fsspec's own questions answer no to any error, too."""
    try:
        return str(filesystem.info(path)["type"])
    except FileNotFoundError:
        return None


def _download(hub_id: str, file: str | None) -> Path:
    """The hub's files of a checkpoint in its local cache: fetched when they are not there, offline when they are."""
    import huggingface_hub
    from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError

    wanted = [CONFIG_FILE, *([file] if file else KNOWN_FILES)]
    try:
        if file is None:
            wanted = _preferred(huggingface_hub.list_repo_files(hub_id), wanted)
        return Path(huggingface_hub.snapshot_download(hub_id, allow_patterns=wanted))
    except (RepositoryNotFoundError, HFValidationError) as error:
        raise FileNotFoundError(f"the hub has no readable repository {hub_id!r}: {error}") from error
    except Exception as error:  # without a network, the client raises whatever its transport does
        return _cached(hub_id, wanted, error)


def _preferred(published: Iterable[str], wanted: list[str]) -> list[str]:
    """Of one checkpoint published in both forms, the safetensors: publishers keep the other for old readers."""
    there = set(published)
    return [name for name in wanted if not (name.endswith(".pt") and name.replace(".pt", ".safetensors") in there)]


def _cached(hub_id: str, wanted: list[str], error: Exception) -> Path:
    import huggingface_hub
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        return Path(huggingface_hub.snapshot_download(hub_id, allow_patterns=wanted, local_files_only=True))
    except LocalEntryNotFoundError:
        raise FileNotFoundError(
            f"no checkpoint {hub_id!r}: there is no such file or folder here, it is not in the hub's local cache, "
            f"and the hub could not be reached ({type(error).__name__}: {error})"
        ) from error


def _choose(place: _Folder | _Remote, file: str | None) -> str:
    if file is not None:
        if PurePosixPath(file).name != file or not place.has(file):
            raise FileNotFoundError(f"no file {file!r} in {place.describe()}; there are: {_list(place.names())}")
        return file
    names_there = place.names()
    if place.only is not None:
        return place.only
    known = present(names_there)
    if not known:
        raise FileNotFoundError(
            f"no checkpoint in {place.describe()}: expected one of {', '.join(KNOWN_FILES)}; "
            f"there are: {_list(names_there)}"
        )
    if len(known) > 1:
        raise ValueError(
            f"{place.describe()} holds several checkpoints: {', '.join(known)}. Choose one with file= "
            "(in a job's configuration: model_file)"
        )
    return known[0]


def _parse(name: str, place: _Folder | _Remote) -> tuple[dict[str, Tensor], dict[str, str]]:
    if name.endswith(".safetensors"):
        return _parse_safetensors(name, place)
    if name.endswith((".pt", ".pth", ".bin")):
        return _parse_torch(name, place), {}
    raise ValueError(f"{place.describe(name)} is no checkpoint that can be read: expected .safetensors or .pt")


def _parse_safetensors(name: str, place: _Folder | _Remote) -> tuple[dict[str, Tensor], dict[str, str]]:
    try:
        if isinstance(place, _Folder):
            with safetensors.safe_open(place.path / name, framework="pt") as opened:
                return {key: opened.get_tensor(key) for key in opened.keys()}, opened.metadata() or {}  # noqa: SIM118
        data = place.read(name)
        weights = safetensors.torch.load(data)  # checks the header, which is JSON of no great depth from here on
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
        return weights, header.get("__metadata__", {})
    except (safetensors.SafetensorError, ValueError, KeyError, MemoryError, RuntimeError) as error:
        reason = str(error) or type(error).__name__
        raise ValueError(f"{place.describe(name)} is no readable safetensors file: {reason}") from error


def _parse_torch(name: str, place: _Folder | _Remote) -> dict[str, Tensor]:
    try:
        source = place.path / name if isinstance(place, _Folder) else io.BytesIO(place.read(name))
        _refuse_packed(source)
        state = torch.load(source, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged or hostile file can make the reader raise anything
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise ValueError(
            f"{place.describe(name)} cannot be read as plain weights ({reason}). Files that hold "
            "pickled code are refused; convert it to safetensors with the tool that wrote it"
        ) from error
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


def _json(place: _Folder | _Remote, embedded: str | None, name: str) -> dict[str, Any] | None:
    if embedded is None and (name != WEIGHTS_FILE or not place.has(CONFIG_FILE)):
        return None
    where = place.describe(CONFIG_FILE if embedded is None else name)
    text = place.read(CONFIG_FILE) if embedded is None else embedded
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
