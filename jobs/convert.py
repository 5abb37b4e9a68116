"""A checkpoint in another format: read, written beside its place, read again and compared, then put there.

One model is in memory at a time. What is at the destination can be taken for a checkpoint only when it is the whole of
one: the weights are the last to come, and those that they replace go before anything beside them changes.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import posixpath
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from jobs.card import may_write
from jobs.engine.models import open_model
from jobs.errors import InputError, JobError
from jobs.storage.credentials import secret_texts
from jobs.storage.faults import as_input, translated
from jobs.storage.folders import Folder
from jobs.storage.urls import Options, is_url
from s3gen import S3GenModel, checkpoint
from s3gen.card_mark import CARD
from s3gen.saving import placing_order, refuse_another


@dataclass(frozen=True, kw_only=True, slots=True)
class Converted:
    """What was made.

    Attributes:
        origin: of the source, in words.
        url: of the file of weights.
        bytes: that it has.
        fingerprint: of the model, the source's and the result's.
        voice_fingerprint: likewise of the parts that make voices.
    """

    origin: str
    url: str
    bytes: int
    fingerprint: str
    voice_fingerprint: str


def convert(
    source: str, destination: str, *, file: str | None, form: str, options: Options | None, overwrite: bool
) -> Converted:
    """Writes the checkpoint of `source` into the folder `destination`.

    Args:
        source: whatever `open_model` takes.
        destination: a local path or a URL.
        file: which checkpoint of a source that holds several.
        form: one of `s3gen.saving.FORMATS`.
        overwrite: whether a checkpoint of the same name may be there, and is replaced.

    Raises:
        InputError: no such source, a destination that holds it or another checkpoint, or a format that cannot say
            the model; nothing was written.
        StorageError: the source cannot be read or the destination cannot be written.
        JobError: the result is not the source's model; nothing was written.
    """
    target = Folder(destination, options)
    with as_input("DEST"):
        held = _held(target)
    if _is_source(source, file, target, held):
        raise InputError(f"{target.url} holds the source itself, and a failure would lose it; give another folder")
    if held and not overwrite:
        raise InputError(
            f"{target.url} holds a checkpoint already, {', '.join(held)}; give another folder, or --overwrite to "
            "replace it"
        )
    model = open_model(source, file, "cpu", options)
    with _staging(target, options) as staged:
        _save(model, staged, form)
        name = _weights_in(staged)
        _refuse_another(held, name, target)
        origin, prints = model.origin, (model.fingerprint(), model.voice_fingerprint())
        del model  # there is room for one
        _give_back_memory()
        _compare(staged, prints)
        _place(staged, name, target)
        size = (staged / name).stat().st_size
    return Converted(
        origin=origin or source, url=target.path(name), bytes=size, fingerprint=prints[0], voice_fingerprint=prints[1]
    )


def _held(target: Folder) -> list[str]:
    """The checkpoints at the destination."""
    if not is_url(target.url) and os.path.isfile(target.url):
        raise InputError(f"{target.url} is a file; give the folder that the checkpoint shall lie in")
    return checkpoint.present(name for name in checkpoint.CHOICES if target.exists(name))


def _is_source(source: str, file: str | None, target: Folder, held: list[str]) -> bool:
    """Whether one of the checkpoints at the destination is what is read."""
    names = [file] if file else held
    if is_url(target.url):
        place = _normal(source)
        read = [place, *(f"{place}/{name}" for name in names)]
        return any(_normal(target.path(name)) in read for name in held)
    path = os.path.expanduser(source.removeprefix("file://").removeprefix("local://"))
    found = [each for each in (path, *(os.path.join(path, name) for name in names)) if os.path.isfile(each)]
    return any(os.path.samefile(each, target.path(name)) for each in found for name in held)


def _normal(url: str) -> str:
    """One text for all that a store may take for the same place."""
    scheme, _, path = url.partition("://")
    return f"{scheme}://{posixpath.normpath(path).strip('/')}"


@contextlib.contextmanager
def _staging(target: Folder, options: Options | None) -> Iterator[Path]:
    """An empty local folder, gone afterwards: inside a local destination, where there has to be room anyway."""
    local = None if is_url(target.url) else target.url
    try:
        if local:
            os.makedirs(local, exist_ok=True)
        with TemporaryDirectory(prefix=".", suffix=".part", dir=local) as staged:
            yield Path(staged)
    except OSError as error:
        with as_input("DEST"):
            raise translated(f"cannot write {target.url}", error, secret_texts(options), uncertain=False) from None
    finally:
        if local:
            with contextlib.suppress(OSError):  # it is not empty
                os.rmdir(local)


def _save(model: S3GenModel, staged: Path, form: str) -> None:
    try:
        model.save_pretrained(staged, format=form)
    except ValueError as error:
        raise InputError(str(error)) from None


def _weights_in(staged: Path) -> str:
    """The name of the file of weights."""
    (name,) = checkpoint.present(os.listdir(staged))
    return name


def _refuse_another(held: list[str], name: str, target: Folder) -> None:
    try:
        refuse_another(held, name, target.url)
    except ValueError as error:
        raise InputError(str(error)) from None


def _give_back_memory() -> None:
    """What was freed goes back to the system: of a model that was not mapped from one file, glibc keeps most."""
    with contextlib.suppress(AttributeError, OSError, TypeError):  # another C library
        ctypes.CDLL(None).malloc_trim(0)


def _compare(staged: Path, prints: tuple[str, str]) -> None:
    """JobError: what was written is not the model of these fingerprints."""
    made = open_model(str(staged), None, "cpu", None)
    found = (made.fingerprint(), made.voice_fingerprint())
    if found != prints:
        raise JobError(
            f"what was written is another model than the source: fingerprints {', '.join(found)}, not "
            f"{', '.join(prints)}. Nothing was put at the destination; this machine's disk or memory may be at fault"
        )


def _place(staged: Path, name: str, target: Folder) -> None:
    left = () if may_write(target) else (CARD,)  # asked before anything is taken away
    target.delete(name)
    for each in placing_order(os.listdir(staged), name):
        if each not in left:
            target.upload(each, staged / each)
