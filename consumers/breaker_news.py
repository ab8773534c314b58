"""What replicas tell each other of their breakers, as JSON on the events exchange. Pure; docs/reference/messages.md."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Final

from consumers.breaker import Standing
from consumers.circuit import State

OPENED: Final = "breaker.opened"
HALF_OPEN: Final = "breaker.half_open"
CLOSED: Final = "breaker.closed"
STATE: Final = "breaker.state"
ASK: Final = "breaker.ask"

EVENT_OF: Final = {State.OPEN: OPENED, State.HALF_OPEN: HALF_OPEN, State.CLOSED: CLOSED}
_CHANGES: Final = frozenset(EVENT_OF.values())
_STATE_OF: Final = {event: state for state, event in EVENT_OF.items()}

PATTERN: Final = "breaker.#"
ASK_KEY: Final = "breaker"
"""Routing key of a question: that of news is ``breaker.<name>``."""
_TEXT: Final = 1000
_LONGEST: Final = 366 * 86_400.0


@dataclass(frozen=True, slots=True)
class News:
    """A change of state (OPENED, HALF_OPEN, CLOSED), a state as it stands (STATE), or a question for states (ASK).

    ``worker`` is who says it, ``seq`` the how-manieth word of that worker. ``everything`` asks for breakers too that
    never changed. ``standing`` is None in a question.
    """

    event: str
    worker: str
    seq: int
    at: float
    standing: Standing | None = None
    everything: bool = False

    @property
    def is_change(self) -> bool:
        """Whether it tells of something that happens now."""
        return self.event in _CHANGES

    @property
    def routing_key(self) -> str:
        """Where it goes on the events exchange."""
        return ASK_KEY if self.standing is None else f"breaker.{self.standing.name}"

    def encoded(self) -> bytes:
        """The body."""
        body: dict[str, Any] = {"v": 1, "event": self.event, "worker": self.worker, "seq": self.seq, "at": self.at}
        if self.standing is None:
            body["everything"] = self.everything
        else:
            s = self.standing
            body |= {
                "name": s.name,
                "state": s.state.value,
                "age": s.age,
                "remaining": s.remaining,
                "until": self.at + s.remaining if s.state is State.OPEN else None,
                "failures": s.failures,
                "reason": s.reason,
            }
        return json.dumps(body, separators=(",", ":")).encode()


def decode(body: bytes) -> News | None:
    """The news in a body; None for what makes no sense, whoever sent it."""
    try:
        said = json.loads(body)
        event, worker = _text(said["event"]), _text(said["worker"])
        seq, at = _number(said["seq"]), _number(said["at"])
        if event == ASK:
            return News(event, worker, int(seq), at, everything=said.get("everything") is True)
        if event != STATE and event not in _CHANGES:
            return None
        state = State(said["state"])
        if _STATE_OF.get(event, state) is not state:
            return None
        age = None if said["age"] is None else min(_number(said["age"]), _LONGEST)
        standing = Standing(
            name=_text(said["name"]),
            state=state,
            age=age,
            remaining=min(_number(said["remaining"]), _LONGEST),
            failures=int(_number(said["failures"])),
            reason=_text(said["reason"]),
        )
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, OverflowError):
        return None
    return News(event, worker, int(seq), at, standing)


def applies(news: News, own: Standing) -> bool:
    """Whether a replica's news is to be taken over. A state as it stands yields to one that is younger.

    Ages are compared, not times: the clocks of two machines need not agree.
    """
    theirs = news.standing
    if theirs is None or theirs.state is own.state:
        return False
    if news.is_change:
        return True
    return theirs.age is not None and (own.age is None or theirs.age < own.age)


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError
    return value[:_TEXT]


def _number(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1e15:  # noqa: PLR2004 - NaN too
        raise TypeError
    return float(value)
