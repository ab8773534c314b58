"""The demo, as `./dev demo` runs it, only smaller."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from hareline.broker import Broker
from tests.lab import ROOT


@pytest.mark.timeout(420)
def test_every_job_of_the_demo_ends_where_it_must(broker: Broker, tmp_path: Path) -> None:
    """Mails, pictures, HTTP calls and a job that kills its worker: none lost, and each one where the plan says.

    Then the shop: its orders fail at each step, and its books balance.
    """
    report = tmp_path / "demo.json"
    done = subprocess.run(
        [sys.executable, "-m", "hareline.demo", "--jobs", "300", "--json", str(report)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(report.read_text())
    assert found["good"] is True
    balance = found["shop"]["balance"]
    assert balance["differences"] == []
    assert balance["orders"] == 300 == balance["completed"] + balance["compensated"]
    assert balance["stock_before"] == balance["stock_sold"] + balance["stock_now"]
    assert balance["earned"] == balance["charged"] - balance["refunded"] > 0
    assert set(found["shop"]["failed_at"]) == {"stock.reserve", "card.charge", "order.confirm", "erp.sync"}
    assert found["shop"]["replayed"] > 0
