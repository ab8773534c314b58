"""``hareline schedule`` as an operator types it, on SQLite: what it prints, and how it fails."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select, update

from store.tables import outbox, schedules
from tests.databases import opened
from tests.lab import DEADLINE, ROOT

pytestmark = pytest.mark.machine

APP = """
from pydantic import BaseModel
from hareline import App, JobType, Schedule

class Report(BaseModel):
    month: int
    year: int = 2026

report = JobType("report.build", Report)
declared = Schedule(name="morning", job_type=report, payload=Report(month=5), cron="0 9 * * *", tz="Europe/Lisbon")
app = App(job_types=[report, JobType("mail.send", Report, priority=True)])
declaring = App(job_types=[report], schedules=[declared])
"""


class Desk:
    """An app in a directory of its own, and the command run there."""

    def __init__(self, directory: Path, database_url: str) -> None:
        self.directory = directory
        self.database_url = database_url
        (directory / "shop.py").write_text(APP, encoding="utf-8")

    def run(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """``hareline schedule ARGUMENTS``."""
        return self.start(sys.executable, "-m", "hareline", "schedule", *arguments, **environment)

    def start(self, *command: str, text: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
        """Any command, with the app and the database in its environment."""
        env = {
            **os.environ,
            "HARELINE_APP": "shop:app",
            "HARELINE_DATABASE_URL": self.database_url,
            "PYTHONPATH": str(ROOT),
            **environment,
        }
        return subprocess.run(
            command, cwd=self.directory, env=env, input=text, capture_output=True, text=True, timeout=DEADLINE,
            check=False,
        )  # fmt: skip

    def said(self, *arguments: str) -> Any:
        """The JSON document of a command that succeeds."""
        done = self.run(*arguments, "--json")
        assert (done.returncode, done.stderr) == (0, "")
        return json.loads(done.stdout)

    def jobs(self) -> list[tuple[str, str, bytes]]:
        """What waits in the outbox: id, type and body."""

        async def read() -> list[tuple[str, str, bytes]]:
            async with opened(self.database_url) as database, database.reading() as connection:
                rows = await connection.execute(select(outbox).order_by(outbox.c.id))
                return [(row.job_id, row.job_type, row.body) for row in rows]

        return asyncio.run(read())

    def alter(self, schedule_id: str, **values: Any) -> None:
        """Sets columns of a row, as time would."""

        async def write() -> None:
            async with opened(self.database_url) as database, database.transaction() as connection:
                await connection.execute(update(schedules).where(schedules.c.id == schedule_id).values(values))

        asyncio.run(write())


@pytest.fixture
def desk(tmp_path: Path, sqlite_url: str) -> Desk:
    return Desk(tmp_path, sqlite_url)


def test_once_every_and_cron_are_made_and_listed_by_their_next_run(desk: Desk) -> None:
    at = "2090-01-31T09:00:00+01:00"
    once = desk.run("once", "report.build", '{"month": 1}', "--at", at)
    assert (once.returncode, once.stderr) == (0, "")
    every = desk.said(
        "every", "report.build", '{"month": 2}', "--every", "2h", "--group", "g", "--name", "two", "--misfire", "all",
        "--misfire-window", "1d", "--overlap", "buffer_one",
    )  # fmt: skip
    assert (every["type"], every["kind"], every["interval"]) == ("report.build", "every", 7200)
    assert (every["name"], every["misfire"], every["overlap"], every["existed"]) == ("two", "all", "buffer_one", False)
    soon = datetime.fromisoformat(every["next_run_at"]) - datetime.now(UTC)
    assert timedelta(hours=1, minutes=55) < soon <= timedelta(hours=2)
    cron = desk.said("cron", "mail.send", '{"month": 3}', "--cron", "0 9 1 1 *", "--tz", "Europe/Lisbon")
    assert (cron["expression"], cron["zone"], cron["priority"]) == ("0 9 1 1 *", "Europe/Lisbon", 4)
    assert cron["next_run_at"].endswith("-01-01T09:00:00+00:00")

    listed = desk.said("list")
    assert [item["id"] for item in listed["items"]] == [every["id"], cron["id"], once.stdout.strip()]
    assert listed["next"] is None
    last = listed["items"][2]
    assert {"id", "type", "kind", "next_run_at", "group", "status"} <= set(last)
    assert (last["next_run_at"], last["payload"]) == ("2090-01-31T08:00:00+00:00", {"month": 1, "year": 2026})
    table = desk.run("list").stdout
    assert table.splitlines()[0].split()[:4] == ["ID", "NAME", "TYPE", "KIND"]
    assert "0 9 1 1 * Europe/Lisbon" in table
    assert "2090-01-31T08:00:00Z" in table


def test_a_delay_and_a_time_that_has_passed(desk: Desk) -> None:
    delayed = desk.said("once", "report.build", '{"month": 1}', "--in", "90s")
    assert datetime.fromisoformat(delayed["next_run_at"]) > datetime.now(UTC)
    passed = desk.said("once", "report.build", '{"month": 1}', "--at", "2001-01-01T00:00:00Z")
    assert abs(datetime.now(UTC) - datetime.fromisoformat(passed["next_run_at"])) < timedelta(minutes=2)


def test_unique_tells_that_it_existed(desk: Desk) -> None:
    one = desk.said("every", "report.build", '{"month": 1, "year": 2026}', "--every", "1h", "--unique")
    again = desk.said("every", "report.build", '{"year": 2026, "month": 1}', "--every", "1h", "--unique")
    assert (again["id"], one["existed"], again["existed"]) == (one["id"], False, True)
    third = desk.run("every", "report.build", '{"month": 1}', "--every", "1h", "--unique")
    assert (third.returncode, third.stdout) == (0, f"{one['id']}\n")
    assert "existed" in third.stderr


def test_filters_pages_next_and_counts(desk: Desk) -> None:
    for month in ("1", "2", "3"):
        desk.said("once", "report.build", f'{{"month": {month}}}', "--in", f"{month}h", "--group", "g")
    other = desk.said("once", "mail.send", '{"month": 1}', "--in", "30m")
    page = desk.said("list", "--type", "report.build", "--group", "g", "--limit", "2")
    assert [item["payload"]["month"] for item in page["items"]] == [1, 2]
    rest = desk.said("list", "--type", "report.build", "--group", "g", "--limit", "2", "--cursor", page["next"])
    assert ([item["payload"]["month"] for item in rest["items"]], rest["next"]) == ([3], None)
    assert [item["id"] for item in desk.said("next")["items"]] == [other["id"]]
    [first] = desk.said("next", "--type", "report.build")["items"]
    assert first["payload"]["month"] == 1
    [second] = desk.said("list", "--args", '{"year": 2026, "month": 2}')["items"]
    assert second["payload"]["month"] == 2
    counts = desk.said("counts")
    assert (counts["total"], counts["status"], counts["type"]) == (
        4, {"active": 4}, {"mail.send": 1, "report.build": 3},
    )  # fmt: skip

    tampered = page["next"][:-2] + ("AA" if page["next"][-2:] != "AA" else "BB")
    for wrong in (["--cursor", tampered, "--type", "report.build", "--group", "g"], ["--cursor", page["next"]]):
        done = desk.run("list", *wrong)
        assert done.returncode == 1
        assert "cursor" in done.stderr
        assert "Traceback" not in done.stderr


def test_what_is_past_due_is_listed_apart(desk: Desk) -> None:
    """Nobody runs a scheduler here, so a run that was missed shows."""
    for month in ("1", "2"):
        desk.said("every", "report.build", f'{{"month": {month}}}', "--every", "1h")
    late = desk.said("once", "mail.send", '{"month": 3}', "--in", "0")
    assert desk.said("list", "--past-due")["items"] == [], "a minute is nothing"
    moved = datetime.now(UTC) - timedelta(minutes=2)
    desk.alter(late["id"], next_run_at=moved)
    [item] = desk.said("list", "--past-due")["items"]
    assert item["id"] == late["id"]
    page = desk.said("list", "--due-before", "2090-01-01T00:00:00Z", "--limit", "2")
    rest = desk.said("list", "--due-before", "2090-01-01T00:00:00Z", "--cursor", page["next"])
    assert [len(page["items"]), len(rest["items"])] == [2, 1]
    assert desk.run("list", "--past-due", "--status", "paused").returncode == 2


def test_all_of_one_schedule_is_shown(desk: Desk) -> None:
    made = desk.said("every", "report.build", '{"month": 1}', "--every", "1h", "--name", "hourly")
    assert desk.said("show", "hourly") == made
    shown = desk.run("show", made["id"]).stdout
    assert "kind           every" in shown
    assert 'payload        {"month": 1, "year": 2026}' in shown


def test_pause_resume_cancel_by_id_or_name(desk: Desk) -> None:
    made = desk.said("every", "report.build", '{"month": 1}', "--every", "1h", "--name", "hourly")
    assert desk.said("pause", made["id"])["status"] == "paused"
    assert desk.said("next")["items"] == []
    assert desk.said("resume", "hourly")["status"] == "active"
    assert desk.run("cancel", "hourly").stdout == "hourly is cancelled\n"
    [item] = desk.said("list")["items"]
    assert (item["status"], item["next_run_at"]) == ("cancelled", None)
    done = desk.run("resume", "hourly")
    assert done.returncode == 1
    assert "is cancelled" in done.stderr


def test_cancel_all_says_how_many(desk: Desk) -> None:
    for group in ("a", "a", "b"):
        desk.said("once", "report.build", '{"month": 1}', "--in", "1h", "--group", group)
    desk.said("once", "mail.send", '{"month": 1}', "--in", "1h", "--group", "a")
    assert desk.said("cancel-all", "--type", "report.build", "--group", "a") == {"cancelled": 2}
    assert desk.run("cancel-all").stdout == "2 cancelled\n"
    assert desk.said("cancel-all") == {"cancelled": 0}


def test_run_and_backfill_write_jobs_to_the_outbox(desk: Desk) -> None:
    made = desk.said("cron", "report.build", '{"month": 7}', "--cron", "0 * * * *", "--name", "hourly")
    job_id = desk.run("run", "hourly").stdout.strip()
    assert desk.jobs() == [(job_id, "report.build", b'{"month":7,"year":2026}')]
    range_ = ["--from", "2026-01-01T00:00:00Z", "--to", "2026-01-01T05:00:00Z"]
    assert desk.said("backfill", made["id"], *range_) == {"id": made["id"], "issued": 6}
    assert desk.run("backfill", "hourly", *range_).stdout == "0 issued\n"
    assert len(desk.jobs()) == 7


def test_what_the_code_declares_is_made_so(desk: Desk) -> None:
    """As a step of a deployment; again it changes nothing, and tells of what is declared no longer."""
    first = desk.run("reconcile", "--json", HARELINE_APP="shop:declaring")
    assert (first.returncode, json.loads(first.stdout)["created"]) == (0, ["morning"])
    again = desk.run("reconcile", HARELINE_APP="shop:declaring")
    assert again.stdout.splitlines() == ["created: -", "changed: -", "unchanged: morning", "removed: -"]
    [item] = desk.said("list")["items"]
    assert (item["name"], item["source"], item["status"]) == ("morning", "code", "active")
    gone = desk.run("reconcile", "--json")
    assert json.loads(gone.stdout)["removed"] == ["morning"]


REFUSED = [
    (2, "no job type 'no.such'; this app knows: mail.send, report.build", ["once", "no.such", "{}", "--in", "1"]),
    (2, "either --at or --in", ["once", "report.build", '{"month": 1}']),
    (2, "is not a time", ["once", "report.build", '{"month": 1}', "--at", "tomorrow"]),
    (2, "has no zone", ["once", "report.build", '{"month": 1}', "--at", "2030-01-01T00:00:00"]),
    (2, "not JSON", ["once", "report.build", "{month: 1}", "--in", "1"]),
    (1, "month: Input should be a valid integer", ["once", "report.build", '{"month": "May"}', "--in", "1"]),
    (1, "has no priorities", ["once", "report.build", '{"month": 1}', "--in", "1", "--priority", "5"]),
    (2, "interval is 0", ["every", "report.build", '{"month": 1}', "--every", "0"]),
    (2, "is not a duration", ["every", "report.build", '{"month": 1}', "--every", "-5m"]),
    (2, "five fields", ["cron", "report.build", '{"month": 1}', "--cron", "every day"]),
    (2, "a date that never comes", ["cron", "report.build", '{"month": 1}', "--cron", "0 0 30 2 *"]),
    (2, "Mars/Olympus", ["cron", "report.build", '{"month": 1}', "--cron", "@daily", "--tz", "Mars/Olympus"]),
    (2, "--args is not JSON", ["list", "--args", "{"]),
    (2, "'never' is not one of", ["every", "report.build", "{}", "--every", "1", "--misfire", "never"]),
    (1, "no schedule has the id or the name 'nobody'", ["pause", "nobody"]),
    (1, "no schedule has the id or the name 'nobody'", ["run", "nobody"]),
]


# Runs the command again and again in one process, as often as standard input has lines of arguments.
MANY = """
import contextlib, io, json, sys
from hareline.cli import main
for line in sys.stdin:
    sys.argv = ["hareline", "schedule", *json.loads(line)]
    out, err, code = io.StringIO(), io.StringIO(), 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main()
        except SystemExit as end:
            code = end.code or 0
    print(json.dumps([code, out.getvalue(), err.getvalue()]))
"""


def test_nonsense_is_refused_in_one_sentence(desk: Desk) -> None:
    lines = "\n".join(json.dumps(arguments) for _, _, arguments in REFUSED)
    done = desk.start(sys.executable, "-c", MANY, text=lines)
    assert done.returncode == 0, done.stderr
    for (code, said, arguments), line in zip(REFUSED, done.stdout.splitlines(), strict=True):
        ended, out, err = json.loads(line)
        assert (ended, out) == (code, ""), arguments
        assert said in err
        assert "Traceback" not in err
    assert desk.said("list") == {"items": [], "next": None}


def test_a_database_without_tables_or_out_of_reach(desk: Desk, tmp_path: Path) -> None:
    for url, said in (
        (f"sqlite:///{tmp_path / 'new.db'}", "hareline db upgrade"),
        ("postgresql://nobody@127.0.0.1:1/none", "is the server running"),
    ):
        done = desk.run("once", "report.build", '{"month": 1}', "--in", "1", HARELINE_DATABASE_URL=url)
        assert (done.returncode, done.stdout) == (1, "")
        assert said in done.stderr
        assert "Traceback" not in done.stderr
