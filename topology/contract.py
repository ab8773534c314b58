"""The contract between a producing and a consuming service: what a job is called, carries, and may cost."""

from __future__ import annotations

import re
import uuid
from dataclasses import dataclass, field
from typing import Any, Final, Generic, Literal, TypeVar, get_args

from pydantic import PydanticUserError, TypeAdapter, ValidationError

from topology.errors import ContractError, PayloadInvalid

P = TypeVar("P")

Record = Literal["all", "failures", "nothing"]

LOWEST_PRIORITY: Final = 0
HIGHEST_PRIORITY: Final = 9
DEFAULT_PRIORITY: Final = 4

_NAME = re.compile(r"[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*")
_LONGEST_NAME = 180  # 255 less the ladder's bits
_RESERVED = {"jobs", "dlx", "dlq", "events", "unroutable", "records", "records.failed"}
_MIGRATING = (".migrating", ".migrating.lock")
_KEYED_IDS = uuid.UUID("6f1d2a0e-6b7c-5d0e-9a53-6c9e8f0b7c11")


@dataclass(frozen=True, slots=True)
class Retry:
    """When a failed job runs again: ``base * factor ** (attempt - 1)`` seconds later, at most ``cap``.

    ``attempts`` counts every run, the first included. ``jitter`` is the share of the delay that is drawn at random
    to either side (0.1: between 90% and 110%). ``unexpected`` says what an exception means that no rule knows.
    """

    attempts: int = 5
    base: float = 1.0
    factor: float = 2.0
    cap: float = 3600.0
    jitter: float = 0.1
    unexpected: Literal["retry", "dead"] = "retry"

    def __post_init__(self) -> None:
        if self.attempts < 1:
            raise ContractError(f"Retry(attempts={self.attempts}): at least 1, the first run, is needed")
        if self.base < 0 or self.cap < 0 or self.factor < 1:
            raise ContractError("Retry: base and cap must not be negative, factor must be at least 1")
        if not 0 <= self.jitter <= 1:
            raise ContractError(f"Retry(jitter={self.jitter}): a share between 0 and 1 is needed")
        if self.unexpected not in {"retry", "dead"}:
            raise ContractError(f"Retry(unexpected={self.unexpected!r}): 'retry' or 'dead'")


@dataclass(frozen=True)
class JobType(Generic[P]):
    """One kind of job. A producer needs this alone, no handler code.

    ``payload_model`` is a pydantic model, or any type that pydantic can validate. ``timeout`` is seconds for one
    run. ``priority`` gives the type a queue with levels 0 to 9, higher first. ``delivery_limit`` is how often a
    job may come back from a worker that died under it before it goes to the dead-letter queue. ``record`` is what
    the job log learns of: "all", "failures" (only of jobs that failed at least once, or were cancelled) or "nothing".
    """

    name: str
    payload_model: type[P]
    retry: Retry = field(default_factory=Retry)
    timeout: float = 60.0
    priority: bool = False
    group: str | None = None
    delivery_limit: int = 5
    record: Record = "all"
    adapter: TypeAdapter[P] = field(init=False, repr=False, compare=False)
    """Validates and serialises the payload."""

    def __post_init__(self) -> None:
        expect_name("JobType", self.name)
        if self.name in _RESERVED or self.name.startswith("delay.") or self.name.endswith(_MIGRATING):
            raise ContractError(f"JobType name '{self.name}' is taken by Hareline's own queues: choose another")
        if self.timeout <= 0:
            raise ContractError(f"{self.name}: timeout must be above zero seconds")
        if self.delivery_limit < 1:
            raise ContractError(f"{self.name}: delivery_limit must be at least 1")
        if self.record not in get_args(Record):
            raise ContractError(f"{self.name}: record is {self.record!r}: 'all', 'failures' or 'nothing'")
        object.__setattr__(self, "adapter", adapter_of(self.name, self.payload_model))

    def __hash__(self) -> int:
        return hash(self.name)

    def encode(self, payload: P | dict[str, Any]) -> bytes:
        """The payload as JSON that a consumer is sure to accept. Raises PayloadInvalid."""
        return encoded(self.name, self.adapter, self.payload_model, payload)

    def decode(self, body: bytes) -> P:
        """The payload in a message's body. Raises pydantic's ValidationError."""
        payload: P = self.adapter.validator.validate_json(body)
        return payload

    def id_for_key(self, key: str) -> str:
        """The job id that belongs to ``key``: the same everywhere and always (UUIDv5)."""
        return str(uuid.uuid5(_KEYED_IDS, f"{self.name}\0{key}"))


def expect_name(what: str, name: str) -> None:
    """Raises ContractError for a name that cannot be part of a routing key."""
    if not isinstance(name, str) or _NAME.fullmatch(name) is None or len(name) > _LONGEST_NAME:
        raise ContractError(
            f"{what} name '{name}': words of letters, digits, - and _, joined by dots, up to {_LONGEST_NAME} characters"
        )


def encoded(name: str, adapter: TypeAdapter[P], model: type[P], payload: P | dict[str, Any]) -> bytes:
    """``payload`` as JSON that ``adapter`` is sure to accept; ``name`` is whose it is. Raises PayloadInvalid."""
    try:
        if isinstance(payload, dict) and model is not dict:
            body = adapter.dump_json(adapter.validate_python(payload))
        else:
            body = adapter.dump_json(payload, warnings="error")  # type: ignore[arg-type]
        # An instance may have been changed since its validation, and JSON has no NaN: what leaves is what must fit.
        adapter.validator.validate_json(body)
    except ValidationError as error:
        raise PayloadInvalid(f"{name}: {first_error(error)}") from error
    except Exception as error:  # pydantic raises PydanticSerializationError, but a model's own code may raise any
        raise PayloadInvalid(f"{name}: the payload cannot be written as JSON: {error}") from error
    return body


def adapter_of(name: str, model: type[P]) -> TypeAdapter[P]:
    """What validates and serialises ``model``. Raises ContractError that names whose it is."""
    try:
        return TypeAdapter(model)
    except PydanticUserError as error:
        raise ContractError(f"{name}: {model!r} is no payload model: {error.message}") from error


def first_error(error: ValidationError) -> str:
    """The first of a validation's errors, and how many more there are."""
    details = error.errors(include_url=False, include_context=False, include_input=False)
    first = details[0]
    place = ".".join(str(part) for part in first["loc"]) or "payload"
    more = f" (and {len(details) - 1} more)" if len(details) > 1 else ""
    return f"{place}: {first['msg']}{more}"
