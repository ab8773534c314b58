"""Writes the tables of docs/performance.md from the JSON document of a run."""

import json
import re
import textwrap
from pathlib import Path

import report
from scenarios import STORE

PAGE = Path(__file__).resolve().parent.parent / "docs" / "performance.md"
BLOCK = re.compile(
    r"(<!-- begin: \./dev bench --document, of (?P<scenarios>[a-z, -]+) -->\n)"
    r".*?(<!-- end: \./dev bench --document -->)",
    re.DOTALL,
)
"""A part of the page that is written from the runs of some scenarios, and only from runs that have any of them."""


def write(source: Path, page: Path = PAGE) -> None:
    """Replace the tables of each block that the run in `source` has scenarios of."""
    document = json.loads(source.read_text())

    def block(match: re.Match) -> str:
        names = match["scenarios"].split(", ")
        summary = {name: labels for name, labels in document["summary"].items() if name in names}
        if not summary:
            return match[0]
        tables = "\n".join(_tables(document | {"summary": summary}))
        return f"{match[1]}\n{tables}\n{match[3]}"

    page.write_text(BLOCK.sub(block, page.read_text()))


def _tables(document: dict):
    machine, broker = document["machine"], document["broker"]
    yield f"{document['started_at'][:10]}: {machine['cpu']}, {machine['cores']} cores,"
    yield f"Python {machine['python']},"
    yield f"{broker['product']} {broker['version']} on {broker['platform']}. Medians of"
    yield f"{document['arguments']['runs']} runs (the soak: one). Load at the start: {machine['load']}."
    if document.get("database") and set(STORE) & set(document["summary"]):
        database = document["database"]
        settings = ", ".join(f"{name} {value}" for name, value in database["settings"].items())
        server = f"The store on PostgreSQL {database['version']}, {database['server']}: {settings}."
        yield from textwrap.wrap(server, 120)
    yield ""
    yield from _table(
        ["target", "measured", "limit", "against", ""],
        [
            [
                target.name,
                f"{target.measured:,.2f}",
                f"{'at least' if target.at_least else 'at most'} {target.limit:,.2f}",
                target.against,
                "met" if target.met else "**missed**",
            ]
            for target in report.targets(document["summary"])
        ],
    )
    for scenario, labels in document["summary"].items():
        columns = report.COLUMNS[scenario]
        yield f"### {scenario}"
        yield ""
        headings = ["", *(heading for _, heading, _ in columns), "lowest to highest", "times the best peer"]
        yield from _table(headings, [_row(document, scenario, label, labels[label]) for label in labels])
    yield "### Versions and settings"
    yield ""
    yield from _table(
        ["", "versions", "settings"],
        [
            [
                name,
                ", ".join(f"{package} {version}" for package, version in told["versions"].items()),
                ", ".join(f"{setting}: {value}" for setting, value in told["settings"].items()),
            ]
            for name, told in document["contenders"].items()
        ],
    )


def _row(document: dict, scenario: str, label: str, entry: dict) -> list[str]:
    if not entry["runs"]:
        return [label, f"failed: {entry['errors'][0].splitlines()[0][:120]}"]
    columns = report.COLUMNS[scenario]
    digits = report.headline(scenario, entry)[2]
    low, high = entry["spread"]
    times = document["ratios"].get(f"{scenario}: {label}", {}).get("times_better", "")
    cells = [f"{entry[key]:,.{decimals}f}" if key in entry else "" for key, _, decimals in columns]
    return [label, *cells, f"{low:,.{digits}f} to {high:,.{digits}f}", str(times)]


def _table(headings: list[str], rows: list[list[str]]):
    yield f"| {' | '.join(headings)} |"
    yield f"|{'---|' * len(headings)}"
    for row in rows:
        cells = [cell.replace("|", "\\|") for cell in row] + [""] * (len(headings) - len(row))
        yield f"| {' | '.join(cells)} |"
    yield ""
