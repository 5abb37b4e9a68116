"""From what was measured to figures, and from figures to a table."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks import flops, machine
from benchmarks.contenders import Cost, Ours, Peer
from benchmarks.utterances import Utterance
from s3gen import S3GenModel
from s3gen.constants import MEL_RATE
from s3gen.ragged import padding_share

NAMES = {
    "reference": "the reference, one by one",
    "ray_data": "the reference in Ray Data",
    "single": "this package, one by one",
    "batched": "this package, batched",
    "gpu": "what the GPU did",
}
Figures = dict[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class Round:
    """Everybody's turn once: what it cost, what a single solver step would have, and the machine's rates then."""

    costs: Mapping[str, Cost]
    one_step: Mapping[str, Cost]
    matrix_rates: Mapping[str, float]


def spread(values: Iterable[float]) -> dict[str, float] | None:
    """Median, smallest and largest; None of nothing."""
    ordered = sorted(values)
    return {"median": statistics.median(ordered), "min": ordered[0], "max": ordered[-1]} if ordered else None


def workload(everything: Sequence[Utterance], few: Sequence[Utterance], batches: Sequence[Sequence[int]]) -> Figures:
    """What is spoken, and how it is batched."""
    return {
        "utterances": len(everything),
        "audio_seconds": sum(each.seconds for each in everything),
        "sample_utterances": len(few),
        "sample_audio_seconds": sum(each.seconds for each in few),
        "utterance_seconds": spread(each.seconds for each in everything),
        "prompt_seconds": spread(each.row.prompt / MEL_RATE for each in everything),
        "batches": len(batches),
        "padding_share": padding_share([each.frames for each in everything], batches),
    }


def machine_rates(rounds: Sequence[Round], copied: float) -> Figures:
    """Matrix products by dtype in FLOP/s, and memory in bytes per second."""
    matrix = {kind: spread(each.matrix_rates[kind] for each in rounds) for kind in sorted(rounds[0].matrix_rates)}
    return {"matrix_flops_per_second": matrix, "memory_bytes_per_second": copied}


def contenders(
    model: S3GenModel, measured: Mapping[str, Peer | Ours], rounds: Sequence[Round], dtype: str
) -> dict[str, Figures]:
    """Each contender's figures; ratios are of the same round."""
    found = {}
    for name, contender in measured.items():
        costs = [each.costs[name] for each in rounds]
        audio = sum(each.seconds for each in contender.utterances)
        work = flops.of_rows(model.config, [each.row for each in contender.utterances], model.flow.default_steps)
        rates = [each.matrix_rates[dtype if name in ("single", "batched") else "float32"] for each in rounds]
        pairs = list(zip(costs, rates, strict=True))
        found[name] = {
            "utterances": len(contender.utterances),
            "audio_seconds": audio,
            "audio_seconds_per_second": spread(audio / cost.wall for cost in costs),
            "real_time_factor": spread(cost.wall / audio for cost in costs),
            "cpu_seconds_per_audio_second": spread(cost.cpu / audio for cost in costs if cost.cpu is not None),
            "times_reference": _times_reference(name, measured, rounds),
            "flops_per_second": spread(work / cost.wall for cost in costs),
            "share_of_matrix_rate": spread(work / cost.wall / rate for cost, rate in pairs),
            "peak_bytes": max(cost.peak_bytes for cost in costs),
        }
    return found


def _times_reference(
    name: str, measured: Mapping[str, Peer | Ours], rounds: Sequence[Round]
) -> dict[str, float] | None:
    """How many times the reference's audio per second this one makes."""
    if "reference" not in measured:
        return None
    audio = {each: sum(said.seconds for said in measured[each].utterances) for each in (name, "reference")}
    speed = [{each: audio[each] / turn.costs[each].wall for each in audio} for turn in rounds]
    return spread(each[name] / each["reference"] for each in speed)


def estimator(model: S3GenModel, ours: Mapping[str, Ours], rounds: Sequence[Round], dtype: str) -> dict[str, Figures]:
    """The estimator alone: what all steps take less what a single one does, and the work of the steps between."""
    found = {}
    for name, contender in ours.items():
        frames = [each.frames for each in contender.utterances]
        work = (model.flow.default_steps - 1) * sum(flops.step(model.config, each) for each in frames)
        # Where a whole run takes some milliseconds, noise can turn the difference round.
        turns = [turn for turn in rounds if turn.costs[name].wall > turn.one_step[name].wall]
        speeds = [work / (turn.costs[name].wall - turn.one_step[name].wall) for turn in turns]
        found[name] = {
            "flops_per_second": spread(speeds),
            "share_of_matrix_rate": spread(
                speed / turn.matrix_rates[dtype] for speed, turn in zip(speeds, turns, strict=True)
            ),
        }
    return found


def markdown(found: Figures) -> str:
    """The report for a reader."""
    rates = found["machine_rates"]["matrix_flops_per_second"]
    return "\n".join(
        [
            machine.line(found["machine"]),
            "",
            *_about(found["options"], found["workload"]),
            "",
            "| | audio seconds per second | real-time factor | times the reference | TFLOP/s | of the matrix rate |"
            " CPU s per audio s | peak memory, GB |",
            "|---|---|---|---|---|---|---|---|",
            *(_contender_line(name, found["contenders"][name]) for name in NAMES if name in found["contenders"]),
            "",
            "| the estimator alone | TFLOP/s | of the matrix rate |",
            "|---|---|---|",
            *(_estimator_line(name, figures) for name, figures in found["estimator"].items()),
            "",
            *(f"- {kind} matrix products: {in_range(rate, '{:.3g}', 1e12)} TFLOP/s" for kind, rate in rates.items()),
            *_ends(found),
        ]
    )


def _about(options: Figures, said: Figures) -> list[str]:
    lengths, prompts = (in_range(said[name], "{:.1f}") for name in ("utterance_seconds", "prompt_seconds"))
    return [
        f"{engine(options)}; median (smallest .. largest), of {options['rounds']} rounds where it is a speed.",
        f"Utterances: {said['utterances']} of {lengths} s after prompts of {prompts} s; one by one: "
        f"{said['sample_utterances']} of them. Batches: {said['batches']} of up to {options['max_frames']} frames, "
        f"padded {said['padding_share']:.1%} as they are planned; of what is computed, "
        f"{said['padding']['encoder']:.1%} in the encoder and {said['padding']['vocoder']:.1%} in the vocoder.",
    ]


def _contender_line(name: str, figures: Figures) -> str:
    times = figures["times_reference"]
    return _row(
        NAMES[name],
        in_range(figures["audio_seconds_per_second"], "{:.3g}"),
        _middle(figures["real_time_factor"], "{:.3g}"),
        "" if times is None or name == "reference" else in_range(times, "{:.3g}"),
        _middle(figures["flops_per_second"], "{:.3g}", 1e12),
        _middle(figures["share_of_matrix_rate"], "{:.0%}"),
        _middle(figures["cpu_seconds_per_audio_second"], "{:.3g}"),
        f"{figures['peak_bytes'] / 1e9:.2f}",
    )


def _estimator_line(name: str, figures: Figures) -> str:
    share = in_range(figures["share_of_matrix_rate"], "{:.0%}")
    return _row(NAMES[name], in_range(figures["flops_per_second"], "{:.3g}", 1e12), share)


def _ends(found: Figures) -> list[str]:
    ends = [
        f"- memory copied: {found['machine_rates']['memory_bytes_per_second'] / 1e9:.1f} GB/s, read and written",
        f"- loading the model peaks at {found['memory_after_loading_bytes'] / 1e9:.2f} GB resident",
        *(
            f"- {NAMES[name]}: {', '.join(f'{package} {version}' for package, version in about.items())}"
            for name, about in found["reference"].items()
        ),
        *(f"- left out: {NAMES[name]}: {why}" for name, why in found["left_out"].items()),
    ]
    if found["gpu"]:
        gpu = found["gpu"]
        ends.append(
            f"- GPU: {gpu['launches_per_batch']:.0f} launches and {gpu['kernels_per_batch']:.0f} kernels per batch, "
            f"busy {gpu['busy_share']:.1%} of the time"
        )
    return ends


def _row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def _middle(values: Mapping[str, float] | None, form: str, unit: float = 1.0) -> str:
    return "" if values is None else form.format(values["median"] / unit)


def in_range(values: Mapping[str, float] | None, form: str, unit: float = 1.0) -> str:
    """A spread for a reader: median (smallest .. largest)."""
    if values is None:
        return ""
    ends = " .. ".join(form.format(values[end] / unit) for end in ("min", "max"))
    return f"{_middle(values, form, unit)} ({ends})"


def engine(options: Figures) -> str:
    """How this package computed, for a reader."""
    variant = ", mean-flow" if options["meanflow"] else ""
    return f"{options['model']}{variant}, {options['dtype']}{', compiled' if options['compile'] else ''}"
