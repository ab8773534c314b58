"""``hareline relay`` with a lease of as many seconds as the argument says, for tests that kill it."""

from __future__ import annotations

import sys

from hareline.roles import run_service
from producers.relay import Relay
from store.engine import Database
from topology.settings import Settings

if __name__ == "__main__":
    settings = Settings.from_env()
    run_service(lambda: Relay(settings, Database.from_settings(settings), lease=float(sys.argv[1])), settings)
