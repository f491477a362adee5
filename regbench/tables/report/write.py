"""The folder of a report: the same table as Markdown, LaTeX, CSV, JSON, a figure and a page."""

import csv
import io
import json
from pathlib import Path
from typing import Any

from regbench.files import write_whole
from regbench.tables.report import pages, ranking
from regbench.tables.report.latex import latex_tables
from regbench.tables.report.markdown import escape, markdown_tables

FIELDS = (
    "row",
    "column",
    "published",
    "approximate",
    "source",
    "mean",
    "sd",
    "seeds",
    "deterministic",
    "state",
    "why",
)


def write_report(results: dict[str, Any], folder: Path) -> list[Path]:
    """Writes the report into `folder` and returns its files, each written whole or not at all.

    table.md, table.tex (booktabs), table.csv (a line a cell, in the table's unit), results.json, index.html, and
    figure.png and figure.svg where there is a value to draw.
    """
    return write_section(pages.section(results), folder, pages.report_page)


def write_section(section: pages.Section, folder: Path, page: Any) -> list[Path]:
    """The same for a section that is drawn already; `page` makes index.html of it."""
    results = section.results
    title = f"# {escape(results['title'])}: scale {results['scale']}\n\n"
    files = {
        "table.md": title + markdown_tables(results),
        "table.tex": latex_tables(results),
        "table.csv": csv_table(results),
        "results.json": json.dumps(results, indent=1, ensure_ascii=False, allow_nan=False) + "\n",
        "index.html": page(section),
    }
    if section.png:
        files |= {"figure.png": section.png, "figure.svg": section.svg}
    if "ranking" in results:
        files |= ranking.files(results["ranking"])
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        write_whole(folder / name, content)
    return [folder / name for name in files]


def csv_table(results: dict[str, Any]) -> str:
    """A line for each cell with the fields of `FIELDS` and the table's unit; numbers at full precision."""
    labels = {kind: {i["key"]: i["label"] for i in results[f"{kind}s"]} for kind in ("row", "column")}
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([*FIELDS, "unit"])
    for cell in results["cells"]:
        published = cell["published"] or {}
        line = {
            **cell,
            "row": labels["row"][cell["row"]],
            "column": labels["column"][cell["column"]],
            "published": published.get("value"),
            "approximate": published.get("approximate"),
            "source": published.get("source"),
        }
        writer.writerow([*(line[name] for name in FIELDS), results["unit"]])
    return out.getvalue()
