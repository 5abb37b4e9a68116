"""Chatterbox's own form of the weights: one file, a state dict as its code expects it.

Reference: chatterbox-tts 0.1.7, ``tts.py`` and ``tts_turbo.py``. The one loads leniently, so that whatever the file
lacked would stay random and be heard; the other strictly. So nothing is left out: weight norm comes in its two parts,
and what the code could make itself is there.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import torch
from torch import Tensor

from s3gen.audio import TokenizerMel
from s3gen.config import S3GenConfig

FILE, TURBO_FILE = "s3gen.safetensors", "s3gen_meanflow.safetensors"
_MAGNITUDE, _DIRECTION = ".parametrizations.weight.original0", ".parametrizations.weight.original1"
_NORMED_PARTS = ("conv_pre", "conv_post", "ups", "resblocks", "source_resblocks", "f0_predictor.condnet")
_NORMED = tuple(f"mel2wav.{part}." for part in _NORMED_PARTS)
_IN_TRAINING = frozenset({"encoder_dropout_rate", "cfm_sigma_min"})
# What its code has fixed and no weight's shape tells: it would load another model's weights and play them wrongly.
_FIXED = frozenset({"cfm_t_scheduler", "cfm_inference_cfg_rate", "vocoder_harmonic_source", "encode_lookahead"})
_HEADS = frozenset({"tokenizer_heads", "decoder_num_heads", "decoder_attention_head_dim"})
# How many layers of a kind that do not change another's width: loaded leniently, some stay random or are dropped.
_DEPTHS = frozenset(
    {"encoder_num_blocks", "encoder_num_up_blocks", "decoder_n_blocks", "decoder_num_mid_blocks", "tokenizer_layers"}
)


def file_name(config: S3GenConfig) -> str:
    """What the file of such a model is called.

    Raises:
        ValueError: Chatterbox's code would play this model wrongly; the fields that differ are listed.
    """
    own = S3GenConfig(meanflow=config.meanflow)
    names = {field.name for field in dataclasses.fields(config)} - _IN_TRAINING
    differing = {name for name in names if getattr(config, name) != getattr(own, name)}
    # Other head counts and depths show where a width differs too, and only there; depths also where all must be there.
    silent = _HEADS if config.meanflow else _HEADS | _DEPTHS
    unseen = differing & _FIXED or (differing if differing <= silent else set())
    if unseen:
        shown = ", ".join(f"{name} {getattr(config, name)!r}" for name in sorted(unseen))
        raise ValueError(
            f"Chatterbox's format cannot say {shown}, and its code would play this model wrongly; "
            "save it in the Hugging Face layout (format 'huggingface')"
        )
    return TURBO_FILE if config.meanflow else FILE


def state_dict(weights: Mapping[str, Tensor], mel: TokenizerMel) -> dict[str, Tensor]:
    """What the file holds.

    Args:
        weights: by published name.
        mel: the features of the model's tokenizer.
    """
    state: dict[str, Tensor] = {"tokenizer._mel_filters": mel.filters, "tokenizer.window": mel.window}
    for name, weight in weights.items():
        if name.startswith(_NORMED) and name.endswith(".weight"):
            layer = name.removesuffix(".weight")
            state[layer + _MAGNITUDE], state[layer + _DIRECTION] = _parts(weight)
        else:
            state[name] = weight
        if name.endswith(".running_mean"):
            state[name.removesuffix("running_mean") + "num_batches_tracked"] = torch.tensor(0)
    return state


def _parts(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Magnitude and direction that make exactly this weight again: the direction's length is the magnitude."""
    # As `checkpoint` will find the length: a GPU's sum, or one in float64, would differ in its last bit.
    direction = weight.detach().cpu().float().contiguous()
    magnitude = torch.linalg.vector_norm(direction, dim=tuple(range(1, weight.dim())), keepdim=True)
    # A direction of no length would be divided by zero.
    return magnitude, torch.where(magnitude == 0, torch.ones(()), direction)
