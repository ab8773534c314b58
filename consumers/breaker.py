"""The circuit breaker that handlers use: a circuit with a clock, a lock, listeners and metrics."""

from __future__ import annotations

import asyncio
import logging
import random
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from types import TracebackType
from typing import Final, NamedTuple, Self

from consumers.circuit import Call, Circuit, Policy, State, Verdict
from consumers.dead_letter import shown
from consumers.instruments import BREAKER_REJECTED, BREAKER_STATE, BREAKER_TRANSITIONS
from consumers.outcome import AlreadyDone, Cancelled, Snoozed
from consumers.retry import is_an_answer
from topology.errors import ContractError

logger = logging.getLogger(__name__)

Counts = tuple[type[BaseException], ...] | type[BaseException] | Callable[[BaseException], bool]

_NAME: Final = re.compile(r"[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*")
_REASON_LIMIT: Final = 300
_CALLS: Final = "hareline_calls"
_DEPTH: Final = 10
_ABOUT_THE_JOB: Final = (Snoozed, Cancelled, AlreadyDone)
_NUMBER: Final = {State.CLOSED: 0, State.HALF_OPEN: 1, State.OPEN: 2}


class BreakerOpen(Snoozed):
    """The service is not to be called now. Out of a handler it puts the job off, with no attempt charged.

    ``retry_after`` is seconds, different for each so that the jobs that were put off do not all come back at once.
    """

    def __init__(self, name: str, retry_after: float, state: State = State.OPEN) -> None:
        super().__init__(retry_after, f"breaker '{name}' is {state.value.replace('_', '-')}")
        self.breaker = name
        self.retry_after = retry_after


@dataclass(frozen=True, slots=True)
class Standing:
    """A breaker as it stands.

    ``age`` is seconds in this state (None: it was never in another), ``remaining`` seconds until it becomes half-open,
    0 where it is not open.
    """

    name: str
    state: State
    age: float | None
    remaining: float
    failures: int
    reason: str
    probing: int = 0


class _Block(NamedTuple):
    """One block of the current task or thread, and the one around it."""

    call: Call
    outer: _Block | None


Listener = Callable[[Standing, bool], None]
"""Called at each change of state with whether it came about here, under the breaker's lock, in any thread."""


class Breaker:
    """Guards one external service: ``async with breaker:``, or ``with breaker:``, around what calls it.

    It opens after ``failures`` failed calls in a row; with ``rate``, once ``failures`` calls within the last ``window``
    seconds failed and they are at least that share of the calls. While it is open the block raises BreakerOpen before
    it begins. ``reset`` seconds later it is half-open: at most ``probes`` calls at a time may try; the first that
    succeeds closes it, the first that fails opens it again.

    ``counts`` says which errors are the service's failures: exception classes, or a function of the error. What it
    leaves out is an answer, as success is. By default every Exception counts but `Permanent` and an HTTP response of
    4xx (408, 425 and 429 count). What concerns the job alone (put off, cancelled, shut down) says nothing. Blocks may
    nest and run at the same time, in tasks and threads. Raises ContractError for arguments that make no sense.
    """

    def __init__(
        self,
        name: str,
        failures: int = 5,
        reset: float = 60.0,
        probes: int = 3,
        *,
        rate: float | None = None,
        window: float = 60.0,
        counts: Counts | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if _NAME.fullmatch(name) is None or len(name) > 100:  # noqa: PLR2004 - with the namespace below AMQP's 255
            raise ContractError(
                f"a breaker's name is '{name}': use letters, digits, _ and -, with dots between, 100 at most"
            )
        self.name = name
        self.policy = Policy(failures, reset, probes, rate, window)
        self._counts = counts
        self._clock = clock
        self._circuit = Circuit(self.policy)
        self._lock = threading.RLock()
        self._listeners: list[Listener] = []
        self._block: ContextVar[_Block | None] = ContextVar(f"breaker {name}", default=None)
        self._missed = False

    # -- calls -----------------------------------------------------------------------------------------------------

    def __enter__(self) -> Self:
        outer = self._block.get()
        # Within a block of its own the breaker has been asked already.
        call = outer.call if outer is not None and not outer.call.ended else self._admitted()
        self._block.set(_Block(call, outer))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        block = self._block.get()
        if block is None:
            return  # left in another context than it was entered in: there the call is not known
        self._block.set(block.outer)
        if block.outer is not None and block.outer.call is block.call:
            return
        verdict = self._verdict(error)
        if isinstance(error, asyncio.CancelledError):
            # Whether it was a timeout that cut the call off shows further out only: see `blame`.
            vars(error).setdefault(_CALLS, []).append((self, block.call))
        reason = _described(error) if verdict is Verdict.FAILED else ""
        with self._change(local=True) as now:
            self._circuit.end(block.call, verdict, now, reason)

    async def __aenter__(self) -> Self:
        return self.__enter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.__exit__(kind, error, trace)

    def _admitted(self) -> Call:
        with self._change(local=True) as now:
            call = self._circuit.admit(now)
            if call is None:
                raise self._refused(now)
            return call

    def refusal(self) -> BreakerOpen | None:
        """What a block would raise now, or None."""
        if self._circuit.state is State.CLOSED:
            return None
        with self._change(local=True) as now:
            return None if self._circuit.wait(now) is None else self._refused(now)

    def _refused(self, now: float) -> BreakerOpen:
        wait = self._circuit.wait(now) or 0.0
        spread = self.policy.reset / 10 if self._circuit.state is State.OPEN else self.policy.pause
        self._missed |= self._circuit.state is State.HALF_OPEN
        BREAKER_REJECTED.add(1, {"breaker": self.name})
        return BreakerOpen(self.name, wait + spread * random.random(), self._circuit.state)  # noqa: S311 - no secret

    def _verdict(self, error: BaseException | None) -> Verdict:
        if error is None:
            return Verdict.WORKS
        if not isinstance(error, Exception) or isinstance(error, _ABOUT_THE_JOB):
            return Verdict.NOTHING
        try:
            if self._counts is None:
                failed = not is_an_answer(error)
            elif isinstance(self._counts, type | tuple):
                failed = isinstance(error, self._counts)
            else:
                failed = bool(self._counts(error))
        except Exception:
            logger.exception("breaker '%s': whether its error counts cannot be said, so it does", self.name)
            failed = True
        return Verdict.FAILED if failed else Verdict.WORKS

    def cut_off(self, call: Call, reason: str) -> None:
        """A call that had been cancelled was so by a timeout: the service did not answer in time."""
        with self._change(local=True) as now:
            self._circuit.judge(call, Verdict.FAILED, now, reason)

    # -- state -----------------------------------------------------------------------------------------------------

    @property
    def state(self) -> State:
        """The state now."""
        return self.standing().state

    @property
    def number(self) -> int:
        """The state as metrics have it: 0 closed, 1 half-open, 2 open."""
        return _NUMBER[self.state]

    def standing(self) -> Standing:
        """Everything about it."""
        with self._change(local=True) as now:
            return self._standing(now)

    def room(self, most: int) -> int:
        """How many of ``most`` jobs that need the service are to run at a time: all, none, or as many as may try."""
        state = self.state
        if state is State.CLOSED:
            return most
        return min(most, self.policy.probes) if state is State.HALF_OPEN and self._circuit.permitted else 0

    def listen(self, listener: Listener) -> Callable[[], None]:
        """Has ``listener`` called at each change; returns what ends that."""
        self._listeners.append(listener)
        return lambda: self._listeners.remove(listener)

    # -- what other replicas say -----------------------------------------------------------------------------------

    def follow(self, state: State, remaining: float, failures: int, reason: str, age: float = 0.0) -> None:
        """Takes over a state that a replica has been in for ``age`` seconds."""
        with self._change(local=False) as now:
            phase = self._circuit.phase
            if state is State.OPEN:
                if self._circuit.state is not State.OPEN:
                    self._circuit.failures = failures
                self._circuit.open(now, remaining, reason)
            elif state is State.HALF_OPEN:
                self._circuit.half_open(now)
            else:
                self._circuit.close(now)
            if self._circuit.phase != phase:
                self._circuit.since = now - age

    def guard(self, guarded: bool) -> None:
        """Whether probes wait for `permit`."""
        with self._lock:
            self._circuit.guard(guarded)

    def permit(self, permitted: bool) -> None:
        """Whether probes may be made in this process."""
        with self._lock:
            self._circuit.permit(permitted)
            self._missed = False

    @property
    def missed(self) -> bool:
        """Whether, half-open, it has refused a call since the last `permit`."""
        return self._missed

    def _change(self, *, local: bool) -> _Changing:
        return _Changing(self, local)

    def _standing(self, now: float) -> Standing:
        c = self._circuit
        remaining = max(0.0, c.until - now) if c.state is State.OPEN else 0.0
        age = None if c.since is None else now - c.since
        return Standing(self.name, c.state, age, remaining, c.failures, c.reason, c.probing(now))

    def _tell(self, now: float, local: bool) -> None:
        standing = self._standing(now)
        attributes = {"breaker": self.name}
        BREAKER_STATE.set(_NUMBER[standing.state], attributes)
        BREAKER_TRANSITIONS.add(1, {**attributes, "state": standing.state.value})
        if standing.state is State.OPEN:
            logger.warning("breaker '%s' is open for %.3g s: %s", self.name, standing.remaining, standing.reason)
        else:
            logger.info("breaker '%s' is %s", self.name, standing.state.value.replace("_", "-"))
        for listener in tuple(self._listeners):
            try:
                listener(standing, local)
            except Exception:
                logger.exception("a listener of breaker '%s' failed", self.name)

    def __repr__(self) -> str:
        return f"<Breaker {self.name} {self.state.value}>"


class _Changing:
    """Holds a breaker's lock, and tells its listeners afterwards if the state has changed meanwhile."""

    __slots__ = ("_breaker", "_local", "_now", "_phase")

    def __init__(self, breaker: Breaker, local: bool) -> None:
        self._breaker = breaker
        self._local = local

    def __enter__(self) -> float:
        breaker = self._breaker
        breaker._lock.acquire()  # noqa: SLF001 - two halves of one thing
        circuit = breaker._circuit  # noqa: SLF001
        self._phase = circuit.phase
        self._now = breaker._clock()  # noqa: SLF001
        circuit.tick(self._now)
        return self._now

    def __exit__(self, *_: object) -> None:
        breaker = self._breaker
        try:
            if breaker._circuit.phase != self._phase:  # noqa: SLF001
                breaker._tell(self._now, self._local)  # noqa: SLF001
        finally:
            breaker._lock.release()  # noqa: SLF001


def blame(error: BaseException) -> None:
    """Counts the calls that a timeout cut off, where ``error`` came of one. Inside them it was a mere cancellation."""
    for link in _chain(error):
        cut = link.__cause__
        if isinstance(link, TimeoutError) and isinstance(cut, asyncio.CancelledError):
            for breaker, call in vars(cut).pop(_CALLS, ()):
                breaker.cut_off(call, "TimeoutError: no answer in time")


def _chain(error: BaseException) -> Iterator[BaseException]:
    link: BaseException | None = error
    for _ in range(_DEPTH):
        if link is None:
            return
        yield link
        link = link.__cause__ or link.__context__


def _described(error: BaseException | None) -> str:
    if error is None:
        return ""
    text = f"{type(error).__name__}: {shown(error)}".removesuffix(": ")
    return text[:_REASON_LIMIT].encode(errors="backslashreplace").decode()[:_REASON_LIMIT]
