"""The OpenAPI document of the receiver. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

_PROBLEM: Final = {
    "type": "object",
    "required": ["type", "title", "status", "detail"],
    "properties": {
        "type": {"type": "string"},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "detail": {"type": "string"},
    },
}
_ACCEPTED: Final = {
    "type": "object",
    "required": ["webhook_id", "status"],
    "properties": {"webhook_id": {"type": "string"}, "status": {"const": "accepted"}},
}
_RECORD: Final = {
    "type": "object",
    "required": ["webhook_id", "source", "event", "status", "received_at"],
    "oneOf": [{"required": ["job_id", "job_type"]}, {"required": ["saga_id", "saga"]}],
    "properties": {
        **{
            name: {"type": "string"}
            for name in ("webhook_id", "source", "status", "job_id", "job_type", "saga_id", "saga")
        },
        "event": {"type": ["string", "null"]},
        "received_at": {"type": "string", "format": "date-time"},
    },
}
_STATUS: Final = {"type": "object", "required": ["status"], "properties": {"status": {"type": "string"}}}

_PROBLEMS: Final = {
    400: "Signed, and no JSON; or the request was cut off.",
    401: "Not signed as the source requires, or no token.",
    404: "There is no such source or webhook.",
    408: "The body did not come in time.",
    413: "The body is too long.",
    422: "The delivery id came before, with another body.",
    429: "More than this source may send: nothing was stored, come again after Retry-After.",
    431: "The headers are too long.",
    503: "Nothing was stored: come again after Retry-After.",
}


def document(sources: Sequence[str], version: str) -> dict[str, Any]:
    """What the receiver of these sources takes and answers."""
    source = {"name": "source", "in": "path", "required": True, "schema": {"type": "string", "enum": list(sources)}}
    webhook = {"name": "webhook_id", "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}
    repeat = _answer("Known: it came before. The first webhook_id; or a sender's try-out.", _STATUS)
    repeat["headers"] = {"Idempotency-Replayed": {"schema": {"const": "true"}}}
    receive = {
        "operationId": "receive",
        "summary": "Takes a signed delivery. It is stored when this answers 202.",
        "parameters": [source],
        "requestBody": {"required": True, "content": {"application/json": {"schema": {}}}},
        "responses": {
            "202": _answer("New, and stored.", _ACCEPTED),
            "200": repeat,
            **_problems(400, 401, 404, 408, 413, 422, 429, 431, 503),
        },
    }
    status = {
        "operationId": "status",
        "summary": "Tells what became of a delivery.",
        "parameters": [source, webhook],
        "security": [{"token": []}],
        "responses": {"200": _answer("It is known.", _RECORD), **_problems(401, 404, 431, 503)},
    }
    return {
        "openapi": "3.1.0",
        "info": {"title": "Hareline webhooks", "version": version},
        "paths": {
            "/webhooks/{source}": {"post": receive},
            "/webhooks/{source}/{webhook_id}": {"get": status},
            "/livez": {"get": _probe("live", "Whether the process serves.")},
            "/readyz": {"get": _probe("ready", "Whether the database is there, with its tables.", 503)},
        },
        "components": {"securitySchemes": {"token": {"type": "http", "scheme": "bearer"}}},
    }


def _probe(name: str, summary: str, *statuses: int) -> dict[str, Any]:
    return {
        "operationId": name,
        "summary": summary,
        "responses": {"200": _answer("Yes.", _STATUS), **_problems(*statuses)},
    }


def _answer(description: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {"description": description, "content": {"application/json": {"schema": schema}}}


def _problems(*statuses: int) -> dict[str, Any]:
    content = {"application/problem+json": {"schema": _PROBLEM}}
    return {str(status): {"description": _PROBLEMS[status], "content": content} for status in statuses}
