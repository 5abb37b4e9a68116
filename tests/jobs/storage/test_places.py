"""Where files are, as users say it: URLs, paths and storage options, and what none of them gives away."""

from __future__ import annotations

import logging
import os
import pickle
import traceback
from pathlib import Path

import pytest

from jobs.errors import InputError, StorageError
from jobs.storage.folders import Folder
from jobs.storage.s3 import S3Store
from jobs.storage.urls import absolute_url, options_for


def test_storage_options_reach_the_store_and_no_message(
    s3: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, logger="jobs")
    endpoint = os.environ["AWS_ENDPOINT_URL"]
    for name in ("AWS_ENDPOINT_URL", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    options = {"key": "AKIAEXAMPLE", "secret": "a-secret-of-mine", "client_kwargs": {"endpoint_url": endpoint}}
    folder = Folder(f"{s3}/place", options)
    folder.put("a", b"x")
    assert folder.read("a") == b"x"
    monkeypatch.setattr(S3Store, "put", _leak)
    with pytest.raises(StorageError) as caught:
        folder.put("b", b"x")
    logged = "".join(traceback.format_exception(caught.value))
    for text in (str(caught.value), logged, repr(folder), caplog.text):
        assert "a-secret-of-mine" not in text
        assert "AKIAEXAMPLE" not in text
    with pytest.raises(TypeError, match="not pickled"):
        pickle.dumps(folder)


def _leak(self: object, name: str, data: bytes) -> None:
    raise PermissionError("signature of AKIAEXAMPLE with a-secret-of-mine is wrong")


def test_a_wrong_storage_option_is_bad_input_by_its_name(s3: str) -> None:
    with pytest.raises(InputError) as caught:
        Folder(s3, {"secrett": "a-secret-of-mine", "endpoint_ulr": "x"}).list()
    assert "secrett" in str(caught.value)
    assert "a-secret-of-mine" not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("https://me:hunter22@host/m.parquet", "carries credentials"),
        ("https://b.s3.amazonaws.com/m?X-Amz-Signature=hunter22", "signed one"),
        ("https://storage.googleapis.com/b/m?X-Goog-Algorithm=a&X-Goog-Signature=hunter22", "signed one"),
        ("https://storage.googleapis.com/b/m?GoogleAccessId=hunter22", "signed one"),
        ("https://d1.cloudfront.net/m?Key-Pair-Id=hunter22", "signed one"),
        ("https://d1.cloudfront.net/m?Policy=hunter22", "signed one"),
        ("https://b.oss-cn-x.aliyuncs.com/m?x-oss-signature=hunter22", "signed one"),
        ("https://host/m?download=1&token=hunter22", "signed one"),
        ("https://host/m?download=1;Access_Token=hunter22", "signed one"),
        ("https://host/m?%74oken=hunter22", "signed one"),
        ("https://host/m?api_key=hunter22", "signed one"),
        ("https://host/m#access_token=hunter22", "signed one"),
        ("simplecache::s3://bucket/m.parquet", "chained"),
        ("s3://me:hunter22@℀/m", "malformed"),
        ("http://[::1/hunter22", "malformed"),
        ("", "empty path"),
    ],
)
def test_a_url_that_would_store_a_secret_is_refused(url: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        absolute_url(url)
    assert "hunter22" not in str(caught.value)


def test_a_plain_query_or_a_glob_passes_for_a_secret() -> None:
    for url in ("https://host/m.parquet?download=true&max_tokens=3", "s3://bucket/token-?.parquet", "s3://b/sig=1/m"):
        assert absolute_url(url) == url


@pytest.mark.parametrize("text", ["/tmp/a\0b", "~\0", "s3://bucket/\udcff"])
def test_what_no_file_can_be_called_is_bad_input(text: str) -> None:
    with pytest.raises(InputError, match="cannot hold a NUL or what is not Unicode"):
        absolute_url(text)


def test_an_unknown_protocol_is_bad_input() -> None:
    with pytest.raises(InputError, match="nosuchprotocol"):
        Folder("nosuchprotocol://bucket/x")


def test_options_may_be_given_per_protocol() -> None:
    options = {"s3": {"key": "k"}, "https": {"headers": "h"}}
    assert options_for("s3://bucket/x", options) == {"key": "k"}
    assert options_for("https://host/x", options) == {"headers": "h"}
    assert options_for("gs://bucket/x", options) == {}
    assert options_for("/local/x", options) == {}
    assert options_for("s3://bucket/x", {"key": "k"}) == {"key": "k"}
    assert options_for("s3://bucket/x", {"client_kwargs": {"a": 1}}) == {"client_kwargs": {"a": 1}}


def test_local_paths_are_made_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert absolute_url("a/b.parquet") == str(tmp_path / "a" / "b.parquet")
    assert absolute_url(f"file://{tmp_path}/a") == str(tmp_path / "a")
    assert absolute_url("s3://bucket/a b") == "s3://bucket/a b"
