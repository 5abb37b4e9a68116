"""What a job would meet at its start, as far as a plan sees it: an output that is begun, a model that is not there."""

from __future__ import annotations

import os
from dataclasses import dataclass, field

from jobs.config.config import JobConfig
from jobs.config.plain_yaml import shown
from jobs.errors import InputError, JobError
from jobs.ledger.ledger import Ledger, exists, refuse_foreign
from jobs.plan import Plan
from jobs.storage.folders import Folder
from jobs.storage.urls import is_url
from jobs.trial import trial_output
from jobs.voices.table import VoiceTable
from s3gen.config import RANDOM_MODELS
from s3gen.location import is_hub_id

KIND = "synth"


@dataclass(kw_only=True, slots=True)
class Outset:
    """Where a job begins.

    Attributes:
        rows_left: of the manifest, or of the round of a job that tries rows again.
        is_begun: by an earlier run of the same job.
        problems: for which it would be refused, a text each.
    """

    rows_left: int
    is_begun: bool = False
    problems: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, config: JobConfig, plan: Plan, limit: int | None, voices: VoiceTable) -> Outset:
        """Looks at the output, and at the model's name alone: no model is read and no hub is asked."""
        found = cls(rows_left=plan.rows)
        if limit is not None:
            config = config.model_copy(update={"output": trial_output(config.output, limit)})
        try:
            found._look(config, plan, limit, voices)
        except JobError as error:
            found.problems.append(f"output: {error}")
        if not _may_be_a_model(config.model):
            found.problems.append(
                f"model: nothing is at {shown(config.model)}, and it is no hub id (owner/name), URL, "
                f"{' or '.join(RANDOM_MODELS)}"
            )
        return found

    def _look(self, config: JobConfig, plan: Plan, limit: int | None, voices: VoiceTable) -> None:
        folder = Folder(config.output, config.storage_options)
        if not exists(folder):
            refuse_foreign(folder)
            return
        ledger = Ledger.open(folder)
        if ledger.kind != KIND:
            raise InputError(f"{folder.url} holds a job of {ledger.kind}; choose another output")
        # The model, which is not read, is as it was.
        prints = {name: each for name, each in ledger.job["fingerprints"].items() if not name.startswith("voices")}
        prints |= voices.fingerprints
        ledger.check_unchanged({"config": config.frozen(), "limit": limit, "fingerprints": prints}, plan)
        self.is_begun = True
        self.rows_left = ledger.plan.rows - ledger.plan.rows_of(ledger.committed())


def _may_be_a_model(where: str) -> bool:
    return where in RANDOM_MODELS or is_url(where) or os.path.exists(where) or is_hub_id(where)
