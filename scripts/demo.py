"""`make demo`: trains mixup and decoupled mixup on photographs that ship with scikit-image, and compares them."""

import datetime
import json
import subprocess
import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parents[1]
METHODS = ("mixup", "decoupled_mixup")
COMMON = ["dataset=photo_patches", "backbone=small_cnn", "trainer.max_epochs=12"]


def main() -> int:
    folder = ROOT / "runs" / "demo" / datetime.datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
    for method in METHODS:
        command = ["train.py", f"regularizer={method}", *COMMON, f"hydra.run.dir={folder / method}"]
        print(f"\n$ python {' '.join(command)}", flush=True)
        done = subprocess.run([sys.executable, *command], cwd=ROOT)
        if done.returncode:
            return done.returncode
    results = {method: json.loads((folder / method / "result.json").read_text()) for method in METHODS}
    table = Table(
        "test metric", *METHODS, title="\nOne seed: which of the two is better is not decided by this"
    )
    for name in results[METHODS[0]]["metrics"]:
        values = [results[method]["metrics"][name] for method in METHODS]
        table.add_row(
            name, *(f"{v:.4f} nats" if name.endswith("nll") else f"{100 * v:.2f} %" for v in values)
        )
    Console().print(table)
    for method in METHODS:
        print(f"{method}: {results[method]['duration_s']:.0f} s, run folder {folder / method}")
        for run in sorted((folder / method / "wandb").glob("offline-run-*")):
            print(f"  offline W&B run: {run}\n  send it with: wandb sync {run}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
