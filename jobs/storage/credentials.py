"""Credentials: which texts are some, and messages without them."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any

from jobs.storage.urls import GIVING_ACCESS, Options

PUBLIC_OPTIONS = frozenset(
    {"endpoint_url", "region_name", "anon", "requester_pays", "use_ssl", "profile"}
    | {"addressing_style", "signature_version", "request_checksum_calculation", "response_checksum_validation"}
)
SHORTEST = 4  # characters: shorter texts stand in too many words
_SECRET_VARIABLE = re.compile(r"SECRET|TOKEN|PASSWORD|CREDENTIAL|CONNECTION_STRING|KEY(_ID)?$")
_SHORTEST_VARIABLE = 8  # their names promise less than those of options do
_IN_TEXT = (
    re.compile(rf"(?i)([?&;#\s](?:{GIVING_ACCESS})=)[^&;\s\"'<>]+"),
    re.compile(r"((?:Credential|Signature)=)[^,&\s\"'<>]+"),  # of an Authorization header
    re.compile(r"(?i)(x-amz-security-token['\"]?\s*:\s*b?['\"]?)[^\s,'\"}]+"),
    re.compile(r"([A-Za-z][A-Za-z0-9+.-]*://)[^/\s\"'@]+(?=@)"),
)


def secret_texts(options: Options | None) -> list[str]:
    """The texts that no message may hold, longest first: values of the options at any depth, and of the environment."""
    named = [text for name, text in os.environ.items() if _SECRET_VARIABLE.search(name.upper())]
    found = {text for text in named if len(text) >= _SHORTEST_VARIABLE}
    pending: list[tuple[str, Any]] = list((options or {}).items())
    while pending:
        key, value = pending.pop()
        if isinstance(value, Mapping):
            pending.extend((str(name), each) for name, each in value.items())
        elif isinstance(value, list | tuple | set | frozenset):
            pending.extend((key, each) for each in value)
        elif isinstance(value, str | bytes) and key not in PUBLIC_OPTIONS:
            found.add(value if isinstance(value, str) else value.decode("utf-8", "replace"))
    return sorted((text for text in found if len(text) >= SHORTEST), key=len, reverse=True)


def scrubbed(text: str, hidden: list[str]) -> str:
    """``text`` with ``***`` for the hidden texts, and for signatures and passwords that stand in URLs and headers."""
    for secret in hidden:
        text = text.replace(secret, "***")
    for pattern in _IN_TEXT:
        text = pattern.sub(r"\1***", text)
    return text
