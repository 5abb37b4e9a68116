"""The tokenizer: nothing leaks from clip to clip, and long clips are cut and joined at the right places."""

import math

import pytest
import torch
import torch.nn.functional as F

from s3gen import tokenizer as module
from s3gen.config import S3GenConfig, TokenizerConfig
from s3gen.tokenizer import (
    Codebook,
    Rows,
    SpeechTokenizer,
    merge_windows,
    rotary_table,
    rotate,
    split_windows,
    token_count,
)

TINY = TokenizerConfig(dim=32, heads=2, layers=2, mels=80)
EXACT = 1e-12  # float64 rounding over a few layers; a leak is of the order of 1


def make_tokenizer():
    """Random weights, in float64, the last projection centred and scaled so that tokens tell sounds apart."""
    tokenizer = SpeechTokenizer(TINY).double()
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in tokenizer.parameters():
            fan_in = parameter[0].numel() if parameter.dim() > 1 else 4
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * fan_in**-0.5)
        mel = tokenizer.mel(speech(10.0, seed=99))
        hidden = tokenizer.encoder([mel])
        down = tokenizer.quantizer._codebook.project_down
        down.weight.div_((hidden @ down.weight.T).std(0)[:, None])
        down.bias.copy_(-(hidden @ down.weight.T).mean(0))
    return tokenizer


@pytest.fixture(scope="module")
def tokenizer():
    return make_tokenizer()


def speech(seconds, seed=0):
    """Noise whose colour and loudness move, at 16 kHz."""
    samples = round(seconds * 16_000)
    generator = torch.Generator().manual_seed(seed)
    slow = F.interpolate(
        torch.randn(1, 1, max(2, int(seconds * 8)), generator=generator, dtype=torch.float64), samples, mode="linear"
    )
    return torch.randn(samples, generator=generator, dtype=torch.float64) * 0.1 * slow[0, 0].exp()


def mels_of(lengths):
    generator = torch.Generator().manual_seed(5)
    return [torch.randn(length, TINY.mels, generator=generator, dtype=torch.float64) for length in lengths]


LENGTHS = [101, 1, 2, 3, 4, 5, 37, 37, 100, 62]


@pytest.fixture(params=["in_runs", "padded"])
def way(request, monkeypatch):
    """Both ways of a device to get at the clips."""
    monkeypatch.setattr(Rows, "map", getattr(Rows, request.param))
    return request.param


@torch.no_grad()
def worst_difference_in_company(tokenizer, lengths=tuple(LENGTHS)):
    """Over the rows of a ragged batch, the largest difference of a hidden state from the row's own alone."""
    mels = mels_of(lengths)
    counts = [token_count(length) for length in lengths]
    together = tokenizer.encoder(mels).split(counts)
    alone = [tokenizer.encoder([mel]) for mel in mels]
    assert [len(row) for row in alone] == counts
    return max((row - own).abs().max().item() for row, own in zip(together, alone, strict=True))


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("lengths", [LENGTHS, LENGTHS[::-1], [40, 40, 40], [41, 40]])
def test_hidden_states_do_not_depend_on_company(tokenizer, lengths):
    assert worst_difference_in_company(tokenizer, lengths) < EXACT


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("kept", [0, 1, 2])
def test_each_empty_place_of_the_stem_is_needed(tokenizer, monkeypatch, kept):
    """The one before each of two clips, and the one behind the first, which is odd."""
    emptied, counts = module._empty, []

    def empty_but_one(x, places):
        counts.append(len(places))
        return emptied(x, places[torch.arange(len(places)) != kept])

    monkeypatch.setattr(module, "_empty", empty_but_one)
    assert worst_difference_in_company(tokenizer, [9, 4]) > 1e-3
    assert counts == [3]


@pytest.mark.parametrize("way", ["padded"], indirect=True)
@pytest.mark.parametrize("skipped", range(TINY.layers))
def test_each_zeroing_of_padding_is_needed(tokenizer, monkeypatch, way, skipped):
    zero_padding, calls = module.zero_padding, []

    def skip_one(x, mask):
        if mask is None:
            return x
        calls.append(mask)
        return x if len(calls) - 1 == skipped else zero_padding(x, mask)

    monkeypatch.setattr(module, "zero_padding", skip_one)
    assert worst_difference_in_company(tokenizer) > 1e-3
    assert len(calls) == TINY.layers


@pytest.mark.parametrize("way", ["padded"], indirect=True)
@pytest.mark.parametrize("skipped", range(TINY.layers))
def test_each_attention_mask_is_needed(tokenizer, monkeypatch, way, skipped):
    attention, calls = F.scaled_dot_product_attention, []

    def skip_one(query, key, value, attn_mask):
        calls.append(attn_mask)
        return attention(query, key, value, attn_mask=None if (len(calls) - 1) % TINY.layers == skipped else attn_mask)

    monkeypatch.setattr(F, "scaled_dot_product_attention", skip_one)
    assert worst_difference_in_company(tokenizer) > 1e-3


@pytest.mark.parametrize("frames", [2, 4, 38])
def test_pairs_of_frames_make_another_convolution(tokenizer, frames):
    conv = tokenizer.encoder.conv1
    (x,) = mels_of([frames])
    with torch.no_grad():
        torch.testing.assert_close(module.halved(x, conv), conv(x.T[None])[0].T, rtol=0, atol=EXACT)


@pytest.mark.parametrize(("batch", "length"), [(1, 1), (1, 40), (3, 17)])
def test_the_memory_is_the_published_convolution_over_its_input(tokenizer, batch, length):
    attention = tokenizer.encoder.blocks[0].attn
    generator = torch.Generator().manual_seed(2)
    value = torch.randn(batch, length, TINY.dim, generator=generator, dtype=torch.float64).transpose(1, 2)
    with torch.no_grad():
        expected = attention.fsmn_block(value) + value
        torch.testing.assert_close(attention._remember(value), expected, rtol=0, atol=EXACT)


def test_tokens_do_not_depend_on_company_or_place(tokenizer):
    wavs = [speech(seconds, seed) for seed, seconds in enumerate((1.0, 0.02, 3.217, 31.0, 2.0))]
    alone = [tokenizer([wav])[0][0] for wav in wavs]
    assert len(alone[2].unique()) > 40  # of 81
    for order in ([0, 1, 2, 3, 4], [3, 4, 0, 2, 1]):
        tokens, lengths = tokenizer([wavs[row] for row in order])
        assert tokens.dtype == lengths.dtype == torch.int64
        assert tokens.shape == (5, 775)
        for place, row in enumerate(order):
            assert lengths[place] == len(alone[row])
            assert torch.equal(tokens[place, : lengths[place]], alone[row])
            assert not tokens[place, lengths[place] :].any()


def test_a_loud_neighbour_does_not_raise_the_floor(tokenizer):
    quiet, loud = speech(1.0) * 1e-4, speech(1.0, seed=1) * 10
    alone, _ = tokenizer([quiet])
    together, _ = tokenizer([quiet, loud])
    assert torch.equal(together[:1], alone)


@pytest.mark.parametrize(("samples", "tokens"), [(201, 1), (640, 1), (799, 1), (800, 2), (1_280, 2), (16_000, 25)])
def test_one_token_for_each_40_ms_begun(tokenizer, samples, tokens):
    assert tokenizer([speech(1.0)[:samples]])[1].tolist() == [tokens]


@pytest.mark.parametrize(
    ("frames", "windows"),
    [
        (3_000, [(0, 3_000)]),
        (3_001, [(0, 3_000), (2_600, 3_001)]),
        (5_200, [(0, 3_000), (2_600, 5_200)]),
        (5_201, [(0, 3_000), (2_600, 5_201), (5_200, 5_201)]),
        (7_000, [(0, 3_000), (2_600, 5_600), (5_200, 7_000)]),
    ],
)
def test_windows_of_30_s_every_26_s(frames, windows):
    mel = torch.arange(frames)[:, None]
    assert [(int(window[0]), int(window[-1]) + 1) for window in split_windows(mel)] == windows


def merged_positions(frames):
    """What is left of a clip whose tokens are their own positions."""
    starts_and_lengths = [(int(window[0]), len(window)) for window in split_windows(torch.arange(frames)[:, None])]
    return merge_windows(
        [torch.arange(start // 4, start // 4 + token_count(length)) for start, length in starts_and_lengths]
    )


@pytest.mark.parametrize("frames", [2_999, 3_000, 3_001, 3_100, 5_200, 5_600, 5_601, 7_000, 60_300])
def test_merged_windows_hold_each_token_once(frames):
    assert torch.equal(merged_positions(frames), torch.arange(token_count(frames)))


@pytest.mark.parametrize(("frames", "lost"), [(5_201, 50), (5_400, 50), (5_500, 25), (5_592, 2), (5_596, 1)])
def test_a_last_window_under_4_s_loses_tokens_as_in_the_reference(frames, lost):
    positions = merged_positions(frames)
    assert len(positions) == token_count(frames) - lost
    assert torch.equal(positions[:1250], torch.arange(1250))  # all before the last seam's 4 s
    assert bool((positions.diff() >= 1).all())


def test_a_clip_of_70_s_is_its_windows_one_by_one(tokenizer):
    wav = speech(70.0)
    mel = tokenizer.mel(wav)
    with torch.no_grad():
        first, second, third = (
            tokenizer.quantizer(tokenizer.encoder([mel[start:end]]))
            for start, end in ((0, 3_000), (2_600, 5_600), (5_200, 7_000))
        )
    expected = torch.cat((first[:700], second[50:700], third[50:]))
    tokens, lengths = tokenizer([wav, speech(0.5)])
    assert lengths.tolist() == [1750, 13]
    assert torch.equal(tokens[0], expected)


def test_many_windows_go_through_in_several_batches(tokenizer, monkeypatch):
    wavs = [speech(seconds, seed) for seed, seconds in enumerate((0.4, 1.1, 0.7, 31.0, 0.2))]
    whole, _ = tokenizer(wavs)
    monkeypatch.setattr(module, "batch_frames", lambda device: 120)
    pieces, _ = tokenizer(wavs)
    assert torch.equal(whole, pieces)


def test_rotation_is_a_complex_product():
    x = torch.randn(1, 2, 7, 10, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    turned = rotate(x, rotary_table(7, 10).double())
    for position in range(7):
        for pair in range(5):
            angle = position * 10_000.0 ** (-2 * pair / 10)
            factor = complex(math.cos(angle), math.sin(angle))
            for head in range(2):
                number = complex(x[0, head, position, pair], x[0, head, position, pair + 5]) * factor
                ours = complex(turned[0, head, position, pair], turned[0, head, position, pair + 5])
                assert abs(ours - number) < 1e-6  # the table is float32


def test_digits_count_in_threes_from_the_first():
    codebook = Codebook(8)
    with torch.no_grad():
        codebook.project_down.weight.copy_(torch.eye(8))
        codebook.project_down.bias.zero_()
        lowest, highest = torch.full((8,), -9.0), torch.full((8,), 9.0)
        first_up = torch.tensor([0.6] + [0.0] * 7)  # tanh 0.537: up
        last_down = torch.tensor([0.5496] + [0.0] * 6 + [-9.0])  # tanh 0.5002, scaled 0.4997: stays
        codes = codebook(torch.stack((lowest, highest, torch.zeros(8), first_up, last_down))[None])
    assert codes.tolist() == [[0, 6_560, 3_280, 3_281, 3_280 - 3**7]]


def test_built_on_meta_it_loads_published_names_and_nothing_else():
    before = torch.get_rng_state()
    with torch.device("meta"):
        built = SpeechTokenizer(TINY)
        full = SpeechTokenizer(S3GenConfig().tokenizer)
    assert torch.equal(torch.get_rng_state(), before)
    weights = {name: value.float() for name, value in make_tokenizer().state_dict().items()}
    built.load_state_dict(weights, strict=True, assign=True)
    again = SpeechTokenizer(TINY)
    again.load_state_dict(weights)
    wav = speech(1.3).float()
    assert torch.equal(built([wav])[0], again([wav])[0])

    shapes = {name: tuple(value.shape) for name, value in full.state_dict().items()}
    assert len(shapes) == 102
    assert shapes["encoder.conv1.weight"] == (1280, 128, 3)
    assert shapes["encoder.blocks.5.attn.fsmn_block.weight"] == (1280, 1, 31)
    assert shapes["encoder.blocks.0.mlp.2.bias"] == (1280,)
    assert shapes["quantizer._codebook.project_down.weight"] == (8, 1280)
    assert "encoder.blocks.0.attn.key.bias" not in shapes
    assert full.encoder.rotary.shape == (2, 750, 64)


@pytest.mark.parametrize(
    ("wavs", "message"),
    [
        ([], "wavs is empty"),
        ([torch.zeros(900).double(), torch.zeros(200).double()], r"wavs\[1\] is too short: 200 samples \(12.5 ms"),
        ([torch.full((900,), math.nan).double()], r"wavs\[0\] holds 900 value\(s\) that are not finite"),
        ([torch.zeros(900)], r"wavs\[0\] must be torch.float64"),
        ([torch.zeros(1, 900).double()], r"wavs\[0\] must be 1-D"),
    ],
)
def test_bad_audio_is_refused(tokenizer, wavs, message):
    with pytest.raises(ValueError, match=message):
        tokenizer(wavs)


def test_tokens_hold_no_autograd_graph_and_no_inference_mode(tokenizer):
    tokens, lengths = tokenizer([speech(0.5)])
    assert not tokens.is_inference()
    assert not lengths.is_inference()
    assert not tokens.requires_grad
