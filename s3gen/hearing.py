"""What is heard in clips: their speech tokens, and what the model needs to know of a voice.

Reference: chatterbox-tts 0.1.7, ``models/s3gen/s3gen.py`` (``embed_ref``).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from s3gen.audio import PROMPT_MIN_SAMPLES, TOKENIZER_MIN_SAMPLES, PromptMel, batch_frames
from s3gen.clips import Clips, Rate, Wav, one_each, places, stacked
from s3gen.config import S3GenConfig
from s3gen.constants import FRAMES_PER_TOKEN, SAMPLE_RATE, TOKENIZER_HOP, TOKENIZER_RATE
from s3gen.precision import strict_float32
from s3gen.ragged import on_device, pad_rows, plan_batches
from s3gen.speaker import SPEAKER_MIN_SAMPLES, SpeakerEncoder
from s3gen.tokenizer import SpeechTokenizer


class Hearing(nn.Module):
    """Tokenizer and speaker encoder: the half of the model that turns clips into tokens and voices."""

    def __init__(self, config: S3GenConfig) -> None:
        super().__init__()
        self.tokenizer = SpeechTokenizer(config.tokenizer)
        self.speaker_encoder = SpeakerEncoder(config.speaker)
        self.prompt_mel = PromptMel()

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.prompt_mel.window.device

    @property
    def dtype(self) -> torch.dtype:
        """What its weights are in."""
        return self.prompt_mel.window.dtype

    @torch.no_grad()
    def tokenize(self, wav: Tensor | np.ndarray, sr: int) -> tuple[Tensor, Tensor]:
        """Speech tokens of audio, 25 per second.

        Args:
            wav: (L,) or (B, L) float in -1 .. 1.
            sr: its rate in Hz.

        Returns:
            Tokens (B, T) int64 and how many count in each row (B,) int64.

        Raises:
            ValueError: a shape, dtype or rate that is none, values that are not finite, or too little audio.
        """
        wavs, names = stacked(wav, "wav")
        clips = self._clips(wavs, [sr] * len(wavs), names)
        with strict_float32(self.device):
            rows = self.tokenizer.encode(*clips.hear(range(len(clips)), [TOKENIZER_RATE], self.device))
        return pad_rows(rows), on_device(torch.tensor([len(row) for row in rows]), self.device)

    @torch.no_grad()
    def tokenize_clips(self, wavs: Sequence[Wav], rates: Rate | Sequence[Rate]) -> list[Tensor]:
        """Speech tokens of many clips of any lengths and rates, in batches whose memory is bounded.

        A clip's tokens do not depend on the others. They are those of `tokenize`, but that a clip of over 30 s has all
        of them: one per 640 of its N samples at 16 kHz that are begun, not counting the last N % 160.

        Args:
            wavs: (L,) float in -1 .. 1 each.
            rates: their rates in Hz, one for all or one each.

        Returns:
            For each clip (T,) int64, on the model's device.

        Raises:
            ValueError: as `embed_refs`.
        """
        clips = self._clips(wavs, one_each(rates, wavs), places(wavs))
        tokens: dict[int, Tensor] = {}
        for batch in self._batches(clips):
            with strict_float32(self.device):
                (heard,) = clips.hear(batch, [TOKENIZER_RATE], self.device)
                tokens.update(zip(batch, self.tokenizer.encode(heard, whole=True), strict=True))
        return [tokens[row] for row in range(len(clips))]

    @torch.no_grad()
    def embed_ref(self, ref_wav: Tensor | np.ndarray, ref_sr: int) -> dict[str, Tensor]:
        """What the model needs to know of a voice.

        Args:
            ref_wav: (L,) or (B, L) float in -1 .. 1: one clip, or B clips of one length. It is not cut; the
                reference tools use the first 10 seconds.
            ref_sr: its rate in Hz.

        Returns:
            `prompt_token` (B, P) int64, `prompt_token_len` (B,) int64, `prompt_feat` (B, 2 x P, 80),
            `prompt_feat_len` (B,) int64, `embedding` (B, 192); on the model's device, in its dtype.

        Raises:
            ValueError: as `tokenize`.
        """
        wavs, names = stacked(ref_wav, "ref_wav")
        refs = self._refs(wavs, [ref_sr] * len(wavs), names)
        return {name: torch.cat([ref[name] for ref in refs]) for name in refs[0]}

    @torch.no_grad()
    def embed_refs(self, wavs: Sequence[Wav], rates: Rate | Sequence[Rate]) -> list[dict[str, Tensor]]:
        """The same for many clips of any lengths and rates, in batches whose memory is bounded.

        What is found of a clip does not depend on the others, to rounding. On CUDA the work is queued, and the caller
        does not wait for it.

        Args:
            wavs: (L,) float in -1 .. 1 each.
            rates: their rates in Hz, one for all or one each.

        Returns:
            For each clip what `embed_ref` returns, B = 1.

        Raises:
            ValueError: as `tokenize`, with the place of the clip, before anything is computed; or lists of different
                lengths.
        """
        return self._refs(wavs, one_each(rates, wavs), places(wavs))

    def _refs(self, wavs: Sequence[Wav], rates: Sequence[Rate], names: Sequence[str]) -> list[dict[str, Tensor]]:
        least = {TOKENIZER_RATE: SPEAKER_MIN_SAMPLES, SAMPLE_RATE: PROMPT_MIN_SAMPLES}
        clips = Clips(wavs, rates, names=names, least=least, dtype=self.dtype)
        refs: dict[int, dict[str, Tensor]] = {}
        for batch in self._batches(clips):
            with strict_float32(self.device):
                low, high = clips.hear(batch, [TOKENIZER_RATE, SAMPLE_RATE], self.device)
                found = zip(
                    self.tokenizer.encode(low),
                    self.prompt_mel.batch(high),
                    self.speaker_encoder.encode(low),
                    strict=True,
                )
                refs.update((row, _ref(*parts)) for row, parts in zip(batch, found, strict=True))
        return [refs[row] for row in range(len(clips))]

    def _clips(self, wavs: Sequence[Wav], rates: Sequence[Rate], names: Sequence[str]) -> Clips:
        return Clips(wavs, rates, names=names, least={TOKENIZER_RATE: TOKENIZER_MIN_SAMPLES}, dtype=self.dtype)

    def _batches(self, clips: Clips) -> list[list[int]]:
        frames = [samples // TOKENIZER_HOP for samples in clips.lengths(TOKENIZER_RATE)]
        return plan_batches(frames, batch_frames(self.device))


def _ref(tokens: Tensor, mel: Tensor, embedding: Tensor) -> dict[str, Tensor]:
    """What `embed_ref` returns of one clip."""
    # The published code keeps an odd last frame here, and later returns a frame too few for it.
    count = min(len(tokens), len(mel) // FRAMES_PER_TOKEN)
    frames = count * FRAMES_PER_TOKEN
    return {
        "prompt_token": tokens[None, :count],
        "prompt_token_len": torch.full((1,), count, device=tokens.device),
        "prompt_feat": mel[None, :frames],
        "prompt_feat_len": torch.full((1,), frames, device=mel.device),
        "embedding": embedding[None],
    }
