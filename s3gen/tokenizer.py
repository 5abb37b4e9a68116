"""The S3 tokenizer v2: 16 kHz speech to tokens, 25 per second.

A convolutional stem halves the mel's rate twice, blocks of rotary attention with an FSMN memory follow, and finite
scalar quantisation rounds eight projections to three levels each. Written after s3tokenizer 0.3.0 (model_v2.py) and
chatterbox-tts 0.1.7 (models/s3tokenizer/s3tokenizer.py); parameters are named as there.

Clips of any lengths share a batch. They lie end to end, so that no work is done on padding; in the stem there are empty
frames between them, which its convolutions take for the zeros that they see around a clip alone. Attention and memory
are a clip's own: they take clips of one length together, or all clips padded, with a mask for each of the two.

Shape letters: B clips or windows, N samples, T mel frames, L tokens of a clip, P tokens of all, M mel bins, D width,
H heads, E width of a head.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from s3gen.audio import TOKENIZER_MIN_SAMPLES, TokenizerMel, batch_frames, check_wav
from s3gen.config import TokenizerConfig
from s3gen.constants import TOKEN_RATE, TOKENIZER_FRAMES_PER_TOKEN, TOKENIZER_HOP, TOKENIZER_RATE, exact_div
from s3gen.precision import strict_float32
from s3gen.ragged import length_mask, on_device, pad_rows, plan_batches, zero_padding

_MEL_RATE = exact_div(TOKENIZER_RATE, TOKENIZER_HOP)  # mel frames per second
WINDOW_FRAMES = 30 * _MEL_RATE  # a longer clip goes through in windows of this many mel frames
OVERLAP_FRAMES = 4 * _MEL_RATE  # that two windows share
_OVERLAP_HALF = 2 * TOKEN_RATE  # tokens that each window gives up where it meets another

_FSMN_TAPS = 31
_ROTARY_BASE = 10_000.0
_LEVELS = 3
_DIGITS = 8
_LEVEL_SCALE = 0.9990000128746033  # the trained quantiser's, a float32


class SpeechTokenizer(nn.Module):
    """Speech to tokens.

    Args:
        config: dimensions; `dim` a multiple of `heads`, the quotient even.
    """

    def __init__(self, config: TokenizerConfig) -> None:
        super().__init__()
        self.mel = TokenizerMel(config.mels)
        self.encoder = AudioEncoder(config)
        self.quantizer = Quantizer(config.dim)

    @torch.no_grad()
    def forward(self, wavs: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Tokenize clips; a clip's tokens do not depend on the others.

        Args:
            wavs: B clips (N,) at 16 kHz, in the module's dtype, full scale at 1.0.

        Returns:
            Tokens (B, L) int64 in 0 .. 6560, zeros after a clip's last, and how many each clip has, (B,) int64: one
            per 640 samples begun, not counting the last N % 160 samples. A clip over 30 s may have up to 50 fewer, see
            `merge_windows`.

        Raises:
            ValueError: no clips, or one that is not 1-D, not of the module's dtype, not finite, or under 201 samples.
        """
        if len(wavs) == 0:
            raise ValueError("there are no clips to tokenize: wavs is empty")
        dtype, device = self.mel.window.dtype, self.mel.window.device
        for row, wav in enumerate(wavs):
            check_wav(wav, f"wavs[{row}]", rate=TOKENIZER_RATE, minimum=TOKENIZER_MIN_SAMPLES, dtype=dtype)
        with strict_float32(device):
            rows = self.encode([wav.to(device) for wav in wavs])
        return pad_rows(rows), on_device(torch.tensor([len(row) for row in rows]), device)

    def encode(self, wavs: Sequence[Tensor], *, whole: bool = False) -> list[Tensor]:
        """`forward` of clips that are known to be good and lie on the module's device, without waiting for it.

        Args:
            wavs: as for `forward`.
            whole: as for `split_windows`.

        Returns:
            Each clip's tokens (L,).
        """
        clips = [split_windows(mel, whole=whole) for mel in self.mel.batch(wavs)]
        codes = iter(self._encode_windows([window for windows in clips for window in windows]))
        return [merge_windows([next(codes) for _ in windows]) for windows in clips]

    def _encode_windows(self, windows: list[Tensor]) -> list[Tensor]:
        """Mel windows (T, M), at most `WINDOW_FRAMES` each, to their tokens (L,)."""
        codes: dict[int, Tensor] = {}
        for batch in plan_batches([len(window) for window in windows], batch_frames(windows[0].device)):
            found = self.quantizer(self.encoder([windows[row] for row in batch]))
            codes.update(zip(batch, found.split([token_count(len(windows[row])) for row in batch]), strict=True))
        return [codes[row] for row in range(len(windows))]


def token_count(frames: int) -> int:
    """Tokens of so many mel frames, the last one begun included."""
    return -(-frames // TOKENIZER_FRAMES_PER_TOKEN)


def split_windows(mel: Tensor, *, whole: bool = False) -> list[Tensor]:
    """A clip's mel (T, M) as it is up to 30 s, else as windows of 30 s, one every 26 s while there is any left.

    Args:
        whole: leave out a last window that the one before it holds, too, so that merged they lose nothing.
    """
    if len(mel) <= WINDOW_FRAMES:
        return [mel]
    end = len(mel) - OVERLAP_FRAMES if whole else len(mel)
    starts = range(0, end, WINDOW_FRAMES - OVERLAP_FRAMES)
    return [mel[start : start + WINDOW_FRAMES] for start in starts]


def merge_windows(codes: Sequence[Tensor]) -> Tensor:
    """A clip's tokens from those of its windows: where two meet, each gives up its last or first 2 s.

    As in the reference (s3tokenizer 0.3.0, utils.py), a last window of under 4 s gives them up although there is
    nothing beyond to make up for it, so that such a clip loses up to 2 s at that seam; unless it was left out.

    Args:
        codes: (L,) for each window, in order.
    """
    last = len(codes) - 1
    kept = [
        code[0 if place == 0 else _OVERLAP_HALF : len(code) if place == last else len(code) - _OVERLAP_HALF]
        for place, code in enumerate(codes)
    ]
    return torch.cat(kept)


class AudioEncoder(nn.Module):
    """The convolutional stem and the attention blocks."""

    rotary: Tensor

    def __init__(self, config: TokenizerConfig) -> None:
        super().__init__()
        self.conv1 = nn.Conv1d(config.mels, config.dim, 3, stride=2, padding=1)
        self.conv2 = nn.Conv1d(config.dim, config.dim, 3, stride=2, padding=1)
        self.blocks = nn.ModuleList(Block(config.dim, config.heads) for _ in range(config.layers))
        table = rotary_table(token_count(WINDOW_FRAMES), exact_div(config.dim, config.heads))
        self.register_buffer("rotary", table, persistent=False)

    def forward(self, mels: Sequence[Tensor]) -> Tensor:
        """Hidden states at the token rate.

        Args:
            mels: B times (T, M), each at most `WINDOW_FRAMES`.

        Returns:
            (P, D), `token_count` of them for each mel, end to end.
        """
        tokens = [token_count(len(mel)) for mel in mels]
        x = self._stem(mels[0]) if len(mels) == 1 else self._stems(mels, tokens)
        rows = Rows(tokens, x.device)
        rotary = torch.cat([self.rotary[:, :count] for count in tokens], dim=1)
        for block in self.blocks:
            x = block(x, rotary, rows)
        return x

    def _stem(self, mel: Tensor) -> Tensor:
        """(T, M) to (L, D)."""
        x = F.gelu(self.conv2(F.gelu(self.conv1(mel.T[None]))))
        return x[0].T.contiguous()

    def _stems(self, mels: Sequence[Tensor], tokens: Sequence[int]) -> Tensor:
        """The same of several, (T, M) each to (P, D)."""
        # In units of a token, each clip behind an empty one.
        starts = list(itertools.accumulate((count + 1 for count in tokens[:-1]), initial=1))
        rows = list(zip(mels, starts, tokens, strict=True))
        frames = mels[0].new_zeros(TOKENIZER_FRAMES_PER_TOKEN * (starts[-1] + tokens[-1]), mels[0].shape[1])
        for mel, start, _ in rows:
            frames[TOKENIZER_FRAMES_PER_TOKEN * start :][: len(mel)] = mel
        gaps = [2 * start - 1 for start in starts]
        gaps += [2 * (start + count) - 1 for mel, start, count in rows if -(-len(mel) // 2) < 2 * count]
        x = _empty(F.gelu(halved(frames, self.conv1)), on_device(torch.tensor(gaps), frames.device))
        x = F.gelu(halved(x, self.conv2))
        return torch.cat([x[start : start + count] for _, start, count in rows])


def halved(x: Tensor, conv: nn.Conv1d) -> Tensor:
    """What a convolution of three taps, stride 2 and padding 1 makes of `x` (2 T, C): (T, O).

    As two matrix products, of frames in pairs and of the frame before each pair: on a CPU a third faster than the
    convolution on long inputs.
    """
    channels = x.shape[1]
    pairs = x.view(-1, 2 * channels)
    before, pair = conv.weight[:, :, 0], conv.weight[:, :, 1:].transpose(1, 2).flatten(1)
    y = F.linear(pairs, pair, conv.bias)
    y[1:].addmm_(pairs[:-1, channels:], before.T)
    return y


def _empty(x: Tensor, places: Tensor) -> Tensor:
    """`x` (T, C) itself, zero at these places."""
    return x.index_fill_(0, places, 0.0)


class Rows:
    """Where clips end that lie end to end, and how layers get at them that look beyond a token.

    Args:
        lengths: L of each clip.
        device: of the tensors to come.
    """

    def __init__(self, lengths: Sequence[int], device: torch.device) -> None:
        self._runs = [(length, len(list(run))) for length, run in itertools.groupby(lengths)]
        self._lengths, self._device = list(lengths), device

    def map(self, layer: Layer, *xs: Tensor) -> list[Tensor]:
        """What a layer makes of `xs` (P, D), clip by clip: its results (P, D), in whichever way suits the device."""
        # A GPU would rather compute some padding than wait for a call per length.
        return self.padded(layer, *xs) if self._device.type == "cuda" else self.in_runs(layer, *xs)

    def in_runs(self, layer: Layer, *xs: Tensor) -> list[Tensor]:
        """Neighbours of one length together, without padding."""
        sizes = [length * count for length, count in self._runs]
        made = [
            layer(*(x.unflatten(0, (count, length)) for x in run), None)
            for (length, count), *run in zip(self._runs, *(x.split(sizes) for x in xs), strict=True)
        ]
        if len(made) == 1:
            return [part.flatten(0, 1) for part in made[0]]
        return [torch.cat([part.flatten(0, 1) for part in parts]) for parts in zip(*made, strict=True)]

    def padded(self, layer: Layer, *xs: Tensor) -> list[Tensor]:
        """All together, padded on the right where their lengths differ."""
        if len(self._runs) == 1:
            return self.in_runs(layer, *xs)
        cells, places, mask = self._cells
        made = layer(*(x[cells] for x in xs), mask)
        return [part.flatten(0, 1)[places] for part in made]

    @functools.cached_property
    def _cells(self) -> tuple[Tensor, Tensor, Tensor | None]:
        """The token in each cell of a padded batch, any where there is none; each token's cell; the batch's mask."""
        longest = max(self._lengths)
        starts = itertools.accumulate(self._lengths[:-1], initial=0)
        cells = torch.tensor(list(starts))[:, None] + torch.arange(longest)
        places = [row * longest + torch.arange(length) for row, length in enumerate(self._lengths)]
        return (
            on_device(cells.clamp(max=sum(self._lengths) - 1), self._device),
            on_device(torch.cat(places), self._device),
            length_mask(self._lengths, self._device),
        )


# Of some (B, L, D) and the mask (B, L), True where there is data, if there is padding; to some (B, L, D).
Layer = Callable[..., Sequence[Tensor]]


class Block(nn.Module):
    """Attention with its memory, then a feed-forward layer; both after a norm, both residual."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.attn = FSMNAttention(dim, heads)
        self.attn_ln = nn.LayerNorm(dim)
        self.mlp = nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim))
        self.mlp_ln = nn.LayerNorm(dim)

    def forward(self, x: Tensor, rotary: Tensor, rows: Rows) -> Tensor:
        """`x` (P, D), `rotary` (2, P, E); `x` itself, changed."""
        x += self.attn(self.attn_ln(x), rotary, rows)
        wide = self.mlp[0](self.mlp_ln(x))
        # In place, which `torch.nn` has no word for: a second tensor of this size would cost a CPU 3% of all its time.
        x += self.mlp[2](torch.ops.aten.gelu_(wide))
        return x


class FSMNAttention(nn.Module):
    """Rotary self-attention, plus a memory: a depthwise convolution over the values."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(dim, dim)
        self.key = nn.Linear(dim, dim, bias=False)
        self.value = nn.Linear(dim, dim)
        self.out = nn.Linear(dim, dim)
        self.fsmn_block = nn.Conv1d(dim, dim, _FSMN_TAPS, padding=_FSMN_TAPS // 2, groups=dim, bias=False)

    def forward(self, x: Tensor, rotary: Tensor, rows: Rows) -> Tensor:
        """Arguments as for `Block`; (P, D)."""
        query, key = (
            rotate(y.unflatten(-1, (self.heads, -1)).transpose(0, 1), rotary).transpose(0, 1).flatten(1)
            for y in (self.query(x), self.key(x))
        )
        attended, memory = rows.map(self._mix, query, key, self.value(x))
        mixed: Tensor = self.out(attended)
        return mixed.add_(memory)

    def _mix(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """Attention and memory of clips (B, L, D), as a `Layer`."""
        keys_mask = None if mask is None else mask[:, None, None, :]
        q, k, v = (y.unflatten(-1, (self.heads, -1)).transpose(1, 2) for y in (query, key, value))  # (B, H, L, E)
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=keys_mask).transpose(1, 2).flatten(2)
        return attended, self._remember(zero_padding(value.transpose(1, 2), mask)).transpose(1, 2)

    def _remember(self, value: Tensor) -> Tensor:
        """(B, D, L), channels last in memory, to the same."""
        # In two dimensions, where oneDNN knows channels that are last: a twentieth of the time of `Conv1d`.
        conv = self.fsmn_block
        image, taps = value[:, :, None], conv.weight[:, :, None]
        memory = F.conv2d(image, taps, padding=(0, _FSMN_TAPS // 2), groups=conv.groups)
        return memory[:, :, 0].add_(value)


def rotary_table(length: int, width: int) -> Tensor:
    """Cosines and sines of `length` positions for heads of (even) `width`: (2, length, width) float32, on the CPU."""
    exponents = torch.arange(0, width, 2, dtype=torch.float32, device="cpu") / width
    positions = torch.arange(length, dtype=torch.float32, device="cpu")
    angles = torch.outer(positions, 1.0 / _ROTARY_BASE**exponents).repeat(1, 2)
    return torch.stack((angles.cos(), angles.sin()))


def rotate(x: Tensor, rotary: Tensor) -> Tensor:
    """`x` (..., L, E) turned by the angles of `rotary` (2, L, E); a head's first half pairs with its second."""
    first, second = x.chunk(2, dim=-1)
    half = x.shape[-1] // 2
    turned = x * rotary[0]
    turned[..., :half].addcmul_(second, rotary[1, :, :half], value=-1)
    turned[..., half:].addcmul_(first, rotary[1, :, half:])
    return turned


class Quantizer(nn.Module):
    """Finite scalar quantisation; the nesting is that of the published names."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self._codebook = Codebook(dim)

    def forward(self, x: Tensor) -> Tensor:
        """Hidden states (B, L, D) to tokens (B, L) int64."""
        codes: Tensor = self._codebook(x)
        return codes


class Codebook(nn.Module):
    """Eight digits of three levels each, the first the least: 3 ** 8 codes."""

    places: Tensor

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.project_down = nn.Linear(dim, _DIGITS)
        places = torch.tensor([_LEVELS**digit for digit in range(_DIGITS)], device="cpu")
        self.register_buffer("places", places, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """As `Quantizer.forward`."""
        levels = (self.project_down(x).tanh() * _LEVEL_SCALE).round() + 1
        return (levels.to(torch.int64) * self.places).sum(-1)
