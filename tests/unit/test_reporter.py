"""What a reporter keeps, drops and sends, without a broker: its batches end in a list."""

from __future__ import annotations

import asyncio
import json
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from consumers.report_batch import NoBatch, read_batch
from producers.report_form import Batch, encoded
from producers.reporter import INTERVAL, KEPT, PAYLOAD_LIMIT, PAYLOADS_KEPT, Reporter
from tests.lab import until
from topology.contract import JobType
from topology.envelope import RECORD, REPLAY, Message, new_job
from topology.errors import PublishError, Refused
from topology.events import DEAD, DONE, RETRYING, SNOOZED, STARTED, JobEvent
from topology.spec import Names

NAMES = Names("ns")


class Anything(BaseModel):
    text: str = ""


class Post:
    """Where batches go. ``answer`` is how the broker takes them: None confirms."""

    def __init__(self, *, is_up: bool = True) -> None:
        self.is_up = is_up
        self.answer: PublishError | None = None
        self.messages: list[Message] = []
        self.times: list[float] = []

    def send(self, message: Message, _: float) -> asyncio.Future[None]:
        loop = asyncio.get_running_loop()
        self.messages.append(message)
        self.times.append(loop.time())
        future: asyncio.Future[None] = loop.create_future()
        if self.answer is None:
            future.set_result(None)
        else:
            future.set_exception(self.answer)
        return future

    @property
    def batches(self) -> list[dict[str, Any]]:
        return [json.loads(message.body.partition(b"\n")[0]) for message in self.messages]

    @property
    def rows(self) -> list[list[Any]]:
        return [list(row) for message in self.messages for row in read_batch(message.body).events]


def reporter_to(post: Post, *job_types: JobType[Any]) -> Reporter:
    return Reporter(post, NAMES, job_types=job_types)  # type: ignore[arg-type]


def event(name: str, job_id: str = "1", kind: str = "a", attempt: int = 1) -> JobEvent:
    return JobEvent(name, job_id, kind, 0, attempt, 5.0, 0.5)


def order(body: bytes = b"{}", job_id: str = "1", **options: Any) -> Message:
    return new_job(NAMES, "a", body, job_id=job_id, **options)


async def test_a_batch_says_who_sends_it_and_holds_columns_and_rows() -> None:
    """Version, reporter, number, drops, groups of its types; columns of what is frequent, rows of the rest."""
    post = Post()
    reporter = reporter_to(post, JobType("a", Anything, group="g"), JobType("b", Anything))
    reporter.done("1", "a", 0, 1, 0.5)
    reporter.done("2", "a", 0, 1, 0.25)
    reporter.done("3", "b", 0, 2, 0.125)
    reporter.queued(order(b'{"text":"x"}', "4"), order(b"[ 1,\n 2 ]", "5", priority=3), at=7.0)
    reporter(event(STARTED, "6", "b"))
    await until(lambda: bool(post.messages), "a batch is sent")
    [batch] = post.batches
    identity = batch.pop("reporter")
    assert len(identity) == 36
    times, [again, started] = batch["done"]["a"].pop("at"), batch.pop("events")
    assert all(abs(at - time.time()) < 60 for at in (*times, again[5], batch.pop("at")))
    assert batch == {
        "v": 1,
        "seq": 1,
        "dropped": 0,
        "groups": {"a": "g"},
        "queued": {"a": {"id": ["4", "5"], "at": [7.0, 7.0], "size": [12, 9], "priority": [None, 3]}},
        "done": {"a": {"id": ["1", "2"], "duration": [0.5, 0.25]}},
    }
    assert [*again[:5], *again[6:]] == ["job.done", "3", "b", 0, 2, 0.125, None, None]
    assert started == ["job.started", "6", "b", 0, 1, 5.0, 0.5, None, None]
    assert post.messages[0].body.endswith(b'\n{"text":"x"}[ 1,\n 2 ]')
    assert post.messages[0].properties.delivery_mode == 2
    assert (post.messages[0].routing_key, post.messages[0].mandatory) == ("job.batch.done", False)


_texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=5)
_times = st.floats(0, 2e9)
_queued = st.tuples(
    _texts,
    _texts,
    _times,
    st.none() | st.binary(max_size=9),
    st.none() | st.integers(0, 9),
    st.none() | _times,
    st.none() | _texts.filter(bool),
    st.none() | st.integers(1, 9),
)
_done = st.tuples(_texts, _texts, _times, _times)


@given(st.lists(_queued, max_size=8), st.lists(_done, max_size=8))
def test_what_is_written_in_columns_is_read_as_rows(
    queued: list[tuple[Any, ...]], done: list[tuple[str, str, float, float]]
) -> None:
    """Whatever types, ids, payloads and options a batch mixes, every event comes out as it went in."""
    batch = read_batch(encoded({"reporter": "r", "seq": 1}, Batch(queued, done, [])))
    expected = [("job.done", job_id, kind, 0, 1, at, took, None, None) for kind, job_id, at, took in done]
    for kind, job_id, at, body, priority, due, correlation, replay in queued:
        told = {"priority": priority, "due_at": due, "correlation_id": correlation}
        told["payload"] = None if body is None else body.decode(errors="replace")
        detail = {name: value for name, value in told.items() if value is not None} or None
        expected.append(("job.queued", job_id, kind, replay or 0, 0, at, None, None, detail))
    assert sorted(map(repr, map(_sorted, batch.events))) == sorted(map(repr, map(_sorted, expected)))


def _sorted(row: tuple[Any, ...]) -> tuple[Any, ...]:
    return (*row[:-1], row[-1] and sorted(row[-1].items()))


@pytest.mark.parametrize(
    "told",
    [
        '"queued": {"a": {"id": ["1"], "at": [1.0], "size": [3]}}',
        '"queued": {"a": {"id": ["1"], "at": [1.0], "size": [-1]}}',
        '"queued": {"a": {"id": ["1"], "at": [1.0], "size": [1]}}',
        '"queued": {"a": {"id": ["1", "2"], "at": [1.0], "size": [1, 1]}}',
        '"queued": {"a": {"id": ["1"], "at": [1.0], "size": [2], "priority": [1, 2]}}',
        '"queued": {"a": {"id": ["1"], "at": [1.0], "size": ["2"]}}',
        '"queued": {"a": {"id": "12", "at": "12", "size": "12"}}',
        '"queued": {"a": []}',
        '"queued": []',
        '"done": {"a": {"id": ["1"], "at": [1.0]}}',
        '"done": {"a": {"id": ["1"], "at": [1.0], "duration": 1}}',
        '"done": 5, "queued": {"a": {"id": ["1"], "at": [1.0], "size": [2]}}',
        '"events": {}',
    ],
)
def test_columns_that_do_not_fit_together_are_no_batch(told: str) -> None:
    """Nobody guesses which value belongs to which job."""
    with pytest.raises(NoBatch):
        read_batch(b'{"v": 1, "reporter": "r", "seq": 1, %s}\n{}' % told.encode())


async def test_news_and_failures_take_turns_at_one_message_an_interval() -> None:
    """Two routing keys, one reporter, one sequence: at most one message per 100 ms."""
    post = Post()
    reporter = reporter_to(post)
    for n in range(12_000):
        reporter(event(DONE, str(n)))
        reporter(event(RETRYING, str(n)))
    await until(lambda: len(post.messages) == 8, "all is sent")
    keys = [message.routing_key for message in post.messages]
    assert keys[:6] == ["job.batch.failed", "job.batch.done"] * 3
    assert [batch["seq"] for batch in post.batches] == list(range(1, 9))
    assert all(b - a >= INTERVAL * 0.9 for a, b in zip(post.times, post.times[1:], strict=False))
    assert len(post.rows) == 24_000


async def test_failures_are_never_dropped_for_successes() -> None:
    """Each kind has its own room; what is dropped is the oldest of its kind, and counted."""
    post = Post(is_up=False)
    reporter = reporter_to(post)
    reporter(event(DEAD, "failed"))
    for n in range(KEPT + 7):
        reporter(event(DONE, str(n)))
    assert reporter.dropped == 7
    post.is_up = True
    await reporter.close()
    assert post.rows[0][1] == "failed"
    assert post.rows[1][1] == "7"
    assert len(post.rows) == KEPT + 1
    assert {batch["dropped"] for batch in post.batches} == {7}


async def test_a_job_is_queued_with_what_is_known_of_it() -> None:
    """Payload, priority, due time and correlation id, each only where there is one."""
    post = Post()
    reporter = reporter_to(post)
    reporter.queued(order(b'{"text":"x"}'), group="g")
    reporter.queued(order(b"{}", "2", priority=7, delay=60.0, correlation_id="c", headers={REPLAY: 2}))
    reporter.queued(order(b"x" * (PAYLOAD_LIMIT + 1), "3"))
    await reporter.close()
    first, second, third = sorted(post.rows, key=lambda row: row[1])
    assert first[:5] == ["job.queued", "1", "a", 0, 0]
    assert first[6:] == [None, None, {"payload": '{"text":"x"}'}]
    assert second[3] == 2
    assert second[8].keys() == {"payload", "priority", "due_at", "correlation_id"}
    assert 59 < second[8]["due_at"] - second[5] < 61
    assert third[8] is None
    assert post.batches[0]["groups"] == {"a": "g"}


async def test_payloads_that_wait_are_bounded() -> None:
    """While the broker is away memory does not grow for ever: beyond a limit events go without their payload."""
    post = Post(is_up=False)
    reporter = reporter_to(post)
    body = b"x" * PAYLOAD_LIMIT
    fitting = PAYLOADS_KEPT // PAYLOAD_LIMIT
    for n in range(fitting + 3):
        reporter.queued(order(body, str(n)))
    post.is_up = True
    await reporter.close()
    assert [row[8] is None for row in post.rows] == [False] * fitting + [True] * 3
    assert all(len(message.body) < 6 * 1024 * 1024 for message in post.messages)
    post.messages.clear()
    reporter.queued(order(body))
    await reporter.close()
    assert len(post.rows[0][8]["payload"]) == PAYLOAD_LIMIT


async def test_what_is_recorded_is_the_job_types_choice() -> None:
    """Nothing at all; or nothing until a job fails or ends badly, and everything from then on."""
    post = Post()
    failures, nothing = JobType("f", Anything, record="failures"), JobType("n", Anything, record="nothing")
    reporter = reporter_to(post, failures, nothing)
    for name in (DONE, SNOOZED, RETRYING, DEAD):
        reporter(event(name, kind="n"))
        reporter(event(name, kind="f"))
    reporter(event(DONE, kind="f", attempt=2))
    reporter.done("1", "f", 0, 1, 0.5)
    reporter.done("1", "n", 0, 2, 0.5)
    for record, replay in (("failures", 0), ("nothing", 0), ("nothing", 1)):
        reporter.queued(order(headers={RECORD: record, REPLAY: replay}))
    reporter.queued(order(job_id="again", headers={RECORD: "failures", REPLAY: 1}))
    await reporter.close()
    assert sorted((row[0], row[2], row[4]) for row in post.rows) == [
        ("job.dead", "f", 1),
        ("job.done", "f", 2),
        ("job.queued", "a", 0),
        ("job.retrying", "f", 1),
    ]


async def test_one_event_that_is_no_unicode_takes_no_other_along() -> None:
    """It is dropped and counted; the rest of its batch is sent."""
    post = Post()
    reporter = reporter_to(post)
    reporter(event(DONE, "1"))
    reporter(event(DONE, "\ud800"))
    reporter.queued(order(b"\xff", "3"), order(b"{}", "4", correlation_id="\ud800"))
    reporter.done("5", "a", 0, 1, 0.5)
    reporter.done("\ud800", "a", 0, 1, 0.5)
    reporter(event(DONE, "4"))
    await reporter.close()
    assert [(row[1], row[8]) for row in post.rows] == [
        ("3", {"payload": "\N{REPLACEMENT CHARACTER}"}),
        ("5", None),
        ("1", None),
        ("4", None),
    ]
    assert post.batches[0]["dropped"] == reporter.dropped == 3


async def test_a_broker_that_refuses_reports_is_left_alone_for_a_while() -> None:
    """Each refusal may cost the producer its channel: the reporter pauses, and close() does not wait for the end."""
    post = Post()
    post.answer = Refused("no permission")
    reporter = reporter_to(post)
    reporter(event(DONE))
    await until(lambda: len(post.messages) == 1, "one is tried")
    await asyncio.sleep(0)
    reporter(event(DONE))
    await reporter.close()
    assert len(post.messages) == 1


async def test_without_a_broker_close_returns_at_once() -> None:
    """Reports are not worth waiting for."""
    reporter = reporter_to(Post(is_up=False))
    reporter(event(DONE))
    began = asyncio.get_running_loop().time()
    await reporter.close()
    assert asyncio.get_running_loop().time() - began < 0.5
