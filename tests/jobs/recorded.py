"""Recordings for tests: speech-like clips as audio files, in tars and in Parquet files."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import soundfile

from tests.conftest import speech_like


def audio_file(seconds: float = 0.4, rate: int = 16_000, seed: int = 0, kind: str = "WAV") -> bytes:
    file = io.BytesIO()
    soundfile.write(file, speech_like(seconds, rate, seed=seed).numpy(), rate, format=kind)
    return file.getvalue()


def write_folder(folder: Path, names: list[str], seconds: float = 0.4) -> Path:
    """A clip for each name, all different."""
    for seed, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(audio_file(seconds, seed=seed, kind="FLAC" if name.endswith("flac") else "WAV"))
    return folder


def write_tar(path: Path, members: Mapping[str, bytes | Mapping[str, Any]]) -> Path:
    """Members in their order; mappings become JSON."""
    with tarfile.open(path, "w") as tar:
        for name, content in members.items():
            data = content if isinstance(content, bytes) else json.dumps(content).encode()
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return path


def write_audio_parquet(path: Path, audio: list[Any], **columns: Any) -> Path:
    """`audio` in the convention of `datasets`: structs of bytes and path."""
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    pq.write_table(pa.table({"audio": pa.array(audio, kind), **columns}), path)
    return path
