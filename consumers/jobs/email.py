"""``email.send``: one mail to one recipient over SMTP.

One job is one recipient on purpose: with several, a retry for the one who was refused would mail the others
again.
"""

from __future__ import annotations

import email.utils
import uuid
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from email.message import EmailMessage
from typing import Annotated, Final, Literal

import aiosmtplib
from pydantic import BaseModel, EmailStr, Field

from consumers.breaker import Breaker
from consumers.job import Job
from consumers.jobs import Handlers
from consumers.outcome import Permanent, Transient
from topology.contract import JobType, Retry
from topology.errors import SettingsError

Tls = Literal["none", "starttls", "implicit"]

_PORTS: Final[Mapping[str, int]] = {"none": 25, "starttls": 587, "implicit": 465}
_MESSAGE_IDS: Final = uuid.UUID("b0a9b0bb-52c5-5b5e-9d6b-2f6d0b3f0f5a")


class Email(BaseModel):
    """``text`` is always sent; ``html`` is its alternative. A subject is one line of up to 500 characters."""

    to: EmailStr
    subject: Annotated[str, Field(max_length=500, pattern=r"^[^\x00-\x1f\x7f]*$")]
    text: str
    html: str | None = None
    reply_to: EmailStr | None = None


send_email = JobType("email.send", Email, retry=Retry(attempts=8, base=15.0), timeout=60.0)


@dataclass(frozen=True, slots=True)
class SmtpServer:
    """The server that takes the mail, and who it comes from. ``timeout`` is seconds for each answer."""

    host: str
    sender: str
    port: int = 587
    tls: Tls = "starttls"
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    timeout: float = 15.0

    @classmethod
    def from_settings(cls, extra: Mapping[str, str]) -> SmtpServer:
        """From ``Settings.from_env().extra``. Raises SettingsError that names the variable.

        ``SMTP_HOST`` and ``SMTP_SENDER`` are needed; ``SMTP_TLS`` (starttls, implicit or none),
        ``SMTP_PORT``, ``SMTP_USERNAME`` and ``SMTP_PASSWORD`` may follow.
        """
        for name in ("SMTP_HOST", "SMTP_SENDER"):
            if not extra.get(name):
                raise SettingsError(f"{name} is not set: email.send needs it")
        tls = extra.get("SMTP_TLS", "starttls")
        if tls not in _PORTS:
            raise SettingsError(f"SMTP_TLS is '{tls}': use starttls, implicit or none")
        port = extra.get("SMTP_PORT") or str(_PORTS[tls])
        if not port.isdecimal():
            raise SettingsError(f"SMTP_PORT is '{port}': a number is needed")
        return cls(
            host=extra["SMTP_HOST"],
            sender=extra["SMTP_SENDER"],
            port=int(port),
            tls="starttls" if tls == "starttls" else "implicit" if tls == "implicit" else "none",
            username=extra.get("SMTP_USERNAME"),
            password=extra.get("SMTP_PASSWORD"),
        )


def register(
    app: Handlers, server: SmtpServer, job_type: JobType[Email] = send_email, *, breaker: Breaker | None = None
) -> None:
    """Gives ``app`` the handler. ``job_type`` may be a copy with another retry policy or timeout.

    ``breaker`` guards the service: while it is open none of the jobs is consumed.
    """
    guard = nullcontext() if breaker is None else breaker

    @app.handler(job_type, breaker=() if breaker is None else breaker)
    async def handle(payload: Email, job: Job) -> None:
        async with guard:
            await send(payload, job, server)


async def send(payload: Email, job: Job, server: SmtpServer) -> None:
    """Hands the mail to ``server``.

    A 5xx answer to this mail is Permanent. A 4xx answer, no answer, and a server that turns everybody away
    (at the greeting or the login) are Transient. When the connection breaks after the mail went out, nobody
    knows whether it was taken: it is sent again under the same Message-ID.
    """
    try:
        message = compose(payload, job, server.sender)
    except ValueError as error:
        raise Permanent(f"cannot be written as a mail: {error}") from error
    try:
        await aiosmtplib.send(
            message,
            hostname=server.host,
            port=server.port,
            username=server.username,
            password=server.password,
            use_tls=server.tls == "implicit",
            start_tls=server.tls == "starttls",
            timeout=server.timeout,
        )
    except (aiosmtplib.SMTPRecipientsRefused, aiosmtplib.SMTPResponseException) as error:
        refusal = error.recipients[0] if isinstance(error, aiosmtplib.SMTPRecipientsRefused) else error
        if refusal.code < 500 or isinstance(refusal, _NOT_ABOUT_THE_MAIL):  # noqa: PLR2004 - SMTP: 5yz is for good
            raise Transient(f"SMTP {refusal.code}: {refusal.message}") from error
        raise Permanent(f"SMTP {refusal.code}: {refusal.message}") from error
    except aiosmtplib.SMTPNotSupported as error:
        raise Permanent(f"the server cannot take such a mail: {error}") from error
    except (aiosmtplib.SMTPException, OSError) as error:
        raise Transient(f"{server.host}:{server.port}: {str(error) or type(error).__name__}") from error


_NOT_ABOUT_THE_MAIL = (
    aiosmtplib.SMTPConnectResponseError,
    aiosmtplib.SMTPHeloError,
    aiosmtplib.SMTPAuthenticationError,
)


def compose(payload: Email, job: Job, sender: str) -> EmailMessage:
    """The mail. Its Message-ID follows from the job's idempotency key, so that a repeat can be recognised.

    EmailMessage quotes and folds every header; it raises ValueError for one that would start another.
    """
    message = EmailMessage()
    message["From"] = sender
    message["To"] = payload.to
    message["Subject"] = payload.subject
    if payload.reply_to:
        message["Reply-To"] = payload.reply_to
    message["Date"] = email.utils.localtime()
    domain = email.utils.parseaddr(sender)[1].rpartition("@")[2] or "localhost"
    message["Message-ID"] = f"<{uuid.uuid5(_MESSAGE_IDS, job.idempotency_key).hex}@{domain}>"
    message["X-Job-Id"] = job.id
    message.set_content(payload.text)
    if payload.html is not None:
        message.add_alternative(payload.html, subtype="html")
    return message
