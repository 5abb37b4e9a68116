"""Credentials: which texts are some, and a message without them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from jobs.urls import Options

PUBLIC_OPTIONS = frozenset({"endpoint_url", "region_name", "anon", "requester_pays", "use_ssl"})
SECRET_ENVIRONMENT = ("AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_ACCESS_KEY_ID")


def secret_texts(options: Options | None) -> list[str]:
    """The texts that no message may hold, longest first."""
    found = {os.environ.get(name, "") for name in SECRET_ENVIRONMENT}
    pending: list[tuple[str, Any]] = list((options or {}).items())
    while pending:
        key, value = pending.pop()
        if isinstance(value, Mapping):
            pending.extend(value.items())
        elif isinstance(value, str) and key not in PUBLIC_OPTIONS:
            found.add(value)
    return sorted((text for text in found if len(text) > 3), key=len, reverse=True)


def scrubbed(text: str, hidden: list[str]) -> str:
    for secret in hidden:
        text = text.replace(secret, "***")
    return text
