"""The fingerprint of a dataset's content, remembered, so that planning and reporting need not read the data again."""

import hashlib
import json
import os
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from regbench.files import write_whole
from regbench.paths import data_root

DECODERS = (
    "numpy",
    "pillow",
    "pyarrow",
    "scikit-learn",
    "scikit-image",
    "mlxtend",
    "torchvision",
    "torch_geometric",
)
MANY_FILES = 50_000  # a folder with more is not looked through: its loader does that as fast


def fingerprint_of(dataset: Mapping[str, Any], memory: Path | None = None) -> str:
    """The fingerprint of what a dataset's config loads. Reads the data or its cache; downloads it where it has to.

    Args:
        dataset: a resolved config of the group `dataset`.
        memory: a JSON file of fingerprints. One is taken from it where the loading code, the libraries that decode, and
            the path, size and time of change of each file under the dataset's folder are as they were.
    """
    key = _state(dataset) if memory is not None else None
    known = _read(memory) if key else {}
    if key in known:
        return known[key]
    from hydra.utils import get_object

    options = dict(dataset["load"])
    found = get_object(options.pop("_target_"))(dataset.get("root"), **options).fingerprint
    # What is read may have been downloaded, or its cache written, just now: the state is that of after.
    if memory is not None and (key := _state(dataset)):
        memory.parent.mkdir(parents=True, exist_ok=True)
        write_whole(memory, json.dumps(_read(memory) | {key: found}, indent=1) + "\n")
    return found


def _state(dataset: Mapping[str, Any]) -> str | None:
    """A hash of all that the content depends on; None where that is not known: code of the user's own."""
    load = dataset["load"]
    if not load["_target_"].startswith("regbench.data.") or "target" in load:
        return None
    parts = [json.dumps(load, sort_keys=True)]
    for path in sorted((Path(__file__).parent / "data").glob("*.py")):
        parts.append(hashlib.sha256(path.read_bytes()).hexdigest())
    for package in DECODERS:
        try:
            parts.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            parts.append(f"no {package}")
    root = data_root(dataset.get("root")).absolute()
    parts.append(str(root))
    files = 0
    for folder, folders, names in os.walk(root):
        folders[:] = sorted(name for name in folders if name != ".regbench-cache")
        for name in sorted(names):
            about = os.stat(os.path.join(folder, name), follow_symlinks=True)
            parts.append(f"{folder}/{name} {about.st_size} {about.st_mtime_ns}")
        files += len(names)
        if files > MANY_FILES:
            return None
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:32]


def _read(memory: Path) -> dict[str, str]:
    try:
        known = json.loads(memory.read_text(encoding="utf-8"))
        return known if isinstance(known, dict) else {}
    except (OSError, ValueError):
        return {}
