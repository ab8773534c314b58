"""The connection that comes back by itself, and its end."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from tests.lab import Lab
from topology.link import Connection, Link

pytestmark = pytest.mark.machine


async def test_a_link_that_is_stopped_while_it_connects_ends_without_a_word(lab: Lab) -> None:
    """At whatever point of the handshake: nothing is raised into the event loop, where it would be logged."""
    trouble: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: trouble.append(context))

    async def up(_: Connection) -> None:
        pass

    for n in range(60):
        link = Link(lab.settings.broker_urls, "a link", on_up=up, on_down=lambda _: None)
        link.start()
        await asyncio.sleep(n * 0.0005)  # each at another point
        await link.stop()
    await asyncio.sleep(0.2)  # what was abandoned ends behind us
    assert trouble == []
