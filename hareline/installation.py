"""Where RabbitMQ and Erlang are installed on this machine."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

# Service managers and plain users often have no sbin folder in their PATH.
PROGRAM_PATH = (
    f"{os.defpath}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin:/opt/homebrew/sbin:/opt/homebrew/bin"
)
# Debian's /usr/sbin/rabbitmq-server is a wrapper that switches to the user rabbitmq and to its data.
_PACKAGED = Path("/usr/lib/rabbitmq/bin")
_ERLANG = Path("/usr/lib/erlang")


def find_scripts() -> Path | None:
    """The folder that holds RabbitMQ's own ``rabbitmq-server`` and ``rabbitmqctl``, or None."""
    found = _which("rabbitmq-server")
    for folder in (_PACKAGED, *([Path(found).resolve().parent] if found else [])):
        if all(os.access(folder / name, os.X_OK) for name in ("rabbitmq-server", "rabbitmqctl")):
            return folder
    return None


def find_epmd() -> Path | None:
    """Erlang's name server, or None."""
    found = _which("epmd")
    if found:
        return Path(found)
    erl = _which("erl")
    for home in (_ERLANG, *([Path(erl).resolve().parent.parent] if erl else [])):
        for candidate in sorted(home.glob("erts-*/bin/epmd"), reverse=True):
            return candidate
    return None


def _which(program: str) -> str | None:
    return shutil.which(program) or shutil.which(program, path=PROGRAM_PATH)
