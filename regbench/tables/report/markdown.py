"""Published beside measured and the verdicts as Markdown, for reports and for the papers' pages."""

import re
from collections.abc import Mapping
from typing import Any

from regbench.errors import UserError
from regbench.tables.report import ranking
from regbench.tables.report.view import Entry, Verdict, View, view

_OPEN, _CLOSE = r"<!-- results:(?P<key>\S+) -->", "<!-- /results -->"


def markdown_tables(results: dict[str, Any]) -> str:
    """The table, its notes, the claims with their verdicts and the command that makes them."""
    shown = view(results)
    parts = [escape(results["about"])] if results["about"] else []
    if "ranking" in results:
        parts.append(ranking.markdown(results["ranking"]))
    parts += [_grid(results, shown), escape(shown.caption) + _notes(shown)]
    if shown.verdicts:
        parts.append(_claims(shown.verdicts))
    if shown.unjudged:
        parts.append(f"Not judged here: {'; '.join(escape(line.says) for line in shown.unjudged)}.")
    parts.append(
        f"Made by `{results['command']}` ({results['made']}, {hours(results['cost_s'])} of training)."
    )
    return "\n\n".join(parts) + "\n"


def update_page(text: str, results_by_key: Mapping[str, dict[str, Any]]) -> str:
    """The page with what stands between its markers replaced by the tables of today.

    A block opens with `<!-- results:<table>/<scale> -->` and closes with `<!-- /results -->`. One whose results are not
    there is left as it is: it has not been measured yet.

    Raises:
        UserError: a block is not closed.
    """

    def block(match: re.Match[str]) -> str:
        key = match["key"]
        if match["body"] is None:
            raise UserError(f"The block '<!-- results:{key} -->' is not closed by '{_CLOSE}': add that line.")
        if key not in results_by_key:
            return match[0]
        return f"<!-- results:{key} -->\n\n{markdown_tables(results_by_key[key])}\n{_CLOSE}"

    body = rf"(?P<body>(?:(?!<!-- results:).)*?)(?:{re.escape(_CLOSE)})"
    return re.sub(rf"{_OPEN}(?:{body})?", block, text, flags=re.DOTALL)


def escape(text: str) -> str:
    """Text as Markdown shows it letter by letter, in a table's cell too."""
    return re.sub(r"([\\|*<`\[\]]|(?<!\w)_|_(?!\w))", r"\\\1", " ".join(text.split()))


def hours(seconds: float) -> str:
    """A duration in the unit that suits it.

    >>> hours(45), hours(2 * 60 + 40), hours(5400)
    ('45 s', '3 min', '1.5 h')
    """
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _grid(results: dict[str, Any], shown: View) -> str:
    kinds = ("published", "measured") if shown.published else ("measured",)
    labels = [column if len(shown.columns) > 1 else "" for column in shown.columns]
    head = [f"{label}, {kind}" if label else kind for label in labels for kind in kinds]
    corner = " / ".join(part for part in (results["row_title"], results["column_title"]) if part)
    lines = [_line([corner, *head]), "|---" + "|--:" * len(head) + "|"]
    for label, entries in shown.rows:
        lines.append(
            _line([label, *(text for entry in entries for text in _texts(entry, shown.published))], raw=1)
        )
    return "\n".join(lines)


def _texts(entry: Entry, published: bool) -> list[str]:
    marks = "".join(f"<sup>{note}</sup>" for note in entry.notes)
    measured = escape(entry.measured) + marks
    source = f"<sup>{entry.source}</sup>" if entry.source else ""
    return [entry.published + source, measured] if published else [measured]


def _line(texts: list[str], raw: int | None = None) -> str:
    """A table's line; the texts from number `raw` on are Markdown already."""
    done = [text if raw is not None and i >= raw else escape(text) for i, text in enumerate(texts)]
    return "| " + " | ".join(done) + " |"


def _notes(shown: View) -> str:
    lines = [f"{i}. {escape(note)}" for i, note in enumerate(shown.notes, start=1)]
    if shown.published:
        named = [
            f"{letter}: {escape(source)}" if letter else escape(source)
            for letter, source in shown.sources.items()
        ]
        lines.insert(0, f"Sources of the published values: {'; '.join(named)}.\n")
    return "".join(f"\n{line}" for line in lines)


def _claims(verdicts: list[Verdict]) -> str:
    lines = ["| claim | verdict | effect | interval | seeds | judged on |", "|---|---|--:|--:|--:|---|"]
    for line in verdicts:
        says = f"↳ {escape(line.says)}" if line.part else escape(line.says)
        verdict = line.verdict if line.part else f"**{line.verdict}**"
        context = escape("; ".join(text for text in (line.context, line.note) if text))
        lines.append(_line([says, verdict, line.effect, line.interval, line.seeds, context], raw=0))
    return "\n".join(lines)
