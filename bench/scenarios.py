"""What is measured. A scenario is a list of entries; an entry measures one contender once."""

import time
from collections.abc import Callable
from dataclasses import dataclass

import store_letters
import store_webhooks
from arena import Arena
from contenders import EVERYONE, HARELINE, HARELINE_SAGAS, HARELINE_UNREPORTED, RAW, Contender
from processes import ContenderError, Worker, ask
from store_recorder import recorder
from store_relay import relay, relay_idle
from store_schedules import schedules

RATE = 500  # jobs/s of the latency scenario
LADDER_RATE = 1000
SAGA_RATE = 20  # sagas/s where the hand-over from step to step is measured: mostly idle
SAGA_STEPS = 4
WARM_UP_SECONDS = 2
WEBHOOKS = ("webhooks", "webhooks-steady", "webhooks-broker-killed")
STORE = ("relay", "relay-idle", "schedules", "recorder", "dead-letters", *WEBHOOKS)  # they need a PostgreSQL


@dataclass(frozen=True)
class Effort:
    """How much: `size` scales the numbers of jobs, `seconds` is a steady run's length after its warm-up.

    `store` scales what is in the database before the measure begins.
    """

    size: float = 1.0
    seconds: float = 10.0
    soak: int = 200_000
    store: float = 1.0

    def jobs(self, full: int) -> int:
        return max(int(full * self.size), 1000)


@dataclass(frozen=True)
class Entry:
    """One contender in one scenario; `label` tells apart what the same contender does in several ways."""

    contender: Contender
    label: str
    measure: Callable[[Arena, Effort], dict]


def ready(arena: Arena, contender: Contender) -> None:
    """The contender's queue exists and is empty."""
    ask(contender, arena.environment(), "declare", timeout=90)
    arena.purge(contender.queue)


def enqueue(arena: Arena, contender: Contender, mode: str, jobs: int) -> dict:
    return ask(
        contender,
        arena.environment(),
        *("enqueue", "--jobs", str(jobs), "--mode", mode),
        timeout=60 + jobs / 200,
    )


def drain(contender: Contender, each: int = 1):
    """A full queue, then one worker: jobs/s from the first to the last, and nothing left when it stops.

    ``each`` is how many jobs one that is enqueued becomes.
    """

    def measure(arena: Arena, effort: Effort) -> dict:
        ready(arena, contender)
        jobs = effort.jobs(contender.drain)
        enqueue(arena, contender, next(iter(contender.modes)), jobs)
        with Worker(contender, arena.environment(), mode="rate", jobs=each * jobs) as worker:
            result = worker.report(timeout=60 + jobs / 200)
            memory = worker.memory()
        left = arena.settled(contender.queue, 0)
        if left:
            raise ContenderError(
                f"{left} jobs were still in the queue after {jobs} had run: acknowledgements were lost"
            )
        return result | {f"after_{name}": value for name, value in memory.items()}

    return measure


def publish(contender: Contender, mode: str):
    """Jobs/s enqueued, every one confirmed by the broker."""

    def measure(arena: Arena, effort: Effort) -> dict:
        ready(arena, contender)
        jobs = effort.jobs(contender.modes[mode])
        result = enqueue(arena, contender, mode, jobs)
        kept = arena.settled(contender.queue, jobs)
        if kept != jobs:
            raise ContenderError(f"{jobs} jobs were confirmed, but {kept} are in the queue")
        arena.purge(contender.queue)
        return result

    return measure


def steady(contender: Contender, mode: str, rate: int):
    """A worker that waits, jobs at a steady rate: from enqueueing (or being due) to the start."""

    def measure(arena: Arena, effort: Effort) -> dict:
        ready(arena, contender)
        warm_up = rate * WARM_UP_SECONDS
        jobs = warm_up + int(rate * effort.seconds)
        with Worker(contender, arena.environment(), mode=mode, jobs=jobs, warm_up=warm_up) as worker:
            arena.wait_for_consumer(contender.queue, worker.check)
            idle = worker.memory()
            sent = ask(
                contender,
                arena.environment(),
                *("pace", "--jobs", str(jobs), "--rate", str(rate)),
                timeout=60 + 2 * jobs / rate,
            )
            result = worker.report(timeout=60)
            memory = worker.memory()
        after = {f"after_{name}": value for name, value in memory.items()}
        return result | {f"idle_{name}": value for name, value in idle.items()} | after | {"slip": sent["slip"]}

    return measure


def hand_over(arena: Arena, effort: Effort) -> dict:
    """Sagas at a slow steady rate: from the end of one step to the start of the next."""
    ready(arena, HARELINE_SAGAS)
    warm_up = SAGA_RATE * WARM_UP_SECONDS
    sagas = warm_up + int(SAGA_RATE * effort.seconds)
    hops = sagas * (SAGA_STEPS - 1)
    with Worker(HARELINE_SAGAS, arena.environment(), mode="latency", jobs=hops, warm_up=warm_up) as worker:
        arena.wait_for_consumer(HARELINE_SAGAS.queue, worker.check)
        pace = ("pace", "--jobs", str(sagas), "--rate", str(SAGA_RATE))
        ask(HARELINE_SAGAS, arena.environment(), *pace, timeout=60 + 2 * sagas / SAGA_RATE)
        return worker.report(timeout=60)


def soak(contender: Contender):
    """Memory over many jobs: the worker's size is taken again and again while it runs."""

    def measure(arena: Arena, effort: Effort) -> dict:
        ready(arena, contender)
        jobs, samples, chunk = effort.soak, [], 50_000
        last = [0.0]

        def sample() -> None:
            if time.monotonic() - last[0] >= 0.25:
                last[0] = time.monotonic()
                samples.append(worker.memory().get("rss_mb", 0.0))

        with Worker(contender, arena.environment(), mode="rate", jobs=jobs) as worker:
            arena.wait_for_consumer(contender.queue, worker.check)
            sample()
            for start in range(0, jobs, chunk):
                enqueue(arena, contender, "many", min(chunk, jobs - start))
                sample()
            result = worker.report(timeout=120 + jobs / 1000, while_waiting=sample)
            samples.append(worker.memory().get("rss_mb", 0.0))
        early = max(samples[: max(2, len(samples) // 5)])
        return result | {
            "idle_rss_mb": samples[0],
            "early_rss_mb": early,
            "end_rss_mb": samples[-1],
            "max_rss_mb": max(samples),
            "growth_mb": round(samples[-1] - early, 1),
            "series_mb": samples,
        }

    return measure


def entries(names: set[str]) -> dict[str, list[Entry]]:
    """Every scenario with its entries in running order, of the contenders called `names`."""
    chosen = [contender for contender in EVERYONE if contender.module in names]
    whole = [contender for contender in chosen if not contender.drain_only]
    peers = [contender for contender in chosen if contender.peer]

    def ways(*modes: str) -> list[Entry]:
        return [
            Entry(contender, f"{contender.name}, {mode}", publish(contender, mode))
            for contender in whole
            for mode in modes
            if mode in contender.modes
        ]

    def only(contender: Contender, *rest: Entry) -> list[Entry]:
        return list(rest) if contender in chosen else []

    def stored(**measures: Callable[[Arena, Effort], dict]) -> list[Entry]:
        names = {what: f"hareline, {what.replace('_', ' ')}" if what != "alone" else "hareline" for what in measures}
        return only(HARELINE, *(Entry(HARELINE, names[what], measure) for what, measure in measures.items()))

    return {
        "drain": [Entry(c, c.name, drain(c)) for c in [HARELINE, *peers, RAW] if c in chosen],
        "enqueue": ways("pipelined", "many"),
        "blocking": ways("blocking-one", "blocking-many"),
        "latency": [Entry(c, c.name, steady(c, "latency", RATE)) for c in whole if c is not RAW],
        "ladder": only(HARELINE, Entry(HARELINE, "hareline", steady(HARELINE, "ladder", LADDER_RATE))),
        "reports": only(
            HARELINE,
            *(Entry(c, c.name, drain(c)) for c in (HARELINE, HARELINE_UNREPORTED)),
            *(
                Entry(c, f"{c.name}, {mode}", publish(c, mode))
                for mode in ("pipelined", "many", "blocking-one")
                for c in (HARELINE, HARELINE_UNREPORTED)
            ),
        ),
        "sagas": only(
            HARELINE,
            Entry(HARELINE, "hareline, plain jobs", drain(HARELINE)),
            Entry(HARELINE, "hareline, steps of sagas", drain(HARELINE_SAGAS, each=SAGA_STEPS)),
            Entry(HARELINE, "hareline, step to step", hand_over),
        ),
        "soak": only(HARELINE, Entry(HARELINE, "hareline", soak(HARELINE))),
        "relay": stored(alone=relay),
        "relay-idle": stored(alone=relay_idle),
        "schedules": stored(alone=schedules(killed=False), schedulers_killed=schedules(killed=True)),
        "recorder": stored(alone=recorder),
        "dead-letters": stored(
            list_filtered=store_letters.listing, record=store_letters.record, replay=store_letters.replay
        ),
        "webhooks": stored(alone=store_webhooks.flood),
        "webhooks-steady": stored(alone=store_webhooks.steady),
        "webhooks-broker-killed": stored(alone=store_webhooks.broker_killed),
    }
