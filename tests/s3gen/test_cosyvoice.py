"""CosyVoice2's folder: read as what was saved, whatever form its parts have; refused by name where it is not whole."""

from __future__ import annotations

import shutil
import sys

import huggingface_hub
import pytest
import torch

from s3gen import HiFTNetModel, S3GenModel, Voice
from s3gen.checkpoint import published_weights
from s3gen.cosyvoice import FILES, FLOW_FILE, SPEAKER_FILE, TOKENIZER_FILE, VOCODER_FILE
from s3gen.interpolated_source import InterpolatedSource
from tests.conftest import random_tokens, relative_error, speech_like
from tests.s3gen.cosyvoice_folder import NORMED, part, tiny_model, weight_normed, write_folder

pytest.importorskip("onnx")


@pytest.fixture(scope="module")
def model():
    return tiny_model()


@pytest.fixture(scope="module")
def folder(model, tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp("cosyvoice"), model)


@pytest.fixture(scope="module")
def loaded(folder):
    return S3GenModel.from_pretrained(folder)


@pytest.fixture
def copy(folder, tmp_path):
    return shutil.copytree(folder, tmp_path / "copy")


def voice_of(model):
    return Voice.from_ref(model.embed_ref(speech_like(0.8, 24_000), 24_000))


# --- what is read -----------------------------------------------------------------------------------------------------


def test_the_folder_is_another_model_than_was_saved(model, loaded):
    assert loaded.config == model.config
    assert loaded.origin == "CosyVoice2, `flow.pt`"
    clip = speech_like(1.3, 16_000)
    assert torch.equal(loaded.tokenize(clip, 16_000)[0], model.tokenize(clip, 16_000)[0])
    assert relative_error(loaded.speaker_encoder([clip]), model.speaker_encoder([clip])) < 1e-6
    voice = voice_of(model)
    waves = [each.synthesize([random_tokens(9, 1)], [voice], [3])[0] for each in (loaded, model)]
    assert relative_error(*waves) < 1e-5


def test_the_harmonic_source_is_guessed_from_a_rate_and_not_told_by_the_format(loaded, tiny_model):
    assert type(loaded.mel2wav.source) is InterpolatedSource
    assert type(tiny_model.mel2wav.source) is not InterpolatedSource
    assert loaded.config.sampling_rate == tiny_model.config.sampling_rate


def test_a_saved_copy_forgets_which_source_and_look_ahead_it_has(loaded, tmp_path):
    loaded.save_pretrained(tmp_path / "saved")
    again = S3GenModel.from_pretrained(tmp_path / "saved")
    assert again.config == loaded.config
    assert (again.fingerprint(), again.voice_fingerprint()) == (loaded.fingerprint(), loaded.voice_fingerprint())
    loaded.mel2wav.save_pretrained(tmp_path / "vocoder")
    assert type(HiFTNetModel.from_pretrained(tmp_path / "vocoder").source) is InterpolatedSource


def test_models_that_had_no_such_fields_get_another_fingerprint_by_them(tiny_model):
    assert not {"vocoder_harmonic_source", "encode_lookahead"} & tiny_model.config.to_dict().keys()
    assert "harmonic_source" not in tiny_model.mel2wav.config.to_dict()


@pytest.mark.parametrize(
    "chosen", [{"file": "flow.pt"}, {"path": "flow.pt"}, {"path": "flow.pt", "url": True}, {"url": True}]
)
def test_the_flow_alone_is_loaded_when_it_is_named(folder, loaded, chosen):
    where = folder / chosen["path"] if "path" in chosen else folder
    where = f"file://{where}" if "url" in chosen else where
    assert S3GenModel.from_pretrained(where, file=chosen.get("file")).fingerprint() == loaded.fingerprint()


@pytest.mark.parametrize("file", [None, FLOW_FILE])
def test_the_hub_is_asked_for_a_part_of_the_folder(folder, loaded, monkeypatch, file):
    published = [*FILES, "config.json", "cosyvoice2.yaml", "llm.pt", "flow.decoder.estimator.fp32.onnx"]
    asked = []

    def download(repo, *, allow_patterns):
        asked.extend(allow_patterns)
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "list_repo_files", lambda repo: published)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    model = S3GenModel.from_pretrained("FunAudioLLM/CosyVoice2-0.5B", file=file)
    assert model.fingerprint() == loaded.fingerprint()
    assert set(asked) & set(published) == {*FILES, "config.json"}


def test_the_vocoder_alone_needs_the_graphs_and_a_package_to_read_them(folder, loaded, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnx", None)
    alone = shutil.copy(folder / VOCODER_FILE, tmp_path / VOCODER_FILE)
    for vocoder in (HiFTNetModel.from_pretrained(alone), HiFTNetModel.from_pretrained(folder, file=VOCODER_FILE)):
        assert vocoder.config == loaded.mel2wav.config
        assert all(
            torch.equal(value, vocoder.state_dict()[name]) for name, value in loaded.mel2wav.state_dict().items()
        )
    with pytest.raises(ValueError, match=r"hift\.pt holds a vocoder alone: load it with HiFTNetModel"):
        S3GenModel.from_pretrained(alone)
    with pytest.raises(FileNotFoundError, match=r"there are: hift\.pt; file='hift\.pt' reads the vocoder alone"):
        HiFTNetModel.from_pretrained(tmp_path)
    assert HiFTNetModel.from_pretrained(tmp_path, file=VOCODER_FILE).config == loaded.mel2wav.config


def test_a_vocoder_that_lacks_a_weight_is_not_named(tmp_path):
    torch.save({"conv_pre.bias": torch.ones(3)}, tmp_path / VOCODER_FILE)
    with pytest.raises(ValueError, match=r"hift\.pt cannot be read as a vocoder of CosyVoice2: .*conv_pre\.weight"):
        HiFTNetModel.from_pretrained(tmp_path / VOCODER_FILE)


def as_published(state):
    return weight_normed(state, NORMED)


def as_trained(state):
    """With what CosyVoice's own training leaves in the file."""
    normed = {f"generator.{name}": value for name, value in weight_normed(state, NORMED).items()}
    return {**normed, "discriminator.mpd.conv.weight": torch.ones(3), "epoch": 12, "step": 34_567}


def in_old_names(state):
    names = ((".parametrizations.weight.original0", ".weight_g"), (".parametrizations.weight.original1", ".weight_v"))
    renamed = weight_normed(state, NORMED)
    for new, old in names:
        renamed = {name.replace(new, old): value for name, value in renamed.items()}
    return renamed


@pytest.mark.parametrize("form", [as_published, as_trained, in_old_names, dict])
def test_a_vocoder_is_refused_for_the_way_it_was_saved(model, loaded, copy, form):
    state = {f"mel2wav.{name}": value for name, value in part(published_weights(model), "mel2wav.").items()}
    torch.save({name.replace("mel2wav.", "", 1): value for name, value in form(state).items()}, copy / VOCODER_FILE)
    found = S3GenModel.from_pretrained(copy).mel2wav.state_dict()
    assert all(relative_error(found[name], value) < 1e-6 for name, value in loaded.mel2wav.state_dict().items())


def test_a_flow_that_goes_on_training_is_refused_for_its_counters(loaded, copy):
    state = torch.load(copy / FLOW_FILE, weights_only=True)
    torch.save({**state, "epoch": 3, "step": 1_000}, copy / FLOW_FILE)
    assert S3GenModel.from_pretrained(copy).fingerprint() == loaded.fingerprint()


@pytest.mark.parametrize("left", [{"lr": 3}, {"epoch": "three"}, {"epoch": [torch.ones(1)]}])
def test_whatever_stands_among_the_weights_is_skipped(copy, left):
    state = torch.load(copy / FLOW_FILE, weights_only=True)
    torch.save({**state, **left}, copy / FLOW_FILE)
    with pytest.raises(ValueError, match=r"flow\.pt is not a state dictionary"):
        S3GenModel.from_pretrained(copy)


# --- what is not whole ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("missing", FILES)
def test_a_part_is_missing_and_nobody_says_which(copy, missing):
    (copy / missing).unlink()
    told = "expected one of" if missing == FLOW_FILE else f"no whole checkpoint of CosyVoice2: {missing} missing"
    with pytest.raises(FileNotFoundError, match=told) as error:
        S3GenModel.from_pretrained(copy)
    assert all(name in str(error.value) for name in FILES)


def test_two_checkpoints_in_one_folder_are_taken_for_one(copy):
    (copy / "s3gen.safetensors").write_bytes(b"")
    (copy / "config.json").write_text("{}")  # CosyVoice2's own, which says nothing
    with pytest.raises(ValueError, match=r"several checkpoints: s3gen\.safetensors, flow\.pt"):
        S3GenModel.from_pretrained(copy)


def test_a_missing_package_is_told_as_a_missing_weight(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(ImportError, match=r"campplus\.onnx needs onnx: pip install onnx"):
        S3GenModel.from_pretrained(folder)


def test_swapped_graphs_are_read_as_each_other(copy):
    swapped = copy / "swapped"
    (copy / SPEAKER_FILE).rename(swapped)
    (copy / TOKENIZER_FILE).rename(copy / SPEAKER_FILE)
    swapped.rename(copy / TOKENIZER_FILE)
    with pytest.raises(ValueError, match=r"campplus\.onnx is not built as expected: head\.conv1 has stride \(2,\)"):
        S3GenModel.from_pretrained(copy)


@pytest.mark.parametrize(
    ("file", "lost", "message"),
    [
        (FLOW_FILE, "input_embedding.weight", "flow.input_embedding.weight is missing"),
        (VOCODER_FILE, "conv_pre.bias", "1 missing: mel2wav.conv_pre.bias"),
    ],
)
def test_a_weight_is_missing_and_nobody_says_which(copy, file, lost, message):
    state = torch.load(copy / file, weights_only=True)
    del state[lost]
    torch.save(state, copy / file)
    with pytest.raises(ValueError, match=message):
        S3GenModel.from_pretrained(copy)


def test_another_generation_of_the_model_is_taken_for_this_one(copy):
    """CosyVoice's first has 4,096 codes."""
    state = torch.load(copy / FLOW_FILE, weights_only=True)
    torch.save({**state, "input_embedding.weight": torch.zeros(4096, 24)}, copy / FLOW_FILE)
    with pytest.raises(ValueError, match=r"cannot be read as a model of CosyVoice2: vocab_size is 4096, but only 6561"):
        S3GenModel.from_pretrained(copy)


# --- what it makes ----------------------------------------------------------------------------------------------------


def test_held_back_tokens_reach_the_mel_through_attention(model):
    """Only the look-ahead convolution may read them: what stands behind three tokens changes nothing."""
    ref = model.embed_ref(speech_like(0.8, 24_000), 24_000)
    tokens = random_tokens(12, 5)
    mel = model(tokens, ref_dict=ref, finalize=False)
    assert mel.shape == (1, 80, 18)
    joined = torch.cat((ref["prompt_token"][0], tokens))[None]
    mu = model.flow.encode(joined, [joined.shape[1]], False)[:, : 2 * (joined.shape[1] - 3)]
    whole = model.flow.encode(joined, [joined.shape[1]], True)[:, : mu.shape[1]]
    assert relative_error(mu, whole) > 1e-4, "attention must not see the tokens that are held back"
    changed = joined.clone()
    changed[:, -1] = (changed[:, -1] + 1) % 6561
    other = model.flow.encode(changed, [joined.shape[1]], False)[:, : mu.shape[1]]
    assert relative_error(other, mu) > 1e-6, "the last position that is kept reads three tokens ahead"


def test_a_row_that_waits_for_more_tokens_depends_on_its_batch(model):
    """Rows down to a single token, of which nothing can be made yet."""
    exact = tiny_model().double()
    ref = exact.embed_ref(speech_like(0.8, 24_000), 24_000)
    rows = [random_tokens(count, count) for count in (14, 1, 5, 3)]
    padded = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
    lengths = [len(row) for row in rows]
    together = exact(padded, ref_dict=ref, finalize=False, speech_token_lens=lengths, seed=[1, 2, 3, 4])
    for place, row in enumerate(rows):
        alone = exact(row, ref_dict=ref, finalize=False, seed=place + 1)[0]
        assert alone.shape[1] == 2 * max(0, len(row) - 3)
        assert torch.isfinite(together[place]).all()
        assert (together[place, :, : alone.shape[1]] - alone).abs().max().item() < 1e-12 if alone.numel() else True


def test_utterances_share_one_noise_as_in_the_reference(model):
    voice = voice_of(model)
    first, second, again = model.synthesize([random_tokens(6, 1)] * 3, [voice] * 3, [1, 2, 1])
    assert torch.equal(first, again)
    assert relative_error(first, second) > 0.01
