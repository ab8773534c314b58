"""The relay: how fast it empties an outbox, and how soon it publishes what is committed while it is idle."""

import random
import time

import psycopg

from arena import Arena
from peers.meter import WARM_UP, percentiles
from processes import ContenderError
from store_roles import BODY, JOB_TYPE, NAMES, Role, expect_queue, prepare, until

ROWS = 60_000
COMMITS = 250
MEAN_GAP = 0.12
LONGEST_GAP = 1.5  # longer than the relay's poll: waiting for that would show
ARRIVAL = 30.0
QUEUE = NAMES.queue(JOB_TYPE)
FILL = f"""
INSERT INTO hareline_outbox (job_id, job_type, body, origin, created_at)
SELECT gen_random_uuid()::text, '{JOB_TYPE}', {BODY}, 'enqueue', now() FROM generate_series(1, %s) AS i
"""


def relay(arena: Arena, effort) -> dict:
    """Rows/s from the commit of one transaction with all of them until the outbox is empty again."""
    rows = effort.jobs(ROWS)
    with arena.postgres.fresh() as store:
        prepare(arena, store)
        with Role(arena, store, "relay") as role, store.connect() as connection:
            warm_up(connection, role, WARM_UP)
            expect_queue(arena, QUEUE, WARM_UP, "before the measure")
            connection.execute(FILL, [rows])
            began = time.perf_counter()
            emptied(connection, role, timeout=60 + rows / 200)
            seconds = time.perf_counter() - began
    expect_queue(arena, QUEUE, WARM_UP + rows, "after the outbox was empty")
    arena.purge(QUEUE)
    return {"rows": rows, "seconds": seconds, "per_second": rows / seconds}


def relay_idle(arena: Arena, effort) -> dict:
    """From the return of a commit to the arrival at a consumer of the job's queue; one row, then a gap."""
    commits = max(int(COMMITS * effort.size), 50)
    gaps = random.Random(3)
    with arena.postgres.fresh() as store:
        prepare(arena, store)
        with Role(arena, store, "relay") as role, store.connect() as connection, arena.connect() as broker:
            warm_up(connection, role, WARM_UP)
            expect_queue(arena, QUEUE, WARM_UP, "before the measure")
            arena.purge(QUEUE)
            arrivals: list[float] = []
            broker.channel().basic_consume(QUEUE, lambda *_: arrivals.append(time.perf_counter()), auto_ack=True)
            samples = []
            for number in range(1, commits + 1):
                broker.sleep(min(gaps.expovariate(1 / MEAN_GAP), LONGEST_GAP))
                connection.execute(FILL, [1])
                committed = time.perf_counter()
                while len(arrivals) < number:
                    broker.process_data_events(time_limit=0.5)
                    role.check()
                    if time.perf_counter() - committed > ARRIVAL:
                        raise ContenderError(f"the job of commit {number} did not arrive within {ARRIVAL:.0f} s")
                samples.append(arrivals[-1] - committed)
            broker.sleep(0.5)
            if len(arrivals) != commits:
                raise ContenderError(f"{commits} jobs were committed, and {len(arrivals)} arrived")
    return {"commits": commits} | percentiles(samples)


def warm_up(connection: psycopg.Connection, role: Role, rows: int) -> None:
    """Some rows that do not count: the relay has its connections then."""
    connection.execute(FILL, [rows])
    emptied(connection, role, timeout=60)


def emptied(connection: psycopg.Connection, role: Role, timeout: float) -> None:
    def empty() -> bool:
        return connection.execute("SELECT NOT EXISTS (SELECT FROM hareline_outbox)").fetchone()[0]

    until(empty, "rows were still in the outbox", role, timeout=timeout)
