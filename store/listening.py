"""PostgreSQL's LISTEN, kept up: who waits for rows is woken at their commit."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextlib import suppress
from typing import Final

from store.engine import Database

logger = logging.getLogger(__name__)

_AGAIN: Final = 1.0


async def listen(database: Database, channel: str, on_notify: Callable[[], None]) -> None:
    """Calls ``on_notify`` for what is notified on ``channel``, and once whenever the connection is new. Runs for ever.

    What is notified while the connection is away is not heard: poll as well, now and then.
    """
    from psycopg import AsyncConnection, Error, sql  # noqa: PLC0415 - SQLite goes without

    conninfo = database.url.set(drivername="postgresql").render_as_string(hide_password=False)
    while True:
        with suppress(Error, OSError):
            async with await AsyncConnection.connect(conninfo, autocommit=True, connect_timeout=10) as connection:
                await connection.execute(sql.SQL("LISTEN {}").format(sql.Identifier(channel)))
                on_notify()
                async for _ in connection.notifies():
                    on_notify()
        logger.debug("the connection that listens on %s has gone; another one follows", channel)
        await asyncio.sleep(_AGAIN)
