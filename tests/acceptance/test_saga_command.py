"""``hareline saga`` as an operator types it: start, list, show; what it prints, and how it fails."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

from tests.lab import DEADLINE, Lab, until

APP = """
from pydantic import BaseModel
from hareline import App, JobType, Permanent, Saga, Step

class Order(BaseModel):
    order: int
    refused: bool = False

class Reserved(BaseModel):
    shelf: str

reserve, release, charge = (JobType(f"PREFIX.{name}", Order) for name in ("reserve", "release", "charge"))
fulfil = Saga("PREFIX", Step(reserve, undo=release), Step(charge), payload=Order)
app = App(sagas=[fulfil])

@app.handler(reserve)
async def do_reserve(order: Order) -> Reserved:
    return Reserved(shelf="A7")

@app.handler(release)
async def do_release(order: Order, job) -> None:
    assert job.saga.result.shelf == "A7"

@app.handler(charge)
async def do_charge(order: Order) -> None:
    if order.refused:
        raise Permanent("the card was refused")
"""


class Desk:
    """The command line in a directory with an app."""

    def __init__(self, lab: Lab, directory: Path, url: str) -> None:
        self.lab, self.directory = lab, directory
        self.more = {"HARELINE_DATABASE_URL": url, "HARELINE_REPORT": "on"}
        self.types = [lab.job_type(name) for name in ("reserve", "release", "charge")]
        self.saga = self.types[0].name.rsplit(".", 1)[0]
        (directory / "shop.py").write_text(APP.replace("PREFIX", self.saga))

    async def run(self, *arguments: str) -> tuple[int, str, str]:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "hareline", *arguments, cwd=self.directory,
            env=self.lab.environment("shop:app", **self.more),
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        out, err = await asyncio.wait_for(process.communicate(), DEADLINE)
        return process.returncode or 0, out.decode(), err.decode()

    async def said(self, *arguments: str) -> Any:
        code, out, err = await self.run(*arguments, "--json")
        assert (code, err) == (0, "")
        return json.loads(out)

    def child(self, *arguments: str) -> Any:
        return self.lab.child(*arguments, app="shop:app", cwd=self.directory, **self.more)


async def test_a_saga_from_the_command_line(lab: Lab, tmp_path: Path, sqlite_url: str) -> None:
    desk = Desk(lab, tmp_path, sqlite_url)
    code, _, err = await desk.run("topology", "apply")
    assert code == 0, err
    async with desk.child("worker"), desk.child("recorder"):
        good = await desk.said("saga", "start", desk.saga, '{"order": 1}', "--key", "order-1")
        assert good["id"] == (await desk.said("saga", "start", desk.saga, '{"order": 1}', "--key", "order-1"))["id"]
        bad = await desk.said("saga", "start", desk.saga, '{"order": 2, "refused": true}')

        async def ended() -> bool:
            items = (await desk.said("saga", "list", "--name", desk.saga))["items"]
            return sorted(item["status"] for item in items) == ["compensated", "completed"]

        await until(ended, "both have ended in the log")
        shown = await desk.said("saga", "show", bad["id"])
        assert [(step["direction"], step["status"], step["attempts"]) for step in shown["steps"]] == [
            ("do", "done", 1), ("do", "failed", 1), ("undo", "done", 1),
        ]  # fmt: skip
        assert [step["type"] for step in shown["steps"]] == [desk.types[i].name for i in (0, 2, 1)]
        assert shown["payload"] == {"order": 2, "refused": True}
        assert (shown["error"], shown["error_message"]) == ("Permanent", "the card was refused")
        assert shown["steps"][0]["result"] == {"shelf": "A7"}
        code, out, err = await desk.run("saga", "show", good["id"])
    assert (code, err) == (0, "")
    assert "completed" in out
    code, out, _ = await desk.run("saga", "list", "--status", "compensated")
    assert out.splitlines()[0].split()[:3] == ["ID", "NAME", "STATUS"]
    assert bad["id"] in out
    assert good["id"] not in out


async def test_bad_usage_names_cause_and_cure(lab: Lab, tmp_path: Path, sqlite_url: str) -> None:
    desk = Desk(lab, tmp_path, sqlite_url)
    for arguments, code, told in (
        (("start", "nosuch", "{}"), 2, f"this app knows: {desk.saga}"),
        (("start", desk.saga, "{"), 2, "PAYLOAD is not JSON"),
        (("start", desk.saga, '{"order": "x"}'), 1, "order: Input should be a valid integer"),
        (("show", "nobody"), 1, "no saga 'nobody' is known"),
        (("list", "--status", "well"), 2, "well"),
        (("list", "--cursor", "abc"), 1, "cursor"),
    ):
        found, out, err = await desk.run("saga", *arguments)
        assert (found, out) == (code, ""), arguments
        assert told in err
        assert "Traceback" not in err
