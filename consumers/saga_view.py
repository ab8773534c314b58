"""What a saga's handler sees of its saga, and what it leaves behind for the steps after it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from pydantic_core import PydanticSerializationError, from_json, to_json

from consumers.outcome import Permanent
from topology.slip import Failure, Slip, job_id

LARGEST_RESULT: Final = 8 * 1024
"""Bytes of one step's result as JSON: it travels in a header of every message after it."""


class Record(dict[str, Any]):
    """A JSON object whose fields are attributes too, like those of the model that it was written from."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(f"there is no '{name}' in this result, only: {', '.join(self) or 'nothing'}") from None


@dataclass(frozen=True, slots=True)
class SagaView:
    """``job.saga``: the saga that the job belongs to."""

    _slip: Slip

    @property
    def id(self) -> str:
        """The saga's id, the same in all its steps."""
        return self._slip.id

    @property
    def name(self) -> str:
        """The saga's name."""
        return self._slip.name

    @property
    def step(self) -> str:
        """The name of the step's job type; of an undo, that of the step which it undoes."""
        return self._slip.branch.do

    @property
    def step_key(self) -> str:
        """``job.idempotency_key`` of the step; of an undo, that of the step which it undoes.

        So an undo can name what its step asked of another service, even if nobody knows whether it was done.
        """
        return job_id(self._slip.id, self._slip.place, undoing=False)

    @property
    def undoing(self) -> bool:
        """Whether this job undoes its step."""
        return self._slip.undoing

    @property
    def result(self) -> Any:
        """For an undo, what its step returned: a `Record` for a model. None where it returned nothing.

        None also where nobody knows whether the step was done (it timed out, or its workers died): look, then undo.
        """
        return _readable(self._slip.result) if self._slip.undoing else None

    @property
    def results(self) -> Mapping[str, Any]:
        """What earlier steps returned, by the names of their job types; without those that returned nothing."""
        return {name: _readable(value) for name, value in self._slip.results.items()}

    @property
    def failure(self) -> Failure | None:
        """For an undo, why the saga is undone."""
        return self._slip.failure

    @property
    def deadline(self) -> float | None:
        """Unix seconds until which all steps must be done, or None."""
        return self._slip.deadline


def _readable(value: Any) -> Any:
    if isinstance(value, dict):
        return Record({name: _readable(item) for name, item in value.items()})
    return [_readable(item) for item in value] if isinstance(value, list) else value


def as_json(result: Any) -> str:
    """What a step returned, as JSON. Raises Permanent where it is none, or too large."""
    try:
        text = to_json(result, inf_nan_mode="strings").decode()
    except (PydanticSerializationError, UnicodeError, ValueError) as error:
        raise Permanent(f"a saga's step must return a model, or other JSON data: {error}") from error
    if len(text) > LARGEST_RESULT // 4 and len(text.encode()) > LARGEST_RESULT:
        raise Permanent(
            f"a saga's step returned {len(text.encode()):,} bytes, the limit is {LARGEST_RESULT:,}: "
            "store the data and return a key"
        )
    return text


def plain(result: Any) -> Any:
    """What a step returned, as JSON data. Raises Permanent where it is none, or too large."""
    return None if result is None else from_json(as_json(result))


@dataclass(slots=True)
class Kept:
    """What one run of a job has done in its inbox. ``result`` is JSON text, set by ``job.keep()``."""

    job_id: str
    job_type: str
    in_saga: bool = False
    is_step: bool = False
    used: set[str] = field(default_factory=set)
    result: str | None = None
    committed: bool = False

    def keep(self, result: Any) -> None:
        """The next transaction to commit stores it. Raises Permanent where it is no JSON, or too large."""
        self.result = as_json(result)

    @property
    def to_store(self) -> str | None:
        """The result that a transaction stores as its last statement."""
        return self.result if self.in_saga else None

    @property
    def is_forgetful(self) -> bool:
        """Whether a transaction has committed with no result in it."""
        return self.committed and self.result is None
