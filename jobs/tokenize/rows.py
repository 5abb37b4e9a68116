"""The rows of a shard whose recordings become tokens: checked, and each recording read and decoded, ahead of need."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import IO, NamedTuple

import pyarrow as pa

from jobs.audio.audiofile import Samples, read_audio
from jobs.audio.recordings import Rejected, check_values, opened, reading
from jobs.crew.pulse import Pulse
from jobs.manifest.manifest import Ints
from jobs.manifest.problems import text_problem
from jobs.manifest.rows import Failure
from jobs.manifest.texts import texts
from jobs.plan import Plan
from jobs.storage.inputs import read_part
from jobs.storage.urls import Options
from jobs.tokenize.columns import Clip, TokenColumns
from jobs.tokenize.lookahead import Admit, Lookahead
from jobs.tokenize.tars import PROBLEM_COLUMN
from jobs.worker.worker import Order
from s3gen.audio import TOKENIZER_MIN_SAMPLES
from s3gen.constants import SAMPLE_RATE, TOKENIZER_RATE

READERS = 8  # threads
AHEAD = 2 * READERS  # recordings that are read before they are asked for
MOST_SECONDS = 1_800.0  # of a recording, which is in memory as a whole ...
MOST_SAMPLES = 1_800 * 48_000  # ... and of which this is the other limit, and that of all that are read ahead
SAMPLE_BYTES = 4
MOST_PART = 1 << 30  # bytes of a recording in a tar
UNKNOWN = 1 << 62  # samples, and more: what files claim whose headers were written before their ends

_Found = tuple[int, tuple[Samples, int] | Rejected]  # position; samples and rate, or why there are none


class Heard(NamedTuple):
    """A recording that is good as far as one can see.

    Attributes:
        position: of its row in the shard.
        samples: one channel, full scale +-1.
        rate: Hz.
    """

    position: int
    samples: Samples
    rate: int

    @property
    def seconds(self) -> float:
        """How long it is."""
        return len(self.samples) / self.rate


@dataclass(slots=True)
class Shard:
    """What is known of a shard's rows, and what has become of them.

    Attributes:
        known: all rows, as `TokenColumns.known` says.
        tokens, seconds: by position, of those that were made.
        failures: of those that could not be.
    """

    known: list[pa.Table] = field(default_factory=list)
    tokens: dict[int, Ints] = field(default_factory=dict)
    seconds: dict[int, float] = field(default_factory=dict)
    failures: list[Failure] = field(default_factory=list)
    _names: list[tuple[str | None, str | None]] = field(default_factory=list)  # id and voice id
    _seen: set[str] = field(default_factory=set)  # ids

    @property
    def samples(self) -> list[int]:
        """Of each row that was made, as samples at the rate of the audio that jobs of speech make."""
        return [round(seconds * SAMPLE_RATE) for seconds in self.seconds.values()]

    def fail(self, position: int, code: str, message: str) -> None:
        """Notes that a row cannot be made."""
        self.failures.append(Failure(position, *self._names[position], code, message))

    def note(self, known: pa.Table) -> list[bool]:
        """Takes the next rows in; returns whether each has ids of its own that are good. Failures are noted."""
        self.known.append(known)
        columns = [texts(known[name]) for name in ("id", "voice_id")]
        listed = PROBLEM_COLUMN in known.column_names
        reasons = texts(known[PROBLEM_COLUMN]) if listed else [None] * known.num_rows
        return [self._noted(*row) for row in zip(*columns, reasons, strict=True)]

    def _noted(self, row_id: str | bytes | None, voice_id: str | bytes | None, reason: str | bytes | None) -> bool:
        position = len(self._names)
        self._names.append((_text(row_id), _text(voice_id)))
        problem = text_problem("id", row_id) or text_problem("voice_id", voice_id)
        if problem is not None:
            why = reason if row_id is None and isinstance(reason, str) else problem.message
            self.fail(position, problem.error, why)
        elif row_id in self._seen:
            self.fail(position, "duplicate_id", f"an earlier row of this shard has the id {row_id[:200]!r}")
            return False
        if isinstance(row_id, str):
            self._seen.add(row_id)
        return problem is None


def _text(value: str | bytes | None) -> str | None:
    return value if isinstance(value, str) else None


@dataclass(frozen=True, slots=True)
class Recordings:
    """The recordings of one job.

    Args:
        pulse: moves on with each that is read.
    """

    plan: Plan
    columns: TokenColumns
    options: Options | None
    pulse: Pulse

    def of(self, order: Order, shard: Shard) -> Iterator[Heard]:
        """Those that an order is about, in order; notes every row of the shard, and each that cannot be heard."""
        ahead = Lookahead(READERS, tasks=max(1, AHEAD >> order.halvings), weight=MOST_SAMPLES >> order.halvings)
        for position, found in ahead.results(self._tasks(order, shard)):
            if isinstance(found, Rejected):
                shard.fail(position, found.code, str(found))
            else:
                yield Heard(position, *found)

    def _tasks(self, order: Order, shard: Shard) -> Iterator[Callable[[Admit], _Found]]:
        planned = self.plan.shard(order.shard)
        urls, numbers = self.plan.origins(planned)
        first, end = order.probe or (0, planned.rows)
        at = 0
        for batch in self.plan.manifest.batches(planned.spans, self.options):
            stop = at + batch.num_rows
            known, clips = self.columns.rows(batch, urls[at:stop], numbers[at:stop])
            for position, clip, good in zip(range(at, stop), clips, shard.note(known), strict=True):
                if good and position in order.guilty:
                    death = order.guilty[position]
                    shard.fail(position, death.code, death.message)
                elif good and first <= position < end:
                    yield partial(self._heard, position, clip)
            at = stop

    def _heard(self, position: int, clip: Clip, admit: Admit) -> _Found:
        try:
            samples, rate = _read(clip, self.options, admit)
            _check(samples, rate)
        except Rejected as rejection:
            return position, rejection
        finally:
            self.pulse.beat()
        return position, (samples, rate)


def _read(clip: Clip, options: Options | None, admit: Admit) -> tuple[Samples, int]:
    if clip.data is not None:
        with reading():
            return _decoded(io.BytesIO(clip.data.as_py()), admit)
    if clip.url is None:
        raise Rejected("null_path", "there is neither audio nor a path that says where it is")
    if clip.offset is not None and clip.size is not None:
        with reading():
            admit(max(0, clip.size) // SAMPLE_BYTES)
            return _decoded(io.BytesIO(_part(clip.url, clip.offset, clip.size, options)), admit)
    with opened(clip.url, options) as file:
        return _decoded(file, admit)


def _decoded(file: IO[bytes], admit: Admit) -> tuple[Samples, int]:
    def most(samples: int, rate: int) -> int:
        if _most(rate) < samples < UNKNOWN:
            raise _too_long(rate)
        admit(min(samples, _most(rate)))
        return _most(rate) + 1  # to see that it is more where the file does not know

    return read_audio(file, most=most)


def _most(rate: int) -> int:
    return min(round(MOST_SECONDS * rate), MOST_SAMPLES)


def _too_long(rate: int) -> Rejected:
    seconds = _most(rate) / rate
    return Rejected("too_long", f"more than {seconds:g} s, the most at {rate} Hz; cut it into utterances")


def _part(url: str, offset: int, size: int, options: Options | None) -> bytes:
    if offset < 0 or not 0 <= size <= MOST_PART:
        raise Rejected("unreadable", f"bytes {offset} to {offset + size} of a tar cannot be a recording")
    data = read_part(url, offset, offset + size, options)
    if len(data) < size:
        raise Rejected("unreadable", f"the tar ends {size - len(data)} bytes before the recording does")
    return data


def _check(samples: Samples, rate: int) -> None:
    seconds = len(samples) / rate
    if len(samples) * TOKENIZER_RATE <= (TOKENIZER_MIN_SAMPLES - 1) * rate:
        least = 1_000 * TOKENIZER_MIN_SAMPLES / TOKENIZER_RATE
        raise Rejected("too_short", f"{1_000 * seconds:.1f} ms; {least:.1f} ms is the least")
    if len(samples) > _most(rate):
        raise _too_long(rate)
    check_values(samples, rate)
