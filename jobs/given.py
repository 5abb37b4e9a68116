"""A job's configuration as a command line gives it: read, and said again in the commands that are suggested."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from typing import TYPE_CHECKING, Any

from jobs.command import (
    Command,
    config_argument,
    limit_option,
    manifest_option,
    options_of,
    overrides_of,
    set_option,
    storage_option,
)
from jobs.config.refusals import SECRET_KEYS

if TYPE_CHECKING:
    from jobs.config.config import JobConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class Given:
    """What a command was given that is about a job to be made.

    Attributes:
        config: the path of the configuration.
        changes: of `--set`.
        storage_options: the path of a file with them.
    """

    config: str
    changes: tuple[str, ...] = ()
    manifest: str | None = None
    limit: int | None = None
    storage_options: str | None = None

    def load(self) -> JobConfig:
        """The configuration, checked.

        Raises:
            InputError: with a message for the user.
        """
        from jobs.config.config import load_config

        overrides = overrides_of(self.changes, self.manifest)
        return load_config(self.config, overrides, storage_options=options_of(self.storage_options))

    def again(self, name: str, *more: str) -> str:
        """The line that gives another command the same job, without the limit.

        Args:
            more: what else it is given.
        """
        words = [word for change in self.changes if not _is_secret(change) for word in ("--set", change)]
        if self.manifest is not None:
            words += ["--manifest", self.manifest]
        return shlex.join(["s3gen", name, self.config, *words, *self.options(), *more])

    def options(self) -> list[str]:
        """What gives another command the same storage options; where they were no file, the name of one stands in."""
        if self.storage_options is not None:
            return ["--storage-options", self.storage_options]
        return ["--storage-options", "FILE"] if any(map(_is_secret, self.changes)) else []


def _is_secret(change: str) -> bool:
    return change.partition("=")[0].strip().partition(".")[0] in SECRET_KEYS


def job_options(function: Callable[..., None], storage: Callable[[Any], Any] = storage_option) -> Command:
    """Gives a command, for CONFIG and the options that belong to it, one `Given`.

    Args:
        storage: the option of that name, where it means something else.
    """

    @wraps(function)
    def run(
        config: str,
        changes: tuple[str, ...],
        manifest: str | None,
        limit: int | None,
        storage_options: str | None,
        **others: Any,
    ) -> None:
        given = Given(config=config, changes=changes, manifest=manifest, limit=limit, storage_options=storage_options)
        function(given, **others)

    for option in (storage, limit_option, manifest_option, set_option, config_argument):
        run = option(run)
    return run
