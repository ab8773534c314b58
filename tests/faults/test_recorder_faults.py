"""The broker is killed under the recorder: what it had delivered comes again, and leaves the same rows."""

from __future__ import annotations

import asyncio
import json
import secrets
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest
from pika.spec import BasicProperties
from sqlalchemy import func, select

from consumers.recorder import Recorder
from hareline import Settings
from hareline.broker import Broker
from store.engine import Database
from store.tables import dead_letters, jobs, reporters
from tests.lab import DEADLINE, Lab, clear_namespace, until
from tests.nodes import Node
from topology import envelope
from topology.control import Control
from topology.envelope import Message, notice
from topology.publisher import Publisher

BATCHES = 60
EVENTS = 20
LETTERS = 300
LONG = 120.0
"""Seconds for a publish: the broker is killed meanwhile, and takes its time to come back."""


@pytest.fixture
async def own_lab(broker: Broker, request: pytest.FixtureRequest) -> AsyncIterator[Lab]:
    """A namespace of the test's own: what is in its queues is this test's."""
    settings = replace(Settings.from_env(), namespace=f"t-{secrets.token_hex(3)}", report=False)
    async with Lab(settings, request.node.name) as lab:
        yield lab
    await clear_namespace(settings)


def batch(lab: Lab, number: int) -> Message:
    """A batch of a reporter's: jobs that are done."""
    at = time.time()
    events = [["job.done", f"{number}-{n}", "t", 0, 1, at, 0.1, None, None] for n in range(EVENTS)]
    head = {"v": 1, "reporter": "r", "seq": number + 1, "dropped": 0}
    return notice(lab.names, "job.batch.done", json.dumps({**head, "events": events}).encode())


def letter(lab: Lab, number: int) -> Message:
    """A dead letter, as a worker sends it."""
    headers = {envelope.REASON: "permanent", envelope.DIED_AT: envelope.timestamp()}
    properties = BasicProperties(message_id=f"dead-{number}", type="t", delivery_mode=2, headers=headers)
    return Message(lab.names.dlx, "t", properties, b"{}")


@pytest.mark.kills
async def test_the_broker_is_killed_under_the_recorder(own_lab: Lab, node: Node, postgresql: Database) -> None:
    """Both parts have unacknowledged messages then. Each job and each dead letter is one row in the end."""
    lab = own_lab
    await lab.apply()
    await node.keep_topology()
    recorder = Recorder(lab.settings, Database(postgresql.url.render_as_string(hide_password=False)))
    running = asyncio.create_task(recorder.run())
    publisher = Publisher(lab.settings, "press")
    publisher.start()
    messages = [batch(lab, n) for n in range(BATCHES)] + [letter(lab, n) for n in range(LETTERS)]
    try:
        await _publish(publisher, messages[::2])
        await until(lambda: _any(postgresql), "the recorder is at work")
        rest = asyncio.create_task(_publish(publisher, messages[1::2]))
        await node.kill()
        await node.start()
        await asyncio.wait_for(rest, LONG)

        async def complete() -> bool:
            found = await _count(postgresql, jobs), await _count(postgresql, dead_letters)
            assert not running.done(), running.exception()
            return found == (BATCHES * EVENTS, LETTERS)

        await until(complete, "every job and every dead letter is a row, once", within=LONG)
        async with postgresql.reading() as connection:
            told = (await connection.execute(select(reporters))).one()
        assert (told.highest, told.received) == (BATCHES, BATCHES)

        async def empty() -> bool:
            return [await _depth(control, queue) for queue in (lab.names.records, lab.names.dlq)] == [0, 0]

        async with await Control.connect(lab.settings.broker_urls) as control:
            await until(empty, "and acknowledged", within=LONG)
    finally:
        recorder.drain()
        await asyncio.wait_for(running, DEADLINE)
        await publisher.stop(1.0)


async def _publish(publisher: Publisher, messages: list[Message]) -> None:
    await asyncio.gather(*(publisher.send(message, LONG) for message in messages))


async def _any(database: Database) -> bool:
    return await _count(database, jobs) > 0 and await _count(database, dead_letters) > 0


async def _count(database: Database, table: Any) -> int:
    async with database.reading() as connection:
        return int((await connection.execute(select(func.count()).select_from(table))).scalar_one())


async def _depth(control: Control, queue: str) -> int:
    counts = await control.counts(queue)
    return -1 if counts is None else counts.ready
