"""CosyVoice2's folder: flow and vocoder as state dicts, speaker encoder and tokenizer as ONNX graphs.

What each file holds, brought to the published names (see `s3gen.names`), and the sizes that follow from the weights:
the folder describes itself in no form that is safe to read.

References: FunAudioLLM/CosyVoice at ace7c47f (``cosyvoice/cli/cosyvoice.py``, ``examples/libritts/cosyvoice2``); the
orders of the graphs are those in which chatterbox-tts 0.1.7's ``models/s3gen/xvector.py`` and s3tokenizer 0.3.0's
``model_v2.py`` compute.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from s3gen.campplus import NORM_EPS
from s3gen.config import S3GenConfig
from s3gen.onnx_layers import Layer, Layers

FLOW_FILE = "flow.pt"
VOCODER_FILE = "hift.pt"
SPEAKER_FILE = "campplus.onnx"
TOKENIZER_FILE = "speech_tokenizer_v2.onnx"
FILES = (FLOW_FILE, VOCODER_FILE, SPEAKER_FILE, TOKENIZER_FILE)
TRAINING_COUNTERS = ("epoch", "step")  # whole numbers that training leaves among the weights

_GENERATOR, _DISCRIMINATOR = "generator.", "discriminator."  # of a vocoder saved by its training
_FORMAT: dict[str, Any] = {"vocoder_harmonic_source": "sinegen2", "encode_lookahead": False}
_HEAD_WIDTH = 64  # of attention in estimator and tokenizer: no weight tells it
_DENSE_TAPS = 3
_DILATIONS = (1, 2, 2)  # of the speaker encoder's dense blocks
_SPEAKER, _TOKENIZER = "speaker_encoder.", "tokenizer."

_SIZES = (  # field, the weight that has this size, on which axis
    ("vocab_size", "flow.input_embedding.weight", 0),
    ("token_embed_dim", "flow.input_embedding.weight", 1),
    ("speaker_embed_dim", "flow.spk_embed_affine_layer.weight", 1),
    ("encoder_output_size", "flow.encoder_proj.weight", 1),
    ("encoder_attention_heads", "flow.encoder.encoders.0.self_attn.pos_bias_u", 0),
    ("encoder_linear_units", "flow.encoder.encoders.0.feed_forward.w_1.weight", 0),
    ("tokenizer_dim", "tokenizer.encoder.conv1.weight", 0),
    ("tokenizer_mels", "tokenizer.encoder.conv1.weight", 1),
    ("speaker_head_channels", "speaker_encoder.head.conv1.weight", 0),
    ("speaker_init_channels", "speaker_encoder.xvector.tdnn.linear.weight", 0),
    ("speaker_growth", "speaker_encoder.xvector.block1.tdnnd1.cam_layer.linear_local.weight", 0),
    ("vocoder_base_channels", "mel2wav.conv_pre.weight", 0),
    ("vocoder_f0_channels", "mel2wav.f0_predictor.condnet.0.weight", 0),
)
_COUNTS = (  # field, the names that are counted
    ("encoder_num_blocks", r"flow\.encoder\.encoders\.(\d+)\."),
    ("encoder_num_up_blocks", r"flow\.encoder\.up_encoders\.(\d+)\."),
    ("decoder_n_blocks", r"flow\.decoder\.estimator\.down_blocks\.0\.1\.(\d+)\."),
    ("decoder_num_mid_blocks", r"flow\.decoder\.estimator\.mid_blocks\.(\d+)\."),
    ("tokenizer_layers", r"tokenizer\.encoder\.blocks\.(\d+)\."),
)


def flow_weights(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """``flow.pt``'s weights by published name."""
    return {f"flow.{name}": weight for name, weight in state.items()}


def vocoder_weights(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """``hift.pt``'s weights by published name: the vocoder as published, or as its training leaves it."""
    if any(name.startswith(_GENERATOR) for name in state):
        state = {name: weight for name, weight in state.items() if not name.startswith(_DISCRIMINATOR)}
    return {f"mel2wav.{name.removeprefix(_GENERATOR)}": weight for name, weight in state.items()}


def tokenizer_weights(found: Sequence[Layer], source: str) -> dict[str, Tensor]:
    """The tokenizer's weights by published name, from the layers of its graph; `source` names the file in errors.

    Raises:
        ValueError: the graph is built differently.
    """
    layers, weights = Layers(found, source), _Named(_TOKENIZER)
    weights.put("encoder.conv1", layers.take("conv", "encoder.conv1", stride=2))
    weights.put("encoder.conv2", layers.take("conv", "encoder.conv2", stride=2))
    block = 0
    while layers.next_is("layer_norm"):
        _take_tokenizer_block(layers, weights, f"encoder.blocks.{block}")
        block += 1
    projection = "quantizer._codebook.project_down"
    weights.put(projection, layers.take("linear", projection))
    layers.finish()
    return weights.tensors


def _take_tokenizer_block(layers: Layers, weights: _Named, block: str) -> None:
    weights.put(f"{block}.attn_ln", layers.take("layer_norm", f"{block}.attn_ln"))
    for name in ("query", "key", "value"):
        layer = layers.take("linear", f"{block}.attn.{name}")
        if (layer.bias is None) != (name == "key"):
            # The key's alone has none: it would cancel out in the softmax. So it tells whether the order is as assumed.
            raise ValueError(f"{layers.source} is not built as expected: {layer} cannot be {block}.attn.{name}")
        weights.put(f"{block}.attn.{name}", layer)
    # The memory over the values may be computed before the attention's output or behind it.
    behind = layers.next_is("linear")
    for kind, name in (("linear", "out"), ("conv", "fsmn_block"))[:: 1 if behind else -1]:
        weights.put(f"{block}.attn.{name}", layers.take(kind, f"{block}.attn.{name}"))
    weights.put(f"{block}.mlp_ln", layers.take("layer_norm", f"{block}.mlp_ln"))
    weights.put(f"{block}.mlp.0", layers.take("linear", f"{block}.mlp.0"))
    weights.put(f"{block}.mlp.2", layers.take("linear", f"{block}.mlp.2"))


def speaker_weights(found: Sequence[Layer], source: str) -> dict[str, Tensor]:
    """The same of the speaker encoder; batch norms may be folded into convolutions.

    Raises:
        ValueError: the graph is built differently.
    """
    layers, weights = Layers(found, source), _Named(_SPEAKER)
    _take_head(layers, weights)
    folded = _take_normed(layers, weights, "xvector.tdnn.linear", "xvector.tdnn.nonlinear.batchnorm", stride=2)
    for number, dilation in enumerate(_DILATIONS, start=1):
        count = 0
        while _is_dense(layers, folded):
            count += 1
            _take_dense_layer(layers, weights, f"xvector.block{number}.tdnnd{count}", dilation)
        transit = f"xvector.transit{number}"
        weights.put_norm(f"{transit}.nonlinear.batchnorm", layers.take("batch_norm", f"{transit}.nonlinear"))
        if number < len(_DILATIONS):
            weights.put(f"{transit}.linear", layers.take("conv", f"{transit}.linear"))
    _take_normed(layers, weights, "xvector.transit3.linear", "xvector.out_nonlinear.batchnorm")
    _take_normed(layers, weights, "xvector.dense.linear", "xvector.dense.nonlinear.batchnorm", affine=False)
    layers.finish()
    return weights.tensors


def _take_head(layers: Layers, weights: _Named) -> None:
    _take_normed(layers, weights, "head.conv1", "head.bn1")
    for stage in ("head.layer1", "head.layer2"):
        for block, stride in ((f"{stage}.0", 2), (f"{stage}.1", 1)):
            _take_normed(layers, weights, f"{block}.conv1", f"{block}.bn1", stride=stride)
            _take_normed(layers, weights, f"{block}.conv2", f"{block}.bn2")
            if stride != 1:
                _take_normed(layers, weights, f"{block}.shortcut.0", f"{block}.shortcut.1", stride=stride)
    _take_normed(layers, weights, "head.conv2", "head.bn2", stride=2)


def _is_dense(layers: Layers, folded: bool) -> bool:
    """Whether a dense layer comes, and not a transit: both begin with a norm and a convolution of one tap."""
    # Behind these (and the second norm, where it is not folded in) a dense layer has three convolutions in a row.
    behind = [layers.peek(place) for place in range(2 if folded else 3, 5 if folded else 6)]
    return all(layer is not None and layer.kind == "conv" for layer in behind)


def _take_dense_layer(layers: Layers, weights: _Named, name: str, dilation: int) -> None:
    weights.put_norm(f"{name}.nonlinear1.batchnorm", layers.take("batch_norm", f"{name}.nonlinear1"))
    _take_normed(layers, weights, f"{name}.linear1", f"{name}.nonlinear2.batchnorm")
    context = iter(("linear1", "linear2"))
    for _ in range(3):  # the local convolution may be computed before, between or behind those of the context
        layer = layers.peek()
        local = layer is not None and layer.weight.shape[2:] == (_DENSE_TAPS,)
        part = f"{name}.cam_layer.{'linear_local' if local else next(context, 'linear_local')}"
        weights.put(part, layers.take("conv", part, dilation=dilation if local else 1))


def _take_normed(
    layers: Layers, weights: _Named, conv: str, norm: str, *, stride: int = 1, affine: bool = True
) -> bool:
    """A convolution without a bias of its own, and the batch norm behind it; whether that is folded in, as a bias."""
    layer = layers.take("conv", conv, stride=stride)
    weights.tensors[f"{_SPEAKER}{conv}.weight"] = layer.weight
    if layer.bias is not None:
        weights.put_folded_norm(norm, layer.bias, affine=affine)
    else:
        weights.put_norm(norm, layers.take("batch_norm", norm), affine=affine)
    return layer.bias is not None


class _Named:
    """Weights by published name, filled layer by layer.

    Args:
        prefix: before each name.
    """

    def __init__(self, prefix: str) -> None:
        self.prefix = prefix
        self.tensors: dict[str, Tensor] = {}

    def put(self, name: str, layer: Layer) -> None:
        self.tensors[f"{self.prefix}{name}.weight"] = layer.weight
        if layer.bias is not None:
            self.tensors[f"{self.prefix}{name}.bias"] = layer.bias

    def put_norm(self, name: str, layer: Layer, *, affine: bool = True) -> None:
        """A batch norm; ValueError where it scales or shifts and, not being `affine`, must not."""
        weight, bias, mean, variance = layer.weight, layer.bias, layer.mean, layer.variance
        if bias is None or mean is None or variance is None:
            raise ValueError(f"{layer} is no whole batch norm")
        if not affine and (bool((weight != 1).any()) or bool((bias != 0).any())):
            raise ValueError(f"{layer} scales or shifts, but {name} has no weights for that")
        self._put_norm(name, weight, bias, mean, variance, affine=affine)

    def put_folded_norm(self, name: str, bias: Tensor, *, affine: bool) -> None:
        """The batch norm that adds this bias and does nothing else."""
        zero, one = torch.zeros_like(bias), torch.ones_like(bias)
        mean, shift = (zero, bias) if affine else (-bias, zero)
        self._put_norm(name, one, shift, mean, one - NORM_EPS, affine=affine)

    def _put_norm(
        self, name: str, weight: Tensor, bias: Tensor, mean: Tensor, variance: Tensor, *, affine: bool
    ) -> None:
        parts = {"running_mean": mean, "running_var": variance}
        parts |= {"weight": weight, "bias": bias} if affine else {}
        self.tensors |= {f"{self.prefix}{name}.{part}": value for part, value in parts.items()}


def model_config(weights: Mapping[str, Tensor]) -> dict[str, Any]:
    """The configuration of a whole model, from its weights by published name, weight norm folded.

    Raises:
        ValueError: a weight that tells a size is missing, or no model has that size.
    """
    sizes: dict[str, Any] = {field: _size(weights, name, axis) for field, name, axis in _SIZES}
    sizes |= {field: _count(weights, pattern) for field, pattern in _COUNTS}
    attention = _size(weights, "flow.decoder.estimator.down_blocks.0.1.0.attn1.to_q.weight", 0)
    bottleneck = _size(weights, "speaker_encoder.xvector.block1.tdnnd1.linear1.weight", 0)
    sizes["decoder_channels"] = (_size(weights, "flow.decoder.estimator.final_proj.weight", 1),)
    sizes["decoder_num_heads"] = attention // _HEAD_WIDTH
    sizes["decoder_attention_head_dim"] = _HEAD_WIDTH
    sizes["tokenizer_heads"] = sizes["tokenizer_dim"] // _HEAD_WIDTH
    sizes["speaker_bottleneck"] = bottleneck // max(1, sizes["speaker_growth"])
    blocks = range(1, len(_DILATIONS) + 1)
    sizes["speaker_blocks"] = tuple(
        _count(weights, rf"speaker_encoder\.xvector\.block{n}\.tdnnd(\d+)\.") for n in blocks
    )
    return S3GenConfig(**sizes, **_FORMAT).to_dict()


def vocoder_config(weights: Mapping[str, Tensor]) -> dict[str, Any]:
    """The same of the vocoder alone."""
    sizes: dict[str, Any] = {
        field: _size(weights, name, axis) for field, name, axis in _SIZES if field.startswith("vocoder_")
    }
    return S3GenConfig(**sizes, **_FORMAT).vocoder.to_dict()


def _size(weights: Mapping[str, Tensor], name: str, axis: int) -> int:
    if name not in weights or weights[name].dim() <= axis:
        raise ValueError(f"this is no model of CosyVoice2: {name} is missing or has too few axes")
    return weights[name].shape[axis]


def _count(weights: Mapping[str, Tensor], pattern: str) -> int:
    """How many of a kind there are, by their numbers."""
    return len({match[1] for name in weights if (match := re.match(pattern, name))})
