"""A circuit breaker's state machine, pure: the clock is passed in, and nothing here waits, locks or tells.

closed --failures--> open --reset seconds--> half-open --success--> closed
                       ^------------failure------'
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass
from enum import Enum, StrEnum
from typing import Final

from topology.errors import ContractError

_BUCKETS: Final = 10
_LONGEST: Final = 30 * 86_400.0


class State(StrEnum):
    """What a breaker says to a call: come in, stay out, or a few may try."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half_open"


class Verdict(Enum):
    """What the end of a call says of the service."""

    WORKS = "works"
    FAILED = "failed"
    NOTHING = "nothing"


@dataclass(frozen=True, slots=True)
class Policy:
    """When a breaker opens and closes. Raises ContractError for what makes no sense.

    It opens after ``failures`` in a row; with ``rate``, after ``failures`` within ``window`` seconds that are at least
    this share of the calls that ended then. ``reset`` seconds later at most ``probes`` calls at a time may try.
    """

    failures: int = 5
    reset: float = 60.0
    probes: int = 3
    rate: float | None = None
    window: float = 60.0

    def __post_init__(self) -> None:
        for name in ("failures", "probes"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ContractError(f"a breaker's {name} is {value!r}: a whole number above zero is needed")
        for name in ("reset", "window"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= _LONGEST:
                raise ContractError(f"a breaker's {name} is {value!r}: seconds above zero are needed, 30 days at most")
        if self.rate is not None and not 0 < self.rate <= 1:
            raise ContractError(f"a breaker's rate is {self.rate!r}: a share above 0, and 1 at most, is needed")

    @property
    def pause(self) -> float:
        """Seconds after which a call that found no room among the probes may ask again: 0.1 to 5."""
        return min(5.0, max(0.1, self.reset / 20))


class Call:
    """One admitted call, to be ended once. ``phase`` is that of the circuit when it began."""

    __slots__ = ("began", "ended", "phase")

    def __init__(self, phase: int, began: float) -> None:
        self.phase = phase
        self.began = began
        self.ended = False


class Circuit:
    """The state, and what leads from one to the next. All times are seconds of one clock that never goes back.

    A call that ends in another phase than it began in says nothing: its news is older than the state. ``guarded``
    circuits let no probe in before `permit`: somebody else decides which of several processes may try.
    """

    def __init__(self, policy: Policy) -> None:
        self.policy = policy
        self.state = State.CLOSED
        self.since: float | None = None
        """When the state was entered; None for one that has never changed."""
        self.until = 0.0
        """Where it is open: when it becomes half-open."""
        self.phase = 0
        """Counts the changes of state."""
        self.failures = 0
        """Where it is closed: failures in a row, or within the window. Else: how many opened it."""
        self.reason = ""
        self.guarded = False
        self._permitted = True
        self._probes: dict[Call, float] = {}
        self._window: deque[tuple[float, list[int]]] = deque()

    # -- calls -----------------------------------------------------------------------------------------------------

    def admit(self, now: float) -> Call | None:
        """Lets a call in, or not."""
        if self.state is State.CLOSED:
            return Call(self.phase, now)
        if self.wait(now) is not None:
            return None
        call = Call(self.phase, now)
        self._probes[call] = now
        return call

    def wait(self, now: float) -> float | None:
        """Seconds after which a call may be let in; None where one would be now."""
        self.tick(now)
        if self.state is State.CLOSED:
            return None
        if self.state is State.OPEN:
            return self.until - now
        if self._permitted and self.probing(now) < self.policy.probes:
            return None
        return self.policy.pause

    def probing(self, now: float) -> int:
        """How many probes count. One that has not ended after ``reset`` seconds is no longer waited for."""
        if self._probes:
            self._probes = {call: began for call, began in self._probes.items() if now - began < self.policy.reset}
        return len(self._probes)

    def end(self, call: Call, verdict: Verdict, now: float, reason: str = "") -> None:
        """The call has ended. Its place is free again, whatever it says."""
        call.ended = True
        self._probes.pop(call, None)
        if verdict is not Verdict.NOTHING:
            self.judge(call, verdict, now, reason)

    def judge(self, call: Call, verdict: Verdict, now: float, reason: str = "") -> None:
        """What a call says, should that become known after its end."""
        if call.phase != self.phase or self.state is State.OPEN:
            return
        if self.state is State.HALF_OPEN:
            if verdict is Verdict.FAILED:
                self.failures += 1
                self.open(now, self.policy.reset, reason)
            else:
                self.close(now)
        elif self._too_many(verdict is Verdict.FAILED, now):
            self.open(now, self.policy.reset, reason)

    def _too_many(self, failed: bool, now: float) -> bool:
        if self.policy.rate is None:
            self.failures = self.failures + 1 if failed else 0
            return self.failures >= self.policy.failures
        span = self.policy.window / _BUCKETS
        start = math.floor(now / span) * span
        if not self._window or self._window[-1][0] < start:
            self._window.append((start, [0, 0]))
        self._window[-1][1][failed] += 1
        while self._window[0][0] <= now - self.policy.window:
            self._window.popleft()
        ok, self.failures = (sum(counts[kind] for _, counts in self._window) for kind in (0, 1))
        return (
            failed
            and self.failures >= self.policy.failures
            and self.failures / (ok + self.failures) >= self.policy.rate
        )

    # -- states ----------------------------------------------------------------------------------------------------

    def tick(self, now: float) -> None:
        """Half-opens what has been open for long enough."""
        if self.state is State.OPEN and now >= self.until:
            self.half_open(now)

    def open(self, now: float, remaining: float, reason: str = "") -> None:
        """Opens for ``remaining`` seconds, ``reset`` at most. No effect where it is open."""
        if self.state is not State.OPEN:
            self.until = now + min(max(remaining, 0.0), self.policy.reset)
            self.reason = reason
            self._enter(State.OPEN, now)

    def half_open(self, now: float) -> None:
        """Lets probes try, or those whom `permit` lets. No effect where it is half-open."""
        if self.state is not State.HALF_OPEN:
            self._permitted = not self.guarded
            self._enter(State.HALF_OPEN, now)

    def close(self, now: float) -> None:
        """Lets everything in. No effect where it is closed."""
        if self.state is not State.CLOSED:
            self.failures = 0
            self.reason = ""
            self._enter(State.CLOSED, now)

    def permit(self, permitted: bool) -> None:
        """Whether probes may be made here."""
        self._permitted = permitted

    @property
    def permitted(self) -> bool:
        """Whether probes may be made here."""
        return self._permitted

    def guard(self, guarded: bool) -> None:
        """Whether somebody else decides about probes. Where it is half-open, they go on if nobody does any more."""
        self.guarded = guarded
        if self.state is State.HALF_OPEN:
            self._permitted = not guarded

    def _enter(self, state: State, now: float) -> None:
        self.state = state
        self.since = now
        self.phase += 1
        self._probes.clear()
        self._window.clear()
