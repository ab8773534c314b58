"""``hareline topology``."""

from __future__ import annotations

import asyncio
import json
import logging
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, TypeVar

import click

from hareline.cli.loading import load_app
from topology import catalog, drawing, ladder
from topology import plan as planning
from topology.apply import apply as apply_topology
from topology.apply import plan as plan_topology
from topology.apply import refuse_if_never
from topology.capabilities import Capabilities
from topology.duration import format_duration
from topology.errors import BrokerUnreachable, TopologyError
from topology.management import Management
from topology.settings import Settings
from topology.spec import Spec, derive

if TYPE_CHECKING:
    from topology.control import Control
    from topology.migrate import Progress

F = TypeVar("F", bound=Callable[..., Any])

_DIFFERENT: Final = 2
_SECOND: Final = 1.0


@dataclass(frozen=True, slots=True)
class _Session:
    """What every command needs once it has reached the broker."""

    spec: Spec
    control: Control
    management: Management | None
    settings: Settings


@click.group(
    epilog="""\b
Examples:
  hareline topology plan                       what is missing or different on the broker
  hareline topology apply                      create what is missing
  hareline topology verify --json              for a deploy script: exit code 2 if anything differs
  hareline topology migrate email.send         replace a queue whose arguments changed, keep its jobs
  hareline topology show --format mermaid      a picture for the README
"""
)
def topology() -> None:
    """Exchanges, queues and bindings: show, plan, apply, verify, migrate.

    The code says what should exist; these commands compare it with the broker at HARELINE_BROKER_URL. With
    HARELINE_MANAGEMENT_URL they see everything; without, existence alone, and they say so.
    HARELINE_DECLARE=never leaves all changes to the broker's operators.
    """
    # Every error is told in one sentence of its own; the client's own log lines would say it twice.
    logging.getLogger("aiormq").setLevel(logging.CRITICAL)


def _app_option(command: F) -> F:
    return click.option("--app", metavar="MODULE:ATTRIBUTE", help="Your App; by default HARELINE_APP.")(command)


def _json_option(command: F) -> F:
    return click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")(command)


def _strict_option(command: F) -> F:
    return click.option("--strict", is_flag=True, help="Count stale objects as a difference too.")(command)


@topology.command()
@_app_option
@click.option(
    "--format",
    "form",
    type=click.Choice(["text", "json", "mermaid", "dot"]),
    default="text",
    show_default=True,
    help="json: RabbitMQ's own definitions, which an operator can import.",
)
@click.option("--json", "as_json", is_flag=True, help="The same as --format json.")
@click.option("--asyncapi", is_flag=True, help="Print an AsyncAPI 3 document of the job types instead.")
@click.option("--schemas", is_flag=True, help="Print the JSON Schema of every payload instead.")
@click.option("--broker-version", metavar="X.Y", help="Show what a broker of this version needs; asks no broker.")
def show(app: str | None, form: str, as_json: bool, asyncapi: bool, schemas: bool, broker_version: str | None) -> None:
    """Show what the code wants on the broker, which depends on the broker's version."""
    settings = Settings.from_env()
    loaded = load_app(app or settings.app)
    job_types = loaded.job_types_with(settings)
    if asyncapi and schemas:
        raise click.UsageError("--asyncapi and --schemas are two documents: ask for one")
    if asyncapi:
        url = settings.broker_urls[0]
        _print_json(catalog.asyncapi(job_types, settings.namespace, broker_url=url))
        return
    if schemas:
        _print_json(catalog.schemas(job_types))
        return
    if broker_version:
        capabilities = Capabilities.of_server({"version": broker_version})
    else:
        capabilities = asyncio.run(_capabilities(settings))
    spec = derive(job_types, capabilities, settings.namespace, loaded.undos)
    if as_json or form == "json":
        _print_json(catalog.definitions(spec))
    elif form == "mermaid":
        click.echo(drawing.mermaid(spec), nl=False)
    elif form == "dot":
        click.echo(drawing.dot(spec), nl=False)
    else:
        click.echo("\n".join(_text(spec, capabilities)))


@topology.command()
@_app_option
@_json_option
@_strict_option
def plan(app: str | None, as_json: bool, strict: bool) -> None:
    """Show what differs between the code and the broker. Exit code 2 if anything does."""
    found = asyncio.run(_plan(app))
    if as_json:
        _print_json(found.to_json())
    else:
        click.echo("\n".join(found.lines()))
    _exit(found, strict)


@topology.command()
@_app_option
@_json_option
@_strict_option
def verify(app: str | None, as_json: bool, strict: bool) -> None:
    """Exit with code 0 if the broker has all that the code wants; else name each difference, and 2."""
    found = asyncio.run(_plan(app))
    if as_json:
        _print_json(found.to_json())
    elif found.empty and not (strict and found.stale):
        click.echo("The broker has all that the code wants.")
        for what in found.unseen:
            click.echo(f"not seen: {what}")
    else:
        click.echo("\n".join(found.lines()))
    _exit(found, strict)


@topology.command()
@_app_option
@_json_option
def apply(app: str | None, as_json: bool) -> None:
    """Create what is missing on the broker. Nothing is deleted or changed; any number may run it at once."""
    settings = Settings.from_env()
    refuse_if_never(settings, "apply")

    async def run() -> planning.Plan:
        async with _session(app, settings) as session:
            return await apply_topology(session.spec, session.control, session.management, settings)

    made = asyncio.run(run())
    if as_json:
        _print_json(made.to_json())
        return
    for line in planning.summarised((*made.changes, *made.stale)):
        click.echo(line)
    created, bound = len(made.of_kind("create")), len(made.of_kind("bind"))
    if made.empty:
        click.echo("Nothing was missing.")
    elif made.unseen:
        click.echo(f"Created {created} exchanges and queues, and whatever bindings were missing.")
    else:
        click.echo(f"Created {created} exchanges and queues, {bound} bindings.")


@topology.command()
@click.argument("queues", nargs=-1, metavar="[QUEUE|TYPE]...")
@_app_option
@_json_option
@click.option(
    "--assume-idle",
    is_flag=True,
    help="Do not ask the management API whether a client still holds messages: you know that none does.",
)
def migrate(queues: tuple[str, ...], app: str | None, as_json: bool, assume_idle: bool) -> None:
    """Replace queues whose immutable arguments changed, without losing a message.

    By default all that differ. Stop the workers of these queues first; producers may go on. It can be cut off
    at any moment: run it again, and it goes on from there. A message that is published at the very moment of
    a switch may arrive twice.
    """
    settings = Settings.from_env()
    refuse_if_never(settings, "migrate")
    report = _Report()

    async def run() -> list[dict[str, str | int]]:
        async with _session(app, settings) as session:
            from topology.migrate import migrate as migrate_queues  # noqa: PLC0415 - needs aio-pika, as _connect

            done = await migrate_queues(
                session.spec,
                session.control,
                session.management,
                settings,
                queues=queues or None,
                assume_idle=assume_idle,
                progress=report,
            )
            return [one.to_json() for one in done]

    migrated = asyncio.run(run())
    if as_json:
        _print_json({"migrated": migrated})
    elif migrated:
        for one in migrated:
            click.echo(f"{one['queue']}: replaced, {one['messages']} messages kept")
    else:
        click.echo("No queue needs a migration.")


class _Report:
    """Progress on standard error: a line for each step, and one a second while messages move."""

    def __init__(self) -> None:
        self._told: dict[str, float] = {}

    def __call__(self, progress: Progress) -> None:
        moving = progress.step in {"draining", "refilling"}
        now = time.monotonic()
        if moving and progress.moved < progress.total and now - self._told.get(progress.queue, 0.0) < _SECOND:
            return
        self._told[progress.queue] = now
        count = f" {progress.moved} of {progress.total}" if progress.total else ""
        click.echo(f"{progress.queue}: {progress.step}{count}", err=True)


@asynccontextmanager
async def _session(app: str | None, settings: Settings) -> AsyncIterator[_Session]:
    loaded = load_app(app or settings.app)
    job_types = loaded.job_types_with(settings)
    async with await _connect(settings) as control:
        yield _Session(
            derive(job_types, control.capabilities, settings.namespace, loaded.undos),
            control,
            Management.from_settings(settings, control.url),
            settings,
        )


async def _plan(app: str | None) -> planning.Plan:
    async with _session(app, Settings.from_env()) as session:
        return await plan_topology(session.spec, session.control, session.management)


async def _capabilities(settings: Settings) -> Capabilities:
    try:
        async with await _connect(settings) as control:
            return control.capabilities
    except BrokerUnreachable as error:
        raise BrokerUnreachable(
            f"{error} The topology depends on the broker's version: name it with --broker-version"
        ) from error


async def _connect(settings: Settings) -> Control:
    try:
        from topology.control import Control  # noqa: PLC0415 - a producing service may lack aio-pika
    except ModuleNotFoundError as error:
        raise TopologyError(f"no module '{error.name}': pip install 'hareline[worker]' brings it") from error
    return await Control.connect(settings.broker_urls)


def _text(spec: Spec, capabilities: Capabilities) -> list[str]:
    names = spec.names
    levels = {names.level(level) for level in range(ladder.LEVELS)}
    version = ".".join(str(part) for part in capabilities.version)
    lines = [f"Namespace {names.namespace}, RabbitMQ {version}", "", "Exchanges"]
    lines += [
        f"  {exchange.name}  {exchange.kind}{_words(exchange.arguments)}"
        for exchange in spec.exchanges
        if exchange.name not in levels
    ]
    lines += ["", "Queues"]
    lines += [f"  {queue.name} {_words(queue.arguments)}" for queue in spec.queues if queue.name not in levels]
    shortest = format_duration(ladder.UNIT_MS / 1000)
    levels_line = (
        f"Delay ladder: {ladder.LEVELS} exchanges and queues, {names.level(0)} ({shortest}) to "
        f"{names.level(ladder.LEVELS - 1)} ({ladder.UNIT_MS * 2 ** (ladder.LEVELS - 1) / 86_400_000:.1f}d)"
    )
    lines += [
        "",
        levels_line,
        "",
        "Bindings",
    ]
    lines += [
        f"  {binding.source} -> {binding.destination}  {binding.routing_key or '(all)'}"
        for binding in spec.bindings
        if binding.source not in levels
    ]
    return lines


def _words(arguments: Any) -> str:
    return "".join(f"  {name.removeprefix('x-')}={value}" for name, value in arguments.items())


def _print_json(document: Any) -> None:
    click.echo(json.dumps(document, indent=2, ensure_ascii=False))


def _exit(found: planning.Plan, strict: bool) -> None:
    if not found.empty or (strict and found.stale):
        sys.exit(_DIFFERENT)
