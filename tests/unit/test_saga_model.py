"""A saga under every mishap at once: deliveries twice, late, out of order and from workers that died.

The slip, the messages and what follows a step are the real ones. The queues are a bag, the database two dicts.
"""

from __future__ import annotations

from collections import defaultdict
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from pydantic_core import from_json, to_json

from consumers.outcome import Abandoned, AlreadyDone, Dead, Outcome, Permanent, Retried, Returned, WorkerLost
from consumers.saga import Course, FollowUps, stopped
from store.inbox import Verdict
from topology import envelope
from topology import slip as slips
from topology.envelope import Envelope, Message, copy_of, open_envelope
from topology.slip import Branch, Place, Slip, slip_in
from topology.spec import Names
from topology.subscription import Delivery

NAMES = Names("test")
ATTEMPTS, DELIVERY_LIMIT = 3, 4
KILLS = ("killed before", "killed in", "killed after", "killed at ack")
"""Before its handler began; in the middle of it; after its commit; after the next publish, before its ack."""
FATES = ("well", "permanent", "error", "error after commit", "timeout", *KILLS)


class Open:
    is_open = True


class Consumer:
    acks = Open()
    queue = job_type = "any"


class Tables:
    """What the inbox and the meeting point promise: the first decision counts, for whoever asks."""

    def __init__(self) -> None:
        self.jobs: dict[str, Verdict] = {}
        self.effects: list[tuple[Place, bool]] = []
        self.joins: dict[int, dict[int, str]] = defaultdict(dict)

    def commit(self, job_id: str, slip: Slip) -> None:
        """The transaction of a handler. Raises AlreadyDone, Abandoned."""
        earlier = self.jobs.get(job_id)
        if earlier is not None and earlier.abandoned is not None:
            raise Abandoned
        if earlier is not None:
            raise AlreadyDone(job_id, "any", result=earlier.result and from_json(earlier.result))
        self.jobs[job_id] = Verdict(None if slip.undoing else to_json(result_of(slip)).decode(), None)
        self.effects.append((slip.place, slip.undoing))

    async def abandon(self, job_id: str, _: str, why: str) -> Verdict:
        return self.jobs.setdefault(job_id, Verdict(None, why))

    async def settle_branch(self, _: str, place: Place, outcome: str, of: int) -> list[str] | None:
        met = self.joins[place[0]]
        met.setdefault(place[1], outcome)
        return [met[branch] for branch in sorted(met)] if len(met) >= of else None


def result_of(slip: Slip) -> dict[str, Any]:
    return {"from": slips.place_text(slip.place)}


@dataclass
class Flight:
    """A message in a queue; ``deaths`` are workers that died with it."""

    message: Message
    deaths: int = 0


class SagaMachine(RuleBasedStateMachine):
    """Mishaps in any order; at the end the rest goes well, and the books must balance."""

    @initialize(stages=st.lists(st.lists(st.booleans(), min_size=1, max_size=3), min_size=1, max_size=4))
    def start(self, stages: list[list[bool]]) -> None:
        self.plan = tuple(
            tuple(Branch(f"do-{s}-{b}", f"undo-{s}-{b}" if has_undo else None) for b, has_undo in enumerate(stage))
            for s, stage in enumerate(stages)
        )
        self.tables = Tables()
        self.after = FollowUps(NAMES, self.tables)  # type: ignore[arg-type]
        self.letters: list[Flight] = []
        self.threads: list[tuple[str, Slip]] = []
        self.began: set[tuple[Place, bool]] = set()
        self.unsure: set[Place] = set()
        self.held_up: set[Place] = set()
        slip = Slip("saga", "saga", self.plan)
        self.sent = [slips.message_of(NAMES, hop, b"{}") for hop in slips.first(slip)]
        self.bag = [Flight(message) for message in self.sent]

    # -- what happens ----------------------------------------------------------------------------------------------

    @precondition(lambda self: self.bag)
    @rule(which=st.integers(0, 99), fate=st.sampled_from(FATES))
    def deliver(self, which: int, fate: str) -> None:
        flight = self.bag.pop(which % len(self.bag))
        opened, delivery = self._open(flight)
        slip = opened.slip
        assert slip is not None
        if fate in KILLS or fate in {"error", "error after commit", "timeout"}:
            self._doubt(slip)
        if flight.deaths >= DELIVERY_LIMIT:
            outcome: Outcome | None = Dead("worker-lost", WorkerLost())
        elif fate == "killed before":
            outcome = None
        else:
            outcome = self._run(opened, slip, fate)
        if outcome is None:
            self.bag.append(Flight(flight.message, flight.deaths + 1))
            return
        if isinstance(outcome, Returned | Dead):
            self._publish(self._course(opened, delivery, outcome))
        else:
            self._retry(flight, opened)
        if fate == "killed at ack":
            self.bag.append(Flight(flight.message, flight.deaths + 1))

    @rule(which=st.integers(0, 99))
    def duplicate(self, which: int) -> None:
        """Of any message that ever was, however late."""
        self.bag.append(Flight(self.sent[which % len(self.sent)]))

    @precondition(lambda self: self.threads)
    @rule(which=st.integers(0, 99))
    def thread_comes_to_its_commit(self, which: int) -> None:
        """Of a plain handler that went on after its timeout."""
        job_id, slip = self.threads.pop(which % len(self.threads))
        with suppress(AlreadyDone, Abandoned):
            self.tables.commit(job_id, slip)

    @precondition(lambda self: self.letters)
    @rule(which=st.integers(0, 99))
    def replay(self, which: int) -> None:
        letter = self.letters.pop(which % len(self.letters)).message
        past = dict.fromkeys((*envelope.FAILURE, *envelope.BROKER))
        self.bag.append(Flight(self._copy(letter, past | {envelope.REPLAY: 1})))

    # -- as the executor does it -----------------------------------------------------------------------------------

    def _open(self, flight: Flight) -> tuple[Envelope, Delivery]:
        message, redelivered = flight.message, flight.deaths > 0
        delivery = Delivery(Consumer(), 1, redelivered, message.properties, message.body)  # type: ignore[arg-type]
        opened = open_envelope(message.properties, message.body, "any")
        opened.slip = slip_in(opened.headers)
        return opened, delivery

    def _run(self, opened: Envelope, slip: Slip, fate: str) -> Outcome | None:
        """How the handler ends; None if its worker dies with it."""
        self.began.add((slip.place, slip.undoing))
        self._expect_results(slip)
        last = Dead("exhausted", ValueError()) if opened.attempt >= ATTEMPTS else Retried(0.0, ValueError())
        if fate == "permanent":
            return Dead("permanent", Permanent())
        if fate == "timeout":
            self.threads.append((opened.job_id, slip))
        if fate in {"timeout", "error"}:
            return last
        if fate == "killed in":
            return None
        try:
            self.tables.commit(opened.job_id, slip)
        except (AlreadyDone, Abandoned) as error:
            ended = stopped(error, Dead("permanent", error), slip, 0.0)
            return None if fate == "killed after" else ended
        if fate == "killed after":
            return None
        return last if fate == "error after commit" else Returned(None if slip.undoing else result_of(slip))

    def _course(self, opened: Envelope, delivery: Delivery, outcome: Outcome) -> Course:
        with pytest.raises(StopIteration) as end:  # the tables are at hand: nothing is waited for
            self.after.after(delivery, opened, outcome, None, 0.0).send(None)
        course = end.value.value
        assert isinstance(course, Course)
        return course

    def _publish(self, course: Course) -> None:
        for message in course.messages:
            to = self.letters if message.exchange == NAMES.dlx else self.bag
            if to is self.letters:
                slip = slip_in(message.properties.headers or {})
                assert slip is not None
                assert slip.undoing, "a step that fails is undone, not dead-lettered"
                self.held_up.add(slip.place)
            else:
                self.sent.append(message)
            to.append(Flight(message))

    def _retry(self, flight: Flight, opened: Envelope) -> None:
        self.bag.append(Flight(self._copy(flight.message, {envelope.ATTEMPT: opened.attempt + 1})))

    def _copy(self, message: Message, changes: dict[str, Any]) -> Message:
        return copy_of(message.properties, message.body, exchange="", routing_key="", job_id=None, changes=changes)

    def _doubt(self, slip: Slip) -> None:
        self.unsure.add(slip.place)
        if slip.undoing:  # it may come to its effect when those after it have had theirs
            self.held_up.add(slip.place)

    def _expect_results(self, slip: Slip) -> None:
        """A step reads what all before it returned; an undo what its step did, where that is known."""
        if slip.undoing:
            assert slip.result in (None, result_of(slip))
            return
        earlier = {branch.do for stage in self.plan[: slip.place[0]] for branch in stage}
        assert set(slip.results) == earlier

    # -- what must hold --------------------------------------------------------------------------------------------

    @invariant()
    def nothing_is_wrong_yet(self) -> None:
        effects = self.tables.effects
        assert len(set(effects)) == len(effects), "an effect happened twice"
        for place, undoing in effects:
            assert not undoing or (place, False) in effects or place in self.unsure, "undone what never started"
        undone = [place for place, undoing in effects if undoing and place not in self.held_up]
        assert undone == sorted(undone, reverse=True), "undone in the wrong order"

    def teardown(self) -> None:
        if not hasattr(self, "bag"):
            return
        for _ in range(10_000):
            if self.threads:
                self.thread_comes_to_its_commit(0)
            elif self.letters:
                self.replay(0)
            elif self.bag:
                self.deliver(0, "well")
            else:
                break
        self.nothing_is_wrong_yet()
        effects = set(self.tables.effects)
        undoing = {place for place, direction in self.began if direction}
        failed = {s for s, stage in enumerate(self.plan) for b in range(len(stage)) if self._abandoned((s, b))}
        assert not self.bag
        assert not self.letters
        if not failed:
            assert not undoing, "a saga that is completed has been undone"
            assert {place for place, _ in effects} == set(self._places()), "a saga that is not undone is not completed"
            return
        assert len(failed) == 1, "a saga went on after a step had failed"
        (stage,) = failed
        assert all(place[0] <= stage for place, _ in self.began), "a saga went on after a step had failed"
        for place in self._places():
            has_undo = self.plan[place[0]][place[1]].undo is not None
            if (place, False) in effects and has_undo:
                assert (place, True) in effects, f"{place} is done and not undone"

    def _places(self) -> list[Place]:
        return [(stage, branch) for stage, steps in enumerate(self.plan) for branch in range(len(steps))]

    def _abandoned(self, place: Place) -> bool:
        found = self.tables.jobs.get(slips.job_id("saga", place, False))
        return found is not None and found.abandoned is not None


SagaMachine.TestCase.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)
TestSaga = SagaMachine.TestCase
