"""Rows of tokens and their voices to mels, and mels to waves: the flow and the vocoder over a ragged batch.

Reference: chatterbox-tts 0.1.7, ``models/s3gen/s3gen.py``.

Shape letters: B rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from s3gen import noise as noises
from s3gen.constants import FRAMES_PER_TOKEN, LOOKAHEAD_TOKENS, MEL_BINS
from s3gen.crossfade import join
from s3gen.flow import Flow
from s3gen.integers import integer
from s3gen.noise import Stream
from s3gen.precision import float32_products
from s3gen.ragged import group_size, on_device, pad_rows, plan_batches, rows_on_device
from s3gen.solver import Solver
from s3gen.splitting import Piece, Splitting, pieces
from s3gen.vocoder import HiFTNetModel, check_cache
from s3gen.voice import Voice

MOST_START = 2**30  # tokens; noise counts frames in 32 bits


@dataclass(frozen=True, slots=True, eq=False)
class Utterance:
    """A row of a batch: tokens to be spoken, by whom, and what its noise is drawn from.

    Attributes:
        tokens: (T,) int64 on the CPU, checked.
        voice: speaks them.
        seed: of flow noise, phases and source noise.
        start: how many mel frames of the same utterance come before the first token, when it is a piece of one: the
            prompt's noise is that of frames 0 .. P, the tokens' that of frames P + start on.
    """

    tokens: Tensor
    voice: Voice
    seed: int
    start: int = 0

    def piece(self, part: Piece) -> Utterance:
        """What is spoken for a piece of it."""
        start = self.start + FRAMES_PER_TOKEN * part.start
        return replace(self, tokens=self.tokens[part.start : part.end], start=start)

    @property
    def prompt_frames(self) -> int:
        """P, the mel frames of the prompt."""
        return len(self.voice.prompt_feat)

    def frames(self, *, finalize: bool) -> int:
        """Mel frames of prompt and tokens, without those that are held back when these are not the last tokens."""
        tokens = len(self.voice.prompt_token) + len(self.tokens) - (0 if finalize else LOOKAHEAD_TOKENS)
        return max(self.prompt_frames, tokens * FRAMES_PER_TOKEN)


@dataclass(frozen=True, slots=True)
class Synthesis:
    """The networks that speak; one device and dtype.

    Attributes:
        flow: tokens to mels.
        mel2wav: mels to waves.
        start_fade: what the first samples of a wave are multiplied by, if asked for.
    """

    flow: Flow
    mel2wav: HiFTNetModel
    start_fade: Tensor

    @property
    def device(self) -> torch.device:
        """Where they are."""
        return self.flow.mel_proj.weight.device

    @property
    def dtype(self) -> torch.dtype:
        """What they compute in, `Flow.dtype` aside."""
        return self.flow.mel_proj.weight.dtype

    def check_voices(self, voices: Sequence[Voice]) -> None:
        """Whether these networks can speak with the voices.

        Raises:
            ValueError: a speaker vector of another width.
        """
        width = self.flow.speaker_proj.in_features
        for row, voice in enumerate(voices):
            if tuple(voice.embedding.shape) != (width,):
                raise ValueError(
                    f"the embedding of voice {row} has the shape {tuple(voice.embedding.shape)}, but this model's have "
                    f"{(width,)}: another speaker encoder made it"
                )

    def speak(
        self, utterances: Sequence[Utterance], *, solver: Solver, start_fade: bool, splitting: Splitting | None
    ) -> list[Tensor]:
        """The waves (samples,) of B rows; of those that are to be split their pieces are made, as rows like others.

        Raises:
            ValueError: `splitting` is none.
        """
        if splitting is not None and not isinstance(splitting, Splitting):
            raise ValueError(
                f"splitting is {splitting!r}, but must be an s3gen.Splitting, such as Splitting(max_tokens=1500)"
            )
        parts = [_parts(row, splitting) for row in utterances]
        rows = [row.piece(part) for row, own in zip(utterances, parts, strict=True) for part in own]
        waves = iter(self.waves(self.mels(rows, finalize=True, solver=solver), rows, start_fade=start_fade))
        return [_whole(own, [next(waves)[0] for _ in own]) for own in parts]

    def mels(
        self, utterances: Sequence[Utterance], *, finalize: bool, solver: Solver, noise: Tensor | None = None
    ) -> list[Tensor]:
        """The generated frames of every row.

        Args:
            utterances: B rows.
            finalize: whether the tokens end here; if not, the last 3 of each row are held back as look-ahead.
            solver: of the flow.
            noise: (B, 80, frames) initial noise of prompt and generated frames, right-padded; drawn when None.

        Returns:
            B log-mels (frames, 80).

        Raises:
            ValueError: noise of another shape, or a solver that this model cannot have.
        """
        frames = [row.frames(finalize=finalize) for row in utterances]
        drawn = self._drawn(utterances, frames) if noise is None else self._given(noise, frames)
        voices = [row.voice for row in utterances]
        with float32_products(self.device, tf32=self.flow.dtype != "float32"):
            joined = [torch.cat((row.voice.prompt_token.cpu(), row.tokens)) for row in utterances]
            encoded = self._encode(joined, finalize)
            mu = [row[:count] for row, count in zip(encoded, frames, strict=True)]
            prompts = rows_on_device([voice.prompt_feat.to(self.dtype) for voice in voices], self.device)
            speakers = rows_on_device([voice.embedding.to(self.dtype) for voice in voices], self.device)
            mels = self.flow.solve(mu, prompts, torch.stack(speakers), drawn, solver)
        return [mel[row.prompt_frames :] for mel, row in zip(mels, utterances, strict=True)]

    def waves(
        self,
        mels: Sequence[Tensor],
        utterances: Sequence[Utterance],
        *,
        cache_source: Tensor | None = None,
        start_fade: bool,
    ) -> list[tuple[Tensor, Tensor]]:
        """Waveform and source of every row, in groups of like length.

        Args:
            mels: B log-mels (frames, 80).
            utterances: B rows, whose mels these are.
            cache_source: (B or 1, 1, s) source samples that replace the first s.
            start_fade: whether the beginning of an utterance is faded in; that of a later piece is not.

        Returns:
            For each row two tensors (samples,).

        Raises:
            ValueError: a cache of another shape, or longer than the longest row's source.
        """
        samples = [len(mel) * self.mel2wav.config.frame_samples for mel in mels]
        if cache_source is not None:  # before the groups, whose rows and lengths are no matter of the caller's
            check_cache(cache_source, len(mels), max(samples))
        made: dict[int, tuple[Tensor, Tensor]] = {}
        for group in plan_batches([max(1, len(mel)) for mel in mels], group_size(self.device.type)):
            lengths, starts = [len(mels[row]) for row in group], [utterances[row].start for row in group]
            waves, source = self.mel2wav.inference(
                pad_rows([mels[row] for row in group]).transpose(1, 2),
                _cached(cache_source, group, max(samples[row] for row in group)),
                lengths=lengths,
                seed=[utterances[row].seed for row in group],
                start=starts if any(starts) else 0,
            )
            if start_fade:
                faded = min(waves.shape[1], len(self.start_fade))
                waves[:, :faded] *= self._fades(starts)[:, :faded]
            rows = zip(group, waves, source[:, 0], strict=True)
            made.update((row, (wave[: samples[row]], source[: samples[row]])) for row, wave, source in rows)
        return [made[row] for row in range(len(mels))]

    def _fades(self, starts: Sequence[int]) -> Tensor:
        """What the first samples of rows are multiplied by, (B or 1, samples), from their starts."""
        if not any(starts):
            return self.start_fade[None]
        later = on_device(torch.tensor(starts), self.device)[:, None] > 0
        return torch.where(later, torch.ones_like(self.start_fade), self.start_fade)

    def _encode(self, tokens: Sequence[Tensor], finalize: bool) -> list[Tensor]:
        """Rows of prompt and tokens to their mu (frames, 80), in groups of like length."""
        encoded: dict[int, Tensor] = {}
        for group in plan_batches([len(row) for row in tokens], group_size(self.device.type)):
            padded = on_device(pad_rows([tokens[row] for row in group]), self.device)
            mu = self.flow.encode(padded, [len(tokens[row]) for row in group], finalize)
            encoded.update((row, mu[place, : FRAMES_PER_TOKEN * len(tokens[row])]) for place, row in enumerate(group))
        return [encoded[row] for row in range(len(tokens))]

    def _drawn(self, utterances: Sequence[Utterance], frames: Sequence[int]) -> list[Tensor]:
        """Noise (frames, 80) of every row."""
        seeds = [row.seed for row in utterances]
        prompts = [row.prompt_frames for row in utterances]
        if not any(row.start for row in utterances):
            drawn = noises.normal(seeds, Stream.FLOW, max(frames), MEL_BINS, device=self.device).to(self.dtype)
            return [row[:count] for row, count in zip(drawn, frames, strict=True)]
        spoken = [count - prompt for count, prompt in zip(frames, prompts, strict=True)]
        starts = [prompt + row.start for prompt, row in zip(prompts, utterances, strict=True)]
        heads = noises.normal(seeds, Stream.FLOW, max(prompts), MEL_BINS, device=self.device).to(self.dtype)
        tails = noises.normal(seeds, Stream.FLOW, max(spoken), MEL_BINS, device=self.device, start=starts)
        cut = zip(heads, prompts, tails.to(self.dtype), spoken, strict=True)
        return [torch.cat((head[:prompt], tail[:count])) for head, prompt, tail, count in cut]

    def _given(self, noise: Tensor, frames: Sequence[int]) -> list[Tensor]:
        if tuple(noise.shape) != (len(frames), MEL_BINS, max(frames)):
            raise ValueError(
                f"noise has shape {tuple(noise.shape)}, but prompt and generated frames need "
                f"{(len(frames), MEL_BINS, max(frames))}"
            )
        rows = noise.to(device=self.device, dtype=self.dtype).transpose(1, 2)
        return [row[:count] for row, count in zip(rows, frames, strict=True)]


def checked_starts(starts: Sequence[int] | None, rows: int) -> list[int]:
    """How many tokens come before each of so many rows; none when None.

    Raises:
        ValueError: another number of them than rows, or one that is no number of tokens.
    """
    given = [0] * rows if starts is None else list(starts)
    counts = [count for start in given if (count := integer(start)) is not None and 0 <= count <= MOST_START]
    if not len(counts) == len(given) == rows:
        raise ValueError(f"starts is {given}, but must have a number of tokens, 0 to {MOST_START}, for each row")
    return counts


def _cached(cache: Tensor | None, group: Sequence[int], samples: int) -> Tensor | None:
    """A checked cache for some of its rows, no longer than these."""
    if cache is None:
        return None
    return (cache if len(cache) == 1 else cache[group])[:, :, :samples]


def _parts(row: Utterance, splitting: Splitting | None) -> list[Piece]:
    cuts = [] if splitting is None else splitting.cuts(row.tokens.numpy())
    return pieces(len(row.tokens), cuts)


def _whole(parts: Sequence[Piece], waves: Sequence[Tensor]) -> Tensor:
    return waves[0] if len(waves) == 1 else join(parts, waves)
