"""Object stores to test against."""

from __future__ import annotations

import pytest

from jobs.stores import LocalStore, RemoteStore

STORE_CLASSES = (LocalStore, RemoteStore)


def ignore_conditions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes every store one that silently overwrites what a conditional write should have kept."""
    for store in STORE_CLASSES:
        monkeypatch.setattr(store, "create", lambda self, name, data: self.put(name, data))
