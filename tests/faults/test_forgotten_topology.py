"""A broker that comes back without a part of its topology: what workers see, declare and leave alone."""

from __future__ import annotations

from dataclasses import replace

import pytest

from hareline import App
from hareline.roles import Verification
from tests.faults.proxy import Proxy
from tests.lab import Lab, Number, until
from topology.errors import Unroutable
from topology.spec import Binding


async def test_a_worker_declares_again_what_the_broker_has_forgotten(lab: Lab) -> None:
    """Seen on 3.10 and 4.0: SIGKILL within seconds of a declaration, and the bindings are gone."""
    numbers = lab.job_type()
    app, seen = await _listening(lab, numbers)
    async with Proxy(lab.settings.broker_urls[0]) as proxy:
        settings = replace(lab.settings, broker_urls=(proxy.url,))
        async with lab.working(app, settings=settings, verify=Verification([numbers], settings)):
            await lab.control.unbind(_binding(lab, numbers.name))
            with pytest.raises(Unroutable):
                await (await lab.producer()).enqueue(numbers, Number(n=1))
            proxy.cut()
            await until(lambda: _accepted(lab, numbers), "the binding is there again")
            await until(lambda: seen, "the job is done")


async def test_a_worker_leaves_the_topology_to_its_operators_where_they_manage_it(lab: Lab) -> None:
    """It waits, and goes on by itself when they have put it right."""
    numbers = lab.job_type()
    app, seen = await _listening(lab, numbers)
    async with Proxy(lab.settings.broker_urls[0]) as proxy:
        settings = replace(lab.settings, broker_urls=(proxy.url,), declare="never")
        async with lab.working(app, settings=settings, verify=Verification([numbers], settings)) as worker:
            await lab.control.unbind(_binding(lab, numbers.name))
            proxy.cut()
            await until(lambda: not worker.ready.is_set(), "the worker has noticed")
            connections = proxy.accepted
            await until(lambda: proxy.accepted >= connections + 2, "it has looked, and has looked again")
            with pytest.raises(Unroutable):
                await (await lab.producer()).enqueue(numbers, Number(n=1))
            await lab.control.bind(_binding(lab, numbers.name))
            await until(worker.ready.is_set, "the worker consumes again")
            await (await lab.producer()).enqueue(numbers, Number(n=2))
            await until(lambda: seen, "the job is done")


async def _listening(lab: Lab, numbers) -> tuple[App, list[int]]:
    app = await lab.app(numbers)
    seen: list[int] = []

    @app.handler(numbers)
    async def handle(number: Number) -> None:
        seen.append(number.n)

    return app, seen


def _binding(lab: Lab, job_type: str) -> Binding:
    return Binding(lab.names.jobs, lab.names.queue(job_type), "queue", job_type)


async def _accepted(lab: Lab, numbers) -> bool:
    try:
        await (await lab.producer()).enqueue(numbers, Number(n=2))
    except Unroutable:
        return False
    return True
