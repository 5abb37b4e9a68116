"""What a weight is called: one table between the published checkpoints' names and this package's.

The published names are those of chatterbox-tts 0.1.7's ``s3gen.safetensors``; the tokenizer, the speaker encoder and
most of the vocoder keep them. ``{}`` stands for a number.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable

_TABLE = (  # published, ours; a row sees what the rows above it made
    ("flow.decoder.estimator.", "flow.estimator."),
    ("flow.input_embedding.", "flow.token_embedding."),
    ("flow.spk_embed_affine_layer.", "flow.speaker_proj."),
    ("flow.encoder_proj.", "flow.mel_proj."),
    ("flow.encoder.embed.out.0.", "flow.encoder.embed.linear."),
    ("flow.encoder.embed.out.1.", "flow.encoder.embed.norm."),
    ("flow.encoder.up_embed.out.0.", "flow.encoder.up_embed.linear."),
    ("flow.encoder.up_embed.out.1.", "flow.encoder.up_embed.norm."),
    ("flow.encoder.pre_lookahead_layer.", "flow.encoder.lookahead."),
    ("flow.encoder.up_layer.", "flow.encoder.upsample."),
    ("flow.encoder.after_norm.", "flow.encoder.norm."),
    ("flow.encoder.encoders.{}.", "flow.encoder.blocks.{}."),
    ("flow.encoder.up_encoders.{}.", "flow.encoder.up_blocks.{}."),
    (".self_attn.linear_q.", ".attention.query."),
    (".self_attn.linear_k.", ".attention.key."),
    (".self_attn.linear_v.", ".attention.value."),
    (".self_attn.linear_out.", ".attention.out."),
    (".self_attn.linear_pos.", ".attention.position."),
    (".self_attn.pos_bias_u", ".attention.content_bias"),
    (".self_attn.pos_bias_v", ".attention.position_bias"),
    (".norm_mha.", ".attention_norm."),
    (".norm_ff.", ".feed_forward_norm."),
    (".feed_forward.w_1.", ".feed_forward.0."),
    (".feed_forward.w_2.", ".feed_forward.2."),
    ("flow.estimator.down_blocks.0.0.", "flow.estimator.down.resnet."),
    ("flow.estimator.down_blocks.0.1.{}.", "flow.estimator.down.blocks.{}."),
    ("flow.estimator.down_blocks.0.2.", "flow.estimator.down_conv."),
    ("flow.estimator.mid_blocks.{}.0.", "flow.estimator.mid.{}.resnet."),
    ("flow.estimator.mid_blocks.{}.1.{}.", "flow.estimator.mid.{}.blocks.{}."),
    ("flow.estimator.up_blocks.0.0.", "flow.estimator.up.resnet."),
    ("flow.estimator.up_blocks.0.1.{}.", "flow.estimator.up.blocks.{}."),
    ("flow.estimator.up_blocks.0.2.", "flow.estimator.up_conv."),
    ("flow.estimator.final_block.block.0.", "flow.estimator.final_conv."),
    ("flow.estimator.final_block.block.2.", "flow.estimator.final_norm."),
    (".resnet.mlp.1.", ".resnet.time_proj."),
    (".resnet.block1.block.0.", ".resnet.conv1."),
    (".resnet.block1.block.2.", ".resnet.norm1."),
    (".resnet.block2.block.0.", ".resnet.conv2."),
    (".resnet.block2.block.2.", ".resnet.norm2."),
    (".resnet.res_conv.", ".resnet.skip_proj."),
    (".blocks.{}.norm1.", ".blocks.{}.attn_norm."),
    (".blocks.{}.norm3.", ".blocks.{}.ff_norm."),
    (".blocks.{}.attn1.to_q.", ".blocks.{}.query."),
    (".blocks.{}.attn1.to_k.", ".blocks.{}.key."),
    (".blocks.{}.attn1.to_v.", ".blocks.{}.value."),
    (".blocks.{}.attn1.to_out.0.", ".blocks.{}.out."),
    (".blocks.{}.ff.net.0.proj.", ".blocks.{}.ff_in."),
    (".blocks.{}.ff.net.2.", ".blocks.{}.ff_out."),
    ("mel2wav.m_source.l_linear.", "mel2wav.source.linear."),
    ("mel2wav.f0_predictor.condnet.0.", "mel2wav.f0.convs.0."),
    ("mel2wav.f0_predictor.condnet.2.", "mel2wav.f0.convs.1."),
    ("mel2wav.f0_predictor.condnet.4.", "mel2wav.f0.convs.2."),
    ("mel2wav.f0_predictor.condnet.6.", "mel2wav.f0.convs.3."),
    ("mel2wav.f0_predictor.condnet.8.", "mel2wav.f0.convs.4."),
    ("mel2wav.f0_predictor.classifier.", "mel2wav.f0.classifier."),
)

_KEPT = 8192  # names whose other form is kept: a model has 2,500, and asks for each several times

# The Hugging Face layout may wrap the tokenizer once more.
_ALIASES = (("tokenizer.s3_model.", "tokenizer."),)

# Follow from the code, not from training: published files hold some of them, and none is needed.
_DERIVED = re.compile(r"(^|\.)(num_batches_tracked|_mel_filters|window|stft_window|trim_fade|rand_noise|freqs_cis|pe)$")

# Convolutions of one tap over channels that come last here, so that a linear layer is the same.
_POINTWISE = re.compile(r"^flow\.estimator\.(.*\.skip_proj|final_proj)\.weight$")


def is_derived(name: str) -> bool:
    """Whether a published name is a buffer that the code makes itself."""
    return bool(_DERIVED.search(name))


def is_pointwise(ours: str) -> bool:
    """Whether the published weight of this name is a one-tap convolution (out, in, 1), here a linear layer."""
    return bool(_POINTWISE.match(ours))


@functools.lru_cache(_KEPT)
def to_ours(published: str) -> str:
    """This package's name of a published weight; a name that no row of the table touches stays."""
    for alias, name in _ALIASES:
        if published.startswith(alias):
            published = name + published.removeprefix(alias)
    return _replace(published, _TO_OURS)


@functools.lru_cache(_KEPT)
def to_published(ours: str) -> str:
    """The published name of this package's weight; the inverse of `to_ours`."""
    return _replace(ours, _TO_PUBLISHED)


def _replace(name: str, rules: list[tuple[re.Pattern[str], str]]) -> str:
    for pattern, replacement in rules:
        name = pattern.sub(replacement, name, count=1)
    return name


def _rules(rows: Iterable[tuple[str, str]]) -> list[tuple[re.Pattern[str], str]]:
    return [_rule(source, target) for source, target in rows]


def _rule(source: str, target: str) -> tuple[re.Pattern[str], str]:
    anchor = "" if source.startswith(".") else "^"
    pattern = anchor + re.escape(source).replace(r"\{\}", r"(\d+)")
    replacement = target
    for group in range(1, target.count("{}") + 1):
        replacement = replacement.replace("{}", rf"\g<{group}>", 1)
    return re.compile(pattern), replacement


_TO_OURS = _rules(_TABLE)
# Inner names first: they were replaced last on the way in.
_TO_PUBLISHED = _rules((ours, published) for published, ours in reversed(_TABLE))
