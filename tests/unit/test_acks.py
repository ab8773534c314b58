"""Acknowledgements are batched, and never reach past an unfinished job."""

from __future__ import annotations

import asyncio
from typing import Any

import hypothesis.strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from topology.acks import Acks


class Broker:
    """A channel as the broker sees it: which deliveries are outstanding, and what each frame settles."""

    def __init__(self) -> None:
        self.is_open = True
        self.outstanding: list[int] = []
        self.acked: list[int] = []
        self.returned: list[int] = []
        self.frames = 0

    def basic_ack(self, tag: int, multiple: bool = False) -> None:
        assert self.is_open, "a frame on a closed channel"
        covered = [t for t in self.outstanding if t <= tag] if multiple else [tag]
        assert tag in self.outstanding, f"PRECONDITION_FAILED: unknown delivery tag {tag}"
        self.frames += 1
        for t in covered:
            self.outstanding.remove(t)
            self.acked.append(t)

    def basic_nack(self, tag: int, requeue: bool) -> None:
        assert self.is_open, "a frame on a closed channel"
        assert requeue
        assert tag in self.outstanding, f"PRECONDITION_FAILED: unknown delivery tag {tag}"
        self.outstanding.remove(tag)
        self.returned.append(tag)


class Turns:
    """An event loop that turns when told to."""

    def __init__(self) -> None:
        self.soon: list[Any] = []

    def call_soon(self, callback: Any) -> None:
        self.soon.append(callback)

    def turn(self) -> None:
        due, self.soon = self.soon, []
        for callback in due:
            callback()


class AcksModel(RuleBasedStateMachine):
    """Deliveries come and end in any order, turns fall anywhere, the channel may close at any moment."""

    def __init__(self) -> None:
        super().__init__()
        self.broker = Broker()
        self.turns = Turns()
        self.acks = Acks(self.broker, self.turns)  # type: ignore[arg-type]
        self.next_tag = 1
        self.working: list[int] = []
        self.finished: set[int] = set()
        self.requeued: set[int] = set()
        self.held = False

    @rule(count=st.integers(1, 5))
    def deliver(self, count: int) -> None:
        for _ in range(count if self.broker.is_open else 0):
            self.broker.outstanding.append(self.next_tag)
            self.acks.open(self.next_tag)
            self.working.append(self.next_tag)
            self.next_tag += 1

    @precondition(lambda self: self.working)
    @rule(data=st.data())
    def finish(self, data: st.DataObject) -> None:
        tag = data.draw(st.sampled_from(self.working))
        self.working.remove(tag)
        self.finished.add(tag)
        self.acks.done(tag)

    @precondition(lambda self: self.working)
    @rule(data=st.data())
    def give_back(self, data: st.DataObject) -> None:
        tag = data.draw(st.sampled_from(self.working))
        self.working.remove(tag)
        if self.broker.is_open:
            self.requeued.add(tag)
        self.acks.requeue(tag)

    @precondition(lambda self: self.finished or self.requeued)
    @rule(data=st.data())
    def settle_again(self, data: st.DataObject) -> None:
        tag = data.draw(st.sampled_from(sorted(self.finished | self.requeued)))
        self.acks.done(tag)
        self.acks.requeue(tag)

    @rule()
    def hold(self) -> None:
        self.turns.turn()
        self.held = True
        self.acks.hold()

    @rule()
    def release(self) -> None:
        self.held = False
        self.acks.release()

    @rule()
    def turn(self) -> None:
        before = list(self.broker.acked)
        self.turns.turn()
        if self.held:
            assert self.broker.acked == before, "acknowledged what is held"
        elif self.broker.is_open:
            assert sorted(self.broker.acked) == sorted(self.finished), "a turn leaves nothing finished unacknowledged"

    @rule()
    def close(self) -> None:
        if self.broker.is_open:
            self.turns.turn()
            self.broker.is_open = False

    @invariant()
    def settles_what_is_finished_and_nothing_else(self) -> None:
        assert len(self.broker.acked) == len(set(self.broker.acked)), "acknowledged twice"
        assert set(self.broker.acked) <= self.finished, "acknowledged past an unfinished job"
        assert set(self.broker.returned) == self.requeued
        assert self.acks.unfinished == len(self.working)


TestAcksAtRandom = AcksModel.TestCase


async def test_a_turn_of_jobs_costs_one_frame() -> None:
    """What ends within one turn of the event loop is acknowledged by one frame, and after the turn."""
    broker = Broker()
    acks = Acks(broker, asyncio.get_running_loop())  # type: ignore[arg-type]
    for tag in range(1, 101):
        broker.outstanding.append(tag)
        acks.open(tag)
    for tag in range(1, 101):
        acks.done(tag)
    assert broker.frames == 0
    await asyncio.sleep(0)
    assert (broker.frames, broker.outstanding) == (1, [])
