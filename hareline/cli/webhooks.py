"""``hareline webhooks``."""

from __future__ import annotations

import logging
import shlex
import socket
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Final

import click
import uvicorn

from hareline.cli.loading import load_app
from hareline.services import run_service
from producers.webhooks.receiver import WebhookReceiver
from producers.webhooks.source import WebhookSource
from store import schema
from store.engine import Database
from topology.envelope import new_id
from topology.errors import DatabaseUnavailable, OptionInvalid, SettingsError
from topology.settings import Settings

logger = logging.getLogger(__name__)

_BACKLOG: Final = 2048
_ROOM_FOR_A_PROBLEM: Final = 2
_ANSWER_WITHIN: Final = 30.0


@click.group(
    invoke_without_command=True,
    epilog="""\b
Examples:
  hareline webhooks --host 0.0.0.0 --port 8080
  hareline webhooks send github --event push '{"ref": "refs/heads/main"}'
""",
)
@click.option("--host", help="Where to listen. Without it: HARELINE_WEBHOOKS_HOST, 127.0.0.1 by default.")
@click.option("--port", type=click.IntRange(0, 65535), help="Without it: HARELINE_WEBHOOKS_PORT, 8080 by default.")
@click.pass_context
def webhooks(context: click.Context, host: str | None, port: int | None) -> None:
    """Serve POST /webhooks/{source} for the App(webhooks=[...]) of HARELINE_APP and the sources of HARELINE_WEBHOOKS.

    It ends on SIGTERM or Ctrl-C.

    A delivery that is answered with 202 is committed, and `hareline relay` publishes it. Any number may run at once.
    """
    if context.invoked_subcommand is not None:
        return
    settings = Settings.from_env()
    sources = load_app(settings.app).webhooks_with(settings)
    if not sources:
        raise SettingsError(
            f"{settings.app} has no webhooks: declare App(webhooks=[WebhookSource(...)]), or set HARELINE_WEBHOOKS"
        )
    receiver = WebhookReceiver(sources, settings)  # a source without a secret is refused before anything is opened
    listening = _listen(
        settings.webhooks_host if host is None else host, settings.webhooks_port if port is None else port
    )
    click.echo(f"webhooks at {_address(listening)}/webhooks/: {', '.join(source.name for source in sources)}", err=True)
    run_service("the receiver", lambda _: _Served(receiver, settings, listening), settings, _verify)


@webhooks.command(epilog="""Example: hareline webhooks send shop --event order.created '{"id": 7}'""")
@click.argument("source_name", metavar="SOURCE")
@click.argument("body", metavar="BODY")
@click.option("--event", required=True, help="The event's name, put where the source's scheme has it.")
@click.option("--id", "delivery_id", help="The delivery id; the same one again is a repeat. Without it: a new one.")
@click.option("--url", help="The receiver. Without it: HARELINE_WEBHOOKS_HOST and _PORT on this machine.")
def send(source_name: str, body: str, event: str, delivery_id: str | None, url: str | None) -> None:
    """Sign BODY (JSON) as SOURCE would, send it, and print the curl line and the answer.

    The curl line holds the signature and not the secret. Exit code 1 unless the delivery was accepted.
    """
    settings = Settings.from_env()
    source = _source(settings, source_name)
    signature, content = source.sign(body.encode(), event=event, delivery_id=delivery_id or new_id(), now=time.time())
    headers = {"Content-Type": "application/json", **signature}
    base = url or f"http://{settings.webhooks_host}:{settings.webhooks_port}"
    target = f"{base.rstrip('/')}/webhooks/{source_name}"
    click.echo(_curl(target, headers, content))
    status, answer = _post(target, headers, content)
    click.echo(f"{status} {answer}")
    if status >= 300:  # noqa: PLR2004 - 200 and 202 are accepted
        sys.exit(1)


class _Served:
    """The receiver on uvicorn, as a role's process runs it."""

    def __init__(self, receiver: WebhookReceiver, settings: Settings, listening: socket.socket) -> None:
        self._listening = listening
        self._server = _Server(
            uvicorn.Config(
                receiver,
                http="h11",
                ws="none",
                lifespan="on",
                log_config=None,
                access_log=False,
                server_header=False,
                # What is a little too long gets our own answer; what is far too long gets the server's.
                h11_max_incomplete_event_size=_ROOM_FOR_A_PROBLEM * settings.webhooks_max_headers,
                timeout_graceful_shutdown=max(1, int(settings.grace)),
            )
        )

    async def run(self) -> None:
        """Until `drain`; requests that are under way are answered first."""
        await self._server.serve(sockets=[self._listening])

    def drain(self) -> None:
        """Takes no more connections."""
        self._server.should_exit = True


class _Server(uvicorn.Server):
    """Signals are the role's business."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leaves them alone."""
        yield


async def _verify(database: Database) -> None:
    """The tables must be there. A database that is away is no reason to wait: a sender that hears 503 comes again."""
    try:
        await schema.verify(database)
    except DatabaseUnavailable as error:
        logger.warning("deliveries are answered with 503 until the database is back: %s", error)


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=_BACKLOG)
    except OSError as error:
        raise SettingsError(f"cannot listen at {host}:{port}: {error.strerror or error}") from error


def _address(listening: socket.socket) -> str:
    host, port = listening.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _source(settings: Settings, name: str) -> WebhookSource:
    sources = {source.name: source for source in load_app(settings.app).webhooks_with(settings)}
    if name not in sources:
        raise OptionInvalid(f"there is no webhook source '{name}'; this app has: {', '.join(sources) or 'none'}")
    return sources[name].armed(settings.extra)


def _curl(target: str, headers: Mapping[str, str], content: bytes) -> str:
    parts = ["curl", "-i", target]
    for name, value in headers.items():
        parts += ["-H", f"{name}: {value}"]
    return shlex.join([*parts, "--data-binary", content.decode()])


def _post(target: str, headers: Mapping[str, str], content: bytes) -> tuple[int, str]:
    if not target.startswith(("http://", "https://")):
        raise OptionInvalid(f"--url {target}: an http or https address is needed")
    request = urllib.request.Request(target, content, dict(headers), method="POST")  # noqa: S310 - checked above
    try:
        with urllib.request.urlopen(request, timeout=_ANSWER_WITHIN) as answer:  # noqa: S310 - checked above
            return answer.status, answer.read().decode(errors="replace")
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode(errors="replace")
    except OSError as error:
        raise SettingsError(f"nobody answers at {target}: {error}; does `hareline webhooks` run?") from error
