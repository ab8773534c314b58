"""A private PostgreSQL cluster for tests and benchmarks: real, on a free loopback port, gone at the end."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Self

import psycopg

USER = "hareline"
MISSING = (
    "PostgreSQL's server is not installed, and these tests need a real one: "
    "apt-get install postgresql (or run them as root, which does it by itself)"
)
START_TIMEOUT = 60.0


class Cluster:
    """Context manager. ``safe``: the settings that initdb makes, as benchmarks want them.

    Without it there is no fsync, which a killed process does not need, only a power cut.
    """

    def __init__(self, *, safe: bool = False) -> None:
        self._bin = _binaries()
        self._directory = Path(tempfile.mkdtemp(prefix="hareline-pg-"))
        self._data = self._directory / "data"
        self._safe = safe
        self._process: subprocess.Popen[bytes] | None = None
        self._made = 0
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            self.port: int = taken.getsockname()[1]

    def __enter__(self) -> Self:
        if os.geteuid() == 0:
            account = pwd.getpwnam("postgres")
            os.chown(self._directory, account.pw_uid, account.pw_gid)
        self._run("initdb", "-D", str(self._data), "-U", USER, "-A", "trust", "-E", "UTF8", "--locale=C.UTF-8", "-N")
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        shutil.rmtree(self._directory, ignore_errors=True)

    # -- life ------------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Starts the server on its data, and returns when it answers. It ends with the thread that calls this."""
        faster = ("max_connections=200", "shared_buffers=256MB", "fsync=off", "full_page_writes=off")
        options = [] if self._safe else [word for setting in faster for word in ("-c", setting)]
        with (self._directory / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [*_as_postgres(), str(self._bin / "postgres"), "-D", str(self._data), "-h", "127.0.0.1",
                 "-k", str(self._directory), "-p", str(self.port), *options],
                cwd=self._directory, stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip
        end = time.monotonic() + START_TIMEOUT
        ready = [str(self._bin / "pg_isready"), "-q", "-h", "127.0.0.1", "-p", str(self.port)]
        while subprocess.run(ready, check=False).returncode != 0:
            assert self._process.poll() is None, f"postgres ended: {self.log()}"
            assert time.monotonic() < end, f"postgres does not answer: {self.log()}"
            time.sleep(0.05)

    def stop(self) -> None:
        """Ends the server in good order; connections are cut."""
        self._end(signal.SIGINT)

    def kill(self) -> None:
        """SIGKILL to the server and all its processes, as a crash would; the data stays."""
        if self._process is not None:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None
            (self._data / "postmaster.pid").unlink(missing_ok=True)

    def log(self) -> str:
        """The end of the server's log."""
        return (self._directory / "log").read_text(errors="replace")[-2000:]

    def _end(self, number: int) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.send_signal(number)
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()

    # -- databases -------------------------------------------------------------------------------------------------

    def url(self, database: str) -> str:
        """For HARELINE_DATABASE_URL."""
        return f"postgresql://{USER}@127.0.0.1:{self.port}/{database}"

    def create(self, template: str | None = None) -> str:
        """Makes a database, a copy of ``template`` if one is named; returns its name."""
        self._made += 1
        name = f"d{self._made}"
        self.sql(
            "postgres", f"CREATE DATABASE {name}" + (f" TEMPLATE {template} STRATEGY file_copy" if template else "")
        )
        return name

    def drop(self, database: str) -> None:
        """Removes a database, whoever is connected."""
        self.sql("postgres", f"DROP DATABASE IF EXISTS {database} WITH (FORCE)")

    def sql(self, database: str, *statements: str) -> None:
        """Runs statements, each in a transaction of its own."""
        with psycopg.connect(self.url(database), autocommit=True) as connection:
            for statement in statements:
                connection.execute(statement)

    def _run(self, program: str, *arguments: str) -> None:
        done = subprocess.run(
            [*_as_postgres(), str(self._bin / program), *arguments],
            cwd=self._directory, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, f"{program}: {done.stdout}{done.stderr}"


def _as_postgres() -> Sequence[str]:
    """PostgreSQL refuses to run as root; and whoever runs it, it is not to outlive the tests."""
    user = ["--reuid", "postgres", "--regid", "postgres", "--clear-groups"] if os.geteuid() == 0 else []
    return ["setpriv", *user, "--pdeathsig", "INT"]


def _binaries() -> Path:
    found = installed()
    if found is None and os.geteuid() == 0 and shutil.which("apt-get"):
        apt = ["env", "DEBIAN_FRONTEND=noninteractive", "apt-get"]
        subprocess.run([*apt, "update", "-q"], check=False, capture_output=True)
        # Without a cluster of its own, which the package would start at once.
        Path("/etc/postgresql-common").mkdir(exist_ok=True)
        settings = Path("/etc/postgresql-common/createcluster.conf")
        if not settings.exists():
            settings.write_text("create_main_cluster = false\n")
        subprocess.run([*apt, "install", "-y", "-q", "--no-install-recommends", "postgresql"], check=False)
        found = installed()
    assert found is not None, MISSING
    return found


def installed() -> Path | None:
    """Where the newest server's programs are, if there is one."""
    versions = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"), key=lambda path: int(path.parts[-3]))
    if versions:
        return versions[-1].parent
    program = shutil.which("postgres")
    return Path(program).resolve().parent if program else None
