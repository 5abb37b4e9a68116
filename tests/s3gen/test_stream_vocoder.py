"""The vocoder in pieces says what it says of the whole mel, and nothing of it is heard twice or with a click."""

from __future__ import annotations

import copy
import dataclasses

import pytest
import torch

from s3gen import HiFTNetConfig, HiFTNetModel, S3GenConfig
from s3gen.stream_reach import Reach
from s3gen.stream_vocoder import VocoderState, VocoderStream
from tests.conftest import relative_error
from tests.s3gen.joints import A_JOINT, FAINT_JOINT, NO_JOINT, SLIPS, joints, roughness
from tests.s3gen.voiced import slow_mel, voiced

EXACT = 1e-10  # float64, phase summed in other portions
ROUNDING = 2e-5  # float32 convolutions of other lengths; the promise is 1e-4
FRAMES = 60


@pytest.fixture(autouse=True)
def _no_gradients():
    with torch.no_grad():
        yield


@pytest.fixture(scope="module")
def vocoder(tiny_model) -> HiFTNetModel:
    return voiced(tiny_model, slow_mel(FRAMES)).mel2wav


@pytest.fixture(scope="module")
def exact(vocoder) -> HiFTNetModel:
    return copy.deepcopy(vocoder).double()


def pieces(
    stream: VocoderStream, mel: torch.Tensor, chunk: int, *, seed: int = 3, least: int = 0
) -> list[torch.Tensor]:
    state, waves = stream.begin(seed, rows=len(mel)), []
    for start in range(0, mel.shape[2], chunk):
        wave, state = stream.step(state, mel[:, :, start : start + chunk], least=least)
        waves.append(wave)
    return [*waves, stream.finish(state)]


@pytest.mark.parametrize("chunk", [2, 7, FRAMES])
def test_a_chunk_is_not_vocoded_as_if_it_stood_alone(exact, chunk):
    mel = slow_mel(FRAMES).double()
    assert float(exact.f0(mel).min()) > exact.config.nsf_voiced_threshold
    whole, _ = exact.inference(mel, seed=3)
    assert relative_error(torch.cat(pieces(VocoderStream(exact), mel, chunk), dim=1), whole) < EXACT


@pytest.mark.parametrize("chunk", [1, 25])
def test_float32_brings_rounding_and_no_drift(vocoder, chunk):
    mel = slow_mel(FRAMES)
    whole, _ = vocoder.inference(mel, seed=3)
    assert relative_error(torch.cat(pieces(VocoderStream(vocoder), mel, chunk), dim=1), whole) < ROUNDING


@pytest.mark.parametrize("side", ["left", "right"])
def test_less_context_would_show(exact, side):
    stream, mel = VocoderStream(exact), slow_mel(FRAMES).double()
    stream.reach = dataclasses.replace(stream.reach, **{side: 8})
    whole, _ = exact.inference(mel, seed=3)
    assert relative_error(torch.cat(pieces(stream, mel, 10), dim=1), whole) > 1e-4


def small(**fields) -> HiFTNetModel:
    torch.manual_seed(0)
    model = HiFTNetModel(HiFTNetConfig(base_channels=16, f0_predictor_cond_channels=8, **fields)).double()
    model.f0.classifier.bias.fill_(120.0)
    return model.eval()


CONFIGURATIONS = {
    "22 kHz": {},
    "other kernels": {
        "upsample_rates": (4, 6),
        "upsample_kernel_sizes": (8, 14),
        "istft_n_fft": 8,
        "istft_hop_len": 2,
        "resblock_kernel_sizes": (3, 5),
        "resblock_dilation_sizes": ((1, 2), (4,)),
        "source_resblock_kernel_sizes": (11, 3),
    },
    "interpolated source": {"harmonic_source": "sinegen2"},
}


@pytest.mark.parametrize("fields", CONFIGURATIONS.values(), ids=CONFIGURATIONS)
def test_another_vocoder_looks_elsewhere_far(fields):
    model, mel = small(**fields), torch.randn(2, 80, FRAMES, dtype=torch.float64)
    assert float(model.f0(mel).min()) > model.config.nsf_voiced_threshold
    whole, _ = model.inference(mel, seed=[3, 4])
    assert relative_error(torch.cat(pieces(VocoderStream(model), mel, 9, seed=[3, 4]), dim=1), whole) < EXACT


@pytest.mark.parametrize("fields", CONFIGURATIONS.values(), ids=CONFIGURATIONS)
def test_no_frame_reads_beyond_the_reach_and_some_read_as_far(fields):
    model = small(**fields)
    reach, samples = VocoderStream(model).reach, model.config.frame_samples
    at, mel = 30, torch.randn(1, 80, FRAMES, dtype=torch.float64)
    other = mel.clone()
    other[:, :, at] += 100
    changed = frames_that_differ(model.inference(mel)[0], model.inference(other)[0], samples)
    assert at - reach.right <= changed[0] <= at - reach.right + 4  # the outermost taps are lost in rounding
    source = model.source(model.f0(mel))
    beside = source.clone()
    beside[:, :, at * samples : (at + 1) * samples] += 10
    for a, b in ((model.decode(mel, source), model.decode(other, source)),
                 (model.decode(mel, source), model.decode(mel, beside))):  # fmt: skip
        assert frames_that_differ(a, b, samples)[-1] <= at + reach.left


def frames_that_differ(a: torch.Tensor, b: torch.Tensor, samples: int) -> list[int]:
    return (a != b).unflatten(1, (-1, samples)).any(dim=2)[0].nonzero()[:, 0].tolist()


def test_the_published_24_khz_vocoder_holds_back_400_ms(vocoder):
    full = HiFTNetModel(dataclasses.replace(S3GenConfig().vocoder, base_channels=16))
    assert VocoderStream(full).reach == VocoderStream(vocoder).reach == Reach(left=15, right=20)


def test_a_streams_memory_does_not_grow(vocoder):
    stream, sizes = VocoderStream(vocoder), []
    state = stream.begin()
    for _ in range(12):
        _, state = stream.step(state, slow_mel(10))
        sizes.append((state.mel.shape[2], state.source.shape[2] // 480))
    assert sizes[-1] == (stream.reach.left + stream.reach.right, stream.reach.left)
    assert state.frames == 120 - stream.reach.right
    assert len(set(sizes[-8:])) == 1


def test_a_step_leaves_its_state_as_it_was(vocoder):
    stream, mel = VocoderStream(vocoder), slow_mel(60)
    _, state = stream.step(stream.begin(3), mel[:, :, :30])
    kept = copy.deepcopy(state)
    first, _ = stream.step(state, mel[:, :, 30:])
    again, _ = stream.step(state, mel[:, :, 30:])
    assert torch.equal(first, again)
    for field in dataclasses.fields(VocoderState)[:2]:
        assert torch.equal(getattr(state, field.name), getattr(kept, field.name))


def test_a_stream_does_not_hear_another_one(vocoder):
    stream, mels = VocoderStream(vocoder), [slow_mel(60, seed=1), slow_mel(60, seed=2)]
    apart = [torch.cat(pieces(stream, mel, 20, seed=seed), dim=1) for seed, mel in enumerate(mels)]
    states, waves = [stream.begin(seed) for seed in range(2)], [[], []]
    for start in range(0, 60, 20):
        for row in range(2):
            wave, states[row] = stream.step(states[row], mels[row][:, :, start : start + 20])
            waves[row].append(wave)
    for row in range(2):
        assert torch.equal(torch.cat([*waves[row], stream.finish(states[row])], dim=1), apart[row])


def test_rows_in_step_are_each_their_own_stream(exact):
    stream, mel = VocoderStream(exact), torch.cat((slow_mel(60, seed=1), slow_mel(60, seed=2))).double()
    together = torch.cat(pieces(stream, mel, 20, seed=[5, 6]), dim=1)
    for row in range(2):
        alone = torch.cat(pieces(stream, mel[row : row + 1], 20, seed=5 + row), dim=1)
        assert relative_error(together[row], alone[0]) < EXACT


def test_the_sources_phase_goes_on_where_it_stopped(vocoder):
    """A phase that begins anew with each chunk is a click at each border."""
    source, f0 = vocoder.source, vocoder.f0(slow_mel(FRAMES))
    state, whole = source.begin([3], f0.device), []
    for start in range(0, FRAMES, 10):
        signal, state = source.extend(f0[:, start:], state, frames=10)
        whole.append(signal[0, 0])
    anew = [source(f0[:, start : start + 10], seed=3)[0, 0] for start in range(0, FRAMES, 10)]
    borders = torch.arange(9, FRAMES - 1, 10)
    inside = torch.tensor([border for border in range(FRAMES - 1) if border not in borders.tolist()])
    rough, clicks = roughness(torch.cat(whole)), roughness(torch.cat(anew))
    assert rough[borders].mean() < 1.3 * rough[inside].mean()
    assert clicks[borders].mean() > 3 * clicks[inside].mean()


def test_the_source_jumps_where_a_chunk_ends_that_could_not_wait(vocoder):
    """Its F0 is guessed there, and the phase that follows from it has to go on all the same."""
    stream, mel = VocoderStream(vocoder), slow_mel(140)
    state, spoken, ends = stream.begin(3), [], []
    for start in range(0, 140, 4):
        begun = state.frames
        _, state = stream.step(state, mel[:, :, start : start + 4], least=1)
        spoken.append(state.source[0, 0, (begun - state.frames) * 480 :])
        ends.append(state.frames - 1)
    borders = torch.tensor(ends[:-1])
    rough = roughness(torch.cat(spoken))
    inside = torch.ones(len(rough), dtype=torch.bool).scatter(0, borders, False)
    assert len(borders) >= 30
    assert rough[borders].mean() < 1.3 * rough[inside].mean()


def test_a_joint_is_heard(vocoder):
    mel = slow_mel(140)
    whole, _ = vocoder.inference(mel, seed=3)
    assert joints(pieces(VocoderStream(vocoder), mel, 4), whole) < NO_JOINT
    assert joints(pieces(VocoderStream(vocoder), mel, 14, least=1), whole) < FAINT_JOINT


@pytest.mark.parametrize("slip", SLIPS.values(), ids=SLIPS)
def test_the_joints_of_a_stream_that_slips_pass_for_none(vocoder, monkeypatch, slip):
    mel = slow_mel(140)
    whole, _ = vocoder.inference(mel, seed=3)
    slip(monkeypatch)
    assert joints(pieces(VocoderStream(vocoder), mel, 4), whole) > A_JOINT


def test_the_joints_of_chunks_that_stand_alone_pass_for_none(vocoder):
    mel = slow_mel(140)
    alone = [vocoder.inference(mel[:, :, start : start + 4], seed=start)[0] for start in range(0, 140, 4)]
    assert joints(alone, vocoder.inference(mel, seed=3)[0]) > A_JOINT


def test_a_caller_that_cannot_wait_gets_at_least_what_it_asks_for(vocoder):
    stream = VocoderStream(vocoder)
    lengths = [wave.shape[1] // 480 for wave in pieces(stream, slow_mel(50), 2, least=1)]
    assert lengths[:20] == [1] * 20  # 2 frames come, 1 goes, until `right` are held back
    assert lengths[20:-1] == [2] * 5
    assert sum(lengths) == 50


def test_what_is_not_known_yet_is_taken_to_stand_still(vocoder):
    """Not to be zero: in a log-mel that is loud."""
    stream, mel = VocoderStream(vocoder), slow_mel(10)
    early, _ = stream.step(stream.begin(3), mel, least=10)
    still = torch.cat((mel, mel[:, :, -1:].expand(-1, -1, stream.reach.right)), dim=2)
    assert relative_error(early, vocoder.inference(still, seed=3)[0][:, : 10 * 480]) < ROUNDING


def test_a_mel_of_another_shape_is_refused_and_none_is_silence(vocoder):
    stream = VocoderStream(vocoder)
    for mel in (slow_mel(4)[0], slow_mel(4)[:, :40], torch.cat((slow_mel(4), slow_mel(4)))):
        with pytest.raises(ValueError, match=r"\(1, 80, frames\)"):
            stream.step(stream.begin(), mel)
    assert stream.finish(stream.begin()).shape == (1, 0)
    with pytest.raises(ValueError, match="seed"):
        stream.begin(-(2**64))
