"""What a table's clips have in common: where they are cut, and how loud they are brought to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from jobs.errors import InputError
from jobs.voices.table import FORMAT_VERSION, VoiceTable

MIN_SECONDS = 0.5  # the least a voice needs
MAX_SECONDS = 10.0  # where nothing else is asked for: as the reference cuts them
MOST_SECONDS = 600.0  # that may be asked for: clips are in memory as a whole
LEAST_LOUDNESS = -60.0  # LUFS, that may be asked for: the tokenizer and the mel have floors of their own


@dataclass(frozen=True, slots=True)
class ClipSettings:
    """What decides a voice beside its clip and the model."""

    max_seconds: float
    loudness: float | None = None  # LUFS; None: as loud as they are

    def stored(self, voice_fingerprint: str) -> dict[str, Any]:
        """As the table's schema keeps them, with the model's part."""
        settings = {
            "format_version": FORMAT_VERSION,
            "voice_fingerprint": voice_fingerprint,
            "max_seconds": self.max_seconds,
        }
        return settings if self.loudness is None else settings | {"loudness": self.loudness}


def chosen_settings(max_seconds: float | None, loudness: float | None, table: VoiceTable | None) -> ClipSettings:
    """The settings that a command asks for; None asks for those of the table that it appends to, else the usual ones.

    Raises:
        InputError: out of range, or not those of the table.
    """
    if table is not None:
        _agree(max_seconds, loudness, table)
        max_seconds, loudness = table.max_seconds, table.loudness
    chosen = ClipSettings(MAX_SECONDS if max_seconds is None else max_seconds, loudness)
    if chosen.loudness is not None and not LEAST_LOUDNESS <= chosen.loudness <= 0:
        raise InputError(f"--loudness {chosen.loudness:g}: give {LEAST_LOUDNESS:g} to 0 LUFS; Chatterbox Turbo has -27")
    if not chosen.max_seconds >= MIN_SECONDS:
        raise InputError(f"--max-seconds {chosen.max_seconds:g}: {MIN_SECONDS:g} is the least a voice needs")
    if chosen.max_seconds > MOST_SECONDS:
        raise InputError(f"--max-seconds {chosen.max_seconds:g}: {MOST_SECONDS:g} is the most; 10 are enough")
    return chosen


def _agree(max_seconds: float | None, loudness: float | None, table: VoiceTable) -> None:
    way_out = "leave the option out, or make a table of its own"
    if max_seconds is not None and max_seconds != table.max_seconds:
        raise InputError(
            f"--max-seconds {max_seconds:g}: the clips of {table.url} were cut at {table.max_seconds:g} s; {way_out}"
        )
    if loudness is not None and loudness != table.loudness:
        own = "taken as loud as they are" if table.loudness is None else f"brought to {table.loudness:g} LUFS"
        raise InputError(f"--loudness {loudness:g}: the clips of {table.url} were {own}; {way_out}")
