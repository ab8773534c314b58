"""From runs to medians, targets and tables. Pure, apart from reading what machine this is."""

import os
import platform
import statistics
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

_DELIVERY_CPU = [
    (f"{name}_us", f"CPU us, {name}", 0)
    for name in ("receiver", "relay", "worker", "postgresql", "broker", "generator")
]
_DELIVERY_LATENCY = [("p99_ms", "p99 ms", 1), ("p50_ms", "p50 ms", 1), ("max_ms", "max ms", 1)]
_DELIVERY_FATES = [(name, name, 0) for name in ("accepted", "refused", "unanswered", "lost", "double")]
# Per scenario the figures that its table shows: key, heading, decimals.
COLUMNS = {
    "drain": [
        ("per_second", "jobs/s", 0),
        ("cpu_us", "CPU us/job", 0),
        ("after_rss_mb", "RSS MB", 1),
        ("after_pss_mb", "PSS MB", 1),
    ],
    "enqueue": [("per_second", "jobs/s", 0)],
    "blocking": [("per_second", "jobs/s", 0)],
    "latency": [
        ("p50_ms", "p50 ms", 2),
        ("p99_ms", "p99 ms", 2),
        ("max_ms", "max ms", 1),
        ("idle_rss_mb", "RSS idle MB", 1),
        ("after_rss_mb", "RSS after MB", 1),
        ("after_pss_mb", "PSS after MB", 1),
    ],
    "ladder": [("p50_ms", "late p50 ms", 1), ("p99_ms", "late p99 ms", 1), ("max_ms", "late max ms", 1)],
    "reports": [("per_second", "jobs/s", 0), ("cpu_us", "CPU us/job", 0), ("after_rss_mb", "RSS MB", 1)],
    "sagas": [
        ("per_second", "jobs/s", 0),
        ("cpu_us", "CPU us/job", 0),
        ("p50_ms", "p50 ms", 2),
        ("p99_ms", "p99 ms", 2),
        ("max_ms", "max ms", 1),
    ],
    "soak": [
        ("jobs", "jobs", 0),
        ("idle_rss_mb", "RSS idle MB", 1),
        ("early_rss_mb", "RSS early MB", 1),
        ("end_rss_mb", "RSS end MB", 1),
        ("growth_mb", "growth MB", 1),
    ],
    "relay": [("per_second", "rows/s", 0), ("rows", "rows", 0)],
    "relay-idle": [
        ("p50_ms", "p50 ms", 1),
        ("p99_ms", "p99 ms", 1),
        ("max_ms", "max ms", 1),
        ("commits", "commits", 0),
    ],
    "schedules": [
        ("p50_ms", "late p50 ms", 1),
        ("p99_ms", "late p99 ms", 1),
        ("max_ms", "late max ms", 1),
        ("occurrences", "occurrences", 0),
        ("waiting", "others waiting", 0),
        ("kills", "kill -9", 0),
    ],
    "recorder": [("per_second", "state changes/s", 0), ("events", "state changes", 0)],
    "dead-letters": [
        ("per_second", "letters/s", 0),
        ("letters", "letters", 0),
        ("p50_ms", "page p50 ms", 1),
        ("p99_ms", "page p99 ms", 1),
        ("max_ms", "page max ms", 1),
        ("pages", "pages", 0),
    ],
    "webhooks": [
        ("per_second", "accepted/s", 0),
        ("handled_per_second", "handled/s", 0),
        *_DELIVERY_FATES,
        *_DELIVERY_CPU,
    ],
    "webhooks-steady": [*_DELIVERY_LATENCY, *_DELIVERY_FATES, *_DELIVERY_CPU],
    "webhooks-broker-killed": [*_DELIVERY_LATENCY, *_DELIVERY_FATES],
}


def headline(scenario: str, figures: dict) -> tuple[str, str, int]:
    """The column that an entry is judged by: the first that it has a figure for."""
    return next(column for column in COLUMNS[scenario] if column[0] in figures)


# What reports may cost: a measure, its label with them and without.
REPORTED = (
    ("drain", "hareline", "hareline, reports off"),
    ("enqueue pipelined", "hareline, pipelined", "hareline, reports off, pipelined"),
    ("enqueue many", "hareline, many", "hareline, reports off, many"),
)
# The store's targets: name, scenario, label, figure, limit.
STORE = (
    ("relay, rows/s", "relay", "hareline", "per_second", 5_000),
    ("commit to arrival when idle, p99 ms", "relay-idle", "hareline", "p99_ms", 100),
    ("schedules late, p99 ms", "schedules", "hareline", "p99_ms", 1_000),
    ("schedules late, schedulers killed, p99 ms", "schedules", "hareline, schedulers killed", "p99_ms", 1_000),
    ("recorder, changes/s", "recorder", "hareline", "per_second", 10_000),
    ("dead letters, a filtered page, p99 ms", "dead-letters", "hareline, list filtered", "p99_ms", 200),
    ("webhooks accepted, deliveries/s", "webhooks", "hareline", "per_second", 800),
    ("webhooks at 300/s, p99 ms", "webhooks-steady", "hareline", "p99_ms", 50),
    ("webhooks at 300/s, broker killed, p99 ms", "webhooks-broker-killed", "hareline", "p99_ms", 50),
    ("webhooks at 300/s, broker killed, refused", "webhooks-broker-killed", "hareline", "refused", 0),
    ("dead letters recorded, letters/s", "dead-letters", "hareline, record", "per_second", 3_000),
    ("dead letters replayed, letters/s", "dead-letters", "hareline, replay", "per_second", 5_000),
)


@dataclass(frozen=True)
class Run:
    """One measure of one contender: its figures, or why there are none."""

    scenario: str
    label: str
    contender: str
    peer: bool
    round: int
    figures: dict
    error: str | None = None


@dataclass(frozen=True)
class Target:
    """A target of the project and what was measured; `at_least` says which side of the limit is good."""

    name: str
    measured: float
    limit: float
    at_least: bool
    against: str

    @property
    def met(self) -> bool:
        return self.measured >= self.limit if self.at_least else self.measured <= self.limit


def summarise(runs: list[Run]) -> dict[str, dict[str, dict]]:
    """Medians as {scenario: {label: {figure: median}}}; `spread` holds the lowest and the highest."""
    grouped: dict[str, dict[str, list[Run]]] = {}
    for run in runs:
        grouped.setdefault(run.scenario, {}).setdefault(run.label, []).append(run)
    return {
        scenario: {label: _medians(scenario, entry) for label, entry in labels.items()}
        for scenario, labels in grouped.items()
    }


def _medians(scenario: str, runs: list[Run]) -> dict:
    good = [run.figures for run in runs if run.error is None]
    summary: dict = {"contender": runs[0].contender, "peer": runs[0].peer, "runs": len(good)}
    if errors := [run.error for run in runs if run.error]:
        summary["errors"] = errors
    if not good:
        return summary
    for key, value in good[0].items():
        if isinstance(value, int | float):
            summary[key] = statistics.median(figures[key] for figures in good if key in figures)
    key, _, _ = headline(scenario, good[0])
    summary["spread"] = [min(f[key] for f in good), max(f[key] for f in good)]
    return summary


def _best(labels: dict[str, dict], figure: str, pick) -> tuple[str, float] | None:
    values = [(label, entry[figure]) for label, entry in labels.items() if entry["peer"] and figure in entry]
    return pick(values, key=lambda pair: pair[1]) if values else None


def targets(summary: dict[str, dict[str, dict]]) -> list[Target]:
    """The project's targets, as far as these runs can tell."""

    def figure(scenario: str, label: str, key: str) -> float | None:
        return summary.get(scenario, {}).get(label, {}).get(key)

    found: list[Target] = []

    def judge(name: str, measured: float | None, limit: float | None, *, at_least: bool, against: str) -> None:
        if measured is not None and limit is not None:
            found.append(Target(name, measured, limit, at_least, against))

    def times_best(name: str, scenario: str, label: str, times: float) -> None:
        best = _best(summary.get(scenario, {}), "per_second", max)
        if best:
            limit = times * best[1]
            against = f"{times:g} x {best[0]}"
            judge(name, figure(scenario, label, "per_second"), limit, at_least=True, against=against)

    times_best("drain, jobs/s", "drain", "hareline", 3)
    raw = figure("drain", "raw pika", "per_second")
    if raw is not None:
        # 20,000/s holds for a machine where the raw adapter reaches 40,000/s: half of it, anywhere.
        judge(
            "drain, jobs/s",
            figure("drain", "hareline", "per_second"),
            raw / 2,
            at_least=True,
            against="raw pika / 2",
        )
    times_best("enqueue pipelined, jobs/s", "enqueue", "hareline, pipelined", 3)
    dramatiq = figure("blocking", "dramatiq, blocking-one", "per_second")
    one = figure("blocking", "hareline, blocking-one", "per_second")
    many = figure("blocking", "hareline, blocking-many", "per_second")
    judge("enqueue blocking, jobs/s", one, dramatiq, at_least=True, against="dramatiq")
    judge(
        "enqueue_many blocking, jobs/s",
        many,
        dramatiq and 5 * dramatiq,
        at_least=True,
        against="5 x dramatiq",
    )
    for key in ("p50_ms", "p99_ms"):
        best = _best(summary.get("latency", {}), key, min)
        if best:
            name = f"latency at 500/s, {key.replace('_', ' ')}"
            judge(name, figure("latency", "hareline", key), best[1], at_least=False, against=best[0])
    judge("worker memory, MB", figure("drain", "hareline", "after_rss_mb"), 70, at_least=False, against="70 MB")
    judge(
        "memory growth in the soak, MB",
        figure("soak", "hareline", "growth_mb"),
        3,
        at_least=False,
        against="flat",
    )
    judge("retries late, p99 ms", figure("ladder", "hareline", "p99_ms"), 100, at_least=False, against="100 ms")
    for what, on, off in REPORTED:
        reported, silent = figure("reports", on, "per_second"), figure("reports", off, "per_second")
        share = 100 * reported / silent if reported and silent else None
        judge(f"{what} with reports, %", share, 90, at_least=True, against="without reports")
    steps = figure("sagas", "hareline, steps of sagas", "per_second")
    jobs = figure("sagas", "hareline, plain jobs", "per_second")
    share = 100 * steps / jobs if steps and jobs else None
    judge("steps of sagas, % of plain jobs", share, 40, at_least=True, against="plain jobs")
    between = figure("sagas", "hareline, step to step", "p50_ms")
    judge("step to step when idle, p50 ms", between, 5, at_least=False, against="5 ms")
    for name, scenario, label, key, limit in STORE:
        at_least = key == "per_second"
        unit = name.rpartition(" ")[2]
        judge(name, figure(scenario, label, key), limit, at_least=at_least, against=f"{limit:,} {unit}")
    return found


def ratios(summary: dict[str, dict[str, dict]]) -> dict[str, dict]:
    """Per scenario and way: the best peer's first figure, and how many times better Hareline's is."""
    found = {}
    for scenario, labels in summary.items():
        key = COLUMNS[scenario][0][0]
        fewer_is_better = key.endswith(("_ms", "_mb"))
        best = _best(labels, key, min if fewer_is_better else max)
        for label, entry in labels.items():
            if best and key in entry and entry["contender"] == "hareline":
                times = best[1] / entry[key] if fewer_is_better else entry[key] / best[1]
                found[f"{scenario}: {label}"] = {
                    "best_peer": best[0],
                    "best": best[1],
                    "times_better": round(times, 2),
                }
    return found


def show(console: Console, summary: dict[str, dict[str, dict]], judged: list[Target]) -> None:
    compared = ratios(summary)
    for scenario, labels in summary.items():
        console.print(_scenario_table(scenario, labels, compared))
    for scenario, labels in summary.items():
        for label, entry in labels.items():
            for error in entry.get("errors", ()):
                console.print(f"[red]{scenario}, {label}[/red]: {escape(error)}")
    if judged:
        console.print(_target_table(judged))


def _scenario_table(scenario: str, labels: dict[str, dict], compared: dict[str, dict]) -> Table:
    columns = COLUMNS[scenario]
    table = Table(title=f"{scenario} (medians)", title_justify="left")
    table.add_column("who", no_wrap=True)
    for heading in (*(heading for _, heading, _ in columns), "lowest-highest", "x best peer"):
        table.add_column(heading, justify="right")
    for label, entry in labels.items():
        if not entry["runs"]:
            table.add_row(label, "[red]failed[/red]")
            continue
        cells = [f"{entry[key]:,.{digits}f}" if key in entry else "-" for key, _, digits in columns]
        low, high = entry["spread"]
        digits = headline(scenario, entry)[2]
        times = compared.get(f"{scenario}: {label}", {}).get("times_better", "")
        failed = f" ({len(entry['errors'])} failed)" if "errors" in entry else ""
        table.add_row(label + failed, *cells, f"{low:,.{digits}f}-{high:,.{digits}f}", str(times))
    return table


def _target_table(judged: list[Target]) -> Table:
    table = Table(title="targets", title_justify="left")
    for heading in ("target", "measured", "limit", "against", ""):
        table.add_column(heading, justify="right" if heading in {"measured", "limit"} else "left")
    for target in judged:
        sign = ">=" if target.at_least else "<="
        verdict = "[green]met[/green]" if target.met else "[red]missed[/red]"
        limit = f"{sign} {target.limit:,.2f}"
        table.add_row(target.name, f"{target.measured:,.2f}", limit, target.against, verdict)
    return table


def machine() -> dict:
    """What this ran on. Load is the one-minute average: a busy machine gives other figures."""
    model, memory = platform.processor(), None
    for path, wanted in (("/proc/cpuinfo", "model name"), ("/proc/meminfo", "MemTotal")):
        if Path(path).exists():
            line = next((text for text in Path(path).read_text().splitlines() if text.startswith(wanted)), "")
            value = line.partition(":")[2].strip()
            model, memory = (value or model, memory) if wanted == "model name" else (model, value)
    return {
        "cpu": model,
        "cores": os.cpu_count(),
        "memory": memory,
        "system": platform.platform(),
        "python": platform.python_version(),
        "load": round(os.getloadavg()[0], 2),
    }
