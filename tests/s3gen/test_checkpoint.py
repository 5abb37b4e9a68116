"""Checkpoints in every format that is read, and everything that can be wrong with them."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys

import pytest
import safetensors.torch
import torch

from s3gen import HiFTNetConfig, HiFTNetModel, S3GenConfig, S3GenModel, checkpoint, names
from s3gen.model import _on_meta
from s3gen.weights import random_weights

WEIGHT_NORMED = ("mel2wav.conv_pre", "mel2wav.conv_post", "mel2wav.ups.0", "mel2wav.resblocks.3.convs1.2",
                 "mel2wav.f0_predictor.condnet.4", "mel2wav.source_resblocks.1.convs2.0")  # fmt: skip


G_AND_V = (".weight_g", ".weight_v")
ORIGINALS = (".parametrizations.weight.original0", ".parametrizations.weight.original1")


def parametrised(weights, magnitude=ORIGINALS[0], direction=ORIGINALS[1]):
    """The same weights, some in weight norm's two parts; the direction is scaled, so that folding must divide."""
    split = dict(weights)
    for name in WEIGHT_NORMED:
        weight = split.pop(name + ".weight")
        split[name + magnitude] = weight.flatten(1).norm(dim=1).view(-1, *[1] * (weight.dim() - 1))
        split[name + direction] = 3 * weight
    return split


def with_derived(weights):
    """What published files also hold and nobody needs."""
    return {
        **weights,
        "tokenizer._mel_filters": torch.zeros(128, 201),
        "tokenizer.window": torch.zeros(400),
        "speaker_encoder.head.bn1.num_batches_tracked": torch.tensor(3),
        "trim_fade": torch.zeros(960),
    }


@pytest.fixture(scope="module")
def weights(tiny_model):
    return {name: weight.clone() for name, weight in checkpoint.published_weights(tiny_model).items()}


def write(folder, name, weights, config=None):
    """A checkpoint file. Real single files have the published size; small ones must describe themselves."""
    folder.mkdir(exist_ok=True)
    if name.endswith(".pt"):
        torch.save(dict(weights), folder / name)
    else:
        metadata = {"s3gen_config": json.dumps(config)} if config else None
        safetensors.torch.save_file({k: v.contiguous() for k, v in weights.items()}, folder / name, metadata=metadata)
    return folder


def same_sound(model, other):
    mel = torch.randn(1, 80, 12, generator=torch.Generator().manual_seed(0))
    return torch.allclose(model.inference(mel)[0], other.inference(mel)[0], atol=1e-6)


def test_the_table_of_names_is_a_bijection():
    keys = set(_on_meta(S3GenConfig(meanflow=True)).state_dict())
    published = {names.to_published(key) for key in keys}
    assert len(published) == len(keys)
    assert {names.to_ours(name) for name in published} == keys
    assert "flow.decoder.estimator.mid_blocks.11.1.3.ff.net.0.proj.weight" in published
    assert "flow.encoder.up_encoders.3.self_attn.pos_bias_v" in published
    assert "mel2wav.f0_predictor.condnet.8.bias" in published


def test_the_full_model_has_the_published_size():
    model = _on_meta(S3GenConfig())
    count = {name: sum(p.numel() for p in part.parameters()) for name, part in model.named_children()}
    # 20,821,295 of the vocoder's in chatterbox-tts count the magnitudes that weight norm adds.
    assert count["tokenizer"] == 123_714_568
    assert count["flow"] == 112_549_360
    assert sum(weight.numel() for weight in model.flow.estimator.parameters()) == 71_302_480


def test_weights_by_formula_are_the_same_everywhere():
    shapes = {"a.weight": torch.Size([2, 3]), "a.bias": torch.Size([2])}
    assert random_weights(shapes)["a.weight"].flatten().tolist() == pytest.approx(
        random_weights(dict(reversed(shapes.items())))["a.weight"].flatten().tolist()
    )
    model = _on_meta(S3GenConfig.tiny())
    first, second = (random_weights(checkpoint.published_shapes(model)) for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_building_and_loading_leave_the_global_generator_alone():
    before = torch.get_rng_state()
    S3GenModel.from_pretrained("random:tiny")
    assert torch.equal(torch.get_rng_state(), before)


def test_a_saved_model_loads_as_it_was(tiny_model, tmp_path):
    tiny_model.save_pretrained(tmp_path / "model")
    assert sorted(os.listdir(tmp_path / "model")) == ["README.md", "config.json", "model.safetensors"]
    again = S3GenModel.from_pretrained(tmp_path / "model")
    assert again.config == tiny_model.config
    assert again.fingerprint() == tiny_model.fingerprint()
    assert (
        S3GenModel.from_pretrained(str(tmp_path / "model" / "model.safetensors")).fingerprint() == again.fingerprint()
    )


def test_a_saved_vocoder_loads_alone_and_from_the_whole(tiny_model, tmp_path):
    tiny_model.save_pretrained(tmp_path / "model")
    whole = HiFTNetModel.from_pretrained(tmp_path / "model")
    whole.save_pretrained(tmp_path / "vocoder")
    alone = HiFTNetModel.from_pretrained(tmp_path / "vocoder")
    assert same_sound(alone, tiny_model.mel2wav)
    assert same_sound(whole, tiny_model.mel2wav)
    assert same_sound(HiFTNetModel.from_pretrained("random:tiny"), tiny_model.mel2wav)
    with pytest.raises(
        ValueError, match=r"vocoder/model\.safetensors holds a vocoder alone: load it with HiFTNetModel"
    ):
        S3GenModel.from_pretrained(tmp_path / "vocoder")


@pytest.mark.parametrize("vocoder", [False, True])
@pytest.mark.parametrize(
    ("change", "shown"),
    [
        ({"sampling_rate": 8_000}, r"config\.json says 8000 of sampling_rate, and .*model\.safetensors says 24000"),
        ({"more": "x" * 1_000}, r"config\.json says x{80} of more, and .*model\.safetensors says nothing"),
    ],
)
def test_an_edited_configuration_counts_for_nothing_and_nobody_says_so(tiny_model, tmp_path, vocoder, change, shown):
    saved = tiny_model.mel2wav if vocoder else tiny_model
    saved.save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    written = json.loads(file.read_text())
    file.write_text(json.dumps(written | {"architectures": ["S3Gen"]}))  # as the hub's tools do
    assert type(saved).from_pretrained(tmp_path).config == saved.config
    file.write_text(json.dumps(written | change))
    with pytest.raises(ValueError, match=shown):
        type(saved).from_pretrained(tmp_path)
    file.write_text("{broken")
    with pytest.raises(ValueError, match=r"config\.json holds no configuration in JSON"):
        type(saved).from_pretrained(tmp_path)
    file.unlink()
    assert type(saved).from_pretrained(tmp_path).config == saved.config


@pytest.mark.parametrize("name", ["s3gen.safetensors", "model.safetensors", "s3gen_meanflow.safetensors"])
@pytest.mark.parametrize("form", [G_AND_V, ORIGINALS])
def test_weight_norm_is_folded_whichever_way_it_is_stored(tiny_model, weights, tmp_path, name, form):
    stored = with_derived(parametrised(weights, *form))
    folder = write(tmp_path / "model", name, stored, tiny_model.config.to_dict())
    loaded = S3GenModel.from_pretrained(folder)
    for key, weight in checkpoint.published_weights(loaded).items():
        assert torch.allclose(weight, weights[key], rtol=1e-6, atol=1e-7), key


def test_the_hugging_face_layout_with_a_wrapped_tokenizer_loads(tiny_model, weights, tmp_path):
    wrapped = {name.replace("tokenizer.", "tokenizer.s3_model.", 1) if name.startswith("tokenizer.") else name: weight
               for name, weight in weights.items()}  # fmt: skip
    folder = write(tmp_path / "model", "model.safetensors", wrapped)
    config = {**tiny_model.config.to_dict(), "architectures": ["S3GenModel"], "torch_dtype": "float32",
              "transformers_version": "5.0.0"}  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    assert S3GenModel.from_pretrained(folder).fingerprint() == tiny_model.fingerprint()


@pytest.fixture(scope="module", params=[False, True])
def published(request, tmp_path_factory):
    """Whether it is of meanflow, and a folder with one file.

    The real layouts at the real size: no configuration, derived buffers, weight norm; .pt and .safetensors.
    """
    shapes = checkpoint.published_shapes(_on_meta(S3GenConfig(meanflow=request.param)))
    name = "s3gen_meanflow.safetensors" if request.param else "s3gen.pt"
    folder = tmp_path_factory.mktemp("published")
    return request.param, write(folder, name, with_derived(parametrised(random_weights(shapes))))


def test_single_published_files_have_the_published_size(published):
    meanflow, folder = published
    loaded = S3GenModel.from_pretrained(folder)
    assert loaded.config == S3GenConfig(meanflow=meanflow)
    assert loaded.flow.default_steps == (2 if meanflow else 10)


@pytest.mark.parametrize("published", [True], indirect=True)
def test_a_full_size_model_stays_within_its_memory(published):
    """Under 2.5 GB resident after loading."""
    script = (
        "import sys; from s3gen import S3GenModel; model = S3GenModel.from_pretrained(sys.argv[1]);"
        "print([line for line in open('/proc/self/status') if line.startswith('VmRSS')][0].split()[1])"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(published[1])], capture_output=True, text=True, check=True, timeout=300
    )
    assert int(done.stdout) < 2.5 * 2**20


def test_half_precision_files_become_float32(tiny_model, weights, tmp_path):
    half = {name: weight.half() for name, weight in weights.items()}
    loaded = S3GenModel.from_pretrained(write(tmp_path / "m", "s3gen.safetensors", half, tiny_model.config.to_dict()))
    assert {weight.dtype for weight in loaded.state_dict().values()} == {torch.float32}


def test_missing_and_unexpected_weights_are_listed(tiny_model, weights, tmp_path):
    broken = dict(weights)
    del broken["flow.encoder.after_norm.bias"], broken["mel2wav.ups.1.bias"]
    broken["flow.extra.weight"] = torch.zeros(1)
    broken["mel2wav.conv_pre.bias"] = torch.zeros(7)
    folder = write(tmp_path / "model", "s3gen.safetensors", broken, tiny_model.config.to_dict())
    with pytest.raises(ValueError, match="do not fit") as caught:
        S3GenModel.from_pretrained(folder)
    message = str(caught.value)
    for part in ("2 missing", "flow.encoder.after_norm.bias", "mel2wav.ups.1.bias", "1 unexpected",
                 "flow.extra.weight", "mel2wav.conv_pre.bias is (7,), not (32,)"):  # fmt: skip
        assert part in message


def test_several_checkpoints_are_named_and_one_is_chosen(tiny_model, weights, tmp_path):
    folder = write(tmp_path / "model", "s3gen.safetensors", weights, tiny_model.config.to_dict())
    write(folder, "s3gen_meanflow.safetensors", weights, tiny_model.config.to_dict())
    with pytest.raises(ValueError, match=r"s3gen.safetensors, s3gen_meanflow.safetensors.*file="):
        S3GenModel.from_pretrained(folder)
    assert S3GenModel.from_pretrained(folder, file="s3gen.safetensors").fingerprint() == tiny_model.fingerprint()
    for wrong in ("other.safetensors", "../model/s3gen.safetensors"):
        with pytest.raises(FileNotFoundError, match=r"other|model"):
            S3GenModel.from_pretrained(folder, file=wrong)


class Evil:
    def __reduce__(self):
        return (os.system, ("touch /tmp/s3gen-was-pwned",))


def test_a_pickle_with_code_is_refused(tmp_path):
    torch.save({"flow.weight": torch.zeros(1), "evil": Evil()}, tmp_path / "s3gen.pt")
    with pytest.raises(ValueError, match="pickled code"):
        S3GenModel.from_pretrained(tmp_path)
    (tmp_path / "s3gen.pt").write_bytes(pickle.dumps(Evil()))
    with pytest.raises(ValueError, match=r"s3gen.pt"):
        S3GenModel.from_pretrained(tmp_path)
    assert not os.path.exists("/tmp/s3gen-was-pwned")


@pytest.mark.parametrize("name", ["s3gen.safetensors", "s3gen.pt"])
@pytest.mark.parametrize("content", [b"", b"not weights at all", b"\xff" * 64])
def test_rubbish_is_refused_by_name(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=name):
        S3GenModel.from_pretrained(tmp_path)


def test_nothing_there_is_said_plainly(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    (tmp_path / "readme.txt").write_text("hello")
    with pytest.raises(FileNotFoundError, match=r"readme.txt"):
        S3GenModel.from_pretrained(tmp_path)
    with pytest.raises(FileNotFoundError, match="no/such/place"):
        S3GenModel.from_pretrained("no/such/place")
    with pytest.raises(FileNotFoundError, match="random:tiny"):
        S3GenModel.from_pretrained("random:huge")


def test_a_hub_id_that_cannot_be_reached_is_said_plainly(monkeypatch, tmp_path):
    import huggingface_hub

    def unreachable(*args, **kwargs):
        raise ConnectionError("no route to the hub")

    monkeypatch.setattr(huggingface_hub, "list_repo_files", unreachable)
    with pytest.raises(FileNotFoundError, match=r"somebody/something.*could not be reached"):
        S3GenModel.from_pretrained("somebody/something")


def test_the_hub_prefers_safetensors_to_its_twin(monkeypatch, tiny_model, weights, tmp_path):
    import huggingface_hub

    published = ["README.md", "s3gen.pt", "s3gen.safetensors", "t3_cfg.safetensors"]
    asked = []

    def download(repo, *, allow_patterns):
        asked.extend(allow_patterns)
        return str(write(tmp_path / "cache", "s3gen.safetensors", weights, tiny_model.config.to_dict()))

    monkeypatch.setattr(huggingface_hub, "list_repo_files", lambda repo: published)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert S3GenModel.from_pretrained("ResembleAI/chatterbox").fingerprint() == tiny_model.fingerprint()
    assert "s3gen.safetensors" in asked
    assert "s3gen.pt" not in asked


@pytest.mark.parametrize("whole", ["folder", "file"])
def test_a_url_is_read_through_fsspec(tiny_model, tmp_path, whole):
    import fsspec

    tiny_model.save_pretrained(tmp_path / "m")
    memory = fsspec.filesystem("memory")
    for name in ("config.json", "model.safetensors"):
        memory.pipe_file(f"/bucket/m/{name}", (tmp_path / "m" / name).read_bytes())
    url = "memory://bucket/m" + ("/model.safetensors" if whole == "file" else "")
    assert S3GenModel.from_pretrained(url).fingerprint() == tiny_model.fingerprint()
    with pytest.raises(FileNotFoundError, match="memory://bucket/none"):
        S3GenModel.from_pretrained("memory://bucket/none")


def test_fingerprints_know_what_they_cover(tiny_model, weights, tmp_path):
    for name, voices_too in (("flow.encoder_proj.bias", False), ("tokenizer.encoder.conv1.bias", True)):
        changed = {**weights, name: weights[name] + 1e-3}
        folder = write(tmp_path / name, "s3gen.safetensors", changed, tiny_model.config.to_dict())
        other = S3GenModel.from_pretrained(folder)
        assert other.fingerprint() != tiny_model.fingerprint()
        assert (other.voice_fingerprint() != tiny_model.voice_fingerprint()) == voices_too


@pytest.mark.parametrize(
    ("values", "shown"),
    [
        ({"vocab_sise": 1}, "vocab_sise.*vocab_size"),
        ({"sampling_rate": 22050}, "sampling_rate is 22050"),
        ({"decoder_channels": [256, 256]}, "decoder_channels"),
        ({"cfm_solver": "heun"}, "heun"),
        ({"encoder_attention_heads": 7}, "encoder_output_size 512"),
        ({"model_type": "bert"}, "bert"),
    ],
)
def test_a_configuration_that_cannot_be_is_refused_by_name(values, shown):
    with pytest.raises(ValueError, match=shown):
        S3GenConfig.from_dict(values)


def test_published_defaults():
    config = S3GenConfig(
        vocab_size=6561, encoder_num_blocks=6, decoder_num_mid_blocks=12, sampling_rate=24000, mel_bins=80
    )
    assert config == S3GenConfig()
    assert HiFTNetConfig().sampling_rate == 22050
    assert config.vocoder.frame_samples == 480
    assert S3GenConfig.from_dict(config.to_dict()) == config
    assert HiFTNetConfig.from_dict(HiFTNetConfig().to_dict()) == HiFTNetConfig()
