"""A process that ends at a chosen storage operation."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import pytest

from jobs.storage.folders import Folder


class Killed(BaseException):
    """The process ends here."""


def killing(monkeypatch: pytest.MonkeyPatch, kinds: Collection[str], after: int) -> None:
    """Storage operations of these kinds work so often, and then the process ends."""
    left = [after]

    def counted(plain: Any) -> Any:
        def act(self: Folder, *args: Any) -> Any:
            if left[0] == 0:
                raise Killed
            left[0] -= 1
            return plain(self, *args)

        return act

    for kind in kinds:
        monkeypatch.setattr(Folder, kind, counted(getattr(Folder, kind)))
