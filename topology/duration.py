"""Durations as people write them: ``250ms``, ``30s``, ``5m``, ``2h``, ``7d``; a bare number is seconds."""

from __future__ import annotations

import math
import re
from datetime import datetime, timedelta

from topology.errors import OptionInvalid
from topology.text import shown

_UNITS = {"ms": 0.001, "s": 1.0, "": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_PATTERN = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*(ms|s|m|h|d|)")


def parse_duration(text: str) -> float:
    """Seconds for ``text``. Raises OptionInvalid for anything else than a number with an optional unit."""
    match = _PATTERN.fullmatch(text.strip().lower())
    seconds = math.inf if match is None else float(match[1]) * _UNITS[match[2]]
    if not math.isfinite(seconds):
        raise OptionInvalid(f"{shown(text)} is not a duration: write 250ms, 30s, 5m, 2h or 7d")
    return seconds


def ago(what: str, duration: float | timedelta, now: datetime) -> datetime:
    """``duration`` (seconds, or a timedelta) before ``now``. Raises OptionInvalid where that is before the year 1."""
    try:
        return now - (duration if isinstance(duration, timedelta) else timedelta(seconds=duration))
    except (OverflowError, ValueError):
        raise OptionInvalid(f"{what} is {duration}: that is longer ago than the calendar reaches") from None


def format_duration(seconds: float) -> str:
    """The shortest of the forms that `parse_duration` reads, exact to the millisecond."""
    milliseconds = round(seconds * 1000)
    for unit, size in (("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1000)):
        if milliseconds and milliseconds % size == 0:
            return f"{milliseconds // size}{unit}"
    return f"{milliseconds}ms" if not math.isclose(milliseconds, 0) else "0s"
