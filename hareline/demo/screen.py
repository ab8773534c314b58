"""What a person sees of the demo: progress while it runs, and the table at the end."""

from __future__ import annotations

import os
import textwrap
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from rich import box
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.markup import escape
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from hareline.demo.ledger import Deaths, Ledger, Row
from hareline.demo.workers import Workers

_LINE_EVERY: Final = 5.0
_DRAW_EVERY: Final = 0.5


class Screen:
    """Draws on ``console``; where that is no terminal, as in a CI log, progress is a line every 5 s."""

    def __init__(self, console: Console, ledger: Ledger, total: int) -> None:
        self._console = console
        self._ledger = ledger
        self._total = total
        self._live: Live | None = None
        self._next_line = 0.0
        self._next_drawing = 0.0
        self._began = time.monotonic()

    def step(self, text: str) -> None:
        """One line about a step that is done."""
        self._console.print(f"[green]✓[/] {escape(text)}", highlight=False)

    @contextmanager
    def progress(self) -> Iterator[None]:
        """Shows progress during the block."""
        if not self._console.is_terminal:
            yield
            return
        with Live(console=self._console, refresh_per_second=8, transient=True) as live:
            self._live = live
            try:
                yield
            finally:
                self._live = None

    def update(self, stage: str, workers: Workers) -> None:
        """Draws the books as they are now, twice a second at most."""
        if time.monotonic() < self._next_drawing:
            return
        self._next_drawing = time.monotonic() + _DRAW_EVERY
        rows = list(self._ledger.rows())
        if self._live is not None:
            self._live.update(self._picture(rows, stage, workers))
        elif time.monotonic() >= self._next_line:
            self._next_line = time.monotonic() + _LINE_EVERY
            total = rows[-1]
            self._console.print(
                f"  {time.monotonic() - self._began:3.0f} s  {stage}: {total.published} published, "
                f"{total.done} done, {total.retried} retried, {total.dead} in the DLQ",
                highlight=False,
            )

    def _picture(self, rows: list[Row], stage: str, workers: Workers) -> RenderableType:
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
        table.add_column("job type", style="cyan", min_width=16)
        for heading in ("published", "done", "retried", "in the DLQ", "under way"):
            table.add_column(heading, justify="right", min_width=9)
        for row in rows:
            under_way = row.published - row.done - row.dead
            numbers = (row.published, row.done, row.retried, row.dead, max(under_way, 0))
            table.add_row(row.name, *(f"{number:,}" for number in numbers), style="bold" if row.name == "all" else "")
        settled = rows[-1].done + rows[-1].dead
        line = Table.grid(padding=(0, 1))
        line.add_row(
            ProgressBar(total=self._total, completed=min(settled, self._total), width=48),
            f"{100 * settled / self._total:3.0f}%",
            Text(f"{time.monotonic() - self._began:.0f} s", style="dim"),
        )
        status = Text.assemble((stage, "bold"), f"   {self._mood(workers)}")
        return Group(table, line, status)

    @staticmethod
    def _mood(workers: Workers) -> str:
        kills = sum(workers.kills.values())
        if kills:
            return f"a job has killed its worker {times(kills)}; it was started again"
        return f"{workers.count} worker processes"


# Each heading, and its form for a terminal too narrow for all of them.
_HEADINGS: Final = {
    "published": "pub-\nlished",
    "done": "done",
    "retried": "re-\ntried",
    "in the DLQ": "DLQ",
    "lost": "lost",
    "ran twice": "ran\ntwice",
    "jobs/s": "jobs/s",
    "p50": "p50",
    "p99": "p99",
    "longest": "long-\nest",
}
_FULL_WIDTH: Final = 118


def final_table(rows: Iterable[Row], width: int) -> Table:
    """What became of every job, drawn for a terminal of ``width`` columns; 80 are enough."""
    narrow = width < _FULL_WIDTH
    table = Table(
        box=box.SIMPLE_HEAD if narrow else box.ROUNDED,
        padding=0 if narrow else (0, 1),
        pad_edge=not narrow,
        header_style="bold",
        title="What became of every job",
        title_style="bold",
    )
    table.add_column("job type", style="cyan", no_wrap=True, vertical="bottom")
    for heading in _HEADINGS.values() if narrow else _HEADINGS:
        table.add_column(heading, justify="right", no_wrap=True)
    for row in rows:
        if row.name == "all":
            table.add_section()
        table.add_row(
            row.name,
            f"{row.published:,}",
            f"{row.done:,}",
            _coloured(row.retried, "yellow"),
            _coloured(row.dead, "magenta"),
            f"[bold red]{row.lost:,}[/]" if row.lost else "[bold green]0[/]",
            _coloured(row.twice, "yellow"),
            "-" if row.throughput is None else f"{row.throughput:,.0f}",
            *(_seconds(value) for value in (row.p50, row.p99, row.longest)),
            style="bold" if row.name == "all" else "",
        )
    return table


def legend(rate: float) -> Text:
    """What the table's numbers mean."""
    return Text(
        f"p50, p99: from due to done at a steady {rate:g} jobs/s, without retries; longest: of all jobs.\n"
        f"jobs/s: the rest, published at once, all job types side by side on {os.cpu_count()} processors.\n"
        "retried: needed more than one attempt. ran twice: had its effect again after its worker died.",
        style="dim",
    )


def deaths_table(deaths: Sequence[Deaths]) -> Table:
    """Why jobs are in the dead-letter queue, with an example of each."""
    table = Table(box=box.SIMPLE_HEAD, title="The dead-letter queue", title_style="bold", pad_edge=False)
    table.add_column("job type", style="cyan", no_wrap=True)
    table.add_column("reason", no_wrap=True)
    table.add_column("jobs", justify="right", no_wrap=True)
    table.add_column("for example", style="dim")
    for line in deaths:
        table.add_row(
            line.job_type, line.reason, f"{line.count:,}", escape(textwrap.shorten(line.error, 70, placeholder=" ..."))
        )
    return table


def shop_table(balance: Mapping[str, Any]) -> Table:
    """The shop's books: in each line, the first number less the second is the third. Money is in cents."""
    table = Table(box=box.SIMPLE_HEAD, title="The shop's books", title_style="bold", pad_edge=False, show_header=False)
    table.add_column(style="cyan", no_wrap=True)
    for _ in range(3):
        table.add_column(justify="right", no_wrap=True)
    table.add_column()
    for name, *columns in _SHOP:
        numbers = [balance[column] for column, _ in columns]
        shown = (f"{number / 100:,.2f}" if name == "money" else f"{number:,}" for number in numbers)
        cells = (f"[dim]{text}[/] {number}" for number, (_, text) in zip(shown, columns, strict=True))
        total, less, left = numbers
        table.add_row(name, *cells, "[bold green]✓[/]" if total - less == left else "[bold red]✗[/]")
    return table


_SHOP: Final = (
    ("orders", ("orders", "came"), ("compensated", "compensated"), ("completed", "completed")),
    ("stock", ("stock_before", "before"), ("stock_sold", "sold"), ("stock_now", "now")),
    ("money", ("charged", "charged"), ("refunded", "refunded"), ("earned", "earned")),
)


def where(logs: Path) -> str:
    """The line that says where the logs are."""
    return f"Logs of the workers: {logs}"


def times(number: int) -> str:
    """``once``, ``twice``, ``3 times``."""
    return {1: "once", 2: "twice"}.get(number, f"{number} times")


def _coloured(number: int, colour: str) -> str:
    return f"[{colour}]{number:,}[/]" if number else "0"


def _seconds(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value * 1000:,.0f} ms" if value < 1 else f"{value:,.1f} s"
