"""Checkpoints written to a folder, which holds the whole of one afterwards, or none that can be taken for one.

The file of weights takes its name last, and says its configuration itself. The one that it replaces goes before
anything beside it changes. Formats: the published Hugging Face layout (``config.json`` and ``model.safetensors``) and
Chatterbox's single file (see `chatterbox`); with either comes a model card.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from torch import Tensor

from s3gen import chatterbox, checkpoint
from s3gen.audio import TokenizerMel
from s3gen.card_mark import CARD, is_unedited, marked
from s3gen.checkpoint import CONFIG_FILE, CONFIG_KEY, WEIGHTS_FILE
from s3gen.config import S3GenConfig
from s3gen.weights_file import write_weights

FORMATS = ("huggingface", "chatterbox")


def layout(
    form: str, weights: Mapping[str, Tensor], config: S3GenConfig, mel: TokenizerMel
) -> tuple[str, Mapping[str, Tensor]]:
    """The name of a file of one of the `FORMATS`, and the weights as it holds them.

    Args:
        form: of `FORMATS`.
        weights: of a whole model, by published name.
        mel: the features of its tokenizer.

    Raises:
        ValueError: an unknown format, or one that cannot say this model.
    """
    if form not in FORMATS:
        raise ValueError(f"format is {form!r}, not one of {', '.join(FORMATS)}")
    if form == "huggingface":
        return WEIGHTS_FILE, weights
    return chatterbox.file_name(config), chatterbox.state_dict(weights, mel)


def save(
    folder: str | os.PathLike[str],
    weights: Mapping[str, Tensor],
    config: Mapping[str, Any],
    *,
    card: str,
    file: str = WEIGHTS_FILE,
) -> None:
    """Write a checkpoint; one of the same name is replaced.

    Args:
        folder: made if needed; ``~`` is the home folder.
        weights: what the file shall hold, by its own names.
        config: as JSON types; it goes into the file, and beside ``model.safetensors`` into ``config.json``.
        card: the text of README.md, which is written unless somebody has edited the one that is there.
        file: the name of the file.

    Raises:
        ValueError: `folder` is a file, holds a checkpoint of another name, or a folder in a file's place.
        OSError: the card that is there cannot be read, or the folder cannot be written.
    """
    path = Path(folder).expanduser()
    refuse_another(_names(path), file, str(folder))
    _refuse_folders(path, (file, CONFIG_FILE, CARD))
    left = () if may_replace(path / CARD) else (CARD,)  # asked before anything is taken away
    path.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=".", suffix=".part", dir=path) as part:
        _write(Path(part), weights, config, card, file)
        (path / file).unlink(missing_ok=True)
        for name in placing_order(os.listdir(part), file):
            if name not in left:
                os.replace(Path(part, name), path / name)
    with contextlib.suppress(OSError):  # not every file system lets a folder be flushed
        _flush(path)


def refuse_another(names: Iterable[str], file: str, where: str) -> None:
    """ValueError: among the names of a folder's files there is a checkpoint that is not called `file`."""
    if others := [name for name in checkpoint.present(names) if name != file]:
        raise ValueError(
            f"{where} holds another checkpoint, {', '.join(others)}: beside {file}, readers would have to be told "
            "which; give another folder"
        )


def placing_order(names: Iterable[str], file: str) -> list[str]:
    """The names of a checkpoint's files as they have to get their places: the weights last."""
    return sorted(names, key=lambda name: (name == file, name))


def may_replace(card: Path) -> bool:
    """Whether there is no card, or one that nobody has edited."""
    try:
        return is_unedited(card.read_bytes())
    except FileNotFoundError:
        return True


def _refuse_folders(path: Path, names: Iterable[str]) -> None:
    for name in names:
        if (path / name).is_dir():
            raise ValueError(f"{path / name} is a folder, where a checkpoint has a file; give another folder")


def _names(path: Path) -> list[str]:
    try:
        return os.listdir(path)
    except FileNotFoundError:
        return []
    except NotADirectoryError:
        raise ValueError(f"{path} is a file; give the folder that the checkpoint shall lie in") from None


def _write(part: Path, weights: Mapping[str, Tensor], config: Mapping[str, Any], card: str, file: str) -> None:
    write_weights(part / file, weights, {"format": "pt", CONFIG_KEY: json.dumps(config)})
    if file == WEIGHTS_FILE:
        (part / CONFIG_FILE).write_text(json.dumps(config, indent=2) + "\n")
    (part / CARD).write_bytes(marked(card.encode()))
    for name in os.listdir(part):
        _flush(part / name)


def _flush(path: Path) -> None:
    """To the disk, so that it outlasts a power cut."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
