"""`make bench`: what RegBench costs over a bare PyTorch loop.

Prints a table and writes benchmarks/results/<device>.json.
Give names of benchmarks to run only these (the file keeps what it has of the others):
throughput overhead augmentation loss orthogonal low_rank memory startup sweep methods; a slug measures that method.
"""

import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import regbench.torchvision_schemas  # noqa: F401

# isort: split
import torch
from rich.console import Console
from rich.table import Table

from bare_loop import train as bare_train
from regbench import registry, results
from regbench.files import write_whole
from runs import config, data_and_network, train_run

HERE = Path(__file__).parent
REPEATS = 5


def spread(values: list[float], unit: str, digits: int = 3) -> str:
    """Median and range."""
    return f"{statistics.median(values):.{digits}f} {unit} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def alternating(
    backbone: str, dataset: str, *, epochs: int, steps: int | None, skip: int
) -> tuple[list, list]:
    """Seconds a step of the bare loop and of train.py's fit, five times each in turn; the first `skip` don't count."""
    cfg = config(backbone, dataset, epochs=epochs, steps=steps)
    bare, ours = [], []
    for _ in range(REPEATS):
        data, network = data_and_network(cfg)
        split = data.sets.train
        times = bare_train(network, split.images, split.labels, batch=128, epochs=epochs, steps=steps)
        bare.append((times[-1] - times[skip]) / (len(times) - 1 - skip))
        times = train_run(cfg)
        done = len(times) - 2 - skip
        # With all steps counted the checkpoint at each epoch's end counts too; a few steps would overstate it.
        end = times[-1] if skip == 0 else times[-2]
        ours.append((end - times[skip]) / done)
    return bare, ours


def throughput() -> list[tuple]:
    rows = []
    cases = [("small_cnn", "mnist5k", 4, None, 0, 0.85), ("resnet18_cifar", "photo_patches", 1, 6, 1, 0.95)]
    for backbone, dataset, epochs, steps, skip, wanted in cases:
        bare, ours = alternating(backbone, dataset, epochs=epochs, steps=steps, skip=skip)
        shares = [b / o for b, o in zip(bare, ours, strict=True)]
        rate = [128 / o for o in ours]
        rows.append((f"{backbone} on {dataset}, batch 128: share of the bare loop's throughput",
                     spread(shares, ""), f">= {wanted}", statistics.median(shares) >= wanted))  # fmt: skip
        rows.append((f"{backbone} on {dataset}: images/s", spread(rate, "", 0), "", None))
        rows.append(
            (
                f"{backbone} on {dataset}: images/s of the bare loop",
                spread([128 / b for b in bare], "", 0),
                "",
                None,
            )
        )
    return rows


def overhead() -> list[tuple]:
    bare, ours = alternating("mlp", "digits", epochs=20, steps=None, skip=0)
    extra = [1000 * (o - b) for b, o in zip(bare, ours, strict=True)]
    return [("mlp on digits: time a step over the bare loop, checkpoints included", spread(extra, "ms", 2), "<= 2 ms",
             statistics.median(extra) <= 2)]  # fmt: skip


def augmentation() -> list[tuple]:
    from augmentation import images_per_second

    threads = torch.get_num_threads()
    pairs = [images_per_second() for _ in range(REPEATS)]
    torch.set_num_threads(threads)
    ratios = [ours / theirs for ours, theirs in pairs]
    return [
        ("crop, flip, normalise 3×32×32, one thread: times the images/s of torchvision and PIL", spread(ratios, "", 1),
         ">= 10", statistics.median(ratios) >= 10),
        ("the same: images/s", spread([ours for ours, _ in pairs], "", 0), "", None),
    ]  # fmt: skip


def loss() -> list[tuple]:
    from regbench.functional.losses import mixup_cross_entropy
    from regbench.regularizers.classification.decoupled_mixup import decoupled_mixup_cross_entropy

    logits = torch.randn(128, 100, requires_grad=True)
    a, b = torch.randint(100, (128,)), torch.randint(100, (128,))

    def milliseconds(function) -> float:
        taken = []
        for _ in range(300):
            start = time.perf_counter()
            function(logits, a, b, 0.3).backward()
            taken.append(1000 * (time.perf_counter() - start))
        return statistics.median(taken)

    extra = [
        milliseconds(decoupled_mixup_cross_entropy) - milliseconds(mixup_cross_entropy)
        for _ in range(REPEATS)
    ]
    return [("decoupled mixup's loss over mixup cross entropy, forward and backward, 128×100", spread(extra, "ms"),
             "<= 0.5 ms", statistics.median(extra) <= 0.5)]  # fmt: skip


def memory() -> list[tuple]:
    def peak(kind: str, *run: str) -> float:
        arguments = [sys.executable, str(HERE / "memory.py"), kind, *run]
        done = subprocess.run(arguments, capture_output=True, text=True, check=True)
        return float(done.stdout.split()[-1])

    rows = []
    for run in (("resnet18_cifar", "photo_patches", "3"), ("small_cnn", "mnist5k", "20")):
        # The small network's peak varies by a tenth from process to process, so single pairs would decide nothing.
        pairs = [(peak("bare", *run), peak("regbench", *run)) for _ in range(REPEATS)]
        bare, ours = (statistics.median(values) for values in zip(*pairs, strict=True))
        ranges = " against ".join(
            spread(list(values), "MiB", 0) for values in reversed(list(zip(*pairs, strict=True)))
        )
        what = f"{run[0]}, batch 128: peak memory over the imports', times the bare loop's"
        rows.append((what, f"{ours / bare:.3f}: {ranges}", "<= 1.15", ours / bare <= 1.15))
    return rows


def startup() -> list[tuple]:
    imports = "import regbench.torchvision_schemas, torch, pytorch_lightning, torchvision, timm"
    train = [str(HERE.parent / "train.py"), "dataset=mnist5k", "+callbacks.first={_target_: clock.FirstStep}"]

    def seconds(arguments) -> float:
        start = time.perf_counter()
        environment = {**os.environ, "PYTHONPATH": str(HERE)}  # where `clock` lies
        with tempfile.TemporaryDirectory() as folder:
            subprocess.run(
                [sys.executable, *arguments], check=True, capture_output=True, cwd=folder, env=environment
            )
        return time.perf_counter() - start

    pairs = [(seconds(["-c", imports]), seconds(train)) for _ in range(REPEATS)]
    ratios = [ours / alone for alone, ours in pairs]
    return [
        ("launch of train.py to its first step, W&B offline: times the imports alone", spread(ratios, "", 2), "<= 1.5",
         statistics.median(ratios) <= 1.5),
        ("the same in seconds", spread([ours for _, ours in pairs], "s", 2), "", None),
    ]  # fmt: skip


def sweep() -> list[tuple]:
    import tables

    with tempfile.TemporaryDirectory() as name:
        added = tables.added_seconds(Path(name))
    with tempfile.TemporaryDirectory() as name:
        table = tables.write_table(Path(name), 200)
        tables.finish(Path(name), table)
        reported = [tables.reproduce_seconds(Path(name), table) for _ in range(REPEATS)]
    with tempfile.TemporaryDirectory() as name:
        table = tables.write_table(Path(name), 1000)
        planned = [tables.reproduce_seconds(Path(name), table, "status=true") for _ in range(REPEATS)]
    return [
        ("a cell in a sweep, one process: time beyond its run", spread(added, "s", 2), "<= 0.5 s",
         statistics.median(added) <= 0.5),
        ("reproduce on 200 finished cells, whole command", spread(reported, "s", 2), "< 3 s",
         statistics.median(reported) < 3),
        ("planning 1,000 cells (status=true), whole command", spread(planned, "s", 2), "< 5 s",
         statistics.median(planned) < 5),
    ]  # fmt: skip


def orthogonal() -> list[tuple]:
    import orthogonal

    return orthogonal.rows()


def low_rank() -> list[tuple]:
    import low_rank

    return low_rank.rows()


def methods(slugs: list[str] | None = None) -> list[tuple]:
    """Also fills `costs`, from which the papers' pages are made."""
    from methods import costs as measure

    costs.update(measure(slugs))
    for cost in costs.values():
        cost["git_commit"] = results.git_commit()
    return [
        (f"{slug} on {c['dataset']}, {c['backbone']}: a step beside {c['over']}'s, and peak memory beyond it",
         f"{c['step_ms']} ms, {c['times']} times; {c['mib'] - c['plain_mib']:+.1f} MiB", "", None)
        for slug, c in costs.items()
    ]  # fmt: skip


costs: dict[str, dict] = {}
BENCHMARKS = {
    f.__name__: f
    for f in (throughput, overhead, augmentation, loss, orthogonal, low_rank, memory, startup, sweep, methods)
}


def main() -> int:
    chosen = sys.argv[1:] or list(BENCHMARKS)
    slugs = [name for name in chosen if name in registry.entries()]
    chosen = [name for name in chosen if name not in slugs]
    if unknown := [name for name in chosen if name not in BENCHMARKS]:
        print(f"There is no benchmark {', '.join(unknown)}. Known: {', '.join(BENCHMARKS)}.", file=sys.stderr)
        return 2
    rows = [row for name in chosen for row in BENCHMARKS[name]()] + (methods(slugs) if slugs else [])
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    table = Table(
        "measured", f"median of {REPEATS} (range)", "wanted", "", title=results.device_name(device, 1)
    )
    for what, value, wanted, reached in rows:
        table.add_row(
            what, value, wanted, "" if reached is None else ("reached" if reached else "NOT reached")
        )
    Console(width=170).print(table)
    name = re.sub(r"\W+", "-", results.device_name(device, 1)).strip("-").lower()
    file = HERE / "results" / f"{name}.json"
    before = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    new = {
        row[0]: dict(zip(("what", "measured", "wanted", "reached"), row, strict=True))
        | {"git_commit": results.git_commit()}
        for row in rows
    }
    if len(chosen) < len(BENCHMARKS):  # the rows that were not measured now stay
        new = {row["what"]: row for row in before.get("rows", [])} | new
        costs.update({slug: cost for slug, cost in before.get("methods", {}).items() if slug not in costs})
    out = {
        "device": results.device_name(device, 1),
        "versions": results.versions(),
        "rows": list(new.values()),
        "methods": dict(sorted(costs.items())),
    }
    file.parent.mkdir(exist_ok=True)
    write_whole(file, json.dumps(out, indent=2, ensure_ascii=False) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
