"""What is heard in clips: their speech tokens, and what the model needs to know of a voice.

Reference: chatterbox-tts 0.1.7, ``models/s3gen/s3gen.py`` (``embed_ref``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from s3gen.audio import PROMPT_MIN_SAMPLES, TOKENIZER_MIN_SAMPLES, PromptMel, batch_frames
from s3gen.clips import Clips, Rate, Wav
from s3gen.constants import FRAMES_PER_TOKEN, SAMPLE_RATE, TOKENIZER_HOP, TOKENIZER_RATE
from s3gen.precision import strict_float32
from s3gen.ragged import plan_batches
from s3gen.speaker import SPEAKER_MIN_SAMPLES, SpeakerEncoder
from s3gen.tokenizer import SpeechTokenizer


@dataclass(frozen=True, slots=True)
class Hearing:
    """The networks that hear; one device and dtype."""

    tokenizer: SpeechTokenizer
    speaker_encoder: SpeakerEncoder
    prompt_mel: PromptMel

    @property
    def device(self) -> torch.device:
        """Where they are."""
        return self.prompt_mel.window.device

    @property
    def dtype(self) -> torch.dtype:
        """What they compute in."""
        return self.prompt_mel.window.dtype

    def tokens(self, wavs: Sequence[Wav], rates: Sequence[Rate], names: Sequence[str]) -> list[Tensor]:
        """The tokens of clips, all of them in one batch; a clip of over 30 s may lack some.

        Args:
            wavs: (N,) float in -1 .. 1 each.
            rates: their rates in Hz.
            names: what errors call them.

        Returns:
            For each clip (T,) int64, on the device.

        Raises:
            ValueError: as `Clips`.
        """
        clips = self._clips(wavs, rates, names)
        with strict_float32(self.device):
            return self.tokenizer.encode(*clips.hear(range(len(clips)), [TOKENIZER_RATE], self.device))

    def all_tokens(self, wavs: Sequence[Wav], rates: Sequence[Rate], names: Sequence[str]) -> list[Tensor]:
        """The same in batches whose memory is bounded, and with all tokens of long clips."""
        clips = self._clips(wavs, rates, names)
        tokens: dict[int, Tensor] = {}
        for batch in self._batches(clips):
            with strict_float32(self.device):
                (heard,) = clips.hear(batch, [TOKENIZER_RATE], self.device)
                tokens.update(zip(batch, self.tokenizer.encode(heard, whole=True), strict=True))
        return [tokens[row] for row in range(len(clips))]

    def refs(self, wavs: Sequence[Wav], rates: Sequence[Rate], names: Sequence[str]) -> list[dict[str, Tensor]]:
        """What `S3GenModel.embed_ref` returns of each clip, in batches whose memory is bounded.

        Arguments and errors are those of `tokens`.
        """
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
