"""Where configs and documents lie: in a wheel inside the package, in a checkout beside it; and plug-ins."""

import importlib.util
import os
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path

PLUGIN_GROUP = "regbench.plugins"
_PACKAGE = Path(__file__).parent


def shelf(package: Path, name: str) -> Path:
    """The folder `name` of a package: inside it, as a wheel has it, else beside it, as a checkout has it."""
    inside = package / name
    return inside if inside.is_dir() else package.parent / name


def package_dir() -> Path:
    """The folder of the package regbench."""
    return _PACKAGE


def configs_dir() -> Path:
    """RegBench's own `configs` folder."""
    return shelf(_PACKAGE, "configs")


def config_folders() -> list[Path]:
    """RegBench's `configs` folder and the plug-ins', in the order in which Hydra looks: the first wins."""
    return [configs_dir(), *(folder / "configs" for folder in plugins().values())]


def data_root(root: str | os.PathLike | None) -> Path:
    """The folder of downloaded sets: `root`, else the environment's REGBENCH_DATA, else ./data."""
    return Path(root or os.environ.get("REGBENCH_DATA") or "data").expanduser()


@cache
def plugins() -> dict[str, Path]:
    """Installed plug-ins: package name → its folder, without importing it.

    A plug-in is a package named by an entry point of the group `regbench.plugins`. Its folder has the same
    shelves as RegBench: `regularizers/<family>/<slug>.py` and `configs/{regularizer,dataset,backbone,…}`.
    """
    found = {}
    for module in sorted({point.module for point in entry_points(group=PLUGIN_GROUP)}):
        top, *below = module.split(".")
        spec = importlib.util.find_spec(top)
        if spec is not None and spec.submodule_search_locations:
            found[module] = Path(spec.submodule_search_locations[0]).joinpath(*below)
    return found
