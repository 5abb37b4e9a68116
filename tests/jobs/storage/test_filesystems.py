"""What fsspec is told besides what its user tells it."""

from __future__ import annotations

from typing import Any

import pytest

from jobs.storage.filesystems import FileSystem, fsspec_options

CHECKSUMS = ("request_checksum_calculation", "response_checksum_validation")


@pytest.fixture(autouse=True)
def bare(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_IGNORE_CONFIGURED_ENDPOINT_URLS"):
        monkeypatch.delenv(name, raising=False)
    for name in CHECKSUMS:
        monkeypatch.delenv(f"AWS_{name.upper()}", raising=False)


@pytest.mark.parametrize(
    "options",
    [{"endpoint_url": "http://host:9000"}, {"client_kwargs": {"endpoint_url": "http://host:9000"}}],
    ids=["of s3fs", "of botocore"],
)
def test_a_store_of_another_maker_is_not_asked_for_checksums_it_may_not_know(options: dict[str, Any]) -> None:
    config = fsspec_options("s3://b/x", options)["config_kwargs"]
    assert [config[name] for name in CHECKSUMS] == ["when_required"] * 2


def test_an_endpoint_of_the_environment_counts_as_one_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://host:9000")
    given = fsspec_options("s3://b/x", None)
    assert given["endpoint_url"] == "http://host:9000"
    assert given["config_kwargs"]["response_checksum_validation"] == "when_required"
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://other:9000")
    assert fsspec_options("s3://b/x", None)["endpoint_url"] == "http://other:9000"
    monkeypatch.setenv("AWS_IGNORE_CONFIGURED_ENDPOINT_URLS", "true")
    assert "endpoint_url" not in fsspec_options("s3://b/x", None)


def test_the_user_has_the_last_word_on_checksums_and_time_outs(monkeypatch: pytest.MonkeyPatch) -> None:
    own = {"config_kwargs": {"response_checksum_validation": "when_supported", "read_timeout": 99}, "endpoint_url": "x"}
    monkeypatch.setenv("AWS_REQUEST_CHECKSUM_CALCULATION", "when_supported")
    config = fsspec_options("s3://b/x", own)["config_kwargs"]
    assert config["response_checksum_validation"] == "when_supported"
    assert "request_checksum_calculation" not in config
    assert (config["read_timeout"], config["connect_timeout"]) == (99, 5.0)


def test_amazon_itself_is_asked_for_its_checksums() -> None:
    assert not set(CHECKSUMS) & set(fsspec_options("s3://b/x", {"key": "k"})["config_kwargs"])


def test_nobody_else_repeats_requests() -> None:
    given = {"config_kwargs": {"retries": {"max_attempts": 10, "mode": "adaptive"}}}
    assert fsspec_options("s3://b/x", given)["config_kwargs"]["retries"] == {"total_max_attempts": 1}
    assert FileSystem("s3://b/x", given).fs.retries == 1


def test_other_protocols_get_what_they_were_given() -> None:
    assert fsspec_options("https://host/x", {"https": {"headers": {}}}) == {"headers": {}}
    assert fsspec_options("/a/path", {"key": "k"}) == {}
