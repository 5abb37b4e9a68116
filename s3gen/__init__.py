"""S3Gen: speech tokens and a reference voice to 24 kHz audio, in exact ragged batches."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from s3gen.config import HiFTNetConfig, S3GenConfig
    from s3gen.model import S3GenModel
    from s3gen.solver import Solver
    from s3gen.splitting import Splitting
    from s3gen.stream import Stream
    from s3gen.vocoder import HiFTNetModel
    from s3gen.voice import Voice

__all__ = ["HiFTNetConfig", "HiFTNetModel", "S3GenConfig", "S3GenModel", "Solver", "Splitting", "Stream", "Voice"]
__version__ = "0.1.0"

_HOMES = {
    "HiFTNetConfig": "s3gen.config",
    "HiFTNetModel": "s3gen.vocoder",
    "S3GenConfig": "s3gen.config",
    "S3GenModel": "s3gen.model",
    "Solver": "s3gen.solver",
    "Splitting": "s3gen.splitting",
    "Stream": "s3gen.stream",
    "Voice": "s3gen.voice",
}


def __getattr__(name: str) -> Any:
    # On first use: whoever only needs the constants does not wait seconds for torch.
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
