"""Figures follow from what was measured: ratios within a round, medians over the rounds."""

from __future__ import annotations

import pytest

from benchmarks import flops, report, utterances
from benchmarks.contenders import Cost, Ours
from benchmarks.report import Round
from s3gen import S3GenModel


def cost(wall: float) -> Cost:
    return Cost(wall=wall, cpu=2 * wall, peak_bytes=int(wall))


class FakePeer:
    """As much of a contender as a report asks for."""

    def __init__(self, spoken: list[utterances.Utterance]) -> None:
        self.utterances = spoken


@pytest.fixture(name="measured")
def _measured(tiny_model: S3GenModel) -> dict[str, FakePeer | Ours]:
    everything = utterances.of_tokens([50, 25], (1, 1))  # 3 s
    return {"reference": FakePeer(everything[1:]), "batched": Ours(tiny_model, everything, [[0, 1]])}  # type: ignore[dict-item]


ROUNDS = [
    Round(
        costs={"reference": cost(reference), "batched": cost(ours)},
        one_step={"batched": cost(one)},
        matrix_rates={"float32": rate, "bfloat16": 10 * rate},
    )
    for reference, ours, one, rate in ((2, 3, 1, 1e9), (4, 6, 2, 0.5e9), (4, 4, 2, 1e9))
]


def test_speeds_of_different_rounds_are_compared(tiny_model: S3GenModel, measured: dict[str, FakePeer | Ours]) -> None:
    found = report.contenders(tiny_model, measured, ROUNDS, "bfloat16")  # type: ignore[arg-type]
    assert found["batched"]["audio_seconds_per_second"] == {"median": 0.75, "min": 0.5, "max": 1.0}
    assert found["reference"]["audio_seconds_per_second"] == {"median": 0.25, "min": 0.25, "max": 0.5}
    # 1 / 0.5, 0.5 / 0.25 and 0.75 / 0.25: per second of audio, since the reference speaks only a sample.
    assert found["batched"]["times_reference"] == {"median": 2.0, "min": 2.0, "max": 3.0}
    assert found["reference"]["times_reference"]["median"] == 1
    assert found["batched"]["cpu_seconds_per_audio_second"]["max"] == 4
    assert found["batched"]["peak_bytes"] == 6


def test_reference_is_held_against_the_rate_of_a_type_that_it_does_not_use(
    tiny_model: S3GenModel, measured: dict[str, FakePeer | Ours]
) -> None:
    found = report.contenders(tiny_model, measured, ROUNDS, "bfloat16")  # type: ignore[arg-type]
    for name, scale in (("reference", 1), ("batched", 10)):
        work = flops.of_rows(tiny_model.config, [each.row for each in measured[name].utterances], 10)
        shares = sorted(work / turn.costs[name].wall / turn.matrix_rates["float32"] / scale for turn in ROUNDS)
        assert found[name]["share_of_matrix_rate"]["median"] == pytest.approx(shares[1])


def test_estimator_is_given_the_time_of_the_rest(tiny_model: S3GenModel, measured: dict[str, FakePeer | Ours]) -> None:
    ours = {"batched": measured["batched"]}
    found = report.estimator(tiny_model, ours, ROUNDS, "float32")["batched"]  # type: ignore[arg-type]
    work = 9 * sum(flops.step(tiny_model.config, each.frames) for each in measured["batched"].utterances)
    assert found["flops_per_second"] == pytest.approx({"median": work / 2, "min": work / 4, "max": work / 2})
    assert found["share_of_matrix_rate"]["median"] == pytest.approx(work / 2 / 1e9)


def test_noise_makes_the_estimator_infinitely_fast(
    tiny_model: S3GenModel, measured: dict[str, FakePeer | Ours]
) -> None:
    slower = Round(costs={"batched": cost(1)}, one_step={"batched": cost(1)}, matrix_rates={"float32": 1e9})
    found = report.estimator(tiny_model, {"batched": measured["batched"]}, [slower], "float32")  # type: ignore[dict-item]
    assert found["batched"] == {"flops_per_second": None, "share_of_matrix_rate": None}


def test_nobody_to_compare_with_gives_a_ratio(tiny_model: S3GenModel, measured: dict[str, FakePeer | Ours]) -> None:
    found = report.contenders(tiny_model, {"batched": measured["batched"]}, ROUNDS, "float32")  # type: ignore[dict-item]
    assert found["batched"]["times_reference"] is None
