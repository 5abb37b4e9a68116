"""The texts and numbers of the page, part by part, as the template lays them out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from jobs.report.charts import Chart
from jobs.report.failures import Example
from jobs.report.run import Run


@dataclass(frozen=True, slots=True)
class Note:
    """Something to know before the numbers."""

    text: str
    command: str = ""


@dataclass(frozen=True, slots=True)
class Tile:
    """A number that matters; ``kind`` is empty, ``warn`` or ``bad``."""

    name: str
    value: str
    note: str
    kind: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Card:
    """One clip."""

    heading: str
    beyond: str
    id: str
    voice: str  # empty where the heading is the voice
    sound: str
    picture: str
    heard: str
    trouble: str
    facts: str


@dataclass(frozen=True, kw_only=True, slots=True)
class VoiceRow:
    """One voice; width in per cent."""

    name: str
    rows: str
    audio: str
    width: float
    qualities: Sequence[str]
    suspect: str


@dataclass(frozen=True, slots=True)
class CheckRow:
    """One check."""

    name: str
    measured: str
    limit: str
    rows: str


@dataclass(frozen=True, kw_only=True, slots=True)
class FailureRow:
    """One reason; width in per cent."""

    code: str
    rows: str
    width: float
    meaning: str
    way_out: str
    command: str
    examples: Sequence[Example]


@dataclass(kw_only=True, slots=True)
class Page:
    """Everything on the page, from above to below."""

    name: str
    model: str
    state: str
    when: str
    notes: Sequence[Note]
    tiles: Sequence[Tile]
    sections: Sequence[tuple[str, str]]  # anchor and name
    voices_lead: str = ""
    samples: Sequence[Card] = ()
    voice_unit: str = ""
    voice_qualities: Sequence[str] = ()  # names of columns
    voices: Sequence[VoiceRow] = ()
    more_voices: Sequence[VoiceRow] = ()
    other_voices: str = ""
    checks_lead: str = ""
    checks: Sequence[CheckRow] = ()
    suspects: Sequence[Card] = ()
    extremes: Sequence[Card] = ()
    histograms: Sequence[Chart] = ()
    failures_lead: str = ""
    failures: Sequence[FailureRow] = ()
    run: Run | None = None
    run_lead: str = ""
    pauses: str = ""
    made: Sequence[tuple[str, str]] = field(default_factory=list)
    config: str = ""
    foot: str = ""
