"""The app of the webhook scenarios: one source, and a handler whose effect commits with the inbox."""

from pydantic import BaseModel
from sqlalchemy import text

from hareline import App, Job, JobType, WebhookSource

SOURCE = "bench"
SECRET = "the-secret-of-the-bench"
EVENT = "bench.delivered"
# No key: what is handled twice is to be seen.
TABLE = "CREATE TABLE bench_handled (webhook_id text NOT NULL, number integer NOT NULL)"
HANDLED = text("INSERT INTO bench_handled (webhook_id, number) VALUES (:webhook_id, :number)")


class Delivered(BaseModel):
    event: str
    number: int
    pad: str


delivered = JobType("bench.webhook", Delivered, timeout=60.0)
app = App(
    job_types=[delivered],
    webhooks=[WebhookSource(SOURCE, secrets=[SECRET], events={EVENT: delivered}, default=delivered)],
)


@app.handler(delivered)
async def handle(payload: Delivered, job: Job) -> None:
    async with job.transaction() as connection:
        row = {"webhook_id": job.headers["hareline-webhook-id"], "number": payload.number}
        await connection.execute(HANDLED, row)
