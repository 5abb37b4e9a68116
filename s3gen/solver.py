"""How the flow's equation is solved: by which method, in how many steps, and with how much guidance where.

Methods: Hairer, Norsett, Wanner, "Solving Ordinary Differential Equations I", 1993, II.1. Classifier-free guidance: Ho
and Salimans, arXiv 2207.12598. Guidance on part of the way: Kynkaanniemi et al., arXiv 2404.07724.

Time runs from 0, where all is noise, to 1, where the mel is.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from s3gen.integers import integer

# A step's evaluations of the velocity: euler at its start; midpoint at its start and its middle; heun at both ends.
METHODS = {"euler": 1, "midpoint": 2, "heun": 2}
MOST_STEPS = 10_000  # ten for each radian of the fastest sine that the estimator is given time as
MOST_GUIDANCE = 100  # far beyond any that helps, and far below those whose mel is not finite


@dataclass(frozen=True, kw_only=True, slots=True)
class Solver:
    """A choice of solver. What is left out is the model's own: 10 Euler steps at a guidance of 0.7 all the way.

    Attributes:
        method: one of `METHODS`.
        steps: 1 to 10,000, on the model's time grid; None: 10, or 2 for a mean-flow model.
        guidance: rate g of (1 + g) x conditional - g x unconditional velocity, 0 to 100; 0 computes the conditional
            one alone. None: the model's own, 0.7.
        guidance_interval: the times, both included, at which there is guidance; elsewhere the conditional velocity is
            computed alone, which is half the work.

    Raises:
        ValueError: a field that is none of these.
    """

    method: str = "euler"
    steps: int | None = None
    guidance: float | None = None
    guidance_interval: tuple[float, float] = (0.0, 1.0)

    def __post_init__(self) -> None:
        if not isinstance(self.method, str) or self.method not in METHODS:
            raise ValueError(f"the solver's method is {self.method!r}, but must be one of {', '.join(METHODS)}")
        if self.steps is not None:
            object.__setattr__(self, "steps", _checked_steps("the solver's steps", self.steps))
        if self.guidance is not None and not (_is_number(self.guidance) and 0 <= self.guidance <= MOST_GUIDANCE):
            raise ValueError(
                f"the solver's guidance is {self.guidance!r}, but must be a number from 0 to {MOST_GUIDANCE}, or None"
            )
        interval = self.guidance_interval
        if not (isinstance(interval, tuple | list) and len(interval) == 2 and all(map(_is_number, interval))):
            raise ValueError(f"the solver's guidance_interval is {interval!r}, but must be two numbers (first, last)")
        object.__setattr__(self, "guidance_interval", tuple(interval))
        if not 0 <= interval[0] < interval[1] <= 1:
            raise ValueError(f"the solver's guidance_interval is {interval!r}, but must rise and lie within 0..1")


@dataclass(frozen=True, slots=True)
class Course:
    """What a solver does with one model. Courses that are equal do the same.

    Attributes:
        method: one of `METHODS`.
        steps: of the time grid.
        guidance: the rate where there is any.
        halves: of each evaluation of the velocity: 2 with guidance, which needs the unconditional half too, else 1.
    """

    method: str
    steps: int
    guidance: float
    halves: tuple[int, ...]


def chosen(solver: Solver | None, steps: int | None) -> Solver:
    """The solver that `solver` and `n_cfm_timesteps` say together.

    Raises:
        ValueError: steps out of range or of another type, both of them give steps, or `solver` is none.
    """
    if solver is not None and not isinstance(solver, Solver):
        raise ValueError(f"solver is {solver!r}, but must be an s3gen.Solver, such as Solver(method='heun', steps=5)")
    solver = Solver() if solver is None else solver
    if steps is None:
        return solver
    steps = _checked_steps("n_cfm_timesteps", steps)
    if solver.steps not in (None, steps):
        raise ValueError(f"n_cfm_timesteps is {steps}, but the solver has {solver.steps} steps; give one of them")
    return replace(solver, steps=steps)


def evaluation_times(method: str, grid: Tensor) -> Tensor:
    """When the velocity is evaluated: (evaluations,), from the times (steps + 1,) that the steps lie between."""
    starts, ends = grid[:-1], grid[1:]
    if method == "euler":
        return starts
    return torch.stack((starts, (starts + ends) / 2 if method == "midpoint" else ends), dim=1).flatten()


def evaluation_spans(method: str, grid: Tensor) -> Tensor:
    """How far each evaluation's velocity is followed: (evaluations,), for `integrate`."""
    whole = grid[1:] - grid[:-1]
    if method == "euler":
        return whole
    return torch.stack((whole / 2, whole) if method == "midpoint" else (whole, whole / 2), dim=1).flatten()


def integrate(method: str, x: Tensor, spans: Tensor, velocity: Callable[[Tensor, int], Tensor]) -> Tensor:
    """Follow a velocity from the first time to the last.

    Args:
        method: one of `METHODS`.
        x: where it begins.
        spans: of `evaluation_spans`.
        velocity: at a place, at which of the evaluations.

    Returns:
        Where it ends, like `x`.
    """
    if method == "euler":
        for number, span in enumerate(spans):
            x = x + span * velocity(x, number)
        return x
    for number in range(0, len(spans), 2):
        first = velocity(x, number)
        second = velocity(x + spans[number] * first, number + 1)
        x = x + spans[number + 1] * (second if method == "midpoint" else first + second)
    return x


def _checked_steps(name: str, steps: int) -> int:
    count = integer(steps)
    if count is None or not 1 <= count <= MOST_STEPS:
        raise ValueError(f"{name} is {steps!r}, but must be an integer from 1 to {MOST_STEPS}")
    return count


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
