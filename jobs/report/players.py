"""Clips to be heard on a page that holds everything itself: their sound and their picture, as data URIs."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

from jobs.audio.audiofile import Samples, UnreadableAudio, encode, read_audio
from jobs.errors import JobError
from jobs.formats.clips import read_clip
from jobs.report.choice import Pick
from jobs.report.mel_picture import mel_picture
from jobs.report.words import plain
from jobs.storage.folders import Folder
from s3gen.constants import SAMPLE_RATE

# Each player gets as much of its clip as lets all of them together stay below this.
PLAYERS_BYTES = 6_400_000  # of FLAC in base64
CUTS = (20.0, 15.0, 10.0, 7.0, 5.0, 4.0, 3.0, 2.0, 1.0)  # seconds of the longest ones; FLAC never takes more than PCM
READ_THREADS = 8


@dataclass(frozen=True, slots=True)
class Player:
    """One clip on the page.

    Attributes:
        sound: data URI, the stored samples without loss; empty when there is trouble.
        picture: data URI of the mel spectrogram of what is heard.
        seconds: that are heard: fewer than the clip has when the page would grow too large.
        trouble: why it cannot be heard; else empty.
    """

    pick: Pick
    sound: str
    picture: str
    seconds: float
    trouble: str = ""

    def shortened(self, seconds: float) -> Player:
        """With no more of it to be heard."""
        if self.seconds <= seconds:
            return self
        wave, rate = read_audio(io.BytesIO(base64.b64decode(self.sound.partition(",")[2])), seconds=seconds)
        sound, heard = _sound(wave, rate)
        return replace(self, sound=sound, picture=_uri("image/png", mel_picture(wave, rate)), seconds=heard)

    @property
    def cut(self) -> bool:
        """Whether it is the beginning of a longer clip."""
        return not self.trouble and self.pick.samples > round(self.seconds * SAMPLE_RATE)


def players(folder: Folder, picks: Sequence[Pick], rate: int) -> list[Player]:
    """A player for each pick, in their order.

    Args:
        rate: of the clips, Hz.
    """
    with ThreadPoolExecutor(READ_THREADS) as pool:
        waves = list(pool.map(lambda pick: _wave(folder, pick, rate), picks))
    sounds = _fitting([wave if not isinstance(wave, str) else None for wave in waves], rate)
    made = []
    for pick, wave, sound in zip(picks, waves, sounds, strict=True):
        if isinstance(wave, str) or sound is None:
            made.append(Player(pick, "", "", 0.0, trouble=str(wave)))
        else:
            encoded, seconds = sound
            heard = wave[: round(seconds * rate)]
            made.append(Player(pick, encoded, _uri("image/png", mel_picture(heard, rate)), seconds))
    return made


def _wave(folder: Folder, pick: Pick, rate: int) -> Samples | str:
    """The first seconds of a clip, or why there are none."""
    try:
        wave, stored = read_audio(io.BytesIO(read_clip(folder, pick.shard, pick.row)), seconds=CUTS[0])
    except (JobError, UnreadableAudio) as error:
        return plain(str(error), 300)
    return wave if stored == rate else f"its rate is {stored} Hz, not {rate}"


def _fitting(waves: Sequence[Samples | None], rate: int) -> list[tuple[str, float] | None]:
    """Sounds, and their seconds, cut to the largest of ``CUTS`` with which all of them fit."""
    found: list[tuple[str, float] | None] = []
    for seconds in CUTS:
        found = [None if wave is None else _sound(wave[: round(seconds * rate)], rate) for wave in waves]
        if sum(len(sound[0]) for sound in found if sound) <= PLAYERS_BYTES:
            break
    return found


def _sound(wave: Samples, rate: int) -> tuple[str, float]:
    return _uri("audio/flac", encode(wave, "flac", rate)), len(wave) / rate


def _uri(kind: str, data: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode('ascii')}"
