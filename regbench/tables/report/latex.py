"""The table and its verdicts in LaTeX, in the rules of the package booktabs."""

import unicodedata
from typing import Any

from regbench.tables.report.view import Entry, View, view

_CAPITALS = {
    "Gamma",
    "Delta",
    "Theta",
    "Lambda",
    "Xi",
    "Pi",
    "Sigma",
    "Upsilon",
    "Phi",
    "Psi",
    "Omega",
}  # no Latin shape
_SPECIAL = {c: f"\\{c}" for c in "&%$#_{}"} | {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "[": "{[}",  # a row that begins with a bracket would be read as the option of the line break above it
    "]": "{]}",
    "±": r"$\pm$",
    "×": r"$\times$",
    "≈": r"$\approx$",
    "≥": r"$\geq$",
    "≤": r"$\leq$",
    "−": "$-$",
    "→": r"$\rightarrow$",
    "…": r"\ldots{}",
    "–": "--",
    "—": "---",
}


def latex_tables(results: dict[str, Any]) -> str:
    """Two floats: published beside measured, and the claims."""
    shown = view(results)
    parts = ["% needs \\usepackage{booktabs}", _table(results, shown)]
    return "\n\n".join(parts + ([_claims(results, shown)] if results["claims"] else [])) + "\n"


def escape(text: str) -> str:
    r"""Text as LaTeX shows it letter by letter; Greek letters become mathematics.

    >>> print(escape("5 % of a_b, η ≈ 1"))
    5 \% of a\_b, $\eta$ $\approx$ 1
    """
    return "".join(_SPECIAL.get(c) or _greek(c) or c for c in text)


def _greek(letter: str) -> str:
    words = unicodedata.name(letter, "").split()
    if words[:1] != ["GREEK"] or len(words) != 4 or words[2] != "LETTER":
        return ""
    name = words[3].lower().replace("lamda", "lambda")
    if words[1] == "SMALL":
        return f"$\\{name}$"
    return f"$\\{name.title()}$" if name.title() in _CAPITALS else ""


def _table(results: dict[str, Any], shown: View) -> str:
    kinds = ("published", "measured") if shown.published else ("measured",)
    width = len(kinds)
    groups = [f"\\multicolumn{{{width}}}{{c}}{{{escape(column)}}}" for column in shown.columns]
    rules = "".join(
        f"\\cmidrule(lr){{{2 + i * width}-{1 + (i + 1) * width}}}" for i in range(len(shown.columns))
    )
    body = [
        _row([escape(label), *(text for entry in entries for text in _texts(entry, shown.published))])
        for label, entries in shown.rows
    ]
    lines = [
        _row([escape(results["column_title"]), *groups]),
        rules,
        _row([escape(results["row_title"]), *(kinds * len(shown.columns))]),
        "\\midrule",
        *body,
    ]
    caption = f"{escape(results['title'])} (scale {escape(results['scale'])}). {escape(shown.caption)}"
    return _float(results, "", caption, "l" + "r" * width * len(shown.columns), lines, _notes(shown))


def _claims(results: dict[str, Any], shown: View) -> str:
    lines = [_row(["claim", "verdict", "effect", "interval", "seeds", "judged on"]), "\\midrule"]
    for verdict in shown.verdicts:
        context = "; ".join(text for text in (verdict.context, verdict.note) if text)
        texts = [verdict.says, verdict.verdict, verdict.effect, verdict.interval, verdict.seeds, context]
        lines.append(("\\quad " if verdict.part else "") + _row([escape(text) for text in texts]))
    caption = f"{escape(results['title'])}: claims, judged at scale {escape(results['scale'])}."
    spec = "p{0.27\\linewidth}lrrrp{0.17\\linewidth}"
    left = "; ".join(escape(line.says) for line in shown.unjudged)
    return _float(results, "-claims", caption, spec, lines, [f"Not judged here: {left}."] if left else [])


def _float(
    results: dict[str, Any], suffix: str, caption: str, spec: str, lines: list[str], notes: list[str]
) -> str:
    return "\n".join(
        [
            "\\begin{table}",
            "\\centering\\footnotesize",
            f"\\caption{{{caption}}}",
            f"\\label{{tab:{results['slug']}-{results['table']}-{results['scale']}{suffix}}}",
            f"\\begin{{tabular}}{{{spec}}}",
            "\\toprule",
            *lines,
            "\\bottomrule",
            "\\end{tabular}",
            *(f"\\par {note}" for note in notes),
            "\\end{table}",
        ]
    )


def _texts(entry: Entry, published: bool) -> list[str]:
    marks = "".join(f"\\textsuperscript{{{note}}}" for note in entry.notes)
    source = f"\\textsuperscript{{{entry.source}}}" if entry.source else ""
    measured = escape(entry.measured) + marks
    return [escape(entry.published) + source, measured] if published else [measured]


def _notes(shown: View) -> list[str]:
    sources = [
        f"{letter}: {escape(source)}" if letter else escape(source)
        for letter, source in shown.sources.items()
    ]
    notes = [f"\\textsuperscript{{{i}}} {escape(note)}" for i, note in enumerate(shown.notes, start=1)]
    return ([f"Sources of the published values: {'; '.join(sources)}."] if sources else []) + notes


def _row(texts: list[str]) -> str:
    return " & ".join(texts) + r" \\"
