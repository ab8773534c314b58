"""The worked campaign: real mail over SMTP, from its own commands."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from consumers.jobs.email import send_email
from examples.campaign.app import Mail, feed, send_mail
from hareline.demo.smtp import MailServer
from hareline.loopback import free_ports
from tests.example_script import own_namespace, run_example
from tests.lab import DEADLINE, ROOT, Lab, until
from topology.settings import Settings

# The examples are of one broker or another; the sagas and the breaker below them are tested on each.
pytestmark = pytest.mark.machine

APP = "examples.campaign.app:app"


@pytest.fixture
async def mine(session_settings: Settings) -> AsyncIterator[Lab]:
    async with own_namespace(session_settings, "campaign") as lab:
        yield lab


async def test_the_commands_do_what_they_say(mine: Lab, tmp_path: Path) -> None:
    """Three lines, two recipients: two mails in the mailbox."""
    changes = {
        "/tmp/campaign.db": f"{tmp_path}/c.db",
        "/tmp/mails": f"{tmp_path}/mails",
        "/tmp/recipients": f"{tmp_path}/recipients",
        "2525": str(free_ports(1)[0]),
    }
    output = await run_example(mine, "campaign/app.py", changes)
    assert "name=spring status=done pending=0 queued=0 sent=2 bounced=0" in output
    mails = [path.read_text() for path in (tmp_path / "mails" / "new").iterdir()]
    assert sorted(line for mail in mails for line in mail.splitlines() if line.startswith("Subject")) == [
        "Subject: Spring, Ann",
        "Subject: Spring, Bob",
    ]


class Office:
    """A database, a mail server, and the processes that a campaign needs."""

    def __init__(self, lab: Lab, stack: AsyncExitStack, url: str, server: MailServer) -> None:
        self.lab = lab
        self.server = server
        self._stack = stack
        self._environment = {
            "HARELINE_DATABASE_URL": url,
            "SMTP_HOST": "127.0.0.1",
            "SMTP_PORT": str(server.port),
            "SMTP_TLS": "none",
            "SMTP_SENDER": "Shop <shop@example.org>",
        }

    async def process(self, *arguments: str) -> Any:
        return await self._stack.enter_async_context(self.lab.child(*arguments, app=APP, cwd=ROOT, **self._environment))

    async def campaign(self, *arguments: str, fails: bool = False, within: float = DEADLINE) -> str:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "examples.campaign", *arguments, cwd=ROOT,
            env=self.lab.environment(APP, **self._environment), stdout=asyncio.subprocess.PIPE,
        )  # fmt: skip
        output, _ = await asyncio.wait_for(process.communicate(), within)
        assert (process.returncode != 0) == fails
        return output.decode()

    def mails(self, prefix: str = "") -> int:
        return sum(mail.recipient.startswith(prefix) for mail in self.server.mails)


@pytest.fixture
async def office(mine: Lab, database_url: str) -> AsyncIterator[Office]:
    await mine.apply(send_mail, feed)
    async with AsyncExitStack() as stack:
        server = await stack.enter_async_context(MailServer().serve())
        yield Office(mine, stack, database_url, server)


def write(path: Path, *addresses: str) -> str:
    path.write_text("email,name\n" + "".join(f"{address},Somebody\n" for address in addresses))
    return str(path)


@pytest.mark.timeout(600)
async def test_everybody_gets_one_mail_through_pause_kill_and_resume(office: Office, tmp_path: Path) -> None:
    """Paused, it sends nothing more and the shop's mail passes; a worker killed in the middle costs nobody a mail."""
    people = [f"p{n}@example.com" for n in range(120)]
    file = write(
        tmp_path / "a.csv",
        *people,
        "P1@Example.com",
        "no address",
        "nobody-1@example.com",
        "greylisted-1-x@example.com",
    )
    await office.process("relay")
    worker = await office.process("worker", "--concurrency", "2")
    text = ("--subject", "Hello {name}", "--text", "Hello")
    await office.campaign("create", "spring", file, *text, "--per-second", "1")  # minutes
    await office.campaign("start", "spring")
    await until(lambda: office.mails("p") >= 5, "the first mails are out")
    await office.campaign("pause", "spring")
    worker.kill()
    await worker.wait()
    await office.process("worker", "--concurrency", "2")
    producer = await office.lab.producer()
    await producer.enqueue(send_mail, Mail(to="order@example.com", subject="Your order", text="Thanks"))
    await until(lambda: office.mails("order") == 1, "the shop's own mail passes")
    assert office.mails("p") < 120
    await office.campaign("start", "spring", fails=True)
    await office.campaign("resume", "spring", "--per-second", "100")
    output = await office.campaign("status", "spring", "--wait", within=300.0)
    assert output.splitlines()[-1] == "name=spring status=done pending=0 queued=0 sent=121 bounced=1"
    assert "nobody-1@example.com\tSMTP 550" in await office.campaign("bounces", "spring")
    by_recipient: dict[str, set[str]] = {}
    for mail in office.server.mails:
        by_recipient.setdefault(mail.recipient, set()).add(mail.message["Message-ID"])
    assert set(by_recipient) == {*people, "greylisted-1-x@example.com", "order@example.com"}
    assert all(len(ids) == 1 for ids in by_recipient.values())
    # A mail under way when its worker died may come twice, under one Message-ID; concurrency says how many.
    assert len(office.server.mails) <= len(by_recipient) + 2


async def test_a_cancelled_campaign_sends_nothing_more(office: Office, tmp_path: Path) -> None:
    """Also not what has a job already; other mail goes first meanwhile."""
    file = write(tmp_path / "a.csv", *(f"p{n}@example.com" for n in range(50)))
    await office.process("relay")
    feeding = await office.process("worker", feed.name)
    await office.campaign("create", "late", file, "--subject", "s", "--text", "t", "--per-second", "1000")
    await office.campaign("start", "late")
    await until(lambda: waiting(office, 50), "all have a job")
    feeding.kill()
    producer = await office.lab.producer()
    await producer.enqueue(send_mail, Mail(to="order@example.com", subject="Your order", text="Thanks"))
    await until(lambda: waiting(office, 51), "the shop's own mail waits behind them")
    await office.process("worker", send_mail.name, "--concurrency", "1")
    await until(lambda: office.mails("order") == 1, "the shop's own mail is out")
    assert office.mails("p") <= 2
    await office.campaign("cancel", "late")
    await until(lambda: waiting(office, 0), "the queue is empty")
    await office.campaign("resume", "late", fails=True)
    assert "status=cancelled" in await office.campaign("status", "late")


async def waiting(office: Office, count: int) -> bool:
    return await office.lab.ready(send_email) == count
