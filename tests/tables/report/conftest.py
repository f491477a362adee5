"""Results dicts, with numbers made up: `results` has every state of a cell and every verdict, `large` 200 cells."""

import copy

import pytest


def cell(row, column, published, values, state="done", **other):
    """A cell in the results format; `published` is (value, source, approximate) or None."""
    numbers = list(values)
    mean = sum(numbers) / len(numbers) if numbers else None
    sd = None
    if len(numbers) > 1:
        sd = (sum((v - mean) ** 2 for v in numbers) / (len(numbers) - 1)) ** 0.5
    named = dict(zip(("value", "source", "approximate"), published, strict=True)) if published else None
    return {
        "row": row,
        "column": column,
        "published": named,
        "state": state,
        "why": "",
        "values": {str(seed): v for seed, v in enumerate(numbers)},
        "runs": {str(seed): [f"{row}-{column}-{seed}"] for seed in range(len(numbers))},
        "mean": mean,
        "sd": sd,
        "seeds": len(numbers),
        "deterministic": False,
        "reduction": "test/accuracy",
        "curve": None,
    } | other


def claim(says, verdict, effect, interval, **other):
    return {
        "says": says,
        "kind": "better",
        "verdict": verdict,
        "effect": effect,
        "interval": interval,
        "level": 0.95,
        "unit": "percent",
        "seeds": 5,
        "means": "",
        "parts": [],
        "context": "scale small, mnist5k",
        "note": "",
    } | other


def curve(start, end, sd=0.8):
    """Ten epochs that approach `end`."""
    mean = [end - (end - start) * 0.6**epoch for epoch in range(10)]
    return {
        "metric": "val/accuracy",
        "unit": "percent",
        "epoch": list(range(10)),
        "mean": mean,
        "sd": [sd] * 10,
    }


def run(place, seed, **other):
    return {
        "name": place.replace(" / ", "_"),
        "cell": place,
        "cells": [place],
        "seed": seed,
        "state": "done",
        "stale": False,
        "metrics": {"test/accuracy": 0.931, "test/nll": 0.254},
        "duration_s": 12.3,
        "config_hash": "0123456789abcdef",
        "commit": "e408559aa",
        "code": "fedcba98",
        "machine": "2 cores, x86_64",
        "device": "cpu (1 threads)",
        "command": f"python train.py regularizer=decoupled_mixup seed={seed}",
    } | other


@pytest.fixture
def results(made):
    return copy.deepcopy(made)


@pytest.fixture
def large(made_large):
    return copy.deepcopy(made_large)


@pytest.fixture(scope="session")
def made():
    pages = "openmixup, docs/en/mixup_benchmarks/Mixup_cifar.md"
    cells = [
        cell("none", "mce", (78.04, pages, False), [93.1, 93.3, 92.9, 93.0, 93.2], curve=curve(40, 93)),
        cell("none", "dm", None, [], state="not runnable", why="Decoupled mixup has nothing to mix here."),
        cell("mixup", "mce", (79.5, pages, False), [93.0, 93.4, 93.2, 93.1, 93.3], curve=curve(35, 93.5)),
        cell("mixup", "dm", (80, "figure 3", True), [93.6, 93.8, 93.4, 93.5, 93.7], curve=curve(38, 94)),
        cell(
            "cutmix",
            "mce",
            (78.17, pages, False),
            [],
            state="failed",
            why="Ran out of memory: runs/ab12/run.log.",
        ),
        cell("cutmix", "dm", None, [], state="not at this scale"),
        cell("fmix", "mce", None, [92.25, 92.25], deterministic=True, curve=curve(30, 92.25)),
        cell("fmix", "dm", None, [91.0, 91.4], state="partial"),
    ]
    runs = {
        key: run(f"{c['row']} / {c['column']}", int(seed), stale=key == "fmix-dm-1")
        for c in cells
        for seed, keys in c["runs"].items()
        for key in keys
    }
    return {
        "format": 1,
        "slug": "decoupled_mixup",
        "table": "cifar100",
        "scale": "small",
        "title": "Top-1 accuracy on CIFAR-100, ResNet-18",
        "about": "5,000 MNIST images and a small CNN instead of CIFAR-100 and ResNet-18; 20 minutes of two cores.",
        "paper": {
            "title": "Harnessing Hard Mixed Samples with Decoupled Regularizer",
            "authors": "Zicheng Liu, Siyuan Li, Ge Wang, Cheng Tan, Lirong Wu, Stan Z. Li",
            "year": 2023,
            "venue": "NeurIPS",
            "arxiv": "2203.10761",
            "code": "https://github.com/Westlake-AI/openmixup",
        },
        "metric": "test/accuracy",
        "unit": "percent",
        "direction": "max",
        "data": ["mnist5k"],
        "rows": [
            {"key": "none", "label": "none"},
            {"key": "mixup", "label": "Mixup"},
            {"key": "cutmix", "label": "CutMix & co_1"},
            {"key": "fmix", "label": "FMix, η=0.1"},
        ],
        "columns": [{"key": "mce", "label": "MCE"}, {"key": "dm", "label": "DM(CE)"}],
        "row_title": "policy",
        "column_title": "loss",
        "cells": cells,
        "claims": [
            claim("Decoupled mixup is above mixup cross entropy with mixup", "holds", 0.4, [0.15, 0.65]),
            claim(
                "Decoupled mixup is above mixup cross entropy with every policy",
                "fails",
                -0.62,
                [-1.1, -0.14],
                means="mean",
                parts=[
                    {
                        "place": "Mixup",
                        "effect": 0.4,
                        "interval": [0.15, 0.65],
                        "seeds": 5,
                        "verdict": "holds",
                    },
                    {"place": "FMix", "effect": -1.05, "interval": None, "seeds": 2, "verdict": "fails"},
                ],
            ),
            claim("Mixup is above no mixing", "undecided", 0.1, [-0.2, 0.4], note="More seeds are needed."),
            claim(
                "CutMix costs at most 1.5 times as much",
                "not measured",
                None,
                None,
                kind="ratio",
                unit="times",
                seeds=0,
            ),
        ],
        "runs": runs,
        "command": "python scripts/reproduce.py table=decoupled_mixup/cifar100 scale=small",
        "made": "2026-11-25",
        "versions": {"python": "3.11.2", "torch": "2.13.0+cpu", "regbench": "0.1.0"},
        "cost_s": 1234.5,
    }


@pytest.fixture(scope="session")
def made_large(made):
    """200 finished cells over five seeds, with curves."""
    rows, columns = [f"policy {i}" for i in range(20)], [f"network {i}" for i in range(10)]
    cells = [
        cell(
            row,
            column,
            (70 + j, "table 2", False),
            [80 + i + j + 0.1 * s for s in range(5)],
            curve=curve(40, 80),
        )
        for i, row in enumerate(rows)
        for j, column in enumerate(columns)
    ]
    return made | {
        "table": "large",
        "rows": [{"key": row, "label": row} for row in rows],
        "columns": [{"key": column, "label": column} for column in columns],
        "cells": cells,
        "claims": [],
        "runs": {f"{c['row']}-{c['column']}-{s}": run(c["row"], s) for c in cells for s in range(5)},
    }
