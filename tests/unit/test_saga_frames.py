"""What follows a saga's step fits into a frame, whatever its message carries: else nobody could ever settle it."""

from __future__ import annotations

from typing import Any

from pika.spec import BasicProperties

from consumers.dead_letter import can_be_sent
from consumers.inbox import Inbox
from consumers.outcome import Dead, Permanent, Returned
from consumers.saga import Course, FollowUps
from topology.envelope import Envelope, open_envelope
from topology.settings import Settings
from topology.slip import Branch, Slip, headers_of, slip_in
from topology.spec import Names
from topology.subscription import Delivery

NAMES = Names("test")
PLAN = ((Branch("a", "un-a"),), (Branch("b", "un-b"),), (Branch("c", None),))
RESULTS = {"a": "x" * 40_000}


class Acks:
    is_open = True


def delivered(slip: Slip, **headers: str) -> tuple[Delivery, Envelope]:
    carried = {**headers, **headers_of(slip)}
    delivery = Delivery.__new__(Delivery)
    properties = BasicProperties(message_id=slip.job_id, headers=carried, type="t")
    facts = {
        "properties": properties,
        "body": b"{}",
        "queue": "test.t",
        "job_type": "t",
        "redelivered": False,
        "tag": 1,
    }
    for name, value in {**facts, "acks": Acks()}.items():
        object.__setattr__(delivery, name, value)
    opened = open_envelope(properties, b"{}", "t")
    opened.slip = slip_in(carried)
    return delivery, opened


async def after(slip: Slip, outcome: Any, **headers: str) -> Course:
    delivery, opened = delivered(slip, **headers)
    course = await FollowUps(NAMES, Inbox(Settings(), 1)).after(delivery, opened, outcome, None, 0.1)
    assert course is not None
    assert all(can_be_sent(message) for message in course.messages)
    return course


async def test_a_step_whose_next_message_would_be_too_large_is_undone_instead() -> None:
    slip = Slip("s", "saga", PLAN, (1, 0), results=RESULTS)
    (message,) = (await after(slip, Returned("ok"), big="y" * 70_000)).messages
    assert message.properties.type == "c"
    (message,) = (await after(slip, Returned("z" * 6_000), big="y" * 79_000)).messages
    assert message.properties.type == "un-b"
    assert "big" in message.properties.headers or not slip_in(message.properties.headers).results


async def test_a_dead_undo_is_dead_lettered_without_what_does_not_fit() -> None:
    slip = Slip("s", "saga", PLAN, (1, 0), undoing=True, results=RESULTS, undos=((0, 0),))
    for size in (10, 70_000, 79_000):
        course = await after(slip, Dead("permanent", Permanent("e" * 30_000)), big="y" * size)
        onward, letter = course.messages
        assert (onward.properties.type, onward.exchange) == ("un-a", NAMES.events)
        assert (letter.exchange, letter.properties.headers["hareline-reason"]) == (NAMES.dlx, "permanent")
