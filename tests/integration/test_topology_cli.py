"""The real command, as an operator and a deploy script use it."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from base64 import b64encode
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import pytest
from pamqp.commands import Basic

from tests.integration.topology_fixtures import Rig, publish, rig_fixture, take_all, until  # noqa: F401 - a fixture
from topology.plan import temporary_name

APP = """\
import os

from hareline.app import App
from topology.contract import JobType

app = App(job_types=[JobType("order", dict, delivery_limit=int(os.environ.get("LIMIT", "5")))])
"""
JOBS = 3000


@dataclass(frozen=True)
class Said:
    """What a finished command left behind."""

    code: int
    out: str
    err: str

    @property
    def document(self) -> Any:
        return json.loads(self.out)


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    (tmp_path / "shop.py").write_text(APP)
    return tmp_path


async def start(rig: Rig, shop: Path, *arguments: str, **environment: str) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "hareline",
        "topology",
        *arguments,
        cwd=shop,
        env=rig.environment(HARELINE_APP="shop:app", PYTHONPATH=str(Path(__file__).parents[2]), **environment),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )


async def run(rig: Rig, shop: Path, *arguments: str, **environment: str) -> Said:
    process = await start(rig, shop, *arguments, **environment)
    out, err = await asyncio.wait_for(process.communicate(), 120)
    return Said(process.returncode or 0, out.decode(), err.decode())


@pytest.mark.kills
async def test_from_nothing_to_a_migration_that_was_killed(rig: Rig, shop: Path) -> None:
    """A changed argument, kill -9 while thousands of jobs move, and again: nothing is lost."""
    queue = f"{rig.namespace}.order"
    assert (await run(rig, shop, "plan")).code == 2
    applied = await run(rig, shop, "apply", "--json")
    assert (applied.code, applied.err) == (0, "")
    assert {change["kind"] for change in applied.document["changes"]} == {"create", "bind"}
    assert (await run(rig, shop, "verify", "--json")).document["empty"] is True

    differs = await run(rig, shop, "verify", "--json", LIMIT="9")
    assert differs.code == 2
    assert [(change["kind"], change["name"]) for change in differs.document["changes"]] == [("differs", queue)]
    refused = await run(rig, shop, "apply", LIMIT="9")
    assert refused.code == 1
    assert "hareline topology migrate" in refused.err

    ids = [str(n) for n in range(JOBS)]
    jobs = [("order", b"{}", Basic.Properties(message_id=one, delivery_mode=2)) for one in ids]
    await publish(rig.control, f"{rig.namespace}.jobs", jobs)
    doomed = await start(rig, shop, "migrate", "order", "--assume-idle", LIMIT="9")

    async def moving() -> bool:
        assert doomed.returncode is None
        counts = await rig.control.counts(temporary_name(queue))
        return counts is not None and counts.ready > 0

    await until(moving, "the first jobs have moved")
    doomed.send_signal(signal.SIGKILL)
    await doomed.communicate()
    left = await rig.control.counts(queue)
    assert left is not None, "it was killed too late for the test to say anything"

    unfinished = await run(rig, shop, "verify", LIMIT="9")
    assert unfinished.code == 2
    assert "a migration was cut off" in unfinished.out
    again = await run(rig, shop, "migrate", "--assume-idle", "--json", LIMIT="9")
    assert again.code == 0, again.err
    assert [one["queue"] for one in again.document["migrated"]] == [queue]
    assert "refilling" in again.err
    clean = await run(rig, shop, "verify", "--strict", LIMIT="9")
    assert clean.code == 0, clean.out
    taken = [message.header.properties.message_id for message in await take_all(rig.control, queue, JOBS)]
    assert set(taken) == set(ids)


async def test_an_operator_imports_what_show_prints(rig: Rig, shop: Path) -> None:
    """With HARELINE_DECLARE=never nothing is made; the definitions, imported, are all that verify wants."""
    refused = await run(rig, shop, "apply", HARELINE_DECLARE="never")
    assert refused.code == 1
    assert "HARELINE_DECLARE" in refused.err
    assert len(refused.err.strip().splitlines()) == 1
    shown = await run(rig, shop, "show", "--format", "json", HARELINE_DECLARE="never")
    await asyncio.to_thread(_import_definitions, rig, shown.out)
    verified = await run(rig, shop, "verify", "--strict", "--json", HARELINE_DECLARE="never")
    assert verified.code == 0, verified.out
    # The same by AMQP alone: it says what it could not see.
    blind = await run(rig, shop, "plan", HARELINE_DECLARE="never", HARELINE_MANAGEMENT_URL="")
    assert blind.code == 0
    assert "not seen: bindings" in blind.out


async def test_a_broker_that_is_not_there_is_one_sentence(rig: Rig, shop: Path) -> None:
    """On standard error, with exit code 1: the address, the reason, what to check."""
    said = await run(rig, shop, "plan", HARELINE_BROKER_URL="amqp://me:secret@127.0.0.1:9/")
    assert said.code == 1
    assert said.out == ""
    assert len(said.err.strip().splitlines()) == 1
    assert "127.0.0.1:9" in said.err
    assert "secret" not in said.err


def _import_definitions(rig: Rig, text: str) -> None:
    management = rig.management
    request = Request(
        f"{management.address}/api/definitions/%2F",
        data=text.encode(),
        headers={
            "Authorization": "Basic " + b64encode(b"guest:guest").decode(),
            "Content-Type": "application/json",
        },
        method="POST",
    )
    with urlopen(request, timeout=60) as answer:
        assert answer.status < 300
