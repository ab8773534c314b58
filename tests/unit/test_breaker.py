"""The breaker in a handler's hands: blocks in tasks and threads, what counts, what is told."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from consumers.breaker import Breaker, Standing, blame
from consumers.circuit import State
from consumers.outcome import Cancelled, Permanent, Snooze, Transient
from consumers.retry import classify
from hareline import BreakerOpen, JobType, Retry, Snoozed
from tests.lab import Number
from tests.meters import measured
from topology.errors import ContractError


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def fail(breaker: Breaker, error: BaseException | None = None, times: int = 1) -> None:
    for _ in range(times):
        with pytest.raises(BaseException), breaker:  # noqa: B017, PT011 - whatever it is
            raise error or ConnectionError("refused")


def opened(clock: Clock, name: str = "smtp", **options: object) -> Breaker:
    breaker = Breaker(name, clock=clock, **options)  # type: ignore[arg-type]
    fail(breaker, times=breaker.policy.failures)
    assert breaker.state is State.OPEN
    return breaker


def status_error(status: int) -> httpx.HTTPStatusError:
    request = httpx.Request("GET", "http://shop.test/")
    return httpx.HTTPStatusError("no", request=request, response=httpx.Response(status, request=request))


# -- blocks ------------------------------------------------------------------------------------------------------------


async def test_an_open_breaker_refuses_before_the_block_begins(clock: Clock) -> None:
    """With seconds until it is worth trying; the executor puts the job off by them and charges nothing."""
    breaker = opened(clock)
    clock.now += 20
    with pytest.raises(BreakerOpen, match="'smtp' is open") as raised:
        async with breaker:
            pytest.fail("it ran")
    assert 40 <= raised.value.retry_after <= 46
    outcome = classify(raised.value, Retry(), 1)
    assert isinstance(outcome, Snooze)
    assert outcome.after == raised.value.retry_after


def test_jobs_that_are_put_off_come_back_apart(clock: Clock) -> None:
    """Not one wait for all, and none before the breaker half-opens."""
    breaker = opened(clock)
    waits = []
    for _ in range(200):
        refusal = breaker.refusal()
        assert refusal is not None
        waits.append(refusal.retry_after)
    assert min(waits) >= 60
    assert max(waits) <= 66
    assert max(waits) - min(waits) > 3


async def test_the_first_probe_that_succeeds_closes_it(clock: Clock) -> None:
    """And at most three may try before."""
    breaker = opened(clock)
    clock.now += 60
    release = asyncio.Event()

    async def probe() -> None:
        async with breaker:
            await release.wait()

    probes = [asyncio.create_task(probe()) for _ in range(5)]
    refused, _ = await asyncio.wait(probes, return_when=asyncio.FIRST_COMPLETED)
    await asyncio.sleep(0)
    assert breaker.state is State.HALF_OPEN
    assert breaker.standing().probing == 3
    release.set()
    ends = await asyncio.gather(*probes, return_exceptions=True)
    assert sum(isinstance(end, BreakerOpen) for end in ends) == 2
    assert breaker.state is State.CLOSED
    assert breaker.refusal() is None
    assert refused


async def test_a_block_within_a_block_needs_no_second_place(clock: Clock) -> None:
    """A helper that guards itself works inside a guarded handler, also as the only probe; it counts once."""
    breaker = opened(clock, probes=1)
    clock.now += 60
    async with breaker:
        with breaker:
            assert breaker.standing().probing == 1
        assert breaker.state is State.HALF_OPEN
    assert breaker.state is State.CLOSED
    for _ in range(4):
        with pytest.raises(ConnectionError):
            async with breaker:
                with breaker:
                    raise ConnectionError
    assert breaker.state is State.CLOSED


async def test_a_task_that_outlives_its_block_asks_for_itself(clock: Clock) -> None:
    """It inherits the block, but that has ended."""
    breaker = opened(clock, probes=1)
    clock.now += 60
    go = asyncio.Event()

    async def later() -> None:
        await go.wait()
        async with breaker:
            raise ConnectionError

    async with breaker:
        task = asyncio.create_task(later())
    for _ in range(4):
        fail(breaker)
    go.set()
    with pytest.raises(ConnectionError):
        await task
    assert breaker.state is State.OPEN


def test_threads_may_share_it(clock: Clock) -> None:
    """Eight threads, whose calls fail at first: never more than three probes inside, and in the end it is closed."""
    breaker = Breaker("threads", failures=5, reset=0.5, probes=3, clock=clock)
    inside, most, lock = 0, 0, threading.Lock()

    def work(_: int) -> None:
        nonlocal inside, most
        for turn in range(300):
            try:
                with breaker:
                    with lock:
                        if breaker.state is State.HALF_OPEN:
                            inside += 1
                            most = max(most, breaker.standing().probing)
                    if turn < 250:
                        raise ConnectionError  # noqa: TRY301 - the service's
            except BreakerOpen:
                with lock:
                    clock.now += 0.1
            except ConnectionError:
                pass

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(8)))
    assert inside > 0
    assert 0 < most <= 3
    assert breaker.state is State.CLOSED


# -- what counts -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "error",
    [Transient("later"), ConnectionError(), TimeoutError(), ValueError("?"), status_error(503), status_error(429)],
)
def test_these_are_failures_of_the_service(clock: Clock, error: Exception) -> None:
    """Five of them open it."""
    breaker = Breaker("smtp", clock=clock)
    fail(breaker, error, 5)
    assert breaker.state is State.OPEN
    assert type(error).__name__ in breaker.standing().reason


@pytest.mark.parametrize("error", [Permanent("no such user"), status_error(404), PermissionError()])
def test_these_are_answers(clock: Clock, error: Exception) -> None:
    """The service works: it says no. As a probe they close the breaker."""
    breaker = Breaker("smtp", clock=clock)
    fail(breaker, error, 20)
    assert breaker.state is State.CLOSED
    breaker = opened(clock)
    clock.now += 60
    fail(breaker, error)
    assert breaker.state is State.CLOSED


@pytest.mark.parametrize(
    "error", [Snoozed(1.0), Cancelled("withdrawn"), BreakerOpen("another", 1.0), asyncio.CancelledError(), SystemExit()]
)
def test_these_say_nothing(clock: Clock, error: BaseException) -> None:
    """They neither open nor close it, and a probe's place is free again."""
    breaker = Breaker("smtp", clock=clock)
    fail(breaker, error, 20)
    assert breaker.state is State.CLOSED
    breaker = opened(clock, probes=1)
    clock.now += 60
    fail(breaker, error)
    assert breaker.state is State.HALF_OPEN
    assert breaker.standing().probing == 0


def test_the_user_says_what_counts(clock: Clock) -> None:
    """By classes, or by a function; one that fails itself counts."""
    by_class = Breaker("a", counts=(ConnectionError, TimeoutError), clock=clock)
    fail(by_class, ValueError(), 20)
    assert by_class.state is State.CLOSED
    fail(by_class, TimeoutError(), 5)
    assert by_class.state is State.OPEN
    by_function = Breaker("b", counts=lambda error: "quota" in str(error), clock=clock)
    fail(by_function, ValueError("bad address"), 20)
    assert by_function.state is State.CLOSED
    fail(by_function, ValueError("over quota"), 5)
    assert by_function.state is State.OPEN
    broken = Breaker("c", counts=lambda error: error.nothing, clock=clock)  # type: ignore[attr-defined]
    fail(broken, ValueError(), 5)
    assert broken.state is State.OPEN


async def test_a_timeout_outside_of_the_block_counts_and_another_cancel_does_not(clock: Clock) -> None:
    """A service that hangs is cut off by the job's timeout; inside the block that is a mere cancellation."""
    breaker = Breaker("slow", failures=1, clock=clock)
    with pytest.raises(ConnectionError):
        try:
            async with asyncio.TaskGroup() as group:

                async def hang() -> None:
                    async with breaker:
                        await asyncio.sleep(60)

                group.create_task(hang())
                await asyncio.sleep(0)
                raise ConnectionError  # noqa: TRY301 - the neighbour's: the group cancels the call
        except* ConnectionError as errors:
            blame(errors)
            raise errors.exceptions[0] from None
    assert breaker.state is State.CLOSED
    with pytest.raises(TimeoutError) as raised:
        async with asyncio.timeout(0.01), breaker:
            await asyncio.sleep(60)
    assert breaker.state is State.CLOSED
    wrapped = Transient("too slow")
    wrapped.__cause__ = raised.value
    blame(wrapped)
    assert breaker.state is State.OPEN
    clock.now += 60
    blame(wrapped)
    assert breaker.state is State.HALF_OPEN


# -- what is told ------------------------------------------------------------------------------------------------------


def test_changes_are_told_in_order_and_counted(clock: Clock) -> None:
    """Each once, with whether it came about here; a listener that fails keeps nobody from anything."""
    told: list[tuple[State, bool]] = []

    def broken(_: Standing, __: bool) -> None:
        raise RuntimeError

    measured("hareline.breaker.state")  # the reader must be there before the first measurement
    breaker = Breaker("told", clock=clock)
    breaker.listen(broken)
    stop = breaker.listen(lambda standing, local: told.append((standing.state, local)))
    fail(breaker, times=5)
    assert measured("hareline.breaker.state", breaker="told") == 2
    assert breaker.refusal() is not None
    assert measured("hareline.breaker.rejected", breaker="told") == 1
    breaker.follow(State.OPEN, 10.0, 5, "again")
    clock.now += 60
    assert breaker.state is State.HALF_OPEN
    breaker.follow(State.CLOSED, 0.0, 0, "", age=3.0)
    assert breaker.standing().age == 3.0
    assert told == [(State.OPEN, True), (State.HALF_OPEN, True), (State.CLOSED, False)]
    assert measured("hareline.breaker.transitions", breaker="told", state="open") == 1
    assert measured("hareline.breaker.state", breaker="told") == 0
    stop()
    fail(breaker, times=5)
    assert len(told) == 3


def test_a_replica_cannot_hold_it_open_for_longer_than_its_own_reset(clock: Clock) -> None:
    """Whatever the other's policy, or its message, says."""
    breaker = Breaker("smtp", reset=60, clock=clock)
    breaker.follow(State.OPEN, 1e9, 5, "theirs")
    assert breaker.standing().remaining == 60


def test_how_many_jobs_there_is_room_for(clock: Clock) -> None:
    """All, none, as many as may try; none where another replica tries."""
    breaker = Breaker("smtp", clock=clock)
    assert breaker.room(20) == 20
    fail(breaker, times=5)
    assert breaker.room(20) == 0
    clock.now += 60
    assert breaker.room(20) == 3
    assert breaker.room(2) == 2
    breaker.guard(True)
    assert breaker.room(20) == 0
    breaker.permit(True)
    assert breaker.room(20) == 3


@pytest.mark.parametrize("name", ["", "a b", "a..b", "#", "x" * 101, "ü"])
def test_a_name_must_do_as_a_routing_key(name: str) -> None:
    """It is one."""
    with pytest.raises(ContractError, match="name"):
        Breaker(name)


def test_an_app_takes_each_breaker_once() -> None:
    """Two of one name would not know of each other."""
    from hareline import App  # noqa: PLC0415

    one, two = JobType("one", Number), JobType("two", Number)
    smtp, crm = Breaker("smtp"), Breaker("crm")
    app = App(job_types=[one, two], breakers=[crm])
    app.handler(one, breaker=smtp)(lambda _: None)
    app.handler(two, breaker=(smtp, crm))(lambda _: None)
    assert set(app.registry.breakers) == {smtp, crm}
    three = JobType("three", Number)
    with pytest.raises(ContractError, match="two breakers are called 'smtp'"):
        app.handler(three, breaker=Breaker("smtp"))(lambda _: None)
