"""A file of weights in safetensors' format, of which equal weights make equal bytes.

The package safetensors writes the same, but for the order of the metadata, which changes from run to run.
Format: a length in 8 bytes, a header of that many bytes in JSON, the values (https://github.com/huggingface/safetensors).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

_TYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
}
_ALIGNMENT = 8  # bytes, of the values


def write_weights(path: Path, weights: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write a new file, one weight after the other.

    Raises:
        FileExistsError: there is one of that name.
    """
    # The widest type first: readers take a weight where it lies, and that has to be a multiple of its width.
    names = sorted(weights, key=lambda name: (-weights[name].element_size(), name))
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    end = 0
    for name in names:
        weight, start = weights[name], end
        end += weight.numel() * weight.element_size()
        header[name] = {"dtype": _TYPES[weight.dtype], "shape": list(weight.shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    with open(path, "xb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in names:
            values = weights[name].detach().cpu().contiguous()
            file.write(values.reshape(-1).view(torch.uint8).numpy().data)
