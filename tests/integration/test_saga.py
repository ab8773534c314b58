"""Sagas through a real broker: all steps are done, or what was done is undone in reverse order."""

from __future__ import annotations

import time

import pytest

from hareline import Cancelled, Job, PayloadInvalid, Permanent, Saga, Step
from tests.lab import Lab, Number, until
from tests.sagas import AT_ONCE, Story, story
from topology.errors import ContractError


async def test_steps_run_in_order_and_later_ones_read_what_earlier_ones_returned(lab: Lab, sqlite_url: str) -> None:
    made = await story(lab, sqlite_url, "reserve", "charge", "ship")
    await made.run(3)
    assert made.ran == ["reserve", "charge", "ship"]
    reserve, charge = (made.steps[name].job_type.name for name in ("reserve", "charge"))
    assert made.saw("ship") == {reserve: {"what": "reserve", "n": 7}, charge: {"what": "charge", "n": 7}}
    assert made.saw("ship")[reserve].what == "reserve"


async def test_a_permanent_failure_undoes_what_was_done_in_reverse_order(lab: Lab, sqlite_url: str) -> None:
    made = await story(lab, sqlite_url, "reserve", "charge", "ship")
    made.failing["ship"] = Permanent("no such address")
    await made.run(5)
    assert made.ran == ["reserve", "charge", "ship", "un-charge", "un-reserve"]
    assert made.saw("un-reserve") == {"what": "reserve", "n": 7}


async def test_a_step_whose_outcome_nobody_knows_is_undone_too(lab: Lab, sqlite_url: str) -> None:
    made = await story(lab, sqlite_url, "reserve", "charge")
    made.failing["charge"] = ValueError("who knows")
    await made.run(5)
    assert made.ran == ["reserve", "charge", "charge", "un-charge", "un-reserve"]
    assert made.saw("un-charge") is None


async def test_an_undo_knows_the_idempotency_key_of_its_step(lab: Lab, sqlite_url: str) -> None:
    charge = Step(lab.job_type("charge", retry=AT_ONCE), undo=lab.job_type("refund", retry=AT_ONCE))
    ship = Step(lab.job_type("ship", retry=AT_ONCE))
    made = Story(lab, saga := Saga("key", charge, ship, payload=Number), await lab.saga_app(saga), sqlite_url)

    async def handle(_: Number, job: Job) -> None:
        assert job.saga is not None
        made.told.append((job.idempotency_key, job.saga.step_key))
        if job.type == ship.job_type.name:
            raise Permanent("no such address")

    for job_type in saga.job_types:
        made.app.handler(job_type)(handle)
    await made.run(3)
    keys = [key for key, _ in made.told]
    assert len(set(keys)) == 3
    assert [step_key for _, step_key in made.told] == [keys[0], keys[1], keys[0]]


async def test_a_cancelled_step_turns_the_saga_round(lab: Lab, sqlite_url: str) -> None:
    made = await story(lab, sqlite_url, "reserve", "charge")
    made.failing["charge"] = Cancelled("not wanted any more")
    await made.run(3)
    assert made.ran == ["reserve", "charge", "un-reserve"]


async def test_an_undo_that_fails_for_good_is_dead_lettered_while_the_rest_run(lab: Lab, sqlite_url: str) -> None:
    made = await story(lab, sqlite_url, "reserve", "charge", "ship")
    made.failing |= {"ship": Permanent("no"), "un-charge": Permanent("the bank is closed")}
    await made.run(5)
    assert made.ran == ["reserve", "charge", "ship", "un-charge", "un-reserve"]
    undo = made.steps["charge"].undo
    assert undo is not None
    (letter,) = await lab.dead_letters(undo, 1)
    assert letter.headers["hareline-error-message"] == "the bank is closed"


async def test_parallel_steps_join_before_the_next_one(lab: Lab, sqlite_url: str) -> None:
    made = await story(lab, sqlite_url, "reserve", "invoice", "label", "insure", "ship", parallel=True)
    await made.run(5)
    assert made.ran[0] == "reserve"
    assert made.ran[-1] == "ship"
    assert sorted(made.ran[1:-1]) == ["insure", "invoice", "label"]
    assert len(made.saw("ship")) == 4


async def test_a_failed_parallel_step_undoes_the_others_and_all_before(lab: Lab, sqlite_url: str) -> None:
    made = await story(lab, sqlite_url, "reserve", "invoice", "label", "insure", "ship", parallel=True)
    made.failing["label"] = Permanent("no paper")
    await made.run(7)
    assert made.ran[4:] == ["un-insure", "un-invoice", "un-reserve"]
    assert made.saw("un-insure") == {"what": "insure", "n": 7}


async def test_a_step_that_would_begin_after_the_deadline_fails_instead(lab: Lab, sqlite_url: str) -> None:
    made = await story(lab, sqlite_url, "reserve", "charge", deadline=0.5)

    async def slow(number: Number, job: Job) -> None:
        made.told.append(("reserve", None))
        assert job.saga is not None
        assert job.saga.deadline is not None
        await until(lambda: time.time() > job.saga.deadline, "the deadline passed")  # type: ignore[union-attr,operator]

    made.app.registry._routes.pop(made.steps["reserve"].job_type.name)
    made.app.handler(made.steps["reserve"].job_type)(slow)
    await made.run(2)
    # It ran into the deadline, so nobody knows how far it came.
    assert made.ran == ["reserve", "un-reserve"]


async def test_the_same_key_starts_the_same_saga(lab: Lab, sqlite_url: str) -> None:
    made = await story(lab, sqlite_url, "reserve")
    producer = await lab.producer()
    one, other = [await producer.start(made.saga, Number(n=1), key="order-1") for _ in range(2)]
    assert one == other
    assert one != await producer.start(made.saga, Number(n=1), key="order-2")


async def test_a_payload_that_a_later_step_would_refuse_is_refused_at_the_start(lab: Lab) -> None:
    first, second = lab.job_type("first"), lab.job_type("second", dict[str, str])
    saga = Saga("picky", Step(first), Step(second), payload=Number)
    producer = await lab.producer()
    with pytest.raises(PayloadInvalid, match="second does not take this payload"):
        await producer.start(saga, Number(n=1))


async def test_a_saga_that_makes_no_sense_is_refused_where_it_is_declared(lab: Lab) -> None:
    step = Step(lab.job_type("once"))
    with pytest.raises(ContractError, match="two steps"):
        Saga("twice", step, step, payload=Number)
    with pytest.raises(ContractError, match="no steps"):
        Saga("none", payload=Number)
    with pytest.raises(ContractError, match="deadline"):
        Saga("never", step, payload=Number, deadline=0)
