"""Rankings against p-values, bounds and intervals worked out by hand, and their errors over simulated comparisons."""

import csv
import math
import random

import pytest

from regbench.errors import UserError
from regbench.tables.ranking import holm, rank, validation
from regbench.tables.reductions import RunData

BASE = {0: 90.0, 1: 91.0, 2: 92.0}


def plus(*differences: float) -> dict[int, float]:
    return {seed: BASE[seed] + difference for seed, difference in enumerate(differences)}


def lines(found: dict) -> dict[str, dict]:
    return {line["method"]: line for line in found["methods"]}


def p_of(t: float) -> float:
    """Two-sided p-value of Student's t with two degrees of freedom, which has a closed form."""
    return 1 - t / math.sqrt(2 + t * t)


def test_holm_by_hand():
    found = holm({"a": 0.01, "b": 0.04, "c": 0.03, "d": 0.005})
    # 4 × 0.005, 3 × 0.01, 2 × 0.03; then 1 × 0.04, which may not be below the one before.
    assert {key: p for key, (p, _) in found.items()} == pytest.approx(
        {"d": 0.02, "a": 0.03, "c": 0.06, "b": 0.06}
    )
    # 0.03 is above 0.05 / 2: the comparison ends there, so 0.04 is not compared with 0.05.
    assert {key: e for key, (_, e) in found.items()} == pytest.approx(
        {"d": 0.05 / 4, "a": 0.05 / 3, "c": 0.05 / 2, "b": 0.05 / 2}
    )


def test_a_ranking_by_hand():
    values = {"none": {"none": BASE}, "a": {"a": plus(1, 2, 3)}, "b": {"b": plus(10, 10.1, 9.9)}}
    found = rank(values, "none", "max")
    assert [line["method"] for line in found["methods"]] == ["b", "a", "none"]
    a, b, none = (lines(found)[name] for name in ("a", "b", "none"))
    assert (a["mean"], a["sd"], b["mean"]) == pytest.approx((93.0, 2.0, 101.0))
    # b: mean 10, sd 0.1; its bound is 0.05 / 2, and t with 2 degrees of freedom at 0.0125 is 6.2053.
    assert b["p"] == pytest.approx(2 * p_of(10 * math.sqrt(3) / 0.1), rel=1e-6)
    assert b["interval"] == pytest.approx([10 - 0.35826, 10 + 0.35826], abs=1e-4)
    assert (b["verdict"], b["level"], b["budget"]) == ("helps", 0.975, 1)
    # a: mean 2, sd 1, t = 3.4641; after b its bound is 0.05, where t is 4.3027.
    assert a["p"] == pytest.approx(0.07418, abs=1e-5)
    assert a["interval"] == pytest.approx([2 - 2.4841, 2 + 2.4841], abs=1e-4)
    assert (a["verdict"], a["level"]) == ("undecided", 0.95)
    assert (none["verdict"], none["difference"], none["interval"], none["p"]) == (
        "baseline",
        None,
        None,
        None,
    )
    assert found["level_with_best"] == []  # b - a is 9, 8.1, 6.9: t = 13.1, p = 0.0057, times 2 of 3 pairs


def test_where_lower_is_better_the_same_differences_hurt():
    values = {"none": {"none": BASE}, "a": {"a": plus(10, 10.1, 9.9)}}
    found = rank(values, "none", "min")
    assert [line["method"] for line in found["methods"]] == ["none", "a"]
    assert lines(found)["a"]["verdict"] == "hurts"
    assert lines(found)["a"]["difference"] == pytest.approx(10)


def test_the_choice_among_settings_is_paid_for():
    chosen = plus(2, 2.2, 1.8)  # mean 2, sd 0.2, t = 17.32, p = 0.00332: decided if it were the only setting
    worse = plus(0, 0.2, -0.3)
    one = rank({"none": {"none": BASE}, "a": {"a": chosen}}, "none", "max")
    assert lines(one)["a"]["verdict"] == "helps"
    assert lines(one)["a"]["p"] == pytest.approx(p_of(10 * math.sqrt(3)))
    sixteen = {"a-1": worse, "a-2": chosen} | {f"a-{i}": worse for i in range(3, 17)}
    many = rank({"none": {"none": BASE}, "a": sixteen}, "none", "max")
    a = lines(many)["a"]
    assert (a["setting"], a["budget"], a["verdict"]) == ("a-2", 16, "undecided")
    assert a["p"] == pytest.approx(16 * p_of(10 * math.sqrt(3)))
    assert a["level"] == pytest.approx(1 - 0.05 / 16, abs=1e-4)
    # The baseline's settings count as well: 4 × 4 pairs.
    four = {"a-1": chosen} | {f"a-{i}": worse for i in range(2, 5)}
    lower = {f"none-{i}": {seed: value - i for seed, value in BASE.items()} for i in range(4)}
    both = rank({"none": lower, "a": four}, "none", "max")
    assert lines(both)["none"]["setting"] == "none-0"
    assert lines(both)["a"]["p"] == pytest.approx(16 * p_of(10 * math.sqrt(3)))


def test_the_best_is_told_apart_by_all_pairs():
    values = {"none": {"none": BASE}, "a": {"a": plus(10, 10.1, 9.9)}, "b": {"b": plus(9.9, 10.2, 9.8)}}
    found = rank(values, "none", "max")
    assert found["methods"][0]["method"] == "a"
    assert found["level_with_best"] == ["b"]  # a - b is 0.1, -0.1, 0.1


def test_one_seed_ranks_and_decides_nothing():
    found = rank({"none": {"none": {0: 90.0}}, "a": {"a": {0: 95.0}}}, "none", "max")
    line = found["methods"][0]
    assert (line["method"], line["difference"], line["verdict"]) == ("a", 5.0, "undecided")
    assert line["interval"] is line["p"] is line["sd"] is None
    assert found["level_with_best"] == ["none"]
    assert found["equal"] == []


def test_equal_differences_decide_nothing():
    found = rank({"none": {"none": BASE}, "a": {"a": plus(1, 1, 1)}}, "none", "max")
    assert found["equal"] == ["a"]
    assert (lines(found)["a"]["verdict"], lines(found)["a"]["interval"]) == ("undecided", None)


def test_only_the_seeds_that_all_have_count():
    # Seed 2 of `a` failed. Over all seeds `none` would have the higher mean.
    values = {"none": {"none": {0: 1.0, 1: 2.0, 2: 9.0}}, "a": {"a": {0: 2.0, 1: 2.5}}, "b": {"b": {}}}
    found = rank(values, "none", "max")
    assert found["seeds"] == [0, 1]
    assert [line["method"] for line in found["methods"]] == ["a", "none", "b"]
    assert lines(found)["a"]["difference"] == 0.75
    assert (lines(found)["b"]["verdict"], lines(found)["b"]["mean"]) == ("not measured", None)


def test_without_a_baseline_the_others_are_ranked():
    found = rank({"none": {"none": {}}, "a": {"a": {0: 1.0, 1: 2.0}}}, "none", "max")
    assert [line["method"] for line in found["methods"]] == ["a", "none"]
    assert lines(found)["a"]["verdict"] == "not measured"
    nothing = rank({"none": {"none": {}}, "a": {"a": {0: 1.0}}, "b": {"b": {1: 1.0}}}, "none", "max")
    assert nothing["seeds"] == []
    assert {line["mean"] for line in nothing["methods"]} == {None}


def simulated(draw: random.Random, seeds: int, methods: int, settings: int = 1, effects=()) -> dict:
    """A comparison whose seeds have something in common. Methods differ by noise and `effects`; the baseline has one
    setting.
    """
    shared = [draw.gauss(90, 1) for _ in range(seeds)]
    values = {}
    for i in range(methods + 1):
        effect = effects[i - 1] if 0 < i <= len(effects) else 0.0
        values["none" if i == 0 else f"m{i}"] = {
            str(j): {seed: shared[seed] + effect + draw.gauss(0, 0.5) for seed in range(seeds)}
            for j in range(settings if i else 1)
        }
    return values


@pytest.mark.parametrize("seeds", [3, 5, 10])
@pytest.mark.parametrize(("settings", "effects"), [(1, ()), (1, (20.0,)), (5, ())])
def test_methods_without_effect_are_rarely_said_to_have_one(seeds, settings, effects):
    """At most 6 % of the comparisons of three methods, also beside one that helps, and chosen among settings."""
    draw = random.Random(seeds)
    wrong, number = 0, 2000
    for _ in range(number):
        found = lines(rank(simulated(draw, seeds, 3, settings, effects), "none", "max"))
        wrong += any(found[f"m{i}"]["verdict"] != "undecided" for i in range(1 + len(effects), 4))
        for line in found.values():  # the intervals say what the verdicts say
            if line["interval"] is not None:
                low, high = line["interval"]
                said = "helps" if low > 0 else "hurts" if high < 0 else "undecided"
                assert said == line["verdict"]
    assert wrong / number <= 0.06


def test_an_effect_is_found():
    draw = random.Random(1)
    found = [lines(rank(simulated(draw, 5, 3, 1, (3.0, -3.0)), "none", "max")) for _ in range(300)]
    assert sum(one["m1"]["verdict"] == "helps" for one in found) > 270
    assert sum(one["m2"]["verdict"] == "hurts" for one in found) > 270


@pytest.mark.parametrize(
    ("checkpoint", "value"),
    [
        ({"select": "best_val", "monitor": "val/accuracy", "mode": "max"}, 0.8),
        ({"select": "best_val", "monitor": "val/loss", "mode": "min"}, 0.7),  # the first of two equal epochs
        ({"select": "last", "monitor": "val/accuracy", "mode": "max"}, 0.5),
        ({"select": "median_last_10", "monitor": "val/accuracy", "mode": "max"}, 0.65),
    ],
)
def test_validation_is_that_of_the_tested_weights(tmp_path, checkpoint, value):
    rows = [(0, 0.6, 0.3), (1, 0.7, 0.2), (2, 0.800000011920929, 0.2), (3, 0.5, 0.9)]
    with (tmp_path / "metrics.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["epoch", "step", "val/accuracy", "val/loss"])
        writer.writerows((epoch, 10 * epoch, accuracy, loss) for epoch, accuracy, loss in rows)
    run = RunData({"config": {"checkpoint": checkpoint}, "metrics": {}}, tmp_path)
    assert validation([run], "val/accuracy") == value
    with pytest.raises(UserError, match="val/f1 was not measured"):
        validation([run], "val/f1")
