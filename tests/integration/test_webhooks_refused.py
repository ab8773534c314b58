"""What the receiver refuses: forgeries that learn nothing, what is no JSON, and anything at all."""

from __future__ import annotations

import gzip
import json
import time
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from producers.webhooks.schemes import SCHEMES
from store.engine import Database
from tests.databases import opened
from tests.webhooks import in_a_thread, problem, serving, signed, started

pytestmark = pytest.mark.machine

UNSIGNED = {
    "type": "about:blank",
    "title": "Unauthorized",
    "status": 401,
    "detail": "the delivery is not signed as this source requires",
}


@pytest.mark.parametrize("scheme", SCHEMES)
async def test_whatever_is_wrong_with_a_signature_the_answer_is_the_same(sqlite_url: str, scheme: str) -> None:
    async with opened(sqlite_url) as database, serving(database) as receiver:
        headers, body = signed(scheme)
        late, _ = signed(scheme, now=time.time() - 400)
        forged = {name: value[:-2] + "00" for name, value in headers.items()}
        attempts = [({}, body), (forged, body), (headers, body + b" "), (headers, b""), (headers, gzip.compress(body))]
        if scheme in {"standard", "stripe", "slack"}:
            attempts.append((late, body))
        for sent, content in attempts:
            answer = await receiver.post(f"/webhooks/{scheme}", content, sent)
            problem(answer, 401)
            assert answer.json() == UNSIGNED
            assert "www-authenticate" not in answer.headers
        twice = [*headers.items(), *headers.items()]
        problem(await receiver.post(f"/webhooks/{scheme}", body, twice), 401)
        upper = {name.upper(): value for name, value in headers.items()}
        assert (await receiver.post(f"/webhooks/{scheme}", body, upper)).status_code == 202


async def test_only_what_is_signed_is_parsed(database: Database) -> None:
    """Bad JSON is told to the one that signed it, and to nobody else."""
    wrong = [b"Hello, World!", b"", b"{", b'{"a": NaN}', b"[" * 100_000, b"9" * 5000, b"\xff\xfe", gzip.compress(b"{}")]
    wrong.append('{"event": "é"}'.encode("latin-1"))
    async with serving(database) as receiver:
        for body in wrong:
            headers, content = signed(document=body)
            problem(await receiver.post("/webhooks/generic", content, headers), 400)
            problem(await receiver.post("/webhooks/generic", content, {}), 401)
        charset = {"Content-Type": "application/json; charset=iso-8859-1"}
        headers, content = signed(document='{"event": "order.created", "id": 1, "name": "é"}'.encode(), key="utf8")
        headers_ascii, ascii_only = signed(document=b'{"event": "order.created", "id": 1}', key="ascii")
        plain = b'{"event": "order.created", "id": 1}'
        bom_headers, bom = signed(document=b"\xef\xbb\xbf" + plain, key="bom")
        assert "charset" in problem(await receiver.post("/webhooks/generic", content, headers | charset), 400)
        assert (await receiver.post("/webhooks/generic", content, headers)).status_code == 202
        assert (await receiver.post("/webhooks/generic", ascii_only, headers_ascii | charset)).status_code == 202
        assert (await receiver.post("/webhooks/generic", bom, bom_headers)).status_code == 202
    assert (await started(database))[2].body == plain, "a byte order mark is no JSON to the worker"


async def test_methods_and_addresses(sqlite_url: str) -> None:
    async with serving(sqlite_url) as receiver:
        for method in ("GET", "PUT", "DELETE", "PATCH", "OPTIONS"):
            answer = await receiver.client.request(method, "/webhooks/generic")
            problem(answer, 405)
            assert answer.headers["allow"] == "POST"
        assert (await receiver.client.head("/webhooks/generic")).status_code == 405
        problem(await receiver.client.post("/webhooks/unknown"), 404)
        for path in ("/", "/webhooks", "/webhooks/", "/webhooks/generic/", "/nothing", "/webhooks/a/b/c"):
            problem(await receiver.client.post(path), 404)
        problem(await receiver.client.post("/webhooks/generic/x"), 405)


# -- anything at all ---------------------------------------------------------------------------------------------------

wire = st.text(st.characters(min_codepoint=32, max_codepoint=255), max_size=40).map(lambda text: text.strip())
known = st.sampled_from([
    "X-Webhook-Signature", "X-Idempotency-Key", "webhook-id", "webhook-timestamp", "webhook-signature", "Content-Type",
    "X-Hub-Signature-256", "Stripe-Signature", "X-WC-Webhook-Topic", "X-Slack-Request-Timestamp", "Content-Encoding",
])  # fmt: skip
odd = st.sampled_from(["application/json; charset=", 'text/plain; charset="x', "gzip", str(int(time.time())), "v1,"])
json_like = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["id", "type", "event", "event_id", "challenge", "\ud800"]), inner, max_size=4
        )
    ),
    max_leaves=8,
)


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(data=st.data())
def test_nothing_that_is_sent_is_an_error_of_ours(data: st.DataObject, fuzzed: Any) -> None:
    """Signed or not, whatever headers and body: an answer from the table, never a 500."""
    scheme = data.draw(st.sampled_from(list(SCHEMES)))
    body = data.draw(st.binary(max_size=60) | json_like.map(lambda value: json.dumps(value).encode()))
    headers = data.draw(st.lists(st.tuples(known, wire | odd), max_size=4))
    if data.draw(st.booleans()):
        proof, body = signed(scheme, body, key=data.draw(wire) or "k")
        names = {name.lower() for name in proof}
        headers = [pair for pair in headers if pair[0].lower() not in names] + list(proof.items())
    sent = [(name.encode(), value.encode("latin-1")) for name, value in headers]
    answer = fuzzed.post(f"/webhooks/{scheme}", content=body, headers=sent)
    assert answer.status_code in {200, 202, 400, 401, 422}, answer.text


@pytest.fixture
def fuzzed(sqlite_url: str) -> Any:
    """One receiver for all examples."""
    with in_a_thread(sqlite_url) as client:
        yield client
