"""``hareline schedule``."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from typing import Any, Final, TypeVar

import click

from hareline.app import App
from hareline.cli.enqueue import DurationOption, MomentOption, find_type, read_json, read_payload
from hareline.cli.loading import load_app
from producers.reconcile import Reconciled
from producers.reconcile import reconcile as apply_declarations
from producers.schedules import ANY, LARGEST_PAGE, Schedules
from store.engine import Database
from store.schedules import STATUSES, ScheduleRecord
from topology.errors import ScheduleInvalid
from topology.settings import Settings

F = TypeVar("F", bound=Callable[..., Any])
T = TypeVar("T")

_LATE: Final = timedelta(minutes=1)
"""A scheduler that runs is never so late."""
_HEAD = ("ID", "NAME", "TYPE", "KIND", "WHEN", "NEXT RUN", "GROUP", "STATUS")


@click.group(
    epilog="""\b
Examples:
  hareline schedule once email.send '{"to": "ada@example.org", "subject": "Hello"}' --in 2h
  hareline schedule every report.build '{"month": 5}' --every 15m --unique
  hareline schedule cron report.build '{"month": 5}' --cron '0 9 * * 1-5' --tz Europe/Lisbon --name morning
  hareline schedule list --type report.build
  hareline schedule list --past-due
  hareline schedule pause morning
  hareline schedule backfill morning --from 2030-01-01T00:00:00Z --to 2030-01-07T00:00:00Z
"""
)
def schedule() -> None:
    """Jobs that run later, or again and again.

    They are rows in the database of HARELINE_DATABASE_URL; `hareline scheduler` issues what falls due. Wherever an
    ID is asked for, the schedule's name will do.
    """


def _options(*options: Callable[[F], F]) -> Callable[[F], F]:
    def add(command: F) -> F:
        for option in reversed(options):
            command = option(command)
        return command

    return add


_as_json = click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")

_job = _options(
    click.argument("type_name", metavar="TYPE"),
    click.argument("payload", metavar="PAYLOAD"),
    click.option("--group", help="A name to find, count and cancel schedules by."),
    click.option("--unique", is_flag=True, help="Make none if one of this type, payload and group can still run."),
    click.option("--name", help="A name of its own, good wherever an ID is."),
    click.option("--priority", type=int, help="0 to 9, higher first."),
    click.option(
        "--misfire",
        type=click.Choice(["latest", "all", "skip"]),
        default="latest",
        show_default=True,
        help="What becomes of runs that were missed: the latest is made up for, all are, or none.",
    ),
    click.option("--misfire-window", type=DurationOption(), help="Make up for nothing that is later than this."),
    _as_json,
)
_overlap = click.option(
    "--overlap",
    type=click.Choice(["allow", "skip", "buffer_one"]),
    default="allow",
    show_default=True,
    help="What becomes of a run that falls due while the one before still runs.",
)
_filters = _options(
    click.option("--type", "type_name", metavar="TYPE", help="Of this job type."),
    click.option("--group", help="In this group."),
    click.option("--args", metavar="JSON", help="With this whole payload; without it, any."),
)


@schedule.command(epilog='Example: hareline schedule once email.send \'{"to": "ada@example.org"}\' --in 90s')
@_job
@click.option("--at", type=MomentOption(), help="At this time, for example 2030-01-31T09:00:00Z. The past means now.")
@click.option("--in", "delay", type=DurationOption(), help="After this long, for example 30s or 2h.")
def once(type_name: str, payload: str, at: datetime | None, delay: float | None, **options: Any) -> None:
    """Run one job with the JSON PAYLOAD later."""
    if (at is None) == (delay is None):
        raise click.UsageError("give either --at or --in")
    _make(type_name, payload, options, lambda s, t, p, o: s.schedule_once(t, p, at=at, delay=delay, **o))


@schedule.command(epilog="Example: hareline schedule every report.build '{\"month\": 5}' --every 15m --overlap skip")
@_job
@_overlap
@click.option("--every", type=DurationOption(), required=True, help="The interval, for example 30s or 1d.")
@click.option("--start", type=MomentOption(), help="The first run. Without it: when one interval has passed.")
def every(type_name: str, payload: str, every: float, start: datetime | None, **options: Any) -> None:
    """Run a job with the JSON PAYLOAD again and again, at a fixed rate."""
    _make(type_name, payload, options, lambda s, t, p, o: s.schedule_every(t, p, every=every, start=start, **o))


@schedule.command(
    epilog="Example: hareline schedule cron report.build '{\"month\": 5}' --cron '0 9 * * 1-5' --tz Europe/Lisbon"
)
@_job
@_overlap
@click.option("--cron", "expression", metavar="EXPR", required=True, help="Five fields, for example '0 9 * * 1-5'.")
@click.option("--tz", default="UTC", show_default=True, metavar="ZONE", help="For example Europe/Lisbon.")
def cron(type_name: str, payload: str, expression: str, tz: str, **options: Any) -> None:
    """Run a job with the JSON PAYLOAD whenever a cron expression matches."""
    _make(type_name, payload, options, lambda s, t, p, o: s.schedule_cron(t, p, expression, tz=tz, **o))


@schedule.command("list", epilog="Example: hareline schedule list --type report.build --status active --json")
@_filters
@click.option("--status", type=click.Choice(STATUSES), help="Of this status; without it, all.")
@click.option("--due-from", type=MomentOption(), help="Whose next run is at this time or later.")
@click.option("--due-before", type=MomentOption(), help="Whose next run is before this time.")
@click.option("--past-due", is_flag=True, help="Active and late by more than a minute: is no scheduler running?")
@click.option("--limit", type=click.IntRange(1, LARGEST_PAGE), default=100, show_default=True, help="Per page.")
@click.option("--cursor", help="From 'next' of the page before.")
@_as_json
def list_(
    type_name: str | None,
    args: str | None,
    due_before: datetime | None,
    past_due: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """List schedules by their next run; the ended ones come last."""
    if past_due:
        if due_before is not None or options["status"] is not None:
            raise click.UsageError("--past-due says the status and the time itself")
        due_before, options["status"] = datetime.now(UTC) - _LATE, "active"
    page = _with(
        lambda schedules: schedules.list_actions(type_name, args=_args(args), due_before=due_before, **options)
    )
    _show_page(list(page.items), page.next, as_json)


@schedule.command(epilog="Example: hareline schedule show morning --json")
@click.argument("reference", metavar="ID")
@_as_json
def show(reference: str, as_json: bool) -> None:
    """Show all of one schedule."""
    item = _as_item(_with(lambda schedules: schedules.get(reference)))
    if as_json:
        click.echo(json.dumps(item))
        return
    for name, value in item.items():
        if value is not None:
            click.echo(f"{name:<15}{value if isinstance(value, str) else json.dumps(value)}")


@schedule.command("next", epilog="Example: hareline schedule next --type report.build")
@_filters
@click.option("--limit", type=click.IntRange(1, LARGEST_PAGE), default=1, show_default=True, help="How many.")
@_as_json
def next_(type_name: str | None, group: str | None, args: str | None, limit: int, as_json: bool) -> None:
    """Show the active schedule that runs next."""
    page = _with(
        lambda schedules: schedules.list_actions(type_name, args=_args(args), group=group, status="active", limit=limit)
    )
    _show_page(list(page.items), page.next, as_json)


@schedule.command(epilog="Example: hareline schedule counts --group reports --json")
@_filters
@_as_json
def counts(type_name: str | None, group: str | None, args: str | None, as_json: bool) -> None:
    """Count schedules by status, type and group."""
    found = _with(lambda schedules: schedules.counts(type_name, args=_args(args), group=group))
    parts: dict[str, Mapping[Any, int]] = {"status": found.by_status, "type": found.by_type, "group": found.by_group}
    if as_json:  # JSON has no key without a text
        named: dict[str, Any] = {
            what: {key or "": number for key, number in numbers.items()} for what, numbers in parts.items()
        }
        click.echo(json.dumps(named | {"total": found.total}))
        return
    click.echo(f"{found.total} schedules")
    for what, numbers in parts.items():
        for key, number in numbers.items():
            click.echo(f"  {what} {key or '-'}: {number}")


@schedule.command(epilog="Example: hareline schedule cancel morning")
@click.argument("reference", metavar="ID")
@_as_json
def cancel(reference: str, as_json: bool) -> None:
    """End a schedule. Jobs that it has issued already still run."""
    _show(_with(lambda schedules: schedules.cancel(reference)), as_json)


@schedule.command("cancel-all", epilog="Example: hareline schedule cancel-all --type email.send --group welcome")
@_filters
@_as_json
def cancel_all(type_name: str | None, group: str | None, args: str | None, as_json: bool) -> None:
    """End every schedule of a type, in a group or with a payload; without any of them, every schedule there is."""
    number = _with(lambda schedules: schedules.cancel_all(type_name, args=_args(args), group=group))
    click.echo(json.dumps({"cancelled": number}) if as_json else f"{number} cancelled")


@schedule.command(epilog="Example: hareline schedule pause morning")
@click.argument("reference", metavar="ID")
@_as_json
def pause(reference: str, as_json: bool) -> None:
    """Issue nothing until it is resumed."""
    _show(_with(lambda schedules: schedules.pause(reference)), as_json)


@schedule.command(epilog="Example: hareline schedule resume morning")
@click.argument("reference", metavar="ID")
@_as_json
def resume(reference: str, as_json: bool) -> None:
    """Go on; what the pause missed is made up for as --misfire says."""
    _show(_with(lambda schedules: schedules.resume(reference)), as_json)


@schedule.command(epilog="Example: hareline schedule run morning")
@click.argument("reference", metavar="ID")
@_as_json
def run(reference: str, as_json: bool) -> None:
    """Issue one more job at once; the schedule goes on as it would. Prints the job's id."""
    job_id = _with(lambda schedules: schedules.run_now(reference))
    click.echo(json.dumps({"id": reference, "job_id": job_id}) if as_json else job_id)


@schedule.command(
    epilog="Example: hareline schedule backfill morning --from 2030-01-01T00:00:00Z --to 2030-01-07T00:00:00Z"
)
@click.argument("reference", metavar="ID")
@click.option("--from", "start", type=MomentOption(), required=True, help="The first due time that is meant.")
@click.option("--to", "end", type=MomentOption(), required=True, help="The last; the future is left to the scheduler.")
@_as_json
def backfill(reference: str, start: datetime, end: datetime, as_json: bool) -> None:
    """Issue the runs of a time range that never were. Repeating it issues nothing twice."""
    number = _with(lambda schedules: schedules.backfill(reference, start, end))
    click.echo(json.dumps({"id": reference, "issued": number}) if as_json else f"{number} issued")


@schedule.command(epilog="Example: hareline schedule reconcile --json, as a step of a deployment")
@_as_json
def reconcile(as_json: bool) -> None:
    """Make the rows what App(schedules=[...]) declares. Safe to repeat, and with several at once."""
    settings = Settings.from_env()
    done = asyncio.run(_reconcile(settings, load_app(settings.app)))
    if as_json:
        click.echo(json.dumps(asdict(done)))
        return
    for outcome, names in asdict(done).items():
        click.echo(f"{outcome}: {', '.join(names) or '-'}")


async def _reconcile(settings: Settings, app: App) -> Reconciled:
    database = Database.from_settings(settings)
    try:
        return await apply_declarations(database, app.schedules, settings)
    finally:
        await database.close()


def _make(
    type_name: str,
    payload: str,
    options: dict[str, Any],
    make: Callable[[Schedules, Any, Any, dict[str, Any]], Awaitable[ScheduleRecord]],
) -> None:
    as_json = options.pop("as_json")
    job_type = find_type(Settings.from_env(), type_name)
    value = read_payload(job_type, payload)
    try:
        record = _with(lambda schedules: make(schedules, job_type, value, options))
    except ScheduleInvalid as error:
        raise click.UsageError(str(error)) from None
    if as_json:
        click.echo(json.dumps(_as_item(record)))
    else:
        click.echo(record.id)
        if record.existed:
            click.echo("it existed already", err=True)


def _with(work: Callable[[Schedules], Awaitable[T]]) -> T:
    async def inside() -> T:
        async with Schedules(Settings.from_env()) as schedules:
            return await work(schedules)

    return asyncio.run(inside())


def _args(text: str | None) -> Any:
    return ANY if text is None else read_json("--args", text)


def _show(record: ScheduleRecord, as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps(_as_item(record)))
    else:
        due = f", next run {_time(record.next_run_at)}" if record.next_run_at else ""
        click.echo(f"{record.name or record.id} is {record.status}{due}")


def _show_page(records: list[ScheduleRecord], cursor: str | None, as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps({"items": [_as_item(record) for record in records], "next": cursor}))
        return
    if not records:
        click.echo("no schedules")
        return
    lines = [_HEAD, *(_cells(record) for record in records)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(_HEAD))]
    for line in lines:
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())
    if cursor:
        click.echo(f"more: --cursor {cursor}")


def _cells(record: ScheduleRecord) -> tuple[str, ...]:
    when = {
        "every": f"{record.interval or 0:g}s",
        "cron": f"{record.expression} {record.zone}",
    }.get(record.kind, "")
    due = _time(record.next_run_at)
    return (record.id, record.name or "-", record.type, record.kind, when, due, record.group or "-", record.status)


def _as_item(record: ScheduleRecord) -> dict[str, Any]:
    return {
        "id": record.id,
        "name": record.name,
        "type": record.type,
        "kind": record.kind,
        "payload": record.payload,
        "group": record.group,
        "status": record.status,
        "next_run_at": _iso(record.next_run_at),
        "last_run_at": _iso(record.last_run_at),
        "last_job_id": record.last_job_id,
        "runs": record.runs,
        "priority": record.priority,
        "interval": record.interval,
        "expression": record.expression,
        "zone": record.zone,
        "misfire": record.misfire,
        "overlap": record.overlap,
        "unique": record.unique,
        "source": record.source,
        "existed": record.existed,
        "error": record.error,
    }


def _iso(moment: datetime | None) -> str | None:
    return None if moment is None else moment.isoformat()


def _time(moment: datetime | None) -> str:
    return "-" if moment is None else moment.isoformat(timespec="seconds").replace("+00:00", "Z")
