"""A small model as CosyVoice2 publishes one: two state dicts, and two ONNX graphs as PyTorch's exporter writes them."""

import dataclasses
import warnings

import torch
import torch.nn.functional as F

from s3gen import S3GenConfig, S3GenModel
from s3gen.checkpoint import published_shapes, published_weights
from s3gen.cosyvoice import FLOW_FILE, SPEAKER_FILE, TOKENIZER_FILE, VOCODER_FILE
from s3gen.tokenizer import rotary_table

# The sizes that no weight tells are those of the published model: heads of 64.
TINY = dataclasses.replace(
    S3GenConfig.tiny(),
    decoder_num_heads=1,
    decoder_attention_head_dim=64,
    vocoder_harmonic_source="sinegen2",
    encode_lookahead=False,
)
NORMED = (
    "mel2wav.conv_",
    "mel2wav.ups.",
    "mel2wav.resblocks.",
    "mel2wav.source_resblocks.",
    "mel2wav.f0_predictor.condnet.",
)


class PlainTokenizer(torch.nn.Module):
    """The tokenizer of one clip in the operations that the reference uses: log-mel (1, M, T) to tokens (1, L)."""

    def __init__(self, tokenizer):
        super().__init__()
        self.encoder, self.codebook = tokenizer.encoder, tokenizer.quantizer._codebook
        attention = tokenizer.encoder.blocks[0].attn
        self.rotary = rotary_table(64, attention.query.out_features // attention.heads)

    def forward(self, mel):
        x = F.gelu(self.encoder.conv2(F.gelu(self.encoder.conv1(mel)))).transpose(1, 2)
        for block in self.encoder.blocks:
            x = x + self.attention(block.attn, block.attn_ln(x))
            x = x + block.mlp(block.mlp_ln(x))
        digits = (self.codebook.project_down(x).tanh() * 0.9990000128746033).round() + 1
        return (digits * self.codebook.places).sum(-1).int()

    def attention(self, attn, x):
        q, k, v = attn.query(x), attn.key(x), attn.value(x)
        q, k, heads = (
            part.reshape(1, x.shape[1], attn.heads, -1).transpose(1, 2) for part in (q, k, v)
        )  # (1, H, L, E)
        q, k = (self.rotated(part, self.rotary[:, : x.shape[1]]) for part in (q, k))
        weights = (q @ k.transpose(2, 3) * q.shape[-1] ** -0.5).softmax(-1)
        memory = attn.fsmn_block(v.transpose(1, 2)).transpose(1, 2) + v
        return attn.out((weights @ heads).transpose(1, 2).reshape(x.shape)) + memory

    @staticmethod
    def rotated(x, rotary):
        first, second = x.chunk(2, dim=-1)
        return x * rotary[0] + torch.cat((-second, first), dim=-1) * rotary[1]


class PlainSpeaker(torch.nn.Module):
    """The speaker encoder: filter bank (1, T, M) to the vector (1, E)."""

    def __init__(self, encoder):
        super().__init__()
        self.head, self.xvector = encoder.head, encoder.xvector

    def forward(self, features):
        return self.xvector(self.head(features.transpose(1, 2)))


def export(module, example, path, *, opset=17):
    """By the exporter that the published files were made with."""
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        torch.onnx.export(module.eval(), (example,), path, dynamo=False, opset_version=opset)


def weight_normed(state, prefixes):
    """Some convolutions' weights as magnitude and direction, as training leaves them."""
    parts = {}
    for name, value in state.items():
        if name.startswith(prefixes) and name.endswith(".weight"):
            stem = name.removesuffix(".weight") + ".parametrizations.weight.original"
            parts[stem + "0"] = torch.linalg.vector_norm(value, dim=tuple(range(1, value.dim())), keepdim=True)
            parts[stem + "1"] = 2.0 * value
        else:
            parts[name] = value
    return parts


def part(state, prefix):
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}


def tiny_model():
    return S3GenModel._random(TINY)


def write_folder(folder, model):
    """The four files."""
    folder.mkdir(parents=True, exist_ok=True)
    state = published_weights(model)
    assert state.keys() == published_shapes(model).keys()
    torch.save(part(state, "flow."), folder / FLOW_FILE)
    torch.save(part(weight_normed(state, NORMED), "mel2wav."), folder / VOCODER_FILE)
    export(PlainSpeaker(model.speaker_encoder), torch.randn(1, 210, 80), folder / SPEAKER_FILE, opset=13)
    export(PlainTokenizer(model.tokenizer), torch.randn(1, 128, 60), folder / TOKENIZER_FILE)
    return folder
