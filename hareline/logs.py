"""Log lines of the processes that Hareline runs. Libraries that log on their own level are kept to what matters."""

from __future__ import annotations

import logging
import sys


def configure(level: str) -> None:
    """One line a record on standard error. pika logs every lost connection several times: we say it once."""
    logging.basicConfig(
        level=level,
        stream=sys.stderr,
        format="%(asctime)s %(levelname)-7s %(name)s: %(message)s",
        datefmt="%Y-%m-%dT%H:%M:%S%z",
        force=True,
    )
    logging.getLogger("pika").setLevel(logging.CRITICAL)
