"""How numbers and texts read on a page: units, digits, and nothing that a stranger's text could do to it."""

from __future__ import annotations

import math
from datetime import UTC, datetime

MINUS = "\N{MINUS SIGN}"
ELLIPSIS = "\N{HORIZONTAL ELLIPSIS}"
SHOWN_LETTERS = 120  # of an id
SHOWN_MESSAGE = 300

_SIZES = ("bytes", "kB", "MB", "GB", "TB", "PB")


def count(number: int) -> str:
    """`12,345`."""
    return f"{number:,}"


def some(number: int, what: str) -> str:
    """`1 row`, `12,345 rows`."""
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def number(value: float, digits: int = 3) -> str:
    """At least so many digits, without an exponent: `0.0412`, `41.2`, `4,123`; with a minus sign that is one."""
    if not value:
        return "0"
    places = max(0, digits - 1 - math.floor(math.log10(abs(value))))
    text = f"{value:,.{min(places, 9)}f}".replace("-", MINUS)
    return text.rstrip("0").rstrip(".") if "." in text else text


def percent(part: float, whole: float) -> str:
    """`0.3 %`; what is not nothing does not read as 0."""
    share = 100 * part / whole if whole else 0.0
    if 0 < share < 0.01:
        return "under 0.01 %"
    if 99.99 < share < 100:
        return "over 99.99 %"
    return f"{share:.{0 if share in (0, 100) else 2 if share < 1 else 1}f} %"


def length(seconds: float) -> str:
    """`4.2 s`, `12.5 min`, `1,204.2 h`."""
    if seconds < 99.95:
        return f"{seconds:.{2 if seconds < 1 else 1}f} s"
    if seconds < 99.95 * 60:
        return f"{seconds / 60:.1f} min"
    return f"{seconds / 3600:,.1f} h"


def decibels(value: float) -> str:
    """Of full scale: `−23.1 dB`."""
    return f"{value:.1f} dB".replace("-", MINUS)


def lufs(value: float) -> str:
    """Loudness: `−23.1 LUFS`."""
    return f"{value:.1f} LUFS".replace("-", MINUS)


def size(amount: float) -> str:
    """`1.5 GB`, in powers of a thousand."""
    power = 0
    while amount >= 999.5 and power < len(_SIZES) - 1:
        amount, power = amount / 1000, power + 1
    return f"{amount:.{0 if power == 0 or amount >= 99.95 else 1}f} {_SIZES[power]}"


def moment(unix_time: float) -> str:
    """`2026-11-23 05:12 UTC`."""
    return f"{datetime.fromtimestamp(unix_time, UTC):%Y-%m-%d %H:%M} UTC"


def plain(text: str, most: int = SHOWN_LETTERS) -> str:
    """A text of a manifest, for the eye: what has no shape, or turns the direction of others, is written out, and a
    long one is cut."""
    if not text:
        return "(empty)"
    shown = "".join(letter if letter.isprintable() else f"\\u{{{ord(letter):x}}}" for letter in text[: most + 1])
    return shown if len(shown) <= most else shown[: most - 1] + ELLIPSIS
