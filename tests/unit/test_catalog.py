"""The documents for programs in other languages and for operators."""

from __future__ import annotations

import json
from datetime import datetime
from typing import Any

from pydantic import BaseModel

from topology import catalog
from topology.capabilities import Capabilities
from topology.contract import JobType
from topology.spec import derive


class Line(BaseModel):
    sku: str
    count: int = 1


class Order(BaseModel):
    id: int
    placed: datetime
    lines: list[Line]
    next: Order | None = None


ORDER = JobType("order.place", Order, priority=True)
PLAIN = JobType("plain", dict[str, int])


def references(document: Any) -> list[str]:
    """Every ``$ref`` in a document."""
    if isinstance(document, dict):
        own = [document["$ref"]] if isinstance(document.get("$ref"), str) else []
        return own + [found for value in document.values() for found in references(value)]
    if isinstance(document, list):
        return [found for value in document for found in references(value)]
    return []


def resolve(document: Any, reference: str) -> Any:
    """What a local reference points at. Raises KeyError if it points nowhere."""
    assert reference.startswith("#/")
    for word in reference[2:].split("/"):
        document = document[word]
    return document


def test_every_payload_has_a_schema() -> None:
    """With its references inside of it, in a named dialect."""
    documents = catalog.schemas([PLAIN, ORDER])
    assert list(documents) == ["order.place", "plain"]
    for document in documents.values():
        assert document["$schema"].endswith("2020-12/schema")
        for reference in references(document):
            resolve(document, reference)


def test_asyncapi_describes_every_job_type() -> None:
    """A channel with the routing key as its address, a receiving operation, a message with a schema."""
    document = catalog.asyncapi([ORDER, PLAIN], "shop", broker_url="amqp://me:secret@host:5673/orders")
    assert document["asyncapi"] == "3.0.0"
    assert document["channels"]["order.place"]["address"] == "order.place"
    assert document["channels"]["order.place"]["bindings"]["amqp"]["exchange"]["name"] == "shop.jobs"
    assert document["operations"]["process.order.place"]["action"] == "receive"
    assert set(document["components"]["messages"]) == {"order.place", "plain"}
    assert document["servers"]["broker"]["host"] == "host:5673"
    for reference in references(document):
        resolve(document, reference)


def test_asyncapi_keeps_secrets_and_equal_names_apart() -> None:
    """No password in a document that is shared, and two payloads may both have a model called Line."""

    class Elsewhere(BaseModel):
        line: Line

    document = catalog.asyncapi([ORDER, JobType("other", Elsewhere)], "shop", broker_url="amqp://me:secret@host/")
    assert "secret" not in json.dumps(document)
    assert {"order.place.Line", "other.Line"} <= set(document["components"]["schemas"])


def test_definitions_hold_the_whole_topology() -> None:
    """Every exchange, queue and binding, in the broker's own words."""
    spec = derive([ORDER, PLAIN], Capabilities((4, 3)), "shop")
    document = json.loads(json.dumps(catalog.definitions(spec)))
    assert len(document["exchanges"]) == len(spec.exchanges)
    assert len(document["queues"]) == len(spec.queues)
    assert len(document["bindings"]) == len(spec.bindings)
    assert all(queue["durable"] for queue in document["queues"])
