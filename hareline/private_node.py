"""A private RabbitMQ node: a child process in a directory of its own, on free loopback ports."""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections import deque
from pathlib import Path
from types import TracebackType
from typing import IO, Self

from hareline.installation import PROGRAM_PATH, find_epmd, find_scripts
from hareline.loopback import LOOPBACK, free_ports, is_free, overview, speaks_amqp
from topology.errors import HarelineError

NODE_NAME = "hareline@localhost"
_ATTEMPTS = 3
_POLL = 0.1

# Reads process groups, one list a line, and kills the last list once the writer is gone, however it went.
_REAPER = """
trap '' INT TERM HUP QUIT
groups=
while read -r line; do groups=$line; done
for group in $groups; do kill -KILL "-$group"; done 2>/dev/null
[ -z "$1" ] || { sleep 0.2; rm -rf -- "$1"; }
"""


class BrokerUnavailable(HarelineError):
    """No broker could be found or started. The text says what to do, or ends with the end of the log."""


class BrokerCommandFailed(HarelineError):
    """``rabbitmqctl`` failed on a private node. The text is what it printed."""


class PrivateNode:
    """One RabbitMQ node of the installed ``rabbitmq-server`` (3.10 or newer); shares nothing with any other.

    As a context manager it starts on entry and is gone on exit, with its directory if that was temporary. The
    processes are this one's children: if this process dies, even by ``kill -9``, they are killed. ``stop``,
    ``kill`` and ``start`` keep data and ports. The user is guest, the password guest, the vhost ``/``.
    All calls block. POSIX only. Raises BrokerUnavailable where a node cannot be started, with the log's end.
    """

    def __init__(
        self,
        directory: Path | str | None = None,
        *,
        port: int | None = None,
        management_port: int | None = None,
        prometheus: bool = False,
        start_timeout: float = 120.0,
    ) -> None:
        """``directory`` holds data, logs and configuration, and stays; without it a temporary one is used."""
        scripts, epmd = find_scripts(), find_epmd()
        if scripts is None or epmd is None:
            raise BrokerUnavailable("rabbitmq-server is not installed: install the package rabbitmq-server")
        self._scripts = scripts
        self._epmd_program = epmd
        self._given = Path(directory).absolute() if directory is not None else None
        self._directory: Path | None = None
        self._wanted = (port, management_port)
        self._with_prometheus = prometheus
        self._start_timeout = start_timeout
        self._ports: tuple[int, int, int, int, int] | None = None  # AMQP, management, distribution, epmd, prometheus
        self._server: subprocess.Popen[bytes] | None = None
        self._epmd: subprocess.Popen[bytes] | None = None
        self._reaper: subprocess.Popen[bytes] | None = None
        self._lock: IO[bytes] | None = None
        self._version: str | None = None

    @staticmethod
    def installed() -> bool:
        """Whether this machine has a ``rabbitmq-server`` that a private node can use."""
        return find_scripts() is not None and find_epmd() is not None

    @property
    def url(self) -> str:
        """The AMQP address, the same over restarts."""
        return f"amqp://guest:guest@{LOOPBACK}:{self._port(0)}/"

    @property
    def management_url(self) -> str:
        """The management API's address, the same over restarts."""
        return f"http://{LOOPBACK}:{self._port(1)}"

    @property
    def prometheus_url(self) -> str | None:
        """Where the node serves its metrics, or None unless asked for."""
        return f"http://{LOOPBACK}:{self._port(4)}/metrics" if self._with_prometheus else None

    @property
    def version(self) -> str:
        """The broker's own version, for example ``3.10.8``."""
        if self._version is None:
            raise BrokerUnavailable("the private RabbitMQ node was never started")
        return self._version

    @property
    def directory(self) -> Path:
        """Where the node keeps its data, its configuration and its logs."""
        if self._directory is None:
            raise BrokerUnavailable("the private RabbitMQ node was never started")
        return self._directory

    @property
    def running(self) -> bool:
        """Whether the node's process lives."""
        return self._server is not None and self._server.poll() is None

    def start(self) -> None:
        """Starts the node on its old data and ports; returns once AMQP and the management API answer."""
        if self.running:
            return
        self._prepare()
        fresh = self._ports is None
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                self._launch()
                return
            except _PortTaken as error:
                self.kill()
                # On a restart, clients know the ports already: they cannot change.
                if not fresh or attempt == _ATTEMPTS:
                    raise BrokerUnavailable(str(error)) from None
                self._end_epmd()
                self._ports = None
            except BaseException:
                self.kill()
                raise

    def stop(self, timeout: float = 60.0) -> None:
        """Stops the node in good order; its data stays. Kills it after ``timeout`` seconds."""
        if self._server is not None and self._server.poll() is None:
            self._server.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._server.wait(timeout)
        self.kill()

    def kill(self) -> None:
        """Kills the node as a crash would (SIGKILL); its data stays. Returns once its ports are free."""
        server, self._server = self._server, None
        if server is None:
            return
        _kill_group(server)
        self._tell_reaper()
        deadline = time.monotonic() + 10
        while self._ports and not all(is_free(port) for port in self._ports[:3]) and time.monotonic() < deadline:
            time.sleep(_POLL)

    def ctl(self, *arguments: str, timeout: float = 60.0) -> str:
        """Runs ``rabbitmqctl ARGUMENTS`` against this node and returns what it prints on standard output."""
        command = [str(self._scripts / "rabbitmqctl"), "-n", NODE_NAME, *arguments]
        try:
            done = subprocess.run(  # noqa: S603 - the installed rabbitmqctl, no shell
                command, env=self._environment(), capture_output=True, text=True, timeout=timeout, check=False
            )
        except subprocess.TimeoutExpired:
            raise BrokerCommandFailed(f"rabbitmqctl {arguments[0]} did not end in {timeout:g} s") from None
        if done.returncode:
            raise BrokerCommandFailed(f"rabbitmqctl {' '.join(arguments)}: {(done.stderr or done.stdout).strip()}")
        return done.stdout

    def close(self) -> None:
        """Ends everything that was started. In a given directory the node is stopped in good order."""
        if self._given is not None:
            self.stop()
        self.kill()
        self._end_epmd()
        if self._reaper is not None:
            if self._reaper.stdin:
                self._reaper.stdin.close()
            self._reaper.wait()
            self._reaper = None
        if self._lock is not None:
            self._lock.close()
            self._lock = None
        if self._given is None and self._directory is not None:
            shutil.rmtree(self._directory, ignore_errors=True)
            self._directory = None

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _port(self, index: int) -> int:
        if self._ports is None:
            raise BrokerUnavailable("the private RabbitMQ node was never started")
        return self._ports[index]

    def _prepare(self) -> None:
        """The directory, its lock, the cookie and the reaper: once for the life of this object."""
        if self._directory is None:
            self._directory = self._given or Path(tempfile.mkdtemp(prefix="hareline-broker-"))
            for name in ("data", "log", "home"):
                (self._directory / name).mkdir(parents=True, exist_ok=True)
        if self._lock is None:
            self._lock = (self._directory / "lock").open("ab")
            try:
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                self._lock.close()
                self._lock = None
                raise BrokerUnavailable(f"another private node runs in {self._directory}: stop it first") from None
        cookie = self._directory / "home" / ".erlang.cookie"
        if not cookie.exists():
            cookie.touch(mode=0o600)
            cookie.write_text(secrets.token_hex(20), encoding="ascii")
            cookie.chmod(0o400)
        if self._reaper is None:
            doomed = "" if self._given else str(self._directory)
            self._reaper = subprocess.Popen(  # noqa: S603 - a constant script
                ["/bin/sh", "-c", _REAPER, "hareline-reaper", doomed],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
                cwd="/",
            )

    def _launch(self) -> None:
        if self._ports is None:
            given = [port for port in self._wanted if port is not None]
            spare = iter(free_ports(5 - len(given)))
            amqp, management = (next(spare) if port is None else port for port in self._wanted)
            self._ports = (amqp, management, next(spare), next(spare), next(spare))
        for port in self._ports[:3]:
            if not is_free(port):
                raise _PortTaken(f"cannot start RabbitMQ: port {port} on {LOOPBACK} is in use")
        self._write_configuration()
        self._start_epmd()
        # Input allowed: the start script then becomes the Erlang machine instead of staying on as its parent,
        # so that signals and the exit status are the node's own. -noinput takes the shell away again.
        server = {
            "RABBITMQ_ALLOW_INPUT": "1",
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "-noinput -kernel inet_dist_use_interface {127,0,0,1}",
        }
        with self._output.open("wb") as output:
            self._server = self._spawn(
                [str(self._scripts / "rabbitmq-server")], {**self._environment(), **server}, output
            )
        self._await_ready(self._server)

    def _await_ready(self, server: subprocess.Popen[bytes]) -> None:
        deadline = time.monotonic() + self._start_timeout
        while time.monotonic() < deadline:
            if server.poll() is not None:
                tail = self.log_tail()
                kind = _PortTaken if "eaddrinuse" in tail or "address already in use" in tail else BrokerUnavailable
                raise kind(f"RabbitMQ did not start (exit status {server.returncode}); its log ends:\n{tail}")
            # AMQP last: the node opens its listeners only when everything else is up.
            if answer := overview(self.management_url, "guest", "guest"):
                self._version = str(answer["rabbitmq_version"])
                if speaks_amqp(self.url):
                    return
            time.sleep(_POLL)
        raise BrokerUnavailable(
            f"RabbitMQ was not ready after {self._start_timeout:g} s; its log ends:\n{self.log_tail()}"
        )

    def _write_configuration(self) -> None:
        amqp, management, _, _, prometheus = self._ports or (0,) * 5
        lines = [
            f"listeners.tcp.1 = {LOOPBACK}:{amqp}",
            f"management.tcp.ip = {LOOPBACK}",
            f"management.tcp.port = {management}",
            "disk_free_limit.absolute = 50MB",
        ]
        plugins = ["rabbitmq_management"]
        if self._with_prometheus:
            plugins.append("rabbitmq_prometheus")
            lines += [f"prometheus.tcp.ip = {LOOPBACK}", f"prometheus.tcp.port = {prometheus}"]
        (self.directory / "rabbitmq.conf").write_text("\n".join(lines) + "\n", encoding="ascii")
        (self.directory / "enabled_plugins").write_text(f"[{','.join(plugins)}].\n", encoding="ascii")
        (self.directory / "rabbitmq-env.conf").touch()

    def _environment(self) -> dict[str, str]:
        """All that the node sees: nothing of the machine's own RabbitMQ leaks in."""
        root = self.directory
        return {
            "PATH": f"{self._scripts}:{PROGRAM_PATH}",
            "LANG": "C.UTF-8",
            "HOME": str(root / "home"),
            "ERL_EPMD_PORT": str(self._port(3)),
            "ERL_EPMD_ADDRESS": LOOPBACK,
            "RABBITMQ_NODENAME": NODE_NAME,
            "RABBITMQ_DIST_PORT": str(self._port(2)),
            "RABBITMQ_MNESIA_BASE": str(root / "data"),
            "RABBITMQ_LOG_BASE": str(root / "log"),
            "RABBITMQ_GENERATED_CONFIG_DIR": str(root / "data" / "config"),
            "RABBITMQ_CONF_ENV_FILE": str(root / "rabbitmq-env.conf"),
            "RABBITMQ_CONFIG_FILE": str(root / "rabbitmq.conf"),
            "RABBITMQ_CONFIG_FILES": str(root / "conf.d" / "*.conf"),
            "RABBITMQ_ADVANCED_CONFIG_FILE": str(root / "advanced.config"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(root / "enabled_plugins"),
            "RABBITMQ_PID_FILE": str(root / "pid"),
        }

    def _start_epmd(self) -> None:
        """Erlang's name server as a child in the foreground; else the node would leave a daemon behind."""
        if self._epmd is not None and self._epmd.poll() is None:
            return
        port = self._port(3)
        self._epmd = self._spawn([str(self._epmd_program), "-port", str(port)], self._environment(), subprocess.DEVNULL)
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            if self._epmd.poll() is not None:
                raise _PortTaken(f"epmd did not start on port {port} of {LOOPBACK}: the port is in use")
            with contextlib.suppress(OSError), socket.create_connection((LOOPBACK, port), 1):
                return
            time.sleep(_POLL / 10)
        raise BrokerUnavailable(f"epmd did not answer on port {port} of {LOOPBACK}")

    def _end_epmd(self) -> None:
        epmd, self._epmd = self._epmd, None
        if epmd is not None:
            _kill_group(epmd)
            self._tell_reaper()

    def _spawn(
        self, command: list[str], environment: dict[str, str], output: IO[bytes] | int
    ) -> subprocess.Popen[bytes]:
        # A session of its own: Ctrl-C in the terminal reaches this process alone, which then ends the node.
        process = subprocess.Popen(  # noqa: S603 - installed programs, no shell
            command,
            env=environment,
            cwd=self.directory,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        self._tell_reaper(process)
        return process

    def _tell_reaper(self, *starting: subprocess.Popen[bytes]) -> None:
        alive = {process.pid for process in (self._server, self._epmd, *starting) if process is not None}
        if self._reaper is not None and self._reaper.stdin is not None:
            with contextlib.suppress(BrokenPipeError):
                self._reaper.stdin.write((" ".join(map(str, sorted(alive))) + "\n").encode())
                self._reaper.stdin.flush()

    @property
    def _output(self) -> Path:
        return self.directory / "log" / "output.log"

    def log_tail(self, lines: int = 30) -> str:
        """The end of what the node printed."""
        if not self._output.exists():
            return ""
        with self._output.open(encoding="utf-8", errors="replace") as log:
            return "".join(deque((line for line in log if line.strip()), lines)).rstrip()


class _PortTaken(BrokerUnavailable):
    """Another process got a port first."""


def _kill_group(process: subprocess.Popen[bytes]) -> None:
    """Kills a child with its group and reaps it. Until then nobody else can be given its id."""
    if process.returncode is None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
