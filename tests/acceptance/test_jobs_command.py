"""``hareline jobs`` and ``hareline recorder`` as an operator types them: what they print, and how they fail."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from hareline.broker import Broker
from store import joblog
from store.joblog import Merged
from tests.databases import opened
from tests.lab import DEADLINE, ROOT

pytestmark = pytest.mark.machine


class Desk:
    """The command, run in a directory of its own."""

    def __init__(self, directory: Path, database_url: str) -> None:
        self._directory, self.database_url = directory, database_url

    def run(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        env = {**os.environ, "HARELINE_DATABASE_URL": self.database_url, "PYTHONPATH": str(ROOT), **environment}
        return subprocess.run(
            [sys.executable, "-m", "hareline", *arguments],
            cwd=self._directory, env=env, capture_output=True, text=True, timeout=DEADLINE, check=False,
        )  # fmt: skip

    def said(self, *arguments: str) -> Any:
        done = self.run("jobs", *arguments, "--json")
        assert (done.returncode, done.stderr) == (0, "")
        return json.loads(done.stdout)


@pytest.fixture
def desk(tmp_path: Path, sqlite_url: str) -> Desk:
    async def fill() -> None:
        merged = Merged.empty()
        at = time.time()
        merged.add(
            [
                ["job.queued", "a", "mail.send", 0, 0, at - 9, None, None, {"payload": '{"n": 1}', "priority": 4}],
                ["job.retrying", "a", "mail.send", 0, 1, at - 8, 0.5, "Transient", {"message": "not now"}],
                ["job.dead", "a", "mail.send", 0, 2, at - 7, 0.25, "Permanent", {"message": "never"}],
                ["job.done", "b", "mail.send", 0, 1, at - 7200, 0.25, None, None],
                ["job.queued", "c", "sum", 0, 0, at - 1, None, None, {"payload": "cut {"}],
            ],
            {"mail.send": "post"},
        )
        async with opened(sqlite_url) as database, database.transaction() as connection:
            await joblog.merge(connection, merged)

    asyncio.run(fill())
    return Desk(tmp_path, sqlite_url)


def test_one_job(desk: Desk) -> None:
    shown = desk.said("show", "a")
    assert {key: shown[key] for key in ("id", "type", "status", "payload", "error", "error_message", "group")} == {
        "id": "a", "type": "mail.send", "status": "dead", "payload": {"n": 1}, "error": "Permanent",
        "error_message": "never", "group": "post",
    }  # fmt: skip
    assert [(end["attempt"], end["outcome"], end["error"]) for end in shown["attempts"]] == [
        (1, "retrying", "Transient"),
        (2, "dead", "Permanent"),
    ]
    assert desk.said("show", "c")["payload"] == "cut {"
    read = desk.run("jobs", "show", "a").stdout
    assert "dead" in read
    assert "attempt 1" in read
    assert "after 0.500 s: Transient not now" in read


def test_an_unknown_job(desk: Desk) -> None:
    done = desk.run("jobs", "show", "nobody", "--json")
    assert (done.returncode, done.stdout) == (1, "")
    assert "no job 'nobody' is known" in done.stderr


def test_listing(desk: Desk) -> None:
    """Filters, pages, and a table to read."""
    page = desk.said("list", "--limit", "2")
    assert [item["id"] for item in page["items"]] == ["c", "a"]
    page = desk.said("list", "--limit", "2", "--cursor", page["next"])
    assert ([item["id"] for item in page["items"]], page["next"]) == (["b"], None)
    assert [item["id"] for item in desk.said("list", "--since", "1h", "--group", "post")["items"]] == ["a"]
    assert [item["id"] for item in desk.said("list", "--status", "done", "--type", "mail.send")["items"]] == ["b"]
    assert desk.said("list", "--type", "none") == {"items": [], "next": None}
    assert desk.run("jobs", "list", "--type", "none").stdout == "no jobs\n"
    lines = desk.run("jobs", "list", "--limit", "1").stdout.splitlines()
    assert lines[0].split() == ["ID", "TYPE", "STATUS", "ATTEMPT", "SEEN", "DURATION", "GROUP", "ERROR"]
    assert lines[2].startswith("more: --cursor ")


def test_bad_usage(desk: Desk) -> None:
    """Exit code 2 for what is no status, 1 for a cursor that was altered."""
    assert desk.run("jobs", "list", "--status", "well").returncode == 2
    done = desk.run("jobs", "list", "--cursor", "abc")
    assert (done.returncode, "cursor" in done.stderr, "Traceback" in done.stderr) == (1, True, False)


def test_counts(desk: Desk) -> None:
    found = desk.said("stats")
    assert {name: number for name, number in found["status"].items() if number} == {"dead": 1, "done": 1, "queued": 1}
    assert (found["types"]["sum"], found["groups"]) == ({"queued": 1}, {"post": {"dead": 1, "done": 1}})
    assert found["last_hour"] == {"dead": 1, "retrying": 1}
    assert "jobs: 1 dead, 1 done, 1 queued" in desk.run("jobs", "stats").stdout


def test_a_recorder_says_what_it_lacks(desk: Desk, broker: Broker, tmp_path: Path) -> None:
    """Tables or queues, with the command that makes them."""
    done = desk.run("recorder", HARELINE_DATABASE_URL=f"sqlite:///{tmp_path}/new.db")
    assert (done.returncode, "hareline db upgrade" in done.stderr) == (1, True)
    done = desk.run("recorder", HARELINE_NAMESPACE="has-no-queues")
    assert (done.returncode, "hareline topology apply" in done.stderr) == (1, True)
    assert "Traceback" not in done.stderr
