"""Writes the tables of docs/performance.md from the JSON document of a run."""

import json
import textwrap
from pathlib import Path

import report

PAGE = Path(__file__).resolve().parent.parent / "docs" / "performance.md"
BEGIN, END = "<!-- begin: ./dev bench --document -->", "<!-- end: ./dev bench --document -->"


def write(source: Path, page: Path = PAGE) -> None:
    """Replace what stands between the page's two marks by the tables of the run in `source`."""
    text = page.read_text()
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    tables = "\n".join(_tables(json.loads(source.read_text())))
    page.write_text(f"{before}{BEGIN}\n\n{tables}\n{END}{after}")


def _tables(document: dict):
    machine, broker = document["machine"], document["broker"]
    yield f"{document['started_at'][:10]}: {machine['cpu']}, {machine['cores']} cores,"
    yield f"Python {machine['python']},"
    yield f"{broker['product']} {broker['version']} on {broker['platform']}. Medians of"
    yield f"{document['arguments']['runs']} runs (the soak: one). Load at the start: {machine['load']}."
    if document.get("database"):
        database = document["database"]
        settings = ", ".join(f"{name} {value}" for name, value in database["settings"].items())
        server = f"The store on PostgreSQL {database['version']}, {database['server']}: {settings}."
        yield from textwrap.wrap(server, 120)
    yield ""
    yield from _table(
        ["target", "measured", "limit", "against", ""],
        [
            [
                target["name"],
                f"{target['measured']:,.2f}",
                f"{'at least' if target['at_least'] else 'at most'} {target['limit']:,.2f}",
                target["against"],
                "met" if target["met"] else "**missed**",
            ]
            for target in document["targets"]
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
