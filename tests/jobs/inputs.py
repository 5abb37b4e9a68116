"""Small inputs of a job: clips, a voice table, a manifest, a configuration."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import soundfile

from jobs.storage.folders import Folder
from jobs.voices.build import VoiceBuild
from jobs.voices.parts import VoiceMaker
from jobs.voices.sources import Source
from s3gen import S3GenModel
from tests.conftest import speech_like

VOICES = {"anna": 120.0, "bert": 80.0, "de/carl.2": 200.0}  # pitch


def write_clips(folder: Path, seconds: float = 0.6) -> None:
    for seed, (voice_id, pitch) in enumerate(VOICES.items()):
        path = folder / f"{voice_id}.wav"
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, speech_like(seconds, 24_000, seed=seed, pitch=pitch).numpy(), 24_000)


def build_table(model: S3GenModel, clips: Path, out: Path) -> Path:
    """A table of `VOICES`, without Ray and without the command line."""
    build = VoiceBuild(str(out), None, voice_fingerprint=model.voice_fingerprint(), max_seconds=None, append=False)
    sources = [Source(voice_id, str(clips / f"{voice_id}.wav")) for voice_id in sorted(VOICES)]
    maker = VoiceMaker(model, Folder(build.parts_url), max_seconds=build.max_seconds)
    report = build.finish([maker.run(part) for part in build.parts(sources)], [])
    assert report.voices == len(VOICES)
    return out


def good_rows(count: int, seed: int = 0, most: int = 12) -> dict[str, list[Any]]:
    rng = np.random.default_rng(seed)
    voices = sorted(VOICES)
    return {
        "id": [f"row-{i:04d}" for i in range(count)],
        "tokens": [rng.integers(0, 6561, int(rng.integers(1, most))).tolist() for _ in range(count)],
        "voice_id": [voices[i % len(voices)] for i in range(count)],
    }


def write_manifest(path: Path, columns: Mapping[str, Sequence[Any] | pa.Array]) -> Path:
    types = {"tokens": pa.list_(pa.int32()), "id": pa.string(), "voice_id": pa.string()}
    arrays = {
        name: values if isinstance(values, pa.Array) else pa.array(values, types.get(name))
        for name, values in columns.items()
    }
    pq.write_table(pa.table(arrays), path)
    return path


def write_config(path: Path, **values: Any) -> Path:
    # JSON is YAML.
    path.write_text(json.dumps({"model": "random:tiny", **values}))
    return path
