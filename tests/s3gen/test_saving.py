"""Checkpoints that are written: whole or not at all, in either format, with a card."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import re
import shutil
from pathlib import Path

import pytest
import safetensors.torch
import torch
import yaml

from s3gen import HiFTNetModel, S3GenConfig, S3GenModel, chatterbox, checkpoint
from s3gen.card_mark import is_unedited
from s3gen.model import _on_meta
from s3gen.weights_file import write_weights

# Lines "name shape dtype", sorted, of the state dict of chatterbox-tts 0.1.7's S3Token2Wav(meanflow=...): how many, and
# their sha256.
CHATTERBOX = {
    False: (2490, "07d4792d5561c189209c3f7d3bb1bebf9d01e05dbfab5df010d062d58cdb012b"),
    True: (2491, "ad5effedf9664080fe3441c6e2f2a154d31f8b9060cbf5327dc9d913f4cad782"),
}


class Cut(Exception):
    """Stands for the end of the process."""


@pytest.fixture(scope="module")
def other_model() -> S3GenModel:
    """Of the same shapes as the tiny model: nothing but its configuration tells its weights."""
    model = S3GenModel._random(dataclasses.replace(S3GenConfig.tiny(), cfm_inference_cfg_rate=0.5))
    with torch.no_grad():
        model.flow.mel_proj.bias += 1.0
    return model


def cut_at(monkeypatch: pytest.MonkeyPatch, change: int) -> None:
    """The folder's change of that number, counted from 0, and all after it, are not made."""
    left = [change]

    def counted(make):
        def once(*args, **kwargs):
            left[0] -= 1
            if left[0] < 0:
                raise Cut
            return make(*args, **kwargs)

        return once

    monkeypatch.setattr(os, "replace", counted(os.replace))
    monkeypatch.setattr(Path, "unlink", counted(Path.unlink))
    monkeypatch.setattr(shutil, "rmtree", lambda *args, **kwargs: None)  # nobody clears up after a killed process


def foreign(folder: Path, model: S3GenModel) -> Path:
    """As others write the Hugging Face layout: the weights do not say their configuration."""
    folder.mkdir()
    weights = {name: weight.contiguous() for name, weight in checkpoint.published_weights(model).items()}
    safetensors.torch.save_file(weights, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(model.config.to_dict()))
    return folder


@pytest.mark.parametrize("change", range(4))
def test_half_of_a_new_folder_passes_for_a_checkpoint(
    tiny_model: S3GenModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: int
) -> None:
    with monkeypatch.context() as patch:
        cut_at(patch, change)
        with pytest.raises(Cut):
            tiny_model.save_pretrained(tmp_path / "model")
    with pytest.raises(FileNotFoundError, match="no checkpoint"):
        S3GenModel.from_pretrained(tmp_path / "model")
    tiny_model.save_pretrained(tmp_path / "model")
    assert S3GenModel.from_pretrained(tmp_path / "model").fingerprint() == tiny_model.fingerprint()


def test_weights_are_read_with_the_configuration_of_those_that_they_replace(
    tiny_model: S3GenModel, other_model: S3GenModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = {tiny_model.fingerprint(), other_model.fingerprint()}
    found = set()
    for change in range(5):
        folder = foreign(tmp_path / str(change), other_model)
        with monkeypatch.context() as patch:
            cut_at(patch, change)
            if change < 4:
                with pytest.raises(Cut):
                    tiny_model.save_pretrained(folder)
            else:
                tiny_model.save_pretrained(folder)
        try:
            found.add(S3GenModel.from_pretrained(folder).fingerprint())
        except FileNotFoundError:
            found.add("none")
    assert found == whole | {"none"}


def test_a_model_is_lost_that_is_saved_over_the_file_it_was_read_from(tiny_model: S3GenModel, tmp_path: Path) -> None:
    tiny_model.save_pretrained(tmp_path)
    again = S3GenModel.from_pretrained(tmp_path)  # its weights may lie in the file still
    again.save_pretrained(tmp_path)
    assert again.fingerprint() == tiny_model.fingerprint()
    assert S3GenModel.from_pretrained(tmp_path).fingerprint() == tiny_model.fingerprint()
    assert sorted(os.listdir(tmp_path)) == ["README.md", "config.json", "model.safetensors"]


def test_equal_weights_make_unequal_files_or_the_format_s_own_library_reads_others(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    weights = {f"{kind}".removeprefix("torch."): torch.randn(3, 5, generator=generator).to(kind)
               for kind in (torch.float16, torch.float32, torch.float64, torch.bfloat16)}  # fmt: skip
    weights |= {"turned": torch.randn(4, 3, generator=generator).T, "none": torch.zeros(0, 2)}
    weights |= {"counter": torch.tensor(7), "view": torch.randn(3, generator=generator)[:, None]}
    metadata = {"format": "pt", "umlaut": "ä"}
    write_weights(tmp_path / "first", weights, metadata)
    write_weights(tmp_path / "second", dict(reversed(weights.items())), metadata)
    assert (tmp_path / "first").read_bytes() == (tmp_path / "second").read_bytes()
    with safetensors.safe_open(tmp_path / "first", framework="pt") as opened:
        assert opened.metadata() == metadata
        found = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    assert found.keys() == weights.keys()
    for name, weight in weights.items():
        assert (found[name].dtype, found[name].shape) == (weight.dtype, weight.shape)
        assert torch.equal(found[name], weight)


def test_a_folder_gets_a_second_checkpoint_and_neither_is_found(tiny_model: S3GenModel, tmp_path: Path) -> None:
    tiny_model.save_pretrained(tmp_path, format="chatterbox")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(ValueError, match=r"s3gen.safetensors.*give another folder"):
        tiny_model.save_pretrained(tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_file_in_the_place_of_the_folder_and_an_unknown_format_are_named(
    tiny_model: S3GenModel, tmp_path: Path
) -> None:
    (tmp_path / "taken").write_text("mine")
    with pytest.raises(ValueError, match="taken is a file"):
        tiny_model.save_pretrained(tmp_path / "taken")
    with pytest.raises(ValueError, match="'onnx', not one of huggingface, chatterbox"):
        tiny_model.save_pretrained(tmp_path / "new", format="onnx")
    assert os.listdir(tmp_path) == ["taken"]


@pytest.mark.parametrize("meanflow", [False, True])
def test_chatterbox_s_own_code_finds_a_weight_missing_or_left_over(meanflow: bool) -> None:
    # What it misses it leaves random, and says nothing.
    model = _on_meta(S3GenConfig(meanflow=meanflow))
    weights = {name: torch.zeros(()).expand(shape) for name, shape in checkpoint.published_shapes(model).items()}
    state = chatterbox.state_dict(weights, model.tokenizer.mel)
    text = "".join(f"{name} {tuple(value.shape)} {value.dtype}\n" for name, value in sorted(state.items()))
    assert (len(state), hashlib.sha256(text.encode()).hexdigest()) == CHATTERBOX[meanflow]


@pytest.mark.parametrize("meanflow", [False, True])
def test_chatterbox_s_format_changes_a_bit_of_the_weights(tmp_path: Path, meanflow: bool) -> None:
    config = dataclasses.replace(S3GenConfig.tiny(), meanflow=meanflow)
    model = S3GenModel._random(config)
    with torch.no_grad():
        model.mel2wav.conv_pre.weight[3] = 0.0  # a channel that training has switched off has no direction
    model.save_pretrained(tmp_path, format="chatterbox")
    name = "s3gen_meanflow.safetensors" if meanflow else "s3gen.safetensors"
    assert sorted(os.listdir(tmp_path)) == ["README.md", name]
    again = S3GenModel.from_pretrained(tmp_path)
    assert (again.config, again.fingerprint()) == (config, model.fingerprint())
    stored = safetensors.torch.load_file(tmp_path / name)
    layer = "mel2wav.ups.1.parametrizations.weight"
    rebuilt = torch._weight_norm(stored[f"{layer}.original1"], stored[f"{layer}.original0"], 0)
    assert torch.allclose(rebuilt, model.mel2wav.ups[1].weight, rtol=1e-6, atol=0)
    assert stored["speaker_encoder.head.bn1.num_batches_tracked"].dtype == torch.int64


def test_a_model_in_another_type_loses_a_bit_in_chatterbox_s_format(
    tiny_model: S3GenModel, exact_model: S3GenModel, tmp_path: Path
) -> None:
    exact_model.save_pretrained(tmp_path, format="chatterbox")
    assert S3GenModel.from_pretrained(tmp_path).fingerprint() == tiny_model.fingerprint()


@pytest.mark.parametrize(
    "field",
    [
        {"cfm_t_scheduler": "linear"},
        {"cfm_inference_cfg_rate": 0.5},
        {"vocoder_harmonic_source": "sinegen2"},
        {"encode_lookahead": False},
        {"decoder_num_heads": 4, "decoder_attention_head_dim": 128},
        {"encoder_num_blocks": 2},
        {"encoder_num_up_blocks": 5},
        {"decoder_n_blocks": 2, "decoder_num_mid_blocks": 4},
        {"tokenizer_layers": 5},
    ],
)
def test_chatterbox_plays_a_model_wrongly_without_a_word(field: dict[str, object]) -> None:
    name = next(iter(field))
    with pytest.raises(ValueError, match=rf"{name} .*Hugging Face layout"):
        chatterbox.file_name(dataclasses.replace(S3GenConfig(), **field))
    if name.startswith(("cfm", "vocoder", "encode_")):
        with pytest.raises(ValueError, match=name):
            chatterbox.file_name(dataclasses.replace(S3GenConfig.tiny(), **field))
    assert chatterbox.file_name(S3GenConfig(cfm_sigma_min=0.0)) == "s3gen.safetensors"  # acts in training only


def test_a_model_of_another_depth_is_refused_where_chatterbox_would_refuse_it_itself() -> None:
    # Turbo is loaded strictly; another number of dense layers changes the widths behind them.
    assert chatterbox.file_name(S3GenConfig(meanflow=True, encoder_num_blocks=2)) == "s3gen_meanflow.safetensors"
    assert chatterbox.file_name(S3GenConfig(speaker_blocks=(12, 24, 10))) == "s3gen.safetensors"
    shapes, others = (
        checkpoint.published_shapes(_on_meta(config))
        for config in (S3GenConfig(), S3GenConfig(speaker_blocks=(12, 24, 10)))
    )
    assert any(shapes[name] != others[name] for name in shapes.keys() & others.keys())


def test_a_card_hides_what_the_checkpoint_is_or_says_where_it_lay(tiny_model: S3GenModel, tmp_path: Path) -> None:
    tiny_model.save_pretrained(tmp_path / "secret" / "first", format="chatterbox")
    S3GenModel.from_pretrained(tmp_path / "secret" / "first").save_pretrained(tmp_path / "second")
    stored = (tmp_path / "second" / "README.md").read_bytes()
    _, head, text = stored.decode().split("---\n", 2)
    assert yaml.safe_load(head) == {"library_name": "s3gen", "tags": ["audio", "speech", "s3gen"]}
    assert "- read from: Chatterbox, `s3gen.safetensors`\n" in text
    assert f"- fingerprint: `{tiny_model.fingerprint()}`\n" in text
    assert f"- voice fingerprint: `{tiny_model.voice_fingerprint()}`;" in text
    numbers = {name: sum(w.numel() for w in part.state_dict().values()) for name, part in tiny_model.named_children()}
    for name, label in (("tokenizer", "speech tokenizer"), ("speaker_encoder", "speaker encoder"), ("flow", "flow"),
                        ("mel2wav", "vocoder")):  # fmt: skip
        assert re.search(rf"^\| {label}.* \| {numbers[name]:,} \|$", text, re.MULTILINE), label
    assert f" | {sum(numbers.values()):,} |" in text
    assert "The licence" in text
    assert "secret" not in text
    assert str(tmp_path) not in text
    (code,) = re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    names: dict[str, S3GenModel] = {}
    exec(code.replace("FOLDER", str(tmp_path / "second")), names)
    assert names["model"].fingerprint() == tiny_model.fingerprint()
    assert is_unedited(stored)


def test_random_weights_pass_for_speech(tiny_model: S3GenModel, tmp_path: Path) -> None:
    tiny_model.save_pretrained(tmp_path)
    assert "`random:tiny`: the weights are random, and what they make is noise" in (tmp_path / "README.md").read_text()


def test_a_card_that_somebody_has_edited_is_overwritten(tiny_model: S3GenModel, tmp_path: Path) -> None:
    tiny_model.save_pretrained(tmp_path)
    card = tmp_path / "README.md"
    written = card.read_text()
    S3GenModel.from_pretrained(tmp_path).save_pretrained(tmp_path)
    assert card.read_text() != written  # it says another origin
    edited = card.read_text().replace("library_name: s3gen", "library_name: s3gen\nlicense: mit")
    card.write_text(edited)
    tiny_model.save_pretrained(tmp_path)
    assert card.read_text() == edited


@pytest.mark.parametrize("name", ["README.md", "config.json", "model.safetensors"])
def test_a_folder_in_a_file_s_place_costs_the_checkpoint_that_was_there(
    tiny_model: S3GenModel, tmp_path: Path, name: str
) -> None:
    tiny_model.save_pretrained(tmp_path)
    (tmp_path / name).unlink()
    (tmp_path / name / "mine").mkdir(parents=True)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ValueError, match=rf"{name} is a folder"):
        tiny_model.save_pretrained(tmp_path)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_card_that_cannot_be_read_costs_the_checkpoint_that_was_there(
    tiny_model: S3GenModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny_model.save_pretrained(tmp_path)

    def refused(path: Path) -> bytes:
        raise PermissionError(str(path))

    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_bytes", refused)
        with pytest.raises(PermissionError, match=r"README\.md"):
            tiny_model.save_pretrained(tmp_path)
    assert S3GenModel.from_pretrained(tmp_path).fingerprint() == tiny_model.fingerprint()


def test_what_was_saved_in_the_home_folder_is_not_found_there(
    tiny_model: S3GenModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    tiny_model.save_pretrained("~/model")
    assert S3GenModel.from_pretrained("~/model").fingerprint() == tiny_model.fingerprint()
    assert os.listdir(tmp_path) == ["home"]


def test_a_file_name_writes_markdown_into_the_card(tiny_model: S3GenModel, tmp_path: Path) -> None:
    tiny_model.save_pretrained(tmp_path / "model")
    odd = tmp_path / "a` [click](http:x)`.safetensors"
    (tmp_path / "model" / "model.safetensors").rename(odd)
    model = S3GenModel.from_pretrained(odd)
    assert model.origin == "Chatterbox"
    assert model.fingerprint() == tiny_model.fingerprint()


def test_a_hub_s_name_is_left_out_of_the_card(
    tiny_model: S3GenModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub

    tiny_model.save_pretrained(tmp_path, format="chatterbox")
    monkeypatch.setattr(huggingface_hub, "list_repo_files", lambda repo: os.listdir(tmp_path))
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda repo, **_: str(tmp_path))
    model = S3GenModel.from_pretrained("somebody/something")
    assert model.origin == "Chatterbox, `s3gen.safetensors` of `somebody/something`"
    assert HiFTNetModel.from_pretrained("somebody/something").origin == model.origin


def test_a_vocoder_s_card_speaks_of_a_whole_model(tiny_model: S3GenModel, tmp_path: Path) -> None:
    tiny_model.save_pretrained(tmp_path / "whole")
    HiFTNetModel.from_pretrained(tmp_path / "whole").save_pretrained(tmp_path / "vocoder")
    text = (tmp_path / "vocoder" / "README.md").read_text()
    assert "# HiFTNet\n" in text
    assert "HiFTNetModel.from_pretrained" in text
    assert "speech tokenizer" not in text
    assert "voice fingerprint" not in text
    alone = HiFTNetModel.from_pretrained(tmp_path / "vocoder")
    assert all(map(torch.equal, alone.state_dict().values(), tiny_model.mel2wav.state_dict().values()))
