"""What a worker makes of a run of clips: a part of a voice table.

A part is named by the digest of all that decides its content, and is one Parquet file: voices and failures together, so
that it is there whole or not at all.

A part's clips go to the model in groups, each read while the one before is computed. Which clips share a group, and so
the last bits of their voices, follows from the part alone.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from jobs.audio.audiofile import Samples, read_audio
from jobs.audio.recordings import Rejected, check_values, opened
from jobs.crew.pulse import Pulse
from jobs.engine.batch import trouble_of
from jobs.engine.models import open_model
from jobs.engine.transfer import Fetch
from jobs.errors import InputError, Refused
from jobs.measures.loudness import SILENT, integrated_loudness
from jobs.parquet.reader import read_parquet
from jobs.storage.folders import Folder
from jobs.storage.inputs import stat_input
from jobs.storage.urls import Options
from jobs.voices.clip_settings import MAX_SECONDS, MIN_SECONDS, ClipSettings
from jobs.voices.sources import Source
from jobs.voices.table import SCHEMA
from s3gen import S3GenModel
from s3gen.audio import resample
from s3gen.constants import MEL_BINS, SAMPLE_RATE
from s3gen.voice import RefDict, Voice

SILENCE = 1e-3  # peak, of full scale: -60 dB
HASH_BLOCK = 1 << 20  # bytes
GROUP_VOICES = 64  # clips that are in memory together, next to as many that are read ahead ...
GROUP_SECONDS = GROUP_VOICES * MAX_SECONDS  # ... fewer when they may be longer than usual
READERS = 8  # threads
VOICE_PARTS = ("prompt_token", "prompt_feat", "embedding")

Row = dict[str, Any]

FAILURE_SCHEMA = pa.schema([(name, pa.string()) for name in ("voice_id", "source", "error", "message")])
PART_SCHEMA = pa.schema([*SCHEMA, FAILURE_SCHEMA.field("error"), FAILURE_SCHEMA.field("message")])


@dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    """A run of sources that is made and committed together.

    Attributes:
        known: source digests of those of the ids that the table already has.
    """

    sources: tuple[Source, ...]
    known: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class PartReport:
    """What became of a part."""

    name: str  # of its file in the folder of parts
    voices: int
    failed: int
    kept: int  # that the table already has, from the same bytes
    seconds: float  # of audio that was used


class VoiceMaker:
    """Makes the parts of one table; a plain class that a worker holds.

    Attributes:
        pulse: moves on with each group of clips.
    """

    def __init__(
        self,
        model: S3GenModel,
        parts: Folder,
        *,
        max_seconds: float = MAX_SECONDS,
        loudness: float | None = None,
        options: Options | None = None,
    ) -> None:
        self.pulse = Pulse()
        self._model = model
        self._parts = parts
        self._max_seconds, self._loudness = max_seconds, loudness
        self._options = options
        self._settings = ClipSettings(max_seconds, loudness).stored(model.voice_fingerprint())
        self._copies = torch.cuda.Stream(model.device) if model.device.type == "cuda" else None

    @classmethod
    def open(
        cls,
        *,
        model: str,
        model_file: str | None,
        parts: str,
        max_seconds: float,
        loudness: float | None,
        options: Options,
        threads: int,
    ) -> VoiceMaker:
        """Loads the model, onto a GPU where this process sees one."""
        torch.set_num_threads(threads)
        device = "cuda" if torch.cuda.is_available() else "cpu"
        loaded = open_model(model, model_file, device, options)
        return cls(loaded, Folder(parts, options), max_seconds=max_seconds, loudness=loudness, options=options)

    def run(self, part: Part) -> PartReport:
        """Makes and commits the part, unless it is there."""
        name = self._name(part)
        if not self._parts.exists(name):
            rows = list(self._rows(part))
            with tempfile.TemporaryDirectory(prefix="s3gen-") as folder:
                path = Path(folder) / name
                pq.write_table(pa.Table.from_pylist(rows, schema=PART_SCHEMA), path, compression="zstd")
                self._parts.upload(name, path)
        return _report(self._parts, name, len(part.sources))

    def _name(self, part: Part) -> str:
        content = hashlib.sha256(json.dumps([self._settings, sorted(part.known.items())]).encode())
        with ThreadPoolExecutor(READERS) as readers:
            versions = readers.map(self._version, part.sources)
            for source, version in zip(part.sources, versions, strict=True):
                content.update(json.dumps([source.voice_id, source.url, *version]).encode())
        return f"{content.hexdigest()}.parquet"

    def _version(self, source: Source) -> tuple[int, str]:
        try:
            stat = stat_input(source.url, self._options)
        except (FileNotFoundError, Refused, InputError):
            return (-1, "absent")
        return (stat.size, stat.etag)

    def _rows(self, part: Part) -> Iterator[Row]:
        """The part's rows in its order, but for voices that the table already has from the same bytes."""
        size = max(1, min(GROUP_VOICES, int(GROUP_SECONDS / self._max_seconds)))
        groups = [part.sources[start : start + size] for start in range(0, len(part.sources), size)]
        # Each reader brings clips to one rate by torch, which would have as many threads of its own for each of them.
        with ThreadPoolExecutor(READERS, "reader", torch.set_num_threads, (1,)) as readers:

            def submit(group: Sequence[Source]) -> list[Future[Row | _Clip | None]]:
                return [readers.submit(self._read, source, part.known) for source in group]

            ahead = submit(groups[0])
            before: _Embedded | None = None
            for following in [*groups[1:], ()]:
                group = [future.result() for future in ahead]
                ahead = submit(following)
                embedded = self._embed([entry for entry in group if entry is not None])
                # A GPU has the next group's work before its results of this one are waited for.
                if before is not None:
                    yield from before.rows()
                    self.pulse.beat()
                before = embedded
            if before is not None:
                yield from before.rows()

    def _read(self, source: Source, known: Mapping[str, str]) -> Row | _Clip | None:
        """A clip, or the row that says why there is none; None for what the table already has from the same bytes."""
        row: Row = {"voice_id": source.voice_id, "source": source.url}
        try:
            digest, samples, rate = _read_clip(source.url, self._options, self._max_seconds)
            if source.voice_id in known:
                if known[source.voice_id] == digest:
                    return None
                raise Rejected("voice_exists", "the table has this voice_id from another clip; choose another id")
            _check_clip(samples, rate)
            if self._loudness is not None:
                samples = _brought_to(samples, rate, self._loudness)
        except Rejected as rejection:
            return row | {"error": rejection.code, "message": str(rejection)}
        return _Clip(row=row, digest=digest, samples=samples, rate=rate)

    def _embed(self, group: Sequence[Row | _Clip]) -> _Embedded:
        refs = iter(self._refs([entry for entry in group if isinstance(entry, _Clip)]))
        entries: list[Row | _Found] = []
        tensors: list[torch.Tensor] = []
        for entry in group:
            if not isinstance(entry, _Clip):
                entries.append(entry)
            elif isinstance(ref := next(refs), str):
                entries.append(entry.row | {"error": "not_embedded", "message": ref})
            else:
                entries.append(_Found.of(entry))
                # Tokens too are exact in the mel's type, and all go to the host in one piece.
                tensors += [ref[name].flatten().to(ref["prompt_feat"].dtype) for name in VOICE_PARTS]
        return _Embedded(entries, Fetch(tensors, self._copies) if tensors else None)

    def _refs(self, clips: Sequence[_Clip]) -> list[RefDict | str]:
        """For each clip what the model finds in it, or what it says against it.

        In halves, where they are too much together or one of them is refused.
        """
        try:
            return list(self._model.embed_refs([clip.samples for clip in clips], [clip.rate for clip in clips]))
        except ValueError as error:
            if len(clips) == 1:
                return [str(error)]
        except (RuntimeError, MemoryError) as error:
            if len(clips) == 1 or not trouble_of(error).starved:
                raise
        # Outside of the handlers: the exception's traceback holds the tensors of the failed attempt.
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        middle = (len(clips) + 1) // 2
        return self._refs(clips[:middle]) + self._refs(clips[middle:])


@dataclass(frozen=True, kw_only=True, slots=True)
class _Clip:
    """A clip that is good as far as one can see.

    Attributes:
        row: the columns of its row that a failure has too.
        digest: of the source.
        rate: of the samples, Hz.
    """

    row: Row
    digest: str
    samples: Samples
    rate: int


@dataclass(frozen=True, kw_only=True, slots=True)
class _Found:
    """A clip in which the model found a voice; its samples are gone."""

    row: Row
    facts: Row

    @classmethod
    def of(cls, clip: _Clip) -> _Found:
        facts = {"source_digest": clip.digest, "duration": len(clip.samples) / clip.rate, "sample_rate": clip.rate}
        return cls(row=clip.row, facts=facts)

    def with_voice(self, ref: Mapping[str, Samples]) -> Row:
        """The whole row."""
        try:
            voice = Voice.from_ref(
                {
                    "prompt_token": ref["prompt_token"].astype(np.int64),
                    "prompt_feat": ref["prompt_feat"].reshape(-1, MEL_BINS),
                    "embedding": ref["embedding"],
                }
            )
        except ValueError as error:
            return self.row | {"error": "not_embedded", "message": str(error)}
        return {
            **self.row,
            **self.facts,
            "prompt_token": voice.prompt_token.numpy().astype(np.int32),
            "prompt_feat": voice.prompt_feat.numpy().reshape(-1),
            "embedding": voice.embedding.numpy(),
            "tokens": len(voice.prompt_token),
            "frames": len(voice.prompt_feat),
        }


@dataclass(frozen=True, slots=True)
class _Embedded:
    """A group of which each clip is found or failed, and what was found is on its way from the device."""

    entries: list[Row | _Found]
    fetch: Fetch | None

    def rows(self) -> Iterator[Row]:
        """The group's rows, once they are here."""
        arrays = iter(self.fetch.take() if self.fetch is not None else ())
        for entry in self.entries:
            if isinstance(entry, _Found):
                yield entry.with_voice({name: next(arrays) for name in VOICE_PARTS})
            else:
                yield entry


def _read_clip(url: str, options: Options | None, seconds: float) -> tuple[str, Samples, int]:
    with opened(url, options) as file:
        digest = hashlib.sha256()
        while block := file.read(HASH_BLOCK):
            digest.update(block)
        file.seek(0)
        samples, rate = read_audio(file, seconds)
    return digest.hexdigest(), samples, rate


def _check_clip(samples: Samples, rate: int) -> None:
    if len(samples) < MIN_SECONDS * rate:
        raise Rejected("too_short", f"{len(samples) / rate:.3f} s; {MIN_SECONDS} s is the least")
    check_values(samples, rate)
    if (peak := float(np.abs(samples).max())) < SILENCE:
        raise Rejected("silent", f"the loudest sample is {peak:.2g} of full scale")


def _brought_to(samples: Samples, rate: int, loudness: float) -> Samples:
    """The clip at a loudness in LUFS, as Chatterbox Turbo does it: measured at 24 kHz, and nothing is limited.

    Reference: chatterbox-tts 0.1.7, ``tts_turbo.py`` (``norm_loudness``), which takes all of a clip.

    Raises:
        Rejected: it has no loudness, or a rate that cannot be brought to 24 kHz.
    """
    try:
        measured = integrated_loudness(resample(torch.from_numpy(samples), rate, SAMPLE_RATE).numpy(), SAMPLE_RATE)
    except ValueError as error:
        raise Rejected("not_embedded", str(error)) from None
    if measured <= SILENT:
        raise Rejected(
            "silent", f"its loudness is {SILENT:g} LUFS or less, so that it cannot be brought to {loudness:g}"
        )
    return samples * np.float32(10 ** ((loudness - measured) / 20))


def _report(parts: Folder, name: str, sources: int) -> PartReport:
    with parts.open(name) as file:
        rows = read_parquet(file, ["duration", "error"])
    durations = [value for value in rows.column("duration").to_pylist() if value is not None]
    return PartReport(
        name=name,
        voices=len(durations),
        failed=len(rows) - len(durations),
        kept=sources - len(rows),
        seconds=sum(durations),
    )
