"""Webhooks over real HTTP: what is accepted is stored once, and what a forger sends learns nothing."""

from __future__ import annotations

import asyncio
import gzip
import json
import logging
import time
from collections import Counter
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from starlette.applications import Starlette
from starlette.routing import Mount

from hareline import WebhookReceiver, WebhookSource
from producers.webhooks.schemes import SCHEMES
from store.engine import Database
from tests.databases import opened
from tests.faults.proxy import Proxy
from tests.lab import until
from tests.webhooks import (
    NOWHERE,
    SECRET,
    SOURCES,
    STANDARD,
    TOKEN,
    created,
    in_a_thread,
    listening,
    other,
    serving,
    signed,
    started,
)  # fmt: skip

pytestmark = pytest.mark.machine

UNSIGNED = {
    "type": "about:blank",
    "title": "Unauthorized",
    "status": 401,
    "detail": "the delivery is not signed as this source requires",
}


def problem(answer: Any, status: int) -> str:
    """Checks that it is one, and returns what it says."""
    assert (answer.status_code, answer.headers["content-type"]) == (status, "application/problem+json")
    assert answer.json()["status"] == status
    detail: str = answer.json()["detail"]
    return detail


# -- accepted ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", SCHEMES)
async def test_a_signed_delivery_is_stored_and_a_repeat_is_known(sqlite_url: str, scheme: str) -> None:
    async with opened(sqlite_url) as database, serving(database) as receiver:
        first = await receiver.deliver(scheme)
        assert first.status_code == 202
        assert first.json() == {"webhook_id": first.json()["webhook_id"], "status": "accepted"}
        again = await receiver.deliver(scheme)
        assert (again.status_code, again.headers["Idempotency-Replayed"]) == (200, "true")
        assert again.json() == first.json()
        assert "Idempotency-Replayed" not in first.headers
        (row,) = await started(database)
        assert (row.job_type, row.origin, row.correlation_id) == (
            "order.created",
            "webhook",
            first.json()["webhook_id"],
        )
        assert json.loads(row.body)["id"] == 7
        assert row.headers == {
            "hareline-webhook-id": first.json()["webhook_id"],
            "hareline-webhook-source": scheme,
            "hareline-webhook-event": "order.created",
        }


async def test_the_same_key_with_another_body_is_a_conflict(database: Database) -> None:
    async with serving(database) as receiver:
        assert (await receiver.deliver(document={"id": 1})).status_code == 202
        assert "another body" in problem(await receiver.deliver(document={"id": 2}), 422)
        reordered = b'{"event":"order.created", "id":1}'
        problem(await receiver.deliver(document=reordered), 422)
        assert len(await started(database)) == 1


async def test_two_hundred_deliveries_of_one_key_start_one_job(database: Database) -> None:
    async with serving(database) as receiver:
        answers = await asyncio.gather(*(receiver.deliver() for _ in range(200)))
        assert Counter(answer.status_code for answer in answers) == {202: 1, 200: 199}
        assert len({answer.json()["webhook_id"] for answer in answers}) == 1
        assert len(await started(database)) == 1


async def test_two_receivers_on_one_database_start_one_job(database_url: str) -> None:
    async with serving(database_url) as one, serving(database_url) as two, opened(database_url) as database:
        answers = await asyncio.gather(*(receiver.deliver() for receiver in (one, two) for _ in range(50)))
        assert Counter(answer.status_code for answer in answers) == {202: 1, 200: 99}
        assert len(await started(database)) == 1


async def test_events_choose_the_job_type_and_the_rest_is_caught(database: Database) -> None:
    sources = [
        WebhookSource("generic", secrets=[SECRET], events={"order.created": created}, default=other),
        WebhookSource("github", scheme="github", secrets=[SECRET]),
    ]
    async with serving(database, sources) as receiver:
        for number, event in enumerate(("order.created", "order.gone", "x" * 300, "nul\x00")):
            assert (await receiver.deliver(key=str(number), event=event)).status_code == 202
        body = b'{"zen": "Keep it \\u0000 simple", "n": 1.10, "big": 1e999}'
        caught = await receiver.deliver("github", body, event="ping")
    rows = await started(database)
    assert [row.job_type for row in rows] == ["order.created", *["order.other"] * 3, "webhook.received"]
    assert [row.priority for row in rows] == [None, 4, 4, 4, None]
    assert b'"body": ' + body in rows[4].body, "byte for byte"
    assert json.loads(rows[4].body)["webhook_id"] == caught.json()["webhook_id"]
    assert (json.loads(rows[4].body)["source"], json.loads(rows[4].body)["event"]) == ("github", "ping")


async def test_a_delivery_without_an_id_is_always_new(database: Database) -> None:
    headers, body = signed()
    del headers["X-Idempotency-Key"]
    async with serving(database) as receiver:
        answers = [await receiver.post("/webhooks/generic", body, headers) for _ in range(2)]
    assert [answer.status_code for answer in answers] == [202, 202]
    assert len(await started(database)) == 2


async def test_ids_of_any_length_and_letters_are_keys(database: Database) -> None:
    async with serving(database) as receiver:
        for key in ("é" * 50, "x" * 3000, "a'b\"c", "%s %(x)s"):
            headers, body = signed(key=key)
            wire = {name: value.encode("latin-1") for name, value in headers.items()}
            answers = [await receiver.post("/webhooks/generic", body, wire) for _ in range(2)]
            assert [answer.status_code for answer in answers] == [202, 200], key


async def test_a_ping_and_a_challenge_are_answered_and_start_nothing(sqlite_url: str) -> None:
    async with opened(sqlite_url) as database, serving(database) as receiver:
        form = {"Content-Type": "application/x-www-form-urlencoded"}
        assert (await receiver.post("/webhooks/woocommerce", b"webhook_id=12", form)).status_code == 200
        problem(await receiver.post("/webhooks/woocommerce", b"webhook_id=12&x=1", form), 401)
        problem(await receiver.post("/webhooks/generic", b"webhook_id=12", form), 401)
        asked = await receiver.deliver("slack", {"type": "url_verification", "challenge": "3eZb"})
        assert (asked.status_code, asked.json()) == (200, {"challenge": "3eZb"})
        assert await started(database) == []


# -- refused -----------------------------------------------------------------------------------------------------------


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


# -- limits ------------------------------------------------------------------------------------------------------------


async def test_bodies_over_the_limit(database: Database) -> None:
    """Told by Content-Length, or found out in chunks; one that just fits is accepted, chunked or not."""
    async with serving(database, webhooks_max_body=1000) as receiver:
        fits = json.dumps({"id": 1, "event": "order.created", "pad": ""}).encode()
        fits = fits.replace(b'""', b'"' + b"x" * (1000 - len(fits)) + b'"')
        assert len(fits) == 1000
        headers, body = signed(document=fits)
        assert (await receiver.post("/webhooks/generic", body, headers)).status_code == 202

        async def pieces(content: bytes) -> Any:
            for start in range(0, len(content), 100):
                yield content[start : start + 100]

        chunked = await receiver.client.post("/webhooks/generic", content=pieces(body), headers=headers)
        assert chunked.status_code == 200
        headers, body = signed(document=fits + b" ")
        problem(await receiver.post("/webhooks/generic", body, headers), 413)
        problem(await receiver.client.post("/webhooks/generic", content=pieces(body), headers=headers), 413)
        for length in (b"1001", b"9" * 18):
            head = b"POST /webhooks/generic HTTP/1.1\r\nHost: x\r\nContent-Length: " + length + b"\r\n\r\n"
            assert (await receiver.raw(head)).startswith(b"HTTP/1.1 413 ")


async def test_headers_over_the_limit(sqlite_url: str) -> None:
    async with serving(sqlite_url) as receiver:
        headers, body = signed()
        problem(await receiver.post("/webhooks/generic", body, {**headers, "X-Long": "x" * 17_000}), 431)
        longer = await receiver.post("/webhooks/generic", body, {**headers, "X-Long": "x" * 60_000})
        assert longer.status_code in {400, 431}, "the server's own limit may come first"
        assert (await receiver.post("/webhooks/generic", body, {**headers, "X-Long": "x" * 15_000})).status_code == 202


async def test_a_slow_body_is_given_up(sqlite_url: str) -> None:
    async with serving(sqlite_url, webhooks_body_timeout=0.2) as receiver:
        head = b"POST /webhooks/generic HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{"
        answer = await receiver.raw(head)
        assert answer.startswith(b"HTTP/1.1 408 ")
        assert b"application/problem+json" in answer


async def test_a_request_that_is_cut_off_starts_nothing(database: Database) -> None:
    async with serving(database) as receiver:
        headers, body = signed()
        head = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        length = f"Content-Length: {len(body)}"
        whole = f"POST /webhooks/generic HTTP/1.1\r\nHost: x\r\n{length}\r\n{head}\r\n".encode() + body
        await receiver.raw(whole[:-3], end=True)
        assert await started(database) == []
        shorter = whole.replace(length.encode(), b"Content-Length: 5")
        assert b" 401 " in (await receiver.raw(shorter, end=True)).splitlines()[0]
        await receiver.raw(whole, end=True)  # accepted or not: a sender that hangs up does not learn it, and repeats
        assert (await receiver.deliver()).status_code in {200, 202}
        assert len(await started(database)) == 1


async def test_too_many_at_once_are_asked_to_come_again(sqlite_url: str) -> None:
    async with serving(sqlite_url, webhooks_concurrency=1) as receiver:
        reader, writer = await asyncio.open_connection("127.0.0.1", receiver.port)
        writer.write(b"POST /webhooks/generic HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{")

        async def refused() -> bool:
            answer = await receiver.deliver(key="x")
            return answer.status_code == 503 and answer.headers["retry-after"] == "1"

        await until(refused, "a full house")
        assert (await receiver.client.get("/livez")).status_code == 200
        writer.close()
        await until(lambda: _accepted(receiver), "room again")
        del reader


async def _accepted(receiver: Any) -> bool:
    return (await receiver.deliver()).status_code < 300


# -- the database ------------------------------------------------------------------------------------------------------


async def test_with_the_database_away_nothing_is_accepted_and_later_all_is(postgresql_url: str) -> None:
    async with Proxy(postgresql_url) as proxy, serving(proxy.url) as receiver, opened(postgresql_url) as database:
        assert (await receiver.deliver(key="before")).status_code == 202
        assert (await receiver.client.get("/readyz")).status_code == 200
        await proxy.refuse()
        refused = await asyncio.gather(*(receiver.deliver(key=f"k{number}") for number in range(20)))
        for answer in refused:
            assert "cannot be stored" in problem(answer, 503)
            assert int(answer.headers["retry-after"]) > 0
        problem(await receiver.client.get("/readyz"), 503)
        assert (await receiver.client.get("/livez")).status_code == 200
        await proxy.accept()
        answers = await asyncio.gather(*(receiver.deliver(key=f"k{number}") for number in range(20)))
        assert {answer.status_code for answer in answers} == {202}
        assert (await receiver.client.get("/readyz")).status_code == 200
        assert len(await started(database)) == 21


async def test_with_the_database_cut_in_the_middle_nothing_acknowledged_is_lost(postgresql_url: str) -> None:
    """A sender repeats what was not acknowledged; in the end each key has one job."""
    async with Proxy(postgresql_url) as proxy, serving(proxy.url) as receiver, opened(postgresql_url) as database:
        answers: Counter[int] = Counter()

        async def send(number: int) -> None:
            for step in range(10):
                key = f"{number}-{step}"
                await until(lambda key=key: delivered(key), f"the delivery {key}")

        async def delivered(key: str) -> bool:
            status = (await receiver.deliver(key=key)).status_code
            answers[status] += 1
            return status in {200, 202}

        senders = asyncio.gather(*(send(number) for number in range(20)))
        for count in range(20, 180, 20):
            await until(lambda count=count: senders.done() or answers[202] >= count, f"{count} deliveries")
            proxy.cut()
        await senders
        assert answers.keys() <= {200, 202, 503}
        assert len(await started(database)) == 200


async def test_a_database_that_hangs_is_a_database_that_is_away(postgresql_url: str) -> None:
    async with opened(postgresql_url) as holder, opened(postgresql_url) as database:
        receiver = WebhookReceiver(SOURCES, NOWHERE, database=database)
        receiver._journal._patience = 0.3
        async with listening(receiver) as found, holder.transaction() as connection:
            await connection.exec_driver_sql("LOCK TABLE hareline_webhooks")
            problem(await found.deliver(), 503)
        async with listening(receiver) as found:
            assert (await found.deliver()).status_code == 202


async def test_a_sqlite_file_that_is_locked(sqlite_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("store.engine._LOCK_TIMEOUT", 0.2)
    async with serving(sqlite_url) as receiver, opened(sqlite_url) as holder:
        async with holder.transaction():
            problem(await receiver.deliver(), 503)
        assert (await receiver.deliver()).status_code == 202


async def test_a_database_without_the_tables_is_not_ready(tmp_path: Any) -> None:
    async with serving(f"sqlite:///{tmp_path / 'new.db'}") as receiver:
        problem(await receiver.client.get("/readyz"), 503)
        problem(await receiver.deliver(), 503)


# -- what became of it -------------------------------------------------------------------------------------------------


async def test_what_became_of_a_delivery_is_told_to_those_with_the_token(database: Database) -> None:
    async with serving(database) as receiver:
        webhook_id = (await receiver.deliver()).json()["webhook_id"]
        path = f"/webhooks/generic/{webhook_id}"
        for wrong in ({}, {"Authorization": f"Bearer {TOKEN}x"}, {"Authorization": TOKEN}, {"Authorization": "é"}):
            wire = {name: value.encode("latin-1") for name, value in wrong.items()}
            problem(await receiver.client.get(path, headers=wire), 401)
        mine = {"Authorization": f"Bearer {TOKEN}"}
        answer = await receiver.client.get(path, headers=mine)
        told = answer.json()
        assert (told["status"], told["event"], told["job_type"]) == ("queued", "order.created", "order.created")
        assert told["job_id"] == (await started(database))[0].job_id
        for gone in ("/webhooks/github/" + webhook_id, "/webhooks/generic/x", "/webhooks/generic/%00"):
            problem(await receiver.client.get(gone, headers=mine), 404)
        async with database.transaction() as connection:
            await connection.exec_driver_sql("DELETE FROM hareline_outbox")
        assert (await receiver.client.get(path, headers=mine)).json()["status"] == "accepted"


async def test_without_a_token_in_the_settings_nothing_is_told(sqlite_url: str) -> None:
    async with serving(sqlite_url, webhooks_token="") as receiver:
        webhook_id = (await receiver.deliver()).json()["webhook_id"]
        for headers in ({}, {"Authorization": "Bearer"}):
            problem(await receiver.client.get(f"/webhooks/generic/{webhook_id}", headers=headers), 404)


# -- secrets, mounting, apps -------------------------------------------------------------------------------------------


async def test_no_secret_is_in_a_log_an_answer_or_a_repr(sqlite_url: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    async with serving(sqlite_url) as receiver:
        answers = [await receiver.deliver(scheme) for scheme in SCHEMES]
        answers += [await receiver.post(f"/webhooks/{scheme}", b"{}", {}) for scheme in SCHEMES]
        answers.append(await receiver.deliver(document={"id": 2}))
    shown = caplog.text + repr(SOURCES) + repr(NOWHERE) + "".join(a.text + repr(a.headers) for a in answers)
    assert "is not signed" in shown
    for secret in (SECRET, STANDARD, STANDARD.removeprefix("whsec_"), TOKEN):
        assert secret not in shown


async def test_it_mounts_in_an_application_of_ones_own(database: Database) -> None:
    receiver = WebhookReceiver(SOURCES, NOWHERE, database=database)
    mounted = Starlette(routes=[Mount("/hooks", app=receiver)])
    async with listening(mounted) as found:
        headers, body = signed()
        assert (await found.post("/hooks/webhooks/generic", body, headers)).status_code == 202
        assert (await found.client.get("/hooks/livez")).status_code == 200
        problem(await found.client.get("/hooks/webhooks/generic"), 405)
    assert len(await started(database)) == 1


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
