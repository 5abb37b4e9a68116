"""A worker whose model dies of some rows; Ray's processes import it from here."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from typing import Any

import torch

from jobs.worker.worker import Worker
from s3gen import S3GenModel


class Poisoned:
    """A model to which some tokens are deadly."""

    KILLER, HANGER, FAULTY = 4_242, 4_243, 4_244

    def __init__(self, model: S3GenModel) -> None:
        self._model, self.device = model, model.device

    def synthesize(self, tokens: Sequence[torch.Tensor], *args: Any, **kwargs: Any) -> list[torch.Tensor]:
        for row in tokens:
            if self.KILLER in row:
                os._exit(1)
            if self.HANGER in row:
                time.sleep(1_000)
            if self.FAULTY in row:
                raise RuntimeError("a faulty driver")
        return self._model.synthesize(tokens, *args, **kwargs)


def open_poisoned(**arguments: Any) -> Worker:
    """A worker of a job, with such a model."""
    worker = Worker.open(**arguments)
    worker._engine._model = Poisoned(worker._model)  # type: ignore[assignment]
    return worker
