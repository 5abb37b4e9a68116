"""A job's throughput beside the bare engine's, on the same batches: ``python -m benchmarks.job --device cpu|cuda``.

The rows of a manifest are cut into shards, and those into batches, as a job does it. The bare engine makes these
batches one after the other and brings the waves to the host, and nothing else. The job makes the same from the manifest
to committed shards: it reads rows and voices, encodes, writes and commits. They take turns, the order changing from
round to round, with one model in one process; with ``--ray`` the job runs as it would by `s3gen synth`, in a worker's
process of its own, timed from its first shard's beginning.

On a CPU encoding takes its seconds from the model: what there is to compare is the clock and the CPU seconds.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import soundfile
import torch

from benchmarks import choices, machine, report
from jobs.config.config import JobConfig, config_from
from jobs.crew.actor import Recipe
from jobs.crew.crew import Crew
from jobs.crew.schedule import Schedule
from jobs.crew.session import connected, plan_share
from jobs.engine.batch import Item
from jobs.engine.transfer import Fetch
from jobs.ledger.ledger import Ledger
from jobs.manifest.manifest import Manifest
from jobs.manifest.rows import job_rows
from jobs.plan import Plan, make_plan
from jobs.storage.folders import Folder
from jobs.voices.build import VoiceBuild
from jobs.voices.parts import VoiceMaker
from jobs.voices.sources import Source
from jobs.voices.table import VoiceTable
from jobs.worker.worker import Worker, fingerprints
from s3gen import S3GenModel
from s3gen.constants import SAMPLE_RATE, TOKEN_RATE
from s3gen.ragged import padding_share, plan_batches

BAR = 0.95  # of the bare engine's throughput
DEFAULTS: dict[str, dict[str, Any]] = {
    "cpu": {
        "utterances": 24, "shard_rows": 6, "seconds": (1, 4), "prompt_seconds": (2, 3),
        "max_frames": 8192, "dtype": "float32",
    },
    "cuda": {
        "utterances": 4096, "shard_rows": 512, "seconds": (2, 15), "prompt_seconds": (3, 5),
        "max_frames": 32768, "dtype": "bfloat16",
    },
}  # fmt: skip
NAMES = {"engine": "the bare engine", "job": "the job"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Cost:
    """Seconds by the clock, and of CPU over all threads where they are this process's."""

    wall: float
    cpu: float | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """What is to be made, in a folder: a manifest, voices, and how the manifest is cut."""

    folder: Path
    config: JobConfig
    plan: Plan
    voices: VoiceTable
    described: dict[str, Any]

    def ledger(self) -> Ledger:
        """Begins the job in an output of its own."""
        output = tempfile.mkdtemp(prefix="output-", dir=self.folder)
        config = {**self.described["config"], "output": output}
        return Ledger.start(Folder(output), {**self.described, "config": config}, self.plan)

    def shards(self) -> Iterator[list[list[Item]]]:
        """Every shard's batches, as a worker makes them."""
        for shard in self.plan.shards():
            table = self.plan.manifest.read(shard.spans)
            rows, _ = job_rows(table, self.config)
            voices = self.voices.get_many(row.voice_id for row in rows)
            items = [Item(row, voices[row.voice_id]) for row in rows]
            plans = plan_batches([item.frames for item in items], self.max_frames)
            yield [[items[number] for number in batch] for batch in plans]

    @property
    def max_frames(self) -> int:
        """The frame budget of a batch."""
        assert self.config.batch.max_frames != "auto"
        return self.config.batch.max_frames


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print and write the report; 1 when the job falls below the bar."""
    parser = _parser()
    options = choices.parse(parser, arguments, DEFAULTS)
    if options.ray and options.meanflow:
        parser.error("--ray: a worker loads its model by name, and --meanflow has none; give a mean-flow checkpoint")
    found = measure(options)
    print(markdown(found))
    choices.write(found, options.report)
    return 0 if found["ratio"]["median"] >= BAR else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.job", description="A job beside the bare engine.")
    choices.add_model(parser)
    choices.add_engine(parser, DEFAULTS)
    choices.add_utterances(parser, DEFAULTS)
    add = parser.add_argument
    add("--shard-rows", type=int, help="rows of a shard (6; on CUDA 512)")
    add("--voices", type=int, default=8, help="how many voices say them")
    add("--audio", choices=("flac", "wav"), default="flac", help="how clips are stored")
    add("--encoders", type=int, help="threads that encode (1; on CUDA as many as --threads)")
    add("--rounds", type=int, default=3, help="how often each is measured")
    add("--ray", action="store_true", help="the job in a worker of Ray's")
    add("--folder", type=Path, help="where temporary files go; an output takes 2 MB for a minute of speech")
    return parser


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Everything that is measured, as the report has it."""
    with tempfile.TemporaryDirectory(prefix="benchmark-", dir=options.folder) as folder:
        model = choices.load(options).to(options.device)
        job = _job(model, options, Path(folder))
        model.prepare(dtype=options.dtype, compile=options.compile)
        model.warm_up(options.max_frames)
        shards = list(job.shards())
        turns: dict[str, Callable[[], Cost]] = {
            "engine": lambda: _engine(model, shards),
            "job": lambda: _through_ray(job, options) if options.ray else _in_process(job, model, options),
        }
        # What only the first time takes long.
        _engine(model, [shards[-1][-1:]])
        rounds = [
            {name: turns[name]() for name in (reversed(turns) if number % 2 else turns)}
            for number in range(options.rounds)
        ]
    audio = sum(len(item.row.tokens) for shard in shards for batch in shard for item in batch) / TOKEN_RATE
    ratios = [turn["engine"].wall / turn["job"].wall for turn in rounds]
    return {
        "kind": "job",
        "machine": machine.describe(torch.device(options.device)),
        "options": choices.reported(options) | {"ray": options.ray, "audio": options.audio},
        "workload": _workload(shards, audio),
        "contenders": {name: _figures([turn[name] for turn in rounds], audio) for name in turns},
        "ratio": report.spread(ratios),
        "bar": BAR,
    }


def _job(model: S3GenModel, options: argparse.Namespace, folder: Path) -> Job:
    """Writes the inputs; the voices are embedded from noise, by the job's own tools."""
    voices = _voice_table(model, options, folder)
    said = choices.spoken(options)
    manifest = {
        "id": [f"{place:07d}" for place in range(len(said))],
        "tokens": pa.array([each.tokens.tolist() for each in said], pa.list_(pa.int32())),
        "voice_id": [_voice_id(place % options.voices) for place in range(len(said))],
    }
    pq.write_table(pa.table(manifest), folder / "manifest.parquet")
    config = config_from(
        {
            "model": options.model,
            "manifest": str(folder / "manifest.parquet"),
            "voices": voices.url,
            "output": str(folder),
            "audio": options.audio,
            "shard_rows": options.shard_rows,
            "batch": {"max_frames": options.max_frames},
            "engine": {"device": options.device, "dtype": options.dtype, "compile": options.compile},
        }
    )
    described = {"config": config.frozen(), "fingerprints": fingerprints(model, voices), "versions": {}, "limit": None}
    plan = make_plan(Manifest.scan(config.manifest), config.shard_rows)
    return Job(folder=folder, config=config, plan=plan, voices=voices, described=described)


def _voice_table(model: S3GenModel, options: argparse.Namespace, folder: Path) -> VoiceTable:
    shortest, longest = options.prompt_seconds
    sources = []
    for number in range(options.voices):
        seconds = shortest + (longest - shortest) * (number + 0.5) / options.voices
        noise = torch.randn(round(seconds * SAMPLE_RATE), generator=torch.Generator().manual_seed(number)) / 10
        path = folder / f"{_voice_id(number)}.wav"
        soundfile.write(path, noise.numpy(), SAMPLE_RATE)
        sources.append(Source(_voice_id(number), str(path)))
    url = str(folder / "voices.parquet")
    fingerprint = model.voice_fingerprint()
    build = VoiceBuild(url, None, voice_fingerprint=fingerprint, max_seconds=None, append=False)
    maker = VoiceMaker(model, Folder(build.parts_url), max_seconds=build.max_seconds)
    build.finish([maker.run(part) for part in build.parts(sources)], [])
    return VoiceTable.open(url)


def _voice_id(number: int) -> str:
    return f"voice-{number:03d}"


def _engine(model: S3GenModel, shards: Sequence[list[list[Item]]]) -> Cost:
    """The batches of all shards, each fetched while the next one is made."""
    stream = torch.cuda.Stream() if model.device.type == "cuda" else None
    flying: deque[Fetch] = deque()
    begun, cpu_begun = time.perf_counter(), time.process_time()
    for batch in (batch for shard in shards for batch in shard):
        tokens = [torch.tensor(item.row.tokens) for item in batch]
        waves = model.synthesize(tokens, [item.voice for item in batch], [item.row.seed for item in batch])
        flying.append(Fetch(waves, stream))
        if len(flying) > 1:
            flying.popleft().take()
    for fetch in flying:
        fetch.take()
    return Cost(wall=time.perf_counter() - begun, cpu=time.process_time() - cpu_begun)


def _in_process(job: Job, model: S3GenModel, options: argparse.Namespace) -> Cost:
    encoders = options.encoders or (options.threads if options.device == "cuda" else 1)
    # A table of its own: the other one has its voices in memory.
    voices = VoiceTable.open(job.voices.url)
    worker = Worker(job.ledger(), model, voices, max_frames=job.max_frames, encoders=encoders)
    worker.warm_up()
    with ThreadPoolExecutor(worker.tasks_at_once) as threads:
        begun, cpu_begun = time.perf_counter(), time.process_time()
        reports = list(threads.map(worker.run, range(len(job.plan))))
        cost = Cost(wall=time.perf_counter() - begun, cpu=time.process_time() - cpu_begun)
    _check(sum(report.rows_done for report in reports), job)
    return cost


def _through_ray(job: Job, options: argparse.Namespace) -> Cost:
    ledger = job.ledger()
    arguments = {"output": ledger.folder.url, "options": {}, "max_frames": job.max_frames, "threads": options.threads}
    recipe = Recipe(make="jobs.worker.worker:Worker.open", arguments=arguments)
    rows: list[int] = []
    with connected(None):
        share = plan_share(1, 1.0 if options.device == "cuda" else 0.0, own=True)
        crew = Crew(recipe, workers=1, share=share)
        ended: list[float] = []

        def on_report(shard: int, report: Any) -> None:
            rows.append(report.rows_done)
            ended.append(time.time())

        crew.work(Schedule(range(len(job.plan))), on_report)
    _check(sum(rows), job)
    return Cost(wall=ended[-1] - min(record.started_at for record in ledger.records()), cpu=None)


def _check(rows: int, job: Job) -> None:
    if rows != job.plan.rows:
        raise RuntimeError(f"the job made {rows} of {job.plan.rows} rows")


def _workload(shards: Sequence[list[list[Item]]], audio: float) -> dict[str, Any]:
    items = [item for shard in shards for batch in shard for item in batch]
    places = iter(range(len(items)))
    batches = [[next(places) for _ in batch] for shard in shards for batch in shard]
    return {
        "rows": len(items),
        "shards": len(shards),
        "batches": len(batches),
        "audio_seconds": audio,
        "padding_share": padding_share([item.frames for item in items], batches),
    }


def _figures(costs: Sequence[Cost], audio: float) -> dict[str, Any]:
    return {
        "audio_seconds_per_second": report.spread(audio / cost.wall for cost in costs),
        "cpu_seconds_per_audio_second": report.spread(cost.cpu / audio for cost in costs if cost.cpu is not None),
    }


def markdown(found: dict[str, Any]) -> str:
    """The report for a reader."""
    options, said = found["options"], found["workload"]
    how = f"{options['audio']}{', through Ray' if options['ray'] else ''}"
    lines = [
        machine.line(found["machine"]),
        "",
        f"{report.engine(options)}, {how}; median (smallest .. largest) of {options['rounds']} rounds.",
        f"{said['rows']} rows of {said['audio_seconds']:.0f} s in {said['shards']} shards and {said['batches']} "
        f"batches of up to {options['max_frames']} frames, {said['padding_share']:.1%} padding.",
        "",
        "| | audio seconds per second | CPU s per audio s |",
        "|---|---|---|",
    ]
    for name, figures in found["contenders"].items():
        columns = (figures["audio_seconds_per_second"], figures["cpu_seconds_per_audio_second"])
        lines.append(f"| {NAMES[name]} | {' | '.join(report.in_range(column, '{:.3g}') for column in columns)} |")
    ratio = report.in_range(found["ratio"], "{:.3f}")
    return "\n".join([*lines, "", f"The job's throughput is {ratio} of the bare engine's; the bar is {found['bar']}."])


if __name__ == "__main__":
    sys.exit(main())
