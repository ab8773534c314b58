"""``webhook.received``: what becomes of deliveries that nobody has declared a job type for."""

from __future__ import annotations

import logging

from consumers.job import Job
from consumers.jobs import Handlers
from producers.webhooks.catchall import WebhookReceived, webhook_received

logger = logging.getLogger(__name__)


def register(app: Handlers) -> None:
    """Gives ``app`` a handler that notes source, event and id in the log; the body stays in the job log alone."""

    @app.handler(webhook_received)
    async def handle(payload: WebhookReceived, job: Job) -> None:
        logger.info(
            "%s: nothing is declared for event %r (webhook %s, job %s)",
            payload.source,
            payload.event,
            payload.webhook_id,
            job.id,
        )
