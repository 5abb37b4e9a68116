"""Configurations: what is accepted, what is refused, and whether the refusal tells what to do."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any, get_args

import pytest

from jobs.config.config import EngineConfig, JobConfig, config_from, load_config, load_storage_options
from jobs.errors import InputError
from s3gen.precision import DTYPES

GOOD = """
model: random:tiny
manifest: tokens/*.parquet
voices: voices.parquet
output: s3://bucket/out
"""


@pytest.fixture
def config_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "job.yaml"
    path.write_text(GOOD)
    return path


def test_every_key_of_the_contract_exists_and_no_other() -> None:
    assert set(JobConfig.model_fields) == {
        *("model", "model_file", "manifest", "voices", "output", "format", "audio", "shard_rows", "seed", "workers"),
        *("gpus_per_worker", "ray_address", "storage_options", "start_fade", "max_tokens", "on_long", "silence_tokens"),
        *("on_bad_audio", "mos", "keep_inputs", "stall_seconds", "log_level", "batch", "engine", "checks", "wave"),
    }


def test_defaults_paths_and_overrides(config_file: Path, tmp_path: Path) -> None:
    config = load_config(config_file, ["workers=auto", "batch.max_frames=4000", "engine.n_cfm_timesteps=4", "seed=7"])
    assert (config.workers, config.batch.max_frames, config.engine.n_cfm_timesteps, config.seed) == ("auto", 4000, 4, 7)
    assert (config.format, config.audio, config.shard_rows, config.max_tokens) == ("parquet", "flac", 512, 1500)
    assert config.manifest == str(tmp_path / "tokens" / "*.parquet")
    assert config.output == "s3://bucket/out"
    assert load_config(config_file).workers == 1


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("random:full", "random:full"),
        ("ResembleAI/chatterbox", "ResembleAI/chatterbox"),
        ("s3://bucket/model", "s3://bucket/model"),
        ("./weights", "{here}/weights"),
        ("here/model", "{here}/here/model"),  # exists
    ],
)
def test_a_model_is_a_path_when_there_is_one_and_else_a_hub_id(
    config_file: Path, tmp_path: Path, given: str, kept: str
) -> None:
    (tmp_path / "here" / "model").mkdir(parents=True)
    assert load_config(config_file, [f"model={given}"]).model == kept.format(here=tmp_path)


def test_what_is_frozen_makes_the_same_configuration_again(config_file: Path) -> None:
    config = load_config(config_file, ["storage_options={s3: {secret: hunter22}}", "engine.prompt_seconds=2.5"])
    frozen = config.frozen()
    assert "hunter22" not in json.dumps(frozen)
    assert "storage_options" not in frozen
    again = config_from(json.loads(json.dumps(frozen)), storage_options=config.storage_options)
    assert again == config
    assert again.frozen() == frozen


def test_a_dtype_is_known_to_the_model_or_to_the_configuration_only(config_file: Path) -> None:
    for dtype in DTYPES:
        assert load_config(config_file, [f"engine.dtype={dtype}", "engine.compile=true"]).engine.dtype == dtype
    assert get_args(EngineConfig.model_fields["dtype"].annotation) == DTYPES


def test_a_check_cannot_be_switched_off(config_file: Path) -> None:
    config = load_config(config_file, ["checks.max_dc=null", "checks.max_click=1", "on_bad_audio=fail_row"])
    assert (config.checks.max_dc, config.checks.max_click, config.on_bad_audio) == (None, 1.0, "fail_row")
    assert config_from(config.frozen()).checks == config.checks


def test_reading_a_configuration_waits_for_torch() -> None:
    code = "import jobs.config.config, sys; print('torch' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout == "False\n"


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("worker=3", ["worker: unknown key", "did you mean workers?"]),
        ("batch.maxframes=3", ["batch.maxframes: unknown key", "batch.max_frames?"]),
        ("max_frames=3", ["max_frames: unknown key", "batch.max_frames?"]),
        ("prompt_secs=3", ["prompt_secs: unknown key", "engine.prompt_seconds?"]),
        ("zebra=3", ["zebra: unknown key", "the keys here are model, model_file"]),
        ("engine.zebra=3", ["engine.zebra: unknown key", "the keys of engine are device, dtype"]),
        ("workers=0", ["workers: 0 is refused", "1 or a larger number", "auto"]),
        ("workers=many", ["workers: 'many' is refused", "give a whole number or auto"]),
        ("workers=1.5", ["workers: 1.5 is refused", "whole number"]),
        ("workers=true", ["workers: true is refused"]),
        ("shard_rows='512'", ["shard_rows: '512' is refused", "whole number"]),
        ("shard_rows=0", ["shard_rows: 0 is refused"]),
        ("seed=18446744073709551616", ["seed: 18446744073709551616 is refused", "less than 18446744073709551616"]),
        ("max_tokens=-1", ["max_tokens: -1 is refused"]),
        ("gpus_per_worker=1.5", ["gpus_per_worker: 1.5 is refused", "whole number of them"]),
        ("gpus_per_worker=0", ["gpus_per_worker: 0 is refused", "more than 0"]),
        ("engine.prompt_seconds=.inf", ["engine.prompt_seconds: inf is refused", "finite"]),
        ("engine.prompt_seconds=.nan", ["engine.prompt_seconds: nan is refused"]),
        ("engine.device=tpu", ["engine.device: 'tpu' is refused", "auto, cpu or cuda"]),
        ("engine.device=gpu", ["engine.device: 'gpu' is refused", "did you mean cuda?"]),
        ("engine.device=GPU", ["engine.device: 'GPU' is refused", "did you mean cuda?"]),
        ("engine.device=CUDA:0", ["did you mean cuda?"]),
        ("engine.dtype=FP16", ["did you mean float16?"]),
        ("engine=fast", ["engine: 'fast' is refused", "keys and values"]),
        ("batch.max_frames=0", ["batch.max_frames: 0 is refused"]),
        ("start_fade=1", ["start_fade: 1 is refused", "true or false"]),
        ("manifest=null", ["manifest: null is refused", "give a text"]),
        ("manifest=", ["manifest: null is refused"]),
        ("output=''", ["output: an empty path"]),
        ("log_level=loud", ["log_level: 'loud' is refused", "debug, info, warning or error"]),
        ("model.size=1", ["--set model.size", "model is a single value"]),
        ("workers", ["--set 'workers'", "key=value"]),
        ("=3", ["--set '=3'", "key=value"]),
        ("batch..x=3", ["--set 'batch..x'", "key=value"]),
        ("workers=[1", ["--set workers", "not valid YAML"]),
        ("audio=aiff", ["audio: 'aiff' is refused", "flac, wav, ogg or mp3"]),
        ("audio=opus", ["audio: 'opus' is refused", "did you mean ogg?"]),
        ("format=shar", ["format: 'shar' is refused", "did you mean lhotse?"]),
        ("audio=flak", ["audio: 'flak' is refused", "did you mean flac?"]),
        ("engine.dtype=fp16", ["engine.dtype: 'fp16' is refused", "float32, tf32, bfloat16 or float16"]),
        ("engine.dtype=fp16", ["did you mean float16?"]),
        ("engine.dtype=half", ["did you mean float16?"]),
        ("engine.dtype=bf16", ["did you mean bfloat16?"]),
        ("engine.dtype=torch.bfloat16", ["did you mean bfloat16?"]),
        ("engine.dtype=float64", ["engine.dtype: 'float64' is refused", "did you mean float32?"]),
        ("engine.dtype=16", ["engine.dtype: 16 is refused", "give float32, tf32, bfloat16 or float16"]),
        ("engine.compile=1", ["engine.compile: 1 is refused", "true or false"]),
        ("engine.compile='yes'", ["engine.compile: 'yes' is refused", "true or false"]),
        ("on_bad_audio=drop", ["on_bad_audio: 'drop' is refused", "keep or fail_row"]),
        ("on_bad_audio=fail", ["on_bad_audio: 'fail' is refused", "keep or fail_row", "did you mean fail_row?"]),
        ("checks=off", ["checks: false is refused", "keys and values"]),
        ("checks.max_silense=1", ["checks.max_silense: unknown key", "did you mean checks.max_silence?"]),
        ("max_click=1", ["max_click: unknown key", "checks.max_click?"]),
        ("checks.max_silence=90", ["checks.max_silence: 90 is refused", "at most 1"]),
        ("checks.max_clipped=-0.1", ["checks.max_clipped: -0.1 is refused", "0.0 or a larger number"]),
        ("checks.max_dc=.nan", ["checks.max_dc: nan is refused"]),
        ("checks.max_dc=off", ["checks.max_dc: false is refused", "give a number or null"]),
        ("checks.max_click=2.5", ["give at most 2.0 or null"]),
        ("engine.n_cfm_timesteps=fast", ["give a whole number or null"]),
        ("ray_address=3", ["ray_address: 3 is refused", "or null"]),
        ("checks.max_dc='0.1'", ["checks.max_dc: '0.1' is refused", "give a number"]),
        ("checks.max_click=2.5", ["checks.max_click: 2.5 is refused", "at most 2"]),
    ],
)
def test_a_bad_value_is_named_with_the_way_out(config_file: Path, override: str, says: list[str]) -> None:
    with pytest.raises(InputError) as caught:
        load_config(config_file, [override])
    for text in says:
        assert text in str(caught.value)
    assert caught.value.exit_code == 2


def test_all_that_is_missing_is_said_at_once(config_file: Path) -> None:
    config_file.write_text("model: random:tiny\n")
    with pytest.raises(InputError) as caught:
        load_config(config_file)
    lines = str(caught.value).splitlines()
    assert [line.partition(", ")[0] for line in lines] == [
        f"{key}: this key is required" for key in ("manifest", "voices", "output")
    ]
    assert lines[2].endswith("such as output: my_speech")


BOMB = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(f"{chr(98 + n)}: [*{chr(97 + n)}]\n" for n in range(8))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("model: a\nmodel: b\n", "line 2: not valid YAML: the key 'model' is there twice"),
        ("batch: {max_frames: 1, max_frames: 2}\n", "the key 'max_frames' is there twice"),
        (BOMB, "line 2: not valid YAML: aliases (*name) are not allowed"),
        ("engine: " + "[" * 500 + "]" * 500, "not valid YAML: nested too deeply"),
        ("model: !!python/object/apply:os.system [id]\n", "tags (!name) are not allowed"),
        ("- a\n- b\n", "must hold keys and values (key: value), this holds a list"),
        ("", "this holds nothing"),
        ("1: a\n", "line 1: not valid YAML: a key must be a name (in quotes"),
        ("batch: {yes: 1}\n", "a key must be a name"),
        ("batch: {<<: {max_frames: 1}}\n", "a key must be a name"),
        ("model: [" + "a, " * 1_000 + "]\n", "more than 1000 values"),
        ("? [a]\n: b\n", "a key must be a name"),
        ("model: [unclosed\n", "not valid YAML"),
        ("model: \x00\n", "not valid YAML"),
        ("#" * (1 << 16) + "\n", "larger than 65536 bytes"),
    ],
)
def test_a_hostile_or_broken_file_is_refused_quickly(config_file: Path, text: str, says: str) -> None:
    config_file.write_text(text)
    with pytest.raises(InputError) as caught:
        load_config(config_file)
    assert says in str(caught.value)
    assert str(config_file) in str(caught.value)


def test_a_file_that_is_none_is_refused(tmp_path: Path) -> None:
    (tmp_path / "binary").write_bytes(bytes(range(128, 256)))
    for path, says in (
        (tmp_path / "absent", "no such file"),
        (tmp_path, "this is a folder"),
        (tmp_path / "binary", "UTF-8"),
    ):
        with pytest.raises(InputError, match=says):
            load_config(path)


# --- secrets ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ['{"key": "AKIA", "secret": "hunter22"}', "key: AKIA\nsecret: hunter22\n"])
def test_storage_options_come_from_a_file_of_yaml_or_json(config_file: Path, tmp_path: Path, text: str) -> None:
    (tmp_path / "secrets").write_text(text)
    wanted = {"key": "AKIA", "secret": "hunter22"}
    assert load_config(config_file, [f"storage_options={tmp_path}/secrets"]).storage_options == wanted
    assert load_storage_options(tmp_path / "secrets") == wanted
    config_file.write_text(GOOD + f"storage_options: {tmp_path}/secrets\n")
    config = load_config(config_file)
    assert config.storage_options == wanted
    assert "hunter22" not in repr(config) + str(config) + json.dumps(config.frozen())


@pytest.mark.parametrize(
    "text",
    ["hunter22", "secret: [hunter22", "secret: &a hunter22\nx: *a", "- hunter22", "s: 1\ns: hunter22", "{hunter22"],
)
def test_a_broken_file_of_secrets_is_not_shown(config_file: Path, tmp_path: Path, text: str) -> None:
    (tmp_path / "secrets").write_text(text)
    with pytest.raises(InputError) as caught:
        load_config(config_file, [f"storage_options={tmp_path}/secrets"])
    assert "hunter22" not in str(caught.value)
    assert "secrets" in str(caught.value)


@pytest.mark.parametrize(
    "override",
    [
        "storage_options=[hunter22]",
        "storage_options={a: hunter22, a: 1}",
        "storage_options.secret=[hunter22",
        "output=s3://me:hunter22@bucket/x",
        "ray_address=ray://me:hunter22@head:10001",
        "manifest=https://host/m.parquet?X-Amz-Signature=hunter22",
    ],
)
def test_no_error_shows_a_secret(config_file: Path, override: str) -> None:
    with pytest.raises(InputError) as caught:
        load_config(config_file, [override])
    assert "hunter22" not in str(caught.value)
    assert override.split("=")[0].split(".")[0] in str(caught.value)


def test_options_on_the_command_line_go_before_the_files(config_file: Path) -> None:
    given: dict[str, Any] = {"key": "mine"}
    config = load_config(config_file, ["storage_options={key: other}"], storage_options=given)
    assert config.storage_options == given


def test_the_output_of_a_job_is_given_for_its_configuration(tmp_path: Path) -> None:
    (tmp_path / "job.json").write_text("{}")
    with pytest.raises(InputError, match="s3gen resume"):
        load_config(tmp_path)


def test_a_configuration_in_a_bucket_is_no_such_file() -> None:
    with pytest.raises(InputError, match=r"s3://bucket/job\.yaml: not a local file; copy it"):
        load_config("s3://bucket/job.yaml")


def test_a_section_is_given_a_value_and_its_keys_are_not_named(config_file: Path) -> None:
    with pytest.raises(InputError, match=r"batch: 3 is refused: .*, such as batch.max_frames$"):
        load_config(config_file, ["batch=3"])


@pytest.mark.parametrize("below", ["", "/speech", "/my/speech"])
def test_an_output_that_is_a_file_is_found_when_the_job_begins(config_file: Path, below: str) -> None:
    with pytest.raises(InputError, match=r"^output: '.*' is a file; give a folder") as caught:
        load_config(config_file, [f"output={config_file}{below}"])
    assert f"'{config_file}'" in str(caught.value)
    assert load_config(config_file, [f"output={config_file.parent}{below}"])
    assert load_config(config_file, ["output=s3://bucket/job.yaml"])
