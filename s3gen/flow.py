"""Conditional flow matching: speech tokens, a prompt and a speaker to a log-mel, by Euler steps from noise.

Reference: chatterbox-tts 0.1.7, ``models/s3gen/flow.py`` and ``models/s3gen/flow_matching.py``.
Flow matching: Lipman et al., arXiv 2210.02747. Mean-flow: Geng et al., arXiv 2505.13447.

Each row is its prompt and its tokens joined, then padded on the right; what padding the layers could see is masked
in the encoder and in the attention.

Shape letters: B rows, N joined tokens, T = 2 x N frames (6 fewer when the look-ahead is held back), M mel bins.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from s3gen.config import FlowConfig
from s3gen.encoder import UpsampleEncoder
from s3gen.estimator import Estimator
from s3gen.ragged import length_mask

DEFAULT_STEPS = 10
DEFAULT_MEANFLOW_STEPS = 2


class Flow(nn.Module):
    """Tokens to mel: `encode` to mu, then `solve` from noise."""

    def __init__(self, config: FlowConfig) -> None:
        super().__init__()
        self.guidance = config.guidance
        self.schedule = config.schedule
        self.meanflow = config.estimator.meanflow
        self.token_embedding = nn.Embedding(config.vocab_size, config.encoder.input_dim)
        self.speaker_proj = nn.Linear(config.speaker_dim, config.mels)
        self.encoder = UpsampleEncoder(config.encoder)
        self.mel_proj = nn.Linear(config.encoder.dim, config.mels)
        self.estimator = Estimator(config.estimator)

    @property
    def default_steps(self) -> int:
        """Euler steps when the caller does not say."""
        return DEFAULT_MEANFLOW_STEPS if self.meanflow else DEFAULT_STEPS

    def encode(self, tokens: Tensor, lengths: Sequence[int]) -> Tensor:
        """Joined tokens (B, N) int64, right-padded with any id, to mu (B, 2 x N, M)."""
        return self.mel_proj(self.encoder(self.token_embedding(tokens), lengths))

    def solve(
        self, mu: Tensor, frames: Sequence[int], prompt: Tensor, embedding: Tensor, noise: Tensor, steps: int
    ) -> Tensor:
        """Integrate from noise to mel.

        Args:
            mu: (B, T, M), of `encode`.
            frames: B frames per row, prompt included; the longest is T.
            prompt: (B, T, M), the prompt's log-mel at each row's start, zeros after it.
            embedding: (B, speaker width), as the speaker encoder gives it.
            noise: (B, T, M) standard normal; any finite filler in the padding.
            steps: Euler steps.

        Returns:
            (B, T, M): the log-mel of prompt and generated frames; meaningless in the padding.
        """
        mask = length_mask(frames, mu.device)
        speaker = self.speaker_proj(F.normalize(embedding, dim=1))[:, None, :].expand_as(mu)
        condition = torch.cat((mu, speaker, prompt), dim=2)
        guided = not self.meanflow  # mean-flow was distilled from guided output and needs no second half
        if guided:
            condition = torch.cat((condition, torch.zeros_like(condition)))
            mask = None if mask is None else mask.repeat(2, 1)
        times = self._times(steps, mu)
        embeddings = [self.estimator.embed_time(start, end) for start, end in itertools.pairwise(times)]
        x = noise
        for step, embedded in enumerate(embeddings):
            velocity = self._velocity(x, condition, embedded, mask, guided=guided)
            x = x + (times[step + 1] - times[step]) * velocity
        return x

    def _velocity(self, x: Tensor, condition: Tensor, time: Tensor, mask: Tensor | None, *, guided: bool) -> Tensor:
        if not guided:
            return self.estimator(x, condition, time, mask)
        given, free = self.estimator(x.repeat(2, 1, 1), condition, time, mask).chunk(2)
        return (1.0 + self.guidance) * given - self.guidance * free

    def _times(self, steps: int, like: Tensor) -> Tensor:
        times = torch.linspace(0, 1, steps + 1, dtype=like.dtype, device=like.device)
        if self.meanflow or self.schedule == "linear":
            return times
        return 1 - torch.cos(times * 0.5 * math.pi)
