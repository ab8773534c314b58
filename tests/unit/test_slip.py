"""The routing slip: as two headers and back, whatever else those hold, and what it costs to be too large."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pydantic_core import from_json, to_json

from consumers.dead_letter import can_be_sent
from hareline import JobType, Saga, Step
from tests.lab import Number
from topology import slip as slips
from topology.envelope import ITINERARY, SAGA, Malformed
from topology.slip import LARGEST, Branch, Failure, Slip, SlipTooLarge, headers_of, slip_in
from topology.spec import Names

NAMES = Names("test")
FAILURE = Failure("1.0", "Permanent", "no")

words = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=20)
priorities = st.none() | st.integers(0, 255)
records = st.none() | st.sampled_from(["failures", "nothing"])
branches = st.builds(Branch, words, st.none() | words, priorities, priorities, records, records)
plans = st.lists(st.lists(branches, min_size=1, max_size=3).map(tuple), min_size=1, max_size=4).map(tuple)
json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=9), inner, max_size=4),
    max_leaves=8,
)
moments = st.floats(0, 2e10)


@st.composite
def slip_of(draw: Any, *, going_on: bool = False) -> Slip:
    """Any that a saga may have; one that undoes nothing yet, if it is ``going_on``."""
    plan = draw(plans)
    places = [(stage, branch) for stage, steps in enumerate(plan) for branch in range(len(steps))]
    undoable = [place for place in places if plan[place[0]][place[1]].undo is not None]
    undoing = bool(undoable) and not going_on and draw(st.booleans())
    return Slip(
        draw(words),
        draw(words),
        plan,
        draw(st.sampled_from(undoable if undoing else places)),
        undoing,
        draw(st.dictionaries(words, json, max_size=3)),
        draw(moments),
        draw(st.none() | moments),
        draw(st.builds(Failure, words, words, st.text(max_size=50))) if undoing else None,
        tuple(draw(st.lists(st.sampled_from(undoable), unique=True))) if undoing else (),
        undoing and draw(st.booleans()),
    )


@given(slip_of())
def test_a_slip_comes_back_from_its_headers_as_it_was(slip: Slip) -> None:
    assert slip_in(headers_of(slip)) == slip


@given(slip_of())
def test_the_message_of_a_hop_carries_it(slip: Slip) -> None:
    """It goes to the queue of its job type; one that undoes goes as an event, and knows the way without one."""
    message = slips.message_of(NAMES, slip, b"{}", {"traceparent": "00-a-b-01"})
    assert message.properties.headers is not None
    assert slip_in(message.properties.headers) == slip
    assert message.properties.message_id == slip.job_id
    assert message.properties.correlation_id == slip.id
    assert message.properties.headers["traceparent"] == "00-a-b-01"
    branch, direct = slip.branch, (NAMES.jobs, slip.branch.undo if slip.undoing else slip.branch.do)
    assert message.properties.type == direct[1]
    if slip.undoing:
        assert (message.exchange, message.routing_key) == (NAMES.events, f"saga.compensate.{branch.undo}")
        assert message.detour == direct
    else:
        assert ((message.exchange, message.routing_key), message.detour) == (direct, None)


# -- whatever else the headers hold ------------------------------------------------------------------------------------

SOUND: dict[str, Any] = {"v": 1, "id": "i", "name": "n", "at": [0, 0], "began": 0.0}
PLAN: list[Any] = [[["do", "undo", None, None, None, None]]]


def read_or_refused(state: Any, plan: Any) -> Slip | None:
    try:
        return slip_in({SAGA: state, ITINERARY: plan})
    except Malformed:
        return None


@given(json | st.binary(max_size=20), json | st.binary(max_size=20))
def test_headers_that_are_anything_at_all_are_malformed(state: Any, plan: Any) -> None:
    assert read_or_refused(state, plan) is None


@settings(max_examples=500)
@given(
    st.sampled_from(["id", "name", "at", "began", "deadline", "undoing", "undos", "results", "failure", "alone"]),
    json | st.lists(json, max_size=3) | st.lists(st.tuples(st.integers(-1, 2), st.integers(-1, 2)), max_size=2),
    st.integers(-1, 6),
    json,
)
@example("began", 10**400, -1, None)
@example("deadline", "nan", -1, None)
@example("at", [True, False], -1, None)
@example("at", [0, -1], -1, None)
@example("id", "x" * 256, -1, None)
@example("id", "\0", -1, None)
@example("undos", [[0, 0]] * 3, -1, None)
@example("id", "i", 2, 256)
@example("id", "i", 4, ["a list"])
@example("id", "i", 0, "x" * 250)
@example("id", "i", 1, "\0")
def test_one_wrong_value_is_malformed_or_does_no_harm(key: str, value: Any, where: int, other: Any) -> None:
    """What is accepted can be sent on: a step that has run must not be held up by what its slip says."""
    plan = from_json(to_json(PLAN))
    if where == 6:
        plan = other
    elif where >= 0:
        plan[0][0][where] = other
    slip = read_or_refused(to_json({**SOUND, key: value}).decode(), to_json(plan).decode())
    if slip is None:
        return
    hops = [*slips.undone(slip)] if slip.undoing else [*slips.onward(slip, {"n": 1}), *slips.back(slip, FAILURE, [0])]
    for hop in hops:
        message = slips.message_of(NAMES, hop, b"{}")
        assert can_be_sent(message)
        assert message.properties.headers is not None
        assert slip_in(message.properties.headers) is not None


@pytest.mark.parametrize(
    ("state", "plan"),
    [
        ("{}", None),
        ("[" * 10_000, "[]"),
        (None, None),
        ('{"v":1,"id":"i","name":"n","at":[0,0],"began":1e999}', to_json(PLAN).decode()),
        ('{"v":1,"id":"i","name":"n","at":[0,0],"began":0,"undoing":true}', '[[["do",null]]]'),
        ('{"v":1,"id":"i","name":"n","at":[0,0],"began":0}', "[]"),
        ('{"v":1,"id":"i","name":"n","at":[0,0],"began":0}', "[[]]"),
        ('{"v":1,"id":"i","name":"n","at":[0,0],"began":0}', '[["ab"], []]'),
        ('{"v":1,"id":"\\ud800","name":"n","at":[0,0],"began":0}', to_json(PLAN).decode()),
    ],
)
def test_known_nonsense(state: Any, plan: Any) -> None:
    assert read_or_refused(state, plan) is None


def test_a_message_without_a_slip_is_no_sagas() -> None:
    assert slip_in({}) is None
    assert slip_in({ITINERARY: "[]"}) is None


# -- limits ------------------------------------------------------------------------------------------------------------


def slip_with(plan_steps: int, results: dict[str, Any]) -> Slip:
    plan = tuple((Branch(f"do-{n}", f"undo-{n}"),) for n in range(plan_steps))
    return Slip("s", "saga", plan, (plan_steps - 1, 0), results=results)


def test_results_that_are_too_large_turn_the_saga_round() -> None:
    slip = slip_with(2, {"do-0": "x" * LARGEST})
    with pytest.raises(SlipTooLarge, match="saga saga"):
        headers_of(slip)
    (hop,) = slips.back(slip, FAILURE, [], None)
    assert slip_in(headers_of(hop)) == hop


@given(st.integers(0, 4 * LARGEST), st.sampled_from([1, 20, 1_000, 1_400]))
@settings(max_examples=30, deadline=None)
def test_an_undo_always_fits_into_a_frame(size: int, steps: int) -> None:
    """Without results, where there is no room for them; a saga's undo must never be held up by its size."""
    slip = slip_with(steps, {"do-0": "é" * (size // 2)})
    try:
        headers_of(slip_with(steps, {}))
    except SlipTooLarge:
        return  # such a saga cannot start
    (hop,) = slips.back(slip, FAILURE, [0])[:1]
    message = slips.message_of(NAMES, hop, b"{}")
    assert sum(map(len, message.properties.encode())) < 100 * 1024
    assert message.properties.headers is not None
    found = slip_in(message.properties.headers)
    assert found is not None
    assert found.results in ({}, slip.results)
    assert found.undos == hop.undos


# -- ids ---------------------------------------------------------------------------------------------------------------


@given(slip_of())
def test_ids_are_the_same_whoever_publishes_and_differ_by_saga_place_and_direction(slip: Slip) -> None:
    places = [(stage, branch) for stage, steps in enumerate(slip.plan) for branch in range(len(steps))]
    ids = [slips.job_id(saga, place, undoing) for saga in ("a", "b") for place in places for undoing in (False, True)]
    assert len(set(ids)) == len(ids)
    assert slip.job_id == slips.job_id(slip.id, slip.place, slip.undoing)


def test_ids_never_change() -> None:
    """Sagas that run during a deploy keep theirs: these were written down once."""
    assert slips.job_id("s", (0, 0), False) == "7ec547b7-83d3-53e7-b4d8-4c81b73992fe"
    assert slips.job_id("s", (3, 1), True) == "be602408-2617-56f5-8b68-9a9bdc6f8313"
    saga = Saga("order", Step(JobType("reserve", Number)), payload=Number)
    assert saga.id_for_key("k") == "a02d6722-086f-5163-beef-4130e838deaa"


# -- what follows ------------------------------------------------------------------------------------------------------


@given(slip_of(going_on=True), st.data())
def test_compensation_visits_what_is_done_in_reverse_order_and_nothing_else(slip: Slip, data: st.DataObject) -> None:
    branches = range(len(slip.plan[slip.place[0]]))
    here = data.draw(st.lists(st.sampled_from(branches), unique=True))
    visited = []
    hops = slips.back(slip, FAILURE, here)
    while hops:
        assert len(hops) == 1
        visited.append(hops[0].place)
        assert hops[0].failure == FAILURE
        hops = slips.undone(hops[0])
    done = [(slip.place[0], branch) for branch in here]
    done += [(stage, n) for stage in range(slip.place[0]) for n in range(len(slip.plan[stage]))]
    assert visited == sorted((p for p in done if slip.plan[p[0]][p[1]].undo is not None), reverse=True)


@given(slip_of(going_on=True))
def test_every_step_has_its_turn_and_reads_what_came_before(slip: Slip) -> None:
    """Not ``None`` results: a step that returned nothing leaves nothing."""
    hops = slips.first(slip)
    seen: list[tuple[int, int]] = []
    while hops:
        seen += [hop.place for hop in hops]
        earlier = {slip.plan[s][b].do for s, b in seen if s < hops[0].place[0]}
        assert set(hops[0].results) == earlier
        hops = slips.joined(hops[0], {hop.place[1]: place_result(hop) for hop in hops})
    assert seen == [(stage, n) for stage in range(len(slip.plan)) for n in range(len(slip.plan[stage]))]


def place_result(hop: Slip) -> Any:
    return slips.place_text(hop.place)


def test_a_copy_in_the_dead_letter_queue_undoes_itself_alone() -> None:
    (hop,) = slips.back(slip_with(3, {}), FAILURE, [0])
    assert len(slips.undone(hop)) == 1
    alone = slip_in(headers_of(hop._replace(alone=True)))
    assert alone is not None
    assert slips.undone(alone) == ()
