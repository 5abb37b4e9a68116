"""Opening the model that a command or a job names, with errors for its user."""

from __future__ import annotations

from typing import Literal

import torch

from jobs.config.config import JobConfig
from jobs.errors import InputError
from jobs.storage.credentials import scrubbed, secret_texts
from jobs.storage.faults import as_input, denied, passes, translated
from jobs.storage.filesystems import fsspec_options
from jobs.storage.patience import PATIENT
from jobs.storage.urls import Options, is_url, store_of
from s3gen import S3GenModel, Solver


@as_input("model")
def open_model(where: str, file: str | None, device: str, options: Options | None) -> S3GenModel:
    """`S3GenModel.from_pretrained`.

    Raises:
        InputError: there is no such model, it is not one, or nobody may read it.
        StorageError: its store does not answer.
    """
    hidden, given = secret_texts(options), fsspec_options(where, options)

    def load() -> S3GenModel:
        return S3GenModel.from_pretrained(where, file=file, device=device, storage_options=given)

    try:
        if not is_url(where):
            return load()
        return PATIENT.repeat(load, store=store_of(where), what=f"read the model {where}", hidden=hidden)
    except (ValueError, FileNotFoundError, ImportError) as error:
        raise InputError(f"model: {scrubbed(str(error), hidden)}") from None
    except Exception as error:
        if not (isinstance(error, OSError) or passes(error) or denied(error)):
            raise
        raise translated(f"cannot read the model {where}", error, hidden, uncertain=False) from None


def open_prepared(config: JobConfig, options: Options | None, threads: int) -> S3GenModel:
    """The model of a job as its workers run it: on this process's device, in the job's dtype.

    Args:
        threads: of the model on a CPU. Sums depend on it in their last bits.

    Raises:
        InputError: as `open_model` and `device_of`.
    """
    settle(threads)
    model = open_model(config.model, config.model_file, device_of(config.engine.device), options)
    return model.prepare(dtype=config.engine.dtype, compile=config.engine.compile)


def solver_of(config: JobConfig) -> Solver:
    """How the flow of a job is solved."""
    engine = config.engine
    first, last = engine.guidance_interval or (0.0, 1.0)
    return Solver(
        method=engine.solver,
        steps=engine.n_cfm_timesteps,
        guidance=engine.guidance,
        guidance_interval=(first, last),
    )


def check_solver(model: S3GenModel, config: JobConfig) -> None:
    """Returns when the job's model can be solved as the job says.

    Raises:
        InputError: it cannot.
    """
    try:
        model.flow.course(solver_of(config))
    except ValueError as error:
        raise InputError(f"engine.solver, engine.guidance, engine.guidance_interval: {error}") from None


def settle(threads: int) -> None:
    """This process computes with so many threads on a CPU, and the same each time on a GPU."""
    torch.set_num_threads(threads)
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = True


def device_of(wanted: Literal["auto", "cpu", "cuda"]) -> Literal["cpu", "cuda"]:
    """The device of this process, as a configuration asks for it.

    Raises:
        InputError: the configuration names one that it has not.
    """
    has_gpu = torch.cuda.is_available()
    if wanted == "cuda" and not has_gpu:
        raise InputError("engine.device: cuda is asked for, and torch finds no GPU; give cpu or auto")
    return "cuda" if has_gpu and wanted != "cpu" else "cpu"
