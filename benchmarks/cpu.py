"""Speed and memory beside the reference: ``python -m benchmarks.cpu --reference-python PYTHON``.

The same machine, weights, utterances and number of threads; both load one file that the reference has saved. Each
utterance goes through this package and through the reference in turn, the order changing from pair to pair, so that a
machine that grows slower or faster meanwhile does not favour either. Then this package makes two batches: all
utterances, and as many copies of one of them, which need no padding. CPU seconds are of all threads; with one thread
they say more than the clock where other programs are busy.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from parity import cases
from parity.exchange import Plan, formula_weights, reference_command, reference_environment, write_weights
from s3gen import S3GenConfig, S3GenModel, Voice
from s3gen.constants import FRAMES_PER_TOKEN, MEL_BINS, SAMPLE_RATE, SAMPLES_PER_TOKEN, SPEAKER_DIM, TOKEN_RATE

MEMORY_LIMIT_GB = 2.5  # resident, of a process that has loaded the full-size float32 model
_RATIO = "time against the reference's, median of pairs"
_WORKER = Path(__file__).with_name("reference_worker.py")
_LOAD = """
import resource, sys, torch
from s3gen import S3GenModel
model = S3GenModel.from_pretrained(sys.argv[1])
scale = 1 if sys.platform == "darwin" else 1024  # the unit of ru_maxrss
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale)
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Utterance:
    """A name, tokens and a voice."""

    name: str
    tokens: torch.Tensor
    voice: Voice

    @property
    def seconds(self) -> float:
        return len(self.tokens) * SAMPLES_PER_TOKEN / SAMPLE_RATE


@dataclass(frozen=True, kw_only=True, slots=True)
class Cost:
    """Seconds by the clock and of CPU."""

    wall: float
    cpu: float


class Reference:
    """The reference in a process of its own, which waits while this one measures."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self._read()

    def timed(self, utterance: Utterance) -> Cost:
        """Synthesis of one utterance."""
        assert self._process.stdin is not None
        self._process.stdin.write(utterance.name + "\n")
        self._process.stdin.flush()
        answer = self._read()
        if answer["samples"] != len(utterance.tokens) * SAMPLES_PER_TOKEN:
            raise RuntimeError(f"the reference made {answer['samples']} samples of {len(utterance.tokens)} tokens")
        return Cost(wall=answer["seconds"], cpu=answer["cpu_seconds"])

    def _read(self) -> dict[str, float]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the reference ended with {self._process.wait()}; what it said is above")
        return json.loads(line)


@contextmanager
def _started(plan: Plan, options: argparse.Namespace) -> Iterator[Reference]:
    plan.write(options.threads)
    process = subprocess.Popen(
        reference_command(options.reference_python, _WORKER, plan.folder),
        env=reference_environment(options.threads),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        yield Reference(process)
    finally:
        process.communicate()  # closes its stdin, at which it ends


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, and write the report; 1 when slower than the reference or larger than the limit."""
    options = _parser().parse_args(arguments)
    torch.set_num_threads(options.threads)
    utterances = [_utterance(count, options.prompt_seconds) for count in options.tokens]
    with tempfile.TemporaryDirectory(prefix="benchmark-", dir=options.folder) as folder:
        plan = _plan(Path(folder), utterances, meanflow=options.meanflow)
        with _started(plan, options) as reference:
            model = S3GenModel.from_pretrained(plan.folder / "s3gen.safetensors")
            alone, theirs = _pairs(model, reference, utterances, options.repeats)
        mixed = [_timed(model, utterances) for _ in range(options.repeats)]
        middle = sorted(utterances, key=lambda utterance: utterance.seconds)[len(utterances) // 2]
        equal = [_timed(model, [middle] * len(utterances)) for _ in range(options.repeats)]
        memory = _memory(plan.folder / "s3gen.safetensors") / 1e9
    audio = sum(utterance.seconds for utterance in utterances)
    ratios = [ours.wall / other.wall for ours, other in zip(alone, theirs, strict=True)]
    result = {
        "one at a time": _per_second(alone, audio * options.repeats),
        "the reference, one at a time": _per_second(theirs, audio * options.repeats),
        _RATIO: round(statistics.median(ratios), 3),
        "the same in CPU seconds": round(
            statistics.median(ours.cpu / other.cpu for ours, other in zip(alone, theirs, strict=True)), 3
        ),
        "smallest and largest pair": [round(min(ratios), 3), round(max(ratios), 3)],
        "all in one batch": _per_second(mixed, audio * options.repeats),
        f"{len(utterances)} x {middle.name} in one batch": _per_second(
            equal, middle.seconds * len(utterances) * options.repeats
        ),
        "peak resident memory after loading, GB": round(memory, 2),
        "utterances, tokens": options.tokens,
        "prompt, seconds": options.prompt_seconds,
        "pairs": len(alone),
        "threads": options.threads,
        "model": "mean-flow, 2 steps" if options.meanflow else "10 steps",
        "torch": torch.__version__,
        "machine": f"{platform.machine()}, {platform.system()}",
    }
    for name, value in result.items():
        print(f"{name}: {value}")
    if options.report:
        options.report.write_text(json.dumps(result, indent=1) + "\n")
    return 0 if result[_RATIO] <= 1 and memory <= MEMORY_LIMIT_GB else 1


def _per_second(costs: Sequence[Cost], audio: float) -> str:
    """Mean cost of a second of audio."""
    wall, cpu = sum(cost.wall for cost in costs) / audio, sum(cost.cpu for cost in costs) / audio
    return f"{wall:.3f} s per second of audio ({cpu:.3f} s of CPU)"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cpu", description="Beside the reference, on CPU.")
    parser.add_argument("--reference-python", type=Path, required=True, help="Python of the reference's environment")
    parser.add_argument("--tokens", type=int, nargs="+", default=[30, 50, 75, 100], help="tokens of each utterance")
    parser.add_argument("--prompt-seconds", type=float, default=2.0, help="of every voice")
    parser.add_argument("--repeats", type=int, default=3, help="pairs per utterance")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="CPU threads, on both sides")
    parser.add_argument("--meanflow", action="store_true", help="the mean-flow model instead")
    parser.add_argument("--report", type=Path, help="where the figures go, as JSON")
    parser.add_argument("--folder", type=Path, help="where temporary files go (2 GB)")
    return parser


def _utterance(tokens: int, prompt_seconds: float) -> Utterance:
    name = f"{tokens} tokens"
    prompt = int(prompt_seconds * TOKEN_RATE)
    voice = Voice(
        prompt_token=cases.random_tokens(f"{name}, prompt", prompt),
        prompt_feat=2 * cases.normal(f"{name}, prompt", FRAMES_PER_TOKEN * prompt, MEL_BINS) - 5,
        embedding=cases.normal(f"{name}, embedding", SPEAKER_DIM),
    )
    return Utterance(name=name, tokens=cases.random_tokens(name, tokens), voice=voice)


def _plan(folder: Path, utterances: Sequence[Utterance], *, meanflow: bool) -> Plan:
    plan = Plan(folder=folder, weights=folder / "weights.safetensors", meanflow=meanflow)
    with torch.device("meta"):
        model = S3GenModel(S3GenConfig(meanflow=meanflow))
    write_weights(formula_weights(model), plan.weights)
    for utterance in utterances:
        voice = utterance.voice
        given = {"prompt_token": voice.prompt_token, "prompt_feat": voice.prompt_feat, "embedding": voice.embedding}
        plan.inputs[utterance.name] = {"tokens": utterance.tokens, **given}
    return plan


def _pairs(
    model: S3GenModel, reference: Reference, utterances: Sequence[Utterance], repeats: int
) -> tuple[list[Cost], list[Cost]]:
    """Every utterance here and there, `repeats` times over; one of each before that warms both up."""
    shortest = min(utterances, key=lambda utterance: utterance.seconds)
    _timed(model, [shortest])
    reference.timed(shortest)
    alone, theirs = [], []
    for pair, utterance in enumerate(list(utterances) * repeats):
        if pair % 2:
            theirs.append(reference.timed(utterance))
            alone.append(_timed(model, [utterance]))
        else:
            alone.append(_timed(model, [utterance]))
            theirs.append(reference.timed(utterance))
    return alone, theirs


def _timed(model: S3GenModel, utterances: Sequence[Utterance]) -> Cost:
    begun, cpu_begun = time.perf_counter(), time.process_time()
    model.synthesize([u.tokens for u in utterances], [u.voice for u in utterances], list(range(len(utterances))))
    return Cost(wall=time.perf_counter() - begun, cpu=time.process_time() - cpu_begun)


def _memory(checkpoint: Path) -> int:
    """Peak resident bytes of a fresh process that loads the model."""
    done = subprocess.run([sys.executable, "-c", _LOAD, str(checkpoint)], capture_output=True, text=True, check=True)
    return int(done.stdout)


if __name__ == "__main__":
    sys.exit(main())
