"""The app of the demo's webhooks: a shop's orders and GitHub's pushes each become a mail."""

from __future__ import annotations

from hareline.app import App
from hareline.demo.contracts import send_email
from producers.webhooks.source import WebhookSource

app = App(
    job_types=[send_email],
    webhooks=[
        WebhookSource("shop", scheme="woocommerce", events={"order.created": send_email}, default=send_email),
        WebhookSource("github", scheme="github", events={"push": send_email}, default=send_email),
    ],
)
