"""What listeners would say of an utterance, as the index has it where the job asks for it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

LEAST, BEST = -1.0, 5.0  # what the network's polynomials may give


@dataclass(frozen=True, slots=True)
class Opinion:
    """Mean opinions foreseen, 1 (bad) to 5 (excellent); exact in float32.

    Attributes:
        dnsmos_sig: of the speech itself.
        dnsmos_bak: of its background.
        dnsmos_ovr: of the whole.
    """

    dnsmos_sig: float
    dnsmos_bak: float
    dnsmos_ovr: float


OPINIONS = tuple(field.name for field in fields(Opinion))  # columns of the index


def inconsistent_opinion(entry: Mapping[str, Any], *, wanted: bool) -> str | None:
    """What is wrong with the opinions of a row of the index, or None.

    Args:
        wanted: whether its job asks for them; else there are none.
    """
    for name in OPINIONS:
        value = entry[name]
        if not wanted and value is not None:
            return f"{name} is {value}, but the job asks for no opinions"
        if wanted and (value is None or not LEAST <= value <= BEST):
            return f"{name} is {value}, not a number from {LEAST:g} to {BEST:g}"
    return None
