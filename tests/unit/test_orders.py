"""Every check of an order that needs no broker: a typed error, before anything is sent."""

from __future__ import annotations

import math
from datetime import UTC, datetime, timedelta, tzinfo
from typing import Any

import pytest

from producers.orders import OrderBook, job_id_of
from topology import ladder
from topology.contract import JobType
from topology.errors import EnqueueError, OptionInvalid, PayloadInvalid, PayloadTooLarge
from topology.settings import Settings

PLAIN = JobType("plain", dict)
URGENT = JobType("urgent", dict, priority=True)
BOOK = OrderBook(Settings(namespace="shop", max_payload=100, publish_timeout=7.0))


class Nowhere(tzinfo):
    """A zone that does not know its own offset."""

    def utcoffset(self, _: datetime | None) -> None:
        return None


@pytest.mark.parametrize(
    "options",
    [
        {"priority": 10},
        {"priority": 300},
        {"priority": -1},
        {"priority": True},
        {"priority": 5.0},
        {"priority": "5"},
        {"delay": -1},
        {"delay": -0.001},
        {"delay": math.nan},
        {"delay": math.inf},
        {"delay": -math.inf},
        {"delay": 10**400},
        {"delay": ladder.MAX_DELAY + 1},
        {"delay": True},
        {"delay": "5"},
        {"delay": 1, "at": datetime.now(UTC)},
        {"delay": 0, "at": datetime.now(UTC)},
        {"at": datetime(2030, 1, 1)},  # noqa: DTZ001 - the point
        {"at": datetime(2030, 1, 1, tzinfo=Nowhere())},
        {"at": datetime(9999, 1, 1, tzinfo=UTC)},
        {"at": "2030-01-01T00:00:00Z"},
        {"at": 1893456000},
        {"key": ""},
        {"key": 5},
        {"key": "\ud800"},
        {"correlation_id": ""},
        {"correlation_id": "é" * 128},
        {"correlation_id": "\ud800"},
        {"correlation_id": 5},
    ],
    ids=str,
)
def test_an_option_out_of_range_is_an_error(options: dict[str, Any]) -> None:
    """Priority, delay, time, key and correlation id: OptionInvalid, whose text shows the value."""
    with pytest.raises(OptionInvalid):
        BOOK.message(URGENT, {}, **options)


def test_a_priority_on_a_type_without_priorities_says_how_to_get_them() -> None:
    """Silently ignoring it would be worse, and a quorum queue might even honour it."""
    with pytest.raises(OptionInvalid, match=r"priority=True.*topology migrate"):
        BOOK.message(PLAIN, {}, priority=5)
    assert BOOK.message(PLAIN, {}).properties.priority is None


def test_a_type_with_priorities_gets_the_middle_one_unless_told() -> None:
    """4 of 0 to 9: RabbitMQ 4.0 counts 0 to 4 as its lower class, 5 and up as the higher."""
    assert BOOK.message(URGENT, {}).properties.priority == 4
    assert [BOOK.message(URGENT, {}, priority=level).properties.priority for level in (0, 9)] == [0, 9]


def test_a_time_that_has_passed_means_now() -> None:
    """A job that is late is not refused for it."""
    message = BOOK.message(PLAIN, {}, at=datetime.now(UTC) - timedelta(days=1))
    assert (message.exchange, message.routing_key) == ("shop.jobs", "plain")
    assert BOOK.message(PLAIN, {}, delay=0).exchange == "shop.jobs"


def test_a_delay_of_a_microsecond_is_a_delay_and_the_longest_one_fits() -> None:
    """Rounded up to a unit of the ladder: late, never early."""
    assert BOOK.message(PLAIN, {}, delay=1e-3).exchange == "shop.delay.00"
    assert BOOK.message(PLAIN, {}, delay=ladder.MAX_DELAY).exchange == f"shop.delay.{ladder.LEVELS - 1}"


def test_the_limit_of_a_payload_is_the_setting_and_counts_encoded_bytes() -> None:
    """One byte over is refused, with the setting's name; exactly the limit is fine."""
    exact = {"a": "x" * (100 - len('{"a":""}'))}
    assert len(BOOK.message(PLAIN, exact).body) == 100
    with pytest.raises(PayloadTooLarge, match=r"101 bytes, the limit is 100 .*HARELINE_MAX_PAYLOAD"):
        BOOK.message(PLAIN, {"a": exact["a"] + "x"})
    with pytest.raises(PayloadTooLarge):
        BOOK.message(PLAIN, {"a": "é" * 60})


def test_the_payload_is_checked_before_the_options() -> None:
    """All are EnqueueErrors: a caller may catch the one."""
    with pytest.raises(PayloadInvalid):
        BOOK.message(PLAIN, object(), priority=300)
    for wrong in ({"priority": 1}, {"delay": -1}):
        with pytest.raises(EnqueueError):
            BOOK.message(PLAIN, {}, **wrong)


def test_a_key_decides_the_id_and_without_one_each_job_has_its_own() -> None:
    """The correlation id is the job's own unless given."""
    first, again, other = (BOOK.message(PLAIN, {}, key=key) for key in ("a", "a", "b"))
    assert job_id_of(first) == job_id_of(again) != job_id_of(other)
    assert job_id_of(BOOK.message(PLAIN, {})) != job_id_of(BOOK.message(PLAIN, {}))
    assert first.properties.correlation_id == job_id_of(first)
    assert BOOK.message(PLAIN, {}, correlation_id="order-1").properties.correlation_id == "order-1"
    assert BOOK.message(PLAIN, {}, correlation_id="x" * 255).properties.correlation_id == "x" * 255


@pytest.mark.parametrize("seconds", [-1, math.nan, True, "5", -math.inf], ids=str)
def test_a_timeout_that_is_no_time_is_refused(seconds: Any) -> None:
    """As any option."""
    with pytest.raises(OptionInvalid, match="timeout"):
        BOOK.timeout(seconds)


def test_a_timeout_is_the_setting_unless_given_and_never_beyond_all_clocks() -> None:
    """Infinity is taken as a year, since an event loop's clock cannot hold it."""
    assert (BOOK.timeout(None), BOOK.timeout(0), BOOK.timeout(2.5)) == (7.0, 0.0, 2.5)
    assert BOOK.timeout(math.inf) == BOOK.timeout(10**400) == 365 * 86400
