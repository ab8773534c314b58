"""The README's example, with the README's commands."""

from __future__ import annotations

import asyncio
import re
import signal
import sys
from asyncio.subprocess import PIPE, STDOUT, Process

from tests.lab import ROOT, Lab

HERE = ROOT / "examples" / "quickstart"


async def start(lab: Lab, *command: str) -> Process:
    return await asyncio.create_subprocess_exec(
        sys.executable, *command, cwd=HERE, env=lab.environment("jobs:app"), stdout=PIPE, stderr=STDOUT
    )


async def run(lab: Lab, *command: str) -> tuple[int | None, str]:
    process = await start(lab, *command)
    output, _ = await asyncio.wait_for(process.communicate(), 60)
    return process.returncode, output.decode()


async def test_the_quickstart_greets_everybody(lab: Lab) -> None:
    """Plan says what is missing, apply makes it, the worker greets after a retry, and drains on SIGTERM."""
    hareline = ("-m", "hareline")
    try:
        assert (await run(lab, *hareline, "topology", "plan"))[0] == 2
        assert (await run(lab, *hareline, "topology", "apply"))[0] == 0
        assert (await run(lab, *hareline, "topology", "verify"))[0] == 0
        assert (await run(lab, "publish.py"))[0] == 0
        worker = await start(lab, *hareline, "worker", "greeting.send")
        assert worker.stdout is not None
        greeted: list[str] = []
        async with asyncio.timeout(60):
            while len(greeted) < 2:
                line = (await worker.stdout.readline()).decode()
                assert line, "the worker ended"
                greeted += re.findall(r"Hello, (\w+)! \(attempt 2\)", line)
        worker.send_signal(signal.SIGTERM)
        await asyncio.wait_for(worker.communicate(), 60)
        assert (greeted, worker.returncode) == (["Ada", "Grace"], 0)
    finally:
        await lab.control.delete_queue(lab.names.queue("greeting.send"))


def test_the_readme_shows_the_example_as_it_is() -> None:
    """Every line of the README's job module stands in the example, which the test above runs."""
    example = [line.split("  #")[0].rstrip() for line in (HERE / "jobs.py").read_text().splitlines()]
    [shown] = re.findall(r"```python\n(from pydantic.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    for line in shown.splitlines():
        code = line.split("  #")[0].rstrip()
        if code and not code.startswith(("from hareline", "async def")):
            assert code in example, f"the README says: {code}"
