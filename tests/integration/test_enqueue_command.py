"""``hareline enqueue``: one job from the command line, its exit codes and what it says."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from hareline import JobType
from tests.integration.topology_fixtures import take_all
from tests.lab import DEADLINE, Lab, Number

APP = """
from datetime import datetime
from pydantic import BaseModel
from hareline import App, JobType
from tests.lab import Number

class Meeting(BaseModel, strict=True):
    at: datetime

app = App(job_types=[
    JobType({plain!r}, Number),
    JobType({urgent!r}, Number, priority=True),
    JobType({meeting!r}, Meeting),
    JobType({several!r}, list[Number]),
    JobType("not.applied", Number),
])
other = 5
"""


# Runs the command again and again in one process, as often as standard input has lines of [arguments, environment].
MANY = """
import contextlib, io, json, os, sys
from hareline.cli import main
usual = dict(os.environ)
for line in sys.stdin:
    arguments, environment = json.loads(line)
    os.environ.clear()
    os.environ.update(usual | environment)
    sys.argv = ["hareline", "enqueue", *arguments]
    out, err, code = io.StringIO(), io.StringIO(), 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main()
        except SystemExit as end:
            code = end.code or 0
    print(json.dumps([code, out.getvalue(), err.getvalue()]))
"""

Case = tuple[tuple[str, ...], dict[str, str], str]


class Desk:
    """An app in a directory of its own, and the command run there."""

    def __init__(self, lab: Lab, directory: Path) -> None:
        self.lab = lab
        self.directory = directory
        self.plain, self.urgent = lab.job_type("plain"), lab.job_type("urgent", priority=True)
        self.meeting, self.several = lab.job_type("meeting", dict), lab.job_type("several", list[Number])
        types = {"plain": self.plain, "urgent": self.urgent, "meeting": self.meeting, "several": self.several}
        text = APP.format(**{name: job_type.name for name, job_type in types.items()})
        (directory / "shop.py").write_text(text, encoding="utf-8")

    async def run(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """``hareline enqueue ARGUMENTS``."""
        env = {**self.lab.environment("shop:app"), **environment}
        command = [sys.executable, "-m", "hareline", "enqueue", *arguments]
        return await asyncio.to_thread(
            lambda: subprocess.run(
                command, cwd=self.directory, env=env, capture_output=True, text=True, timeout=DEADLINE, check=False
            )
        )

    async def run_all(self, cases: list[Case]) -> AsyncIterator[tuple[str, int, str, str]]:
        """Of each case: what should be said, the exit code, standard output and standard error, in one line."""
        names = {"PLAIN": self.plain.name, "URGENT": self.urgent.name}
        lines = [json.dumps([[names.get(word, word) for word in words], env]) for words, env, _ in cases]
        done = await asyncio.to_thread(
            lambda: subprocess.run(
                [sys.executable, "-c", MANY], cwd=self.directory, env=self.lab.environment("shop:app"),
                input="\n".join(lines), capture_output=True, text=True, timeout=DEADLINE, check=True,
            )
        )  # fmt: skip
        for (_, _, said), line in zip(cases, done.stdout.splitlines(), strict=True):
            code, out, err = json.loads(line)
            yield said, code, out, err

    async def taken(self, job_type: JobType[Any], expected: int) -> list[Any]:
        return await take_all(self.lab.control, self.lab.names.queue(job_type.name), expected)


@pytest.fixture
async def desk(lab: Lab, tmp_path: Path) -> Desk:
    desk = Desk(lab, tmp_path)
    await lab.apply(desk.plain, desk.urgent, desk.meeting, desk.several)
    return desk


async def test_it_prints_the_id_of_a_job_that_is_in_the_queue(desk: Desk) -> None:
    """The id alone, so that a script can take it; with options for all that enqueue knows."""
    done = await desk.run(desk.urgent.name, '{"n": 7}', "--priority", "9", "--delay", "100ms", "--key", "k")
    assert (done.returncode, done.stderr) == (0, "")
    [message] = await desk.taken(desk.urgent, 1)
    properties = message.header.properties
    assert done.stdout == f"{properties.message_id}\n"
    assert properties.message_id == desk.urgent.id_for_key("k")
    assert (properties.priority, message.body) == (9, b'{"n":7}')


async def test_as_json(desk: Desk) -> None:
    """Id, type and whether the key existed: null, since nobody has looked."""
    soon = (datetime.now(UTC) + timedelta(seconds=0.2)).isoformat()
    done = await desk.run(desk.plain.name, '{"n": 7}', "--json", "--at", soon)
    [message] = await desk.taken(desk.plain, 1)
    expected = {"id": message.header.properties.message_id, "type": desk.plain.name, "existed": None}
    assert json.loads(done.stdout) == expected


async def test_the_payload_is_read_as_a_worker_reads_it(desk: Desk) -> None:
    """JSON has no dates and no models: a strict model and a list of models take what a worker would take."""
    for job_type, payload in ((desk.meeting, '{"at": "2030-01-01T09:00:00Z"}'), (desk.several, '[{"n": 1}, {"n": 2}]')):
        done = await desk.run(job_type.name, payload)
        assert (done.returncode, done.stderr) == (0, "")
        [message] = await desk.taken(job_type, 1)
        assert json.loads(message.body) == json.loads(payload)


BAD_USAGE: list[Case] = [
    (("PLAIN", "{n: 1}"), {}, "PAYLOAD is not JSON"),
    (("no.such.type", "{}"), {}, "no job type 'no.such.type'; this app knows: not.applied,"),
    (("PLAIN", "{}", "--delay", "soon"), {}, "'soon' is not a duration: write 250ms"),
    (("PLAIN", "{}", "--delay", "-5"), {}, "'-5' is not a duration"),
    (("PLAIN", "{}", "--at", "tomorrow"), {}, "'tomorrow' is not a time"),
    (("PLAIN", "{}", "--at", "2030-01-01T09:00:00"), {}, "has no zone: add Z"),
    (("PLAIN", "{}", "--priority", "high"), {}, "'high' is not a valid integer"),
    (("PLAIN",), {}, "Missing argument 'PAYLOAD'"),
]


async def test_bad_usage_ends_with_2(desk: Desk) -> None:
    """Standard error says what is wrong with which argument; standard output stays empty."""
    async for said, code, out, err in desk.run_all(BAD_USAGE):
        assert (code, out) == (2, ""), said
        assert said in " ".join(err.split())


NOT_ACCEPTED: list[Case] = [
    (("PLAIN", '{"n": "x"}'), {}, "n: Input should be a valid integer"),
    (("PLAIN", "[]"), {}, "payload: Input should be an object"),
    (("PLAIN", '{"n": 1}', "--priority", "5"), {}, "has no priorities: declare JobType(..., priority=True)"),
    (("URGENT", '{"n": 1}', "--priority", "300"), {}, "priority is 300: it must be from 0 to 9"),
    (("PLAIN", '{"n": 1}', "--delay", "60d"), {}, "the broker's ladder reaches"),
    (("PLAIN", '{"n": 1}', "--delay", "1s", "--at", "2030-01-01T00:00:00Z"), {}, "either delay or at"),
    (("PLAIN", '{"n": 1}', "--key", ""), {}, "key is ''"),
    (("PLAIN", '{"n": 1}'), {"HARELINE_MAX_PAYLOAD": "5"}, "the limit is 5 (HARELINE_MAX_PAYLOAD)"),
    (("not.applied", '{"n": 1}'), {}, "no queue takes it. Does the topology know this job type?"),
]


async def test_a_job_that_is_not_accepted_ends_with_1(desk: Desk) -> None:
    """One sentence on standard error, no traceback; standard output stays empty."""
    async for said, code, out, err in desk.run_all(NOT_ACCEPTED):
        assert (code, out) == (1, ""), said
        assert err.startswith("hareline: ")
        assert said in err
        assert len(err.splitlines()) == 1


JOB = ("PLAIN", '{"n": 1}')
BAD_SETTINGS: list[Case] = [
    (JOB, {"HARELINE_APP": ""}, "set HARELINE_APP to module:attribute"),
    (JOB, {"HARELINE_APP": "shop"}, "write module:attribute"),
    (JOB, {"HARELINE_APP": "no_such_module:app"}, "no module 'no_such_module' in"),
    (JOB, {"HARELINE_APP": "shop:missing"}, "'missing' is nothing, not a hareline.App"),
    (JOB, {"HARELINE_APP": "shop:other"}, "'other' is a int, not a hareline.App"),
    (JOB, {"HARELINE_PUBLISH_TIMEOUT": "soon"}, "HARELINE_PUBLISH_TIMEOUT: 'soon' is not a duration"),
    (JOB, {"HARELINE_BROKER_URL": "localhost"}, "is no broker address"),
    (JOB, {"HARELINE_BROKER_URL": "amqp://u:secret@h/?heartbeat=x"}, "has a part that means nothing"),
    (JOB, {"HARELINE_BROKER_URL": "amqp://u:secret@127.0.0.1:1/", "HARELINE_PUBLISH_TIMEOUT": "300ms"}, "refused"),
]


async def test_a_setting_that_does_not_fit_is_named(desk: Desk) -> None:
    """As above, and a broker that is not there is an error within the timeout; no password is shown."""
    async for said, code, out, err in desk.run_all(BAD_SETTINGS):
        assert (code, out) == (1, ""), said
        assert said in err
        assert "Traceback" not in err
        assert "secret" not in err


async def test_an_error_of_the_real_command(desk: Desk) -> None:
    """Exit code and standard error of a process of its own, for one case of each kind."""
    refused, misused = await asyncio.gather(
        desk.run(desk.plain.name, '{"n": "x"}'), desk.run(desk.plain.name, "{n: 1}")
    )
    assert (refused.returncode, refused.stdout, len(refused.stderr.splitlines())) == (1, "", 1)
    assert (misused.returncode, misused.stdout) == (2, "")
    assert "PAYLOAD is not JSON" in misused.stderr
