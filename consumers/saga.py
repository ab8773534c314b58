"""What follows a saga's step: the next one, or compensation events in reverse order. `topology.slip` has the slip.

A step's failure is decided once, in the inbox: had another delivery of the step committed its effects before, it is
done after all, and the saga goes on. So duplicates never send one saga both ways.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any, Final, NamedTuple

from pydantic_core import from_json, to_json

from consumers.dead_letter import bare_dead_letter, can_be_sent, dead_letter, shown
from consumers.inbox import Inbox
from consumers.job import Job
from consumers.outcome import (
    Abandoned,
    AlreadyDone,
    Dead,
    Dropped,
    Outcome,
    Permanent,
    Retried,
    Returned,
    SagaOverdue,
    Snooze,
)
from consumers.registry import Route
from consumers.saga_view import plain
from topology import events
from topology import slip as slips
from topology.envelope import RAN, REPLACES, SAGA, Envelope, Message, carried
from topology.errors import HarelineError
from topology.events import JobEvent
from topology.slip import MESSAGE_LIMIT, Failure, Slip, SlipTooLarge, place_text
from topology.spec import Names
from topology.subscription import Delivery

logger = logging.getLogger(__name__)

_PAUSE: Final = 0.2
_LONGEST_PAUSE: Final = 5.0


class Course(NamedTuple):
    """What is to be published after a step, how the step ended after all, and what the saga log is told."""

    outcome: Outcome
    messages: Sequence[Message]
    news: Sequence[JobEvent]


# -- while a step runs -------------------------------------------------------------------------------------------------


def time_for(slip: Slip, limit: float, now: float) -> float:
    """Seconds that a run of the step may take: its job type's ``limit``, or what is left of the saga's deadline.

    Raises SagaOverdue where nothing is left. Undoing has no deadline.
    """
    if slip.undoing or slip.deadline is None:
        return limit
    if now >= slip.deadline:
        raise SagaOverdue(f"saga {slip.name} had {slip.deadline - slip.began:g} s, which are over")
    return min(limit, slip.deadline - now)


def returned(result: Any, job: Job) -> Outcome:
    """The outcome of a step or an undo whose handler returned."""
    slip = job.slip
    assert slip is not None
    if slip.undoing:
        return Returned(None)
    try:
        value = plain(result)
    except Permanent as error:
        return Dead("result", error)
    if value is not None and job.is_forgetful:
        forgotten = Permanent(
            f"{job.type} returned a result that its transaction has not stored, so that no later delivery could know "
            "it: write `return job.keep(...)` inside the block"
        )
        return Dead("result", forgotten)
    return Returned(value)


def stopped(error: BaseException, outcome: Outcome, slip: Slip, now: float) -> Outcome:
    """The outcome of a step whose handler raised, given what the retry policy would make of it."""
    if isinstance(error, AlreadyDone) and not error.name:
        return Returned(error.result)
    if isinstance(error, Abandoned):
        return Dead("abandoned", error)
    late = slip.deadline is not None and not slip.undoing
    if late and isinstance(outcome, Retried | Snooze) and now + outcome.after >= (slip.deadline or 0.0):
        return Dead("deadline", error)
    return outcome


def may_be_done(delivery: Delivery, opened: Envelope, outcome: Dead | Dropped, route: Route | None) -> bool:
    """Whether a step that failed may have had its effects all the same, so that it must be undone too.

    It has had none if its only run said so by a `Permanent` error (or one that the app declares as such) or by
    `Cancelled`, or if it never ran.
    """
    if opened.attempt > 1 or opened.deliveries or delivery.redelivered or RAN in opened.headers:
        return True  # nobody knows how far the runs before came
    if isinstance(outcome, Dropped) or outcome.reason in {"invalid", "no-handler"}:
        return False
    certain: tuple[type[BaseException], ...] = (Permanent, SagaOverdue, *(() if route is None else route.permanent))
    return outcome.reason == "result" or not isinstance(outcome.error, certain)


# -- when it has ended -------------------------------------------------------------------------------------------------


class FollowUps:
    """Finds what follows a step of a saga. ``inbox`` is where failures are decided and parallel steps meet."""

    def __init__(self, names: Names, inbox: Inbox) -> None:
        self._names = names
        self._inbox = inbox

    async def after(
        self, delivery: Delivery, opened: Envelope, outcome: Outcome, route: Route | None, duration: float
    ) -> Course | None:
        """What is to happen after a delivery that ended so. None: its channel went while the database was awaited."""
        slip = opened.slip
        assert slip is not None
        if slip.undoing:
            return self._after_undo(delivery, opened, slip, outcome, duration)
        if isinstance(outcome, Returned) and not slip.is_parallel:
            with suppress(SlipTooLarge):  # then it goes the long way, and back
                messages = self._messages(slips.onward(slip, outcome.result), delivery, opened)
                return Course(outcome, messages, [_step_news(opened, slip, outcome, None, duration)])
        failed: dict[str, Any] | None = None
        if not isinstance(outcome, Returned):
            assert isinstance(outcome, Dead | Dropped)
            failed = _failed(outcome, undo=may_be_done(delivery, opened, outcome, route))
            verdict = await self._persistently(
                delivery, opened, lambda: self._inbox.abandon(opened.job_id, opened.job_type, _text(failed))
            )
            if verdict is None:
                return None
            if verdict.abandoned is None:
                logger.warning("%s %s failed, though another delivery has done it: the saga goes on", *_who(opened))
                outcome, failed = Returned(None if verdict.result is None else from_json(verdict.result)), None
            else:
                failed = from_json(verdict.abandoned)
        news = [_step_news(opened, slip, outcome, failed, duration)]
        settled = {slip.place[1]: failed or {"result": getattr(outcome, "result", None)}}
        if slip.is_parallel:
            of = len(slip.plan[slip.place[0]])
            text = _text(settled[slip.place[1]])
            met = await self._persistently(
                delivery, opened, lambda: self._inbox.settle_branch(slip.id, slip.place, text, of), or_else=[]
            )
            if met is None:
                return None
            settled = {branch: from_json(one) for branch, one in enumerate(met)}
        if not settled:
            return Course(outcome, (), news)  # others of the stage are still at work
        hops, turned = self._hops(slip, settled, delivery, opened)
        return Course(outcome, hops, news if turned is None else [*news, turned])

    def _hops(
        self, slip: Slip, settled: Mapping[int, Mapping[str, Any]], delivery: Delivery, opened: Envelope
    ) -> tuple[Sequence[Message], JobEvent | None]:
        """The messages after a stage whose branches all ended so; and the news that the saga turns round."""
        results = {branch: one.get("result") for branch, one in settled.items()}
        failures = {branch: one for branch, one in settled.items() if "error" in one}
        if not failures:
            try:
                return self._messages(slips.joined(slip, results), delivery, opened), None
            except SlipTooLarge as error:
                failures = {slip.place[1]: {"error": type(error).__name__, "message": str(error), "undo": True}}
        branch, first = min(failures.items())
        failure = Failure(place_text((slip.place[0], branch)), str(first["error"]), str(first["message"]))
        undo_here = [branch for branch in settled if branch not in failures or failures[branch].get("undo")]
        hops = slips.back(slip, failure, undo_here, results)
        return self._messages(hops, delivery, opened), _turned_news(slip, failure, hops)

    def _messages(self, hops: Sequence[Slip], delivery: Delivery, opened: Envelope) -> list[Message]:
        about = carried(opened.headers)
        return [self._message(hop, delivery.body, about) for hop in hops]

    def _message(self, hop: Slip, body: bytes, about: Mapping[str, Any]) -> Message:
        """What a hop goes on as. Raises SlipTooLarge; one that undoes goes without what does not fit into a frame."""
        message = slips.message_of(self._names, hop, body, about)
        if about and not can_be_sent(message):
            if not hop.undoing:
                raise SlipTooLarge(f"the headers that go along with saga {hop.name} and its slip do not fit together")
            message = slips.message_of(self._names, hop._replace(results={}), body)
        return message

    def _after_undo(
        self, delivery: Delivery, opened: Envelope, slip: Slip, outcome: Outcome, duration: float
    ) -> Course:
        """Whatever became of this undo, the others run. A dead one waits in the dead-letter queue, for itself alone."""
        messages = self._messages(slips.undone(slip), delivery, opened)
        failed: dict[str, Any] | None = None
        if isinstance(outcome, Dead):
            messages.append(self._letter(delivery, opened, slip._replace(alone=True), outcome))
            failed = _failed(outcome, undo=False)
        return Course(outcome, messages, [_step_news(opened, slip, outcome, failed, duration)])

    def _letter(self, delivery: Delivery, opened: Envelope, slip: Slip, outcome: Dead) -> Message:
        """The dead letter of an undo; without the results of its saga, or bare, where it would be too large to send."""
        letter = dead_letter(self._names, delivery, opened, outcome, slip.branch.undo_record or "all")
        for one in (slip, slip._replace(results={})):
            letter.properties.headers |= {SAGA: slips.headers_of(one)[SAGA]}
            if can_be_sent(letter):
                return letter
        return bare_dead_letter(self._names, delivery, opened, outcome)

    async def _persistently(self, delivery: Delivery, opened: Envelope, ask: Any, or_else: Any = None) -> Any:
        """What the database answers (``or_else`` for None), tried while the delivery can be settled; None after."""
        pause = _PAUSE
        while delivery.acks.is_open:
            try:
                answer = await ask()
            except HarelineError as error:
                told = logging.WARNING if pause == _PAUSE else logging.DEBUG
                logger.log(told, "%s %s: its saga waits for the database: %s", *_who(opened), error)
                await asyncio.sleep(pause)
                pause = min(_LONGEST_PAUSE, 2 * pause)
            else:
                return or_else if answer is None else answer
        return None


def _who(opened: Envelope) -> tuple[str, str]:
    return opened.job_type, opened.job_id


def _failed(outcome: Dead | Dropped, *, undo: bool) -> dict[str, Any]:
    if isinstance(outcome, Dropped):
        return {"error": "Cancelled", "message": outcome.cause[:MESSAGE_LIMIT], "undo": undo}
    sound = shown(outcome.error)[:MESSAGE_LIMIT].replace("\0", "").encode(errors="replace").decode()
    return {"error": type(outcome.error).__name__, "message": sound, "undo": undo}


def _text(value: Any) -> str:
    return to_json(value).decode()


# -- news for the saga log ---------------------------------------------------------------------------------------------


def _step_news(
    opened: Envelope, slip: Slip, outcome: Outcome, failed: Mapping[str, Any] | None, duration: float
) -> JobEvent:
    """Short, since each step has one: where nothing else is said, it was done, by the job that its place names."""
    detail: dict[str, Any] = {"step": place_text(slip.place), "type": opened.job_type}
    if slip.undoing:
        detail["undo"] = True
    if REPLACES in opened.headers:  # edited at the dead-letter desk: a job of its own
        detail["job_id"] = opened.job_id
    if isinstance(outcome, Returned) and outcome.result is not None:
        detail["result"] = outcome.result
    error = None
    if failed is not None:
        error = failed["error"]
        detail |= {"status": "dead" if slip.undoing else "failed", "message": failed["message"]}
    if slip.place[0] in {0, len(slip.plan) - 1}:  # the news of its start may have been lost
        detail |= {"itinerary": slips.itinerary_of(slip.plan), "began": slip.began}
    return JobEvent(
        events.SAGA_STEP, slip.id, slip.name, opened.replay, opened.attempt, time.time(), duration, error, detail
    )


def _turned_news(slip: Slip, failure: Failure, hops: Sequence[Slip]) -> JobEvent:
    places = [place for hop in hops for place in (hop.place, *hop.undos)]
    detail = {
        "step": failure.step,
        "message": failure.message,
        "undos": [place_text(place) for place in places],
        "itinerary": slips.itinerary_of(slip.plan),
        "began": slip.began,
    }
    return JobEvent(events.SAGA_TURNED, slip.id, slip.name, 0, 0, time.time(), None, failure.error, detail)
