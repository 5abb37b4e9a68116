"""Whatever stands in a configuration: a checked one comes out, or one short error, within a second."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from jobs.config.config import JobConfig, config_from, load_config, load_storage_options
from jobs.config.plain_yaml import MAX_BYTES
from jobs.errors import InputError

GOOD = "model: random:tiny\nmanifest: m\nvoices: v\noutput: o\n"
PATHS = {"model": "random:tiny", "manifest": "m", "voices": "v", "output": "o"}
SECONDS = 1.0  # of this thread, whatever else the machine does
MAX_MESSAGE = 1_000  # characters of a line: a value and a key are cut at 200 to 400 each
TEXTS = ("model", "model_file", "manifest", "voices", "output", "ray_address")
NUMBERS = ("shard_rows", "seed", "stall_seconds", "workers", "gpus_per_worker", "max_tokens", "batch.max_frames")
NUMBERS += ("engine.n_cfm_timesteps", "engine.guidance", "engine.prompt_seconds", "checks.max_dc", "checks.max_click")

SETTINGS = settings(deadline=None, max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])

# What YAML, pydantic and Python each stumble over.
CROOKED = [
    *("", "~", "null", "yes", "[]", "{}", "{a: 1}", "[[]]", "!!int ''", "!!float ''", "!!bool x", "!!timestamp x"),
    *("!!binary x", "!!set {a}", "!!omap [a: 1]", "!", "! x", "!x y", "=", "<<", "{<<: 5}", "{<<: {a: 1}}", "{1: 2}"),
    *("{null: 1}", "{? {a: 1} : 2}", "2001-99-99", "2001-01-01", "2001-01-01 00:00:00 +99:99", "0001-01-01"),
    *("0x", "0b_", "0_", "1_000", "1:1:1", "1:1:1.5", ".inf", "-.inf", ".nan", "1.0e+999", "-0.0", "1e-400", "0b1"),
    *("&a x", "*a", "&a [*a]", "'", '"', '"\\ud800"', '"\\0"', '"\\x1b[31m"', "|", ">", "%", "@", "`", "---", "..."),
    *("--- a\n--- b", "\ufeff1", "\u2028", "\x00", "\x1b", "\ud800", "-", "?", ":", "[", "{", "}", ",", "#", "a: b: c"),
    *("file://", "s3://", "://", "~nobody/x", "http://[::1", "s3://\u2100\u2044/x", "a::b", "random:", "."),
]
LARGE = [
    "1" * 60_000,
    "-" + "9" * 5_000,
    "0x" + "f" * 60_000,
    "0b" + "1" * 60_000,
    "0" + "7" * 60_000,
    ":".join(["1"] * 30_000),
    ":".join(["1"] * 30_000) + ".5",
    "1." + "1" * 60_000,
    "1.0e+" + "9" * 60_000,
    "_" * 60_000,
    "1" + "_" * 60_000,
    "x" * 60_000,
    "'" + "x\\n" * 20_000 + "'",
    '"' + "\\0" * 30_000 + '"',
    "[" * 60_000,
    "{" * 60_000,
    "{a: " * 15_000,
    "- " * 30_000,
    "? " * 30_000,
    "[" + "a, " * 20_000 + "]",
    "[" + "[a], " * 10_000 + "]",
    "{" + ", ".join(f"k{n}: {n}" for n in range(5_000)) + "}",
    "\n".join(f"k{n}: {n}" for n in range(6_000)),
    "&a " * 20_000,
    "!a" * 30_000,
    "#" * 60_000,
    "\n" * 60_000,
    " " * 60_000,
    "a\n " * 20_000,
    "|\n" + " x\n" * 20_000,
    "%TAG ! " + "x" * 60_000,
    "x" * 10_000_000,
]

keys = st.one_of(
    st.sampled_from(
        [*JobConfig.model_fields, "batch.max_frames", "engine.dtype", "checks.max_dc", "storage_options.s3"]
    ),
    st.text(max_size=20),
    st.sampled_from(
        ["k" * 10_000, ".".join("k" * 10_000), "\x1b[31m", "\ud800", "a.b", "storage_options." + "a." * 40 + "a"]
    ),
)
scalars = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=20), st.binary(max_size=5))
scalars |= st.integers(4_000, 9_000).map(lambda digits: (-10) ** digits)  # more than Python writes
scalars |= st.sampled_from([float("inf"), float("nan"), "\ud800", "a\0b", "x" * 10_000])
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
)


def outcome(make: Callable[[], Any]) -> Any:
    """What was made, or the error's text; any other error, or a slow one, fails the test."""
    begun = time.thread_time()
    try:
        made = make()
    except InputError as error:
        made = str(error)
        assert made
        assert max(map(len, made.splitlines())) <= MAX_MESSAGE
        assert all(line.isprintable() for line in made.split("\n"))
    assert time.thread_time() - begun < SECONDS
    return made


def check(make: Callable[[], JobConfig]) -> None:
    """Additionally a configuration can be stored as JSON, and says then what it says now."""
    made = outcome(make)
    if isinstance(made, JobConfig):
        stored = json.loads(json.dumps(made.frozen()).encode())
        assert config_from(stored, storage_options=made.storage_options) == made


@given(st.sampled_from(CROOKED) | st.text(max_size=200))
@SETTINGS
def test_a_file_of_any_text_ends_in_another_error(tmp_path: Path, text: str) -> None:
    path = tmp_path / "job.yaml"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    check(lambda: load_config(path))
    path.write_bytes((GOOD + text).encode("utf-8", "surrogatepass"))
    check(lambda: load_config(path))
    outcome(lambda: load_storage_options(path))


@given(st.binary(max_size=500))
@SETTINGS
def test_a_file_of_any_bytes_ends_in_another_error(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "job.yaml"
    path.write_bytes(data)
    check(lambda: load_config(path))


@pytest.mark.parametrize("number", range(len(LARGE)), ids=lambda number: LARGE[number][:8].encode().hex())
def test_a_large_value_takes_long_or_is_shown_whole(tmp_path: Path, number: int) -> None:
    text, path = LARGE[number], tmp_path / "job.yaml"
    for content in (text, f"{GOOD}seed: {text}", f"{GOOD}{text}: 1", f"{GOOD}checks: {{max_dc: {text}}}"):
        path.write_text(content)
        check(lambda: load_config(path))
    check(lambda: config_from(PATHS, [f"workers={text}"]))
    check(lambda: config_from(PATHS, [f"{text}=1"]))
    check(lambda: config_from(PATHS, [text]))


@given(keys, st.sampled_from(CROOKED) | st.text(max_size=50))
@example("storage_options .s3.secret", "x")
@SETTINGS
def test_a_change_on_the_command_line_ends_in_another_error(key: str, value: str) -> None:
    check(lambda: config_from(PATHS, [f"{key}={value}"]))
    check(lambda: config_from(PATHS, [f"{key}={value}", f"{key}.{key}={value}"]))
    check(lambda: config_from(PATHS, [value]))


@pytest.mark.parametrize("value", CROOKED)
def test_a_crooked_value_of_some_key_ends_in_another_error(value: str) -> None:
    for key in (*TEXTS, *NUMBERS, "format", "start_fade", "engine", "storage_options"):
        check(lambda key=key: config_from(PATHS, [f"{key}={value}"]))  # type: ignore[misc]


@given(st.dictionaries(keys, values, max_size=4))
@SETTINGS
def test_a_mapping_of_any_values_ends_in_another_error(mapping: dict[str, Any]) -> None:
    check(lambda: config_from(mapping))
    check(lambda: config_from(PATHS | mapping))


@given(st.sampled_from(NUMBERS), values)
@SETTINGS
def test_any_value_for_a_number_ends_in_another_error(key: str, value: Any) -> None:
    for part in reversed(key.split(".")):
        value = {part: value}
    check(lambda: config_from(PATHS | value))


@given(st.sampled_from(TEXTS), values | st.text())
@SETTINGS
def test_any_value_for_a_text_ends_in_another_error(key: str, value: Any) -> None:
    check(lambda: config_from(PATHS | {key: value}))


@pytest.mark.parametrize(
    "path", ["a\0b", "\ud800", os.fsdecode(b"\xff\xfe"), "x" * 5_000, "", ".", "\x1b[31m", "/dev/null"]
)
def test_a_path_that_is_none_ends_in_another_error(path: str) -> None:
    assert isinstance(outcome(lambda: load_config(path)), str)
    assert path == "/dev/null" or isinstance(outcome(lambda: load_storage_options(path)), str)
    assert isinstance(outcome(lambda: config_from({**PATHS, "storage_options": path})), str) or path == "/dev/null"


@pytest.mark.parametrize("key", TEXTS)
def test_a_nul_reaches_the_file_system(key: str) -> None:
    with pytest.raises(InputError, match=key):
        config_from(PATHS | {key: "a\0b"})


def test_a_file_of_the_largest_size_takes_long(tmp_path: Path) -> None:
    path = tmp_path / "job.yaml"
    filler = "".join(f"k{n}: [a, {{b: c}}]\n" for n in range(10_000))
    path.write_text((GOOD + filler)[: MAX_BYTES - 1])
    assert isinstance(outcome(lambda: load_config(path)), str)
