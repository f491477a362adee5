"""`regbench list`, `info` and `cite`: read from the methods' files and configs as text, without importing torch."""

import re
from dataclasses import dataclass
from pathlib import Path

import yaml
from rich.console import Console
from rich.table import Table

from regbench import registry
from regbench.errors import UserError, unknown
from regbench.paths import configs_dir, docs_dir, plugins


@dataclass(frozen=True)
class Hyperparameter:
    """One key of a method's config: its default, and the comment that explains it."""

    name: str
    default: str
    meaning: str


def config_path(slug: str) -> Path:
    """The method's config file, RegBench's or a plug-in's. Raises UserError where there is none."""
    folders = [configs_dir(), *(folder / "configs" for folder in plugins().values())]
    for folder in folders:
        if (path := folder / "regularizer" / f"{slug}.yaml").is_file():
            return path
    raise UserError(f"The method '{slug}' has no config; write configs/regularizer/{slug}.yaml.")


def defaults(slug: str) -> dict[str, str]:
    """The groups that the method's config chooses, e.g. {"dataset": "mnist5k", "backbone": "small_cnn"}."""
    chosen = {"dataset": "mnist5k", "backbone": "small_cnn"}  # as configs/train.yaml has them
    for item in yaml.safe_load(config_path(slug).read_text()).get("defaults", []):
        for key, value in item.items() if isinstance(item, dict) else ():
            if group := re.match(r"override /(\w+)@", key):
                chosen[group[1]] = value
    return chosen


def hyperparameters(slug: str) -> list[Hyperparameter]:
    """The method's hyperparameters in the order of its config, explained by the comment on or above each line."""
    found, above = [], []
    for line in config_path(slug).read_text().splitlines():
        if line.startswith("#"):
            above.append(line.lstrip("# "))
        elif match := re.match(r"(\w+):\s*([^#]*?)\s*(?:#\s*(.*))?$", line):
            name, default, comment = match.groups()
            if name not in ("defaults", "name"):
                found.append(Hyperparameter(name, default, comment or " ".join(above)))
            above = []
        elif continued := re.match(r"\s+#\s*(.*)$", line):
            if found:
                last = found[-1]
                found[-1] = Hyperparameter(last.name, last.default, f"{last.meaning} {continued[1]}".strip())
    return found


def show_list(task: str | None = None, search: str | None = None) -> None:
    """Prints the methods as a table, those of a task or with a text in slug, title, authors or claim."""
    if task is not None and task not in registry.TASKS:
        raise unknown("task", task, registry.TASKS)
    table = Table("slug", "task", "paper", "year", "dataset", "backbone", box=None, pad_edge=False)
    rows = 0
    for slug, entry in registry.entries().items():
        paper = entry.paper
        text = f"{slug} {paper.title if paper else ''} {paper.authors if paper else ''} {entry.claim}".lower()
        if (task and entry.task != task) or (search and search.lower() not in text):
            continue
        chosen = defaults(slug)
        title, year = (paper.title, str(paper.year)) if paper else ("(baseline)", "")
        table.add_row(slug, entry.task, title, year, chosen["dataset"], chosen["backbone"])
        rows += 1
    if not rows:
        raise UserError(f"No method matches task={task}, search={search}; `regbench list` shows them all.")
    _console().print(table)


def show_info(slug: str) -> None:
    """Prints claim, paper, hyperparameters and how to run the method."""
    entry, console, chosen = registry.find(slug), _console(), defaults(slug)
    console.print(f"[bold]{slug}[/bold] ({entry.task})", highlight=False)
    if entry.paper:
        paper = entry.paper
        console.print(f"{paper.title}. {paper.authors}. {paper.venue} {paper.year}.", highlight=False, markup=False)
        links = [f"arXiv:{paper.arxiv}" if paper.arxiv else "", f"code: {paper.code}" if paper.code else ""]
        console.print("  ".join(link for link in links if link), highlight=False, markup=False)
    console.print(f"\n{entry.claim}\n", highlight=False, markup=False)
    rows = hyperparameters(slug)
    if rows:
        table = Table("hyperparameter", "default", "meaning", box=None, pad_edge=False)
        for row in rows:
            table.add_row(f"regularizer.{row.name}", row.default, row.meaning)
        console.print(table, markup=False)
    console.print(f"\npython train.py regularizer={slug}", highlight=False)
    console.print(f"  trains on {chosen['dataset']} with {chosen['backbone']} unless told otherwise", highlight=False)
    page = docs_dir() / "papers" / f"{slug}.md"
    if page.is_file():
        console.print(f"more: {page}", highlight=False, soft_wrap=True)


def bibtex(slug: str) -> str:
    """The method's paper as a BibTeX entry. Raises UserError for a baseline without a paper."""
    entry = registry.find(slug)
    if entry.paper is None:
        raise UserError(f"'{slug}' is a baseline without a paper of its own; there is nothing to cite.")
    paper = entry.paper
    first = re.sub(r"\W", "", paper.authors.split(",")[0].split()[-1]).lower()
    word = re.sub(r"\W", "", next(w for w in paper.title.split() if len(w) > 3)).lower()
    fields = {
        "title": f"{{{paper.title}}}",
        "author": " and ".join(name.strip() for name in paper.authors.split(",")),
        "booktitle": paper.venue,
        "year": str(paper.year),
    }
    if paper.arxiv:
        fields |= {"eprint": paper.arxiv, "archivePrefix": "arXiv"}
    body = ",\n".join(f"  {key} = {{{value}}}" for key, value in fields.items())
    return f"@inproceedings{{{first}{paper.year}{word},\n{body}\n}}"


def _console() -> Console:
    # Piped output has no width of its own: a table cut at 80 columns would lose what a script looks for.
    console = Console()
    return console if console.is_terminal else Console(width=200)
