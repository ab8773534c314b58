"""``hareline dlq``."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Awaitable, Callable
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from typing import Any, Final, TypeVar

import click

from hareline.cli.enqueue import AgeOption, read_json
from hareline.cli.loading import load_app
from hareline.cli.table import echo_table
from producers.dead_letters import LARGEST_PAGE, DeadLetter, DeadLetterFilters, DeadLetters
from store.dead_letters import DEAD, STATUSES
from topology.settings import Settings

F = TypeVar("F", bound=Callable[..., Any])
T = TypeVar("T")

_HEAD: Final = ("ID", "DIED", "TYPE", "STATUS", "ATTEMPTS", "REPLAYS", "ERROR", "MESSAGE")
_INTERRUPTED: Final = 130
_ALL: Final = "all"
_RELAY: Final = "a running `hareline relay` publishes them"

_as_json = click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")


@click.group(
    epilog="""\b
Examples:
  hareline dlq groups
  hareline dlq list --type email.send --error SMTPServerDisconnected --since 2h
  hareline dlq show 17
  hareline dlq replay 17 18
  hareline dlq replay --all --type email.send --rate 100
  hareline dlq edit 17 --payload '{"to": "ada@example.org", "subject": "Hello"}'
"""
)
def dlq() -> None:
    """Dead jobs: why they died, and what becomes of them.

    `hareline recorder` takes them from the dead-letter queue into the database of HARELINE_DATABASE_URL.
    """


def _filters(command: F) -> F:
    options = (
        click.option("--type", "type", metavar="TYPE", help="Of this job type."),
        click.option("--error", metavar="CLASS", help="Died of this exception class."),
        click.option("--reason", help="For this reason, for example worker-lost."),
        click.option("--group", help="Of this group of job types."),
        click.option("--fingerprint", help="Of this group, as `hareline dlq groups` shows it."),
        click.option("--since", type=AgeOption(), help="Died within this long, for example 2h or 7d."),
    )
    for option in reversed(options):
        command = option(command)
    return command


def _filters_of(options: dict[str, Any], status: str | None = DEAD) -> DeadLetterFilters:
    since = options.pop("since")
    return DeadLetterFilters(since=None if since is None else _ago(since), status=status, **options)


def _ago(seconds: float) -> datetime:
    return datetime.now(UTC) - timedelta(seconds=seconds)


@dlq.command("list", epilog="Example: hareline dlq list --type email.send --since 2h --json")
@_filters
@click.option("--status", type=click.Choice([*STATUSES, _ALL]), default=DEAD, show_default=True)
@click.option("--limit", type=click.IntRange(1, LARGEST_PAGE), default=100, show_default=True, help="Per page.")
@click.option("--cursor", help="From 'next' of the page before.")
@_as_json
def list_(status: str, limit: int, cursor: str | None, as_json: bool, since: float | None, **options: Any) -> None:
    """List dead letters, the latest first."""
    filters = _filters_of({**options, "since": since}, None if status == _ALL else status)
    page = _with(lambda desk: desk.list(filters, limit=limit, cursor=cursor))
    if as_json:
        click.echo(json.dumps({"items": [_as_item(letter) for letter in page.items], "next": page.next}))
        return
    if page.items:
        echo_table(_HEAD, map(_cells, page.items))
    else:
        click.echo("no dead letters")
    if page.next:
        click.echo(f"more: --cursor {page.next}")


@dlq.command(epilog="Example: hareline dlq show 17")
@click.argument("letter_id", metavar="ID", type=int)
@_as_json
def show(letter_id: int, as_json: bool) -> None:
    """Show all of one dead letter, with its traceback."""
    letter = _with(lambda desk: desk.get(letter_id))
    item = _as_item(letter)
    if as_json:
        click.echo(json.dumps(item))
        return
    for name, value in item.items():
        if value is not None and name != "traceback":
            click.echo(f"{name + ':':16} {value if isinstance(value, str) else json.dumps(value)}")
    if letter.traceback:
        click.echo(f"\n{letter.traceback}")


@dlq.command(epilog="Example: hareline dlq stats --json")
@_as_json
def stats(as_json: bool) -> None:
    """Count what is dead, by queue and by type."""
    found = _with(lambda desk: desk.stats())
    item = asdict(found) | {"oldest": _iso(found.oldest)}
    if as_json:
        click.echo(json.dumps(item))
        return
    click.echo(f"total {found.total:,}, last 24 h {found.last_24h:,}, oldest {_iso(found.oldest) or '-'}")
    for title, counts in (("by type", found.by_type), ("by queue", found.by_queue)):
        for name, number in sorted(counts.items(), key=lambda pair: -pair[1]):
            click.echo(f"{title:9} {number:>9,}  {name or '-'}")


@dlq.command(epilog="Example: hareline dlq groups --since 1d")
@_filters
@_as_json
def groups(as_json: bool, **options: Any) -> None:
    """Group what is dead by job type and exception, the largest first."""
    filters = _filters_of(options)
    found = _with(lambda desk: desk.groups(filters))
    if as_json:
        items = [
            asdict(group) | {"first_died_at": _iso(group.first_died_at), "last_died_at": _iso(group.last_died_at)}
            for group in found
        ]
        click.echo(json.dumps({"items": items}))
        return
    for group in found:
        first = (group.message or "").splitlines()[:1]
        click.echo(f"{group.count:>9,}  {group.fingerprint}  {group.type}  {group.error or '-'}  {''.join(first)[:80]}")
    if not found:
        click.echo("no dead letters")


@dlq.command(epilog="Example: hareline dlq replay --all --type email.send --rate 100")
@click.argument("ids", metavar="[ID ...]", nargs=-1, type=int)
@click.option("--all", "everything", is_flag=True, help="All that are dead and match the filters.")
@_filters
@click.option("--rate", type=click.FloatRange(0, min_open=True), help="At most so many in a second.")
@click.option("--dry-run", is_flag=True, help="Only say how many.")
@_as_json
def replay(
    ids: tuple[int, ...], everything: bool, rate: float | None, dry_run: bool, as_json: bool, **options: Any
) -> None:
    """Run dead jobs again, by ID or all that match. Ended half-way, the same command goes on with what is left."""
    if bool(ids) == everything or (ids and any(value is not None for value in options.values())):
        raise click.UsageError("give either IDs, or --all and filters")
    which = list(ids) if ids else _filters_of(options)
    matched = _with(lambda desk: desk.replay(which, rate=rate, dry_run=True))
    if dry_run:
        _echo_replayed(0, matched, as_json, dry_run=True)
        return
    bar = click.progressbar(length=matched, label="replaying", hidden=as_json)
    done = 0

    def count(number: int) -> None:
        nonlocal done
        done += number
        bar.update(number)

    try:
        with bar:
            _with(lambda desk: desk.replay(which, rate=rate, progress=count))
    except KeyboardInterrupt:
        _echo_replayed(done, matched, as_json)
        click.echo("stopped: the same command goes on with what is left", err=True)
        sys.exit(_INTERRUPTED)
    _echo_replayed(done, matched, as_json)


def _echo_replayed(done: int, matched: int, as_json: bool, *, dry_run: bool = False) -> None:
    if as_json:
        click.echo(json.dumps({"replayed": done, "matched": matched, "dry_run": dry_run}))
    elif dry_run:
        click.echo(f"{matched:,} would be replayed")
    else:
        click.echo(f"{done:,} of {matched:,} replayed: {_RELAY}")


@dlq.command(epilog='Example: hareline dlq edit 17 --payload \'{"to": "ada@example.org", "subject": "Hello"}\'')
@click.argument("letter_id", metavar="ID", type=int)
@click.option("--payload", required=True, metavar="JSON", help="What the new job gets.")
@_as_json
def edit(letter_id: int, payload: str, as_json: bool) -> None:
    """Run a dead job with another payload, as a new job that names the old one.

    The payload is checked where HARELINE_APP names an app that knows the job type.
    """
    value = read_json("--payload", payload)
    app = Settings.from_env().app
    types = load_app(app).job_types if app else ()
    job_id = _with(lambda desk: desk.edit(letter_id, value), types)
    click.echo(json.dumps({"id": job_id, "edited": letter_id}) if as_json else f"{job_id}: {_RELAY}")


@dlq.command(epilog="Example: hareline dlq discard 17 18")
@click.argument("ids", metavar="ID ...", nargs=-1, required=True, type=int)
@_as_json
def discard(ids: tuple[int, ...], as_json: bool) -> None:
    """Put dead letters away: they are kept until `clean`, and not replayed."""
    number = _with(lambda desk: desk.discard(ids))
    click.echo(json.dumps({"discarded": number}) if as_json else f"{number:,} discarded")


@dlq.command(epilog="Example: hareline dlq clean --older-than 30d")
@click.option("--older-than", type=AgeOption(), default="30d", show_default=True, help="Died longer ago than this.")
@_as_json
def clean(older_than: float, as_json: bool) -> None:
    """Delete old dead letters, whatever became of them."""
    number = _with(lambda desk: desk.clean(timedelta(seconds=older_than)))
    click.echo(json.dumps({"deleted": number}) if as_json else f"{number:,} deleted")


@dlq.command(epilog="Example: hareline dlq watch --json")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document a line.")
def watch(as_json: bool) -> None:
    """Print dead letters as they are recorded, until Ctrl-C."""

    async def work(desk: DeadLetters) -> None:
        async for letter in desk.watch(on_ready=lambda: click.echo("watching: Ctrl-C ends it", err=True)):
            click.echo(json.dumps(_as_item(letter)) if as_json else "  ".join(_cells(letter)))

    try:
        _with(work)
    except KeyboardInterrupt:
        click.echo(err=True)


def _with(work: Callable[[DeadLetters], Awaitable[T]], job_types: Any = ()) -> T:
    async def run() -> T:
        async with DeadLetters(Settings.from_env(), job_types=job_types) as desk:
            return await work(desk)

    return asyncio.run(run())


def _cells(letter: DeadLetter) -> tuple[str, ...]:
    first = "".join((letter.message or "").splitlines()[:1])[:80]
    died = letter.died_at.isoformat(timespec="seconds").replace("+00:00", "Z")
    attempts = "-" if letter.attempts is None else str(letter.attempts)
    error = letter.error or letter.reason or "-"
    return str(letter.id), died, letter.type, letter.status, attempts, str(letter.replays), error, first


def _as_item(letter: DeadLetter) -> dict[str, Any]:
    item = {name: value for name, value in asdict(letter).items() if name != "body"}
    item |= {name: _iso(value) for name, value in item.items() if isinstance(value, datetime)}
    return item | {"payload": letter.payload}


def _iso(moment: datetime | None) -> str | None:
    return None if moment is None else moment.isoformat()
