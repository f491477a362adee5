"""`regbench new`: the five files of a method that works and passes its tests, to be turned into a paper's."""

import datetime
import importlib.util
import keyword
import re
import shlex
from pathlib import Path
from string import Template

from regbench import registry
from regbench.errors import UserError
from regbench.paths import PLUGIN_GROUP

TEMPLATES = Path(__file__).parent / "templates"


def new_method(slug: str, family: str = "classification", package: Path | None = None) -> list[Path]:
    """Writes the files of a new method and says which; overwrites none.

    Args:
        slug: the method's name: lower case letters, digits, underscores.
        family: the folder under `regularizers/` where it goes.
        package: folder of a plug-in's project, which is made where it is missing; its last part names the
            package. None: the RegBench checkout that this command belongs to.

    Raises:
        UserError: a name that can't be used or is taken, or no place to write into.
    """
    for kind, name in (("slug", slug), ("family", family)):
        if not re.fullmatch(r"[a-z][a-z0-9_]*", name) or keyword.iskeyword(name):
            raise UserError(
                f"The {kind} '{name}' must be lower case letters, digits and underscores, e.g. my_method."
            )
    if slug in registry.entries():
        raise UserError(f"There is a method '{slug}' already: {registry.entries()[slug].path}.")
    if package is None:
        root, name, configs = Path(__file__).parent.parent, "regbench", "configs"
        if not (root / "pyproject.toml").is_file():
            raise UserError("This RegBench is no checkout; write a plug-in with --package <folder>.")
    else:
        root = package.resolve()
        name = re.sub(r"\W", "_", root.name).lower()
        configs = f"{name}/configs"
    project = root / "pyproject.toml"
    if not project.exists() and (not name.isidentifier() or importlib.util.find_spec(name)):
        raise UserError(f"'{name}' can't name a package: it is no Python name, or taken. Choose another.")
    folders = (name, f"{name}/regularizers", f"{name}/regularizers/{family}")
    texts = {
        f"{folders[-1]}/{slug}.py": "method.py.txt",
        f"{configs}/regularizer/{slug}.yaml": "config.yaml.txt",
        f"{configs}/table/{slug}/first.yaml": "table.yaml.txt",
        f"tests/regularizers/{family}/test_{slug}.py": "test.py.txt",
        f"docs/papers/{slug}.md": "page.md.txt",
    }
    taken = [str(root / path) for path in texts if (root / path).exists()]
    if taken:
        raise UserError(f"{' and '.join(taken)} exists already; nothing was written.")
    texts |= {
        path: template
        for path, template in [
            *((f"{folder}/__init__.py", "init.py.txt") for folder in folders),
            ("pyproject.toml", "pyproject.toml.txt"),
        ]
        if not (root / path).exists()
    }
    values = {
        "slug": slug,
        "title": slug.replace("_", " ").capitalize(),
        "class_name": "".join(part.capitalize() for part in slug.split("_")),
        "year": datetime.date.today().year,
        "family": family,
        "package": name,
    }
    try:
        for path, template in texts.items():
            text = Template((TEMPLATES / template).read_text(encoding="utf-8")).substitute(values)
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            (root / path).write_text(text, encoding="utf-8")
            print(root / path)
    except OSError as error:
        raise UserError(f"{error.filename} can't be written ({error.strerror}).") from error
    print("\nIt works as it is; turn it into your paper's. To see it:")
    if package is not None:
        if PLUGIN_GROUP not in project.read_text(encoding="utf-8"):
            print(f'  add to {project}:\n    [project.entry-points."{PLUGIN_GROUP}"]\n    {name} = "{name}"')
        print(f"  pip install -e {shlex.quote(str(root))}")
    print(f"  regbench info {slug}")
    print(f"  python -m pytest {shlex.quote(str(root / 'tests'))} -k {slug}")
    print(f"  regbench train regularizer={slug}")
    return [root / path for path in texts]
