"""``hareline enqueue``."""

from __future__ import annotations

import asyncio
import json
import os
from datetime import UTC, datetime
from typing import Any

import click
from pydantic import ValidationError

from hareline.cli.loading import load_app
from producers.orders import JobId
from producers.producer import Producer
from topology.contract import JobType
from topology.duration import ago, parse_duration
from topology.errors import OptionInvalid, PayloadInvalid
from topology.settings import Settings
from topology.text import shown


class DurationOption(click.ParamType[float]):
    """``250ms``, ``30s``, ``5m``, ``2h``, ``7d``; a bare number is seconds."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Seconds."""
        try:
            return parse_duration(str(value))
        except OptionInvalid as error:
            self.fail(str(error), param, ctx)


class AgeOption(DurationOption):
    """So long ago: a duration that the calendar holds."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Seconds."""
        seconds = super().convert(value, param, ctx)
        try:
            ago("it", seconds, datetime.now(UTC))
        except OptionInvalid as error:
            self.fail(str(error), param, ctx)
        return seconds


class MomentOption(click.ParamType[datetime]):
    """ISO 8601 with a zone."""

    name = "time"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> datetime:
        """An aware datetime."""
        try:
            moment = datetime.fromisoformat(str(value))
        except ValueError:
            self.fail(f"'{value}' is not a time: write 2030-01-31T09:00:00+01:00", param, ctx)
        if moment.tzinfo is None:
            self.fail(f"'{value}' has no zone: add Z or +01:00", param, ctx)
        return moment


@click.command(
    epilog="""\b
Examples:
  hareline enqueue email.send '{"to": "ada@example.org", "subject": "Hello"}'
  hareline enqueue report.build '{"month": 5}' --delay 10m --key report-5
  hareline enqueue report.build '{"month": 5}' --key report-5 --outbox --json
"""
)
@click.argument("type_name", metavar="TYPE")
@click.argument("payload", metavar="PAYLOAD")
@click.option("--priority", type=int, help="0 to 9, higher first.")
@click.option("--delay", type=DurationOption(), help="Start after this long, for example 30s or 2h.")
@click.option("--at", type=MomentOption(), help="Start at this time, for example 2030-01-31T09:00:00Z.")
@click.option("--key", help="The same key gives the same job id.")
@click.option("--outbox", is_flag=True, help="Leave it to `hareline relay`: needs the database, and no broker now.")
@click.option("--json", "as_json", is_flag=True, help='Print {"id", "type", "existed"}.')
def enqueue(
    type_name: str,
    payload: str,
    priority: int | None,
    delay: float | None,
    at: datetime | None,
    key: str | None,
    outbox: bool,
    as_json: bool,
) -> None:
    """Publish one job with the JSON PAYLOAD, and print its id once the broker has confirmed it.

    With --outbox the id is printed once the job is committed to the outbox; a --key that was used there before
    makes no second job, and "existed" says so.
    """
    settings = Settings.from_env()
    job_type = find_type(settings, type_name)
    options = {"priority": priority, "delay": delay, "at": at, "key": key}
    accept = _commit if outbox else _publish
    job_id = asyncio.run(accept(settings, job_type, read_payload(job_type, payload), options))
    # Without the store nobody has looked whether the key was used before: null says so.
    existed = bool(job_id.existed) if outbox else None
    click.echo(json.dumps({"id": job_id, "type": type_name, "existed": existed}) if as_json else job_id)


def find_type(settings: Settings, type_name: str) -> JobType[Any]:
    """The job type of the app's that has this name; a usage error names those that there are."""
    known = {job_type.name: job_type for job_type in load_app(settings.app).job_types}
    if type_name not in known:
        raise click.UsageError(f"no job type {shown(type_name)}; this app knows: {', '.join(sorted(known)) or 'none'}")
    return known[type_name]


def read_payload(job_type: JobType[Any], payload: str) -> Any:
    """The payload as a worker would read it, whatever its model is."""
    read_json("PAYLOAD", payload)
    try:
        return job_type.decode(os.fsencode(payload))
    except ValidationError as error:
        problems = [
            f"{'.'.join(str(part) for part in detail['loc']) or 'payload'}: {detail['msg']}"
            for detail in error.errors(include_url=False, include_context=False, include_input=False)
        ]
        raise PayloadInvalid(f"{job_type.name}: {'; '.join(problems)}") from None


def read_json(what: str, text: str) -> Any:
    """What the JSON ``text`` says; a usage error that names ``what`` where it is none, or more than can be read."""
    try:
        return json.loads(text)
    except RecursionError:
        raise click.UsageError(f"{what} is not JSON that can be read: it is nested too deeply") from None
    except json.JSONDecodeError as error:
        raise click.UsageError(f"{what} is not JSON: {error}") from None
    except ValueError:
        raise click.UsageError(f"{what} is not JSON that can be read: a number has thousands of digits") from None


async def _publish(settings: Settings, job_type: JobType[Any], payload: Any, options: dict[str, Any]) -> JobId:
    async with Producer(settings) as producer:
        return await producer.enqueue(job_type, payload, **options)


async def _commit(settings: Settings, job_type: JobType[Any], payload: Any, options: dict[str, Any]) -> JobId:
    from store.engine import Database  # noqa: PLC0415 - needs the server extra

    database = Database.from_settings(settings)
    try:
        async with database.transaction() as connection:
            return await Producer(settings).enqueue(job_type, payload, connection=connection, **options)
    finally:
        await database.close()
