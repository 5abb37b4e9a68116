"""`s3gen convert`: the same model in another format, put in its place whole or not at all."""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from jobs.commands.convert import FORMATS
from jobs.convert import Converted, convert
from jobs.errors import InputError, JobError, StorageError
from jobs.storage.folders import Folder
from jobs.voices.table import VoiceTable
from s3gen import HiFTNetModel, S3GenConfig, S3GenModel, checkpoint, saving
from tests.jobs.command import cli
from tests.s3gen import cosyvoice_folder


def converted(source: str | Path, destination: str | Path, **changes: object) -> Converted:
    settings: dict[str, object] = {"file": None, "form": "huggingface", "options": None, "overwrite": False}
    return convert(str(source), str(destination), **{**settings, **changes})


def contents(place: str | Path) -> dict[str, bytes]:
    folder = Folder(str(place))
    return {name: folder.read(name) for name in folder.list()}


@pytest.fixture(scope="module")
def published(tiny_model: S3GenModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the file that Chatterbox publishes."""
    folder = tmp_path_factory.mktemp("published")
    tiny_model.save_pretrained(folder, format="chatterbox")
    return folder


def test_the_command_and_the_library_know_other_formats() -> None:
    assert FORMATS == saving.FORMATS


def test_voices_made_with_the_source_are_refused(
    tiny_model: S3GenModel, published: Path, place: str, table: Path, tmp_path: Path
) -> None:
    made = converted(published, place)
    assert made.url == f"{place}/model.safetensors"
    assert made.origin == "Chatterbox, `s3gen.safetensors`"
    assert made.bytes == Folder(place).size("model.safetensors")
    assert sorted(contents(place)) == ["README.md", "config.json", "model.safetensors"]
    back = converted(place, tmp_path / "back", form="chatterbox")
    model = S3GenModel.from_pretrained(tmp_path / "back")
    assert made.fingerprint == back.fingerprint == model.fingerprint() == tiny_model.fingerprint()
    assert made.voice_fingerprint == back.voice_fingerprint == tiny_model.voice_fingerprint()
    VoiceTable.open(str(table)).check_model(model.voice_fingerprint())


def test_a_converted_checkpoint_is_not_said_to_be_the_same(tiny_model: S3GenModel, tmp_path: Path) -> None:
    (tmp_path / "old").mkdir()
    torch.save(checkpoint.published_weights(tiny_model), tmp_path / "old" / "other.pt")
    tiny_model.save_pretrained(tmp_path / "old")
    result = cli("convert", tmp_path / "old", tmp_path / "new", "--model-file", "model.safetensors")
    assert result.exit_code == 0, result.output
    assert f"fingerprint: {tiny_model.fingerprint()}, as the source's" in result.output
    assert f"voice fingerprint: {tiny_model.voice_fingerprint()}, as the source's" in result.output
    assert f"{tmp_path}/new/model.safetensors" in result.output


@pytest.fixture(scope="module", name="checkpoints")
def _checkpoints(tiny_model: S3GenModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoints")
    tiny_model.save_pretrained(folder / "model")
    HiFTNetModel.from_pretrained("random:tiny").save_pretrained(folder / "vocoder")
    linear = replace(tiny_model.config, cfm_t_scheduler="linear")
    S3GenModel._random(linear).save_pretrained(folder / "linear")
    return folder


@pytest.mark.parametrize(
    ("source", "destination", "options", "message"),
    [
        ("{here}/none", "{here}/new", (), "no checkpoint at"),
        ("{here}/model", "{here}/new", ("--model-file", "s3gen.pt"), "no file 's3gen.pt'"),
        ("{here}/vocoder", "{here}/new", (), "holds a vocoder alone"),
        ("{here}/linear", "{here}/new", ("--format", "chatterbox"), "cfm_t_scheduler 'linear'"),
        ("{here}/model", "{here}/model/config.json", (), "config.json is a file"),
        ("{here}/model", "{here}/vocoder", (), "holds a checkpoint already, model.safetensors; give another folder"),
        ("{here}/model", "{here}/vocoder", ("--format", "chatterbox", "--overwrite"), "holds another checkpoint"),
        ("{here}/model", "https://example.com/new", (), "nothing is written to https://"),
        ("{here}/model", "", (), "an empty path"),
    ],
)
def test_bad_input_leaves_something_behind(
    checkpoints: Path, source: str, destination: str, options: tuple[str, ...], message: str
) -> None:
    before = contents(checkpoints)
    result = cli("convert", source.format(here=checkpoints), destination.format(here=checkpoints), *options)
    assert result.exit_code == 2, result.output
    assert message in result.output
    assert contents(checkpoints) == before
    assert not (checkpoints / "new").exists()


def test_cosyvoice_s_folder_loses_its_source_on_the_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tmp_path / "source"
    source.mkdir()
    cosyvoice_folder.write_folder(source, cosyvoice_folder.tiny_model())
    model = S3GenModel.from_pretrained(source)
    made = converted(source, tmp_path / "new")
    again = S3GenModel.from_pretrained(tmp_path / "new")
    assert made.origin == "CosyVoice2, `flow.pt`"
    assert made.fingerprint == again.fingerprint() == model.fingerprint()
    assert again.config == model.config
    assert again.config.vocoder_harmonic_source == "sinegen2"
    before = contents(tmp_path)
    with pytest.raises(InputError, match=r"vocoder_harmonic_source 'sinegen2'.*huggingface"):
        converted(tmp_path / "new", tmp_path / "file", form="chatterbox")
    with pytest.raises(InputError, match=r"another checkpoint, flow.pt"):
        converted(tmp_path / "new", source, overwrite=True)
    monkeypatch.setitem(sys.modules, "onnx", None)  # as where it is not installed
    with pytest.raises(InputError, match=r"pip install onnx"):
        converted(source, tmp_path / "file")
    assert contents(tmp_path) == before


def test_a_checkpoint_is_replaced_unasked(published: Path, tmp_path: Path) -> None:
    place = f"memory://{tmp_path.name}/place"
    changed = S3GenModel.from_pretrained(published)
    with torch.no_grad():
        changed.flow.mel_proj.bias += 1.0
    changed.save_pretrained(tmp_path / "changed")
    converted(tmp_path / "changed", place)
    Folder(place).put("README.md", b"mine")
    with pytest.raises(InputError, match="--overwrite"):
        converted(published, place)
    assert S3GenModel.from_pretrained(place).fingerprint() == changed.fingerprint()
    made = converted(published, place, overwrite=True)
    assert S3GenModel.from_pretrained(place).fingerprint() == made.fingerprint != changed.fingerprint()
    assert Folder(place).read("README.md") == b"mine"


@pytest.mark.parametrize(
    ("source", "destination"),
    [
        ("{here}/model", "{here}/model"),
        ("{here}/model/model.safetensors", "{here}/model"),
        ("{here}/link", "{here}/model/"),
        ("file://{here}/model", "{here}/link"),
        ("{here}/model", "file://{here}/model"),
        ("memory://{here}/model", "memory://{here}/model/"),
        ("memory://{here}//model/model.safetensors", "memory://{here}/model"),
    ],
)
def test_the_only_copy_is_deleted_before_its_conversion_is_written(
    tiny_model: S3GenModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str, destination: str
) -> None:
    tiny_model.save_pretrained(tmp_path / "model")
    (tmp_path / "link").symlink_to(tmp_path / "model")
    converted(tmp_path / "model", f"memory://{tmp_path}/model")

    def failing(folder: Folder, name: str, path: Path) -> None:
        raise StorageError(f"cannot write {name}: no space left")

    monkeypatch.setattr(Folder, "upload", failing)
    with pytest.raises(InputError, match=r"holds the source itself.*give another folder"):
        converted(source.format(here=tmp_path), destination.format(here=tmp_path), overwrite=True)
    for place in (str(tmp_path / "model"), f"memory://{tmp_path}/model"):
        assert S3GenModel.from_pretrained(place).fingerprint() == tiny_model.fingerprint()


def test_another_file_of_the_source_s_folder_is_taken_for_the_source(tiny_model: S3GenModel, tmp_path: Path) -> None:
    tiny_model.save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path / "other.safetensors")
    for overwrite in (False, True):
        made = converted(tmp_path, tmp_path, file="other.safetensors", overwrite=overwrite)
        assert made.fingerprint == tiny_model.fingerprint()
    assert sorted(os.listdir(tmp_path)) == ["README.md", "config.json", "model.safetensors", "other.safetensors"]


def test_a_card_that_cannot_be_read_costs_the_checkpoint_beside_it(published: Path, tmp_path: Path) -> None:
    made = converted(published, tmp_path)
    (tmp_path / "README.md").unlink()
    (tmp_path / "README.md").mkdir()
    with pytest.raises(StorageError, match=r"README\.md"):
        converted(published, tmp_path, overwrite=True)
    assert S3GenModel.from_pretrained(tmp_path).fingerprint() == made.fingerprint


@pytest.mark.parametrize(("replaced", "written"), [(False, 2), (True, 0), (True, 2)])
def test_a_destination_that_fails_is_left_with_half_a_checkpoint(
    published: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, replaced: bool, written: int
) -> None:
    if replaced:
        converted(published, tmp_path / "new")
    upload, left = Folder.upload, [written]

    def failing(folder: Folder, name: str, path: Path) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise StorageError(f"cannot write {name}: no space left")
        upload(folder, name, path)

    with monkeypatch.context() as patch:
        patch.setattr(Folder, "upload", failing)
        with pytest.raises(StorageError, match="no space left"):
            converted(published, tmp_path / "new", overwrite=replaced)
    with pytest.raises(FileNotFoundError, match=r"no (checkpoint|such)"):
        S3GenModel.from_pretrained(str(tmp_path / "new"))
    assert not list(tmp_path.rglob("*.part"))
    converted(published, tmp_path / "new")


def test_weights_that_a_disk_has_spoilt_are_published(
    tiny_model: S3GenModel, published: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save = S3GenModel.save_pretrained

    def spoilt(model: S3GenModel, folder: Path, *, format: str) -> None:
        save(model, folder, format=format)
        file = Path(folder) / "model.safetensors"
        data = bytearray(file.read_bytes())
        data[-3] ^= 1
        file.write_bytes(data)

    monkeypatch.setattr(S3GenModel, "save_pretrained", spoilt)
    with pytest.raises(JobError, match=tiny_model.fingerprint()):
        converted(published, tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_a_conversion_holds_the_model_twice(tmp_path: Path) -> None:
    config = replace(S3GenConfig.tiny(), tokenizer_dim=1280, tokenizer_heads=20)
    S3GenModel._random(config).save_pretrained(tmp_path / "model")
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before = _resident("VmRSS")
    made = converted(tmp_path / "model", tmp_path / "new", form="chatterbox")
    assert made.bytes > 80e6
    assert _resident("VmHWM") - before < 1.6 * made.bytes


def _resident(name: str) -> int:
    """Bytes of this process in memory: now (VmRSS) or at most (VmHWM)."""
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name)]
    return 1024 * int(line.split()[1])
