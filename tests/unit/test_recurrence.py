"""When schedules fire: fixed rates that do not drift, cron through changes of the clocks, times that were missed."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from itertools import pairwise
from zoneinfo import ZoneInfo

import pytest
from cronsim import CronSim
from hypothesis import given, settings
from hypothesis import strategies as st

from producers.recurrence import Cron, Every, Once, occurrences
from topology.errors import ScheduleInvalid

MINUTE = timedelta(minutes=1)
NEW_YEAR = datetime(2026, 1, 1, tzinfo=UTC)

# Zone, a moment some hours before a change of its clocks: forward at midnight, back at midnight, by an hour, by half.
CHANGES = {
    "Sao Paulo forward": ("America/Sao_Paulo", datetime(2017, 10, 14, 12, tzinfo=UTC)),
    "Sao Paulo back": ("America/Sao_Paulo", datetime(2018, 2, 17, 12, tzinfo=UTC)),
    "Sao Paulo forward again": ("America/Sao_Paulo", datetime(2018, 11, 3, 12, tzinfo=UTC)),
    "Lisbon forward": ("Europe/Lisbon", datetime(2026, 3, 28, 12, tzinfo=UTC)),
    "Lisbon back": ("Europe/Lisbon", datetime(2026, 10, 24, 12, tzinfo=UTC)),
    "Lord Howe forward": ("Australia/Lord_Howe", datetime(2025, 10, 4, 0, tzinfo=UTC)),
    "Lord Howe back": ("Australia/Lord_Howe", datetime(2026, 4, 4, 0, tzinfo=UTC)),
}
EXPRESSIONS = [
    "30 2 * * *",
    "0 0 * * *",
    "15 0 * * *",
    "30 1 * * *",
    "45 1 * * *",
    "0,30 0-3 * * *",
    "10 23 * * SAT",
    "0 1,2 * * *",
    "*/15 * * * *",
    "0 * * * *",
    "30 * * * *",
    "0 */2 * * *",
    "*/15 2 * * *",
    "*/15 3 * * *",
    "*/20 0 * * SUN",
    "45 */1 * * *",
]


def local(zone: str, *times: datetime | None) -> list[str]:
    return [time.astimezone(ZoneInfo(zone)).strftime("%d %H:%M %z") for time in times if time]


def series(recurrence: Cron | Every | Once, after: datetime, until: datetime) -> list[datetime]:
    found = []
    moment = recurrence.next_after(after)
    while moment is not None and moment <= until:
        found.append(moment)
        moment = recurrence.next_after(moment)
    return found


def by_the_rules(expression: str, zone: str, after: datetime, until: datetime) -> list[datetime]:
    """The rules as simply as they can be put: every minute is looked at."""
    clock = ZoneInfo(zone)

    def named(wall: datetime) -> bool:
        return next(CronSim(expression, wall - timedelta(seconds=1))) == wall

    def wall(moment: datetime) -> datetime:
        return moment.astimezone(clock).replace(tzinfo=None)

    minute, hour = expression.split()[:2]
    moments = [after + n * MINUTE for n in range(1, int((until - after) / MINUTE) + 1)]
    if minute.startswith("*") or hour.startswith("*"):
        return [moment for moment in moments if named(wall(moment))]
    fired = []
    latest = wall(after)  # the latest time that the wall has shown
    for moment in moments:
        now = wall(moment)
        if any(named(latest + n * MINUTE) for n in range(1, int((now - latest) / MINUTE) + 1)):
            fired.append(moment)
        latest = max(latest, now)
    return fired


@pytest.mark.parametrize("expression", EXPRESSIONS)
@pytest.mark.parametrize("change", CHANGES)
def test_a_change_of_the_clocks_neither_doubles_nor_loses_a_time(expression: str, change: str) -> None:
    zone, start = CHANGES[change]
    end = start + timedelta(days=2)
    assert series(Cron(expression, zone), start, end) == by_the_rules(expression, zone, start, end)


@pytest.mark.parametrize("change", CHANGES)
@given(index=st.integers(0, len(EXPRESSIONS) - 1), seconds=st.floats(0, 86_400 * 1.5))
@settings(max_examples=60, deadline=None)
def test_no_time_is_missed_wherever_one_starts(change: str, index: int, seconds: float) -> None:
    """From any moment, in the gap, the fold or a fraction of a second, the next time is that of the whole series."""
    zone, start = CHANGES[change]
    cron = Cron(EXPRESSIONS[index], zone)
    moment = start + timedelta(seconds=seconds)
    found = cron.next_after(moment)
    assert found is not None
    assert found > moment
    assert found == next(time for time in series(cron, start, moment + timedelta(days=8)) if time > moment)


def test_a_time_in_the_gap_fires_once_at_its_end() -> None:
    at_midnight = series(Cron("15 0 * * *", "America/Sao_Paulo"), *_around("Sao Paulo forward"))
    assert local("America/Sao_Paulo", *at_midnight) == ["15 01:00 -0200", "16 00:15 -0200"]
    half = series(Cron("10,20 2 * * *", "Australia/Lord_Howe"), *_around("Lord Howe forward"))
    assert local("Australia/Lord_Howe", *half) == ["05 02:30 +1100", "06 02:10 +1100", "06 02:20 +1100"]


def test_a_time_in_the_fold_fires_once_at_its_first_coming() -> None:
    assert local(
        "America/Sao_Paulo", *series(Cron("30 23 * * *", "America/Sao_Paulo"), *_around("Sao Paulo back"))
    ) == [
        "17 23:30 -0200",
        "18 23:30 -0300",
    ]
    assert local("Europe/Lisbon", *series(Cron("30 1 * * *", "Europe/Lisbon"), *_around("Lisbon back"))) == [
        "25 01:30 +0100",
        "26 01:30 +0000",
    ]


def test_stepped_and_wildcard_hours_follow_elapsed_time() -> None:
    start, end = _around("Lisbon back")
    times = series(Cron("0 * * * *", "Europe/Lisbon"), start, end)
    assert {later - earlier for earlier, later in pairwise(times)} == {timedelta(hours=1)}
    stepped = series(Cron("0 */2 * * *", "Europe/Lisbon"), *_around("Lisbon forward"))
    assert local("Europe/Lisbon", *stepped)[5:8] == ["29 00:00 +0000", "29 02:00 +0100", "29 04:00 +0100"]


def _around(change: str) -> tuple[datetime, datetime]:
    _, start = CHANGES[change]
    return start, start + timedelta(days=2)


# -- rates -------------------------------------------------------------------------------------------------------------


@given(
    interval=st.floats(0.001, 1e7),
    offset=st.floats(-1e8, 1e8),
    start=st.datetimes(datetime(1990, 1, 1), datetime(2090, 1, 1), timezones=st.just(UTC)),  # noqa: DTZ001
)
def test_a_rate_keeps_to_its_start(interval: float, offset: float, start: datetime) -> None:
    every = Every(interval, start)
    moment = start + timedelta(seconds=offset)
    found = every.next_after(moment)
    assert found is not None
    assert found > moment
    assert (found - start) % timedelta(seconds=interval) == timedelta(0)
    assert found == start or found - timedelta(seconds=interval) <= moment


def test_once_is_once() -> None:
    once = Once(NEW_YEAR)
    assert once.next_after(NEW_YEAR - MINUTE) == NEW_YEAR
    assert once.next_after(NEW_YEAR) is None


@pytest.mark.parametrize(
    "recurrence", [Every(86_400 * 300, NEW_YEAR), Cron("0 0 1 1 *"), Cron("* * * * *", "Asia/Tokyo")]
)
def test_the_calendar_has_an_end(recurrence: Every | Cron) -> None:
    assert recurrence.next_after(datetime(9999, 12, 31, 23, 59, 30, tzinfo=UTC)) is None


# -- what was missed ---------------------------------------------------------------------------------------------------

HOURLY = Every(3600, NEW_YEAR)
NOW = NEW_YEAR + timedelta(hours=10, minutes=5)
HOURS = [NEW_YEAR + timedelta(hours=n) for n in range(12)]


def test_latest_issues_the_last_one_alone() -> None:
    assert occurrences(HOURLY, HOURS[3], NOW) == ([HOURS[10]], HOURS[11])
    assert occurrences(HOURLY, HOURS[3], NOW, "latest", window=60) == ([], HOURS[11])
    assert occurrences(HOURLY, HOURS[11], NOW) == ([], HOURS[11])


def test_all_issues_them_in_order_within_its_window_and_bound() -> None:
    assert occurrences(HOURLY, HOURS[3], NOW, "all") == (HOURS[3:11], HOURS[11])
    assert occurrences(HOURLY, HOURS[3], NOW, "all", window=7300) == (HOURS[9:11], HOURS[11])
    assert occurrences(HOURLY, HOURS[3], NOW, "all", limit=2) == (HOURS[3:5], HOURS[5])
    assert occurrences(HOURLY, HOURS[3], NOW, "all", window=10) == ([], HOURS[11])


def test_skip_issues_only_what_is_on_time() -> None:
    assert occurrences(HOURLY, HOURS[3], NOW, "skip") == ([], HOURS[11])
    assert occurrences(HOURLY, HOURS[3], NOW, "skip", window=600) == ([HOURS[10]], HOURS[11])
    assert occurrences(HOURLY, HOURS[10], HOURS[10] + timedelta(seconds=20), "skip") == ([HOURS[10]], HOURS[11])


def test_once_that_is_late() -> None:
    once = Once(NEW_YEAR)
    assert occurrences(once, NEW_YEAR, NOW) == ([NEW_YEAR], None)
    assert occurrences(once, NEW_YEAR, NOW, "skip") == ([], None)


def test_ten_years_missed_cost_no_ten_years() -> None:
    later = NEW_YEAR + timedelta(days=3653, seconds=30)
    for recurrence in (Every(0.001, NEW_YEAR), Cron("* * * * *", "Europe/Lisbon"), Cron("0 0 29 2 *")):
        due = recurrence.next_after(NEW_YEAR)
        assert due is not None
        (last,), following = occurrences(recurrence, due, later)
        assert following is not None
        assert last <= later < following
        assert recurrence.next_after(last) == following
        assert len(occurrences(recurrence, due, later, "all", limit=2)[0]) == 2


@given(
    expression=st.sampled_from(EXPRESSIONS),
    minutes=st.integers(0, 40_000),
    misfire=st.sampled_from(["latest", "all", "skip"]),
    window=st.none() | st.floats(0, 1e6),
)
@settings(max_examples=100, deadline=None)
def test_rounds_go_on_where_the_last_one_ended(
    expression: str, minutes: int, misfire: str, window: float | None
) -> None:
    cron = Cron(expression, "Australia/Lord_Howe")
    due = cron.next_after(NEW_YEAR)
    assert due is not None
    now = due + minutes * MINUTE
    times, following = occurrences(cron, due, now, misfire, window, limit=10)
    assert times == sorted(set(times))
    assert all(cron.next_after(time - timedelta(microseconds=1)) == time for time in times)
    assert following is not None
    assert following > (times[-1] if times and misfire == "all" else now)
    if misfire == "all" and window is None:
        assert times == series(cron, due - MINUTE, now)[:10]


# -- bad input ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "expression",
    [
        "",
        " ",
        "nonsense",
        "* * * *",
        "* * * * * * *",
        "60 * * * *",
        "* 24 * * *",
        "*/0 * * * *",
        "5-1 * * * *",
        "* * 30 2 *",
        "0 0 31 4,6 *",
        "* * * FOO *",
        "* * * * MON#6",
        "a,b * * * *",
        "* * L/ * *",
        "@never",
        "1" * 300,
        "* * * * \u00b2L",
    ],
)
def test_cron_nonsense(expression: str) -> None:
    with pytest.raises(ScheduleInvalid, match="cron expression"):
        Cron(expression)


@pytest.mark.parametrize("zone", ["Europe/Lisboa", "", "../../etc/passwd", "America", "Mars/Olympus", "UTC+25"])
def test_an_unknown_zone(zone: str) -> None:
    with pytest.raises(ScheduleInvalid, match="time zone"):
        Cron("* * * * *", zone)


def test_an_unknown_zone_says_what_was_meant() -> None:
    with pytest.raises(ScheduleInvalid, match="did you mean Europe/Lisbon"):
        Cron("* * * * *", "Europe/Lisbonn")


@pytest.mark.parametrize("interval", [0, -1, -0.5, float("nan"), float("inf"), 1e-9, 1e300, True, None, "5"])
def test_an_interval_that_is_none(interval: float) -> None:
    with pytest.raises(ScheduleInvalid, match="interval"):
        Every(interval, NEW_YEAR)


def test_a_time_without_a_zone() -> None:
    naive = datetime(2026, 1, 1)  # noqa: DTZ001 - the point
    with pytest.raises(ScheduleInvalid, match="needs a zone"):
        Once(naive)
    with pytest.raises(ScheduleInvalid, match="needs a zone"):
        Every(1, naive)


def test_cron_understands_what_crontabs_hold() -> None:
    assert Cron("@hourly").next_after(NEW_YEAR) == NEW_YEAR + timedelta(hours=1)
    assert Cron("0 0 L * *").next_after(NEW_YEAR) == datetime(2026, 1, 31, tzinfo=UTC)
    assert Cron("30 0 0 * * *").next_after(NEW_YEAR) == NEW_YEAR + timedelta(seconds=30)
    assert Cron("0 9 * * mon-fri").next_after(NEW_YEAR) == NEW_YEAR + timedelta(hours=9)
