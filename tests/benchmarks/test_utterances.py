"""What is spoken has the lengths that were asked for, and is the same every time."""

from __future__ import annotations

import math
import statistics

import torch

from benchmarks import utterances
from benchmarks.flops import Row


def test_lengths_are_not_log_normal_within_their_range() -> None:
    seconds = [each.seconds for each in utterances.draw(400, (2, 15), (1, 1))]
    assert min(seconds) >= 2
    assert max(seconds) <= 15
    logs = [math.log(each) for each in seconds]
    assert abs(statistics.mean(logs) - math.log(math.sqrt(30))) < 0.07
    assert abs(statistics.stdev(logs) - math.log(7.5) / 4 * 0.88) < 0.05  # cut at two deviations: 0.88 of one


def test_prompts_all_have_one_length() -> None:
    prompts = {each.row.prompt for each in utterances.draw(50, (1, 1), (3, 5))}
    assert min(prompts) >= 150
    assert max(prompts) <= 250
    assert len(prompts) > 20


def test_second_run_speaks_something_else() -> None:
    one, other, third = (utterances.draw(3, (1, 2), (1, 2), seed) for seed in (0, 0, 1))
    for a, b in zip(one, other, strict=True):
        assert torch.equal(a.tokens, b.tokens)
        assert torch.equal(a.voice.prompt_feat, b.voice.prompt_feat)
    assert not any(torch.equal(a.tokens, b.tokens) for a, b in zip(one, third, strict=True))


def test_frames_leave_out_the_prompt() -> None:
    (spoken,) = utterances.of_tokens([25], (2, 2))
    assert (spoken.row, spoken.frames, spoken.samples, spoken.seconds) == (Row(100, 50), 150, 24_000, 1.0)


def test_sample_is_of_short_utterances_only() -> None:
    everything = utterances.of_tokens(list(range(1, 101)), (1, 1))
    few = utterances.sample(everything, 4)
    assert [len(each.tokens) for each in few] == [13, 38, 63, 88]
    assert utterances.sample(everything, 100) == everything
    assert utterances.sample(everything, 200) == everything
