"""The recorder: how many state changes it writes into the job log, from batches that real reporters made."""

import asyncio
import time
from collections.abc import Callable

from arena import Arena
from contenders import NAMESPACE
from hareline import JobType
from peers import meter
from processes import ContenderError
from producers.reporter import Reporter
from store_database import Store
from store_roles import NAMES, Role, expect_queue, prepare, settings, until
from topology.envelope import new_id, new_job
from topology.publisher import Publisher

JOBS = 100_000  # with twice as many events as the records queue holds of payloads of 256 bytes, and some to spare
BATCH = 5_000  # events in one message, as reporters make them at most
EVENTS_OF_A_JOB = 2
CONFIRM = 30.0
TYPES = [
    JobType(f"bench.{name}", dict, group=group)
    for name, group in (
        *(("invoice", "billing"), ("charge", "billing"), ("mail", "messages"), ("thumbnail", None), ("index", None)),
    )
]


def recorder(arena: Arena, effort) -> dict:
    """State changes/s through one recorder: all are in its queue when it starts. From the first commit to the last."""
    jobs = effort.jobs(JOBS) // BATCH * BATCH or BATCH
    batches = EVENTS_OF_A_JOB * jobs // BATCH
    with arena.postgres.fresh() as store:
        prepare(arena, store)
        asyncio.run(_fill(arena, store, jobs))
        expect_queue(arena, NAMES.records, batches, "before the measure")
        with store.connect() as connection, Role(arena, store, "recorder") as role:

            def received() -> int:
                query = "SELECT coalesce(sum(received), 0) FROM hareline_reporters"
                return int(connection.execute(query).fetchone()[0])

            done, seconds = progress(received, batches, role, timeout=60 + jobs / 500)
            query = "SELECT count(*), count(*) FILTER (WHERE status = 'done') FROM hareline_jobs"
            rows, done_rows = connection.execute(query).fetchone()
        if (rows, done_rows) != (jobs, jobs):
            raise ContenderError(f"{jobs} jobs were done, and the job log has {rows}, {done_rows} of them done")
    return {"events": EVENTS_OF_A_JOB * jobs, "seconds": seconds, "per_second": done * BATCH / seconds}


def progress(count: Callable[[], int], total: int, role: Role, timeout: float) -> tuple[int, float]:
    """What was counted between the first commit that showed and the last, and the seconds between them.

    So the start of the process does not count. Raises ContenderError if it takes longer than `timeout`.
    """
    until(count, f"hareline {role.name}: nothing is written", role, timeout=60)
    first, began = count(), time.perf_counter()
    until(lambda: count() >= total, f"hareline {role.name} had not written all", role, timeout=timeout)
    seconds = time.perf_counter() - began
    if first >= total:
        raise ContenderError(f"hareline {role.name} wrote all at once: too little to measure")
    return total - first, seconds


async def _fill(arena: Arena, store: Store, jobs: int) -> None:
    """Queued by a producer's reporter, done by a worker's."""
    publisher = Publisher(settings(arena, store), "bench")
    publisher.start()
    try:
        async with asyncio.timeout(CONFIRM):
            while not publisher.is_up:  # noqa: ASYNC110 -- nobody tells
                await asyncio.sleep(0.02)
        producer, worker = (Reporter(publisher, NAMES, job_types=TYPES) for _ in range(2))
        for start in range(0, jobs, BATCH):
            made = [(new_id(), TYPES[n % len(TYPES)], n) for n in range(start, start + BATCH)]
            for job_id, job_type, n in made:
                body = job_type.encode(meter.payload(n))
                producer.queued(new_job(NAMES, job_type.name, body, job_id=job_id), group=job_type.group)
            await producer.close(CONFIRM)
            for job_id, job_type, _ in made:
                worker.done(job_id, job_type.name, 0, 1, 0.001)
            await worker.close(CONFIRM)
            if producer.dropped or worker.dropped:
                raise ContenderError(f"the reporters of {NAMESPACE} dropped {producer.dropped + worker.dropped} events")
    finally:
        await publisher.stop(CONFIRM)
