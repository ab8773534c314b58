"""Where on the broker the bench runs: a virtual host of its own, where the management API can make one."""

import contextlib
import json
import time
import urllib.error
import urllib.request
from base64 import b64encode
from dataclasses import dataclass, field
from urllib.parse import quote, unquote, urlsplit

import pika
from pika.exceptions import AMQPError, ChannelClosedByBroker

from contenders import NAMESPACE
from hareline.broker import Broker
from store_database import Postgres

VHOST = "hareline-bench"
# What the contenders leave behind; needed only where there is no virtual host to delete.
QUEUES = (
    *("bench.raw", "bench.faststream", "bench.celery", "bench.taskiq", "bench.taskiq.dead"),
    *("bench.dramatiq", "bench.dramatiq.DQ", "bench.dramatiq.XQ"),
    *(
        f"{NAMESPACE}.{name}"
        for name in (
            *(f"bench.step.{n}" for n in range(4)),
            "bench.noop",
            "bench.webhook",
            "dlq",
            "unroutable",
            "records",
            "records.failed",
        )
    ),
    *(f"{NAMESPACE}.delay.{level:02d}" for level in range(25)),
    *(f"celery_delayed_{level}" for level in range(28)),
)
EXCHANGES = (
    *("bench.celery", "bench.taskiq", "celery.pidbox", "celery_delayed_delivery"),
    *(f"celery_delayed_{level}" for level in range(28)),
    *(f"{NAMESPACE}.{name}" for name in ("jobs", "dlx", "events", "unroutable", "delay.due")),
    *(f"{NAMESPACE}.delay.{level:02d}" for level in range(25)),
)


@dataclass
class Arena:
    """Where all publish to and consume from. As a context manager it leaves nothing of it behind."""

    broker: Broker
    postgres: Postgres
    base_url: str = field(init=False)
    management_url: str | None = field(init=False)
    url: str = field(init=False, default="")

    def __enter__(self):
        self.base_url = self.broker.url.split(",")[0]
        self.management_url = self.broker.management_url or self._guess_management()
        self.url = self.base_url
        if self.management_url:
            self._request("DELETE", f"vhosts/{VHOST}", missing_ok=True)
            self._request("PUT", f"vhosts/{VHOST}", {})
            user = quote(unquote(urlsplit(self.base_url).username or "guest"), safe="")
            everything = {"configure": ".*", "write": ".*", "read": ".*"}
            self._request("PUT", f"permissions/{VHOST}/{user}", everything)
            self.url = urlsplit(self.base_url)._replace(path=f"/{VHOST}").geturl()
        return self

    def __exit__(self, *_error):
        if self.management_url:
            self._request("DELETE", f"vhosts/{VHOST}", missing_ok=True)
        else:
            self._delete_by_name()

    def environment(self) -> dict[str, str]:
        variables = {"BENCH_BROKER_URL": self.url, "HARELINE_BROKER_URL": self.url}
        if self.management_url:
            variables["HARELINE_MANAGEMENT_URL"] = self.management_url
        return variables

    def server(self) -> dict[str, str]:
        """The broker's product, version and platform, as it introduces itself."""
        with self.connect() as connection:
            properties = connection._impl.server_properties  # noqa: SLF001 -- pika shows it nowhere else
        return {
            name: value.decode() if isinstance(value, bytes) else str(value)
            for name, value in properties.items()
            if name in {"product", "version", "platform"}
        }

    def settled(self, queue: str, expected: int, timeout: float = 5.0) -> int:
        """Messages ready in the queue, given a moment to become `expected`: the broker's counts lag."""
        deadline = time.monotonic() + timeout
        with self.connect() as connection:
            channel = connection.channel()
            while True:
                count = channel.queue_declare(queue, passive=True).method.message_count
                if count == expected or time.monotonic() > deadline:
                    return count
                connection.sleep(0.1)

    def purge(self, queue: str) -> None:
        with self.connect() as connection:
            connection.channel().queue_purge(queue)

    def wait_for_consumer(self, queue: str, still_running, timeout: float = 60.0) -> None:
        """Return when the queue has a consumer; `still_running` raises when the worker has gone."""
        deadline = time.monotonic() + timeout
        with self.connect() as connection:
            channel = connection.channel()
            while not channel.queue_declare(queue, passive=True).method.consumer_count:
                still_running()
                if time.monotonic() > deadline:
                    raise TimeoutError(f"no consumer on {queue} after {timeout:.0f} s")
                connection.sleep(0.05)

    def connect(self) -> pika.BlockingConnection:
        return pika.BlockingConnection(pika.URLParameters(self.url))

    def _delete_by_name(self) -> None:
        for kind, names in (("queue", QUEUES), ("exchange", EXCHANGES)):
            with contextlib.suppress(AMQPError), self.connect() as connection:
                for name in names:
                    channel = connection.channel()
                    with contextlib.suppress(ChannelClosedByBroker):
                        (channel.queue_delete if kind == "queue" else channel.exchange_delete)(name)

    def _guess_management(self) -> str | None:
        """Nobody said where the management API is; by convention its port is AMQP's plus 10,000."""
        parts = urlsplit(self.base_url)
        self.management_url = f"http://{parts.hostname}:{(parts.port or 5672) + 10_000}"
        try:
            self._request("GET", "overview")
        except OSError:
            return None
        return self.management_url

    def _request(self, method: str, path: str, body: dict | None = None, *, missing_ok: bool = False) -> None:
        parts = urlsplit(self.base_url)
        login = f"{unquote(parts.username or 'guest')}:{unquote(parts.password or 'guest')}"
        request = urllib.request.Request(
            f"{self.management_url.rstrip('/')}/api/{path}",
            method=method,
            data=None if body is None else json.dumps(body).encode(),
            headers={
                "Authorization": f"Basic {b64encode(login.encode()).decode()}",
                "Content-Type": "application/json",
            },
        )
        try:
            urllib.request.urlopen(request, timeout=30).close()
        except urllib.error.HTTPError as error:
            if not (missing_ok and error.code == 404):
                raise
