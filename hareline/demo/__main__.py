"""``python -m hareline.demo``: runs the demo and says what it found."""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
import signal
import sys
import tempfile
import uuid
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from hareline.broker import Broker, BrokerUnavailable, find_broker
from hareline.demo.ledger import Ledger
from hareline.demo.plan import plan
from hareline.demo.run import STEADY_RATE, Finding, Run
from hareline.demo.screen import Screen, deaths_table, final_table, legend, shop_table, times, where
from hareline.demo.shop import ShopBooks
from hareline.demo.workers import WorkersFailed
from topology.errors import HarelineError
from topology.settings import Settings


@click.command()
@click.option("--jobs", default=3000, show_default=True, type=click.IntRange(50, 100_000), help="How many, about.")
@click.option("--keep", is_flag=True, help="Leave the broker and the workers running until Ctrl-C.")
@click.option("--workers", default=1, show_default=True, type=click.IntRange(1, 16), help="Processes per job type.")
@click.option("--json", "json_path", type=click.Path(dir_okay=False, path_type=Path), help="Write the numbers there.")
def main(jobs: int, keep: bool, workers: int, json_path: Path | None) -> None:
    """Publishes a few thousand real jobs, some of which fail, and shows what became of every one."""
    console = Console(highlight=False)
    # SIGTERM is taken as Ctrl-C: everything that was started is stopped in good order.
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    directory = Path(tempfile.mkdtemp(prefix="hareline-demo-"))
    try:
        with find_broker(report=lambda line: console.print(line, style="dim", markup=False)) as broker:
            good = Demo(console, broker, directory, jobs, workers).run(keep=keep, json_path=json_path)
    except KeyboardInterrupt:
        console.print("stopped", style="yellow")
        shutil.rmtree(directory / "logs", ignore_errors=True)
        good = False
    except (BrokerUnavailable, HarelineError, WorkersFailed) as error:
        console.print(f"the demo failed: {error}", style="red", markup=False, soft_wrap=True)
        if (directory / "logs").exists():
            console.print(where(directory / "logs"), markup=False, soft_wrap=True)
        good = False
    finally:
        for part in ("media", "errands"):
            shutil.rmtree(directory / part, ignore_errors=True)
        with contextlib.suppress(OSError):  # the logs are left for whoever wants to see them
            directory.rmdir()
    sys.exit(0 if good else 1)


class Demo:
    """One demo on one broker, told to ``console``."""

    def __init__(self, console: Console, broker: Broker, directory: Path, count: int, workers: int) -> None:
        self._console = console
        self._broker = broker
        self._directory = directory
        self._ledger = Ledger()
        self._jobs = plan(count)
        self._workers = workers
        # On a broker that others may use, everything has a name of its own and is removed at the end.
        self._is_guest = broker.source == "HARELINE_BROKER_URL"
        namespace = f"demo-{uuid.uuid4().hex[:8]}" if self._is_guest else "hareline"
        self._settings = replace(
            Settings.from_env(),
            broker_urls=tuple(broker.url.split(",")),
            management_url=broker.management_url,
            namespace=namespace,
            declare="auto",
        )

    def run(self, *, keep: bool, json_path: Path | None) -> bool:
        """Whether everything went as planned."""
        screen = Screen(self._console, self._ledger, len(self._jobs))
        screen.step(f"broker: {self._broker.source}")
        run = Run(self._jobs, self._settings, self._directory, screen, self._ledger, workers_per_type=self._workers)

        async def linger(finding: Finding) -> None:
            self._conclude(finding, json_path)
            self._say_what_runs()
            await _ctrl_c()

        finding = asyncio.run(run.go(remove=self._is_guest, linger=linger if keep else None))
        return finding.is_good(self._ledger) if keep else self._conclude(finding, json_path)

    def _conclude(self, finding: Finding, json_path: Path | None) -> bool:
        ledger, console = self._ledger, self._console
        rows = list(ledger.rows())
        console.print()
        console.print(final_table(rows, console.width))
        console.print(legend(STEADY_RATE))
        console.print()
        console.print(deaths_table(ledger.deaths()))
        console.print(shop_table(finding.shop.balance))
        self._verdict(finding)
        self._shop_verdict(finding.shop)
        console.print(where(self._directory / "logs"), markup=False, soft_wrap=True)
        good = finding.is_good(ledger)
        if json_path is not None:
            json_path.write_text(json.dumps(self._document(finding, good), indent=2) + "\n", encoding="utf-8")
        return good

    def _verdict(self, finding: Finding) -> None:
        console, ledger = self._console, self._ledger
        count = f"{len(ledger.entries):,}"
        if finding.jobs_are_good(ledger):
            kills = sum(finding.kills.values())
            console.print(
                f"[bold green]✓[/] All {count} jobs ended exactly where they had to, in "
                f"{finding.seconds:.0f} s: nothing is lost, though one job killed its worker {times(kills)}."
            )
            return
        console.print(f"[bold red]✗ Not all {count} jobs ended where they had to.[/]")
        elsewhere = [job_id for job_id in ledger.astray if ledger.entries[job_id].is_settled]
        for what, ids in (("lost", ledger.lost), ("not as planned", elsewhere), ("unknown", ledger.strangers)):
            if ids:
                console.print(f"  {what}: {len(ids):,}, for example {', '.join(ids[:5])}", markup=False)
        if finding.waiting:
            console.print(f"  still in queues: {finding.waiting:,}")

    def _shop_verdict(self, shop: ShopBooks) -> None:
        console = self._console
        failed = ", ".join(f"{name} {number}" for name, number in shop.failed_at.items())
        if shop.is_good:
            console.print(
                f"[bold green]✓[/] The shop's books balance to the cent after {shop.seconds:.0f} s: its tables, the "
                "saga log, the\n  payment provider and the ERP agree. "
                f"Orders undone, by the step that failed: {failed}."
            )
            return
        console.print("[bold red]✗ The shop did not come out as it must.[/]")
        for difference in shop.balance["differences"]:
            console.print(f"  {difference}", markup=False)
        answers = ", ".join(f"{status}: {number}" for status, number in shop.answers.items())
        console.print(f"  webhooks answered {answers}; failed: {failed}; replayed: {shop.replayed}", markup=False)

    def _say_what_runs(self) -> None:
        self._console.print()
        self._console.print(f"Broker      {self._broker.url}", markup=False, soft_wrap=True)
        if self._broker.management_url:
            self._console.print(f"Management  {self._broker.management_url}", markup=False, soft_wrap=True)
        self._console.print(f"Namespace   {self._settings.namespace}", markup=False)
        self._console.print("Everything keeps running. Ctrl-C stops it.", style="bold")

    def _document(self, finding: Finding, good: bool) -> dict[str, Any]:
        """The numbers as JSON-ready data; durations are seconds."""
        *rows, total = (asdict(row) for row in self._ledger.rows())
        return {
            "good": good,
            "broker": self._broker.source,
            "steady_rate": STEADY_RATE,
            **asdict(finding),
            "total": total,
            "job_types": rows,
            "dead_letters": [asdict(deaths) for deaths in self._ledger.deaths()],
            "lost": self._ledger.lost,
            "astray": self._ledger.astray,
        }


async def _ctrl_c() -> None:
    """Returns on Ctrl-C, which then ends the demo in good order instead of cancelling it."""
    pressed = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGINT, pressed.set)
    await pressed.wait()


if __name__ == "__main__":
    main()
