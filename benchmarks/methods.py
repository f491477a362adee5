"""What each method costs beyond plain training on its default data and network: time a step, and peak memory.

    python methods.py <slug>     prints the peak memory (MiB) above what the imports take, of one run

A measurement of memory is a process of its own, so that nothing stays from the one before.
"""

import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import regbench.torchvision_schemas  # noqa: F401

# isort: split
import itertools

import torch
from omegaconf import DictConfig

import clock
from memory import peak, resident
from regbench import registry, training
from regbench.artifacts import obtain
from regbench.catalogue import defaults
from regbench.composing import compose_config

STEPS = 15  # of each of two epochs; those of the second one are measured
REPEATS = 3
MEMORY_REPEATS = 3
BATCH = 128


def plain_of(slug: str) -> str:
    """The method that `slug` is compared with: plain training, or FixMatch where labels are few."""
    return "fixmatch" if registry.find(slug).task == "semi_supervised" else "none"


def config(slug: str, data: str, network: str, runs_dir: str) -> DictConfig:
    return compose_config(
        [f"regularizer={slug}", f"dataset={data}", f"backbone={network}", f"dataset.batch_size={BATCH}", "logger=none",
         "progress=none", "checkpoint.select=last", "trainer.max_epochs=2", f"trainer.limit_train_batches={STEPS}",
         "trainer.limit_val_batches=1", "trainer.limit_test_batches=1", "+callbacks.clock={_target_: clock.Clock}",
         f"runs_dir={runs_dir}"]
    )  # fmt: skip


def step_ms(slug: str, data: str, network: str) -> float:
    """Median milliseconds of a step."""
    with tempfile.TemporaryDirectory() as folder:
        cfg = config(slug, data, network, folder)
        training.run(cfg, Path(folder) / "run", obtain(cfg, training.run))
    steps = clock.times[1:-1]  # without the start, and the end of the last epoch
    times = steps[len(steps) // 2 :]
    return 1000 * statistics.median(b - a for a, b in itertools.pairwise(times))


def memory_mib(slug: str, data: str, network: str) -> float:
    command = [sys.executable, __file__, slug, data, network]
    done = [
        subprocess.run(command, capture_output=True, text=True, check=True) for _ in range(MEMORY_REPEATS)
    ]
    return statistics.median(float(run.stdout.split()[-1]) for run in done)


def costs(slugs: list[str] | None = None) -> dict[str, dict[str, object]]:
    """slug → its default data and network, and time and memory of the method and of plain training there."""
    torch.set_num_threads(2)
    plain_memory: dict[tuple[str, str, str], float] = {}
    found = {}
    for slug in slugs or registry.entries():
        plain = plain_of(slug)
        # A graph's step is a whole graph, whose cost is its size's; a search trains plainly, several times.
        if (
            slug in (plain, "hyperparameter_search")
            or "image" not in registry.TASKS[registry.find(slug).task]
        ):
            continue
        place = tuple(str(defaults(slug)[group]) for group in ("dataset", "backbone"))
        pairs = [(step_ms(plain, *place), step_ms(slug, *place)) for _ in range(REPEATS)]
        if (plain, *place) not in plain_memory:
            plain_memory[plain, *place] = memory_mib(plain, *place)
        found[slug] = {
            "dataset": place[0],
            "backbone": place[1],
            "batch_size": BATCH,
            "over": plain,
            "plain_ms": round(statistics.median(a for a, _ in pairs), 2),
            "step_ms": round(statistics.median(b for _, b in pairs), 2),
            "times": round(statistics.median(b / a for a, b in pairs), 3),
            "plain_mib": round(plain_memory[plain, *place], 1),
            "mib": round(memory_mib(slug, *place), 1),
        }
    return found


if __name__ == "__main__":
    before = resident()
    torch.set_num_threads(2)
    step_ms(*sys.argv[1:])
    print(peak() - before)
