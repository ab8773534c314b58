"""``Idempotency-Key`` on a service's own API, over real HTTP and on both databases."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from hareline import Idempotency
from store.engine import Database
from store.retention import Retention, clean
from tests.databases import opened
from tests.faults.proxy import Proxy
from tests.webhooks import NOWHERE, listening
from topology.settings import Settings

pytestmark = pytest.mark.machine

DAYS = Retention.of(Settings())


class Api:
    """An API that counts its runs; what it answers and how long it takes is the test's to say."""

    def __init__(self) -> None:
        self.runs = 0
        self.answer: Any = None
        self.begun = asyncio.Event()
        self.go_on = asyncio.Event()
        self.go_on.set()
        self.now = datetime(2030, 1, 31, 12, tzinfo=UTC)

    async def order(self, request: Request) -> Response:
        self.runs += 1
        run = self.runs
        document = await request.json()
        self.begun.set()
        await self.go_on.wait()
        if isinstance(self.answer, Exception):
            raise self.answer
        if self.answer is not None:
            return Response(status_code=self.answer)
        return JSONResponse({"run": run, **document}, 201, {"Location": f"/orders/{run}"})

    @asynccontextmanager
    async def serving(self, database: Database, **options: Any) -> AsyncIterator[httpx.AsyncClient]:
        methods = ["POST", "PUT", "PATCH"]
        middleware = Middleware(Idempotency, NOWHERE, database=database, clock=lambda: self.now, **options)
        routes = [Route(path, self.order, methods=methods) for path in ("/orders", "/open")]
        async with listening(Starlette(routes=routes, middleware=[middleware])) as found:
            yield found.client


@pytest.fixture
def api() -> Api:
    return Api()


async def post(
    client: httpx.AsyncClient, key: str | None = "k", document: Any = None, path: str = "/orders", **headers: str
) -> httpx.Response:
    given = {} if key is None else {"Idempotency-Key": key}
    return await client.post(path, json=document or {"n": 1}, headers={**given, **headers})


async def test_a_repeat_gets_the_first_answer(api: Api, database: Database) -> None:
    async with api.serving(database) as client:
        first, again = await post(client), await post(client, '"k"')
        assert (first.status_code, first.json()) == (201, {"run": 1, "n": 1})
        assert "idempotency-replayed" not in first.headers
        assert (again.status_code, again.content, again.headers["location"]) == (201, first.content, "/orders/1")
        assert again.headers["idempotency-replayed"] == "true"
        assert (await post(client, "other")).json()["run"] == 2


async def test_the_same_key_with_another_call_is_refused(api: Api, database: Database) -> None:
    async with api.serving(database) as client:
        await post(client)
        for answer in (
            await post(client, document={"n": 2}),
            await post(client, path="/orders?dry=1"),
            await post(client, path="/open"),
            await client.patch("/orders", json={"n": 1}, headers={"Idempotency-Key": "k"}),
        ):
            assert (answer.status_code, answer.headers["content-type"]) == (422, "application/problem+json")
    assert api.runs == 1


async def test_while_the_first_call_runs_a_repeat_is_told_so(api: Api, database: Database) -> None:
    api.go_on.clear()
    async with api.serving(database) as client:
        first = asyncio.create_task(post(client))
        await api.begun.wait()
        busy = await post(client)
        assert (busy.status_code, busy.headers["retry-after"]) == (409, "1")
        assert (await post(client, document={"n": 2})).status_code == 422
        api.go_on.set()
        assert (await first).status_code == 201
        assert (await post(client)).headers["idempotency-replayed"] == "true"


async def test_a_hundred_at_once_run_once(api: Api, database: Database) -> None:
    async with api.serving(database) as client:
        answers = await asyncio.gather(*(post(client) for _ in range(100)))
        assert Counter(answer.status_code for answer in answers).keys() <= {201, 409}
    assert api.runs == 1


@pytest.mark.parametrize("key", [None, "", '""', "x" * 256])
async def test_a_key_is_required(api: Api, database: Database, key: str | None) -> None:
    async with api.serving(database) as client:
        assert (await post(client, key)).status_code == 400
        twice = [("Idempotency-Key", "a"), ("Idempotency-Key", "b")]
        assert (await client.post("/orders", json={}, headers=twice)).status_code == 400
        assert (await client.put("/orders", json={"n": 1})).status_code == 201, "PUT is idempotent by itself"
    assert api.runs == 1


async def test_it_may_be_voluntary_and_for_some_paths(api: Api, database: Database) -> None:
    async with api.serving(database, required=False, paths=["/orders"]) as client:
        for key, path in ((None, "/orders"), (None, "/open"), ("k", "/open"), ("k", "/open")):
            assert "idempotency-replayed" not in (await post(client, key, path=path)).headers
        await post(client)
        assert (await post(client)).headers["idempotency-replayed"] == "true"
    assert api.runs == 5


async def test_callers_do_not_see_each_others_answers(api: Api, database: Database) -> None:
    async with api.serving(database) as client:
        for number, proof in enumerate(("Bearer one", "Bearer two"), start=1):
            assert (await post(client, Authorization=proof)).json()["run"] == number
        assert (await post(client, Authorization="Bearer one")).json()["run"] == 1


@pytest.mark.parametrize("failure", [503, 500, RuntimeError("broken")])
async def test_a_call_that_failed_may_be_repeated(api: Api, database: Database, failure: Any) -> None:
    async with api.serving(database) as client:
        api.answer = failure
        assert (await post(client)).status_code >= 500
        api.answer = 404
        assert (await post(client)).status_code == 404
        again = await post(client)
        assert (again.status_code, again.headers["idempotency-replayed"]) == (404, "true"), "not ours to mend: kept"
    assert api.runs == 2


async def test_a_call_whose_process_died_is_run_again_after_its_lease(api: Api, database: Database) -> None:
    api.go_on.clear()
    async with api.serving(database, lease=60.0) as client:
        first = asyncio.create_task(post(client))
        await api.begun.wait()
        api.now += timedelta(seconds=59)
        assert (await post(client)).status_code == 409
        api.now += timedelta(seconds=2)
        second = asyncio.create_task(post(client))
        api.begun.clear()
        await api.begun.wait()
        api.go_on.set()
        answers = [(await call).json()["run"] for call in (first, second)]
        assert answers == [1, 2]
        assert (await post(client)).json()["run"] == 2, "what the lease's owner was answered"


async def test_answers_are_kept_for_a_day(api: Api, database: Database) -> None:
    async with api.serving(database) as client:
        await post(client)
        api.now += timedelta(hours=23)
        assert (await post(client)).json()["run"] == 1
        api.now += timedelta(hours=1)
        assert (await post(client)).json()["run"] == 2
    assert (await clean(database, DAYS, clock=lambda: api.now))["answers"] == 0
    assert (await clean(database, DAYS, clock=lambda: api.now + timedelta(days=2)))["answers"] == 1


async def test_with_the_database_away_nothing_is_run(api: Api, postgresql_url: str) -> None:
    async with Proxy(postgresql_url) as proxy, opened(proxy.url) as database, api.serving(database) as client:
        await proxy.refuse()
        answer = await post(client)
        assert (answer.status_code, api.runs) == (503, 0)
        assert answer.headers["retry-after"]
        await proxy.accept()
        assert (await post(client)).status_code == 201
