"""The OpenAPI document says the truth: schemathesis calls the receiver as it allows, and as it does not."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
    unsupported_method,
)

from producers.webhooks.openapi import document
from producers.webhooks.schemes import SCHEMES
from tests.webhooks import TOKEN, in_a_thread, signed

pytestmark = pytest.mark.machine

CHECKS = [
    not_a_server_error,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
    unsupported_method,
]
schema = schemathesis.openapi.from_dict(document(list(SCHEMES), "1"))


@pytest.fixture(scope="module")
def served(sqlite_template: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """One receiver for all cases."""
    path = tmp_path_factory.mktemp("openapi") / "hareline.db"
    path.write_bytes(sqlite_template.read_bytes())
    with in_a_thread(f"sqlite:///{path}") as client:
        yield client


def test_it_serves_the_document_that_is_tested_here(served: Any) -> None:
    answer = served.get("/openapi.json")
    assert (answer.status_code, answer.json()) == (200, document(list(SCHEMES), "1"))


@schema.parametrize()
@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
def test_unsigned_calls_are_answered_as_the_document_says(case: Any, served: Any) -> None:
    case.call_and_validate(base_url=str(served.base_url), checks=CHECKS)


@schema.include(operation_id="receive").parametrize()
@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
def test_signed_calls_are_answered_as_the_document_says(case: Any, served: Any) -> None:
    """Whatever JSON the generator thinks of, signed as the source wants it."""
    source = case.path_parameters.get("source")
    if source not in SCHEMES or case.method != "POST":
        return
    headers, body = signed(source, json.dumps(case.body if isinstance(case.body, dict) else {"id": 1}).encode())
    answer = case.call(base_url=str(served.base_url), headers=headers, data=body)
    case.validate_response(answer, checks=CHECKS)
    assert answer.status_code in {200, 202, 422}


@schema.include(operation_id="status").parametrize()
@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
def test_questions_with_the_token_are_answered_as_the_document_says(case: Any, served: Any) -> None:
    case.call_and_validate(base_url=str(served.base_url), headers={"Authorization": f"Bearer {TOKEN}"}, checks=CHECKS)
