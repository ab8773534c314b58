"""``hareline webhooks`` as an operator runs it: it listens, takes signed deliveries, and ends in good order."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.lab import DEADLINE, ROOT

pytestmark = pytest.mark.machine

APP = """
from pydantic import BaseModel
from hareline import App, JobType, WebhookSource

class Order(BaseModel):
    id: int

created = JobType("order.created", Order)
shop = WebhookSource("shop", scheme="woocommerce", secrets=["hush-hush"], events={"order.created": created})
git = WebhookSource("git", scheme="github")
app = App(job_types=[created], webhooks=[shop])
bare = App(job_types=[created], webhooks=[shop, git])
none = App(job_types=[created])
"""


class Shop:
    """An app in a directory of its own, and the command run there."""

    def __init__(self, directory: Path, database_url: str) -> None:
        self.directory = directory
        self.env = {
            **os.environ,
            "HARELINE_APP": "shop:app",
            "HARELINE_DATABASE_URL": database_url,
            "HARELINE_BROKER_URL": "amqp://127.0.0.1:1/",
            "PYTHONPATH": str(ROOT),
        }
        (directory / "shop.py").write_text(APP, encoding="utf-8")

    def run(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "hareline", "webhooks", *arguments]
        return subprocess.run(
            command, cwd=self.directory, env={**self.env, **environment}, capture_output=True, text=True,
            timeout=DEADLINE, check=False,
        )  # fmt: skip

    @contextmanager
    def serving(self) -> Iterator[tuple[str, subprocess.Popen[str]]]:
        command = [sys.executable, "-m", "hareline", "webhooks", "--port", "0"]
        process = subprocess.Popen(command, cwd=self.directory, env=self.env, stderr=subprocess.PIPE, text=True)
        try:
            assert process.stderr is not None
            line = process.stderr.readline()
            found = re.search(r"webhooks at (http://127\.0\.0\.1:\d+)/webhooks/: shop", line)
            assert found, line + process.stderr.read()
            yield found[1], process
        finally:
            process.kill()
            process.wait()


@pytest.fixture
def shop(tmp_path: Path, sqlite_url: str) -> Shop:
    return Shop(tmp_path, sqlite_url)


def test_a_test_delivery_is_sent_printed_as_curl_and_known_when_it_is_repeated(shop: Shop) -> None:
    with shop.serving() as (url, process):
        sent = [shop.run("send", "shop", "--event", "order.created", '{"id": 7}', "--url", url) for _ in range(2)]
        assert [one.returncode for one in sent] == [0, 0], sent
        assert sent[0].stdout.splitlines()[1].startswith('202 {"webhook_id":')
        assert sent[1].stdout.splitlines()[1].startswith('200 {"webhook_id":')
        curl = sent[0].stdout.splitlines()[0]
        assert curl.startswith(f"curl -i {url}/webhooks/shop -H ")
        assert "hush-hush" not in sent[0].stdout + sent[0].stderr
        by_hand = subprocess.run(curl, shell=True, capture_output=True, text=True, timeout=DEADLINE, check=False)
        assert "Idempotency-Replayed: true" in by_hand.stdout.replace("idempotency-replayed", "Idempotency-Replayed")
        refused = shop.run("send", "shop", "--event", "x", "no json", "--url", url)
        assert refused.returncode == 1
        assert "400 " in refused.stdout
        process.send_signal(signal.SIGTERM)
        assert process.wait(DEADLINE) == 0
        assert process.stderr is not None
        log = process.stderr.read()
    assert "hush-hush" not in log
    assert "Traceback" not in log


@pytest.mark.parametrize(
    ("arguments", "environment", "says"),
    [
        ([], {"HARELINE_APP": "shop:bare"}, "webhook source 'git' has no secret"),
        ([], {"HARELINE_APP": "shop:none"}, "has no webhooks"),
        ([], {"HARELINE_DATABASE_URL": "sqlite:///new.db"}, "hareline db upgrade"),
        ([], {"HARELINE_WEBHOOKS_MAX_BODY": "much"}, "HARELINE_WEBHOOKS_MAX_BODY"),
        (["send", "bank", "--event", "x", "{}"], {}, "no webhook source 'bank'"),
        (["send", "shop", "--event", "x", "{}", "--url", "ftp://x"], {}, "http or https"),
        (["send", "shop", "--event", "x", "{}", "--url", "http://127.0.0.1:1"], {}, "nobody answers"),
    ],
)
def test_what_cannot_work_is_said_in_one_sentence(
    shop: Shop, arguments: list[str], environment: dict[str, Any], says: str
) -> None:
    done = shop.run(*arguments, **environment)
    assert done.returncode == 1
    assert says in done.stderr
    assert "Traceback" not in done.stderr
    assert "hush-hush" not in done.stdout + done.stderr


def test_a_port_that_is_taken_is_named(shop: Shop) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = shop.run("--port", str(port))
    assert (done.returncode, f"cannot listen at 127.0.0.1:{port}" in done.stderr) == (1, True)


def test_secrets_may_come_from_the_environment(shop: Shop) -> None:
    environment = {"HARELINE_APP": "shop:bare", "HARELINE_WEBHOOKS_SECRETS_GIT": "hush-hush"}
    done = shop.run("send", "git", "--event", "push", "{}", "--url", "http://127.0.0.1:1", **environment)
    assert "X-Hub-Signature-256: sha256=" in done.stdout
    assert "hush-hush" not in done.stdout
