"""``hareline saga``."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Awaitable, Callable
from dataclasses import asdict
from datetime import timedelta
from typing import Any, TypeVar

import click

from hareline.cli.enqueue import AgeOption, read_json
from hareline.cli.loading import load_app
from hareline.cli.shown import document, echo_facts, echo_page, moment, plain
from hareline.cli.table import echo_table
from hareline.paging import LARGEST_PAGE
from hareline.sagas import SagaRecord, Sagas, SagaStep
from producers.orders import JobId
from producers.producer import Producer
from store.sagalog import STATUSES
from topology.saga import Saga
from topology.settings import Settings
from topology.text import shown

T = TypeVar("T")

_HEAD = ("ID", "NAME", "STATUS", "STARTED", "TOOK", "FAILED STEP", "ERROR")
_STEP_HEAD = ("STEP", "", "TYPE", "STATUS", "ATTEMPTS", "ENDED", "TOOK", "ERROR")
_as_json = click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")


@click.group(
    epilog="""\b
Examples:
  hareline saga start order.fulfil '{"order": 7, "cents": 1999}' --key order-7
  hareline saga list --status stuck
  hareline saga show 01890a5d-ac96-774b-bcce-b302099a8057
"""
)
def saga() -> None:
    """Start sagas, and see what became of them, from the log that `hareline recorder` writes."""


@saga.command(epilog="Example: hareline saga start order.fulfil '{\"order\": 7}' --key order-7 --json")
@click.argument("name")
@click.argument("payload")
@click.option("--key", help="The same key gives the same saga id.")
@click.option("--outbox", is_flag=True, help="Leave it to `hareline relay`: needs the database, and no broker now.")
@click.option("--json", "as_json", is_flag=True, help='Print {"id", "name", "existed"}.')
def start(name: str, payload: str, key: str | None, outbox: bool, as_json: bool) -> None:
    """Start a saga with the JSON PAYLOAD, and print its id once the broker has confirmed its first step."""
    settings = Settings.from_env()
    known = {one.name: one for one in load_app(settings.app).sagas}
    if name not in known:
        raise click.UsageError(f"no saga {shown(name)}; this app knows: {', '.join(sorted(known)) or 'none'}")
    read_json("PAYLOAD", payload)
    accept = _commit if outbox else _publish
    saga_id = asyncio.run(accept(settings, known[name], _typed(known[name], payload), key))
    existed = bool(saga_id.existed) if outbox else None
    click.echo(json.dumps({"id": saga_id, "name": name, "existed": existed}) if as_json else saga_id)


def _typed(known: Saga[Any], payload: str) -> Any:
    known.encode(json.loads(payload))  # which says what is wrong with it
    return known.adapter.validator.validate_json(os.fsencode(payload))


async def _publish(settings: Settings, known: Saga[Any], payload: Any, key: str | None) -> JobId:
    async with Producer(settings) as producer:
        return await producer.start(known, payload, key=key)


async def _commit(settings: Settings, known: Saga[Any], payload: Any, key: str | None) -> JobId:
    from store.engine import Database  # noqa: PLC0415 - needs the server extra

    database = Database.from_settings(settings)
    try:
        async with database.transaction() as connection:
            return await Producer(settings).start(known, payload, key=key, connection=connection)
    finally:
        await database.close()


@saga.command("list", epilog="Example: hareline saga list --name order.fulfil --status compensating --since 1h")
@click.option("--status", type=click.Choice(STATUSES), help="Only sagas that are so now.")
@click.option("--name", help="Only sagas of this name.")
@click.option("--since", type=AgeOption(), help="Only sagas that started no longer ago than this, for example 2h.")
@click.option("--limit", type=click.IntRange(1, LARGEST_PAGE), default=50, show_default=True, help="Sagas of a page.")
@click.option("--cursor", help="Where the page begins: 'next' of the page before, with the same filters.")
@_as_json
def list_sagas(
    status: str | None, name: str | None, since: float | None, limit: int, cursor: str | None, as_json: bool
) -> None:
    """Sagas, the latest first."""
    ago = None if since is None else timedelta(seconds=since)
    page = _with(lambda log: log.list(status=status, name=name, since=ago, limit=limit, cursor=cursor))
    if as_json:
        click.echo(json.dumps({"items": [_as_item(one) for one in page.items], "next": page.next}))
        return
    echo_page("sagas", _HEAD, map(_cells, page.items), page.next)


@saga.command(epilog="Example: hareline saga show 01890a5d-ac96-774b-bcce-b302099a8057 --json")
@click.argument("saga_id", metavar="ID")
@_as_json
def show(saga_id: str, as_json: bool) -> None:
    """One saga, step by step: what was done, what failed, what was undone."""
    found = _with(lambda log: log.get(saga_id))
    if as_json:
        click.echo(json.dumps({**_as_item(found), "steps": [_step_item(step) for step in found.steps]}))
        return
    echo_facts(_as_item(found))
    click.echo()
    echo_table(_STEP_HEAD, map(_step_cells, found.steps))
    stuck = [step for step in found.steps if step.status == "dead"]
    if stuck:
        click.echo(f"\nstuck: find {stuck[0].job_id} in `hareline dlq list --type {stuck[0].type}`, mend, replay it")


def _with(work: Callable[[Sagas], Awaitable[T]]) -> T:
    async def inside() -> T:
        async with Sagas(Settings.from_env()) as log:
            return await work(log)

    return asyncio.run(inside())


def _as_item(found: SagaRecord) -> dict[str, Any]:
    item = plain({name: value for name, value in asdict(found).items() if name != "steps"})
    return {**item, "payload": document(found.payload)}


def _step_item(step: SagaStep) -> dict[str, Any]:
    item = plain(asdict(step))
    return {**item, "result": document(step.result), "runs": [plain(asdict(run)) for run in step.runs]}


def _cells(found: SagaRecord) -> tuple[str, ...]:
    took = "-" if found.finished_at is None else f"{(found.finished_at - found.started_at).total_seconds():.3f}s"
    failed = found.failed_step or "-"
    return (
        found.id,
        found.name,
        found.status,
        moment(found.started_at, "milliseconds"),
        took,
        failed,
        found.error or "-",
    )


def _step_cells(step: SagaStep) -> tuple[str, ...]:
    sign = "<-" if step.direction == "undo" else "->"
    took = "-" if step.duration is None else f"{step.duration:.3f}s"
    error = f"{step.error}: {step.error_message or ''}" if step.error else "-"
    return (
        step.step,
        sign,
        step.type,
        step.status,
        str(step.attempts),
        moment(step.ended_at, "milliseconds"),
        took,
        error,
    )
