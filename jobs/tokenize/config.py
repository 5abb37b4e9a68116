"""The configuration of a job of tokens."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from jobs.config.config import ModelName, Place, RunConfig, Text


class TokenizeConfig(RunConfig):
    """One job of tokens, checked. Of what `RunConfig` does not have, a resume refuses a change."""

    input: Place  # the recordings, see jobs/tokenize/inputs.py
    out: Place  # the token manifest
    model: ModelName
    model_file: Text | None = None
    voice: Text | None = None  # of all rows; None: what the input says
    shard_rows: Annotated[int, Field(ge=1, le=1_000_000)] = 512

    @property
    def folder(self) -> str:
        """The URL of the job's own folder, beside the token manifest."""
        return f"{self.out.rstrip('/')}.job"
