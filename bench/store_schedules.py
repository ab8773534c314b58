"""Schedulers: how late they issue what falls due, and whether each occurrence comes exactly once."""

import contextlib
import math
import time
from collections import Counter
from datetime import UTC, datetime

import psycopg

from arena import Arena
from peers.meter import percentiles
from processes import ContenderError
from store_roles import JOB_TYPE, Role, prepare

WAITING = 100_000
PER_SECOND = 200
SCHEDULERS = 2
KILL_EVERY = 3.0
LOOK_EVERY = 0.02
HEAD_START = 2.0
PATIENCE = 60.0
LINGER = 1.0
NEW = """
INSERT INTO hareline_schedules (id, kind, job_type, payload, payload_hash, status, expression, zone,
    interval_seconds, start_at, next_run_at, misfire, overlap, source, created_at, updated_at)
"""
# Over the year to come, a third of each kind.
FAR = f"""{NEW}
SELECT 'waiting-' || i, (ARRAY['once', 'every', 'cron'])[mod(i, 3) + 1], '{JOB_TYPE}', '{{"number": ' || i || '}}',
    md5(i::text), 'active', CASE mod(i, 3) WHEN 2 THEN '30 4 * * 1' END,
    CASE mod(i, 3) WHEN 2 THEN 'Europe/Lisbon' END, CASE mod(i, 3) WHEN 1 THEN 86400 END,
    CASE mod(i, 3) WHEN 1 THEN due END, due, 'latest', 'allow', 'api', now(), now()
FROM (SELECT i, now() + interval '1 day' + i * interval '365 days' / %(n)s AS due FROM generate_series(1, %(n)s) AS i)
    AS waiting
"""
# Half of them at the full second, as cron's are, the others spread over it. Half run once, half again in a day.
DUE = f"""{NEW}
SELECT 'due-' || i, (ARRAY['once', 'every'])[mod(i, 2) + 1], '{JOB_TYPE}', '{{"number": ' || i || '}}', md5(i::text),
    'active', NULL, NULL, CASE mod(i, 2) WHEN 1 THEN 86400 END, CASE mod(i, 2) WHEN 1 THEN due END, due,
    'latest', 'allow', 'api', now(), now()
FROM (
    SELECT i, to_timestamp(%(first)s + i / %(rate)s
        + CASE WHEN mod(i, 4) < 2 THEN 0 ELSE mod(i, %(rate)s)::float / %(rate)s END) AS due
    FROM generate_series(0, %(n)s - 1) AS i
) AS falling RETURNING id, next_run_at
"""


def schedules(*, killed: bool):
    """Lateness of `PER_SECOND` occurrences a second, with all the others waiting and two schedulers at work.

    From the due time until this process has found the committed outbox row and taken it out, looking every 20 ms: an
    upper bound. `killed`: a scheduler is killed and started again every three seconds, in turn; but none before the
    one that was killed last is up again, so that one is at work at any time.
    """

    def measure(arena: Arena, effort) -> dict:
        waiting, seconds = int(WAITING * effort.store), int(2 * effort.seconds)
        with arena.postgres.fresh() as store, store.connect() as connection, contextlib.ExitStack() as stack:
            prepare(arena, store)
            connection.execute(FAR, {"n": waiting})
            connection.execute("VACUUM ANALYZE hareline_schedules")
            roles = [stack.enter_context(Role(arena, store, "scheduler", number=n)) for n in range(SCHEDULERS)]
            for role in roles:
                role.await_session(connection)
            first = math.ceil(time.time() + HEAD_START)
            what = {"n": seconds * PER_SECOND, "first": first, "rate": PER_SECOND}
            due = dict(connection.execute(DUE, what).fetchall())
            until_killing = first + KILL_EVERY if killed else math.inf
            found, kills = _collect(connection, roles, len(due), until_killing, first + seconds)
            issued = connection.execute("SELECT job_id, schedule_id, due_at FROM hareline_occurrences").fetchall()
        lateness = _lateness(due, issued, found)
        return {"waiting": waiting, "occurrences": len(due), "kills": kills} | percentiles(lateness)

    return measure


def _collect(
    connection: psycopg.Connection, roles: list[Role], expected: int, kill_at: float, end: float
) -> tuple[list[tuple[str, float]], int]:
    """The job ids that came into the outbox, each with the time it was found; and how often a scheduler was killed."""
    connection.execute("SET synchronous_commit = off")  # this is no relay: its deletes are not to cost anybody a flush
    found: list[tuple[str, float]] = []
    kills, deadline = 0, end + PATIENCE
    while True:
        rows = connection.execute("DELETE FROM hareline_outbox RETURNING job_id").fetchall()
        now = time.time()
        found += [(job_id, now) for (job_id,) in rows]
        if len(found) >= expected and now > end + LINGER:  # one that comes twice is to be seen
            return found, kills
        if now > deadline:
            raise ContenderError(f"of {expected} occurrences {len(found)} had come {PATIENCE:.0f} s after the last")
        for role in roles:
            role.check()
        if kill_at <= now < end and all(role.has_session(connection) for role in roles):
            roles[kills % len(roles)].kill()
            roles[kills % len(roles)].start()
            kills, kill_at = kills + 1, now + KILL_EVERY
        time.sleep(LOOK_EVERY)


def _lateness(
    due: dict[str, datetime], issued: list[tuple[str, str, datetime]], found: list[tuple[str, float]]
) -> list[float]:
    """Seconds. Raises ContenderError unless each occurrence came exactly once, and none besides."""
    jobs = {job_id: (schedule, moment.astimezone(UTC)) for job_id, schedule, moment in issued}
    wanted = {(schedule, moment.astimezone(UTC)) for schedule, moment in due.items()}
    if set(jobs.values()) != wanted or len(issued) != len(wanted):
        raise ContenderError(f"{len(wanted)} occurrences were due, {len(issued)} were issued, and not the same ones")
    counts = Counter(job_id for job_id, _ in found)
    twice = sum(count - 1 for count in counts.values())
    if twice or set(counts) != set(jobs):
        raise ContenderError(f"of {len(jobs)} occurrences {len(counts)} came into the outbox, {twice} of them again")
    return [seen - jobs[job_id][1].timestamp() for job_id, seen in found]
