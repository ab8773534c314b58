"""The contract of a job type: what it may be called, and that what leaves is what a consumer accepts."""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, Field, ValidationError, field_serializer
from typing_extensions import TypedDict

from topology.contract import JobType, Retry
from topology.errors import ContractError, PayloadInvalid


class Email(BaseModel):
    to: str
    size: int = Field(ge=0)


class Loose(BaseModel):
    anything: Any


class Ratio(BaseModel):
    value: float


class Stubborn(BaseModel):
    n: int

    @field_serializer("n")
    def write(self, n: int) -> str:
        raise RuntimeError(f"no {n} today")


class Row(TypedDict):
    n: int


@dataclass
class Point:
    x: int
    y: int


EMAIL = JobType("email.send", Email)


@given(to=st.text().filter(lambda text: text.isprintable()), size=st.integers(0, 2**60))
def test_what_is_encoded_is_decoded_as_the_same(to: str, size: int) -> None:
    """A model, or the dict of it, arrives as an equal model."""
    email = Email(to=to, size=size)
    assert EMAIL.decode(EMAIL.encode(email)) == email
    assert EMAIL.encode({"to": to, "size": size}) == EMAIL.encode(email)


@pytest.mark.parametrize(
    ("model", "payload"),
    [
        (Point, Point(1, 2)),
        (Row, {"n": 1}),
        (dict, {"a": [1, None]}),
        (list[Email], [Email(to="a", size=1)]),
        (int, 5),
        (datetime, datetime(2030, 1, 1, tzinfo=UTC)),
    ],
    ids=["dataclass", "TypedDict", "dict", "list of models", "int", "datetime"],
)
def test_a_payload_may_be_of_any_type_that_pydantic_knows(model: Any, payload: Any) -> None:
    """Models are the usual case, not the only one."""
    job_type = JobType("t", model)
    assert job_type.decode(job_type.encode(payload)) == payload


def looped() -> dict[str, Any]:
    loop: dict[str, Any] = {}
    loop["self"] = loop
    return loop


@pytest.mark.parametrize(
    ("model", "payload"),
    [
        (Email, {"to": "a"}),
        (Email, {"to": "a", "size": -1}),
        (Email, Email.model_construct(to="a", size=-1)),
        (Email, Email.model_construct(to=3, size="x")),
        (Email, Email.model_construct()),
        (Email, [1]),
        (Email, None),
        (Email, "text"),
        (Loose, Loose(anything=object())),
        (Loose, Loose(anything="\ud800")),
        (Loose, Loose(anything=b"\xff")),
        (Loose, {"anything": {1, object()}}),
        (dict, looped()),
        (Ratio, Ratio(value=float("nan"))),
        (Stubborn, Stubborn(n=1)),
    ],
    ids=lambda value: repr(value)[:40],
)
def test_what_no_consumer_would_accept_does_not_leave(model: Any, payload: Any) -> None:
    """Wrong shape, unvalidated or changed instances, what JSON cannot say, a serializer that raises: PayloadInvalid."""
    with pytest.raises(PayloadInvalid, match=r"^some\.job: "):
        JobType("some.job", model).encode(payload)


def test_the_error_names_the_field_and_counts_the_others() -> None:
    """One line for the log: where, what, and how many more."""
    with pytest.raises(PayloadInvalid, match=r"email\.send: to: Field required \(and 1 more\)"):
        EMAIL.encode({})


def test_decoding_raises_what_pydantic_says() -> None:
    """Not JSON, or not this shape: the worker turns it into a dead letter."""
    for body in (b"", b"{", b"[]", b'{"to": 1, "size": 2}', b"\xff"):
        with pytest.raises(ValidationError):
            EMAIL.decode(body)


def test_the_same_key_gives_the_same_id_everywhere_and_another_type_another() -> None:
    """UUIDv5 of type and key; fixed for ever, since two services must agree on it."""
    assert EMAIL.id_for_key("welcome-42") == str(
        uuid.uuid5(uuid.UUID("6f1d2a0e-6b7c-5d0e-9a53-6c9e8f0b7c11"), "email.send\0welcome-42")
    )
    assert EMAIL.id_for_key("a") != JobType("email.sent", Email).id_for_key("a")
    assert EMAIL.id_for_key("a") != EMAIL.id_for_key("b")


@pytest.mark.parametrize(
    "name",
    ["", ".", "a.", ".a", "a..b", "a b", "é", "a#", "a.*", "a/b", "x" * 181, "jobs", "dlq", "dlx", "events",
     "unroutable", "records", "records.failed", "delay.5", "a.migrating", "a.migrating.lock", "a\n"],
)  # fmt: skip
def test_names_that_could_not_be_routed_are_refused(name: str) -> None:
    """A name is a routing key and a part of a queue's: no wildcards, no empty words, none of Hareline's own."""
    with pytest.raises(ContractError, match="JobType name"):
        JobType(name, Email)


@pytest.mark.parametrize("name", ["a", "email.send", "A-b_c.9", "x" * 180, "jobs.x", "delayed"])
def test_names_that_are_fine(name: str) -> None:
    """Words of letters, digits, - and _, joined by dots."""
    assert JobType(name, Email).name == name


@pytest.mark.parametrize("options", [{"timeout": 0}, {"timeout": -1}, {"delivery_limit": 0}], ids=str)
def test_a_job_type_that_could_never_run_is_refused(options: dict[str, Any]) -> None:
    """The mistake is named where it is made, not when the first job fails."""
    with pytest.raises(ContractError):
        JobType("t", Email, **options)


@pytest.mark.parametrize(
    "options",
    [{"attempts": 0}, {"base": -1}, {"cap": -1}, {"factor": 0.5}, {"jitter": 1.5}, {"jitter": -0.1},
     {"unexpected": "ignore"}],
    ids=str,
)  # fmt: skip
def test_a_retry_policy_that_makes_no_sense_is_refused(options: dict[str, Any]) -> None:
    """As above."""
    with pytest.raises(ContractError):
        Retry(**options)


def test_a_number_that_json_does_not_have_is_refused() -> None:
    """NaN would leave as null, which no consumer accepts; so it does not leave, as a dict or as an instance."""

    class Reading(BaseModel):
        value: float

    reading = JobType("sensor.reading", Reading)
    for payload in ({"value": float("nan")}, Reading(value=float("inf"))):
        with pytest.raises(PayloadInvalid, match="value"):
            reading.encode(payload)


def test_a_model_that_pydantic_cannot_use_is_refused_at_declaration() -> None:
    """Not at the first enqueue, in production."""

    class Opaque:
        pass

    with pytest.raises(ContractError, match="is no payload model"):
        JobType("opaque", Opaque)
