"""Compares Hareline with Celery, Dramatiq, Taskiq and FastStream on one broker: `./dev bench [--quick]`.

Durable quorum queues, persistent messages, publisher confirms, acknowledgements after the work, 256-byte
payloads. Every measure is repeated, and the contenders take turns, so that drift of the machine hits all.
"""

import argparse
import json
import os
import signal
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path

BENCH = Path(__file__).resolve().parent
sys.path[:0] = [str(BENCH), str(BENCH.parent)]

import psycopg  # noqa: E402
from pika.exceptions import AMQPError  # noqa: E402
from rich.console import Console  # noqa: E402
from sqlalchemy.exc import SQLAlchemyError  # noqa: E402

import document  # noqa: E402
import report  # noqa: E402
from arena import Arena  # noqa: E402
from contenders import EVERYONE, HARELINE, PEERS  # noqa: E402
from environments import SetupError, ensure  # noqa: E402
from hareline.broker import Broker, BrokerUnavailable, find_broker  # noqa: E402
from processes import ContenderError, ask  # noqa: E402
from scenarios import STORE, Effort, Entry, entries  # noqa: E402
from store_database import Postgres, parse_address  # noqa: E402
from topology.errors import HarelineError  # noqa: E402

SCENARIOS = tuple(entries(set()))
MODULES = tuple(dict.fromkeys(contender.module for contender in EVERYONE))
QUICK = Effort(size=0.25, seconds=3.0, soak=50_000, store=0.1)
FAILURES = (ContenderError, OSError, TimeoutError, HarelineError, psycopg.Error, SQLAlchemyError, AMQPError)


def say(line: str) -> None:
    print(f"[{datetime.now().astimezone():%H:%M:%S}] {line}", file=sys.stderr, flush=True)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="./dev bench", description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one run each, a quarter of the jobs: a smoke test")
    parser.add_argument("--only", metavar="NAME,...", help=f"of {', '.join(MODULES)}")
    parser.add_argument("--scenario", metavar="NAME,...", help=f"of {', '.join(SCENARIOS)}")
    parser.add_argument("--runs", type=int, help="of each measure (3)")
    parser.add_argument("--soak", action="store_true", help="a million jobs in the soak instead of 200,000")
    parser.add_argument("--json", type=Path, metavar="PATH", help="where to write (bench/results/TIME.json)")
    parser.add_argument("--broker", metavar="URL", help="HARELINE_BROKER_URL, or whatever broker can be had")
    parser.add_argument("--management", metavar="URL", help="HARELINE_MANAGEMENT_URL, or AMQP's port plus 10,000")
    parser.add_argument("--database", metavar="URL", help="PostgreSQL for the store instead of a private one")
    parser.add_argument(
        "--document", type=Path, metavar="JSON", help="write docs/performance.md's tables, measure nothing"
    )
    args = parser.parse_args()
    args.only = _names(parser, "--only", args.only, MODULES)
    args.scenario = _names(parser, "--scenario", args.scenario, SCENARIOS)
    args.runs = args.runs or (1 if args.quick else 3)
    try:
        _ = args.database and parse_address(args.database)
    except ValueError as error:
        parser.error(f"--database: {error}")
    return args


def _names(parser: argparse.ArgumentParser, option: str, given: str | None, known: tuple[str, ...]) -> list[str]:
    names = given.split(",") if given else list(known)
    if unknown := [name for name in names if name not in known]:
        parser.error(f"{option}: no '{unknown[0]}'; there are {', '.join(known)}")
    return names


def effort_of(args: argparse.Namespace) -> Effort:
    effort = QUICK if args.quick else Effort()
    return replace(effort, soak=1_000_000) if args.soak else effort


def set_up(names: list[str]) -> dict[str, str]:
    """Make every peer's environment; returns what went wrong, by name."""
    problems = {}
    for contender in PEERS:
        if contender.module in names and contender.module not in problems:
            try:
                ensure(contender, say)
            except SetupError as error:
                problems[contender.module] = f"not installed: {error}"
                say(f"setup    {contender.name}: {problems[contender.module]}")
    return problems


def describe(arena: Arena, names: list[str], problems: dict[str, str]) -> dict[str, dict]:
    """Versions and settings of everyone, as they tell them; who cannot is out, with the reason."""
    told = {}
    for module in names:
        contender = next(c for c in EVERYONE if c.module == module)
        try:
            if module not in problems:
                told[module] = ask(contender, arena.environment(), "describe", timeout=60)
        except ContenderError as error:
            problems[module] = str(error)
            say(f"setup    {contender.name}: {error}")
    return told


def describe_database(postgres: Postgres, args: argparse.Namespace) -> dict | None:
    """Version and settings of the PostgreSQL; None where it is not needed or cannot be had."""
    if HARELINE.module not in args.only or not set(STORE) & set(args.scenario):
        return None
    try:
        facts = postgres.facts()
    except (ContenderError, psycopg.Error) as error:
        say(f"database {error}")  # each of its scenarios says it again, as failed
        return None
    say(f"database PostgreSQL {facts['version']} ({facts['server']})")
    return facts


def measure(
    arena: Arena, scenario: str, entry: Entry, *, number: int, effort: Effort, problem: str | None
) -> report.Run:
    peer = entry.contender.peer
    figures, error = {}, problem
    if problem is None:
        try:
            figures = entry.measure(arena, effort)
        except FAILURES as failure:
            error = str(failure) or repr(failure)
    if error:
        outcome = f"FAILED: {error}"
    else:
        key, heading, digits = report.headline(scenario, figures)
        outcome = f"{figures[key]:,.{digits}f} {heading}"
    say(f"{scenario:8} run {number}: {entry.label}: {outcome}")
    return report.Run(scenario, entry.label, entry.contender.module, peer, number, figures, error)


def run_all(arena: Arena, args: argparse.Namespace, problems: dict[str, str]) -> Iterator[report.Run]:
    """Every measure, one after the other: the contenders take turns within a round."""
    effort = effort_of(args)
    planned = entries(set(args.only))
    for scenario in args.scenario:
        rounds = 1 if scenario == "soak" else args.runs
        for number in range(1, rounds + 1):
            for entry in planned[scenario]:
                problem = problems.get(entry.contender.module)
                yield measure(arena, scenario, entry, number=number, effort=effort, problem=problem)


def compare(broker: Broker, args: argparse.Namespace, runs: list[report.Run]) -> dict:
    """Fill `runs` until the end or Ctrl-C; returns where and with whom they were made."""
    with Postgres(args.database) as postgres, Arena(broker, postgres) as arena:
        machine, server = report.machine(), arena.server()
        say(f"broker   {server['product']} {server['version']} ({broker.source}), {machine['cores']} cores")
        if machine["load"] > machine["cores"] / 4:
            say(f"machine  busy (load {machine['load']}): expect low figures that differ from run to run")
        database = describe_database(postgres, args)
        problems = set_up(args.only)
        told = describe(arena, args.only, problems)
        interrupted = False
        try:
            for run in run_all(arena, args, problems):
                runs.append(run)  # noqa: PERF402 -- what there is must survive an interrupt
        except KeyboardInterrupt:
            interrupted = True
            say(f"stopped  reporting the {len(runs)} runs that were made")
        where = {"machine": machine, "broker": server, "database": database}
        return where | {"contenders": told, "problems": problems, "interrupted": interrupted}


def main() -> int:
    args = parse()
    if args.document:
        document.write(args.document)
        return 0
    if args.broker:
        os.environ["HARELINE_BROKER_URL"] = args.broker
    if args.management:
        os.environ["HARELINE_MANAGEMENT_URL"] = args.management
    started, clock = datetime.now(UTC), time.monotonic()
    runs: list[report.Run] = []
    try:
        with find_broker(report=say) as broker:
            setting = compare(broker, args, runs)
    except BrokerUnavailable as error:
        say(str(error))
        return 1
    summary = report.summarise(runs)
    judged = report.targets(summary)
    report.show(Console(width=max(110, Console().width)), summary, judged)
    results = {
        "started_at": started.isoformat(timespec="seconds"),
        "seconds": round(time.monotonic() - clock, 1),
        "arguments": {"quick": args.quick, "runs": args.runs, "soak": args.soak},
        **setting,
        "summary": summary,
        "ratios": report.ratios(summary),
        "targets": [asdict(target) | {"met": target.met} for target in judged],
        "runs": [asdict(run) for run in runs],
    }
    path = args.json or BENCH / "results" / f"{started:%Y%m%dT%H%M%SZ}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(results, indent=1) + "\n")
    say(f"written  {path}")
    if setting["interrupted"]:
        return 130
    return 1 if any(run.error and run.contender == HARELINE.module for run in runs) else 0


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends the children as Ctrl-C does
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit("stopped")
