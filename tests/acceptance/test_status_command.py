"""``hareline status`` as a child process: what it shows, and what it calls wrong."""

from __future__ import annotations

import asyncio
import json
import secrets
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.lab import DEADLINE, Lab, until
from tests.ledger_app import Work
from tests.service import Service
from tests.workshop import Workshop

APP = "tests.breaker_app:app"


@pytest.fixture
async def workshop(lab: Lab, tmp_path: Path) -> Workshop:
    workshop = Workshop(lab, tmp_path, app=APP)
    await lab.apply(workshop.job_type)
    return workshop


async def status(workshop: Workshop, *arguments: str, **more: str) -> tuple[int, str, str]:
    """Exit code, standard output, standard error."""
    environment = workshop.lab.environment(APP, **workshop.environment, **more)
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "hareline", "status", *arguments,
        cwd=workshop.directory, env=environment, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    out, err = await asyncio.wait_for(process.communicate(), DEADLINE)
    assert process.returncode is not None
    return process.returncode, out.decode(), err.decode()


async def as_json(workshop: Workshop) -> tuple[int, dict[str, Any]]:
    code, out, err = await status(workshop, "--json", "--wait", "2")
    assert err == ""
    return code, json.loads(out)


async def test_an_open_breaker_and_a_queue_that_nobody_consumes_are_wrong(workshop: Workshop) -> None:
    """With name, state, since, until, reason and the workers that see it so; exit code 1. Later all is well: 0."""
    name, queue = f"b-{secrets.token_hex(4)}", workshop.lab.names.queue(workshop.job_type.name)
    async with Service() as service:
        settings = {"SERVICE_PORT": str(service.port), "BREAKER_NAME": name, "BREAKER_RESET": "6"}
        await workshop.enqueue([Work(n=n) for n in range(20)])
        code, document = await as_json(workshop)
        assert code == 1
        assert any(queue in problem and "no consumer" in problem for problem in document["problems"])
        [shown] = [item for item in document["queues"] if item["name"] == queue]
        assert (shown["ready"], shown["consumers"]) == (20, 0)

        await service.be("failing")
        async with workshop.worker(**settings) as one, workshop.worker(**settings) as two:
            await until(lambda: workshop.log.read_text().count("is open") >= 2, "both are open")
            code, document = await as_json(workshop)
            assert code == 1
            [breaker] = [item for item in document["breakers"] if item["name"] == name]
            assert breaker["state"] == "open"
            assert {worker["worker"].split(":")[1] for worker in breaker["workers"]} == {str(one.pid), str(two.pid)}
            assert breaker["since"] <= breaker["until"]
            assert "the service hung up" in breaker["reason"]
            assert any(name in problem for problem in document["problems"])
            code, out, _ = await status(workshop)
            assert name in out

            await service.be("up")
            await workshop.done(20)
            code, document = await as_json(workshop)
            assert [item["state"] for item in document["breakers"] if item["name"] == name] == ["closed"]
            [shown] = [item for item in document["queues"] if item["name"] == queue]
            assert (shown["ready"], shown["consumers"]) == (0, 2)
            assert not [problem for problem in document["problems"] if name in problem or queue in problem]
            assert await workshop.stopped(one) == 0
            assert await workshop.stopped(two) == 0


async def test_without_workers_and_jobs_nothing_is_wrong(workshop: Workshop) -> None:
    """No breaker answers, which is no fault. Other tests may have left something in the queue of the unroutable."""
    code, out, _ = await status(workshop, "--wait", "0.2")
    assert workshop.lab.names.dlq in out
    assert "No breakers." in out
    problems = [line for line in out.splitlines() if line.startswith("! ")]
    assert all(workshop.lab.names.unroutable in problem for problem in problems)
    assert ("Nothing is wrong." in out) is (not problems)
    assert code == (1 if problems else 0)


async def test_a_missing_topology_is_wrong_and_the_cure_is_named(workshop: Workshop) -> None:
    """A namespace that nobody applied."""
    code, out, _ = await status(workshop, HARELINE_NAMESPACE=f"t-{secrets.token_hex(4)}")
    assert code == 1
    assert "hareline topology apply" in out


async def test_without_a_broker_it_says_so(workshop: Workshop) -> None:
    """One sentence, exit code 1."""
    code, _, err = await status(workshop, HARELINE_BROKER_URL="amqp://guest:guest@127.0.0.1:1/")
    assert code == 1
    assert err.startswith("hareline: no broker answers")
    assert "Traceback" not in err


async def test_without_an_app_the_management_api_says_what_there_is(workshop: Workshop) -> None:
    """And without both it says what to set."""
    queue = workshop.lab.names.queue(workshop.job_type.name)

    async def shown() -> bool:
        return queue in (await status(workshop, "--wait", "0.1", HARELINE_APP=""))[1]

    await until(shown, "the queue is shown")
    code, _, err = await status(workshop, HARELINE_APP="", HARELINE_MANAGEMENT_URL="")
    assert code == 1
    assert "HARELINE_APP or HARELINE_MANAGEMENT_URL" in err
