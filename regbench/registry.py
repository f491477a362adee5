"""Finds a paper's method by its slug: `regularizers/<family>/<slug>.py` here or in an installed plug-in.

A listing reads the `@register(...)` line of each file as text (its arguments are literals), so that it imports
neither the methods nor torch; a method's module is imported when the method is asked for.
"""

import ast
import importlib
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from regbench.errors import unknown
from regbench.paths import plugins

# What a task's methods read of a batch. A dataset's config names the fields that its batches have (`fields`), and a
# method runs on every dataset that has the fields of its task.
TASKS: dict[str, tuple[str, ...]] = {
    "classification": ("image", "label"),
}


@dataclass(frozen=True)
class Paper:
    """Where a method comes from. `code` is the address of the released code, empty where there is none."""

    title: str
    authors: str
    year: int
    venue: str
    arxiv: str = ""
    code: str = ""


@dataclass(frozen=True)
class Entry:
    """What the listing knows of a method. `claim` is the first paragraph of the class's docstring."""

    slug: str
    task: str
    paper: Paper | None
    claim: str
    module: str
    class_name: str
    path: Path


def register(slug: str, *, task: str, paper: Paper | None = None):
    """Marks a LightningModule class as the method `slug`. All arguments must be literals: they are read as text.

    Args:
        slug: the file's name without `.py`; names the method on every shelf.
        task: a key of `TASKS`.
        paper: the source; None for a plain baseline without a paper.
    """

    def mark(cls):
        if cls.__module__.rpartition(".")[2] != slug:
            raise ValueError(f"method '{slug}' must stand in a file {slug}.py, not in {cls.__module__}")
        if task not in TASKS:
            raise unknown("task", task, TASKS)
        cls.slug, cls.task, cls.paper = slug, task, paper
        return cls

    return mark


@cache
def entries() -> dict[str, Entry]:
    """All methods, RegBench's and the plug-ins', by slug, in alphabetical order."""
    shelves = {"regbench": Path(__file__).parent, **plugins()}
    found = {}
    for package, folder in shelves.items():
        for path in sorted(folder.glob("regularizers/*/*.py")):
            entry = _read(path, f"{package}.regularizers.{path.parent.name}.{path.stem}")
            if entry is not None:
                found.setdefault(entry.slug, entry)
    return dict(sorted(found.items()))


def find(slug: str) -> Entry:
    """The method's entry. Raises UserError with the nearest names where there is none."""
    if slug not in entries():
        raise unknown("regularizer", slug, entries(), "`regbench list` shows them all.")
    return entries()[slug]


def load(slug: str) -> type:
    """Imports the method's module and returns its class. Raises UserError as `find` does."""
    entry = find(slug)
    return getattr(importlib.import_module(entry.module), entry.class_name)


def _read(path: Path, module: str) -> Entry | None:
    """The entry of the class decorated with `@register(...)` in the file, None where there is none."""
    source = path.read_text()
    if "@register(" not in source:
        return None
    for node in ast.parse(source).body:
        for call in node.decorator_list if isinstance(node, ast.ClassDef) else ():
            if isinstance(call, ast.Call) and getattr(call.func, "id", "") == "register":
                keywords = {k.arg: k.value for k in call.keywords}
                paper = keywords.get("paper")
                if isinstance(paper, ast.Call):
                    paper = Paper(**{k.arg: ast.literal_eval(k.value) for k in paper.keywords})
                else:
                    paper = None
                claim = (ast.get_docstring(node) or "").partition("\n\n")[0].replace("\n", " ")
                task = ast.literal_eval(keywords["task"])
                return Entry(ast.literal_eval(call.args[0]), task, paper, claim, module, node.name, path)
    return None
