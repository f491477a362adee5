"""Where configs and documents lie: in the wheel inside the package, in a checkout beside it; and the plug-ins."""

import importlib.util
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path

PLUGIN_GROUP = "regbench.plugins"
_PACKAGE = Path(__file__).parent


def _shelf(name: str) -> Path:
    inside = _PACKAGE / name
    return inside if inside.is_dir() else _PACKAGE.parent / name


def configs_dir() -> Path:
    """RegBench's own `configs` folder."""
    return _shelf("configs")


def docs_dir() -> Path:
    """RegBench's own `docs` folder (the wheel carries its `papers` only)."""
    return _shelf("docs")


@cache
def plugins() -> dict[str, Path]:
    """Installed plug-ins: package name → its folder, without importing it.

    A plug-in is a package named by an entry point of the group `regbench.plugins`. Its folder has the same shelves
    as RegBench: `regularizers/<family>/<slug>.py` and `configs/{regularizer,dataset,backbone,table,…}`.
    """
    found = {}
    for point in entry_points(group=PLUGIN_GROUP):
        spec = importlib.util.find_spec(point.module.partition(".")[0])
        if spec is not None and spec.origin is not None:
            folder = Path(spec.origin).parent.joinpath(*point.module.split(".")[1:])
            found[point.module] = folder
    return found
