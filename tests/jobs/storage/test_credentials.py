"""What must never be read in a message."""

from __future__ import annotations

from typing import Any

import pytest

from jobs.storage.credentials import scrubbed, secret_texts
from jobs.storage.faults import translated


@pytest.mark.parametrize(
    "options",
    [
        {"secret": "hunter22"},
        {"s3": {"client_kwargs": {"aws_secret_access_key": "hunter22"}}},
        {"headers": [{"Authorization": "hunter22"}, "x"]},
        {"token": b"hunter22"},
        {"connection_string": ("a", "hunter22")},
    ],
)
def test_a_secret_anywhere_in_the_options_is_left_out(options: dict[str, Any]) -> None:
    error = translated("cannot read s3://b/a", OSError("wrong: hunter22!"), secret_texts(options), uncertain=True)
    assert "hunter22" not in str(error)
    assert "cannot read s3://b/a: wrong: ***!" in str(error)


@pytest.mark.parametrize(
    "name",
    ["AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_ACCESS_KEY_ID", "AZURE_STORAGE_CONNECTION_STRING", "HF_TOKEN"],
)
def test_a_secret_of_the_environment_is_left_out(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "hunter22")
    assert scrubbed("wrong: hunter22!", secret_texts(None)) == "wrong: ***!"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (
            "GET https://b.s3.amazonaws.com/m?X-Amz-Credential=hunter22&partNumber=1&X-Amz-Signature=hunter22",
            "https://b.s3.amazonaws.com/m?X-Amz-Credential=***&partNumber=1&X-Amz-Signature=***",
        ),
        (
            "GET https://storage.googleapis.com/b/m?X-Goog-Credential=hunter22&alt=media&X-Goog-Signature=hunter22",
            "/b/m?X-Goog-Credential=***&alt=media&X-Goog-Signature=***",
        ),
        ("https://host/m?access_token=hunter22#token=hunter22", "/m?access_token=***"),
        ("https://d1.cloudfront.net/m?Policy=hunter22&Key-Pair-Id=hunter22", "/m?Policy=***&Key-Pair-Id=***"),
        ("https://x.blob.core.windows.net/c/b?sv=2022&sig=hunter22", "sv=2022&sig=***"),
        (
            "'Authorization': b'AWS4-HMAC-SHA256 Credential=hunter22/20261123/s3, Signature=hunter22'",
            "AWS4-HMAC-SHA256",
        ),
        ("{'X-Amz-Security-Token': 'hunter22', 'Content-Length': '0'}", "'Content-Length': '0'"),
        ("cannot connect to https://me:hunter22@proxy.example:8080/x", "https://***@proxy.example:8080/x"),
    ],
)
def test_a_signature_in_a_message_is_left_out(text: str, shown: str) -> None:
    assert "hunter22" not in scrubbed(text, [])
    assert shown in scrubbed(text, [])


def test_words_that_are_no_secrets_stay_readable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_KEY", "a")
    options = {"anon": False, "client_kwargs": {"endpoint_url": "http://host:9000", "region_name": "eu-north-1"}}
    options["config_kwargs"] = {"s3": {"addressing_style": "path"}, "signature_version": "s3v4", "x": "on"}
    text = "cannot reach http://host:9000 in eu-north-1 by path with s3v4 on a host"
    assert scrubbed(text, secret_texts(options)) == text
