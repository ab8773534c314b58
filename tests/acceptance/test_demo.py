"""The demo, as `./dev demo` runs it, only smaller."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from hareline.broker import Broker
from tests.lab import ROOT


def test_every_job_of_the_demo_ends_where_it_must(broker: Broker, tmp_path: Path) -> None:
    """Mails, pictures, HTTP calls and a job that kills its worker: none lost, and each one where the plan says."""
    report = tmp_path / "demo.json"
    done = subprocess.run(
        [sys.executable, "-m", "hareline.demo", "--jobs", "300", "--json", str(report)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=170,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads(report.read_text())["good"] is True
