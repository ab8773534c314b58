"""The worked CSV import, run as it says in its first lines."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.example_script import run_example
from tests.lab import Lab

# The examples are of one broker or another; the sagas and the breaker below them are tested on each.
pytestmark = pytest.mark.machine


async def test_the_commands_do_what_they_say(lab: Lab, tmp_path: Path) -> None:
    output = await run_example(
        lab,
        "csv_import/app.py",
        {"/tmp/customers.db": f"{tmp_path}/c.db", "/tmp/imports": f"{tmp_path}/in", "100000": "1000"},
    )
    lines = output.splitlines()
    [done] = [line for line in lines if "status=done" in line]
    assert "rows=1000 done=1000 saved=500 failed=500 percent=100.0 chunks=10 chunks_done=10" in done
    [first] = [line for line in lines if line.startswith("row 2 ")]
    assert first.startswith("row 2 (line 3) email: value is not a valid email address")
