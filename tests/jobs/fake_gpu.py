"""A GPU that is none: it counts the memory that batches would take. Ray's processes import it from here."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from jobs.config.config import config_from
from jobs.engine.models import solver_of
from jobs.estimate.budget import Calibrator
from s3gen import S3GenModel, Voice
from s3gen.constants import FRAMES_PER_TOKEN


class FakeGpu:
    """Its memory, and the model on it, which makes the batches on the CPU if there is one.

    Args:
        total: bytes.
        held: bytes that the weights take.
        fixed: bytes that a batch takes, however small.
        per_frame: bytes more for each of its frames.
    """

    def __init__(
        self, total: int, *, held: int = 0, fixed: int = 0, per_frame: int = 1, model: S3GenModel | None = None
    ) -> None:
        self._total, self._held, self._fixed, self._per_frame = total, held, fixed, per_frame
        self._model = model
        self.most = held
        self.made: list[int] = []  # frames of each batch that fitted

    def synthesize(
        self, tokens: Sequence[Tensor], refs: Sequence[Voice], seeds: Sequence[int], **kwargs: Any
    ) -> list[Tensor]:
        """A batch."""
        rows = zip(tokens, refs, strict=True)
        frames = FRAMES_PER_TOKEN * sum(len(row) + len(voice.prompt_token) for row, voice in rows)
        self.most = self._held + self._fixed + self._per_frame * frames
        if self.most > self._total:
            raise torch.OutOfMemoryError(f"{self.most} bytes of {self._total}")
        waves = [] if self._model is None else self._model.synthesize(tokens, refs, seeds, **kwargs)
        self.made.append(frames)
        return waves

    def free(self) -> int:
        return self._total - self._held

    def total(self) -> int:
        return self._total

    def taken(self) -> int:
        return self._held

    def peak(self, run: Callable[[], object]) -> int:
        run()
        return self.most


def open_calibrator(*, config: Mapping[str, Any], options: Mapping[str, Any], threads: int, gpus: float) -> Calibrator:
    """In the place of the real one: for a GPU with room for 3,000 frames; half of that for half a GPU."""
    assert config["batch"] == {"max_frames": "auto"}
    torch.set_num_threads(threads)
    model = S3GenModel.from_pretrained(config["model"])
    gpu = FakeGpu(int(3_000 * 1_000 * gpus / 0.8), per_frame=1_000, model=model)
    return Calibrator(gpu, gpu, solver_of(config_from(config)))  # type: ignore[arg-type]


class Hopeless:
    """A calibrator that cannot do its work."""

    def __init__(self, **arguments: Any) -> None:
        pass

    def run(self, task: object) -> Any:
        raise ValueError("the card is on fire")
