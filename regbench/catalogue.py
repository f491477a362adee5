"""`regbench list`, `info` and `cite`: read from the methods' files and configs as text, without importing torch."""

import re
import sys
import unicodedata
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from regbench import registry
from regbench.errors import UserError, unknown
from regbench.paths import config_folders, configs_dir, shelf

NARROW = 100  # columns of a terminal below which `regbench list` prints two lines a method instead of a table
STOP_WORDS = {"a", "an", "the", "on", "in", "of", "for", "to", "is", "are", "with", "from", "by", "and", "at", "as", "via"}
JOURNAL = re.compile(r"journal|transactions|letters|^(nature|science|neural|pnas|tpami|tnnls|tip|tmlr|jmlr|ijcv)\b", re.I)
LATEX = str.maketrans(
    {
        "\\": r"\textbackslash{}",
        "{": r"\textbraceleft{}",  # BibTeX counts the brace of \{ too
        "}": r"\textbraceright{}",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        **{c: f"\\{c}" for c in "&%$#_"},
    }
)


@dataclass(frozen=True)
class Hyperparameter:
    """One key of a method's config: its default, and the comment that explains it."""

    name: str
    default: str
    meaning: str


def configs_of(slug: str) -> Path:
    """The `configs` folder of the package that the method `slug` (a registered one) is in."""
    return shelf(registry.entries()[slug].path.parents[2], "configs")


def config_path(slug: str) -> Path:
    """The method's config file. Raises UserError where there is none."""
    path = configs_of(slug) / "regularizer" / f"{slug}.yaml"
    if not path.is_file():
        raise UserError(f"The method '{slug}' has no config; write {path}.")
    return path


def defaults(slug: str) -> dict[str, Any]:
    """The groups that train.yaml and the method's config choose, e.g. {"dataset": "mnist5k", "optimizer": "sgd", …}."""
    chosen = {}
    for path in (configs_dir() / "train.yaml", config_path(slug)):
        for item in _read_yaml(path).get("defaults", []):
            for key, value in item.items() if isinstance(item, dict) else ():
                if group := re.fullmatch(r"(?:override /)?(\w+)(?:@[\w.]+)?", key):
                    chosen[group[1]] = value
    return chosen


def hyperparameters(slug: str) -> list[Hyperparameter]:
    """The method's hyperparameters in the order of its config, explained by the comment on or above each line."""
    path = config_path(slug)
    meanings, above, key = {}, [], None
    for line in path.read_text(encoding="utf-8").splitlines():
        if match := re.match(r"(\w+):(?:.*?\s#\s*(.*))?", line):
            key = match[1]
            meanings[key] = match[2] or " ".join(above)
            above = []
        elif line.startswith("#"):
            above.append(line.lstrip("# "))
        elif key and (continued := re.match(r"\s+#\s*(.*)", line)):
            meanings[key] = f"{meanings[key]} {continued[1]}".strip()
        else:
            above = []
    values = {name: value for name, value in _read_yaml(path).items() if name not in ("defaults", "name")}
    return [Hyperparameter(name, _shown(value), meanings.get(name, "")) for name, value in values.items()]


def datasets_with(fields: tuple[str, ...]) -> list[str]:
    """Names of the datasets, RegBench's and the plug-ins', whose batches have these fields."""
    nodes = {}
    for folder in reversed(config_folders()):  # the first folder wins
        nodes |= {path.stem: _read_yaml(path) for path in folder.glob("dataset/*.yaml")}
    found = []
    for name, node in nodes.items():
        for base in (b for b in node.get("defaults", []) if b in nodes):
            node = {**nodes[base], **node}
        if not name.startswith("_") and set(fields) <= set(node.get("fields", ())):
            found.append(name)
    return sorted(found)


def show_list(task: str | None = None, search: str | None = None) -> None:
    """Prints the methods, those of a task or with a text in slug, title, authors or claim.

    A table, or in a narrow terminal two lines a method.
    """
    if task is not None and task not in registry.TASKS:
        raise unknown("task", task, registry.TASKS)
    found = []
    for slug, entry in registry.entries().items():
        paper = entry.paper
        text = f"{slug} {paper.title if paper else ''} {paper.authors if paper else ''} {entry.claim}".lower()
        if (task is None or entry.task == task) and (search is None or search.lower() in text):
            found.append(entry)
    if not found:
        what = "No method" + (f" of the task {task}" if task else "") + (f" mentions '{search}'" if search else "")
        raise UserError(f"{what}; `regbench list` shows them all.")
    console = _console()
    wide = [Column(name, no_wrap=True) for name in ("slug", "task")]
    table = Table(*wide, "paper", *(Column(name, no_wrap=True) for name in ("year", "dataset", "backbone")),
                  box=None, pad_edge=False)  # fmt: skip
    for entry in found:
        chosen = defaults(entry.slug)
        title, year = (entry.paper.title, str(entry.paper.year)) if entry.paper else ("(baseline)", "")
        if console.width < NARROW:
            console.print(Text(entry.slug, "bold"), f"({entry.task}; {chosen['dataset']}, {chosen['backbone']})")
            console.print(Text(f"{title} {year}".strip()), style="dim", soft_wrap=False)
        table.add_row(entry.slug, entry.task, title, year, chosen["dataset"], chosen["backbone"])
    if console.width >= NARROW:
        console.print(table)
    for entry in found:
        for twin in entry.twins:
            print(f"regbench: '{entry.slug}' is also in {twin}; neither runs until one is renamed.", file=sys.stderr)


def show_info(slug: str) -> None:
    """Prints claim, paper, hyperparameters, how to run the method, and the files that it consists of."""
    entry, console, chosen = registry.find(slug), _console(), defaults(slug)
    console.print(Text(slug, "bold"), f"({entry.task})")
    if paper := entry.paper:
        console.print(paper.title)
        console.print(f"{paper.authors}. {paper.venue} {paper.year}.")
        for link in (paper.arxiv and f"https://arxiv.org/abs/{paper.arxiv}", paper.code):
            if link:
                console.print(link, soft_wrap=True)
    console.print(f"\n{entry.claim}\n")
    rows = hyperparameters(slug)
    if rows:
        table = Table(Column("hyperparameter", no_wrap=True), "default", "meaning", box=None, pad_edge=False)
        for row in rows:
            table.add_row(f"regularizer.{row.name}", row.default, row.meaning)
        console.print(table)
        console.print()
    console.print(f"regbench train regularizer={slug}", soft_wrap=True)
    console.print(f"trains on {chosen['dataset']} with {chosen['backbone']}; dataset=<name> and backbone=<name> choose others.")
    configs = configs_of(slug)
    recipes = sorted(path.stem for path in configs.glob(f"experiment/{slug}/*.yaml"))
    if recipes:
        console.print("\nRecipes, each with the method, data, network and schedule:")
        for recipe in recipes:
            console.print(f"regbench train experiment={slug}/{recipe}", soft_wrap=True)
    console.print()
    page = shelf(entry.path.parents[2], "docs") / "papers" / f"{slug}.md"
    tables = sorted(configs.glob(f"table/{slug}/*.yaml"))
    for what, path in (("method", entry.path), ("config", config_path(slug)), *(("table", t) for t in tables), ("page", page)):
        if path.is_file():
            console.print(f"{what}: {path}", style="dim", soft_wrap=True)


def bibtex(slug: str) -> str:
    """The method's paper as a BibTeX entry, with the kind of key that the ACL Anthology has.

    Raises:
        UserError: no such method, or a baseline without a paper.

    >>> print(bibtex("label_smoothing"))
    @inproceedings{szegedy-etal-2016-rethinking,
      title = {{Rethinking the Inception Architecture for Computer Vision}},
      author = {Christian Szegedy and Vincent Vanhoucke and Sergey Ioffe and Jonathon Shlens and Zbigniew Wojna},
      year = {2016},
      booktitle = {CVPR},
      eprint = {1512.00567},
      archivePrefix = {arXiv},
      url = {https://arxiv.org/abs/1512.00567}
    }
    """
    paper = registry.find(slug).paper
    if paper is None:
        raise UserError(f"'{slug}' is a baseline without a paper of its own; there is nothing to cite.")
    authors = [name.strip() for name in re.split(r",\s*and\s|,|\sand\s", paper.authors)]
    surnames = [_plain(name.split()[-1]) for name in authors]
    names = [surnames[0], "etal"] if len(surnames) > 2 else surnames
    words = [_plain(word) for word in re.split(r"[\s\-:/]+", paper.title)]
    word = next((word for word in words if word and word not in STOP_WORDS), words[0])
    kind, where = ("article", "journal") if JOURNAL.search(paper.venue) else ("inproceedings", "booktitle")
    fields = {"title": f"{{{paper.title.translate(LATEX)}}}", "author": " and ".join(authors).translate(LATEX), "year": paper.year}
    if paper.venue.lower().startswith("arxiv"):
        kind = "misc"
    else:
        fields[where] = paper.venue.translate(LATEX)
    if paper.arxiv:
        fields |= {"eprint": paper.arxiv, "archivePrefix": "arXiv", "url": f"https://arxiv.org/abs/{paper.arxiv}"}
    body = ",\n".join(f"  {key} = {{{value}}}" for key, value in fields.items())
    return f"@{kind}{{{'-'.join([*names, str(paper.year), word])},\n{body}\n}}"


def _plain(word: str) -> str:
    """Lower-case ASCII letters and digits of a word, accents taken off."""
    return re.sub(r"[^a-z0-9]", "", unicodedata.normalize("NFKD", word).lower())


@cache
def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except yaml.YAMLError as error:
        raise UserError(f"{path} is no YAML: {' '.join(str(error).split())}.") from error


def _shown(value: Any) -> str:
    """A value as one types it on the command line."""
    if isinstance(value, str):
        return value
    return yaml.safe_dump(value, default_flow_style=True, width=10_000).removesuffix("...\n").strip()


def _console() -> Console:
    # Piped output has no width of its own: a table cut at 80 columns would lose what a script looks for.
    console = Console(markup=False, highlight=False, emoji=False)
    return console if console.is_terminal else Console(width=10_000, markup=False, highlight=False, emoji=False)
