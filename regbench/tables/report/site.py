"""The static site: an index of all papers, a page for each that has tables, and the report of each measured table."""

from collections import defaultdict
from functools import partial
from pathlib import Path
from typing import Any

from regbench.files import write_whole
from regbench.tables.report import pages
from regbench.tables.report.view import count_verdicts
from regbench.tables.report.write import write_section

STATES = ("tables", "method", "not built yet")  # in the index's order


def build_site(
    results: list[dict[str, Any]], papers: list[dict[str, Any]], tables: list[dict[str, Any]], folder: Path
) -> list[Path]:
    """Writes the site into `folder` and returns its files. Files of an earlier site are overwritten, none is removed.

    Args:
        results: results dicts, at most one for a table and scale.
        papers: slug, title, year, task, arxiv, built (whether the method is there), and optionally claim, which its
            page shows. The index keeps their order within each state.
        tables: slug, table, title, scales: all tables that there is a file of, measured or not.
        folder: index.html goes there, a paper's page to <slug>/index.html, a report to <slug>/<table>/<scale>/.
    """
    measured: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for result in results:
        measured[result["slug"]].append(result)
    declared: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for table in tables:
        declared[table["slug"]].append(table)

    written, entries = [], []
    for paper in papers:
        own, known = measured[paper["slug"]], declared[paper["slug"]]
        entries.append(_entry(paper, own, known))
        if entries[-1]["page"]:
            written += _write_paper(paper, own, known, folder / paper["slug"])
    entries.sort(key=lambda entry: STATES.index(entry["state"]))
    folder.mkdir(parents=True, exist_ok=True)
    text = pages.render("index.html", entries=entries, total=count_verdicts(results))
    write_whole(folder / "index.html", text)
    return [folder / "index.html", *written]


def _entry(
    paper: dict[str, Any], results: list[dict[str, Any]], tables: list[dict[str, Any]]
) -> dict[str, Any]:
    """What the index says of a paper."""
    some = bool(tables or results)
    return {
        **paper,
        "state": "tables" if some else "method" if paper["built"] else "not built yet",
        "tables": len({table["table"] for table in [*tables, *results]}),
        "measured": len({result["table"] for result in results}),
        "page": f"{paper['slug']}/index.html" if some else "",
        "verdicts": count_verdicts(results),
    }


def _write_paper(
    paper: dict[str, Any], results: list[dict[str, Any]], tables: list[dict[str, Any]], folder: Path
) -> list[Path]:
    """A paper's page and the reports below it."""
    sections = [pages.section(result) for result in results]
    written = []
    for section in sections:
        page = partial(pages.report_page, home="../../index.html")
        written += write_section(section, folder / section.key, page)
    done = {section.key for section in sections} | {
        f"{table['table']}/smoke" for table in tables
    }  # a test's scale
    missing = [
        {**table, "scales": left}
        for table in tables
        if (left := [scale for scale in table["scales"] if f"{table['table']}/{scale}" not in done])
    ]
    source = next((result["paper"] for result in results if result["paper"]), {})
    values = {"claim": "", "authors": "", "venue": "", "code": ""} | source | paper
    folder.mkdir(parents=True, exist_ok=True)
    text = pages.render("paper.html", paper=values, sections=sections, missing=missing)
    write_whole(folder / "index.html", text)
    return [folder / "index.html", *written]
