"""A batch of reports as it comes from the broker."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from pydantic_core import from_json

from store.reporters import Heading

_VERSION: Final = 1
_LARGEST: Final = 2**62
_LONGEST_NAME: Final = 200


class NoBatch(Exception):
    """A message that cannot be understood as a batch; the text says why."""


@dataclass(frozen=True, slots=True)
class ReportBatch:
    """``events`` are not looked at yet: one that makes no sense is refused alone."""

    heading: Heading
    groups: dict[str, str]
    events: list[Any]


def read_batch(body: bytes) -> ReportBatch:
    """Understands a message body. Raises NoBatch."""
    try:
        value = from_json(body, allow_inf_nan=False)
    except ValueError as error:
        raise NoBatch(f"it is not JSON: {error}") from None
    if not isinstance(value, dict) or value.get("v") != _VERSION:
        raise NoBatch("it is of no version that is understood here")
    events, groups, reporter = value.get("events"), value.get("groups") or {}, value.get("reporter")
    if not isinstance(events, list) or not isinstance(groups, dict):
        raise NoBatch("it has no list of events")
    if not isinstance(reporter, str) or not 0 < len(reporter) <= _LONGEST_NAME or "\0" in reporter:
        raise NoBatch("it does not say who sent it")
    heading = Heading(reporter, _number(value.get("seq"), 1), _number(value.get("dropped", 0), 0))
    return ReportBatch(heading, groups, events)


def _number(value: Any, least: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value < _LARGEST:
        raise NoBatch(f"it counts with {value!r}")
    return int(value)
