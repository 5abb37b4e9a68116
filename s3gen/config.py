"""Dimensions: the two published configurations, and the plain dimensions of each part that follow from them.

The published names and defaults are those of huggingface/transformers at 194d53c1,
``models/s3gen/configuration_s3gen.py`` and ``models/hiftnet/configuration_hiftnet.py``; the fields after them are
this package's own, because the published classes fix the tokenizer, the speaker encoder and the vocoder at full size.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import ClassVar, Self

from s3gen.constants import (
    FRAMES_PER_TOKEN,
    LOOKAHEAD_TOKENS,
    MEL_BINS,
    MEL_HOP,
    SAMPLE_RATE,
    SPEAKER_DIM,
    SPEAKER_MELS,
    TOKEN_RATE,
    TOKENIZER_MELS,
    VOCAB_SIZE,
)
from s3gen.fields import PublishedConfig, require

# How the vocoder's source sums its phase: Chatterbox's class at the sample rate, CosyVoice2's at the frame rate.
HARMONIC_SOURCES = ("sinegen", "sinegen2")


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenizerConfig:
    """S3 tokenizer v2: width, attention heads, blocks and input mel bins."""

    dim: int
    heads: int
    layers: int
    mels: int


@dataclass(frozen=True, kw_only=True, slots=True)
class SpeakerConfig:
    """CAMPPlus: input mel bins, x-vector width, and the widths of its dense blocks."""

    mels: int
    embed_dim: int
    head_channels: int
    init_channels: int
    growth: int
    bottleneck: int
    blocks: tuple[int, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class EncoderConfig:
    """Upsampling conformer encoder: token rate blocks, then mel rate blocks."""

    input_dim: int
    dim: int
    heads: int
    hidden_dim: int
    blocks: int
    up_blocks: int
    stride: int
    lookahead: int
    encode_lookahead: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class EstimatorConfig:
    """The flow's U-Net: one level of ``channels``, transformer blocks after every residual block."""

    in_channels: int
    out_channels: int
    channels: int
    blocks: int
    mid_blocks: int
    heads: int
    head_dim: int
    meanflow: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class FlowConfig:
    """Token embedding, encoder, estimator and the solver's constants."""

    vocab_size: int
    mels: int
    speaker_dim: int
    encoder: EncoderConfig
    estimator: EstimatorConfig
    guidance: float
    schedule: str


@dataclass(frozen=True, kw_only=True, slots=True)
class HiFTNetConfig(PublishedConfig):
    """The vocoder. The published defaults describe a 22 kHz vocoder; `S3GenConfig.vocoder` is the 24 kHz one."""

    model_type: ClassVar[str] = "hiftnet"
    later: ClassVar[frozenset[str]] = frozenset({"harmonic_source"})

    in_channels: int = 80
    base_channels: int = 512
    nb_harmonics: int = 8
    sampling_rate: int = 22050
    nsf_alpha: float = 0.1
    nsf_sigma: float = 0.003
    nsf_voiced_threshold: float = 10.0
    upsample_rates: tuple[int, ...] = (8, 8)
    upsample_kernel_sizes: tuple[int, ...] = (16, 16)
    istft_n_fft: int = 16
    istft_hop_len: int = 4
    resblock_kernel_sizes: tuple[int, ...] = (3, 7, 11)
    resblock_dilation_sizes: tuple[tuple[int, ...], ...] = ((1, 3, 5), (1, 3, 5), (1, 3, 5))
    source_resblock_kernel_sizes: tuple[int, ...] = (7, 11)
    source_resblock_dilation_sizes: tuple[tuple[int, ...], ...] = ((1, 3, 5), (1, 3, 5))
    lrelu_slope: float = 0.1
    audio_limit: float = 0.99
    f0_predictor_in_channels: int = 80
    f0_predictor_cond_channels: int = 512

    harmonic_source: str = HARMONIC_SOURCES[0]

    def _check(self) -> None:
        stages = len(self.upsample_rates)
        for name in ("upsample_kernel_sizes", "source_resblock_kernel_sizes", "source_resblock_dilation_sizes"):
            if len(getattr(self, name)) != stages:
                raise ValueError(f"{name} is {getattr(self, name)!r}, but upsample_rates has {stages} stages")
        if len(self.resblock_kernel_sizes) != len(self.resblock_dilation_sizes):
            raise ValueError(
                f"resblock_kernel_sizes {self.resblock_kernel_sizes!r} and resblock_dilation_sizes "
                f"{self.resblock_dilation_sizes!r} must be of one length"
            )
        if self.base_channels % 2**stages:
            raise ValueError(f"base_channels is {self.base_channels}, but {stages} stages halve it each: not whole")
        if self.harmonic_source not in HARMONIC_SOURCES:
            raise ValueError(f"harmonic_source is {self.harmonic_source!r}, not one of {', '.join(HARMONIC_SOURCES)}")
        require("f0_predictor_in_channels", self.f0_predictor_in_channels, self.in_channels, "both read the mel")

    @property
    def frame_samples(self) -> int:
        """Samples of audio per mel frame."""
        return prod(self.upsample_rates) * self.istft_hop_len


@dataclass(frozen=True, kw_only=True, slots=True)
class S3GenConfig(PublishedConfig):
    """The whole model. Every field may shrink it, except the rates: one token is two mel frames is 960 samples.

    `vocoder_harmonic_source` (of `HARMONIC_SOURCES`) and `encode_lookahead` tell Chatterbox's models from CosyVoice2's,
    by the format of a checkpoint. `encode_lookahead`: whether tokens that are held back (``finalize=False``) go through
    the whole encoder; if not, only the look-ahead convolution reads them.

    `encoder_dropout_rate`, `cfm_sigma_min` and `decoder_act_fn` belong to the published names; the first two act in
    training only.
    """

    model_type: ClassVar[str] = "s3gen"
    later: ClassVar[frozenset[str]] = frozenset({"vocoder_harmonic_source", "encode_lookahead"})

    vocab_size: int = VOCAB_SIZE
    token_embed_dim: int = 512
    speaker_feat_dim: int = SPEAKER_MELS
    speaker_embed_dim: int = SPEAKER_DIM
    encoder_output_size: int = 512
    encoder_attention_heads: int = 8
    encoder_linear_units: int = 2048
    encoder_num_blocks: int = 6
    encoder_dropout_rate: float = 0.1
    decoder_in_channels: int = 320
    decoder_out_channels: int = 80
    decoder_channels: tuple[int, ...] = (256,)
    decoder_n_blocks: int = 4
    decoder_num_mid_blocks: int = 12
    decoder_num_heads: int = 8
    decoder_attention_head_dim: int = 64
    decoder_act_fn: str = "gelu"
    cfm_sigma_min: float = 1e-6
    cfm_solver: str = "euler"
    cfm_t_scheduler: str = "cosine"
    cfm_inference_cfg_rate: float = 0.7
    sampling_rate: int = SAMPLE_RATE
    mel_bins: int = MEL_BINS
    n_fft: int = 1920
    hop_length: int = MEL_HOP
    win_size: int = 1920
    fmin: int = 0
    fmax: int = 8000
    input_frame_rate: int = TOKEN_RATE
    token_mel_ratio: int = FRAMES_PER_TOKEN
    pre_lookahead_len: int = LOOKAHEAD_TOKENS

    meanflow: bool = False
    encoder_num_up_blocks: int = 4
    tokenizer_dim: int = 1280
    tokenizer_heads: int = 20
    tokenizer_layers: int = 6
    tokenizer_mels: int = TOKENIZER_MELS
    speaker_head_channels: int = 32
    speaker_init_channels: int = 128
    speaker_growth: int = 32
    speaker_bottleneck: int = 4
    speaker_blocks: tuple[int, ...] = (12, 24, 16)
    vocoder_base_channels: int = 512
    vocoder_f0_channels: int = 512
    vocoder_harmonic_source: str = HARMONIC_SOURCES[0]
    encode_lookahead: bool = True

    def _check(self) -> None:
        rates = "the tokenizer, the flow and the vocoder agree on it"
        require("sampling_rate", self.sampling_rate, SAMPLE_RATE, rates)
        require("hop_length", self.hop_length, MEL_HOP, rates)
        require("input_frame_rate", self.input_frame_rate, TOKEN_RATE, rates)
        require("token_mel_ratio", self.token_mel_ratio, FRAMES_PER_TOKEN, rates)
        require("pre_lookahead_len", self.pre_lookahead_len, LOOKAHEAD_TOKENS, rates)
        require("mel_bins", self.mel_bins, MEL_BINS, rates)
        require("vocab_size", self.vocab_size, VOCAB_SIZE, "the tokenizer has 3 ** 8 codes")
        mel = "the prompt mel is the one that the published weights were trained on"
        require("n_fft", self.n_fft, 1920, mel)
        require("win_size", self.win_size, 1920, mel)
        require("fmin", self.fmin, 0, mel)
        require("fmax", self.fmax, 8000, mel)
        require("speaker_feat_dim", self.speaker_feat_dim, SPEAKER_MELS, "its three halvings end on whole bins")
        require("cfm_solver", self.cfm_solver, "euler", "no other solver is built")
        require("decoder_act_fn", self.decoder_act_fn, "gelu", "no other activation is built")
        require("decoder_out_channels", self.decoder_out_channels, self.mel_bins, "the flow makes mel frames")
        require("decoder_in_channels", self.decoder_in_channels, 4 * self.mel_bins, "noise, mu, speaker and prompt")
        if self.cfm_t_scheduler not in ("cosine", "linear"):
            raise ValueError(f"cfm_t_scheduler is {self.cfm_t_scheduler!r}, not 'cosine' or 'linear'")
        if self.vocoder_harmonic_source not in HARMONIC_SOURCES:
            allowed = ", ".join(HARMONIC_SOURCES)
            raise ValueError(f"vocoder_harmonic_source is {self.vocoder_harmonic_source!r}, not one of {allowed}")
        if len(self.decoder_channels) != 1:
            raise ValueError(f"decoder_channels is {self.decoder_channels!r}, but the causal U-Net has one level")
        for dim, heads in (("encoder_output_size", "encoder_attention_heads"), ("tokenizer_dim", "tokenizer_heads")):
            if getattr(self, dim) % getattr(self, heads):
                raise ValueError(f"{dim} {getattr(self, dim)} is not a multiple of {heads} {getattr(self, heads)}")

    @classmethod
    def tiny(cls) -> Self:
        """Every part and every rate at a few hundred thousand parameters, for tests and demonstrations."""
        return cls(
            token_embed_dim=24,
            encoder_output_size=32,
            encoder_attention_heads=2,
            encoder_linear_units=64,
            encoder_num_blocks=1,
            encoder_num_up_blocks=1,
            decoder_channels=(32,),
            decoder_n_blocks=1,
            decoder_num_mid_blocks=1,
            decoder_num_heads=2,
            decoder_attention_head_dim=16,
            tokenizer_dim=64,
            tokenizer_heads=1,
            tokenizer_layers=1,
            speaker_head_channels=8,
            speaker_init_channels=16,
            speaker_growth=8,
            speaker_bottleneck=2,
            speaker_blocks=(2, 2, 2),
            vocoder_base_channels=32,
            vocoder_f0_channels=32,
        )

    @property
    def tokenizer(self) -> TokenizerConfig:
        return TokenizerConfig(
            dim=self.tokenizer_dim, heads=self.tokenizer_heads, layers=self.tokenizer_layers, mels=self.tokenizer_mels
        )

    @property
    def speaker(self) -> SpeakerConfig:
        return SpeakerConfig(
            mels=self.speaker_feat_dim,
            embed_dim=self.speaker_embed_dim,
            head_channels=self.speaker_head_channels,
            init_channels=self.speaker_init_channels,
            growth=self.speaker_growth,
            bottleneck=self.speaker_bottleneck,
            blocks=self.speaker_blocks,
        )

    @property
    def flow(self) -> FlowConfig:
        encoder = EncoderConfig(
            input_dim=self.token_embed_dim,
            dim=self.encoder_output_size,
            heads=self.encoder_attention_heads,
            hidden_dim=self.encoder_linear_units,
            blocks=self.encoder_num_blocks,
            up_blocks=self.encoder_num_up_blocks,
            stride=self.token_mel_ratio,
            lookahead=self.pre_lookahead_len,
            encode_lookahead=self.encode_lookahead,
        )
        estimator = EstimatorConfig(
            in_channels=self.decoder_in_channels,
            out_channels=self.decoder_out_channels,
            channels=self.decoder_channels[0],
            blocks=self.decoder_n_blocks,
            mid_blocks=self.decoder_num_mid_blocks,
            heads=self.decoder_num_heads,
            head_dim=self.decoder_attention_head_dim,
            meanflow=self.meanflow,
        )
        return FlowConfig(
            vocab_size=self.vocab_size,
            mels=self.mel_bins,
            speaker_dim=self.speaker_embed_dim,
            encoder=encoder,
            estimator=estimator,
            guidance=self.cfm_inference_cfg_rate,
            schedule=self.cfm_t_scheduler,
        )

    @property
    def vocoder(self) -> HiFTNetConfig:
        """The 24 kHz vocoder that the model holds (chatterbox-tts 0.1.7, ``models/s3gen/s3gen.py``)."""
        return HiFTNetConfig(
            in_channels=self.mel_bins,
            f0_predictor_in_channels=self.mel_bins,
            base_channels=self.vocoder_base_channels,
            f0_predictor_cond_channels=self.vocoder_f0_channels,
            harmonic_source=self.vocoder_harmonic_source,
            sampling_rate=self.sampling_rate,
            upsample_rates=(8, 5, 3),
            upsample_kernel_sizes=(16, 11, 7),
            source_resblock_kernel_sizes=(7, 7, 11),
            source_resblock_dilation_sizes=((1, 3, 5),) * 3,
        )


# Names of models with seeded random weights, for tests, demonstrations and benchmarks.
RANDOM_MODELS = {"random:tiny": S3GenConfig.tiny, "random:full": S3GenConfig}
