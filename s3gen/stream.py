"""Speech from tokens that are still being made: audio leaves before the last token has come.

Encoder and estimator attend both ways, so nothing of theirs can be cached exactly. Every chunk is therefore solved anew
over the prompt, a bounded piece of what came before, the new tokens and a look-ahead, from noise that is drawn by the
absolute frame; its new frames go to the vocoder, which carries phase and source and repeats nothing.

Shape letters: n tokens, S samples.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Set
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from s3gen import noise as noises
from s3gen.constants import FRAMES_PER_TOKEN, LOOKAHEAD_TOKENS, TOKEN_RATE
from s3gen.integers import integer
from s3gen.ragged import on_device
from s3gen.solver import Solver, chosen
from s3gen.stream_vocoder import VocoderState, VocoderStream
from s3gen.synthesis import Synthesis, Utterance
from s3gen.tokens import TokenRow, check_tokens
from s3gen.voice import RefDict, Voice

CHUNK_TOKENS = 25  # one second
LEFT_SECONDS = 4.0
_NO_TOKENS = (str, bytes, bytearray, memoryview, Mapping, Set)  # though they have items or a length


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class StreamState:
    """Where a stream stands.

    Attributes:
        tokens: (n,) int64 on the CPU: the left context, then those that wait.
        context: how many of them are left context, their frames being made.
        start: tokens of the utterance before the first of `tokens`.
        vocoder: the frames that were made, and how far they were spoken.
    """

    tokens: Tensor
    context: int
    start: int
    vocoder: VocoderState

    @property
    def waiting(self) -> int:
        """Tokens whose frames are still to be made."""
        return len(self.tokens) - self.context

    @property
    def received(self) -> int:
        """Tokens since the beginning."""
        return self.start + len(self.tokens)


class Stream:
    """One utterance in pieces: tokens in by `push`, audio out of it and, at the end, out of `finish`.

    Attributes:
        state: where it stands, replaced by every step; None when it has ended.
    """

    def __init__(
        self,
        synthesis: Synthesis,
        voice: Voice | RefDict,
        *,
        seed: int = 0,
        solver: Solver | None = None,
        chunk_tokens: int = CHUNK_TOKENS,
        left_seconds: float = LEFT_SECONDS,
        start_fade: bool = True,
    ) -> None:
        """Begin an utterance; arguments and errors are those of `S3GenModel.stream`."""
        count = integer(chunk_tokens)
        if count is None or count < 1:
            raise ValueError(f"chunk_tokens is {chunk_tokens!r}, but must be an integer of at least 1")
        if (
            isinstance(left_seconds, bool)
            or not isinstance(left_seconds, int | float)
            or not 0 <= left_seconds < math.inf
        ):
            raise ValueError(f"left_seconds is {left_seconds!r}, but must be a number from 0 on")
        self.synthesis = synthesis
        self.solver = chosen(solver, None)
        synthesis.flow.course(self.solver)  # so that a solver that this model cannot have is found now
        self.seed = noises.check_seed(seed)
        known = Voice.from_ref(voice)
        synthesis.check_voices([known])
        self.voice = _placed(known, synthesis.device)
        self.chunk_tokens = count
        self.left_tokens = round(left_seconds * TOKEN_RATE)
        self.start_fade = start_fade
        self.vocoder = VocoderStream(synthesis.mel2wav)
        self.state: StreamState | None = StreamState(
            tokens=torch.zeros(0, dtype=torch.int64), context=0, start=0, vocoder=self.vocoder.begin(self.seed)
        )

    def push(self, tokens: int | TokenRow) -> Iterator[Tensor]:
        """More tokens.

        Args:
            tokens: one, or (n,) of them, from none on: integers 0 .. 6560.

        Returns:
            The waves (S,) that they allow, one per chunk, each made when it is asked for. The tokens are taken at once:
            what is not asked for comes out of a later call.

        Raises:
            ValueError: as `check_tokens`, with none of these tokens taken; or the stream has ended.
        """
        state = self._open()
        try:
            more = _row(tokens)
        except ValueError as error:
            raise ValueError(f"after {state.received} tokens of the stream: {error}") from None
        self.state = replace(state, tokens=torch.cat((state.tokens, more)))
        return self._ready()

    def finish(self) -> Iterator[Tensor]:
        """No more tokens: the waves (S,) of all that wait. The stream ends when the last of them was asked for.

        Raises:
            ValueError: there were no tokens, or the stream has ended.
        """
        if not self._open().received:
            raise ValueError("the stream's tokens are empty: an utterance needs at least one token")
        return self._rest()

    def over(self, tokens: Iterable[int | TokenRow]) -> Iterator[Tensor]:
        """The waves (S,) of all tokens, read no further ahead than the next wave needs.

        Raises:
            ValueError: at once, if `tokens` cannot be read one after the other.
        """
        try:
            portions = iter(None if isinstance(tokens, _NO_TOKENS) else tokens)  # type: ignore[arg-type]
        except TypeError:
            message = f"a stream's tokens must be an iterable of integers, not {type(tokens).__name__}"
            raise ValueError(message) from None
        return self._over(portions)

    def _over(self, tokens: Iterator[int | TokenRow]) -> Iterator[Tensor]:
        for some in tokens:
            yield from self.push(some)
        yield from self.finish()

    def _open(self) -> StreamState:
        if self.state is None:
            raise ValueError("the stream has ended: begin another for another utterance")
        return self.state

    def _ready(self) -> Iterator[Tensor]:
        while self._open().waiting >= self.chunk_tokens + LOOKAHEAD_TOKENS:
            wave, self.state = self._step(self._open())
            yield wave

    def _rest(self) -> Iterator[Tensor]:
        yield from self._ready()
        wave = self._last(self._open())
        self.state = None
        yield wave

    @torch.no_grad()
    def _step(self, state: StreamState) -> tuple[Tensor, StreamState]:
        """The samples that the next chunk allows, and the state behind it."""
        end = state.context + self.chunk_tokens
        mel = self._mel(replace(state, tokens=state.tokens[: end + LOOKAHEAD_TOKENS]), finalize=False)
        # At least a frame, so that audio leaves with the first chunk however small it is.
        wave, vocoder = self.vocoder.step(state.vocoder, mel, least=1)
        start = max(0, end - self.left_tokens)
        behind = StreamState(
            tokens=state.tokens[start:], context=end - start, start=state.start + start, vocoder=vocoder
        )
        return self._faded(wave, state), behind

    @torch.no_grad()
    def _last(self, state: StreamState) -> Tensor:
        mel = self._mel(state, finalize=True)
        return self._faded(self.vocoder.finish(state.vocoder, mel), state)

    def _mel(self, state: StreamState, *, finalize: bool) -> Tensor:
        """The new frames (1, 80, frames) of a state's tokens."""
        row = Utterance(state.tokens, self.voice, self.seed, state.start * FRAMES_PER_TOKEN)
        (mel,) = self.synthesis.mels([row], finalize=finalize, solver=self.solver)
        return mel[state.context * FRAMES_PER_TOKEN :].T[None]

    def _faded(self, waves: Tensor, state: StreamState) -> Tensor:
        """The wave (S,) that begins where `state` stands, faded in if that is within the utterance's beginning."""
        wave = waves[0]
        begun = state.vocoder.frames * self.synthesis.mel2wav.config.frame_samples
        fade = self.synthesis.start_fade[begun : begun + len(wave)] if self.start_fade else wave[:0]
        wave[: len(fade)] *= fade
        return wave


def _placed(voice: Voice, device: torch.device) -> Voice:
    """The voice where every chunk will want it."""
    return Voice(
        prompt_token=voice.prompt_token.cpu(),
        prompt_feat=on_device(voice.prompt_feat, device),
        embedding=on_device(voice.embedding, device),
    )


def _row(tokens: int | TokenRow) -> Tensor:
    """One token or several, checked: (n,) int64 on the CPU, from none on."""
    if isinstance(tokens, Tensor | np.ndarray | np.generic) and tokens.ndim == 0:
        return check_tokens(tokens.reshape(1))
    if isinstance(tokens, _NO_TOKENS):
        raise ValueError(f"speech tokens must be integers, not {type(tokens).__name__}")
    if isinstance(tokens, int | float):
        return check_tokens([tokens])
    if hasattr(tokens, "__len__") and not len(tokens):
        return torch.zeros(0, dtype=torch.int64)
    return check_tokens(tokens)
