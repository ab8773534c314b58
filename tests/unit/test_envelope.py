"""The message: what a fresh job carries, what a copy keeps, and what a delivery is understood as."""

from __future__ import annotations

import uuid
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.sdk.trace import TracerProvider
from pika.spec import BasicProperties

from topology import envelope, ladder
from topology.envelope import UNDECODABLE, Malformed, copy_of, fresh_headers, new_id, new_job, notice, open_envelope
from topology.spec import Names

NAMES = Names("shop")


def test_a_fresh_job_is_plain_standard_amqp() -> None:
    """Persistent JSON under the job's id and type, on the jobs exchange with the type as key; no header at all."""
    message = new_job(NAMES, "email.send", b"{}", job_id="id-1")
    assert (message.exchange, message.routing_key, message.mandatory) == ("shop.jobs", "email.send", True)
    properties = message.properties
    assert (properties.content_type, properties.delivery_mode) == ("application/json", 2)
    assert (properties.message_id, properties.type, properties.correlation_id) == ("id-1", "email.send", "id-1")
    assert (properties.headers, properties.priority, properties.expiration) == (None, None, None)


def test_ids_are_version_7_and_sort_by_time() -> None:
    """Ids that are made one after the other sort in that order, so that a listing by id is one by age."""
    ids = [new_id() for _ in range(1000)]
    assert ids == sorted(ids)
    assert len(set(ids)) == 1000
    assert {uuid.UUID(job_id).version for job_id in ids} == {7}


@given(delay=st.floats(0.001, ladder.MAX_DELAY))
def test_a_delayed_job_enters_the_ladder_and_leaves_for_its_type(delay: float) -> None:
    """The exchange is a level of the ladder, and the key ends in the job type."""
    message = new_job(NAMES, "email.send", b"{}", job_id="i", delay=delay)
    assert message.exchange.startswith("shop.delay.")
    assert ladder.destination_of(message.routing_key) == "email.send"
    assert len(message.routing_key) <= 255


def test_the_trace_of_the_current_span_travels_along() -> None:
    """Within a span there is a W3C traceparent; outside of one there is nothing."""
    assert envelope.trace_headers() is None
    with TracerProvider().get_tracer("test").start_as_current_span("order") as span:
        headers = envelope.trace_headers()
    assert headers is not None
    assert f"{span.get_span_context().trace_id:032x}" in headers["traceparent"]


# -- copies ------------------------------------------------------------------------------------------------------------


def test_a_copy_sheds_what_the_broker_wrote_and_keeps_the_rest() -> None:
    """Headers of dead-lettering would have the copy dropped as a cycle; the sender's own travel on."""
    headers = {
        "x-death": [{}],
        "x-first-death-queue": "q",
        "x-last-death-reason": "r",
        "x-delivery-count": 3,
        "mine": 1,
    }
    properties = BasicProperties(
        message_id="i", type="t",
        priority=7, correlation_id="c", timestamp=5, reply_to="r", app_id="a", headers=headers,
        expiration="60000", user_id="guest", delivery_mode=1,
    )  # fmt: skip
    changes = {"hareline-attempt": 2, "mine": None, "absent": None}
    copied = copy_of(properties, b"body", exchange="e", routing_key="k", job_id=None, changes=changes)
    assert copied.properties.headers == {"hareline-attempt": 2}
    kept = copied.properties
    assert (kept.message_id, kept.type, kept.priority, kept.correlation_id, kept.timestamp) == ("i", "t", 7, "c", 5)
    assert (kept.reply_to, kept.app_id, copied.body) == ("r", "a", b"body")
    # An expiry would drop a job in silence, a foreign user id would have the broker refuse it.
    assert (kept.expiration, kept.user_id, kept.delivery_mode) == (None, None, 2)


def test_a_copy_of_a_message_without_an_id_takes_the_one_it_is_given() -> None:
    """So that all copies of a message that was typed by hand are one job; without any id it gets a new one."""
    bare = BasicProperties()
    assert copy_of(bare, b"", exchange="e", routing_key="k", job_id="j", changes={}).properties.message_id == "j"
    fresh = copy_of(bare, b"", exchange="e", routing_key="k", job_id=None, changes={}).properties
    assert uuid.UUID(fresh.message_id).version == 7
    assert fresh.headers is None


def test_changes_do_not_touch_the_original_headers() -> None:
    """A copy is a copy: the delivery's own headers stay as they came."""
    headers = {"a": 1, "x-death": []}
    assert fresh_headers(headers, {"a": 2}) == {"a": 2}
    assert headers == {"a": 1, "x-death": []}
    assert fresh_headers(None, {}) == {}


def test_a_notice_may_get_lost_without_an_error() -> None:
    """Nobody may listen to events: they are not mandatory. Where a recorder's queue takes them, it keeps them."""
    message = notice(NAMES, "job.done", b"{}")
    assert (message.exchange, message.mandatory, message.properties.delivery_mode) == ("shop.events", False, 2)


# -- deliveries --------------------------------------------------------------------------------------------------------


def test_a_message_with_nothing_but_a_body_is_a_job_of_its_queue() -> None:
    """What was typed into the management UI, or comes from another language, runs."""
    opened = open_envelope(BasicProperties(), b"{}", "email.send")
    assert (opened.job_type, opened.attempt, opened.deliveries, opened.priority) == ("email.send", 1, 0, None)
    assert uuid.UUID(opened.job_id).version == 7
    assert opened.correlation_id == opened.job_id


def test_what_a_message_says_of_itself_is_taken() -> None:
    """Id, type, correlation, attempt and the two counts of deliveries: ours and the broker's."""
    headers = {"hareline-attempt": 3, "hareline-deliveries": 2, "x-delivery-count": 4}
    properties = BasicProperties(message_id="i", type="other", correlation_id="c", priority=9, headers=headers)
    opened = open_envelope(properties, b"b", "email.send")
    assert (opened.job_id, opened.job_type, opened.correlation_id) == ("i", "other", "c")
    assert (opened.attempt, opened.deliveries, opened.priority, opened.body) == (3, 6, 9, b"b")


@pytest.mark.parametrize(
    ("properties", "named"),
    [
        ({"headers": {"hareline-attempt": "2"}}, "hareline-attempt"),
        ({"headers": {"hareline-attempt": 0}}, "attempts count from 1"),
        ({"headers": {"hareline-attempt": True}}, "whole number"),
        ({"headers": {"hareline-attempt": -1}}, "hareline-attempt"),
        ({"headers": {"hareline-deliveries": 2**31}}, "hareline-deliveries"),
        ({"headers": {"x-delivery-count": [1]}}, "x-delivery-count"),
        ({"headers": {UNDECODABLE: "not UTF-8: type"}}, "cannot be decoded: not UTF-8: type"),
        ({"content_encoding": "gzip"}, "gzip"),
    ],
    ids=str,
)
def test_values_that_cannot_be_are_named(properties: dict[str, Any], named: str) -> None:
    """Malformed says which header, and what it holds; the worker puts that into the dead letter."""
    with pytest.raises(Malformed, match=named):
        open_envelope(BasicProperties(**properties), b"", "t")


@pytest.mark.parametrize("encoding", ["utf-8", "UTF-8", "identity", ""])
def test_encodings_that_change_nothing_are_fine(encoding: str) -> None:
    """PHP and Node clients like to say that JSON is UTF-8."""
    assert open_envelope(BasicProperties(content_encoding=encoding), b"{}", "t").attempt == 1
