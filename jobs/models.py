"""Opening the model that a command names, with errors for its user."""

from __future__ import annotations

from jobs.errors import InputError
from jobs.storage import Options
from s3gen import S3GenModel


def open_model(where: str, file: str | None, device: str, options: Options | None) -> S3GenModel:
    """`S3GenModel.from_pretrained`.

    Raises:
        InputError: there is no such model, or it cannot be read.
    """
    try:
        return S3GenModel.from_pretrained(where, file=file, device=device, storage_options=dict(options or {}))
    except (ValueError, FileNotFoundError) as error:
        raise InputError(f"model: {error}") from error
