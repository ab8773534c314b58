"""Sources that only the settings declare, as an operator runs them: the command, HTTP, and what is in the outbox."""

from __future__ import annotations

import asyncio
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from hareline import WebhookSource
from tests.databases import opened
from tests.lab import DEADLINE, ROOT
from tests.webhooks import started

pytestmark = pytest.mark.machine

APP = """
from pydantic import BaseModel
from hareline import App, JobType, WebhookSource

class Order(BaseModel):
    id: int

created = JobType("shop.order", Order)
app = App(job_types=[created])
coded = App(job_types=[created], webhooks=[WebhookSource("shop", secrets=["hush-hush"])])
"""
DECLARED = """
[shop]
scheme = "woocommerce"
events = { "order.created" = "shop.order" }
rate = 0.001
burst = 3

[partner]
event_at = "header:X-Kind"
delivery_id_at = "body:meta.id"
secrets_file = "partner.secrets"
"""


class Town:
    """An app without webhooks in its code, and a file that declares them."""

    def __init__(self, directory: Path, database_url: str) -> None:
        self.directory = directory
        self.file = directory / "webhooks.toml"
        self.env = {
            **os.environ,
            "HARELINE_APP": "town:app",
            "HARELINE_DATABASE_URL": database_url,
            "HARELINE_BROKER_URL": "amqp://127.0.0.1:1/",
            "HARELINE_WEBHOOKS": str(self.file),
            "HARELINE_WEBHOOKS_SECRETS_SHOP": "hush-hush",
            "PYTHONPATH": str(ROOT),
        }
        (directory / "town.py").write_text(APP, encoding="utf-8")
        self.file.write_text(DECLARED, encoding="utf-8")
        (directory / "partner.secrets").write_text("hush-old\nhush-new\n", encoding="utf-8")

    def run(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "hareline", *arguments], cwd=self.directory, env={**self.env, **environment},
            capture_output=True, text=True, timeout=DEADLINE, check=False,
        )  # fmt: skip

    @contextmanager
    def serving(self) -> Iterator[str]:
        command = [sys.executable, "-m", "hareline", "webhooks", "--port", "0"]
        process = subprocess.Popen(command, cwd=self.directory, env=self.env, stderr=subprocess.PIPE, text=True)
        try:
            assert process.stderr is not None
            line = process.stderr.readline()
            found = re.search(r"webhooks at (http://127\.0\.0\.1:\d+)/webhooks/: shop, partner", line)
            assert found, line + process.stderr.read()
            yield found[1]
        finally:
            process.kill()
            process.wait()


@pytest.fixture
def town(tmp_path: Path, sqlite_url: str) -> Town:
    return Town(tmp_path, sqlite_url)


async def rows(database_url: str) -> list[Any]:
    async with opened(database_url) as database:
        return await started(database)


def test_a_source_without_code_takes_deliveries(town: Town, sqlite_url: str) -> None:
    """By the command's own test deliveries, and by a sender that rotates its secret."""
    with town.serving() as url:
        for number, status in ((1, 202), (2, 202), (1, 200)):
            sent = town.run("webhooks", "send", "shop", "--event", "order.created", f'{{"id": {number}}}', "--url", url)
            assert sent.stdout.splitlines()[1].startswith(f"{status} "), sent
        above = town.run("webhooks", "send", "shop", "--event", "order.created", '{"id": 3}', "--url", url)
        assert (above.returncode, above.stdout.splitlines()[1][:4]) == (1, "429 ")
        for secret, delivery_id in (("hush-old", "a"), ("hush-new", "b")):
            partner = WebhookSource(
                "partner", secrets=[secret], event_at="header:X-Kind", delivery_id_at="body:meta.id"
            )
            headers, body = partner.sign(b'{"n": 1}', event="paid", delivery_id=delivery_id, now=0.0)
            answers = [httpx.post(f"{url}/webhooks/partner", content=body, headers=headers) for _ in range(2)]
            assert [answer.status_code for answer in answers] == [202, 200]
        unsigned = httpx.post(f"{url}/webhooks/partner", content=body, headers={"X-Kind": "paid"})
        assert unsigned.status_code == 401
    found = asyncio.run(rows(sqlite_url))
    assert [row.job_type for row in found] == ["shop.order"] * 2 + ["webhook.received"] * 2
    assert json.loads(found[2].body)["event"] == "paid"


def test_the_topology_has_the_queue_of_the_catch_all(town: Town) -> None:
    shown = town.run("topology", "show", "--broker-version", "4.0")
    assert (shown.returncode, "webhook.received" in shown.stdout) == (0, True), shown
    without = town.run("topology", "show", "--broker-version", "4.0", HARELINE_WEBHOOKS="")
    assert (without.returncode, "webhook.received" in without.stdout) == (0, False)


@pytest.mark.parametrize(
    ("environment", "written", "code", "says"),
    [
        ({}, '[shop]\nsecrets = ["hush-hush"]\n', 2, "webhooks.toml: shop.secrets: no secret belongs into this file"),
        ({}, '[shop]\nevent = "x"\n', 2, "webhooks.toml: shop.event: there is no such key, is 'events' meant?"),
        ({}, '[shop]\ndefault = "shop.odrer"\n', 2, "no job type or saga 'shop.odrer', is 'shop.order' meant?"),
        ({"HARELINE_APP": "town:coded"}, DECLARED, 2, "shop: the code declares a source of this name too"),
        ({"HARELINE_WEBHOOKS": "gone.toml"}, "", 2, "HARELINE_WEBHOOKS gone.toml: the file cannot be read: No"),
        ({"HARELINE_WEBHOOKS": '{"shop": {"scheme": "git"}}'}, "", 2, "HARELINE_WEBHOOKS: shop.scheme: this cannot be"),
        ({"HARELINE_WEBHOOKS_SECRETS_SHOP": ""}, DECLARED, 1, "set HARELINE_WEBHOOKS_SECRETS_SHOP"),
        ({}, DECLARED.replace("partner.secrets", "gone.secrets"), 1, "secrets_file"),
        ({"HARELINE_WEBHOOKS": ""}, "", 1, "declare App(webhooks=[WebhookSource(...)]), or set HARELINE_WEBHOOKS"),
    ],
)  # fmt: skip
def test_what_cannot_work_is_said_in_one_sentence(
    town: Town, environment: dict[str, str], written: str, code: int, says: str
) -> None:
    town.file.write_text(written, encoding="utf-8")
    done = town.run("webhooks", **environment)
    assert (done.returncode, says in done.stderr) == (code, True), done.stderr
    assert "Traceback" not in done.stderr
    assert "hush" not in done.stdout + done.stderr
