"""What a program in another language, or an operator, needs to know, as JSON-ready data."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final
from urllib.parse import unquote, urlsplit

from topology import envelope
from topology.contract import HIGHEST_PRIORITY, LOWEST_PRIORITY
from topology.spec import Names

if TYPE_CHECKING:
    from collections.abc import Iterable

    from pydantic import TypeAdapter

    from topology.contract import JobType
    from topology.spec import Spec

_DIALECT: Final = "https://json-schema.org/draft/2020-12/schema"
_BINDING_VERSION: Final = "0.3.0"


def schemas(job_types: Iterable[JobType[Any]]) -> dict[str, Any]:
    """JSON Schema (2020-12) of every payload, by job type: what a consumer accepts."""
    return {
        job_type.name: {"$schema": _DIALECT, **job_type.adapter.json_schema(mode="validation")}
        for job_type in _sorted(job_types)
    }


def definitions(spec: Spec) -> dict[str, Any]:
    """The topology as RabbitMQ's own definitions of one virtual host.

    An operator can import it as it is: ``POST /api/definitions/{vhost}``, or rabbitmqadmin.
    """
    return {
        "exchanges": [
            {
                "name": exchange.name,
                "type": exchange.kind,
                "durable": True,
                "auto_delete": False,
                "internal": False,
                "arguments": dict(exchange.arguments),
            }
            for exchange in spec.exchanges
        ],
        "queues": [
            {
                "name": queue.name,
                "durable": True,
                "auto_delete": False,
                "arguments": dict(queue.arguments),
            }
            for queue in spec.queues
        ],
        "bindings": [
            {
                "source": binding.source,
                "destination": binding.destination,
                "destination_type": binding.to,
                "routing_key": binding.routing_key,
                "arguments": {},
            }
            for binding in spec.bindings
        ],
    }


def asyncapi(
    job_types: Iterable[JobType[Any]],
    namespace: str,
    *,
    title: str = "Hareline jobs",
    version: str = "1.0.0",
    broker_url: str | None = None,
) -> dict[str, Any]:
    """An AsyncAPI 3 document: a channel, a message and a receiving operation for every job type.

    ``broker_url`` adds the server, without its user and password.
    """
    names = Names(namespace)
    types = _sorted(job_types)
    shared: dict[str, Any] = {}
    messages = {job_type.name: _message(job_type, shared) for job_type in types}
    document: dict[str, Any] = {
        "asyncapi": "3.0.0",
        "info": {
            "title": title,
            "version": version,
            "description": (
                f"Publish to exchange '{names.jobs}' with the job type as routing key; the body is the payload."
            ),
        },
        "defaultContentType": envelope.CONTENT_TYPE,
        "channels": {job_type.name: _channel(job_type, names) for job_type in types},
        "operations": {f"process.{job_type.name}": _operation(job_type, names) for job_type in types},
        "components": {"messages": messages, "schemas": shared},
    }
    if broker_url is not None:
        document["servers"] = {"broker": _server(broker_url)}
    return document


def _sorted(job_types: Iterable[JobType[Any]]) -> list[JobType[Any]]:
    return sorted(job_types, key=lambda job_type: job_type.name)


def _server(broker_url: str) -> dict[str, Any]:
    parts = urlsplit(broker_url)
    host = f"{parts.hostname}:{parts.port}" if parts.port else str(parts.hostname)
    vhost = unquote(parts.path[1:]) or "/"
    return {
        "host": host,
        "protocol": parts.scheme,
        "protocolVersion": "0.9.1",
        "description": f"RabbitMQ, virtual host '{vhost}'",
    }


def _channel(job_type: JobType[Any], names: Names) -> dict[str, Any]:
    return {
        "address": job_type.name,
        "messages": {job_type.name: {"$ref": f"#/components/messages/{job_type.name}"}},
        "bindings": {
            "amqp": {
                "is": "routingKey",
                "exchange": {"name": names.jobs, "type": "direct", "durable": True, "autoDelete": False},
                "bindingVersion": _BINDING_VERSION,
            }
        },
    }


def _operation(job_type: JobType[Any], names: Names) -> dict[str, Any]:
    return {
        "action": "receive",
        "channel": {"$ref": f"#/channels/{job_type.name}"},
        "messages": [{"$ref": f"#/channels/{job_type.name}/messages/{job_type.name}"}],
        "description": (
            f"Consumed from queue '{names.queue(job_type.name)}': at most {job_type.retry.attempts} "
            f"attempts of {job_type.timeout:g} s each, then the dead-letter queue '{names.dlq}'."
        ),
        "bindings": {"amqp": {"deliveryMode": envelope.PERSISTENT, "ack": True, "bindingVersion": _BINDING_VERSION}},
    }


def _message(job_type: JobType[Any], shared: dict[str, Any]) -> dict[str, Any]:
    """A message; the definitions that its payload refers to go to ``shared``, under names of their own."""
    template = f"#/components/schemas/{job_type.name}.{{model}}"
    adapter: TypeAdapter[Any] = job_type.adapter
    schema = adapter.json_schema(mode="validation", ref_template=template)
    for name, definition in schema.pop("$defs", {}).items():
        shared[f"{job_type.name}.{name}"] = definition
    message = {
        "name": job_type.name,
        "title": schema.get("title", job_type.name),
        "contentType": envelope.CONTENT_TYPE,
        "payload": schema,
        "headers": {
            "type": "object",
            "properties": {
                envelope.ATTEMPT: {"type": "integer", "minimum": 1, "description": "Which run this is."},
                "traceparent": {"type": "string", "description": "W3C trace context."},
            },
        },
        "bindings": {"amqp": {"messageType": job_type.name, "bindingVersion": _BINDING_VERSION}},
    }
    if job_type.priority:
        message["description"] = f"AMQP priority {LOWEST_PRIORITY} to {HIGHEST_PRIORITY}, higher first."
    return message
