"""The ranking of a comparison (`regbench compare`) in words: for the terminal, Markdown, LaTeX, CSV and the page."""

import csv
import io
from typing import Any

from rich.table import Table as RichTable

from regbench.tables.report import latex
from regbench.tables.report.view import NOTHING, UNITS, verdict_in_words
from regbench.tables.statistics import format_mean
from regbench.terminal import plain_console

FIELDS = ("method", "label", "budget", "mean", "sd", "difference", "low", "high", "level", "p", "verdict", "test_mean",
          "test_sd", "step_ms")  # fmt: skip


def head(ranking: dict[str, Any]) -> list[str]:
    """The columns' titles."""
    unit = UNITS.get(ranking["unit"], ranking["unit"])
    validation, test = (ranking[key].replace("/", " ") for key in ("metric", "test_metric"))
    over = f"over {ranking['baseline']}"
    return ["", "method", f"{validation}, {unit}", over, "interval", "p", "verdict", f"{test}, {unit}", "ms a step",
            "settings tried"]  # fmt: skip


def lines(ranking: dict[str, Any]) -> list[list[str]]:
    """A line of texts for each method, the best on validation first."""
    found = []
    for place, line in enumerate(ranking["methods"], start=1):
        judged = {"effect": line["difference"], "seeds": len(ranking["seeds"]), **line}
        words = verdict_in_words({"unit": ranking["unit"], "level": line["level"]}, judged, says="")
        cost = line["step_ms"]
        found.append([
            str(place) if line["mean"] is not None else NOTHING,
            line["label"],
            _mean(line, ranking["unit"]),
            words.effect,
            words.interval,
            NOTHING if line["p"] is None else "< 0.001" if line["p"] < 0.001 else f"{line['p']:.2g}",
            line["verdict"],
            _mean(line["test"], ranking["unit"]),
            NOTHING if cost is None else format_mean(cost, None),
            str(line["budget"]),
        ])  # fmt: skip
    return found


def caption(ranking: dict[str, Any]) -> str:
    """What the columns hold, in words."""
    seeds = len(ranking["seeds"])
    return (
        f"Ranked by {ranking['metric']} of the weights that are tested: mean ± standard deviation over {seeds} "
        f"seed{'' if seeds == 1 else 's'}. Differences to {ranking['baseline']} are paired by seed; p and verdicts are "
        "corrected for the number of methods (Holm) and of settings, and each interval is Student's at the level that "
        f"decides. {ranking['test_metric']} is of the same weights, for the setting that validation chose; it ranks "
        "nothing. ms a step: median wall time of training for an optimiser step, validation and checkpoints included."
    )


def markdown(ranking: dict[str, Any]) -> str:
    """The ranking, what it says, and what its columns hold."""
    from regbench.tables.report.markdown import escape

    titles = [escape(title) for title in head(ranking)]
    rows = [[escape(text) for text in line] for line in lines(ranking)]
    rule = ["--:", "---", "--:", "--:", "--:", "--:", "---", "--:", "--:", "--:"]
    table = "\n".join("| " + " | ".join(row) + " |" for row in (titles, rule, *rows))
    return "\n\n".join([table, *map(escape, ranking["notes"]), escape(caption(ranking))])


def files(ranking: dict[str, Any]) -> dict[str, str]:
    """ranking.tex (booktabs) and ranking.csv (numbers in full, in the ranking's unit)."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([*FIELDS, "seeds", "unit"])
    for line in ranking["methods"]:
        low, high = line["interval"] or (None, None)
        values = {
            **line,
            "low": low,
            "high": high,
            "test_mean": line["test"]["mean"],
            "test_sd": line["test"]["sd"],
        }
        writer.writerow([*(values[name] for name in FIELDS), len(ranking["seeds"]), ranking["unit"]])
    rows = [" & ".join(map(latex.escape, row)) + r" \\" for row in (head(ranking), *lines(ranking))]
    tex = [
        "% needs \\usepackage{booktabs}",
        r"\begin{table}",
        r"\centering",
        rf"\caption{{{latex.escape(' '.join(ranking['notes'] + [caption(ranking)]))}}}",
        r"\begin{tabular}{rlrrrrlrrr}",
        r"\toprule",
        rows[0],
        r"\midrule",
        *rows[1:],
        r"\bottomrule",
        r"\end{tabular}",
        r"\end{table}",
    ]
    return {"ranking.tex": "\n".join(tex) + "\n", "ranking.csv": out.getvalue()}


def show(ranking: dict[str, Any]) -> None:
    """Prints the ranking and what it says."""
    console = plain_console()
    table = RichTable(box=None, header_style="bold", pad_edge=False)
    for i, title in enumerate(head(ranking)):
        table.add_column(title, justify="left" if i in (1, 6) else "right")
    for line in lines(ranking):
        table.add_row(*line)
    console.print()
    console.print(table)
    for note in ranking["notes"]:
        console.print(note, soft_wrap=True)


def _mean(numbers: dict[str, Any], unit: str) -> str:
    return NOTHING if numbers["mean"] is None else format_mean(numbers["mean"], numbers["sd"], unit)
