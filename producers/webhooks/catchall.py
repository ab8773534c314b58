"""The catch-all: what a delivery becomes that no job type is declared for."""

from __future__ import annotations

from typing import Final

from pydantic import BaseModel, JsonValue

from topology.contract import JobType


class WebhookReceived(BaseModel):
    """A delivery with its body, and where it came from."""

    source: str
    event: str | None = None
    webhook_id: str
    body: JsonValue


webhook_received: Final = JobType("webhook.received", WebhookReceived)
