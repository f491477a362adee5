"""What a run leaves behind: result.json, written whole or not at all."""

import json
import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from regbench.files import write_whole

PACKAGES = (
    "regbench",
    "torch",
    "torchvision",
    "pytorch-lightning",
    "torchmetrics",
    "hydra-core",
    "timm",
    "numpy",
)


def write_result(path: Path, result: dict[str, Any]) -> None:
    """Writes result.json. NaN and infinities become null: JSON has none."""
    metrics = {k: v if v == v and abs(v) != float("inf") else None for k, v in result["metrics"].items()}
    write_whole(path, json.dumps(result | {"metrics": metrics}, indent=2, allow_nan=False) + "\n")


def versions() -> dict[str, str]:
    """Installed versions of Python and of the packages that numbers depend on."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def git_commit() -> str | None:
    """The commit of RegBench's checkout, with "+changes" where files differ from it; None outside a checkout."""
    root = Path(__file__).parent.parent
    if not (root / ".git").exists():
        return None
    try:
        ask = [
            "git",
            "-C",
            str(root),
            "describe",
            "--always",
            "--abbrev=40",
            "--exclude=*",
            "--dirty=+changes",
        ]
        return subprocess.run(ask, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def machine() -> str:
    """The machine in words, e.g. "2 cores, x86_64"; its name is nobody's business."""
    return f"{os.cpu_count()} cores, {platform.machine()}"


def device_name(device: torch.device, processes: int) -> str:
    """The device in words, e.g. "cpu (2 threads) × 2 processes"."""
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    else:
        name = f"cpu ({torch.get_num_threads()} threads)" if device.type == "cpu" else device.type
    return name if processes == 1 else f"{name} × {processes} processes"
