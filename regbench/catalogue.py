"""`regbench list`, `info` and `cite`: read from the methods' files and configs as text, without torch."""

import re
import sys
import unicodedata
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from rich.padding import Padding
from rich.table import Column, Table
from rich.text import Text

from regbench import registry
from regbench.errors import UserError, unknown
from regbench.paths import config_folders, configs_dir, shelf
from regbench.terminal import plain_console

NARROW = 110  # columns of a terminal below which lines with an indented text take the place of tables
STOP_WORDS = {"a", "an", "and", "are", "as", "at", "by", "for", "from", "in", "of", "on", "the", "to"}
JOURNALS = "nature|neural computation|neural networks|pnas|science|tpami|tnnls|tip|tmlr|jmlr|ijcv"
JOURNAL = re.compile(rf"journal|transactions|letters|^({JOURNALS})\b", re.IGNORECASE)
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
    """What train.yaml and the method's config choose of each group, e.g. {"dataset": "mnist5k", …}."""
    chosen = {}
    for path in (configs_dir() / "train.yaml", config_path(slug)):
        for item in _read_yaml(path).get("defaults", []):
            for key, value in item.items() if isinstance(item, dict) else ():
                if group := re.fullmatch(r"(?:override /)?(\w+)(?:@[\w.]+)?", key):
                    chosen[group[1]] = value
    return chosen


def hyperparameters(slug: str) -> list[Hyperparameter]:
    """The method's hyperparameters in the order of its config, explained by the comment on or above each."""
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


def datasets_with(fields: tuple[str, ...], without: tuple[str, ...] = ()) -> list[str]:
    """Names of the datasets, RegBench's and the plug-ins', whose batches have these fields, or can be given them by
    adapters (`registry.ADAPTERS`), and none of those in `without`.
    """
    nodes, added = {}, {field for fields_ in registry.ADAPTERS.values() for field in fields_}
    for folder in reversed(config_folders()):  # the first folder wins
        nodes |= {path.stem: _read_yaml(path) for path in folder.glob("dataset/*.yaml")}
    found = []
    for name, node in nodes.items():
        for base in (b for b in node.get("defaults", []) if b in nodes):
            node = {**nodes[base], **node}
        own = set(node.get("fields", ()))
        if not name.startswith("_") and set(fields) <= own | added and not own & set(without):
            found.append(name)
    return sorted(found)


def show_list(task: str | None = None, search: str | None = None) -> None:
    """Prints the methods, those of a task or with a text in slug, title, authors or claim, as a table."""
    if task is not None and task not in registry.TASKS:
        raise unknown("task", task, registry.TASKS)
    found = []
    for slug, entry in registry.entries().items():
        paper = entry.paper
        text = f"{slug} {paper.title if paper else ''} {paper.authors if paper else ''} {entry.claim}".lower()
        if (task is None or entry.task == task) and (search is None or search.lower() in text):
            found.append(entry)
    if not found:
        of, mentions = f" of the task {task}" if task else "", f" mentions '{search}'" if search else ""
        raise UserError(f"No method{of}{mentions}; `regbench list` shows them all.")
    console = plain_console()
    names = ("slug", "task", "paper", "year", "dataset", "backbone")
    table = Table(*(Column(name, no_wrap=name != "paper") for name in names), box=None, pad_edge=False)
    for entry in found:
        data, network = (str(defaults(entry.slug)[group]) for group in ("dataset", "backbone"))
        title, year = (entry.paper.title, str(entry.paper.year)) if entry.paper else ("(baseline)", "")
        if console.width < NARROW:
            console.print(Text(entry.slug, "bold"), f"{entry.task} {year}".strip() + f"; {data}, {network}")
            console.print(Padding(title, (0, 0, 0, 4)))
        table.add_row(entry.slug, entry.task, title, year, data, network)
    if console.width >= NARROW:
        console.print(table)
    for entry in found:
        for twin in entry.twins:
            note = f"regbench: '{entry.slug}' is also in {twin}; neither runs until one is renamed."
            print(note, file=sys.stderr)


def show_info(slug: str) -> None:
    """Prints claim, paper, hyperparameters, how to run the method, and the files that it consists of."""
    entry, console, chosen = registry.find(slug), plain_console(), defaults(slug)
    console.print(Text(slug, "bold"), f"({entry.task})")
    if paper := entry.paper:
        console.print(paper.title)
        console.print(f"{paper.authors}. {paper.venue} {paper.year}.")
        for link in (paper.arxiv and f"https://arxiv.org/abs/{paper.arxiv}", paper.code):
            if link:
                console.print(link, soft_wrap=True)
    console.print(f"\n{entry.claim}\n")
    rows = hyperparameters(slug)
    table = Table(Column("hyperparameter", no_wrap=True), "default", "meaning", box=None, pad_edge=False)
    for row in rows:
        if console.width < NARROW:
            console.print(Text(f"regularizer.{row.name}={row.default}", "bold"))
            console.print(Padding(row.meaning, (0, 0, 0, 4)))
        table.add_row(f"regularizer.{row.name}", row.default, row.meaning)
    if rows and console.width >= NARROW:
        console.print(table)
    if rows:
        console.print()
    console.print(f"regbench train regularizer={slug}", soft_wrap=True)
    data, network = chosen["dataset"], chosen["backbone"]
    console.print(f"trains on {data} with {network}; dataset=<name> and backbone=<name> choose others.")
    configs = configs_of(slug)
    recipes = sorted(path.stem for path in configs.glob(f"experiment/{slug}/*.yaml"))
    if recipes:
        console.print("\nRecipes, each with the method, data, network and schedule:")
        for recipe in recipes:
            console.print(f"regbench train experiment={slug}/{recipe}", soft_wrap=True)
    console.print()
    files = [("method", entry.path), ("config", config_path(slug))]
    files += [("table", path) for path in sorted(configs.glob(f"table/{slug}/*.yaml"))]
    files += [("page", shelf(entry.path.parents[2], "docs") / "papers" / f"{slug}.md")]
    for what, path in files:
        if path.is_file():
            console.print(f"{what}: {path}", style="dim", soft_wrap=True)


def bibtex(slug: str) -> str:
    """The method's paper as a BibTeX entry, with the kind of key that the ACL Anthology has.

    Raises:
        UserError: no such method, or a baseline without a paper.

    >>> print(bibtex("mixup"))
    @inproceedings{zhang-etal-2018-mixup,
      title = {{mixup: Beyond Empirical Risk Minimization}},
      author = {Hongyi Zhang and Moustapha Cisse and Yann N. Dauphin and David Lopez-Paz},
      year = {2018},
      booktitle = {ICLR},
      eprint = {1710.09412},
      archivePrefix = {arXiv},
      url = {https://arxiv.org/abs/1710.09412}
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
    fields = {
        "title": f"{{{paper.title.translate(LATEX)}}}",  # the inner braces keep its capitals
        "author": " and ".join(authors).translate(LATEX),
        "year": paper.year,
    }
    if paper.venue.lower().startswith("arxiv"):
        kind = "misc"
    else:
        fields[where] = paper.venue.translate(LATEX)
    if paper.arxiv:
        fields |= {
            "eprint": paper.arxiv,
            "archivePrefix": "arXiv",
            "url": f"https://arxiv.org/abs/{paper.arxiv}",
        }
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
