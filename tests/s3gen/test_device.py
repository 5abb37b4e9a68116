"""Work on a GPU is queued, never waited for: shown on torch's meta device, which has shapes and types but no values.

Whoever reads a value there, to branch on it, to index by it or to copy it to the host, fails.
"""

from __future__ import annotations

import pytest
import torch

from s3gen import S3GenModel, attention, lean
from s3gen.packing import Packing
from s3gen.precision import DTYPES, HALF_TYPES
from s3gen.ragged import rows_on_device
from tests.conftest import random_tokens

TOKENS = (40, 7, 60)


@pytest.mark.parametrize("dtype", DTYPES)
def test_nothing_on_the_way_from_tokens_to_waves_reads_a_value_back(voices, dtype, monkeypatch):
    model = S3GenModel.from_pretrained("random:tiny").prepare(dtype=dtype).to("meta")
    if dtype in HALF_TYPES:  # CUDA's kernel, of which meta knows nothing
        monkeypatch.setattr(attention, "varlen_attn", lambda query, *rest: torch.empty_like(query))
        monkeypatch.setattr(
            lean, "attend", lambda qkv, heads, packing, _: attention.variable_length(qkv, heads, packing)
        )
    waves = model.synthesize([random_tokens(n, n) for n in TOKENS], voices, [1, 2, 3])
    assert [(tuple(wave.shape), wave.dtype) for wave in waves] == [((960 * n,), torch.float32) for n in TOKENS]
    assert {wave.device.type for wave in waves} == {"meta"}


def test_torch_s_kernel_is_called_otherwise_than_it_wants():
    packing = Packing([3, 5], torch.device("cpu"))
    attended = attention.variable_length(
        torch.empty(packing.size, 3 * 4 * 16, dtype=torch.bfloat16, device="meta"), 4, packing
    )
    assert (tuple(attended.shape), attended.dtype) == ((packing.size, 4 * 16), torch.bfloat16)


def test_the_meta_device_would_show_it():
    with pytest.raises(RuntimeError):
        torch.zeros(1, device="meta").item()
    with pytest.raises((RuntimeError, NotImplementedError)):
        torch.zeros(3, device="meta").nonzero()


def test_rows_move_in_one_piece_and_come_out_as_they_were():
    rows = [torch.rand(n, 2) for n in (3, 1, 2)]
    assert all(torch.equal(a, b) for a, b in zip(rows_on_device(rows, torch.device("cpu")), rows, strict=True))
    moved = rows_on_device(rows, torch.device("meta"))
    assert [(tuple(row.shape), row.device.type) for row in moved] == [((n, 2), "meta") for n in (3, 1, 2)]
