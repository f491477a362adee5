"""What the project has measured itself: docs/results, the tables in the papers' pages, and the site."""

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml
from rich.table import Column
from rich.table import Table as RichTable

from regbench import registry
from regbench.errors import UserError
from regbench.files import write_whole
from regbench.paths import package_dir, shelf
from regbench.tables.spec import Table, load_table, table_files
from regbench.terminal import plain_console

STACKING = "stacking"  # configs/table/stacking: tables of several methods, which are of no paper
COST = re.compile(r"(<!-- cost -->).*?(<!-- /cost -->)", re.DOTALL)
DATA_FOLDER = re.compile(r"(dataset\.root=)(?!<)[^\s'\"\\]+")
PUBLISHED = re.compile(r"(<!-- published:(\w+) -->\n).*?(<!-- /published -->)", re.DOTALL)


def docs_dir() -> Path:
    """RegBench's `docs` folder."""
    return shelf(package_dir(), "docs")


def publish(results: dict[str, Any]) -> list[Path]:
    """Writes results into docs/results and into the paper's page, between its markers for this table and scale.

    Commands then say dataset.root=<folder>, and not where the data lies on this machine.

    Raises:
        UserError: this RegBench is no checkout, or some runs are not finished.
    """
    docs = docs_dir()
    if not (docs.parent / "pyproject.toml").is_file():
        raise UserError(
            "publish=true writes into docs/ of a checkout, and this RegBench is installed from a wheel."
        )
    if any(run["state"] != "done" for run in results["runs"].values()):
        raise UserError(
            "publish=true wants every run finished; the same command without it shows what is left."
        )
    file = docs / "results" / results["slug"] / results["table"] / f"{results['scale']}.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(results, indent=1, ensure_ascii=False, allow_nan=False)
    write_whole(file, DATA_FOLDER.sub(r"\1<folder>", text) + "\n")
    return [file, *update_pages(results["slug"])]


def update_pages(slug: str) -> list[Path]:
    """Brings the generated parts of a paper's page up to date; returns the page where it changed.

    Between `<!-- results:<table>/<scale> -->` and `<!-- /results -->` stands what was measured, between
    `<!-- published:<table> -->` and `<!-- /published -->` what was published, between `<!-- cost -->` and
    `<!-- /cost -->` what `make bench` measured.
    """
    from regbench.tables.report import update_page

    page = docs_dir() / "papers" / f"{slug}.md"
    if not page.is_file():
        return []
    before = page.read_text(encoding="utf-8")
    results = {f"{r['table']}/{r['scale']}": r for r in load_results([docs_dir() / "results" / slug])}
    text = update_page(before, results)
    text = PUBLISHED.sub(
        lambda match: f"{match[1]}\n{published_markdown(load_table(f'{slug}/{match[2]}'))}\n{match[3]}", text
    )
    text = COST.sub(lambda match: f"{match[1]}\n\n{cost_markdown(slug)}\n{match[2]}", text)
    if text == before:
        return []
    write_whole(page, text)
    return [page]


def published_markdown(table: Table) -> str:
    """The published values of a table as Markdown; rows and columns without any are left out."""
    shown = {
        (row, column): f"{'≈ ' if value['approximate'] else ''}{value['value']:.15g}"
        for row in table.rows
        for column in table.columns
        if (value := table.published_value(row, column)) is not None
    }
    columns = [column for column in table.columns if any(place[1] == column for place in shown)]
    decimals = max((len(text.partition(".")[2]) for text in shown.values()), default=0)
    lines = [f"| {' | '.join([table.row_title, *(table.columns[column] for column in columns)])} |"]
    lines.append("|---" + "|--:" * len(columns) + "|")
    for row in table.rows:
        if any(place[0] == row for place in shown):
            values = (_padded(shown.get((row, column), ""), decimals) for column in columns)
            lines.append(f"| {' | '.join([table.rows[row], *values])} |")
    sources = dict.fromkeys(source.source for source in table.published)
    unit = {"percent": ", in %"}.get(table.unit, f", in {table.unit}" if table.unit else "")
    return "\n".join([*lines, "", f"{table.title}{unit}. Sources: {'; '.join(sources)}.", ""])


def cost_markdown(slug: str) -> str:
    """What a method's step costs beside plain training's, as `make bench` measured it, as Markdown.

    Methods whose slug begins with this one's, such as `<slug>_ssl`, belong to the same page.
    """
    head = ("device", "method", "data, network, batch", "step", "plain training", "ratio")
    lines = [f"| {' | '.join(head)} | peak memory beyond plain training |", "|---|---|---|--:|--:|--:|--:|"]
    for path in sorted((docs_dir().parent / "benchmarks" / "results").glob("*.json")):
        measured = json.loads(path.read_text(encoding="utf-8"))
        for name, cost in measured.get("methods", {}).items():
            if name != slug and not name.startswith(f"{slug}_"):
                continue
            place = f"{cost['dataset']}, {cost['backbone']}, {cost['batch_size']}"
            over = "" if cost["over"] == "none" else f" ({cost['over']})"
            step, plain = f"{cost['step_ms']:.1f} ms", f"{cost['plain_ms']:.1f} ms{over}"
            memory = f"{cost['mib'] - cost['plain_mib']:+.1f} MiB of {cost['plain_mib']:.0f}"
            cells = (measured["device"], f"`{name}`", place, step, plain, f"{cost['times']:.2f}", memory)
            lines.append(f"| {' | '.join(cells)} |")
    if len(lines) == 2:
        return "Not measured yet: `make bench`.\n"
    return "\n".join(
        [
            *lines,
            "",
            "Times are medians of alternating runs. Memory is the peak of a process, and differs between processes by "
            "more than some of these differences. `make bench` measures both.",
            "",
        ]
    )


def _padded(text: str, decimals: int) -> str:
    """A published number with as many decimals as the table has: 79.5 beside 78.04 is 79.50."""
    return (
        f"{text}{'' if '.' in text else '.'}{'0' * (decimals - len(text.partition('.')[2]))}"
        if text and decimals
        else text
    )


def load_results(folders: Iterable[Path]) -> list[dict[str, Any]]:
    """The results that lie in some folders; of two for one table and scale the later folder's counts.

    Raises:
        UserError: a file that is no results file.
    """
    found = {}
    for folder in folders:
        for path in sorted(folder.rglob("*.json")):
            try:
                results = json.loads(path.read_text(encoding="utf-8"))
                found[results["slug"], results["table"], results["scale"]] = results
            except (ValueError, KeyError, TypeError) as error:
                raise UserError(
                    f"{path} holds no results of a table ({error}). Remove it, or make it anew."
                ) from error
    return list(found.values())


def make_site(folder: Path, more: Iterable[Path] = ()) -> Path:
    """Builds the static site over all papers and tables and returns its first page.

    Args:
        folder: where it goes.
        more: folders with results beside those that the project has committed, such as `reports`.
    """
    from regbench.tables.report import build_site

    for extra in more:
        if not extra.is_dir():
            raise UserError(f"--results {extra} is no folder.")
    papers = yaml.safe_load((docs_dir() / "papers" / "papers.yaml").read_text(encoding="utf-8"))
    entries = registry.entries()
    for paper in papers:
        entry = entries.get(paper["slug"])
        paper["built"] = entry is not None
        if entry is not None:
            paper["claim"] = entry.claim
    tables = []
    for key in table_files():
        table = load_table(key)
        if table.slug in entries or table.slug == STACKING:
            tables.append(
                {"slug": table.slug, "table": table.name, "title": table.title, "scales": list(table.scales)}
            )
    own = {"slug": STACKING, "title": "Stacked regularizers", "year": "", "task": "RegBench's own table"}
    papers.append({**own, "arxiv": "", "built": True})
    results = load_results([docs_dir() / "results", *more])
    return build_site(results, papers, tables, folder)[0]


def show_tables() -> None:
    """Prints every table with its scales."""
    console = plain_console()
    shown = RichTable(Column("table", no_wrap=True), "title", "scales (seeds)", box=None, pad_edge=False)
    for key in table_files():
        table = load_table(key)
        scales = (
            f"{name} ({len(s.seeds)})" if s.runnable else f"({name})" for name, s in table.scales.items()
        )
        shown.add_row(key, table.title, ", ".join(scales))
    console.print(shown)
    console.print("\nRun one with: regbench reproduce table=<table> scale=<scale>")
