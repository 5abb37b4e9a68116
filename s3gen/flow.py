"""Conditional flow matching: speech tokens, a prompt and a speaker to a log-mel, by Euler steps from noise.

Reference: chatterbox-tts 0.1.7, ``models/s3gen/flow.py`` and ``models/s3gen/flow_matching.py``.
Flow matching: Lipman et al., arXiv 2210.02747. Mean-flow: Geng et al., arXiv 2505.13447.

Each row is its prompt and its tokens joined. The encoder takes a right-padded batch and masks what padding its layers
could see; the solver takes the rows end to end, without padding.

Shape letters: B rows, N joined tokens, M mel bins, H halves of guidance.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from s3gen.compiled import Compiler, Graphs
from s3gen.config import FlowConfig
from s3gen.derived import state_of
from s3gen.encoder import UpsampleEncoder
from s3gen.estimator import Estimator
from s3gen.lean import PLAIN, Condition, Functions, LeanEstimator
from s3gen.packing import Packing
from s3gen.precision import HALF_TYPES
from s3gen.ragged import length_mask, pad_rows
from s3gen.scratch import Scratch

DEFAULT_STEPS = 10
DEFAULT_MEANFLOW_STEPS = 2

# Packed positions up to which the solver is recorded as a CUDA graph: beyond, its kernels run for longer than they
# take to launch, and a recording would only add the positions that its sizes are rounded up by.
MOST_RECORDED = 32_768


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
        self.dtype = "float32"  # of `s3gen.precision.DTYPES`
        self.compiler: Compiler | None = None
        self._lean: tuple[tuple[Any, ...], LeanEstimator] | None = None
        self._graphs = Graphs()

    @property
    def default_steps(self) -> int:
        """Euler steps when the caller does not say."""
        return DEFAULT_MEANFLOW_STEPS if self.meanflow else DEFAULT_STEPS

    def encode(self, tokens: Tensor, lengths: Sequence[int]) -> Tensor:
        """Joined tokens (B, N) int64, right-padded with any id, to mu (B, 2 x N, M)."""
        return self.mel_proj(self.encoder(self.token_embedding(tokens), lengths))

    def solve(
        self,
        mu: Sequence[Tensor],
        prompts: Sequence[Tensor],
        embedding: Tensor,
        noise: Sequence[Tensor],
        steps: int,
    ) -> list[Tensor]:
        """Integrate from noise to mel, the rows laid end to end.

        Args:
            mu: B rows (frames, M), of `encode`: prompt and generated frames.
            prompts: B rows (at most as many frames, M), the prompts' log-mels.
            embedding: (B, speaker width), as the speaker encoder gives it.
            noise: B rows like `mu`, standard normal.
            steps: Euler steps.

        Returns:
            B rows like `mu`: the log-mel of prompt and generated frames.
        """
        packing = self._packing([len(row) for row in mu], embedding.device)
        speakers = [row.expand(len(mu[place]), -1) for place, row in enumerate(self._speakers(embedding))]
        given = torch.cat((packing.pack(mu), packing.pack(speakers), packing.pack(prompts)), dim=1)
        times = self._times(steps, embedding)
        condition = self.lean().condition(given, times[:-1], times[1:], packing)
        return packing.split(self._integrate(packing.pack(noise), condition, packing))

    def _integrate(self, x: Tensor, condition: Condition, packing: Packing) -> Tensor:
        """From noise to mel, (L, M) both."""
        if not packing.rounded:
            return self._euler(x, condition, packing)

        def recorded(x: Tensor, gaps: Tensor, bounds: Tensor, *condition: Tensor) -> Tensor:
            return self._euler(x, Condition(*condition), packing.with_indices(gaps, bounds))

        inputs = (x, packing.gaps, packing.bounds, *condition)
        return self._graphs.run((packing.shape, len(condition.spans)), recorded, inputs).clone()

    def _euler(self, x: Tensor, condition: Condition, packing: Packing) -> Tensor:
        estimator = self.lean()
        scratch = Scratch(condition.first)
        for step, span in enumerate(condition.spans):
            velocity = estimator.velocity(x, condition, step, packing, scratch)
            x = x + span * self._guided(velocity)
        return x

    def solve_plain(
        self,
        mu: Sequence[Tensor],
        prompts: Sequence[Tensor],
        embedding: Tensor,
        noise: Sequence[Tensor],
        steps: int,
    ) -> list[Tensor]:
        """The same over a padded batch, with the estimator as it was trained: what `solve` is held against."""
        frames = [len(row) for row in mu]
        padded, copies = pad_rows(mu), 1 if self.meanflow else 2
        prompt = F.pad(pad_rows(prompts), (0, 0, 0, padded.shape[1] - max(len(row) for row in prompts)))
        speaker = self._speakers(embedding)[:, None, :].expand_as(padded)
        condition = torch.cat((padded, speaker, prompt), dim=2)
        condition = torch.cat((condition, torch.zeros_like(condition)))[: copies * len(frames)]
        mask = length_mask(frames * copies, padded.device)
        times = self._times(steps, padded)
        x = pad_rows(noise)
        for start, end in itertools.pairwise(times):
            velocity = self.estimator(x.repeat(copies, 1, 1), condition, self.estimator.embed_time(start, end), mask)
            x = x + (end - start) * self._guided(velocity.unflatten(0, (copies, -1)))
        return [row[:length] for row, length in zip(x, frames, strict=True)]

    def lean(self) -> LeanEstimator:
        """The estimator's weights as `solve` needs them, made again when they have changed, moved or been recast."""
        dtype = HALF_TYPES.get(self.dtype, self.mel_proj.weight.dtype)
        state = (dtype, self.compiler, state_of(self.estimator))
        if self._lean is None or self._lean[0] != state:
            functions = PLAIN if self.compiler is None else _compiled(self.compiler)
            self._lean = (state, LeanEstimator(self.estimator, dtype, functions))
            self._graphs = Graphs()  # recordings read the weights that they were made with
        return self._lean[1]

    def _packing(self, frames: Sequence[int], device: torch.device) -> Packing:
        copies = 1 if self.meanflow else 2
        # In half precision alone attention is one kernel whatever the rows' lengths, so that a recording fits others.
        recorded = self.compiler is not None and device.type == "cuda" and self.dtype in HALF_TYPES
        small = copies * sum(frames) <= MOST_RECORDED
        return Packing(frames, device, copies=copies, rounded=recorded and small)

    def _speakers(self, embedding: Tensor) -> Tensor:
        return self.speaker_proj(F.normalize(embedding, dim=1))

    def _guided(self, velocity: Tensor) -> Tensor:
        """One velocity of the halves (H, ...); mean-flow was distilled from guided output and has one."""
        if len(velocity) == 1:
            return velocity[0]
        return (1.0 + self.guidance) * velocity[0] - self.guidance * velocity[1]

    def _times(self, steps: int, like: Tensor) -> Tensor:
        times = torch.linspace(0, 1, steps + 1, dtype=like.dtype, device=like.device)
        if self.meanflow or self.schedule == "linear":
            return times
        return 1 - torch.cos(times * 0.5 * math.pi)


def _compiled(compiler: Compiler) -> Functions:
    return Functions(
        before_attention=compiler(PLAIN.before_attention),
        after_attention=compiler(PLAIN.after_attention),
        resnet=compiler(PLAIN.resnet),
        resnet_end=compiler(PLAIN.resnet_end),
    )
