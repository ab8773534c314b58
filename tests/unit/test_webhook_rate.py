"""The token bucket: what passes is bounded by rate and burst, whatever the clock does."""

from __future__ import annotations

import math
from itertools import accumulate
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hareline import HarelineError, WebhookSource
from producers.webhooks.rate import Bucket, Rate

pytestmark = pytest.mark.machine


def test_a_burst_passes_and_then_one_at_a_time() -> None:
    bucket = Bucket(Rate(2.0, burst=3))
    assert [bucket.take(100.0) for _ in range(4)] == [0, 0, 0, 0.5]
    assert bucket.take(100.25) == pytest.approx(0.25)
    assert bucket.take(100.5) == 0
    assert bucket.take(100.5) > 0
    assert [bucket.take(1000.0) > 0 for _ in range(4)] == [False, False, False, True], "never more than the burst"


def test_a_clock_that_jumps_gives_a_burst_at_most_and_takes_nothing() -> None:
    bucket = Bucket(Rate(1.0, burst=5))
    while bucket.take(10_000.0) == 0:
        pass
    assert bucket.take(6_400.0) == 1.0, "an hour back gives nothing"
    assert bucket.take(6_401.0) == 0, "and after it time goes on"
    assert sum(bucket.take(10_001.0) == 0 for _ in range(20)) == 5


@given(
    st.floats(0.1, 1000),
    st.integers(1, 50),
    st.lists(st.floats(0, 10), min_size=1, max_size=100),
)
def test_no_more_than_burst_and_rate_let_through(per_second: float, burst: int, pauses: list[float]) -> None:
    bucket = Bucket(Rate(per_second, burst))
    times = list(accumulate(pauses))
    passed = sum(bucket.take(now) == 0 for now in times)
    assert passed <= burst + (times[-1] - times[0]) * per_second + 1e-6
    assert passed >= min(len(times), burst)


@given(st.floats(0.1, 1000), st.integers(1, 50))
def test_who_waits_as_long_as_told_gets_through(per_second: float, burst: int) -> None:
    bucket, now = Bucket(Rate(per_second, burst)), 0.0
    while (wait := bucket.take(now)) == 0:
        pass
    assert bucket.take(math.nextafter(now + wait, math.inf) + 1e-9) == 0


@pytest.mark.parametrize("wrong", [0, -1, math.nan, math.inf, True, "5", Rate])
def test_a_rate_that_lets_nothing_through_is_refused(wrong: Any) -> None:
    with pytest.raises(HarelineError, match="rate is"):
        WebhookSource("x", rate=wrong)


@pytest.mark.parametrize("wrong", [-1, 1.5, True])
def test_a_burst_that_is_none_is_refused(wrong: Any) -> None:
    with pytest.raises(HarelineError, match="burst is"):
        Rate(5, wrong)


def test_a_number_is_a_rate_with_a_seconds_burst() -> None:
    assert WebhookSource("x", rate=2.5).rate == Rate(2.5, 3)
    assert Rate(0.01).burst == 1
