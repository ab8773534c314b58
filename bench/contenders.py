"""Who takes part, and how many jobs each is given: a measure takes some seconds for fast and slow alike."""

from dataclasses import dataclass, field, replace
from pathlib import Path

BENCH = Path(__file__).resolve().parent
PROJECT_PYTHON = BENCH.parent / ".venv" / "bin" / "python"
NAMESPACE = "hareline-bench"


@dataclass(frozen=True)
class Contender:
    """One system under test. `drain` and `enqueue` are numbers of jobs; `modes` are its ways to enqueue."""

    name: str
    module: str
    queue: str
    drain: int
    modes: dict[str, int]  # mode: jobs
    peer: bool = True  # counts as "best peer"
    drain_only: bool = False  # differs from its sibling in the worker's settings alone
    environment: dict[str, str] = field(default_factory=dict)

    @property
    def lock(self) -> Path | None:
        """The lock file of its own environment; None for what runs in the project's."""
        path = BENCH / "requirements" / f"{self.module}.txt"
        return path if path.exists() else None

    @property
    def python(self) -> Path:
        return BENCH / ".venvs" / self.module / "bin" / "python" if self.lock else PROJECT_PYTHON


HARELINE = Contender(
    "hareline",
    "hareline",
    f"{NAMESPACE}.bench.noop",
    drain=60_000,
    modes={"pipelined": 60_000, "many": 60_000, "blocking-one": 4_000, "blocking-many": 40_000},
    peer=False,
    environment={
        "HARELINE_APP": "peers.hareline:app",
        "HARELINE_NAMESPACE": NAMESPACE,
        "HARELINE_LOG_LEVEL": "WARNING",
    },
)
HARELINE_UNREPORTED = replace(
    HARELINE,
    name="hareline, reports off",
    environment=HARELINE.environment | {"HARELINE_REPORT": "off"},
    drain_only=True,
)
HARELINE_SAGAS = replace(
    HARELINE,
    name="hareline, sagas",
    module="sagas",
    queue=f"{NAMESPACE}.bench.step.0",
    drain=10_000,
    modes={"pipelined": 10_000},
    environment=HARELINE.environment | {"HARELINE_APP": "peers.sagas:app"},
)
RAW = Contender(
    "raw pika",
    "raw",
    "bench.raw",
    drain=120_000,
    modes={"pipelined": 90_000, "blocking-one": 4_000},
    peer=False,
)
DRAMATIQ = Contender(
    "dramatiq",
    "dramatiq",
    "bench.dramatiq",
    drain=16_000,
    modes={"blocking-one": 4_000},
)
# Its default is eight threads; for jobs that never wait, fewer drain faster.
DRAMATIQ_FEWER = replace(DRAMATIQ, name="dramatiq, 4 threads", environment={"BENCH_THREADS": "4"}, drain_only=True)
PEERS = (
    Contender("faststream", "faststream", "bench.faststream", drain=16_000, modes={"pipelined": 16_000}),
    DRAMATIQ,
    DRAMATIQ_FEWER,
    Contender("taskiq", "taskiq", "bench.taskiq", drain=16_000, modes={"pipelined": 16_000}),
    Contender("celery", "celery", "bench.celery", drain=12_000, modes={"blocking-one": 3_000}),
)
EVERYONE = (HARELINE, HARELINE_UNREPORTED, *PEERS, RAW)
