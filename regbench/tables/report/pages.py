"""HTML pages from the templates beside this file. A page holds its style, script and figures."""

from collections import Counter
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from regbench.tables.report import figure, ranking
from regbench.tables.report.markdown import hours
from regbench.tables.report.view import View, view

MARKS = {"holds": "✓", "fails": "✗", "undecided": "?", "not measured": "–"}


@dataclass(frozen=True)
class Section:
    """A results dict with what is drawn of it: `curves` are SVG elements, `lines` the labels of their lines."""

    results: dict[str, Any]
    view: View
    png: bytes | None
    svg: str
    figure: Markup
    curves: list[Markup]
    lines: list[str]

    @property
    def key(self) -> str:
        """Names the section within its paper's page, and is its folder beside that page."""
        return f"{self.results['table']}/{self.results['scale']}"

    @property
    def data(self) -> str:
        return ", ".join(self.results["data"])

    @property
    def verdicts(self) -> list[list[Any]]:
        """Each claim with its parts behind it."""
        groups: list[list[Any]] = []
        for verdict in self.view.verdicts:
            if verdict.part:
                groups[-1].append(verdict)
            else:
                groups.append([verdict])
        return groups

    @property
    def states(self) -> list[tuple[str, int]]:
        """How many cells are in which state, the most frequent first."""
        return Counter(cell["state"] for cell in self.results["cells"]).most_common()

    @property
    def metrics(self) -> list[str]:
        return sorted({name for run in self.results["runs"].values() for name in run["metrics"]})


def section(results: dict[str, Any]) -> Section:
    """Draws the figures of a results dict."""
    drawing = figure.comparison(results)
    text = figure.svg(drawing) if drawing else ""
    prefix = f"{results['table']}-{results['scale']}"
    title = f"{results['title']}: published and measured values, as in the table"
    curves = figure.curves(results)
    return Section(
        results=results,
        view=view(results),
        png=figure.png(drawing) if drawing else None,
        svg=text,
        figure=Markup(figure.inline(text, prefix, title)) if drawing else Markup(),
        curves=[
            Markup(figure.inline(figure.svg(panel), f"{prefix}-{i}", f"Learning curves: {label}"))
            for i, (label, panel) in enumerate(curves.panels)
        ],
        lines=curves.lines,
    )


def report_page(section: Section, home: str = "") -> str:
    """The page of one table at one scale; `home` is the address of the paper's page, if there is one."""
    return _environment().get_template("report.html").render(section=section, home=home)


def render(template: str, **values: Any) -> str:
    """A page of the site."""
    return _environment().get_template(template).render(**values)


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["hours"] = hours
    environment.globals["marks"] = MARKS
    environment.globals["ranked"] = ranking
    return environment
