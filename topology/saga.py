"""The contract of a saga: its steps in order, and what undoes each."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Final, Generic, TypeVar

from pydantic import TypeAdapter, ValidationError

from topology.contract import DEFAULT_PRIORITY, JobType, adapter_of, encoded, expect_name, first_error
from topology.errors import ContractError, PayloadInvalid
from topology.slip import Branch, Slip

P = TypeVar("P")

_KEYED_IDS: Final = uuid.UUID("c1c9a7d2-5c58-5e0a-9d47-2f6f5a1e8b33")


@dataclass(frozen=True, slots=True)
class Step:
    """One step: the job type that does it and, where it can be undone, the job type that undoes it.

    Both get the saga's payload. What the step's handler returns is kept for its undo and for later steps.
    """

    job_type: JobType[Any]
    undo: JobType[Any] | None = None


class Parallel:
    """Steps that run at the same time; what follows waits for all of them.

    If one fails for good the others still run to their end, and then all that was done is undone. Where they meet is
    a row in the database, so workers of these steps need one.
    """

    __slots__ = ("steps",)

    def __init__(self, *steps: Step) -> None:
        if len(steps) < 2:  # noqa: PLR2004 - one alone is a plain step
            raise ContractError("Parallel needs two steps or more")
        self.steps = steps

    def __repr__(self) -> str:
        return f"Parallel({', '.join(map(repr, self.steps))})"


@dataclass(frozen=True, init=False)
class Saga(Generic[P]):
    """Steps that are all done, or undone: ``Saga("order.fulfil", Step(reserve, undo=release), ..., payload=Order)``.

    Every step and every undo is an ordinary job type with its own queue and workers. ``deadline`` is seconds for all
    steps together: one that would run later fails instead, and what was done is undone. Undoing has no deadline.
    """

    name: str
    stages: tuple[tuple[Step, ...], ...]
    payload_model: type[P]
    deadline: float | None
    adapter: TypeAdapter[P] = field(repr=False, compare=False)

    def __init__(self, name: str, *steps: Step | Parallel, payload: type[P], deadline: float | None = None) -> None:
        expect_name("Saga", name)
        if not steps:
            raise ContractError(f"Saga {name} has no steps")
        if deadline is not None and not deadline > 0:
            raise ContractError(f"Saga {name}: deadline is {deadline}: seconds above zero are needed")
        adapter = adapter_of(f"Saga {name}", payload)
        stages = tuple(step.steps if isinstance(step, Parallel) else (step,) for step in steps)
        done = [step.job_type.name for stage in stages for step in stage]
        twice = {one for one in done if done.count(one) > 1}
        if twice:
            raise ContractError(f"Saga {name}: {', '.join(sorted(twice))} is two steps; results go by the job type")
        for attribute, value in (
            ("name", name), ("stages", stages), ("payload_model", payload), ("deadline", deadline), ("adapter", adapter)
        ):  # fmt: skip
            object.__setattr__(self, attribute, value)

    def __hash__(self) -> int:
        return hash(self.name)

    @property
    def steps(self) -> Iterator[Step]:
        """All steps, those that run in parallel one after the other."""
        return (step for stage in self.stages for step in stage)

    @property
    def job_types(self) -> tuple[JobType[Any], ...]:
        """The job types of all steps and undos, each once."""
        all_of_them = (t for step in self.steps for t in (step.job_type, step.undo) if t is not None)
        return tuple({job_type.name: job_type for job_type in all_of_them}.values())

    @property
    def undos(self) -> tuple[JobType[Any], ...]:
        """The job types that undo."""
        return tuple({step.undo.name: step.undo for step in self.steps if step.undo is not None}.values())

    def encode(self, payload: P | dict[str, Any]) -> bytes:
        """The payload as JSON that every step and undo is sure to accept. Raises PayloadInvalid."""
        body = encoded(self.name, self.adapter, self.payload_model, payload)
        for job_type in self.job_types:
            try:
                job_type.decode(body)
            except Exception as error:
                raise PayloadInvalid(
                    f"{self.name}: {job_type.name} does not take this payload: "
                    f"{first_error(error) if isinstance(error, ValidationError) else error}"
                ) from error
        return body

    def slip(self, saga_id: str, now: float) -> Slip:
        """The routing slip of a saga that starts ``now``, in Unix seconds."""
        plan = tuple(tuple(_branch(step) for step in stage) for stage in self.stages)
        return Slip(
            saga_id, self.name, plan, began=now, deadline=None if self.deadline is None else now + self.deadline
        )

    def id_for_key(self, key: str) -> str:
        """The saga id that belongs to ``key``: the same everywhere and always (UUIDv5)."""
        return str(uuid.uuid5(_KEYED_IDS, f"{self.name}\0{key}"))


def _branch(step: Step) -> Branch:
    do, undo = step.job_type, step.undo
    return Branch(
        do.name,
        None if undo is None else undo.name,
        DEFAULT_PRIORITY if do.priority else None,
        DEFAULT_PRIORITY if undo is not None and undo.priority else None,
        None if do.record == "all" else do.record,
        None if undo is None or undo.record == "all" else undo.record,
    )
