"""``hareline relay`` with a lease of as many seconds as the argument says, for tests that kill it."""

from __future__ import annotations

import sys

from hareline.services import run_service
from producers.relay import Relay
from topology.settings import Settings

if __name__ == "__main__":
    settings = Settings.from_env()
    run_service("the relay", lambda database: Relay(settings, database, lease=float(sys.argv[1])), settings)
