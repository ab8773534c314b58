"""``email.send`` against a real SMTP server."""

from __future__ import annotations

import asyncio
import socket

import pytest
from pydantic import ValidationError

from consumers.job import Job
from consumers.jobs import email
from consumers.jobs.email import Email, SmtpServer
from consumers.outcome import Permanent, Transient
from consumers.registry import Registry
from hareline.demo.smtp import MailServer
from topology.envelope import Envelope
from topology.errors import SettingsError

SENDER = "Shop <shop@example.org>"


def job(job_id="0192f0c1-0000-7000-8000-000000000001", attempt=1):
    return Job(Envelope(job_id, "email.send", attempt, 0, job_id, None, {}, b""))


def mail(**changes):
    return Email(**{"to": "ann@example.com", "subject": "Welcome", "text": "Hello Ann", **changes})


@pytest.fixture
async def server():
    async with MailServer().serve() as server:
        yield server


@pytest.fixture
def smtp(server):
    return SmtpServer("127.0.0.1", SENDER, port=server.port, tls="none")


async def test_a_mail_arrives_with_its_text_its_html_and_the_job_id(server, smtp):
    """The recipient gets both forms; X-Job-Id leads back to the job."""
    await email.send(
        mail(subject="Grüße aus Köln", html="<p>Hello <b>Ann</b></p>", reply_to="help@example.org"),
        job(),
        smtp,
    )
    (arrived,) = server.mails
    assert arrived.sender == "shop@example.org"
    assert arrived.recipient == "ann@example.com"
    assert arrived.message["Subject"] == "Grüße aus Köln"
    assert arrived.message["Reply-To"] == "help@example.org"
    assert arrived.message["X-Job-Id"] == job().id
    assert arrived.message["Date"] is not None
    assert arrived.message.get_body(("plain",)).get_content().strip() == "Hello Ann"
    assert "<b>Ann</b>" in arrived.message.get_body(("html",)).get_content()


async def test_a_repeat_carries_the_same_message_id_and_another_job_another(server, smtp):
    """Mail systems recognise a repeat by its Message-ID."""
    await email.send(mail(), job(), smtp)
    await email.send(mail(), job(attempt=2), smtp)
    await email.send(mail(), job("0192f0c1-0000-7000-8000-000000000002"), smtp)
    first, repeat, other = (arrived.message["Message-ID"] for arrived in server.mails)
    assert first == repeat
    assert first != other
    assert first.endswith("@example.org>")


async def test_a_greylisting_server_is_asked_again_later(server, smtp):
    """A 4xx answer is Transient, and the next attempt goes through."""
    payload = mail(to="greylisted-1-ann@example.com")
    with pytest.raises(Transient, match="451"):
        await email.send(payload, job(), smtp)
    await email.send(payload, job(attempt=2), smtp)
    assert len(server.mails) == 1


async def test_an_unknown_recipient_is_refused_for_good(server, smtp):
    """A 5xx answer is Permanent and carries what the server said."""
    with pytest.raises(Permanent, match=r"550.*no such mailbox"):
        await email.send(mail(to="nobody-1@example.com"), job(), smtp)
    assert server.mails == []


async def test_a_server_that_is_down_is_transient():
    """Nobody listens: try again later."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        closed = SmtpServer("127.0.0.1", SENDER, port=held.getsockname()[1], tls="none")
        with pytest.raises(Transient, match=r"127\.0\.0\.1"):
            await email.send(mail(), job(), closed)


async def test_a_server_that_never_answers_is_transient():
    """The timeout applies to the greeting too."""

    async def silent(reader, writer):
        await reader.read()
        writer.close()

    listener = await asyncio.start_server(silent, "127.0.0.1", 0)
    async with listener:
        port = listener.sockets[0].getsockname()[1]
        slow = SmtpServer("127.0.0.1", SENDER, port=port, tls="none", timeout=0.2)
        with pytest.raises(Transient):
            await email.send(mail(), job(), slow)


@pytest.mark.parametrize("greeting", [b"554 no service\r\n", b"421 too busy\r\n", b"what?\r\n", b""])
async def test_a_server_that_turns_everybody_away_says_nothing_about_this_mail(greeting):
    """Even a 5xx greeting is Transient: one bad hour of the server must not kill every mail in the queue."""

    async def unwelcoming(reader, writer):
        writer.write(greeting)
        await writer.drain()
        writer.close()

    listener = await asyncio.start_server(unwelcoming, "127.0.0.1", 0)
    async with listener:
        port = listener.sockets[0].getsockname()[1]
        with pytest.raises(Transient):
            await email.send(mail(), job(), SmtpServer("127.0.0.1", SENDER, port=port, tls="none", timeout=5))


async def test_starttls_is_never_skipped_silently(server):
    """A server without STARTTLS does not get the mail in the clear."""
    secure = SmtpServer("127.0.0.1", SENDER, port=server.port, tls="starttls")
    with pytest.raises((Permanent, Transient)):
        await email.send(mail(), job(), secure)
    assert server.mails == []


@pytest.mark.parametrize("subject", ["Hello\r\nBcc: all@example.com", "Hello\nBcc: x@example.com", "a\x00b"])
def test_a_subject_cannot_start_another_header_at_the_producer(subject):
    """The payload model refuses it before the job leaves."""
    with pytest.raises(ValidationError):
        mail(subject=subject)


async def test_a_subject_cannot_start_another_header_at_the_consumer(server, smtp):
    """A payload that was built around the model is refused for good, and no mail leaves."""
    hostile = mail().model_copy(update={"subject": "Hello\r\nBcc: all@example.com"})
    with pytest.raises(Permanent):
        await email.send(hostile, job(), smtp)
    with pytest.raises(Permanent):
        await email.send(mail(), job("1\r\nBcc: all@example.com"), smtp)
    assert server.mails == []


async def test_register_gives_the_app_a_handler_that_sends(server, smtp):
    """The route that an app gets is the one that sends."""

    class App:
        registry = Registry()

        def handler(self, job_type, breaker=()):
            return lambda function: self.registry.register(job_type, function, breakers=breaker)

    app = App()
    email.register(app, smtp)
    (route,) = app.registry.select(["email.send"])
    assert route.is_async
    assert route.wants_job
    await route.handler(mail(), job())
    assert len(server.effects) == 1


def test_settings_name_what_is_missing_and_hide_the_password():
    """The error names the variable; the password stays out of logs."""
    with pytest.raises(SettingsError, match="SMTP_SENDER"):
        SmtpServer.from_settings({"SMTP_HOST": "mail.example.org"})
    with pytest.raises(SettingsError, match="SMTP_TLS"):
        SmtpServer.from_settings({"SMTP_HOST": "h", "SMTP_SENDER": SENDER, "SMTP_TLS": "maybe"})
    with pytest.raises(SettingsError, match="SMTP_PORT"):
        SmtpServer.from_settings({"SMTP_HOST": "h", "SMTP_SENDER": SENDER, "SMTP_PORT": "x"})
    server = SmtpServer.from_settings(
        {"SMTP_HOST": "h", "SMTP_SENDER": SENDER, "SMTP_TLS": "implicit", "SMTP_PASSWORD": "s3cret"}
    )
    assert server.port == 465
    assert server.password == "s3cret"
    assert "s3cret" not in repr(server)
