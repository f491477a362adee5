"""Figures: published and measured values as dots with error bars, and learning curves.

Matplotlib is imported when a figure is drawn: it takes longer than all the rest of a report.
"""

import io
import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from regbench.tables.report.view import UNITS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's colours, told apart by colour-blind eyes, those that are legible on white and on black
SERIES = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#b8860b", "#56a0d3", "#7a6fd0", "#808080")
MARKERS = "osD^vPX"  # one fewer than the colours, so that a pair comes again only after 56
INK, FAINT = "#333334", "#b0b0b1"  # replaced by the page's own colours in a page
STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "regbench",
    "font.size": 9,
    "font.family": "sans-serif",
    "axes.edgecolor": FAINT,
    "axes.labelcolor": INK,
    "axes.titlesize": 9,
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "axes.titlecolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.color": FAINT,
    "grid.alpha": 0.4,
    "grid.linewidth": 0.6,
    "text.color": INK,
    "text.parse_math": False,
    "xtick.color": INK,
    "ytick.color": INK,
    "legend.frameon": False,
}


def comparison(results: dict[str, Any]) -> "Figure | None":
    """Published (hollow) and measured (filled, ± standard deviation) values, a line for each row of the table.

    At scale `paper` both are on one axis. At any other scale data and network are not the paper's, so that levels
    can't be compared: two panels share the rows, each with an axis of its own. A column of another quantity than the
    table's metric, such as a difference of two runs, is left out where others are not. None where there is no value.
    """
    of_metric = {cell["column"] for cell in results["cells"] if cell["reduction"] == results["metric"]}
    of_another = {cell["column"] for cell in results["cells"] if cell["reduction"]} - of_metric
    shown = [column for column in results["columns"] if column["key"] not in of_another] or results["columns"]
    keys = {column["key"] for column in shown}
    cells = [cell for cell in results["cells"] if cell["column"] in keys]
    results = {**results, "columns": shown, "cells": cells}
    published = any(cell["published"] for cell in cells)
    measured = any(cell["mean"] is not None for cell in cells)
    if not (published or measured):
        return None
    import matplotlib as mpl
    from matplotlib.figure import Figure

    apart = published and measured and results["scale"] != "paper"
    rows, columns = results["rows"], results["columns"]
    step = min(0.25 + 0.06 * len(columns), 0.75)
    width = 8.0 if apart else 6.4
    longest = max(len(column["label"]) for column in columns)
    side_by_side = max(
        1, min(len(columns), 4, int(width / (0.5 + 0.07 * longest)))
    )  # in inches, a letter has 0.07
    height = (
        step * len(rows)
        + 0.9
        + (0.1 + 0.2 * math.ceil(len(columns) / side_by_side) if len(columns) > 1 else 0)
    )
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        axes = figure.subplots(1, 1 + apart, sharey=True, squeeze=False)[0]
        unit = UNITS.get(results["unit"], results["unit"])
        for i, ax in enumerate(axes):
            if published and i == 0:
                _dots(ax, results, "published")
            if measured and i == len(axes) - 1:
                _dots(ax, results, "measured")
            ax.set_xlabel(results["metric"] + (f", {unit}" if unit else ""))
            ax.grid(axis="x")
            for row in range(1, len(rows), 2):
                ax.axhspan(row - 0.5, row + 0.5, color=FAINT, alpha=0.13, lw=0)
            ax.set_axisbelow(True)
            ax.tick_params(axis="y", length=0)
            ax.locator_params(axis="x", nbins=6)
        here = f"measured, scale {results['scale']}"
        axes[0].set_title("published" if published else here)
        axes[-1].set_title(here if measured else "published")
        if published and measured and not apart:
            axes[0].set_title("published (hollow) and measured (filled)")
        axes[0].set_yticks(range(len(rows)), [row["label"] for row in rows])
        axes[0].set_ylim(len(rows) - 0.5, -0.5)
        if len(columns) > 1:
            figure.legend(handles=_keys(columns), loc="outside lower center", ncols=side_by_side)
        figure.draw_without_rendering()
        figure.set_layout_engine("none")  # else it is laid out anew for each format
    return figure


@dataclass(frozen=True)
class Curves:
    """Learning curves with their spread over seeds: `panels` are (what is shown, figure), `lines` the lines' labels.

    A panel is a row with a line for each column; of a table with one column, one panel with a line for each row.
    Line i has the colour `colour(i)` and is dashed from number len(SERIES) on; panels have no legend of their own.
    """

    panels: "list[tuple[str, Figure]]"
    lines: list[str]


def curves(results: dict[str, Any]) -> Curves:
    """The learning curves of the cells that have some."""
    drawn = [cell for cell in results["cells"] if cell["curve"]]
    if not drawn:
        return Curves([], [])
    import matplotlib as mpl

    over, along = ("row", "column") if len(results["columns"]) > 1 else ("column", "row")
    with_curves = {cell[along] for cell in drawn}
    items = [item for item in results[f"{along}s"] if item["key"] in with_curves]
    keys = [item["key"] for item in items]
    panels = []
    with mpl.rc_context(STYLE):
        low, high = _range(drawn)
        for place in results[f"{over}s"]:
            lines = [(keys.index(cell[along]), cell["curve"]) for cell in drawn if cell[over] == place["key"]]
            if lines:
                panels.append((place["label"], _panel(place["label"], lines, low, high)))
    return Curves(panels, [item["label"] for item in items])


def colour(index: int) -> str:
    """The colour of the series of this number."""
    return SERIES[index % len(SERIES)]


def png(figure: "Figure") -> bytes:
    """The figure on white, at 160 dots an inch."""
    out = io.BytesIO()
    figure.savefig(out, format="png", dpi=160, facecolor="white")
    return out.getvalue()


def svg(figure: "Figure") -> str:
    """The figure as a file of its own, on no background."""
    import matplotlib as mpl

    out = io.StringIO()
    with mpl.rc_context(STYLE):
        figure.savefig(out, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return out.getvalue()


def inline(drawing: str, prefix: str, title: str) -> str:
    """An SVG file's text as an element of a page: the page's font and colours, ids that begin with `prefix`."""
    from markupsafe import escape

    text = drawing[drawing.index("<svg") :].replace(INK, "currentColor").replace(FAINT, "var(--faint)")
    for i, series in enumerate(SERIES):
        text = text.replace(series, f"var(--series-{i})")
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r"font: ([\d.]+px|(?:bold|700) [\d.]+px) [^;\"]*", r"font: \1 var(--sans)", text)
    text = re.sub(r'\b(id="|href="#|url\(#)', rf"\1{prefix}-", text)
    return text.replace("<svg ", f'<svg role="img" aria-label="{escape(title)}" ', 1)


def _dots(ax: "Axes", results: dict[str, Any], kind: str) -> None:
    rows = {row["key"]: i for i, row in enumerate(results["rows"])}
    count = len(results["columns"])
    for i, column in enumerate(results["columns"]):
        offset = 0.7 * ((i + 0.5) / count - 0.5)
        x, y, spread = [], [], []
        for cell in results["cells"]:
            value = (cell["published"] or {}).get("value") if kind == "published" else cell["mean"]
            if cell["column"] == column["key"] and value is not None:
                x.append(value)
                y.append(rows[cell["row"]] + offset)
                spread.append((cell["sd"] or 0.0) if kind == "measured" else 0.0)
        fill = {"markerfacecolor": "none"} if kind == "published" else {}
        ax.errorbar(x, y, xerr=spread, fmt=MARKERS[i % len(MARKERS)], color=colour(i), markersize=5, **fill)


def _keys(columns: list[dict[str, str]]) -> list[Any]:
    from matplotlib.lines import Line2D

    return [
        Line2D([], [], color=colour(i), marker=MARKERS[i % len(MARKERS)], ls="", label=column["label"])
        for i, column in enumerate(columns)
    ]


def _range(cells: list[dict[str, Any]]) -> tuple[float, float]:
    """One range for all panels, so that they can be compared: all values of the later half of the epochs, and of the
    first half, whose steep part would make all curves look alike, those that lie nearest.
    """
    means = [[v for v in cell["curve"]["mean"] if v is not None and math.isfinite(v)] for cell in cells]
    late = [value for mean in means for value in mean[len(mean) // 2 :]]
    low, high = min(late, default=0.0), max(late, default=1.0)
    near = 1.5 * (high - low) or 1.0
    early = [value for mean in means for value in mean if low - near <= value <= high + near]
    low, high = min(early, default=low), max(early, default=high)
    room = 0.05 * (high - low) or 1.0
    return low - room, high + room


def _panel(title: str, lines: list[tuple[int, dict[str, Any]]], low: float, high: float) -> "Figure":
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3.6, 2.6))
    ax = figure.add_axes((0.19, 0.19, 0.78, 0.7))
    for i, curve in lines:
        mean = [math.nan if value is None else value for value in curve["mean"]]
        spread = [sd or 0.0 for sd in curve["sd"]]
        ax.plot(curve["epoch"], mean, color=colour(i), lw=1.4, ls="-" if i < len(SERIES) else "--")
        below, above = ([m + sign * sd for m, sd in zip(mean, spread, strict=True)] for sign in (-1, 1))
        ax.fill_between(curve["epoch"], below, above, color=colour(i), alpha=0.18, lw=0)
    unit = UNITS.get(lines[0][1]["unit"], lines[0][1]["unit"])
    shown = {curve["metric"] for _, curve in lines}
    label = ", ".join(part for part in (*(shown if len(shown) == 1 else ()), unit) if part)
    ax.set(title=title, xlabel="epoch", ylabel=label, ylim=(low, high))
    ax.grid()
    ax.locator_params(nbins=5, integer=True, axis="x")
    return figure
