"""`regbench new`: the five files of a method that works and passes its tests, to be turned into a paper's."""

import datetime
import keyword
import re
from pathlib import Path
from string import Template

from regbench import registry
from regbench.errors import UserError

TEMPLATES = Path(__file__).parent / "templates"


def new_method(slug: str, family: str = "classification", package: Path | None = None) -> list[Path]:
    """Writes the files of a new method and says which; overwrites none.

    Args:
        slug: the method's name: lower case letters, digits, underscores.
        family: the folder under `regularizers/` where it goes.
        package: folder of a plug-in's project, which is made where it is missing; its last part names the package.
            None: the RegBench checkout that this command belongs to.

    Raises:
        UserError: a name that can't be used or is taken, or no checkout to write into.
    """
    for kind, name in (("slug", slug), ("family", family)):
        if not re.fullmatch(r"[a-z][a-z0-9_]*", name) or keyword.iskeyword(name):
            raise UserError(f"The {kind} '{name}' must be lower case letters, digits and underscores, e.g. my_method.")
    if slug in registry.entries():
        raise UserError(f"There is a method '{slug}' already: {registry.entries()[slug].path}.")
    if package is None:
        root, name, configs = Path(__file__).parent.parent, "regbench", "configs"
        if not (root / "pyproject.toml").is_file():
            raise UserError("This RegBench is an installed package, no checkout; write a plug-in with --package <folder>.")
    else:
        root, name = package.resolve(), re.sub(r"\W", "_", package.resolve().name).lower()
        configs = f"{name}/configs"
    shelves = {
        f"{name}/regularizers/{family}/{slug}.py": "method.py.txt",
        f"{configs}/regularizer/{slug}.yaml": "config.yaml.txt",
        f"{configs}/table/{slug}/first.yaml": "table.yaml.txt",
        f"tests/regularizers/{family}/test_{slug}.py": "test.py.txt",
        f"docs/papers/{slug}.md": "page.md.txt",
    }
    values = {
        "slug": slug,
        "title": slug.replace("_", " ").capitalize(),
        "class_name": "".join(part.capitalize() for part in slug.split("_")),
        "year": datetime.date.today().year,
        "family": family,
        "package": name,
        "configs": configs,
    }
    written = {root / path: Template((TEMPLATES / template).read_text()) for path, template in shelves.items()}
    taken = [path for path in written if path.exists()]
    if taken:
        raise UserError(f"{', '.join(map(str, taken))} exists already; nothing was written.")
    if package is not None and not (root / "pyproject.toml").exists():
        written[root / "pyproject.toml"] = Template((TEMPLATES / "pyproject.toml.txt").read_text())
        for folder in (name, f"{name}/regularizers", f"{name}/regularizers/{family}"):
            written[root / folder / "__init__.py"] = Template("")
    for path, template in written.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(template.substitute(values))
        print(path)
    if package is not None:
        print(f"Install it with: pip install -e {root}")
    print(f"Then: regbench info {slug}; python -m pytest {root / 'tests'} -k {slug}; regbench train regularizer={slug}")
    return list(written)
