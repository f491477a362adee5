"""docs/tables.md: its example has every key of a table's file, loads, and plans."""

import re
from typing import get_args

import pytest
import yaml

from regbench.tables import spec
from regbench.tables.claims import Claim
from regbench.tables.measure import measure
from regbench.tables.plan import composer, make_plan
from regbench.tables.spec import read_table
from support import ROOT

PAGE = (ROOT / "docs" / "tables.md").read_text(encoding="utf-8")
EXAMPLE, ARTIFACTS = (
    yaml.safe_load(block) for block in re.findall(r"^```yaml\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)
)
CLAIMS = {get_args(kind.model_fields["kind"].annotation)[0]: kind for kind in get_args(get_args(Claim)[0])}


def keys(nodes) -> set[str]:
    return {key for node in nodes for key in node}


def test_the_example_has_every_key():
    runs = [*EXAMPLE["runs"].values(), *ARTIFACTS["runs"].values()]
    fits = {"fit", "x", "y", "give"}
    shown = {
        spec.Table: set(EXAMPLE)
        | {"slug", "name"}
        | {"ranking"},  # `regbench compare` makes it: docs/compare.md
        spec.Run: keys(runs) - {"each"},
        spec.Artifact: keys(a for run in runs for a in run.get("artifacts", {}).values()),
        spec.Cell: keys(EXAMPLE["cells"]) - {"each", "run"},
        spec.Value: keys(cell.get("value", {}) for cell in EXAMPLE["cells"]),
        spec.Published: keys(EXAMPLE["published"]),
        spec.Scale: keys(EXAMPLE["scales"].values()),
    }
    assert fits <= shown[spec.Value]
    for part, found in shown.items():
        assert found == set(part.model_fields), part.__name__
    assert {claim["kind"] for claim in EXAMPLE["claims"]} == set(CLAIMS)
    for claim in EXAMPLE["claims"]:
        left_out = set(CLAIMS[claim["kind"]].model_fields) - set(claim)
        assert left_out <= {"over", "means", "at_most"}


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    path = tmp_path_factory.mktemp("paper") / "example.yaml"
    path.write_text(yaml.safe_dump(EXAMPLE))
    return read_table(path)


def test_the_example_plans(table, tmp_path):
    with composer() as compose:
        plans = {scale: make_plan(table, scale, compose) for scale in table.scales}
    names = ["mixup/high", "mixup/low", "mixup/mid", "plain"]
    assert {scale: sorted({run.name for run in plan.runs.values()}) for scale, plan in plans.items()} == {
        "smoke": names,
        "small": names,
        "medium": ["mixup/low", "plain"],
        "paper": [],
    }
    assert {scale: len(plan.runs) for scale, plan in plans.items()} == {
        "smoke": 4,
        "small": 20,
        "medium": 6,
        "paper": 0,
    }
    assert plans["medium"].runs["plain-s2"].config["optimizer"]["lr"] == 0.05
    assert plans["small"].runs["mixup/low-s3"].config["regularizer"] == {"name": "mixup", "alpha": 0.2}
    assert plans["small"].runs["mixup/low-s3"].overrides[-4:] == [
        "seeds.data=0",
        "seeds.noise=0",
        "seeds.evaluation=0",
        "seed=3",
    ]
    results = measure(plans["small"], tmp_path, "")
    for part in (results, results["cells"][0], results["claims"][0], next(iter(results["runs"].values()))):
        assert {key for key in part if f"`{key}`" not in PAGE} == set()


def test_the_artifacts_load(tmp_path):
    path = tmp_path / "example.yaml"
    path.write_text(yaml.safe_dump(EXAMPLE | {"runs": EXAMPLE["runs"] | ARTIFACTS["runs"]}))
    assert read_table(path).runs["student"].artifacts["teacher"].run == "plain"
