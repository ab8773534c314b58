"""Installs the package rabbitmq-server with apt, for private nodes only: no system-wide node is started."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

from hareline.installation import find_epmd
from hareline.private_node import BrokerUnavailable

_POLICY = Path("/usr/sbin/policy-rc.d")
_PACKAGE = "rabbitmq-server"
_MARK = "# written by hareline while apt installs rabbitmq-server"


def can_install() -> bool:
    """Whether apt is here (Debian, Ubuntu and their kin) and this process may use it."""
    return (
        hasattr(os, "geteuid")
        and os.geteuid() == 0
        and Path("/etc/debian_version").exists()
        and shutil.which("apt-get") is not None
    )


def install_package() -> None:
    """Installs rabbitmq-server. Neither its service nor Erlang's name server is started, now or at boot.

    Raises BrokerUnavailable with the end of apt's output where that fails.
    """
    services = [_PACKAGE] if find_epmd() else [_PACKAGE, "epmd.service", "epmd.socket"]
    with _no_services_started():
        _run(["apt-get", "update", "-q"], "update its lists")
        install = ["apt-get", "install", "-y", "-q", "--no-install-recommends", _PACKAGE]
        _run(["env", "DEBIAN_FRONTEND=noninteractive", *install], f"install {_PACKAGE}")
    # Nor at the next boot. Harmless where it fails: the package is there all the same.
    for command in (
        ["update-rc.d", _PACKAGE, "disable"],
        *(["systemctl", "disable", name] for name in services),
    ):
        if shutil.which(command[0]):
            subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=False)  # noqa: S603


@contextlib.contextmanager
def _no_services_started() -> Iterator[None]:
    """While it lasts, package scripts start no service: Debian's policy-rc.d says "forbidden" to each.

    A policy that the machine's owner has set is left in force. One that a killed run of ours left behind is
    taken over and removed.
    """
    ours = not _POLICY.exists() or _MARK in _POLICY.read_text(encoding="utf-8", errors="replace")
    if ours:
        _POLICY.write_text(f"#!/bin/sh\n{_MARK}\nexit 101\n", encoding="ascii")
        _POLICY.chmod(0o755)
    try:
        yield
    finally:
        if ours:
            _POLICY.unlink(missing_ok=True)


def _run(command: list[str], purpose: str) -> None:
    done = subprocess.run(  # noqa: S603 - constant commands, no shell
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if done.returncode:
        tail = "\n".join(done.stdout.strip().splitlines()[-15:])
        raise BrokerUnavailable(f"apt-get could not {purpose} (exit status {done.returncode}):\n{tail}")
