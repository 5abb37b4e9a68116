"""Which rows of a job are shown and heard: some of each voice, and those at the ends of what was measured.

One pass, frame after frame; what is kept does not grow with the number of rows or voices. The choice is drawn by
hashes of ids, so the same job and seed give the same rows in whatever order or pieces they come.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from jobs.measures.checks import CHECKS
from jobs.report.quality import QUALITIES
from s3gen.constants import SAMPLE_RATE

SHOWN_VOICES = 24
WORST_ROWS = 3  # of each check
PREFERRED_SECONDS = (1.0, 10.0)  # of a voice's sample, where it has such a row
# Name, column, and whether it is the largest value.
EXTREMES = (
    *((quality.lowest, quality.column, False) for quality in QUALITIES if quality.lowest),
    *((quality.highest, quality.column, True) for quality in QUALITIES if quality.highest),
    ("shortest", "samples", False),
    ("longest", "samples", True),
)


@dataclass(frozen=True, slots=True)
class Pick:
    """A row to be heard.

    Attributes:
        reason: empty for a voice's sample; else the check that it does not pass, or its places among ``EXTREMES``.
        problems: the checks that it does not pass.
        value: what the check measured; of others 0.
    """

    reason: str
    id: str
    voice_id: str
    shard: str
    row: int  # in the shard
    samples: int
    rms_db: float
    peak: float
    problems: str
    value: float = 0.0


class Choice:
    """Rows drawn from frames of an index.

    Args:
        seed: of the draw, any integer.
    """

    def __init__(self, seed: int) -> None:
        self._key = f"{seed % 2**64:016x}"
        self._voices = pd.DataFrame()
        self._worst = {name: pd.DataFrame() for name in CHECKS}
        self._extremes = {name: pd.DataFrame() for name, _, _ in EXTREMES}

    def add(self, frame: pd.DataFrame) -> None:
        """Takes rows in."""
        if frame.empty:
            return
        best = self._drawn(_plain(frame[self._may_be_drawn(frame["voice_id"])]))
        self._voices = _first(pd.concat([self._voices, best]))
        suspect = _plain(frame[frame["problems"] != ""])
        names = suspect["problems"].str.split(",")
        for name, (measure, _) in CHECKS.items():
            failed = suspect[np.array([name in each for each in names], np.bool_)]
            rated = failed.assign(value=failed[measure].abs(), signed=failed[measure])
            self._worst[name] = _top(self._worst[name], rated, "value", WORST_ROWS, largest=True)
        for name, column, largest in EXTREMES:
            there = frame[frame[column].notna()]
            self._extremes[name] = _top(self._extremes[name], there, column, 1, largest=largest)

    def voices(self) -> list[Pick]:
        """One row of each voice, or of ``SHOWN_VOICES`` of them, by voice id."""
        if self._voices.empty:
            return []
        return [_pick("", row) for row in self._voices.sort_values("voice_id").to_dict("records")]

    def suspects(self) -> list[Pick]:
        """The rows furthest beyond each check, each row once."""
        found = [(name, row) for name, rows in self._worst.items() for row in rows.to_dict("records")]
        first: dict[tuple[str, int], Pick] = {}
        for name, row in found:
            first.setdefault((row["shard"], row["row"]), _pick(name, row, row["signed"]))
        return list(first.values())

    def extremes(self) -> list[Pick]:
        """The rows at the ends of the scales, each once."""
        found: dict[tuple[str, int], list[str]] = {}
        rows = {}
        for name, frame in self._extremes.items():
            for row in frame.to_dict("records"):
                place = (row["shard"], row["row"])
                found.setdefault(place, []).append(name)
                rows[place] = row
        return [_pick(" and ".join(names), rows[place]) for place, names in found.items()]

    def _may_be_drawn(self, voice_ids: pd.Series) -> npt.NDArray[np.bool_]:
        """Which rows have one of the frame's voices with the smallest lots."""
        codes, names = pd.factorize(voice_ids)
        chosen = np.zeros(len(names), np.bool_)
        chosen[np.argsort(self._lots(names), kind="stable")[:SHOWN_VOICES]] = True
        return chosen[codes]

    def _drawn(self, frame: pd.DataFrame) -> pd.DataFrame:
        """A row of each voice, with the two lots that are drawn, ``voice_lot`` and ``lot``: the smaller the better."""
        low, high = (seconds * SAMPLE_RATE for seconds in PREFERRED_SECONDS)
        outside = ~frame["samples"].between(low, high).to_numpy()
        lots = self._lots(frame["id"]) >> np.uint64(1)
        rated = frame.assign(
            voice_lot=self._lots(frame["voice_id"]), lot=lots | (outside.astype(np.uint64) << np.uint64(63))
        )
        return _first(rated)

    def _lots(self, texts: pd.Series | pd.Index) -> npt.NDArray[np.uint64]:
        return pd.util.hash_array(texts.to_numpy(dtype=object), hash_key=self._key)


def _first(rated: pd.DataFrame) -> pd.DataFrame:
    return rated.sort_values(["voice_lot", "lot"], kind="stable").drop_duplicates("voice_id").head(SHOWN_VOICES)


def _top(kept: pd.DataFrame, frame: pd.DataFrame, column: str, count: int, *, largest: bool) -> pd.DataFrame:
    """Of equal values those that come first."""
    pick = pd.DataFrame.nlargest if largest else pd.DataFrame.nsmallest
    return pick(pd.concat([kept, _plain(pick(frame, count, column))]), count, column)


def _plain(frame: pd.DataFrame) -> pd.DataFrame:
    """With texts where there are categories, which differ from frame to frame."""
    return frame.astype(dict.fromkeys(("id", "voice_id", "shard", "problems"), object))


def _pick(reason: str, row: Mapping[Any, Any], value: float = 0.0) -> Pick:
    return Pick(
        reason=reason,
        id=row["id"],
        voice_id=row["voice_id"],
        shard=row["shard"],
        row=int(row["row"]),
        samples=int(row["samples"]),
        rms_db=float(row["rms_db"]),
        peak=float(row["peak"]),
        problems=row["problems"],
        value=float(value),
    )
