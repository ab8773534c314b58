"""An e-mail campaign: one job per recipient, at a rate, behind the shop's own mail, to pause and to cancel.

export HARELINE_APP=examples.campaign.app:app HARELINE_DATABASE_URL=sqlite:////tmp/campaign.db
export SMTP_HOST=127.0.0.1 SMTP_PORT=2525 SMTP_TLS=none SMTP_SENDER='Shop <shop@example.com>'
python -m aiosmtpd -n -l 127.0.0.1:2525 -c aiosmtpd.handlers.Mailbox /tmp/mails &
hareline db upgrade && hareline topology apply
hareline relay &
hareline worker --concurrency 20 &
printf 'email,name\nann@example.com,Ann\nbob@example.com,Bob\nAnn@Example.com,Ann again\n' > /tmp/recipients.csv
python -m examples.campaign create spring /tmp/recipients.csv --subject 'Spring, {name}' --text 'Hello {name}.'
python -m examples.campaign start spring
python -m examples.campaign status spring --wait

Also: pause, resume, cancel, bounces. `campaign.feed` hands out recipients at the campaign's rate, in transactions
that also hold their jobs. The mails are `email.send` jobs of priority 1; other mail has 4, and passes.
"""

from __future__ import annotations

import functools
from datetime import UTC, datetime, timedelta

from pydantic import BaseModel, ValidationError

from consumers.jobs import email
from examples.campaign import campaigns
from hareline import App, Job, JobType, Permanent, Producer, Retry, Settings
from store.engine import Database

BATCH_SECONDS = 1.0
PRIORITY = 1
PAUSED_LOOK = 10.0


class Mail(email.Email):
    """A mail; of a campaign or, without one, of the shop's own."""

    campaign: str | None = None


class Feed(BaseModel):
    """``start`` tells apart the jobs of a campaign that was paused and resumed."""

    campaign: str
    start: int


send_mail = JobType("email.send", Mail, retry=email.send_email.retry, timeout=60.0, priority=True, group="mail")
feed = JobType("campaign.feed", Feed, retry=Retry(attempts=50, base=1.0, cap=60.0), timeout=60.0)
app = App(job_types=[send_mail, feed])


@functools.cache
def settings() -> Settings:
    return Settings.from_env()


@functools.cache
def database() -> Database:
    return Database.from_settings(settings())


@functools.cache
def producer() -> Producer:
    return Producer(settings())  # never opened: its jobs go through the outbox


@app.handler(feed)
async def hand_out(payload: Feed, job: Job) -> None:
    """Enqueues the next second's mails, and comes back for more until nobody is left."""
    now = datetime.now(UTC)
    async with database().transaction() as connection:
        campaign = await campaigns.get(connection, payload.campaign, lock=True)
        if campaign is None or campaign.status != "running" or campaign.starts != payload.start:
            return  # paused or cancelled; what resumes it enqueues another job
        wait = (campaign.next_at - now).total_seconds() if campaign.next_at else 0.0
        rows = []
        if wait <= 0:
            count = max(1, round(campaign.per_second * BATCH_SECONDS))
            wait = count / campaign.per_second
            rows = await campaigns.take(connection, campaign.name, count, now + timedelta(seconds=wait))
            if not rows:
                return
        for row in rows:
            try:
                mail = Mail(
                    to=row.email,
                    subject=campaign.subject.replace("{name}", row.name),
                    text=campaign.text.replace("{name}", row.name),
                    campaign=campaign.name,
                )
            except ValidationError as error:
                await campaigns.note(connection, campaign.name, row.email, "bounced", error.errors()[0]["msg"])
                continue
            await producer().enqueue(
                send_mail, mail, key=f"{campaign.name}/{row.email}", priority=PRIORITY, connection=connection
            )
    await job.snooze(wait)


@app.handler(send_mail)
async def send(mail: Mail, job: Job) -> None:
    """Sends it, unless its campaign is paused or cancelled by now. A bounce is noted; it is no dead letter."""
    server = email.SmtpServer.from_settings(settings().extra)
    if mail.campaign is None:
        await email.send(mail, job, server)
        return
    async with database().reading() as connection:
        found = await campaigns.recipient(connection, mail.campaign, mail.to.lower())
    if found is None or found.campaign_status == "cancelled":
        await job.cancel(f"campaign {mail.campaign} is cancelled")
    if found.status != "queued":
        return  # sent by an earlier delivery
    if found.campaign_status == "paused":
        await job.snooze(PAUSED_LOOK)
    bounce: str | None = None
    try:
        await email.send(mail, job, server)
    except Permanent as error:
        bounce = str(error)
    async with database().transaction() as connection:
        status = "sent" if bounce is None else "bounced"
        await campaigns.note(connection, mail.campaign, mail.to.lower(), status, bounce)
