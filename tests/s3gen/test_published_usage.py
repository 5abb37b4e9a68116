"""The published documentation of S3Gen works as it stands, but for the import line and the weights.

The calls are those of ``docs/source/en/model_doc/s3gen.md`` of huggingface/transformers at 194d53c1: basic usage, two
stages, pre-computed reference embeddings, configuration. Same names, same keywords, same order, one namespace.

`torchaudio.load` and `torchaudio.save` are not the model's. From 2.9 on they are made of torchcodec, which does not
load beside a CPU torch; soundfile stands in for them here, with their shapes: (channels, samples), float32.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import soundfile
import torch

import s3gen._torchaudio  # noqa: F401  (makes `import torchaudio` work beside any torch)

CLIP = Path(__file__).parents[2] / "demo/voices/en-us.wav"

BASIC = """
from s3gen import S3GenModel
import torch
import torchaudio

model = S3GenModel.from_pretrained("random:tiny")
model.eval()
ref_wav, ref_sr = torchaudio.load("reference.wav")
speech_tokens = torch.randint(0, 6561, (1, 100))
with torch.no_grad():
    waveform, _ = model.inference(
        speech_tokens=speech_tokens,
        ref_wav=ref_wav,
        ref_sr=ref_sr,
        finalize=True
    )
torchaudio.save("output.wav", waveform.cpu(), 24000)
"""

TWO_STAGES = """
with torch.no_grad():
    mel_spectrograms = model(
        speech_tokens=speech_tokens,
        ref_wav=ref_wav,
        ref_sr=ref_sr,
        finalize=True
    )

from s3gen import HiFTNetModel

hiftnet = model.mel2wav
cache_source = torch.zeros(1, 1, 0)
with torch.no_grad():
    waveform, _ = hiftnet.inference(
        speech_feat=mel_spectrograms,
        cache_source=cache_source
    )
"""

EMBEDDINGS = """
ref_dict = model.embed_ref(ref_wav, ref_sr)
with torch.no_grad():
    mel1 = model(tokens1, ref_dict=ref_dict, finalize=True)
    mel2 = model(tokens2, ref_dict=ref_dict, finalize=True)
"""

CONFIGURATION = """
from s3gen import S3GenConfig

config = S3GenConfig(
    vocab_size=6561,
    encoder_num_blocks=6,
    decoder_num_mid_blocks=12,
    sampling_rate=24000,
    mel_bins=80,
)
"""


def load(path: str) -> tuple[torch.Tensor, int]:
    samples, rate = soundfile.read(path, dtype="float32", always_2d=True)
    return torch.from_numpy(samples.T.copy()), rate


def save(path: str, waveform: torch.Tensor, rate: int) -> None:
    soundfile.write(path, waveform.T.numpy(), rate)


@pytest.fixture(name="published")
def _published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The namespace after the basic usage, in a folder with a reference.wav."""
    import torchaudio

    monkeypatch.setattr(torchaudio, "load", load)
    monkeypatch.setattr(torchaudio, "save", save)
    monkeypatch.chdir(tmp_path)
    shutil.copy(CLIP, "reference.wav")
    names: dict[str, Any] = {}
    exec(BASIC, names)
    return names


def test_basic_usage_breaks(published: dict[str, Any]) -> None:
    assert published["waveform"].shape == (1, 100 * 960)
    samples, rate = soundfile.read("output.wav")
    assert (samples.shape, rate) == ((100 * 960,), 24_000)
    assert samples.any()


def test_two_stages_are_another_result_than_one(published: dict[str, Any]) -> None:
    at_once = published["waveform"]
    exec(TWO_STAGES, published)
    assert published["mel_spectrograms"].shape == (1, 80, 200)
    assert published["waveform"].shape == at_once.shape
    # `inference` fades the first 40 ms in, the vocoder alone does not.
    fade = len(published["model"].start_fade)
    torch.testing.assert_close(published["waveform"][:, fade:], at_once[:, fade:], rtol=0, atol=0)
    assert isinstance(published["hiftnet"], published["HiFTNetModel"])


def test_embeddings_made_once_give_another_mel(published: dict[str, Any]) -> None:
    published["tokens1"], published["tokens2"] = torch.arange(40)[None], torch.arange(25)[None]
    exec(EMBEDDINGS, published)
    assert published["mel1"].shape == (1, 80, 80)
    assert published["mel2"].shape == (1, 80, 50)
    given = {"ref_wav": published["ref_wav"], "ref_sr": published["ref_sr"]}
    torch.testing.assert_close(published["mel1"], published["model"](torch.arange(40)[None], **given, finalize=True))


def test_published_configuration_is_not_the_default() -> None:
    names: dict[str, Any] = {}
    exec(CONFIGURATION, names)
    assert names["config"] == names["S3GenConfig"]()
