"""One virtual environment per peer, made from its lock file with hashes."""

import hashlib
import shutil
import subprocess
import sys

from contenders import Contender


class SetupError(Exception):
    """A peer's environment could not be made; the text says why."""


def ensure(contender: Contender, say) -> None:
    """Make the contender's environment, unless the one that is there was made from this very lock file."""
    if contender.lock is None:
        return
    home = contender.python.parent.parent
    stamp = home / "made-from"
    wanted = hashlib.sha256(contender.lock.read_bytes() + sys.version.encode()).hexdigest()
    if stamp.exists() and stamp.read_text() == wanted:
        return
    say(f"setup    {contender.name}: making {home.relative_to(home.parent.parent.parent)}")
    shutil.rmtree(home, ignore_errors=True)
    _run([sys.executable, "-m", "venv", str(home)], timeout=120)
    install = (
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-input",
        "--disable-pip-version-check",
        "--require-hashes",
    )
    _run([str(contender.python), *install, "-r", str(contender.lock)], timeout=600)
    stamp.write_text(wanted)


def _run(command: list[str], timeout: float) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False)
    except subprocess.TimeoutExpired:
        raise SetupError(f"no end after {timeout:.0f} s: {' '.join(command)}") from None
    if done.returncode:
        last = next(reversed(done.stderr.strip().splitlines()), f"exit code {done.returncode}")
        raise SetupError(f"{' '.join(command[:4])} ...: {last[-400:]}")
