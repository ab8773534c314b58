"""The dead-letter desk when its operator's commands are stopped, killed or run twice, or lose their database."""

from __future__ import annotations

import asyncio
import json
import signal
from asyncio.subprocess import Process

import pytest

from store.engine import Database
from tests.graveyard import bury, dlq, issued, marked
from tests.lab import DEADLINE, until
from tests.postgres import Cluster

pytestmark = [pytest.mark.machine, pytest.mark.kills, pytest.mark.timeout(300)]

MANY = 120
SLOWLY = ("replay", "--all", "--rate", "40")
"""Three chunks, a second apart."""


async def begun(database: Database) -> None:
    async def some() -> bool:
        return bool(await issued(database))

    await until(some, "the first chunk is committed")


async def ended(process: Process) -> tuple[str, str]:
    out, err = await asyncio.wait_for(process.communicate(), DEADLINE)
    assert b"Traceback" not in err
    return out.decode(), err.decode()


async def replayed_once(database: Database) -> None:
    found = await issued(database)
    assert (len(found), set(found.values())) == (MANY, {1})
    assert await marked(database) == MANY


async def test_a_killed_bulk_replay_loses_and_doubles_nothing(database: Database, database_url: str) -> None:
    """What is marked is in the outbox and nothing else, and the same command goes on with the rest."""
    await bury(database, MANY)
    async with dlq(database_url, *SLOWLY) as process:
        await begun(database)
        process.send_signal(signal.SIGKILL)
        await process.wait()
    before = await issued(database)
    assert 0 < len(before) == await marked(database)
    async with dlq(database_url, "replay", "--all", "--json") as process:
        told = json.loads((await ended(process))[0])
    assert told == {"replayed": MANY - len(before), "matched": MANY - len(before), "dry_run": False}
    await replayed_once(database)


async def test_ctrl_c_says_how_many_were_done_and_how_to_go_on(database: Database, database_url: str) -> None:
    await bury(database, MANY)
    async with dlq(database_url, *SLOWLY) as process:
        await begun(database)
        process.send_signal(signal.SIGINT)
        out, err = await ended(process)
        assert process.returncode == 130
    done = await marked(database)
    assert 0 < done == len(await issued(database)) < MANY
    assert f"{done} of {MANY} replayed" in out
    assert "the same command goes on" in err
    async with dlq(database_url, "replay", "--all") as process:
        out, _ = await ended(process)
        assert process.returncode == 0
    assert f"{MANY - done} of {MANY - done} replayed" in out
    await replayed_once(database)


async def test_two_bulk_replays_at_once_share_the_letters(database: Database, database_url: str) -> None:
    await bury(database, MANY)
    async with dlq(database_url, *SLOWLY, "--json") as one, dlq(database_url, *SLOWLY, "--json") as two:
        told = [json.loads(out)["replayed"] for out, _ in await asyncio.gather(ended(one), ended(two))]
    assert sum(told) == MANY
    await replayed_once(database)


async def watching(process: Process) -> None:
    assert process.stderr is not None
    assert b"Ctrl-C" in await asyncio.wait_for(process.stderr.readline(), DEADLINE)


async def lines(process: Process, number: int) -> list[str]:
    assert process.stdout is not None
    return [(await asyncio.wait_for(process.stdout.readline(), DEADLINE)).decode() for _ in range(number)]


async def test_a_watch_prints_what_is_recorded_until_ctrl_c(database: Database, database_url: str) -> None:
    await bury(database, 2)
    async with dlq(database_url, "watch") as plain, dlq(database_url, "watch", "--json") as machine:
        await asyncio.gather(watching(plain), watching(machine))
        await bury(database, 3, first=10)
        wanted = ["job-10", "job-11", "job-12"]
        assert sorted(json.loads(line)["job_id"] for line in await lines(machine, 3)) == wanted
        assert all("report.build" in line and "ValueError" in line for line in await lines(plain, 3))
        for process in (plain, machine):
            process.send_signal(signal.SIGINT)
            out, _ = await ended(process)
            assert (process.returncode, out) == (0, "")


async def test_a_watch_waits_for_its_database_and_goes_on(
    cluster: Cluster, postgresql: Database, postgresql_url: str
) -> None:
    async with dlq(postgresql_url, "watch", "--json") as process:
        await watching(process)
        await bury(postgresql, 1)
        assert [json.loads(line)["job_id"] for line in await lines(process, 1)] == ["job-0"]
        cluster.kill()
        try:
            assert process.stderr is not None
            assert b"waits for the database" in await asyncio.wait_for(process.stderr.readline(), DEADLINE)
        finally:
            cluster.start()
        await postgresql.close()
        await bury(postgresql, 1, first=1)
        assert [json.loads(line)["job_id"] for line in await lines(process, 1)] == ["job-1"]
        process.send_signal(signal.SIGINT)
        await ended(process)
        assert process.returncode == 0
