"""Nonsense on the command line, on both databases: one sentence with the cause, exit code 1 or 2, nothing stored."""

from __future__ import annotations

import asyncio
import contextlib
import io
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from pika.spec import BasicProperties
from pydantic import BaseModel

from consumers.obituary import letter_of
from hareline import DeadLetters, HarelineError, Jobs, JobType, OptionInvalid, Producer, Schedules
from hareline.cli import main
from producers.dead_letters import DeadLetterFilters
from store import dead_letters, joblog
from store.engine import Database
from store.joblog import Merged
from store.tables import metadata
from tests.databases import opened
from topology.errors import CursorInvalid
from topology.spec import Names

pytestmark = pytest.mark.machine

APP = """
from pydantic import BaseModel
from hareline import App, JobType

class Report(BaseModel):
    month: int
    note: str = ""

app = App(job_types=[JobType("report.build", Report)])
"""


class Strict(BaseModel):
    month: int


TYPE, STRICT = JobType("t", dict[str, int]), JobType("strict", Strict)
GOOD = '{"month": 1}'
NUL, BROKEN, LONG = "a\0b", "a\udcffb", "x" * 10_000
DEEP, MANY_DIGITS = "[" * 100_000, "9" * 5_000
BEYOND_FLOATS = "9" * 400

Case = tuple[int, str, list[str]]


def cron() -> Iterator[Case]:
    for expression, said in (
        ("60 * * * *", "Bad minute; five fields are needed"),
        ("", "five fields are needed"),
        ("\u2028", "five fields are needed"),
        ("@never", "five fields are needed"),
        ("* * * * * * *", "five fields are needed"),
        ("* * * * *; rm -rf /", "five fields are needed"),
        ("é * * * *", "Bad minute"),
        ("\u0663 * * * *", "Bad minute"),
        ("0 0 * * 8", "Bad day-of-week"),
        ("* * * * *\0", "Bad day-of-week"),
        (BROKEN, "five fields are needed"),
        (LONG, "at most 250"),
        ("0 0 30 2 *", "a date that never comes"),
        ("0 0 31 4,6 *", "a date that never comes"),
    ):
        yield 2, said, ["schedule", "cron", "report.build", GOOD, "--cron", expression]
    for zone in ("Mars/Olympus", "../etc/passwd", "/etc/localtime", "", ".", "Europe", NUL, BROKEN, LONG):
        yield 2, "is not known", ["schedule", "cron", "report.build", GOOD, "--cron", "@daily", "--tz", zone]


def times() -> Iterator[Case]:
    every, once = ["schedule", "every", "report.build", GOOD], ["schedule", "once", "report.build", GOOD]
    for interval in ("0", "36526d", "0.0001ms", "9" * 20):
        yield 2, "from a millisecond to a century", [*every, "--every", interval]
    for text in ("-1", "NaN", "inf", "1e9", BEYOND_FLOATS, "\u0663", ""):
        yield 2, "is not a duration", [*every, "--every", text]
        yield 2, "is not a duration", [*once, "--in", text]
        yield 2, "is not a duration", [*once, "--in", "1h", "--misfire-window", text]
    yield 2, "beyond the year 9999", [*once, "--in", "9999999d"]
    for moment, said in (
        ("0001-01-01T00:00:00+14:00", "beyond the calendar"),
        ("9999-12-31T23:59:59-14:00", "beyond the calendar"),
        ("2001-01-01T00:00:00", "has no zone"),
        ("tomorrow", "is not a time"),
        (NUL, "is not a time"),
        (BROKEN, "is not a time"),
    ):
        yield 2, said, [*once, "--at", moment]
        yield 2, said, [*every, "--every", "1h", "--start", moment]
    for moment in ("9999-12-31T23:59:59-14:00", "9999-12-31T23:59:59Z"):
        yield 1, "for a later time use a schedule", ["enqueue", "--outbox", "report.build", GOOD, "--at", moment]
    for age in (BEYOND_FLOATS, "-1"):
        for command in (["jobs", "list", "--since"], ["dlq", "list", "--since"], ["db", "clean", "--older-than"]):
            yield 2, "is not a duration", [*command, age]
    for age in ("3000000d", "9" * 30 + "d"):
        for command in (
            ["jobs", "list", "--since"], ["dlq", "list", "--since"], ["dlq", "groups", "--since"],
            ["dlq", "clean", "--older-than"], ["db", "clean", "--older-than"],
        ):  # fmt: skip
            yield 2, "than the calendar reaches", [*command, age]


def noted(text: str) -> str:
    return f'{{"month": 1, "note": "{text}"}}'


def jobs_and_names() -> Iterator[Case]:
    once = ["schedule", "once", "report.build"]
    for command in (once, ["enqueue", "--outbox", "report.build"]):
        more = ["--in", "1h"] if command is once else []
        for payload, code, said in (
            ("", 2, "PAYLOAD is not JSON"),
            (DEEP, 2, "nested too deeply"),
            ('{"month": ' + MANY_DIGITS + "}", 2, "thousands of digits"),
            ("null", 1, "Input should be an object"),
            ('{"month": "May"}', 1, "month: Input should be a valid integer"),
            ('{"month": NaN}', 1, "month: Input should be a finite number"),
            (noted("\\ud800"), 1, "Invalid JSON"),
            (noted(BROKEN), 1, "Invalid JSON"),
            (noted("x" * 2_000_000), 1, "HARELINE_MAX_PAYLOAD"),
        ):
            yield code, said, [*command, payload, *more]
    for name in ("no.such", "", NUL, BROKEN, LONG):
        yield 2, "this app knows: report.build", ["schedule", "once", name, GOOD, "--in", "1h"]
        yield 2, "this app knows: report.build", ["enqueue", "--outbox", name, GOOD]
    for option in ("--name", "--group"):
        for text, said in (("", "1 to 200"), (LONG, "1 to 200"), (NUL, "holds a NUL"), (BROKEN, "is no UTF-8")):
            yield 2, said, [*once, GOOD, "--in", "1h", option, text]
    for key, said in (("", "not empty"), (NUL, "holds a NUL"), (BROKEN, "is no UTF-8")):
        yield 1, said, ["enqueue", "--outbox", "report.build", GOOD, "--key", key]
    yield 1, "has no priorities", [*once, GOOD, "--in", "1h", "--priority", "5"]


def references() -> Iterator[Case]:
    for text in ("", NUL, BROKEN, LONG, "nobody"):
        for verb in ("pause", "resume", "run", "cancel"):
            yield 1, "no schedule has the id or the name", ["schedule", verb, text]
        yield 1, "is known", ["jobs", "show", text]
    for letter in ("0", "17", str(2**63), "9" * 30):
        for verb in (["show"], ["replay"], ["discard"], ["edit", "--payload", "{}"]):
            yield 1, "there is no dead letter", ["dlq", *verb, letter]
    for letter in ("x", "1.5", NUL, BROKEN):
        yield 2, "is not a valid integer", ["dlq", "show", letter]
    span = ["--from", "2030-01-01T00:00:00Z", "--to", "2001-01-01T00:00:00Z"]
    yield 1, "before it starts", ["schedule", "backfill", "nobody", *span]


def listings() -> Iterator[Case]:
    for command in (["schedule", "list"], ["jobs", "list"], ["dlq", "list"]):
        for limit in ("0", "-1", "1001", "9" * 30, "x"):
            yield 2, "--limit", [*command, "--limit", limit]
        for cursor in ("", "x", "é", NUL, BROKEN, LONG, "AAAA", "bm90anNvbg"):
            yield 1, "this cursor is damaged", [*command, "--cursor", cursor]
        for option in ("--type", "--group"):
            yield 1, "holds a NUL", [*command, option, NUL]
            yield 1, "is no UTF-8", [*command, option, BROKEN]
        yield 2, "is not one of", [*command, "--status", "well"]
    for option in ("--error", "--reason", "--fingerprint"):
        yield 1, "holds a NUL", ["dlq", "groups", option, NUL]
        yield 1, "is no UTF-8", ["dlq", "replay", "--all", "--dry-run", option, BROKEN]
    for args, code, said in (
        ("{", 2, "is not JSON"),
        (DEEP, 2, "nested"),
        (MANY_DIGITS, 2, "digits"),
        ("NaN", 1, "JSON"),
    ):
        yield code, said, ["schedule", "list", "--args", args]
        yield code, said, ["schedule", "cancel-all", "--args", args]
    for rate, code in (("0", 2), ("-1", 2), ("x", 2), ("nan", 1), ("inf", 1), ("1e400", 1)):
        yield code, "rate", ["dlq", "replay", "--all", "--rate", rate]
    for payload, said in ((DEEP, "nested"), (MANY_DIGITS, "digits"), (BROKEN, "not JSON"), ("{", "not JSON")):
        yield 2, said, ["dlq", "edit", "1", "--payload", payload]


class Terminal:
    """The command in this process: what it printed and how it ended, as `hareline` itself would."""

    def run(self, arguments: list[str]) -> tuple[int | str, str, str]:
        out, err, code = io.StringIO(), io.StringIO(), 0
        before, sys.argv = sys.argv, ["hareline", *arguments]
        try:
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
                main()
        except SystemExit as end:
            return end.code or 0, out.getvalue(), err.getvalue()
        except Exception as error:  # noqa: BLE001 - a traceback, for whoever typed it
            return repr(error), out.getvalue(), err.getvalue()
        finally:
            sys.argv = before
        return code, out.getvalue(), err.getvalue()


@pytest.fixture
def terminal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, database_url: str) -> Terminal:
    (tmp_path / "nonsense_shop.py").write_text(APP, encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("HARELINE_APP", "nonsense_shop:app")
    monkeypatch.setenv("HARELINE_DATABASE_URL", database_url)
    return Terminal()


async def rows(url: str) -> dict[str, int]:
    async with opened(url) as database, database.reading() as connection:
        counts = {table.name: len((await connection.execute(table.select())).all()) for table in metadata.sorted_tables}
    return {name: count for name, count in counts.items() if count}


@pytest.mark.parametrize("kind", [cron, times, jobs_and_names, references, listings], ids=lambda kind: kind.__name__)
async def test_nonsense_is_refused_in_one_sentence(terminal: Terminal, database_url: str, kind: object) -> None:
    """Which names the cause, at no length, without a traceback; nothing is printed as a result, nothing is stored."""
    wrong = []
    for code, said, arguments in kind():  # type: ignore[operator]
        # Not in this event loop: the command has its own.
        ended, out, err = await asyncio.to_thread(terminal.run, arguments)
        last = err.splitlines()[-1] if err else ""
        if (ended, out) != (code, "") or said not in last or "Traceback" in err or len(last) > 600:
            wrong.append((arguments, ended, out, err))
    assert wrong == []
    assert await rows(database_url) == {}


# -- cursors -----------------------------------------------------------------------------------------------------------


async def fill(url: str) -> None:
    """Three of each: schedules, jobs, dead letters."""
    now = datetime.now(UTC)
    merged = Merged.empty()
    merged.add([["job.done", f"j{n}", "t", 0, 1, now.timestamp() - n, 0.1, None, None] for n in range(3)], {})
    letters = []
    for n in range(3):
        properties = BasicProperties(message_id=f"d{n}", type="t", headers={"hareline-died-at": now.isoformat()})
        letters.append(letter_of(Names("t"), properties, b"{}", now, {}))
    async with opened(url) as database:
        for n in range(3):
            await Schedules(database).schedule_once(TYPE, {}, delay=60 + n)
        async with database.transaction() as connection:
            await joblog.merge(connection, merged)
            await dead_letters.record(connection, letters, now)


async def test_a_cursor_is_taken_back_as_it_was_given_alone(database_url: str) -> None:
    """Any letter of it changed, cut or added, another listing's, other filters: refused, and never a wrong page."""
    await fill(database_url)
    async with opened(database_url) as database:
        listings: list[Any] = [
            lambda **more: Schedules(database).list_actions(limit=1, **more),
            lambda **more: Jobs(database).list(limit=1, **more),
            lambda **more: DeadLetters(database).list(limit=1, **more),
        ]
        cursors = [(await listing()).next for listing in listings]
        for listing, cursor in zip(listings, cursors, strict=True):
            assert len((await listing(cursor=cursor)).items) == 1
            forged = [other for other in cursors if other != cursor]
            forged += [cursor[:n] + ("A" if cursor[n] != "A" else "B") + cursor[n + 1 :] for n in range(len(cursor))]
            forged += [cursor[:n] for n in range(len(cursor))]
            forged += [cursor + "A", cursor + "=", cursor + "\n", " " + cursor, cursor.swapcase(), cursor * 2]
            for bad in forged:
                with pytest.raises(CursorInvalid):
                    await listing(cursor=bad)
        with pytest.raises(CursorInvalid):
            await Schedules(database).list_actions(limit=1, group="g", cursor=cursors[0])
        with pytest.raises(CursorInvalid):
            await Jobs(database).list(limit=1, status="dead", cursor=cursors[1])
        with pytest.raises(CursorInvalid):
            await DeadLetters(database).list(DeadLetterFilters(error="E"), limit=1, cursor=cursors[2])


# -- from Python -------------------------------------------------------------------------------------------------------

NAIVE = datetime(2026, 1, 1)  # noqa: DTZ001 - the point


@pytest.mark.parametrize(
    ("said", "ask"),
    [
        ("holds a NUL", lambda d: Schedules(d).list_actions("t", group=NUL)),
        ("is no UTF-8", lambda d: Schedules(d).cancel_all(BROKEN)),
        ("holds a NUL", lambda d: Schedules(d).schedule_once(TYPE, {}, delay=1, name=NUL)),
        ("due_from", lambda d: Schedules(d).list_actions(due_from=NAIVE)),
        ("needs a zone", lambda d: Schedules(d).backfill("s", NAIVE, NAIVE)),
        ("needs a zone", lambda d: Schedules(d).schedule_every(TYPE, {}, every=5, start=NAIVE)),
        ("month", lambda d: Schedules(d).schedule_cron(STRICT, {"month": "May"}, "@daily")),
        ("has no zone", lambda d: Jobs(d).list(since=NAIVE)),
        ("calendar reaches", lambda d: Jobs(d).list(since=timedelta.max)),
        ("limit", lambda d: Jobs(d).list(limit=0)),
        ("status", lambda d: Jobs(d).list(status="well")),
        ("holds a NUL", lambda d: Jobs(d).list(type=NUL)),
        ("is known", lambda d: Jobs(d).get(BROKEN)),
        ("limit", lambda d: DeadLetters(d).list(limit=0)),
        ("needs a zone", lambda d: DeadLetters(d).list(DeadLetterFilters(since=NAIVE))),
        ("is no UTF-8", lambda d: DeadLetters(d).groups(DeadLetterFilters(error=BROKEN))),
        ("status", lambda d: DeadLetters(d).count(DeadLetterFilters(status="well"))),
        ("leave the status out", lambda d: DeadLetters(d).replay(DeadLetterFilters(status="replayed"))),
        ("rate", lambda d: DeadLetters(d).replay(DeadLetterFilters(), rate=float("inf"))),
        ("rate", lambda d: DeadLetters(d).replay(DeadLetterFilters(), rate=float("nan"))),
        ("no dead letter", lambda d: DeadLetters(d).discard([-1])),
        ("no dead letter", lambda d: DeadLetters(d).replay([True])),
        ("calendar reaches", lambda d: DeadLetters(d).clean(timedelta.max)),
        ("negative", lambda d: DeadLetters(d).clean(timedelta(days=-1))),
        ("calendar reaches", lambda d: DeadLetters(d).died_within(1e300)),
    ],
)
async def test_the_same_from_python(database: Database, said: str, ask: Any) -> None:
    with pytest.raises(HarelineError, match=said):
        await ask(database)
    assert await rows(database.url.render_as_string(hide_password=False)) == {}


@pytest.mark.parametrize("option", ["correlation_id", "ordering_key", "key"])
async def test_texts_that_no_database_takes_are_refused_before_the_outbox(database: Database, option: str) -> None:
    for text in (NUL, BROKEN):
        with pytest.raises(OptionInvalid, match=option):
            async with database.transaction() as connection:
                await Producer().enqueue(TYPE, {}, connection=connection, **{option: text})  # type: ignore[arg-type]
