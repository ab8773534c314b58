"""The books of the demo: what was published against what really happened. Pure; times are passed in."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from hareline.demo.contracts import JOB_TYPES
from hareline.demo.effect import Effect
from hareline.demo.plan import Planned
from hareline.demo.watch import DeadLetter
from topology.events import DEAD, DONE, RETRYING, JobEvent


@dataclass(slots=True)
class Entry:
    """One job. Times are seconds since the epoch; ``due_at`` is when it was published plus its delay."""

    planned: Planned
    due_at: float
    effects: int = 0
    reported_done: int = 0
    done_at: float | None = None
    retries: set[int] = field(default_factory=set)
    reported_dead: bool = False
    letter: DeadLetter | None = None

    @property
    def is_done(self) -> bool:
        """Whether the world shows its effect."""
        return self.effects > 0

    @property
    def is_dead(self) -> bool:
        """Whether it is in the dead-letter queue, or a worker said that it went there."""
        return self.letter is not None or self.reported_dead

    @property
    def is_settled(self) -> bool:
        """Whether nothing more is to be expected."""
        return self.is_done or self.is_dead

    @property
    def is_as_planned(self) -> bool:
        """Whether it ended where it had to, and only there."""
        return (self.is_done, self.is_dead) == ((True, False) if self.planned.end == "done" else (False, True))

    @property
    def repeats(self) -> int:
        """How often it ran to its end beyond the first time."""
        return max(0, max(self.effects, self.reported_done) - 1)

    @property
    def latency(self) -> float | None:
        """Seconds from when it was due to its effect."""
        return None if self.done_at is None else max(0.0, self.done_at - self.due_at)


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table. ``retried`` counts jobs. Latencies are seconds, ``throughput`` jobs per second.

    ``p50`` and ``p99`` are over the steady phase's jobs that needed no second attempt, ``longest`` over all;
    ``throughput`` is over the burst. Each is None where there was no such job.
    """

    name: str
    published: int
    done: int
    retried: int
    dead: int
    lost: int
    twice: int
    astray: int
    throughput: float | None
    p50: float | None
    p99: float | None
    longest: float | None


@dataclass(frozen=True, slots=True)
class Deaths:
    """Jobs in the dead-letter queue with one job type, reason and trouble; ``error`` is the text of one."""

    job_type: str
    reason: str
    trouble: str
    count: int
    error: str


class Ledger:
    """Every published job, by id."""

    def __init__(self) -> None:
        self.entries: dict[str, Entry] = {}
        self.thumbnail_ids: dict[str, str] = {}
        self.strangers: list[str] = []
        self.burst_began_at: float | None = None
        self._open: set[str] = set()

    def publish(self, job_id: str, planned: Planned, now: float) -> None:
        """Enters a job, before it is handed to the producer: its effect may be faster than the confirm."""
        if planned.phase == "burst" and self.burst_began_at is None:
            self.burst_began_at = now
        self.entries[job_id] = Entry(planned, now + (planned.delay or 0.0))
        self._open.add(job_id)
        if planned.job_type.name == "media.thumbnail":
            self.thumbnail_ids[str(planned.number)] = job_id

    def effect(self, effect: Effect) -> None:
        """Books an effect that the world shows."""
        entry = self.entries.get(effect.job_id)
        if entry is None:
            self.strangers.append(effect.job_id)
            return
        entry.effects += 1
        if entry.done_at is None:
            entry.done_at = effect.at
        self._open.discard(effect.job_id)

    def report(self, event: JobEvent) -> None:
        """Books what a worker reported."""
        entry = self.entries.get(event.id)
        if entry is None:
            return
        if event.event == RETRYING:
            entry.retries.add(event.attempt)
        elif event.event == DONE:
            entry.reported_done += 1
        elif event.event == DEAD:
            entry.reported_dead = True
            self._open.discard(event.id)

    def dead_letters(self, letters: Iterable[DeadLetter]) -> None:
        """Books the dead-letter queue as it is: from now on, dead is what lies there."""
        for entry in self.entries.values():
            entry.reported_dead = False
            entry.letter = None
        for letter in letters:
            if letter.job_id in self.entries:
                self.entries[letter.job_id].letter = letter
                self._open.discard(letter.job_id)
            elif letter.job_id not in self.strangers:
                self.strangers.append(letter.job_id)

    @property
    def unsettled(self) -> int:
        """How many published jobs have neither had their effect nor died."""
        return len(self._open)

    @property
    def dead(self) -> int:
        """How many jobs are in the dead-letter queue."""
        return sum(entry.letter is not None for entry in self.entries.values())

    @property
    def lost(self) -> list[str]:
        """The ids of jobs that left no trace."""
        return [job_id for job_id, entry in self.entries.items() if not entry.is_settled]

    @property
    def astray(self) -> list[str]:
        """The ids of jobs that did not end where the plan says."""
        return [job_id for job_id, entry in self.entries.items() if not entry.is_as_planned]

    @property
    def unreported(self) -> int:
        """How many jobs had their effect, but no worker has reported that they are settled."""
        return sum(entry.is_done and not entry.reported_done for entry in self.entries.values())

    def deaths(self) -> list[Deaths]:
        """What is in the dead-letter queue, by job type, reason and what was wrong with the job."""
        found: dict[tuple[str, str, str], list[DeadLetter]] = {}
        for entry in self.entries.values():
            if entry.letter is not None:
                key = (entry.planned.job_type.name, entry.letter.reason, entry.planned.trouble)
                found.setdefault(key, []).append(entry.letter)
        return [Deaths(*key, len(letters), letters[0].error) for key, letters in sorted(found.items())]

    def rows(self) -> Iterator[Row]:
        """One per job type, then the sum of all."""
        by_type: dict[str, list[Entry]] = {job_type.name: [] for job_type in JOB_TYPES}
        for entry in self.entries.values():
            by_type[entry.planned.job_type.name].append(entry)
        for name, entries in by_type.items():
            yield self._row(name, entries)
        yield self._row("all", list(self.entries.values()))

    def _row(self, name: str, entries: list[Entry]) -> Row:
        smooth = sorted(
            entry.latency
            for entry in entries
            if entry.latency is not None and entry.planned.phase == "steady" and not _was_retried(entry)
        )
        return Row(
            name=name,
            published=len(entries),
            done=sum(entry.is_done for entry in entries),
            retried=sum(bool(entry.retries) for entry in entries),
            dead=sum(entry.is_dead for entry in entries),
            lost=sum(not entry.is_settled for entry in entries),
            twice=sum(entry.repeats > 0 for entry in entries),
            astray=sum(not entry.is_as_planned for entry in entries),
            throughput=self._throughput(entries),
            p50=percentile(smooth, 50),
            p99=percentile(smooth, 99),
            longest=max((entry.latency for entry in entries if entry.latency is not None), default=None),
        )

    def _throughput(self, entries: list[Entry]) -> float | None:
        """Of the burst's jobs that were due at once and needed no second attempt: none waits on purpose."""
        ends = [
            entry.done_at
            for entry in entries
            if entry.done_at is not None
            and entry.planned.phase == "burst"
            and entry.planned.delay is None
            and not _was_retried(entry)
        ]
        if not ends or self.burst_began_at is None:
            return None
        return len(ends) / max(max(ends) - self.burst_began_at, 0.001)


def _was_retried(entry: Entry) -> bool:
    return bool(entry.retries) or entry.planned.is_retried


def percentile(ordered: list[float], percent: int) -> float | None:
    """The nearest-rank percentile of a sorted list; None for an empty one."""
    if not ordered:
        return None
    rank = -(-len(ordered) * percent // 100)
    return ordered[max(rank, 1) - 1]
