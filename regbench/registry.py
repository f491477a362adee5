"""Finds a paper's method by its slug: `regularizers/<family>/<slug>.py` here or in an installed plug-in.

A listing reads the `@register(...)` line of each file as text (its arguments are literals), so that it
imports neither the methods nor torch; a method's module is imported when the method is asked for.
"""

import ast
import importlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from regbench.errors import UserError, unknown
from regbench.paths import plugins

# What a task's methods read of a batch. A dataset's config names the fields that its batches have (`fields`),
# and a method runs on every dataset that has the fields of its task, and none that the task refuses.
TASKS: dict[str, tuple[str, ...]] = {
    "classification": ("image", "label"),
    "disentanglement": ("image", "factors"),
    "generation": ("image",),
    "modular_arithmetic": ("pair", "label"),
    "neural_ode": ("point", "label"),
    "neural_sde": ("time", "path"),
    "node_classification": ("features", "edges", "label", "train_mask"),
    "noisy_labels": ("image", "label", "index"),
    "optimal_transport": ("cost", "source", "target"),
    "regression": ("features", "target"),
    "restoration": ("image",),
    "semi_supervised": ("image", "label", "unlabelled_weak", "unlabelled_strong"),
    "time_series": ("time", "values", "observed"),
}

# What the batches of a task's methods must not have. Images with classes are normalised, and what trains on them gives
# logits: these methods give pictures with pixels in [0, 1] or vectors.
REFUSES: dict[str, tuple[str, ...]] = {"generation": ("label",), "restoration": ("label",)}

# Keys of a dataset's config that add fields to its batches where they are set, whatever the set.
ADAPTERS: dict[str, tuple[str, ...]] = {
    "labelled": ("unlabelled_weak", "unlabelled_strong", "unlabelled_index"),
}


def fields_of(dataset: Mapping[str, Any]) -> tuple[str, ...]:
    """What the batches of a dataset's config hold: its own fields, and those of the adapters that it sets."""
    added = (fields for key, fields in ADAPTERS.items() if dataset.get(key) is not None)
    return tuple(
        dict.fromkeys((*dataset.get("fields", ()), *(field for fields in added for field in fields)))
    )


def fits(task: str, fields: Collection[str]) -> bool:
    """Whether a task's methods run on batches with these fields.

    >>> fits("restoration", ("image", "index")), fits("restoration", ("image", "label"))
    (True, False)
    """
    return set(TASKS[task]) <= set(fields) and not set(REFUSES.get(task, ())) & set(fields)


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
    version: int = 1
    twins: tuple[Path, ...] = ()  # other files that claim the slug


def register(slug: str, *, task: str, paper: Paper | None = None, version: int = 1):
    """Marks a LightningModule class as the method `slug`. All arguments are literals: they are read as text.

    Args:
        slug: the file's name without `.py`; names the method on every shelf.
        task: a key of `TASKS`.
        paper: the source; None for a plain baseline without a paper.
        version: raised when a change of the method changes its numbers: its finished runs are then run again.
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
    """All methods, RegBench's and the plug-ins', by slug, in alphabetical order.

    Raises:
        UserError: a method's file that can't be read, e.g. one with a syntax error.
    """
    shelves = {"regbench": Path(__file__).parent, **plugins()}
    found = {}
    for package, folder in shelves.items():
        for path in sorted(folder.glob("regularizers/*/*.py")):
            entry = _read(path, f"{package}.regularizers.{path.parent.name}.{path.stem}")
            if entry is not None:
                first = found.setdefault(entry.slug, entry)
                if first is not entry:
                    found[entry.slug] = replace(first, twins=(*first.twins, path))
    return dict(sorted(found.items()))


def find(slug: str) -> Entry:
    """The method's entry.

    Raises:
        UserError: there is none (with the nearest names), or there are two: neither then runs in the
            other's place.
    """
    if slug not in entries():
        raise unknown("regularizer", slug, entries(), "`regbench list` shows them all.")
    entry = entries()[slug]
    if entry.twins:
        files = " and ".join(map(str, (entry.path, *entry.twins)))
        raise UserError(f"Two methods are called '{slug}': {files}. Rename one, or uninstall its package.")
    return entry


def family_version(entry: Entry) -> int:
    """The constant VERSION of the method's family's base.py, raised when a change there changes numbers; else 1.

    A plug-in's method may belong to a family of its package, or to one of RegBench's.
    """
    family = entry.path.parent
    for base in (family / "base.py", Path(__file__).parent / "regularizers" / family.name / "base.py"):
        if base.is_file():
            for node in ast.parse(base.read_text(encoding="utf-8")).body:
                if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "VERSION":
                    return ast.literal_eval(node.value)
    return 1


def load(slug: str) -> type:
    """Imports the method's module and returns its class. Raises UserError as `find` does."""
    entry = find(slug)
    return getattr(importlib.import_module(entry.module), entry.class_name)


def _read(path: Path, module: str) -> Entry | None:
    """The entry of the class decorated with `@register(...)` in the file, None where there is none."""
    source = path.read_text(encoding="utf-8")
    if "register(" not in source:
        return None
    try:
        body = ast.parse(source).body
    except SyntaxError as error:
        where = f"{path}, line {error.lineno}"
        raise UserError(f"{where}: {error.msg}. Mend it, or uninstall its package.") from error
    for node in body:
        for call in node.decorator_list if isinstance(node, ast.ClassDef) else ():
            name = getattr(call, "func", None)  # register, or registry.register
            if "register" in (getattr(name, "id", ""), getattr(name, "attr", "")):
                try:
                    slug, task, paper, version = _arguments(call)
                    if slug != path.stem:
                        raise ValueError(f"the slug must be the file's name, {path.stem}")
                except (ValueError, TypeError, KeyError, IndexError) as error:
                    raise UserError(
                        f"{path}, line {call.lineno}: @register needs a slug, task= and paper= (None, or "
                        "Paper(title=, authors=, year=, venue=)), all literals, as they are read as text: "
                        f"{error}."
                    ) from error
                if task not in TASKS:
                    raise unknown(f"task in {path}:", task, TASKS)
                claim = (ast.get_docstring(node) or "").partition("\n\n")[0].replace("\n", " ")
                return Entry(slug, task, paper, claim, module, node.name, path, version)
    return None


def _arguments(call: ast.Call) -> tuple[str, str, Paper | None, int]:
    """(slug, task, paper, version) of `register(slug, task=..., paper=Paper(...) or None, version=...)`."""
    keywords = {k.arg: k.value for k in call.keywords}
    paper, written = None, keywords.get("paper")
    if isinstance(written, ast.Call):
        paper = Paper(**{k.arg: ast.literal_eval(k.value) for k in written.keywords})
    elif written is not None and ast.literal_eval(written) is not None:
        raise TypeError("paper is neither")
    version = ast.literal_eval(keywords["version"]) if "version" in keywords else 1
    return ast.literal_eval(call.args[0]), ast.literal_eval(keywords["task"]), paper, version
