"""What every kind of report shows of a results dict, in words: cells, notes and verdicts as text."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from string import ascii_lowercase
from typing import Any

from regbench.tables.statistics import format_mean, format_number

UNITS = {"percent": "%", "fraction": "", "": ""}  # any other unit is shown as it is
DIFFERENCES = {"percent": "points", "fraction": "", "": ""}  # the unit of a difference
RATIO = "times"  # the unit of a claim on ratios
NOTHING = "–"
UNJUDGED = "not measured"  # a verdict


@dataclass(frozen=True)
class Entry:
    """One cell in words; `value` and `published_value` are numbers to sort by, `notes` count `View.notes` from 1."""

    published: str = ""
    source: str = ""
    measured: str = ""
    notes: tuple[int, ...] = ()
    value: float | None = None
    published_value: float | None = None


@dataclass(frozen=True)
class Verdict:
    """A claim, or one place (`part`) of a claim that speaks of several."""

    says: str
    verdict: str
    effect: str
    interval: str
    seeds: str
    context: str = ""
    note: str = ""
    part: bool = False


@dataclass
class View:
    """A results dict in words: `rows` are (label, one entry a column); `sources` are letter → source.

    `unjudged` are the claims of which nothing could be judged, such as those on columns that a scale leaves out.
    """

    rows: list[tuple[str, list[Entry]]]
    columns: list[str]
    caption: str
    published: bool  # whether any published value is known
    notes: list[str] = field(default_factory=list)
    sources: dict[str, str] = field(default_factory=dict)
    verdicts: list[Verdict] = field(default_factory=list)
    unjudged: list[Verdict] = field(default_factory=list)


def view(results: dict[str, Any]) -> View:
    """The words of a results dict."""
    cells = {(cell["row"], cell["column"]): cell for cell in results["cells"]}
    columns, labels = results["columns"], {row["key"]: row["label"] for row in results["rows"]}
    sources = {c["published"]["source"]: "" for c in cells.values() if c["published"]}
    if len(sources) > 1:
        sources = {source: _letters(i) for i, source in enumerate(sources)}
    decimals = {c["key"]: _decimals(cells, c["key"]) for c in columns}
    seeds = {c["seeds"] for c in cells.values() if c["mean"] is not None and not c["deterministic"]}
    stale = {key for key, run in results["runs"].items() if run.get("stale")}
    notes: list[str] = []

    def entry(row: str, column: str) -> Entry:
        cell = cells.get((row, column))
        if cell is None:
            return Entry()
        own = [cell["why"]] if cell["why"] else []
        if stale.intersection(run for runs in cell["runs"].values() for run in runs):
            own.append("Stale: other code than the present made some of its runs.")
        notes.extend(note for note in own if note not in notes)
        shown = cell["published"]
        return Entry(
            published=_published(shown, decimals[column]) if shown else NOTHING,
            source=sources[shown["source"]] if shown else "",
            measured=_measured(cell, results["unit"], one_count=len(seeds) == 1),
            notes=tuple(sorted(notes.index(note) + 1 for note in own)),
            value=cell["mean"],
            published_value=shown["value"] if shown else None,
        )

    verdicts = list(_verdicts(results["claims"]))
    rows = [(label, [entry(key, column["key"]) for column in columns]) for key, label in labels.items()]
    return View(
        rows=rows,
        columns=[column["label"] for column in columns],
        caption=_caption(results, seeds, bool(sources)),
        published=bool(sources),
        notes=notes,
        sources={letter: source for source, letter in sources.items()},
        verdicts=[line for line in verdicts if line.part or line.verdict != UNJUDGED],
        unjudged=[line for line in verdicts if not line.part and line.verdict == UNJUDGED],
    )


def count_verdicts(results: Iterable[dict[str, Any]]) -> dict[str, int]:
    """How many claims hold, fail and are undecided in all of these results."""
    verdicts = [claim["verdict"] for result in results for claim in result["claims"]]
    return {name: verdicts.count(name) for name in ("holds", "fails", "undecided")}


def _letters(index: int) -> str:
    return (_letters(index // 26 - 1) if index >= 26 else "") + ascii_lowercase[index % 26]


def _decimals(cells: dict[tuple[str, str], dict[str, Any]], column: str) -> int:
    """The column's published values have the decimals of the one that has most: a JSON number loses 79.50's zero."""
    exact = (
        cell["published"]["value"]
        for (_, key), cell in cells.items()
        if key == column and cell["published"] and not cell["published"]["approximate"]
    )
    return max((_own_decimals(value) for value in exact), default=0)


def _own_decimals(value: float) -> int:
    return len(f"{value:.10f}".rstrip("0").partition(".")[2])


def _published(published: dict[str, Any], decimals: int) -> str:
    if published["approximate"]:
        return f"≈ {format_number(published['value'])}"
    return format_number(published["value"], decimals)


def _measured(cell: dict[str, Any], unit: str, one_count: bool) -> str:
    if cell["mean"] is None:
        return cell["state"]
    remarks = []
    if cell["deterministic"]:
        remarks.append("deterministic")
    elif not one_count:
        remarks.append(_seeds(cell["seeds"]))
    if cell["state"] != "done":
        remarks.append(cell["state"])
    number = format_mean(cell["mean"], cell["sd"], unit, deterministic=cell["deterministic"])
    return number + (f" ({', '.join(remarks)})" if remarks else "")


def _seeds(number: int) -> str:
    return "1 seed" if number == 1 else f"{number} seeds"


def _caption(results: dict[str, Any], seeds: set[int], published: bool) -> str:
    unit = UNITS.get(results["unit"], results["unit"])
    better = {"max": "higher", "min": "lower"}[results["direction"]]
    text = f"{results['metric']}{f' in {unit}' if unit else ''}, {better} is better. "
    if all(cell["mean"] is None for cell in results["cells"]):
        text += "Nothing is measured yet."
    elif not seeds:
        text += "All that is measured is deterministic."
    elif seeds == {1}:
        text += "Measured: one seed."
    elif len(seeds) == 1:
        text += f"Measured: mean ± standard deviation over {max(seeds)} seeds."
    else:
        text += "Measured: mean ± standard deviation (seeds)."
    if not published and "ranking" not in results:
        text += " No published values are known."
    elif published and results["scale"] != "paper":
        text += " Published values are at the paper's own scale: compare differences, not levels."
    return text


def _verdicts(claims: list[dict[str, Any]]) -> Iterable[Verdict]:
    for claim in claims:
        many = len(claim["parts"]) > 1
        means = {"all": " (in each)", "mean": " (in the mean)"}.get(claim["means"], "")
        yield verdict_in_words(
            claim, claim, says=claim["says"] + means, context=claim["context"], note=claim["note"]
        )
        for part in claim["parts"] if many else ():
            yield verdict_in_words(claim, part, says=part["place"], part=True)


def verdict_in_words(claim: dict[str, Any], judged: dict[str, Any], **words: Any) -> Verdict:
    """`judged` is the claim or one of its parts. A difference has a sign and the table's unit; a ratio has no sign."""
    effect, interval = judged["effect"], judged["interval"]
    unit = DIFFERENCES.get(claim["unit"], claim["unit"])
    shown, bounds = NOTHING, NOTHING
    if effect is not None:
        half = (interval[1] - interval[0]) / 2 if interval else 0.0  # 0 also where nothing varies
        # two digits of the half-width: a bound that decides should not be rounded to the value that it excludes
        decimals = 1 - int(f"{half:.1e}".split("e")[1]) if half else None
        shown = f"{_signed(effect, claim['unit'], decimals)} {unit}".strip()
        if interval:
            low, high = (_signed(bound, claim["unit"], decimals) for bound in interval)
            bounds = f"{low} to {high} ({100 * claim['level']:g} %)"
    return Verdict(
        verdict=judged["verdict"], effect=shown, interval=bounds, seeds=str(judged["seeds"]), **words
    )


def _signed(value: float, unit: str, decimals: int | None) -> str:
    text = format_mean(value, None, unit) if decimals is None else format_number(value, decimals)
    if unit != RATIO and float(text) > 0:
        text = "+" + text
    return text.replace("-", "−", 1) if text.startswith("-") else text
