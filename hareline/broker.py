"""Gets a broker for development, tests and the demo: the one that is set, or one of this machine's own.

``find_broker`` tries, in this order: ``HARELINE_BROKER_URL``; a private node of an installed
``rabbitmq-server``; a container; and, as root on Debian or Ubuntu, a private node of a ``rabbitmq-server``
that apt installs.
"""

from __future__ import annotations

import contextlib
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType, TracebackType
from typing import Self

from hareline.broker_package import can_install, install_package
from hareline.loopback import overview, speaks_amqp
from hareline.private_node import BrokerCommandFailed, BrokerUnavailable, PrivateNode
from topology.settings import Settings

__all__ = [
    "Broker",
    "BrokerCommandFailed",
    "BrokerUnavailable",
    "PrivateNode",
    "find_broker",
    "run_foreground",
]

IMAGE = "rabbitmq:4-management"
Report = Callable[[str], None]


@dataclass(slots=True)
class Broker:
    """A broker that answers. As a context manager it ends, on exit, what was started to get it.

    ``url`` is in the form of ``HARELINE_BROKER_URL`` (several, comma-separated); ``management_url`` is None
    where nobody said where the management API is. ``node`` is set where the broker is a private node, which
    can be stopped, killed and started at will.
    """

    url: str
    management_url: str | None
    source: str
    node: PrivateNode | None = None
    _cleanup: contextlib.ExitStack = field(default_factory=contextlib.ExitStack, repr=False)

    @property
    def environment(self) -> dict[str, str]:
        """The variables that point other processes to this broker."""
        variables = {"HARELINE_BROKER_URL": self.url}
        if self.management_url:
            variables["HARELINE_MANAGEMENT_URL"] = self.management_url
        return variables

    def close(self) -> None:
        """Ends what was started for this broker, and nothing else. May be called more than once."""
        self._cleanup.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def find_broker(settings: Settings | None = None, *, report: Report | None = None) -> Broker:
    """A broker that answers, from the first source that this machine has; see the module for the order.

    ``report`` is called with one line for each step that takes time (default: standard error). Raises
    BrokerUnavailable with one sentence that says what to install, or that the broker that is set does not
    answer. A source that is there but fails is an error: the next one is not tried in its place.
    """
    say = report or _to_stderr
    settings = settings or Settings.from_env()
    if settings.extra.get("HARELINE_BROKER_URL"):
        return _configured(settings)
    if PrivateNode.installed():
        return _private(say)
    docker_problem = _docker_problem()
    if docker_problem is None:
        return _container(say)
    if can_install():
        say("hareline: installing rabbitmq-server with apt-get (once; no system-wide node is left running)")
        install_package()
        return _private(say)
    raise BrokerUnavailable(
        "no broker: install rabbitmq-server (Debian and Ubuntu: sudo apt-get install rabbitmq-server), "
        f"or {docker_problem}, or set HARELINE_BROKER_URL=amqp://user:password@host:5672/"
    )


def run_foreground(
    directory: Path | str | None = None,
    *,
    port: int | None = None,
    management_port: int | None = None,
    prometheus: bool = False,
    write: Report = print,
) -> None:
    """Runs a private node until SIGINT or SIGTERM, then stops it in good order; a second signal kills it.

    Without a directory the data is temporary. Call it from the main thread. Raises BrokerUnavailable where
    the node does not start, or ends by itself.
    """
    stopping = threading.Event()
    node = PrivateNode(directory, port=port, management_port=management_port, prometheus=prometheus)

    def on_signal(_number: int, _frame: FrameType | None) -> None:
        if stopping.is_set():
            raise KeyboardInterrupt
        stopping.set()

    previous = {number: signal.signal(number, on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        # A signal while the node boots is acted on once it is up; a second one ends the boot.
        with node:
            _announce(node, write)
            while not stopping.wait(0.5):
                if not node.running:
                    raise BrokerUnavailable(f"the RabbitMQ node ended by itself:\n{node.log_tail()}")
            write("stopping ...")
            node.stop()
    except KeyboardInterrupt:
        write("killed")
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _announce(node: PrivateNode, write: Report) -> None:
    write(f"RabbitMQ {node.version}, data in {node.directory}")
    write(f"AMQP        {node.url}")
    write(f"Management  {node.management_url}  (user guest, password guest)")
    if node.prometheus_url:
        write(f"Metrics     {node.prometheus_url}")
    write(f"export HARELINE_BROKER_URL={node.url}")
    write(f"export HARELINE_MANAGEMENT_URL={node.management_url}")
    write("Ctrl-C stops it.")
    sys.stdout.flush()


def _configured(settings: Settings) -> Broker:
    urls = settings.broker_urls
    if not any(speaks_amqp(url, timeout=10.0) for url in urls):
        places = ", ".join(url.rsplit("@", 1)[-1] for url in urls)
        raise BrokerUnavailable(
            f"HARELINE_BROKER_URL is set, but no broker answers at {places}: start it, or unset the variable"
        )
    return Broker(",".join(urls), settings.management_url, "HARELINE_BROKER_URL")


def _private(say: Report) -> Broker:
    say("hareline: starting a private RabbitMQ node")
    with contextlib.ExitStack() as stack:
        node = stack.enter_context(PrivateNode())
        return Broker(node.url, node.management_url, f"private node, RabbitMQ {node.version}", node, stack.pop_all())


def _docker_problem() -> str | None:
    """What to do before Docker can be used, or None where it can."""
    try:
        from testcontainers.core.docker_client import DockerClient  # noqa: PLC0415 - the extra "testing"
    except ImportError:
        return "install hareline[testing] to use Docker"
    if not shutil.which("docker") and not Path("/var/run/docker.sock").exists():
        return "install Docker"
    try:
        DockerClient().client.ping()
    except Exception:  # noqa: BLE001 - the client raises a dozen kinds, all of which say: no daemon
        return "start Docker, whose daemon does not answer this user"
    return None


def _container(say: Report) -> Broker:
    from testcontainers.core.container import DockerContainer  # noqa: PLC0415 - the extra "testing"

    say(f"hareline: starting a container of {IMAGE}")
    with contextlib.ExitStack() as stack:
        container = DockerContainer(IMAGE).with_exposed_ports(5672, 15672)
        # Registered before the start: a container that was made but failed to start is removed as well.
        stack.callback(container.stop)
        try:
            container.start()
        except Exception as error:
            raise BrokerUnavailable(f"Docker did not start {IMAGE}: {error}") from error
        host = container.get_container_host_ip()
        url = f"amqp://guest:guest@{host}:{container.get_exposed_port(5672)}/"
        management = f"http://{host}:{container.get_exposed_port(15672)}"
        deadline = time.monotonic() + 120
        while not (overview(management, "guest", "guest") and speaks_amqp(url)):
            if time.monotonic() > deadline:
                raise BrokerUnavailable(f"the container of {IMAGE} was not ready after 120 s")
            time.sleep(0.2)
        return Broker(url, management, f"container of {IMAGE}", None, stack.pop_all())


def _to_stderr(line: str) -> None:
    print(line, file=sys.stderr, flush=True)  # noqa: T201 - progress for a person
