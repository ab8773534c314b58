"""An API with idempotency keys, for tests that kill its process: ``python -m tests.orders_service URL AHEAD MODE``.

AHEAD is how many seconds its clock is ahead. MODE ``hang``: the handler commits its effect and never answers.
"""

from __future__ import annotations

import asyncio
import socket
import sys
from datetime import UTC, datetime, timedelta

import uvicorn
from sqlalchemy import text
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from hareline import Idempotency, Settings
from store.engine import Database


def main() -> None:
    """Prints its port, then a line for each run of the handler."""
    url, ahead, mode = sys.argv[1:]
    database = Database(url)

    async def order(request: Request) -> JSONResponse:
        key = request.headers["Idempotency-Key"]
        async with database.transaction() as connection:
            await connection.execute(text("INSERT INTO effects VALUES (:key)"), {"key": key})
        print(f"run {key}", flush=True)
        if mode == "hang":
            await asyncio.Event().wait()
        return JSONResponse({"mode": mode}, 201)

    def clock() -> datetime:
        return datetime.now(UTC) + timedelta(seconds=float(ahead))

    guard = Middleware(Idempotency, Settings(database_url=url), database=database, clock=clock, lease=3600.0)
    application = Starlette(routes=[Route("/orders", order, methods=["POST"])], middleware=[guard])
    listening = socket.create_server(("127.0.0.1", 0))
    print(listening.getsockname()[1], flush=True)
    uvicorn.Server(uvicorn.Config(application, log_level="error")).run(sockets=[listening])


if __name__ == "__main__":
    main()
