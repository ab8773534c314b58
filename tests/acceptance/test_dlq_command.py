"""``hareline dlq`` as an operator types it: what it prints, and how it fails."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from pika.spec import BasicProperties
from sqlalchemy import select

from consumers.obituary import letter_of
from store import dead_letters as rows
from store.tables import outbox
from tests.databases import opened
from tests.lab import DEADLINE, ROOT
from topology.spec import Names

pytestmark = pytest.mark.machine

APP = """
from pydantic import BaseModel
from hareline import App, JobType

class Report(BaseModel):
    month: int

app = App(job_types=[JobType("report.build", Report)])
"""


async def bury(url: str, number: int) -> None:
    now = datetime.now(UTC)
    letters = []
    for n in range(number):
        headers = {"hareline-died-at": now.isoformat(), "hareline-error": "ValueError", "hareline-error-message": "no"}
        properties = BasicProperties(message_id=f"job-{n}", type="report.build", headers=headers)
        letters.append(letter_of(Names("t"), properties, b'{"month": "x"}', now, {}))
    async with opened(url) as database, database.transaction() as connection:
        await rows.record(connection, letters, now)


async def published(url: str) -> list[Any]:
    async with opened(url) as database, database.reading() as connection:
        return list((await connection.execute(select(outbox))).all())


def test_an_operator_looks_edits_replays_and_discards(tmp_path: Path, sqlite_url: str) -> None:
    (tmp_path / "shop.py").write_text(APP, encoding="utf-8")
    asyncio.run(bury(sqlite_url, 4))

    def run(*arguments: str, code: int = 0) -> str:
        more = {"HARELINE_DATABASE_URL": sqlite_url, "HARELINE_APP": "shop:app", "PYTHONPATH": str(ROOT)}
        done = subprocess.run(
            [sys.executable, "-m", "hareline", "dlq", *arguments],
            cwd=tmp_path,
            env={**os.environ, **more},
            capture_output=True,
            text=True,
            timeout=DEADLINE,
            check=False,
        )
        assert done.returncode == code, done.stdout + done.stderr
        assert "Traceback" not in done.stderr
        return done.stdout + done.stderr

    page = json.loads(run("list", "--type", "report.build", "--since", "1h", "--limit", "3", "--json"))
    assert len(page["items"]) == 3
    assert {"id", "job_id", "type", "error", "message", "attempts", "died_at", "payload", "replays"} <= set(
        page["items"][0]
    )
    one = str(page["items"][0]["id"])
    head, *listed = run("list", "--since", "1h", "--status", "all").splitlines()
    assert head.split() == ["ID", "DIED", "TYPE", "STATUS", "ATTEMPTS", "REPLAYS", "ERROR", "MESSAGE"]
    assert [line.index("report.build") for line in listed] == [head.index("TYPE")] * 4
    since = json.loads(run("list", "--since", "1h", "--limit", "3", "--json"))["next"]
    assert len(json.loads(run("list", "--since", "1h", "--cursor", since, "--json"))["items"]) == 1
    following = ("list", "--type", "report.build", "--limit", "3", "--cursor")
    assert len(json.loads(run(*following, page["next"], "--json"))["items"]) == 1
    assert "cursor" in run(*following, page["next"][:-2] + "zz", code=1)
    assert "no dead letter 999" in run("show", "999", code=1)
    assert json.loads(run("stats", "--json"))["total"] == 4
    assert json.loads(run("groups", "--json"))["items"][0]["count"] == 4
    assert "month" in run("edit", one, "--payload", '{"month": "y"}', code=1)
    assert "not JSON" in run("edit", one, "--payload", "{", code=2)
    assert json.loads(run("edit", one, "--payload", '{"month": 5}', "--json"))["id"]
    assert "3 would be replayed" in run("replay", "--all", "--dry-run")
    run("replay", code=2)
    assert "hareline relay" in run("replay", str(page["items"][1]["id"]))
    assert json.loads(run("discard", str(page["items"][2]["id"]), "--json")) == {"discarded": 1}
    assert json.loads(run("replay", "--all", "--json"))["replayed"] == 1
    assert json.loads(run("clean", "--json")) == {"deleted": 0}
    assert len(asyncio.run(published(sqlite_url))) == 3
