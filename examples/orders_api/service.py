"""An API that takes an order once, however often it is sent, and a shop's webhooks beside it.

export HARELINE_DATABASE_URL=sqlite:////tmp/orders.db HARELINE_WEBHOOKS_SECRETS_SHOP=hush-hush
hareline db upgrade
uvicorn service:application --port 8080
curl -i localhost:8080/orders -H 'Idempotency-Key: a1' -d '{"id": 7}'     # again: the same answer, replayed
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from pydantic import BaseModel, ValidationError
from sqlalchemy.ext.asyncio import create_async_engine
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Mount, Route

from hareline import App, Idempotency, JobType, Producer, Settings, WebhookReceiver, WebhookSource


class Order(BaseModel):
    id: int


book = JobType("order.book", Order)
shop = WebhookSource("shop", scheme="woocommerce", events={"order.created": book})
app = App(job_types=[book], webhooks=[shop])

settings = Settings.from_env()
engine = create_async_engine(settings.database_url.replace("sqlite:", "sqlite+aiosqlite:"))
producer = Producer(settings)
receiver = WebhookReceiver(app.webhooks, settings)


async def order(request: Request) -> JSONResponse:
    """Commits the job; `hareline relay` publishes it."""
    try:
        wanted = Order.model_validate_json(await request.body())
    except ValidationError:
        return JSONResponse({"error": "an order has an id"}, 400)
    async with engine.begin() as connection:  # your own statements would be in here, too
        # The key again: a process that dies between this commit and its answer is repeated, and makes no second job.
        key = request.headers["Idempotency-Key"]
        job_id = await producer.enqueue(book, wanted, key=key, connection=connection)
    return JSONResponse({"job": job_id}, 202)


@asynccontextmanager
async def lifespan(_: Starlette) -> AsyncIterator[None]:
    yield
    await receiver.close()
    await engine.dispose()


application = Starlette(
    routes=[Route("/orders", order, methods=["POST"]), Mount("/hooks", app=receiver)],
    middleware=[Middleware(Idempotency, settings, paths=["/orders"])],
    lifespan=lifespan,
)
