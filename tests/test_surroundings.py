"""What of the machine the tests do not see."""

from __future__ import annotations

import os

import pytest
from hypothesis import settings

from tests.surroundings import shut_out

OWN = {
    "AWS_PROFILE": "work",
    "AWS_ENDPOINT_URL_S3": "https://store.example",
    "AWS_CONFIG_FILE": "/home/me/.aws/config",
    "http_proxy": "http://proxy.example:8080",
    "HTTPS_PROXY": "http://proxy.example:8080",
    "COLUMNS": "40",
}


def test_an_account_a_proxy_or_a_narrow_terminal_decides_whether_tests_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in OWN.items():
        monkeypatch.setenv(name, value)
    shut_out()
    assert not set(OWN.items()) & set(os.environ.items())


def test_a_slow_machine_or_an_unlucky_draw_decides_whether_tests_pass(request: pytest.FixtureRequest) -> None:
    assert settings.default is not None
    assert settings.default.deadline is None
    assert settings.default.derandomize == (request.config.getoption("--hypothesis-profile") != "search")
