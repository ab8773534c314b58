"""Dead letters as services leave them: a table full of them, and messages in the dead-letter queue."""

import asyncio
import contextlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from types import SimpleNamespace
from typing import cast

import psycopg
from pika.spec import BasicProperties
from psycopg.errors import InsufficientPrivilege

from consumers.dead_letter import dead_letter
from consumers.obituary import fingerprint
from consumers.outcome import Dead
from contenders import NAMESPACE
from peers.meter import payload
from store_roles import BODY, NAMES
from topology.envelope import FIRST_FAILED_AT, PERSISTENT, TRACEBACK, Message, new_id, timestamp
from topology.publisher import Publisher
from topology.settings import Settings
from topology.subscription import Delivery

DAYS = 30
CHUNK = 100_000
WINDOW = 1_000  # messages in flight
CONFIRM = 30.0
TRACEBACK_BYTES = 1_500
TYPES = (
    *(("shop.invoice", "billing"), ("shop.charge", "billing"), ("shop.refund", "billing"), ("stock.sync", "stock")),
    *(("stock.count", "stock"), ("image.thumbnail", None), ("search.index", None), ("mail.send", "messages")),
)


@dataclass(frozen=True)
class Failure:
    """What a job can die of. `#` in the text is a number that differs from letter to letter."""

    name: str
    text: str
    reason: str
    share: int = 1


TIMEOUT = Failure("TimeoutError", "no answer from 10.0.3.# within 30 s", "exhausted", 4)
ERRORS = (
    TIMEOUT,
    Failure("ConnectionRefusedError", "[Errno 111] connection to order # refused", "exhausted", 3),
    Failure("OutOfStock", "article # is out of stock", "permanent", 2),
    Failure("KeyError", "'customer-#'", "exhausted"),
)
REFUSED = Failure("AddressRefused", "550 5.1.1 <user#@example.org>: no such user", "permanent", 6)
MAIL_ERRORS = (TIMEOUT, REFUSED)


@dataclass(frozen=True)
class Kind:
    """A job type and what its jobs die of."""

    job_type: str
    group: str | None
    error: str
    text: str
    reason: str
    traceback: str
    fingerprint: str
    share: int


def kinds() -> list[Kind]:
    """Every job type has as many dead as the others. The last one dies of one thing that no other dies of."""
    found = []
    for job_type, group in TYPES:
        for failure in MAIL_ERRORS if job_type == TYPES[-1][0] else ERRORS:
            trace = _traceback(job_type, failure)
            mark = fingerprint(job_type, failure.name, failure.text, trace)
            found.append(Kind(job_type, group, failure.name, failure.text, failure.reason, trace, mark, failure.share))
    return found


def _traceback(job_type: str, failure: Failure) -> str:
    """As Python writes them, of the usual depth."""
    module = job_type.replace(".", "/")
    places = ("handler", "process", "load", "fetch", "request", "attempt", "send", "connect", failure.name.lower())
    lines = ["Traceback (most recent call last):"]
    for number, place in enumerate(places):
        lines.append(f'  File "/srv/app/{module}/{place}.py", line {40 + 7 * number}, in {place}')
        call = f"    result_of_{place} = await self.{place}_step(context, order, retries={number}, deadline=deadline)"
        lines.append(call)
    return "\n".join((*lines, f"{failure.name}: {failure.text}"))[-TRACEBACK_BYTES:] + "\n"


# -- the table ------------------------------------------------------------------------------------------------------

# Long values are compressed once, here: rows that are copied from them are as small as any, and made in half the time.
_KINDS = """
CREATE TEMP TABLE kinds (
    number int PRIMARY KEY, job_type text, group_name text, error text, text text, reason text, traceback text,
    fingerprint text, headers jsonb
) WITH (toast_tuple_target = 128);
ALTER TABLE kinds ALTER traceback SET STORAGE MAIN, ALTER headers SET STORAGE MAIN
"""
_BURY = f"""
INSERT INTO hareline_dead_letters (message_key, job_id, job_type, group_name, queue, reason, error, message, traceback,
    attempts, first_failed_at, last_failed_at, died_at, recorded_at, body, correlation_id, content_type, headers,
    fingerprint, status, replays)
SELECT encode(sha256(convert_to(i::text, 'UTF8')), 'hex'), job_id, job_type, group_name,
    '{NAMESPACE}.' || job_type, reason, error, message, traceback,
    5, died - interval '1 minute', died, died, died + interval '100 ms', {BODY}, job_id, 'application/json',
    headers, fingerprint,
    CASE WHEN mod(i, 100) < 3 THEN 'replayed' WHEN mod(i, 100) < 4 THEN 'discarded' ELSE 'dead' END, 0
FROM (
    SELECT i, gen_random_uuid()::text AS job_id, now() - (%(n)s - i) * interval '{DAYS} days' / %(n)s AS died,
        kinds.*, replace(kinds.text, '#', i::text) AS message
    FROM generate_series(%(first)s, %(last)s) AS i
    JOIN kinds ON kinds.number = mod(abs(hashint4(i)::bigint), (SELECT count(*) FROM kinds))
) AS dead
"""


def bury(connection: psycopg.Connection, letters: int) -> None:
    """Fills the table, the oldest first; died over the last 30 days, 96% of them dead still."""
    connection.execute(_KINDS)
    rows = [kind for kind in kinds() for _ in range(kind.share)]
    with connection.cursor() as cursor:
        cursor.executemany(
            "INSERT INTO kinds VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s)",
            [
                (number, k.job_type, k.group, k.error, k.text, k.reason, k.traceback, k.fingerprint, _headers(k))
                for number, k in enumerate(rows)
            ],
        )
    for first in range(1, letters + 1, CHUNK):
        connection.execute(_BURY, {"n": letters, "first": first, "last": min(first + CHUNK - 1, letters)})
    # Now, and not by themselves in the middle of a measure.
    connection.execute("VACUUM ANALYZE hareline_dead_letters")
    with contextlib.suppress(InsufficientPrivilege):  # on somebody's own server
        connection.execute("CHECKPOINT")


def _headers(kind: Kind) -> str:
    """What the recorder keeps of a dead letter's headers, as JSON."""
    message = next(_messages([kind], 1))
    return json.dumps(message.properties.headers)


# -- the queue ------------------------------------------------------------------------------------------------------


def _messages(every: list[Kind], number: int) -> Iterator[Message]:
    """Dead letters as workers publish them, with their headers."""
    for n in range(number):
        kind = every[n % len(every)]
        job_id = new_id()
        properties = BasicProperties(
            content_type="application/json",
            delivery_mode=PERSISTENT,
            message_id=job_id,
            correlation_id=job_id,
            type=kind.job_type,
            headers={FIRST_FAILED_AT: timestamp()},
        )
        body = json.dumps(payload(n), separators=(",", ":")).encode()
        queue = NAMES.queue(kind.job_type)
        delivery = SimpleNamespace(properties=properties, queue=queue, job_type=kind.job_type, body=body)
        error = type(kind.error, (Exception,), {})(kind.text.replace("#", str(n)))
        outcome = Dead(kind.reason, error)
        message = dead_letter(NAMES, cast("Delivery", delivery), None, outcome, None)
        message.properties.headers[TRACEBACK] = kind.traceback  # an error that was not raised has none
        yield message


async def publish(settings: Settings, number: int) -> None:
    """Puts them into the dead-letter queue, every one confirmed."""
    publisher = Publisher(settings, "bench")
    publisher.start()
    try:
        sent = []
        for message in _messages(kinds(), number):
            sent.append(publisher.send(message, CONFIRM))
            if len(sent) >= WINDOW:
                await asyncio.gather(*sent)
                sent = []
        await asyncio.gather(*sent)
    finally:
        await publisher.stop(CONFIRM)
