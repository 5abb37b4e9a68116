"""References: cut to two frames per token, checked, and never changed."""

import numpy as np
import pytest
import torch

from s3gen.voice import Voice


def reference(tokens: int = 5, frames: int = 10, batch: int = 1) -> dict:
    return {
        "prompt_token": torch.arange(tokens).repeat(batch, 1),
        "prompt_token_len": torch.full((batch,), tokens),
        "prompt_feat": torch.randn(batch, frames, 80),
        "prompt_feat_len": None,
        "embedding": torch.randn(batch, 192),
    }


@pytest.mark.parametrize(("tokens", "frames", "kept"), [(5, 11, 5), (5, 9, 4), (4, 10, 4), (1, 2, 1), (1, 3, 1)])
def test_an_odd_frame_does_not_survive(tokens, frames, kept):
    voice = Voice.from_ref(reference(tokens, frames))
    assert len(voice.prompt_token) == kept
    assert len(voice.prompt_feat) == 2 * kept


def test_the_given_dictionary_is_left_alone():
    given = reference(5, 11)
    before = {name: value.clone() if torch.is_tensor(value) else value for name, value in given.items()}
    voice = Voice.from_ref(given)
    voice.prompt_feat.zero_()
    voice.embedding.zero_()
    voice.prompt_token.zero_()
    for name, value in before.items():
        assert given[name] is None if value is None else torch.equal(given[name], value), name


def test_numpy_and_unbatched_references_are_taken():
    given = reference()
    flat = {name: value[0].numpy() for name, value in given.items() if value is not None}
    voice, same = Voice.from_ref(given), Voice.from_ref(flat)
    assert torch.equal(voice.prompt_feat, same.prompt_feat)
    assert torch.equal(voice.prompt_token, same.prompt_token)
    assert same.prompt_token.dtype == torch.int64


def test_the_lengths_of_a_padded_reference_count():
    given = reference(5, 12, batch=2)
    given["prompt_token_len"] = np.array([5, 3])
    given["prompt_feat_len"] = torch.tensor([10, 12])
    assert [len(voice.prompt_token) for voice in Voice.from_refs(given)] == [5, 3]


@pytest.mark.parametrize("length", [4, [4], torch.tensor(4), [torch.tensor(4)], np.array([4], np.uint8)])
def test_a_length_of_some_kind_is_not_read(length):
    assert len(Voice.from_ref({**reference(), "prompt_token_len": length}).prompt_token) == 4


def test_a_voice_survives_the_round_trip_and_the_cut():
    voice = Voice.from_ref(reference(50, 100))
    again = Voice.from_ref(voice.to_ref())
    assert torch.equal(again.prompt_feat, voice.prompt_feat)
    cut = voice.cut(1.0)
    assert (len(cut.prompt_token), len(cut.prompt_feat)) == (25, 50)
    assert torch.equal(cut.embedding, voice.embedding)
    assert len(voice.cut(0.0).prompt_token) == 1


@pytest.mark.parametrize(
    ("change", "shown"),
    [
        ({"prompt_token": None}, "prompt_token"),
        ({"embedding": None}, "embedding"),
        ({"prompt_token": torch.ones(1, 5)}, "integers"),
        ({"prompt_token": torch.full((1, 5), 6561)}, "6561"),
        ({"prompt_feat": torch.zeros(1, 1, 80)}, "too short"),
        ({"prompt_feat": torch.zeros(1, 80, 10)}, "mel bins"),
        ({"prompt_feat": torch.full((1, 10, 80), torch.nan)}, "finite"),
        ({"prompt_feat": torch.zeros(1, 10, 80, dtype=torch.int64)}, "floating"),
        ({"embedding": torch.zeros(2, 192)}, "batch sizes"),
        ({"embedding": [0.0]}, "list"),
        ({"prompt_token_len": torch.tensor([9])}, "9"),
        ({"prompt_token_len": torch.tensor([4.5])}, "prompt_token_len must be integers, .*4.5"),
        ({"prompt_feat_len": np.array([np.nan])}, "prompt_feat_len must be integers, .*nan"),
        ({"prompt_feat_len": [[]]}, "prompt_feat_len is "),
    ],
)
def test_a_broken_reference_is_refused_by_name(change, shown):
    with pytest.raises(ValueError, match=shown):
        Voice.from_ref({**reference(), **change})
