"""What every test may ask for: a real broker, a namespace with its topology, workers and producers in it."""

from __future__ import annotations

import asyncio
import os
import secrets
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace

import pytest

from hareline.broker import Broker, find_broker
from tests.lab import Lab, clear_namespace
from tests.nodes import Node
from topology.settings import Settings

pytest_plugins = ["tests.databases"]


@pytest.fixture(scope="session")
def broker() -> Iterator[Broker]:
    """A broker that answers. Missing means failed, never skipped."""
    with find_broker() as found:
        # Everything that a test starts, child processes too, finds the same broker.
        os.environ.update(found.environment)
        yield found


@pytest.fixture(scope="session")
def session_settings(broker: Broker) -> Iterator[Settings]:
    """One namespace for the session: the ladder is made once, job types are each test's own."""
    settings = replace(Settings.from_env(), namespace=f"t-{secrets.token_hex(3)}", report=False)
    yield settings
    asyncio.run(clear_namespace(settings))


@pytest.fixture
async def node(broker: Broker) -> AsyncIterator[Node]:
    """The broker as something to kill. It is up again when the test ends, whatever happened."""
    node = Node(broker)
    yield node
    await node.start()


@pytest.fixture
async def lab(session_settings: Settings, request: pytest.FixtureRequest) -> AsyncIterator[Lab]:
    """The test's own corner of the session's namespace."""
    async with Lab(session_settings, request.node.name) as lab:
        yield lab
