"""Conditional flow matching: speech tokens, a prompt and a speaker to a log-mel, by steps from noise.

Reference: chatterbox-tts 0.1.7, ``models/s3gen/flow.py`` and ``models/s3gen/flow_matching.py``.
Flow matching: Lipman et al., arXiv 2210.02747. Mean-flow: Geng et al., arXiv 2505.13447.

Each row is its prompt and its tokens joined. The encoder takes a right-padded batch and masks what padding its layers
could see; the solver takes the rows end to end, without padding.

Shape letters: B rows, N joined tokens, M mel bins, H halves of guidance.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
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
from s3gen.solver import Course, Solver, evaluation_spans, evaluation_times, integrate

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

    def prepare(self, *, dtype: str, compiler: Compiler | None) -> None:
        """Choose how `solve` computes, and drop what was derived from the weights: it may be theirs no longer."""
        self.dtype = dtype
        self.compiler = compiler
        self._lean = None

    @property
    def default_steps(self) -> int:
        """Steps when the caller does not say."""
        return DEFAULT_MEANFLOW_STEPS if self.meanflow else DEFAULT_STEPS

    def encode(self, tokens: Tensor, lengths: Sequence[int], finalize: bool = True) -> Tensor:
        """Joined tokens (B, N) int64, right-padded with any id, to mu (B, 2 x N, M).

        What of mu belongs to tokens that are held back (not `finalize`) is not to be used.
        """
        return self.mel_proj(self.encoder(self.token_embedding(tokens), lengths, finalize))

    def solve(
        self,
        mu: Sequence[Tensor],
        prompts: Sequence[Tensor],
        embedding: Tensor,
        noise: Sequence[Tensor],
        solver: Solver,
    ) -> list[Tensor]:
        """Integrate from noise to mel, the rows laid end to end.

        Args:
            mu: B rows (frames, M), of `encode`: prompt and generated frames.
            prompts: B rows (at most as many frames, M), the prompts' log-mels.
            embedding: (B, speaker width), as the speaker encoder gives it.
            noise: B rows like `mu`, standard normal.
            solver: how.

        Returns:
            B rows like `mu`: the log-mel of prompt and generated frames.

        Raises:
            ValueError: as `course`.
        """
        course = self.course(solver)
        packings = self._packings([len(row) for row in mu], embedding.device, course)
        whole = packings[max(packings)]
        speakers = [row.expand(len(mu[place]), -1) for place, row in enumerate(self._speakers(embedding))]
        given = torch.cat((whole.pack(mu), whole.pack(speakers), whole.pack(prompts)), dim=1)
        starts, ends, spans = self._times(course, embedding)
        condition = self.lean().condition(given, starts, ends, whole)._replace(spans=spans)
        return whole.split(self._integrated(whole.pack(noise), condition, packings, course))

    def course(self, solver: Solver) -> Course:
        """What a solver does with this model.

        Raises:
            ValueError: a mean-flow model, and anything but Euler's method without guidance.
        """
        steps = self.default_steps if solver.steps is None else solver.steps
        guidance = self.guidance if solver.guidance is None else solver.guidance
        if self.meanflow:
            _check_meanflow(solver)
            guidance = 0.0
        times = evaluation_times(solver.method, self._grid(steps, torch.zeros((), dtype=torch.float64, device="cpu")))
        first, last = solver.guidance_interval
        halves = tuple(2 if guidance and first <= time <= last else 1 for time in times.tolist())
        return Course(solver.method, steps, guidance, halves)

    def _integrated(self, x: Tensor, condition: Condition, packings: Mapping[int, Packing], course: Course) -> Tensor:
        """From noise to mel, (L, M) both; `packings` by their number of copies."""
        if not packings[max(packings)].rounded:
            return self._solved(x, condition, packings, course)

        def recorded(x: Tensor, *inputs: Tensor) -> Tensor:
            tensors = iter(inputs)
            read = {copies: each.with_indices(next(tensors), next(tensors)) for copies, each in packings.items()}
            return self._solved(x, Condition(*tensors), read, course)

        indices = [tensor for packing in packings.values() for tensor in (packing.gaps, packing.bounds)]
        key = (course, *(packing.shape for packing in packings.values()))
        return self._graphs.run(key, recorded, (x, *indices, *condition)).clone()

    def _solved(self, x: Tensor, condition: Condition, packings: Mapping[int, Packing], course: Course) -> Tensor:
        estimator, scratch = self.lean(), Scratch(condition.first)

        def velocity(x: Tensor, number: int) -> Tensor:
            halves = course.halves[number]
            part = condition._replace(first=condition.first[:halves], skip=condition.skip[:halves])
            return _guided(estimator.velocity(x, part, number, packings[halves], scratch), course.guidance)

        return integrate(course.method, x, condition.spans, velocity)

    def solve_plain(
        self,
        mu: Sequence[Tensor],
        prompts: Sequence[Tensor],
        embedding: Tensor,
        noise: Sequence[Tensor],
        solver: Solver,
    ) -> list[Tensor]:
        """The same over a padded batch, with the estimator as it was trained: what `solve` is held against."""
        course, frames, padded = self.course(solver), [len(row) for row in mu], pad_rows(mu)
        prompt = F.pad(pad_rows(prompts), (0, 0, 0, padded.shape[1] - max(len(row) for row in prompts)))
        speaker = self._speakers(embedding)[:, None, :].expand_as(padded)
        condition = torch.cat((padded, speaker, prompt), dim=2)
        condition = torch.cat((condition, torch.zeros_like(condition)))
        starts, ends, spans = self._times(course, padded)

        def velocity(x: Tensor, number: int) -> Tensor:
            halves = course.halves[number]
            time = self.estimator.embed_time(starts[number], ends[number])
            mask = length_mask(frames * halves, padded.device)
            found = self.estimator(x.repeat(halves, 1, 1), condition[: halves * len(frames)], time, mask)
            return _guided(found.unflatten(0, (halves, -1)), course.guidance)

        x = integrate(course.method, pad_rows(noise), spans, velocity)
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

    def _packings(self, frames: Sequence[int], device: torch.device, course: Course) -> dict[int, Packing]:
        """The rows once, twice, or both, by the number of copies that the course's evaluations need."""
        # In half precision alone attention is one kernel whatever the rows' lengths, so that a recording fits others.
        recorded = self.compiler is not None and device.type == "cuda" and self.dtype in HALF_TYPES
        small = max(course.halves) * sum(frames) <= MOST_RECORDED
        copies = sorted(set(course.halves))
        return {each: Packing(frames, device, copies=each, rounded=recorded and small) for each in copies}

    def _speakers(self, embedding: Tensor) -> Tensor:
        return self.speaker_proj(F.normalize(embedding, dim=1))

    def _times(self, course: Course, like: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Where each evaluation's step begins and ends (only mean-flow looks at the end), and how far it goes."""
        grid = self._grid(course.steps, like)
        starts = evaluation_times(course.method, grid)
        ends = grid[1:] if course.method == "euler" else starts
        return starts, ends, evaluation_spans(course.method, grid)

    def _grid(self, steps: int, like: Tensor) -> Tensor:
        times = torch.linspace(0, 1, steps + 1, dtype=like.dtype, device=like.device)
        if self.meanflow or self.schedule == "linear":
            return times
        return 1 - torch.cos(times * 0.5 * math.pi)


def _guided(velocity: Tensor, guidance: float) -> Tensor:
    """One velocity of the halves (H, ...)."""
    if len(velocity) == 1:
        return velocity[0]
    return (1.0 + guidance) * velocity[0] - guidance * velocity[1]


def _check_meanflow(solver: Solver) -> None:
    # It was distilled from guided output, and from Euler's steps.
    if solver.method != "euler" or solver.guidance or solver.guidance_interval != (0.0, 1.0):
        raise ValueError(
            f"this is a mean-flow model, which Euler's method solves without guidance; {solver} cannot be: leave out "
            "method, guidance and guidance_interval"
        )


def _compiled(compiler: Compiler) -> Functions:
    return Functions(
        before_attention=compiler(PLAIN.before_attention),
        after_attention=compiler(PLAIN.after_attention),
        resnet=compiler(PLAIN.resnet),
        resnet_end=compiler(PLAIN.resnet_end),
    )
