"""The routing slip: the itinerary of a saga, and how far it has come. It travels with the message of each step.

Pure. ``onward``, ``joined``, ``back`` and ``undone`` say what follows a step: the hops that are to be published.
After Garcia-Molina and Salem, "Sagas" (1987); the slip is the Routing Slip of Hohpe and Woolf.

    step 0 -> step 1 -> step 2 fails for good
    undo 0 <- undo 1 <-'
"""

from __future__ import annotations

import math
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from hashlib import sha1
from types import MappingProxyType
from typing import Any, Final, NamedTuple

from pydantic_core import from_json, to_json

from topology.envelope import ITINERARY, RECORD, SAGA, Malformed, Message, new_job
from topology.spec import Names
from topology.text import flaw_of

LARGEST: Final = 48 * 1024
"""Bytes of a slip: it is a header, and all headers share one AMQP frame of 128 KiB with a traceback and the rest."""
MESSAGE_LIMIT: Final = 500
"""Characters of a failure's message that travel along."""
_LONGEST: Final = 255
_LONGEST_TYPE: Final = _LONGEST - len("saga.compensate.")
"""Bytes: AMQP's short strings."""
_HIGHEST_PRIORITY: Final = 255
_IDS: Final = uuid.UUID("7b8a4f3e-1d59-5f0c-8e0b-3c2d9a6f4e11").bytes


class Branch(NamedTuple):
    """One step as the itinerary has it: all that a publisher needs, who may not know the job types."""

    do: str
    undo: str | None
    priority: int | None = None
    undo_priority: int | None = None
    record: str | None = None
    undo_record: str | None = None


Plan = tuple[tuple[Branch, ...], ...]
Place = tuple[int, int]
"""Stage and branch, from 0."""


class SlipTooLarge(Exception):
    """What the steps returned does not fit into the slip."""


@dataclass(frozen=True, slots=True)
class Failure:
    """Why the saga turned round: which step, and its error as text."""

    step: str
    error: str
    message: str


class Slip(NamedTuple):
    """A saga at one of its steps: doing it, or undoing it.

    ``results`` are what finished steps returned, as JSON data by the step's job type. ``began`` and ``deadline`` are
    Unix seconds. ``undos`` are the places still to be undone after this one, in order. ``alone`` marks the copy in
    the dead-letter queue of an undo whose successors have been published already.
    """

    id: str
    name: str
    plan: Plan
    place: Place = (0, 0)
    undoing: bool = False
    results: Mapping[str, Any] = MappingProxyType({})
    began: float = 0.0
    deadline: float | None = None
    failure: Failure | None = None
    undos: tuple[Place, ...] = ()
    alone: bool = False

    @property
    def branch(self) -> Branch:
        """The step that this message is for."""
        return self.plan[self.place[0]][self.place[1]]

    @property
    def is_parallel(self) -> bool:
        """Whether others run beside this step."""
        return len(self.plan[self.place[0]]) > 1

    @property
    def job_id(self) -> str:
        """The id of the job that this message is: the same whoever publishes it, however often."""
        return job_id(self.id, self.place, self.undoing)

    @property
    def result(self) -> Any:
        """What the step at this place returned; None where it returned nothing, or nobody knows."""
        return self.results.get(self.branch.do)


def job_id(saga_id: str, place: Place, undoing: bool) -> str:
    """The id of one step's job, or of its undo's: UUIDv5, in a third of the time that `uuid.uuid5` takes."""
    name = f"{saga_id}/{place[0]}.{place[1]}/{'undo' if undoing else 'do'}"
    digest = bytearray(sha1(_IDS + name.encode(), usedforsecurity=False).digest()[:16])
    digest[6] = digest[6] & 0x0F | 0x50
    digest[8] = digest[8] & 0x3F | 0x80
    text = digest.hex()
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"


def place_text(place: Place) -> str:
    """Stage and branch as logs, ids and tables have them."""
    return f"{place[0]}.{place[1]}"


# -- what follows ------------------------------------------------------------------------------------------------------


def first(slip: Slip) -> tuple[Slip, ...]:
    """The hops that a saga starts with."""
    return _stage(slip, 0, {})


def onward(slip: Slip, result: Any) -> tuple[Slip, ...]:
    """The hops after a step that is done; none when the saga is complete. Not for parallel steps."""
    results = slip.results if result is None else {**slip.results, slip.branch.do: result}
    return _stage(slip, slip.place[0] + 1, results)


def joined(slip: Slip, results: Mapping[int, Any]) -> tuple[Slip, ...]:
    """The hops after a stage all of whose branches are done; ``results`` are theirs, by branch."""
    stage = slip.place[0]
    new = {slip.plan[stage][branch].do: value for branch, value in results.items() if value is not None}
    return _stage(slip, stage + 1, {**slip.results, **new})


def _stage(slip: Slip, stage: int, results: Mapping[str, Any]) -> tuple[Slip, ...]:
    if stage >= len(slip.plan):
        return ()
    began, deadline = slip.began, slip.deadline
    return tuple(
        Slip(slip.id, slip.name, slip.plan, (stage, branch), results=results, began=began, deadline=deadline)
        for branch in range(len(slip.plan[stage]))
    )


def back(
    slip: Slip, failure: Failure, undo_here: Sequence[int], results: Mapping[int, Any] | None = None
) -> tuple[Slip, ...]:
    """The first compensation after the stage of ``slip`` failed; none where nothing is to be undone.

    ``undo_here`` are the branches of this stage that are done, or may be; ``results`` what they returned. All stages
    before are done.
    """
    stage = slip.place[0]
    new = {slip.plan[stage][branch].do: value for branch, value in (results or {}).items() if value is not None}
    places = [(stage, branch) for branch in undo_here]
    places += [(earlier, branch) for earlier in range(stage) for branch in range(len(slip.plan[earlier]))]
    order = sorted((place for place in places if slip.plan[place[0]][place[1]].undo is not None), reverse=True)
    return _next_undo(slip._replace(undoing=True, results={**slip.results, **new}, failure=failure), tuple(order))


def undone(slip: Slip) -> tuple[Slip, ...]:
    """The compensation after this one, whatever became of it; none when it was the last."""
    return () if slip.alone else _next_undo(slip, slip.undos)


def _next_undo(slip: Slip, order: tuple[Place, ...]) -> tuple[Slip, ...]:
    return (slip._replace(place=order[0], undos=order[1:]),) if order else ()


# -- as a message ------------------------------------------------------------------------------------------------------


def message_of(names: Names, slip: Slip, body: bytes, about: Mapping[str, Any] | None = None) -> Message:
    """The message of a hop; ``about`` are headers that go along.

    A compensation is an event: it goes to the events exchange, and from there to its queue.
    Raises SlipTooLarge.
    """
    branch = slip.branch
    job_type, priority, record = branch.do, branch.priority, branch.record
    if slip.undoing:
        job_type, priority, record = branch.undo or "", branch.undo_priority, branch.undo_record
    headers = {**(about or {}), **headers_of(slip)}
    if record is not None:
        headers[RECORD] = record
    message = new_job(
        names, job_type, body, job_id=slip.job_id, priority=priority, correlation_id=slip.id, headers=headers
    )
    if slip.undoing:
        # A deploy that took the undo out of its saga took this binding with it: sagas under way go by the other road.
        message.detour = message.exchange, message.routing_key
        message.exchange, message.routing_key = names.events, names.compensation(job_type)
    return message


def headers_of(slip: Slip) -> dict[str, str]:
    """The slip as two headers: what changes with each hop, and the itinerary, which does not.

    Raises SlipTooLarge; one that undoes goes without results then, as if nobody knew them.
    """
    state: dict[str, Any] = {"v": 1, "id": slip.id, "name": slip.name, "at": slip.place, "began": slip.began}
    if slip.undoing:
        state["undoing"] = True
        state["undos"] = slip.undos
    if slip.results:
        state["results"] = slip.results
    if slip.deadline is not None:
        state["deadline"] = slip.deadline
    if slip.failure is not None:
        state["failure"] = [slip.failure.step, slip.failure.error, slip.failure.message]
    if slip.alone:
        state["alone"] = True
    text = to_json(state, inf_nan_mode="null").decode()
    itinerary = itinerary_of(slip.plan)
    if (
        not slip.undoing
        and len(text) + len(itinerary) > LARGEST
        and len(text.encode()) + len(itinerary.encode()) > LARGEST
    ):
        raise SlipTooLarge(
            f"what the steps of saga {slip.name} returned takes more than {LARGEST:,} bytes: store it, return a key"
        )
    if slip.undoing and slip.results and len(text.encode()) + len(itinerary.encode()) > 2 * LARGEST:
        return headers_of(slip._replace(results={}))
    return {SAGA: text, ITINERARY: itinerary}


@lru_cache(maxsize=256)
def itinerary_of(plan: Plan) -> str:
    """The itinerary as JSON."""
    return to_json(plan).decode()


def slip_in(headers: Mapping[str, Any]) -> Slip | None:
    """The slip that a message carries, if it is a saga's. Raises Malformed."""
    text = headers.get(SAGA)
    if text is None:
        return None
    itinerary = headers.get(ITINERARY)
    try:
        state = from_json(text, allow_inf_nan=False)
        plan = plan_of(itinerary)
        return _slip(state, plan)
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, OverflowError) as error:
        raise Malformed(f"headers {SAGA} and {ITINERARY} are no routing slip: {error!r}"[:300]) from None


@lru_cache(maxsize=256)
def plan_of(itinerary: str) -> Plan:
    """An itinerary as `itinerary_of` writes it, such that its hops can be sent. Raises ValueError, TypeError."""
    plan = tuple(tuple(Branch(*step) for step in stage) for stage in from_json(itinerary))
    for branch in (branch for stage in plan for branch in stage):
        _text(branch.do, _LONGEST_TYPE)
        if branch.undo is not None:
            _text(branch.undo, _LONGEST_TYPE)
        for priority in (branch.priority, branch.undo_priority):
            if priority is not None and not (type(priority) is int and 0 <= priority <= _HIGHEST_PRIORITY):
                raise ValueError(f"{priority!r} is no priority")
        for record in (branch.record, branch.undo_record):
            if not isinstance(record, str | None):
                raise TypeError(f"{record!r} says not what to record")
    if not plan or not all(plan):
        raise ValueError("no steps")
    return plan


def _slip(state: dict[str, Any], plan: Plan) -> Slip:
    saga_id, name = _text(state["id"], _LONGEST), _text(state["name"], _LONGEST)
    place, began, deadline = _place(state["at"], plan), _moment(state["began"]), state.get("deadline")
    results = state.get("results") or {}
    if not isinstance(results, dict):
        raise TypeError("results")
    if deadline is not None:
        deadline = _moment(deadline)
    if state.get("undoing") is not True:
        return Slip(saga_id, name, plan, place, results=results, began=began, deadline=deadline)
    undos = tuple(_place(one, plan) for one in state.get("undos", ()))
    for stage, branch in (place, *undos):
        if plan[stage][branch].undo is None:
            raise ValueError(f"step {stage}.{branch} has nothing that undoes it")
    failure = None if state.get("failure") is None else Failure(*map(str, state["failure"]))
    alone = state.get("alone") is True
    return Slip(saga_id, name, plan, place, True, results, began, deadline, failure, undos, alone)


def _place(value: Any, plan: Plan) -> Place:
    stage, branch = value
    if not (type(stage) is int and type(branch) is int and stage >= 0 and branch >= 0):
        raise TypeError(f"{value!r} is no place")
    plan[stage][branch]
    return stage, branch


def _text(value: Any, longest: int) -> str:
    """A text that AMQP and the database take: nobody could settle a step whose saga they refuse."""
    if isinstance(value, str) and value.isascii() and 0 < len(value) <= longest and "\0" not in value:
        return value
    if not isinstance(value, str) or not value or flaw_of(value) is not None or len(value.encode()) > longest:
        raise ValueError(f"{value!r} is no name")
    return value


def _moment(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise ValueError(f"{value!r} is no time")
    return float(value)
