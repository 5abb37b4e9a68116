"""torchaudio's pure-Python parts, beside any torch.

`import torchaudio` loads a compiled extension that is bound to one build of torch. Beside a CPU torch, or a torch of
another version or CUDA, the import fails: OSError from the loader, RuntimeError from its CUDA version check. The
resampler and the Kaldi features are plain Python and need none of it, so where the import fails it is repeated with
an inert module in the extension's place. Whatever is already imported is used as it is.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

_PACKAGE = "torchaudio"
_EXTENSION = f"{_PACKAGE}._extension"


def _import_torchaudio() -> ModuleType:
    if _PACKAGE in sys.modules:
        return sys.modules[_PACKAGE]
    # torchaudio makes tensors while it is imported: under a device context they would land on that device for good.
    with torch.device("cpu"):
        try:
            return importlib.import_module(_PACKAGE)
        except ModuleNotFoundError as error:
            if error.name == _PACKAGE:
                raise
        except (OSError, RuntimeError, ImportError, AttributeError):
            pass  # each is a way in which the extension says that it is not for this torch
        return _import_without_extension()


def _import_without_extension() -> ModuleType:
    for name in [name for name in sys.modules if name == _PACKAGE or name.startswith(f"{_PACKAGE}.")]:
        del sys.modules[name]
    sys.modules[_EXTENSION] = _inert_extension()
    try:
        return importlib.import_module(_PACKAGE)
    except BaseException:
        del sys.modules[_EXTENSION]
        raise


def _inert_extension() -> ModuleType:
    """The names that torchaudio's own modules ask the extension for, saying that there is none."""
    extension = ModuleType(_EXTENSION, "In place of torchaudio's compiled extension, which is not for this torch.")
    extension.__dict__.update(
        _IS_TORCHAUDIO_EXT_AVAILABLE=False, _IS_ALIGN_AVAILABLE=False, fail_if_no_align=_refuse_to_align
    )
    return extension


def _refuse_to_align(function: Callable[..., Any]) -> Callable[..., Any]:
    def refuse(*_args: Any, **_kwargs: Any) -> None:
        raise RuntimeError(
            f"torchaudio's {function.__name__} needs its compiled extension, which is not for this torch"
        )

    return refuse


_torchaudio = _import_torchaudio()

Resample: type[torch.nn.Module] = _torchaudio.transforms.Resample
fbank: Callable[..., Tensor] = _torchaudio.compliance.kaldi.fbank
mel_banks: Callable[..., tuple[Tensor, Tensor]] = _torchaudio.compliance.kaldi.get_mel_banks
