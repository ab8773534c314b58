"""A real SMTP server on a free loopback port. The recipient's address says how it behaves.

``greylisted-2-ann@...`` is refused with 451 twice and then taken; ``nobody-ann@...`` is refused with 550 for
good; every other recipient is taken at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import email
import email.policy
import re
import time
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass
from email.message import EmailMessage

from aiosmtpd.smtp import SMTP, Envelope, Session

from hareline.demo.effect import Effect

HOST = "127.0.0.1"
# To parse every mail would take more of the demo's two processors than all else the server does.
_JOB_ID = re.compile(rb"^X-Job-Id: *(\S+)\r$", re.MULTILINE)
_GREYLISTED = re.compile(r"greylisted-(\d+)-")


@dataclass(frozen=True, slots=True)
class Mail:
    """A mail that was taken, with its envelope."""

    sender: str
    recipient: str
    content: bytes

    @property
    def message(self) -> EmailMessage:
        """The content, parsed."""
        message = email.message_from_bytes(self.content, policy=email.policy.default)
        assert isinstance(message, EmailMessage)
        return message


class MailServer:
    """Takes mail and keeps what it took; see the module for who it refuses."""

    def __init__(self) -> None:
        self.port = 0
        self.mails: list[Mail] = []
        self.effects: list[Effect] = []
        self.refusals: Counter[str] = Counter()

    @contextlib.asynccontextmanager
    async def serve(self) -> AsyncIterator[MailServer]:
        """Listens on a free port, in the running event loop, until the block ends."""
        loop = asyncio.get_running_loop()
        server = await loop.create_server(
            lambda: SMTP(self, hostname="demo.localhost", enable_SMTPUTF8=True, loop=loop), HOST, 0
        )
        self.port = server.sockets[0].getsockname()[1]
        try:
            yield self
        finally:
            server.close()

    def taken_for(self, recipient: str) -> int:
        """How many mails were taken for that address."""
        return sum(mail.recipient == recipient for mail in self.mails)

    async def handle_RCPT(  # noqa: N802 - the name is aiosmtpd's
        self, _server: SMTP, _session: Session, envelope: Envelope, address: str, _options: list[str]
    ) -> str:
        """The answer to RCPT TO."""
        if address.startswith("nobody-"):
            self.refusals[address] += 1
            return "550 5.1.1 no such mailbox"
        greylisted = _GREYLISTED.match(address)
        if greylisted and self.refusals[address] < int(greylisted[1]):
            self.refusals[address] += 1
            return "451 4.7.1 greylisted: come back later"
        envelope.rcpt_tos.append(address)
        return "250 2.1.5 fine"

    async def handle_DATA(self, _server: SMTP, _session: Session, envelope: Envelope) -> str:  # noqa: N802
        """The answer to the mail itself."""
        content = envelope.original_content or b""
        job_id = _JOB_ID.search(content)
        self.effects.append(Effect(job_id[1].decode() if job_id else "", time.time()))
        self.mails.append(Mail(str(envelope.mail_from), str(envelope.rcpt_tos[0]), content))
        return "250 2.0.0 taken"
