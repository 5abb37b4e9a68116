"""A voice table from reference clips, from the order to the finished table: what `s3gen voices` starts."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from rich.console import Console

from jobs.crew.actor import Recipe
from jobs.crew.crew import Crew, OnLook
from jobs.crew.schedule import Schedule
from jobs.crew.session import connected, nodes, plan_share
from jobs.engine.models import open_model
from jobs.errors import Unfinished
from jobs.live import showing
from jobs.progress import Meter
from jobs.stop import Stop
from jobs.storage.faults import as_input
from jobs.storage.folders import Folder
from jobs.storage.urls import Options
from jobs.voices.build import BuildReport, VoiceBuild
from jobs.voices.parts import Part, PartReport, VoiceMaker
from jobs.voices.sources import find_sources
from s3gen import S3GenModel

VOICES_STALL_SECONDS = 1_800.0  # without a group of voices, after which a worker is ended
SHOWN_PARTS = 3  # that were given up, in the error


@dataclass(frozen=True, kw_only=True, slots=True)
class VoicesOrder:
    """What `s3gen voices` was asked for."""

    source: str
    out: str
    model: str
    model_file: str | None = None
    append: bool = False
    workers: int = 1
    ray_address: str | None = None
    max_seconds: float | None = None
    loudness: float | None = None
    options: Options | None = None


def make_voices(order: VoicesOrder, console: Console) -> BuildReport:
    """Builds a voice table, in this process or on Ray.

    Raises:
        InputError: bad input, or a table that cannot be appended to; nothing was written.
        JobError: not finished; the parts that are, are kept, and the same command goes on.
    """
    options = order.options or {}
    with as_input("INPUT"):
        sources, failures = find_sources(order.source, options)
    model = open_model(order.model, order.model_file, "cpu", options)
    build = VoiceBuild(
        order.out,
        options,
        voice_fingerprint=model.voice_fingerprint(),
        max_seconds=order.max_seconds,
        loudness=order.loudness,
        append=order.append,
    )
    parts = build.parts(sources)
    meter = Meter(len(sources), unit="voices")
    with showing(meter, console) as changed:

        def on_report(report: PartReport) -> None:
            meter.add(done=report.voices + report.kept, failed=report.failed, audio_seconds=report.seconds)
            changed()

        if order.workers > 1 or order.ray_address is not None:
            reports = _voices_on_ray(order, build, parts, on_report, changed)
        else:
            reports = _voices_here(order, build, parts, on_report, model)
    return build.finish(reports, failures)


def _voices_here(
    order: VoicesOrder,
    build: VoiceBuild,
    parts: Sequence[Part],
    on_report: Callable[[PartReport], None],
    model: S3GenModel,
) -> list[PartReport]:
    if torch.cuda.is_available():
        model = model.to("cuda")
    folder = Folder(build.parts_url, order.options)
    maker = VoiceMaker(model, folder, max_seconds=build.max_seconds, loudness=build.loudness, options=order.options)
    reports: list[PartReport] = []
    for part in parts:
        reports.append(maker.run(part))
        on_report(reports[-1])
    return reports


def _voices_on_ray(
    order: VoicesOrder,
    build: VoiceBuild,
    parts: Sequence[Part],
    on_report: Callable[[PartReport], None],
    on_look: OnLook,
) -> list[PartReport]:
    reports: dict[int, PartReport] = {}

    def on_part(number: int, report: PartReport) -> None:
        reports[number] = report
        on_report(report)

    schedule = Schedule(range(len(parts)))
    with connected(order.ray_address), Stop().listening() as stop:
        crew = _crew(order, build, parts)
        with stop.graceful():
            crew.work(schedule, on_part, lambda: stop.requested, on_look)
    if len(reports) < len(parts):
        reasons = [f"  part {part} was given up: {reason}" for part, reason in sorted(schedule.given_up.items())]
        lines = [f"{build.url}: {len(parts) - len(reports)} of {len(parts)} parts are not done", *reasons[:SHOWN_PARTS]]
        raise Unfinished("\n".join([*lines, "give the same command again to go on"]))
    return [reports[number] for number in range(len(parts))]


def _crew(order: VoicesOrder, build: VoiceBuild, parts: Sequence[Part]) -> Crew:
    """Workers on the connected Ray."""
    share = plan_share(order.workers, _gpu_share(order.workers), own=order.ray_address is None)
    recipe = Recipe(
        make="jobs.voices.parts:VoiceMaker.open",
        arguments={
            "model": order.model,
            "model_file": order.model_file,
            "parts": build.parts_url,
            "max_seconds": build.max_seconds,
            "loudness": build.loudness,
            "options": dict(order.options or {}),
            "threads": share.threads,
        },
    )
    return Crew(
        recipe,
        workers=order.workers,
        share=share,
        payload=parts.__getitem__,
        describe="part {} of the voices".format,
        stall_seconds=VOICES_STALL_SECONDS,
    )


def _gpu_share(workers: int) -> float:
    """Of a GPU, for each of the workers; 0 where there is none."""
    gpus = sum(node.gpus for node in nodes())
    return 1 / math.ceil(workers / gpus) if gpus else 0.0
