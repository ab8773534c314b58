"""``hareline jobs``."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import asdict
from datetime import timedelta
from typing import Any, TypeVar

import click

from hareline.cli.enqueue import AgeOption
from hareline.cli.shown import document, echo_facts, echo_page, moment, plain
from hareline.jobs import AttemptRecord, JobRecord, Jobs, JobStats
from hareline.paging import LARGEST_PAGE
from store.joblog import STATUSES
from topology.settings import Settings

T = TypeVar("T")

_HEAD = ("ID", "TYPE", "STATUS", "ATTEMPT", "SEEN", "DURATION", "GROUP", "ERROR")
_as_json = click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")


@click.group(
    epilog="""\b
Examples:
  hareline jobs list --status dead --since 1d
  hareline jobs show 01890a5d-ac96-774b-bcce-b302099a8057
  hareline jobs stats --json
"""
)
def jobs() -> None:
    """What became of jobs, from the log that `hareline recorder` writes."""


@jobs.command("list", epilog="Example: hareline jobs list --type email.send --status retrying --limit 20")
@click.option("--status", type=click.Choice(STATUSES), help="Only jobs that are so now.")
@click.option("--type", "type_name", help="Only this job type.")
@click.option("--group", help="Only job types of this group.")
@click.option("--since", type=AgeOption(), help="Only jobs known for no longer than this, for example 2h.")
@click.option("--limit", type=click.IntRange(1, LARGEST_PAGE), default=50, show_default=True, help="Jobs of a page.")
@click.option("--cursor", help="Where the page begins: 'next' of the page before, with the same filters.")
@_as_json
def list_jobs(
    status: str | None,
    type_name: str | None,
    group: str | None,
    since: float | None,
    limit: int,
    cursor: str | None,
    as_json: bool,
) -> None:
    """Jobs, the latest first."""
    ago = None if since is None else timedelta(seconds=since)
    page = _with(
        lambda log: log.list(status=status, type=type_name, group=group, since=ago, limit=limit, cursor=cursor)
    )
    if as_json:
        click.echo(json.dumps({"items": [_as_item(job) for job in page.items], "next": page.next}))
        return
    echo_page("jobs", _HEAD, map(_cells, page.items), page.next)


@jobs.command(epilog="Example: hareline jobs show 01890a5d-ac96-774b-bcce-b302099a8057")
@click.argument("job_id", metavar="ID")
@_as_json
def show(job_id: str, as_json: bool) -> None:
    """One job with its attempts."""
    job = _with(lambda log: log.get(job_id))
    if as_json:
        click.echo(json.dumps({**_as_item(job), "attempts": [plain(asdict(attempt)) for attempt in job.attempts]}))
        return
    echo_facts(_as_item(job))
    for attempt in job.attempts:
        click.echo(_line(attempt))


@jobs.command(epilog="Example: hareline jobs stats --json")
@_as_json
def stats(as_json: bool) -> None:
    """Counts by status, type and group, and of the last hour's attempts."""
    found = _with(lambda log: log.stats())
    if as_json:
        click.echo(json.dumps(_stats_item(found)))
        return
    _echo_counts("jobs", found.by_status)
    for title, counts in (("type", found.by_type), ("group", found.by_group)):
        for name, by_status in sorted(counts.items()):
            _echo_counts(f"{title} {name}", by_status)
    _echo_counts("attempts, last hour", found.last_hour)
    if found.missing or found.dropped:
        click.echo(f"lost reports: {found.missing} batches missing, {found.dropped} events dropped at the source")


def _with(work: Callable[[Jobs], Awaitable[T]]) -> T:
    async def inside() -> T:
        async with Jobs(Settings.from_env()) as log:
            return await work(log)

    return asyncio.run(inside())


def _echo_counts(title: str, counts: Mapping[str, int]) -> None:
    told = ", ".join(f"{number} {name}" for name, number in sorted(counts.items()))
    click.echo(f"{title}: {told or 'none'}")


def _stats_item(found: JobStats) -> dict[str, Any]:
    return {
        "status": {status: found.by_status.get(status, 0) for status in STATUSES},
        "types": found.by_type,
        "groups": found.by_group,
        "last_hour": found.last_hour,
        "reports": {"missing_batches": found.missing, "dropped_events": found.dropped},
    }


def _line(attempt: AttemptRecord) -> str:
    replay = f" of replay {attempt.replay}" if attempt.replay else ""
    took = "" if attempt.duration is None else f" after {attempt.duration:.3f} s"
    error = f": {attempt.error} {attempt.error_message or ''}".rstrip() if attempt.error else ""
    return f"attempt {attempt.attempt}{replay}  {moment(attempt.ended_at)}  {attempt.outcome}{took}{error}"


def _cells(job: JobRecord) -> tuple[str, ...]:
    took = "-" if job.duration is None else f"{job.duration:.3f}s"
    attempt = str(job.attempt)
    return job.id, job.type, job.status, attempt, moment(job.seen_at), took, job.group or "-", job.error or "-"


def _as_item(job: JobRecord) -> dict[str, Any]:
    item = plain(asdict(job))
    del item["attempts"]
    return {**item, "payload": document(job.payload)}
