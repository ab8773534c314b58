"""``http.sync`` against a real HTTP server."""

from __future__ import annotations

import asyncio
import socket

import pytest
from pydantic import ValidationError

from consumers.job import Job
from consumers.jobs import http
from consumers.jobs.http import HttpApi, Sync
from consumers.outcome import Permanent, Transient
from consumers.registry import Registry
from hareline.demo.http import DocumentServer
from topology.envelope import Envelope
from topology.errors import SettingsError


def job(job_id="0192f0c1-0000-7000-8000-000000000001", attempt=1):
    return Job(Envelope(job_id, "http.sync", attempt, 0, job_id, None, {}, b""))


@pytest.fixture
async def server():
    async with DocumentServer().serve() as server:
        yield server


async def run(server, path, *, method="PUT", document=None, job=job(), **options):  # noqa: B008 - never changed
    api = HttpApi(server.base_url, **options)
    async with api.client() as client:
        await http.sync(Sync(path=path, document=document or {"n": 1}, method=method), job, client, api)


@pytest.fixture
async def scripted():
    """Starts servers that give every request the same bytes as an answer."""
    listeners = []

    async def start(answer):
        async def converse(reader, writer):
            await reader.readuntil(b"\r\n\r\n")
            writer.write(answer)
            await writer.drain()
            writer.close()

        listener = await asyncio.start_server(converse, "127.0.0.1", 0)
        listeners.append(listener)
        return f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}"

    yield start
    for listener in listeners:
        listener.close()


async def answered(base_url, **options):
    api = HttpApi(base_url, **options)
    async with api.client() as client:
        await http.sync(Sync(path="/x", document={}), job(), client, api)


def raw(status, *headers, body=b""):
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", "Connection: close", *headers]
    return "\r\n".join([*lines, "", ""]).encode() + body


@pytest.mark.parametrize("method", ["PUT", "POST"])
async def test_a_document_is_stored(server, method):
    """The body arrives as JSON, under the job's id."""
    await run(server, "/ready/7", method=method, document={"name": "Ærø", "tags": [1, None]})
    assert server.documents == {"/ready/7": {"name": "Ærø", "tags": [1, None]}}
    assert server.effects[0].job_id == job().id


async def test_a_repeat_is_recognised_by_its_key(server):
    """Two runs of the same job carry one Idempotency-Key: the server stores the document once."""
    await run(server, "/ready/7")
    await run(server, "/ready/7", job=job(attempt=2))
    assert len(server.effects) == 2
    assert list(server.keys) == [job().idempotency_key]


async def test_a_busy_server_says_when_to_come_back_in_seconds(server):
    """503 is Transient after the seconds of Retry-After, and a later attempt succeeds."""
    for attempt in (1, 2):
        with pytest.raises(Transient, match="503") as caught:
            await run(server, "/busy/1", job=job(attempt=attempt))
        assert caught.value.after == 1.0
    await run(server, "/busy/1", job=job(attempt=3))
    assert "/busy/1" in server.documents


async def test_a_limit_says_when_to_come_back_as_a_date(server):
    """429 is Transient, and an HTTP date in Retry-After becomes seconds from now."""
    with pytest.raises(Transient, match="429") as caught:
        await run(server, "/limited/1")
    assert 0 <= caught.value.after <= 2
    await run(server, "/limited/1", job=job(attempt=2))


@pytest.mark.parametrize("status", ["400 Bad Request", "401 Unauthorized", "404 Not Found", "410 Gone", "422 No"])
async def test_the_clients_own_fault_is_permanent(scripted, status):
    """4xx will not change by asking again; what the server said is kept."""
    with pytest.raises(Permanent, match=rf"{status[:3]}.*because"):
        await answered(await scripted(raw(status, body=b'{"error": "because"}')))


@pytest.mark.parametrize("status", ["408 Timeout", "425 Too Early", "429 Slow Down", "500 Oops", "502 Bad", "503 Busy"])
async def test_not_now_is_transient(scripted, status):
    """Without Retry-After the retry policy decides."""
    with pytest.raises(Transient, match=status[:3]) as caught:
        await answered(await scripted(raw(status)))
    assert caught.value.after is None


@pytest.mark.parametrize(
    ("header", "after"),
    [
        ("0", 0.0),
        ("120", 120.0),
        ("999999999999", 3600.0),
        ("Wed, 21 Oct 2015 07:28:00 GMT", 0.0),
        ("Fri, 31 Dec 9999 23:59:59 GMT", 3600.0),
        ("soon", None),
        ("-5", None),
        ("", None),
    ],
)
async def test_retry_after_is_believed_within_reason(scripted, header, after):
    """Nonsense is ignored, the past is now, and an hour is the longest."""
    with pytest.raises(Transient) as caught:
        await answered(await scripted(raw("503 Busy", f"Retry-After: {header}")))
    assert caught.value.after == after


async def test_a_redirect_is_permanent_and_not_followed(scripted, server):
    """The token must not travel to another host: the address in the settings is to be changed."""
    with pytest.raises(Permanent, match="302"):
        await answered(await scripted(raw("302 Found", f"Location: {server.base_url}/ready/1")), token="t")
    assert server.requests == {}


async def test_garbage_is_permanent(server):
    """A 2xx with a page of HTML is no answer of the API: it shows in the dead-letter queue."""
    with pytest.raises(Permanent, match="not JSON"):
        await run(server, "/garbage/1")


@pytest.mark.parametrize("answer", [raw("204 No Content"), raw("200 OK"), raw("201 Created", body=b"[]")])
async def test_an_answer_may_be_empty(scripted, answer):
    """Many APIs say nothing back; that is success."""
    await answered(await scripted(answer))


@pytest.mark.parametrize("body", [b"[" * 100_000, b"\xff\xfe\x00", b"{'a': 1}", b"NUL"])
async def test_hostile_bodies_are_permanent(scripted, body):
    """Deep nesting, broken text and near-JSON end the job, not the worker."""
    with pytest.raises(Permanent, match="not JSON"):
        await answered(await scripted(raw("200 OK", body=body)))


@pytest.mark.parametrize(
    "answer", [b"", b"HTTP/1.1 200 OK\r\nContent-Length: 90\r\n\r\n{}", b"\x16\x03\x01garbage\r\n\r\n"]
)
async def test_a_connection_that_breaks_is_transient(scripted, answer):
    """Closed without an answer, cut off within one, or another protocol altogether."""
    with pytest.raises(Transient):
        await answered(await scripted(answer))


async def test_a_body_that_cannot_be_unpacked_is_permanent(scripted):
    """It says gzip and is not."""
    with pytest.raises(Permanent):
        await answered(await scripted(raw("200 OK", "Content-Encoding: gzip", body=b"not gzip at all")))


async def test_a_dropped_connection_is_transient_and_the_next_attempt_succeeds(server):
    """The server closed without an answer once."""
    with pytest.raises(Transient):
        await run(server, "/dropped/1")
    await run(server, "/dropped/1", job=job(attempt=2))


async def test_a_server_that_is_down_is_transient():
    """Nobody listens."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        with pytest.raises(Transient):
            await answered(f"http://127.0.0.1:{held.getsockname()[1]}")


async def test_a_slow_server_is_transient_after_the_timeout(server):
    """The answer would have come; the wait for it ends first."""
    with pytest.raises(Transient, match="Timeout"):
        await run(server, "/slow/1", timeout=0.1)


@pytest.mark.parametrize(
    "path",
    ["", "x", "//evil.example/x", "http://evil.example/", "/a b", "/a\r\nX: 1", "/a#b", "/", "/@evil\n"],
)
def test_a_path_cannot_name_another_host_or_break_the_request(path):
    """The payload model refuses it at the producer."""
    with pytest.raises(ValidationError):
        Sync(path=path, document={})


async def test_the_token_is_sent_and_stays_out_of_logs(scripted):
    """It travels as a bearer token and does not show in the settings' repr."""
    api = HttpApi.from_settings({"SYNC_BASE_URL": "https://api.example.org/v1", "SYNC_TOKEN": "s3cret"})
    assert "s3cret" not in repr(api)
    async with api.client() as client:
        assert client.headers["Authorization"] == "Bearer s3cret"
    with pytest.raises(SettingsError, match="SYNC_BASE_URL"):
        HttpApi.from_settings({})


async def test_all_jobs_of_a_process_share_one_client(server):
    """A hundred jobs at once over one pool."""

    class App:
        registry = Registry()

        def handler(self, job_type, breaker=()):
            return lambda function: self.registry.register(job_type, function, breakers=breaker)

    app = App()
    http.register(app, HttpApi(server.base_url, connections=5))
    (route,) = app.registry.select(["http.sync"])
    jobs = [job(f"job-{number}") for number in range(100)]
    await asyncio.gather(*(route.handler(Sync(path=f"/ready/{one.id}", document=1), one) for one in jobs))
    assert len(server.documents) == 100
    assert server.connections <= 5
