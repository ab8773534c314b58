"""What an error means, and when the next attempt is due."""

from __future__ import annotations

import asyncio
import math
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from consumers.outcome import Cancelled, Dead, Dropped, Permanent, Retried, Snooze, Snoozed, Transient
from consumers.retry import backoff, classify, retry_after
from hareline import Retry
from topology.ladder import MAX_DELAY

NOW = datetime(2024, 2, 29, 12, 0, tzinfo=UTC)
STEADY = Retry(attempts=5, base=2.0, factor=3.0, cap=100.0, jitter=0.0)
TWO_FOUR = STEADY.base * STEADY.factor

finite = st.floats(min_value=0, max_value=1e300)
policies = st.builds(
    Retry,
    attempts=st.integers(1, 2**31),
    base=finite,
    factor=st.one_of(st.floats(min_value=1, max_value=1e300), st.integers(1, 10**6)),
    cap=finite,
    jitter=st.floats(0, 1),
)


class Response:
    """As much of an HTTP response as a classification looks at."""

    def __init__(self, status: int, **headers: str) -> None:
        self.status_code = status
        self.headers = {name.replace("_", "-"): value for name, value in headers.items()}


class HttpError(Exception):
    """In the shape of httpx's and requests' errors."""

    def __init__(self, response: Response) -> None:
        super().__init__(f"status {response.status_code}")
        self.response = response


class AiohttpError(Exception):
    """In the shape of aiohttp's errors."""

    def __init__(self, status: int) -> None:
        super().__init__("aiohttp")
        self.status = status
        self.headers = None


# -- backoff -----------------------------------------------------------------------------------------------------------


@given(policies, st.integers(1, 2**31), st.floats(0, 1))
def test_backoff_stays_within_jitter_of_the_capped_delay(retry: Retry, attempt: int, drawn: float) -> None:
    """For any policy and attempt, absurd ones too: finite, not negative, near the cap at most, within the ladder."""
    delay = backoff(retry, attempt, lambda: drawn)
    assert 0 <= delay <= MAX_DELAY
    assert delay <= retry.cap * (1 + retry.jitter) * (1 + 1e-9)


@given(st.floats(0.001, 100), st.floats(1, 10), st.floats(0, 1), st.integers(1, 5), st.floats(0, 1))
def test_backoff_grows_by_its_factor(base: float, factor: float, jitter: float, attempt: int, drawn: float) -> None:
    """Under the cap the delay is base * factor^(attempt-1), give or take the jitter."""
    retry = Retry(base=base, factor=factor, jitter=jitter, cap=1e9)
    exact = base * factor ** (attempt - 1)
    delay = backoff(retry, attempt, lambda: drawn)
    assert min(exact * (1 - jitter), MAX_DELAY) * (1 - 1e-9) <= delay <= exact * (1 + jitter) * (1 + 1e-9)


def test_backoff_with_nothing_to_start_from_is_nothing() -> None:
    """A base of zero means at once, however many attempts there were."""
    assert backoff(Retry(base=0.0, factor=1e300, jitter=0.0), 10) == 0.0


def test_backoff_draws_over_the_whole_jitter() -> None:
    """The two ends of the draw are the two ends of the jitter; the middle is the plain delay."""
    retry = Retry(base=10.0, factor=1.0, jitter=0.2)
    assert [backoff(retry, 1, lambda d=d: d) for d in (0.0, 0.5, 1.0)] == [8.0, 10.0, 12.0]


# -- classify ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "after"),
    [
        (Transient("busy"), TWO_FOUR),
        (Transient("busy", after=7.5), 7.5),
        (Transient("busy", after=-1), 0.0),
        (Transient("busy", after=1e12), MAX_DELAY),
        (Transient("busy", after=math.inf), MAX_DELAY),
        (Transient("busy", after=math.nan), TWO_FOUR),
        (Transient("busy", after="soon"), TWO_FOUR),  # type: ignore[arg-type]
        (Transient("busy", after=timedelta(seconds=9)), TWO_FOUR),  # type: ignore[arg-type]
        (ConnectionResetError("reset"), TWO_FOUR),
        (TimeoutError("slow"), TWO_FOUR),
        (ValueError("who knows"), TWO_FOUR),
        (asyncio.CancelledError(), TWO_FOUR),
        (SystemExit(3), TWO_FOUR),
        (HttpError(Response(503, retry_after="12")), 12.0),
        (HttpError(Response(503)), TWO_FOUR),
        (HttpError(Response(429, Retry_After="3")), 3.0),
        (HttpError(Response(408)), TWO_FOUR),
        (HttpError(Response(425)), TWO_FOUR),
        (HttpError(Response(500, retry_after="garbage")), TWO_FOUR),
        (AiohttpError(502), TWO_FOUR),
        (Snoozed(math.nan, "put off by garbage"), TWO_FOUR),
    ],
    ids=repr,
)
def test_what_may_pass_is_retried(error: BaseException, after: float) -> None:
    """Transient errors, connection trouble, timeouts, a server's trouble and the unknown: all run again."""
    assert classify(error, STEADY, 2) == Retried(after, error)


@pytest.mark.parametrize(
    "error",
    [
        Permanent("never"),
        PermissionError("not allowed"),
        HttpError(Response(404)),
        HttpError(Response(422, retry_after="5")),
        AiohttpError(410),
    ],
    ids=repr,
)
def test_what_cannot_pass_is_dead_at_once(error: BaseException) -> None:
    """Permanent errors, missing permissions and a client's own mistakes spend no further attempt."""
    assert classify(error, STEADY, 1) == Dead("permanent", error)


def test_unexpected_errors_follow_the_policy() -> None:
    """With ``unexpected="dead"`` what no rule knows is dead, and what a rule knows is retried all the same."""
    strict = Retry(unexpected="dead")
    unknown, known = KeyError("x"), ConnectionError("x")
    assert classify(unknown, strict, 1) == Dead("permanent", unknown)
    assert isinstance(classify(known, strict, 1), Retried)
    assert isinstance(classify(HttpError(Response(503)), strict, 1), Retried)


def test_the_apps_own_classes_come_before_what_is_known() -> None:
    """An app may call anything permanent or transient, HTTP errors and standard classes included."""
    gone, forbidden, missing = ConnectionError(), PermissionError(), HttpError(Response(404))
    assert classify(gone, STEADY, 1, permanent=[ConnectionError]) == Dead("permanent", gone)
    assert isinstance(classify(forbidden, STEADY, 1, transient=[PermissionError]), Retried)
    assert isinstance(classify(missing, STEADY, 1, transient=[HttpError]), Retried)


def test_a_handlers_word_comes_before_the_apps_classes() -> None:
    """``raise Transient`` is retried even where the app calls all exceptions permanent."""
    assert isinstance(classify(Transient("x"), STEADY, 1, permanent=[Exception]), Retried)


@pytest.mark.parametrize("attempt", [5, 6, 2**31 - 1])
def test_the_last_attempt_is_the_last(attempt: int) -> None:
    """A transient error on the last attempt, or on one beyond any policy, is dead as exhausted."""
    error = Transient("still", after=1.0)
    assert classify(error, STEADY, attempt) == Dead("exhausted", error)


def test_snooze_and_cancel_are_no_failures() -> None:
    """Neither is charged, not even on the last attempt; a snooze stays within the ladder's reach."""
    assert classify(Snoozed(30.0), STEADY, 5) == Snooze(30.0, "put off by 30 s")
    assert classify(Snoozed(1e12, "x"), STEADY, 5) == Snooze(MAX_DELAY, "x")
    assert classify(Snoozed(-4.0, "x"), STEADY, 5) == Snooze(0.0, "x")
    assert classify(Cancelled("unsubscribed"), STEADY, 5) == Dropped("unsubscribed")


# -- Retry-After -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("120", 120.0),
        (" 7 ", 7.0),
        ("0", 0.0),
        (format_datetime(NOW + timedelta(seconds=90), usegmt=True), 90.0),
        (format_datetime(NOW - timedelta(days=1), usegmt=True), 0.0),
        ("9" * 400, MAX_DELAY),
        ("Fri, 31 Dec 9999 23:59:59 GMT", MAX_DELAY),
        ("-5", None),
        ("", None),
        (None, None),
        ("tomorrow", None),
        ("1.5.2", None),
    ],
)
def test_retry_after_is_a_number_or_a_date(value: str | None, seconds: float | None) -> None:
    """Seconds or an HTTP date; what is past means at once, what is unusable means nothing."""
    assert retry_after(value, NOW) == seconds


@given(st.text())
def test_no_retry_after_is_too_strange(value: str) -> None:
    """Whatever a server sends, the answer is a delay that the ladder can hold, or None."""
    seconds = retry_after(value, NOW)
    assert seconds is None or 0 <= seconds <= MAX_DELAY
