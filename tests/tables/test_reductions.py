"""From runs to a number, on folders made by hand and values worked out by hand."""

import math

import pytest

from regbench.errors import UserError
from regbench.tables.reductions import RunData, difference, reduction
from regbench.tables.spec import Value


@pytest.fixture
def run(tmp_path):
    """A finished run with these test metrics, learning curves (name → a value an epoch) and configuration."""

    def call(metrics=None, curves=None, **config) -> RunData:
        folder = tmp_path / f"run{len(list(tmp_path.iterdir()))}"
        folder.mkdir()
        if curves is not None:
            names = list(curves)
            lines = [",".join(["epoch", "step", *names])]
            for epoch, values in enumerate(zip(*curves.values(), strict=True)):
                lines.append(",".join([str(epoch), str(10 * epoch + 9), *map(str, values)]))
            (folder / "metrics.csv").write_text("\n".join(lines) + "\n")
        return RunData({"metrics": metrics or {}, "config": config}, folder)

    return call


def reduced(runs: list[RunData], metric="test/accuracy", **value) -> float:
    _, function = reduction(Value(**value) if value else None, metric)
    return function(runs)


def test_the_tables_metric_unless_another_is_named(run):
    runs = [run({"test/accuracy": 0.5, "test/nll": 2.25})]
    assert reduced(runs) == 0.5
    assert reduced(runs, metric="test/nll") == 2.25
    assert reduced(runs, metric="test/nll") == reduced(runs, **{"metric": "test/nll"})
    assert reduction(None, "test/nll")[0] == "test/nll"


def test_float32_comes_back_as_what_was_measured(run):
    assert reduced([run({"test/accuracy": 0.7125999927520752})]) == 0.7126  # the float32 next to 0.7126
    assert reduced([run({"test/accuracy": 0.7126})]) == 0.7126  # a double stays
    assert reduced([run({"test/accuracy": 1 / 3})]) == 1 / 3


def test_a_metric_that_is_no_number_or_was_not_measured(run):
    assert math.isnan(reduced([run({"test/accuracy": None})]))
    with pytest.raises(UserError, match="the run has no metric test/acc; it has test/accuracy, test/nll"):
        reduced([run({"test/nll": 1.0, "test/accuracy": 1.0})], metric="test/acc")


def test_a_curve_at_an_epoch(run):
    runs = [run(curves={"val/nll": [2.5, "", 1.5], "train/loss": [3, 2, 1]})]
    assert reduced(runs, curve="val/nll", epoch=0) == 2.5
    assert reduced(runs, curve="val/nll", epoch=2) == 1.5
    assert reduction(Value(curve="val/nll", epoch=2), "m")[0] == "val/nll at epoch 2"
    with pytest.raises(UserError, match="val/nll was not measured at epoch 1, only at 0, 2"):
        reduced(runs, curve="val/nll", epoch=1)
    with pytest.raises(UserError, match="val/nlll was not measured at epoch 1, only at none"):
        reduced(runs, curve="val/nlll", epoch=1)


def test_of_several_lines_of_an_epoch_the_last_counts(run):
    data = run()
    (data.folder / "metrics.csv").write_text("epoch,val/nll\n0,3.0\n0,2.0\n1,1.0\n")
    assert data.curve("val/nll") == {0: 2.0, 1: 1.0}


def test_a_run_without_curves(run):
    with pytest.raises(UserError, match="was not measured"):
        reduced([run({"test/accuracy": 1.0})], curve="val/nll", epoch=0)


def test_the_epoch_that_is_best_by_another_curve(run):
    curves = {"val/accuracy": [0.2, 0.6, 0.6, 0.5], "val/nll": [4.0, 3.0, 2.0, 1.0]}
    runs = [run(curves=curves)]
    assert reduced(runs, curve="val/nll", best_by="val/accuracy") == 3.0  # of two best epochs the first
    assert reduced(runs, curve="val/accuracy", best_by="val/nll", mode="min") == 0.5
    assert reduced(runs, curve="val/accuracy", best_by="val/nll") == 0.2
    assert reduction(Value(curve="a", best_by="b"), "m")[0] == "a at the epoch with the best b"
    with pytest.raises(UserError, match="val/other was not measured"):
        reduced(runs, curve="val/nll", best_by="val/other")


@pytest.mark.parametrize("mode", ["max", "min"])
def test_an_epoch_without_a_number_is_never_best(run, mode):
    curves = {"val/accuracy": ["nan", 0.5, "nan"], "val/nll": [1.0, 2.0, 3.0]}
    assert reduced([run(curves=curves)], curve="val/nll", best_by="val/accuracy", mode=mode) == 2.0
    with pytest.raises(UserError, match="never came out as a number"):
        reduced([run(curves={"a": ["nan"], "b": [1]})], curve="b", best_by="a", mode=mode)


def points(run, pairs) -> list[RunData]:
    return [run({"test/loss": y}, dataset={"train_size": x}) for x, y in pairs]


def test_a_line_through_three_points(run):
    # x 0, 1, 2 and y 1, 2, 4: mean 1 and 7/3, slope ((-1)(-4/3) + (1)(5/3)) / 2 = 1.5, intercept 7/3 - 1.5 = 5/6.
    runs = points(run, [(2, 4.0), (0, 1.0), (1, 2.0)])
    options = {"fit": "line", "x": "dataset.train_size", "y": "test/loss"}
    assert reduced(runs, **options, give="slope") == pytest.approx(1.5)
    assert reduced(runs, **options, give="intercept") == pytest.approx(5 / 6)
    words = "slope of a line fit of test/loss over dataset.train_size"
    assert reduction(Value(**options, give="slope"), "m")[0] == words


def test_a_line_far_above_zero(run):
    runs = points(run, [(0, 1000.0), (1, 1002.0)])  # exp(1000) is no double: only a power law has that factor
    options = {"fit": "line", "x": "dataset.train_size", "y": "test/loss"}
    assert reduced(runs, **options, give="slope") == pytest.approx(2.0)
    assert reduced(runs, **options, give="intercept") == pytest.approx(1000.0)


def test_a_power_law(run):
    runs = points(run, [(100, 3 * 100**-0.5), (400, 3 * 400**-0.5), (900, 3 * 900**-0.5)])  # y = 3 / sqrt(x)
    options = {"fit": "power", "x": "dataset.train_size", "y": "test/loss"}
    assert reduced(runs, **options, give="exponent") == pytest.approx(-0.5)
    assert reduced(runs, **options, give="factor") == pytest.approx(3.0)


def test_fits_that_can_not_be_made(run):
    options = {"x": "dataset.train_size", "y": "test/loss", "give": "slope", "fit": "line"}
    with pytest.raises(UserError, match=r"needs runs with two values of it or more; it is 5\.0 in all"):
        reduced(points(run, [(5, 1.0), (5, 2.0)]), **options)
    with pytest.raises(UserError, match=r"a power law needs positive dataset\.train_size and test/loss"):
        reduced(points(run, [(0, 1.0), (5, 2.0)]), **options | {"fit": "power", "give": "exponent"})
    with pytest.raises(UserError, match=r"the configuration's dataset\.size is None, no number"):
        reduced(points(run, [(1, 1.0), (5, 2.0)]), **options | {"x": "dataset.size"})
    assert math.isnan(reduced(points(run, [(1, None), (5, 2.0)]), **options))


DIFFERENCE = "regbench.tables.reductions.difference"


def test_a_difference_of_two_runs(run):
    runs = [run({"test/accuracy": 0.7125999927520752}), run({"test/accuracy": 0.7099999785423279})]
    assert reduced(runs, function=DIFFERENCE) == 0.0026
    assert reduced(runs[::-1], function=DIFFERENCE) == -0.0026
    assert reduction(Value(function=DIFFERENCE), "test/accuracy")[0] == "difference of test/accuracy"


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        (0.934, 0.928, 0.006),  # 0.006000000000000005 in doubles
        (0.9340000152587891, 0.9279999732971191, 0.006),  # and in float32
        (12.3456, 12.3333, 0.012),  # five digits of the larger: three decimals
        (1234.5678, 1234.1234, 0.4),
        (0.0123456, 0.0023456, 0.01),
        (0.5, 0.5, 0.0),
        (0.0, 0.0, 0.0),
        (-2.0, 1.0, -3.0),
    ],
)
def test_differences_keep_the_digits_that_float32_has(run, first, second, expected):
    assert difference([run({"m": first}), run({"m": second})], "m") == expected


@pytest.mark.parametrize(("first", "second"), [(None, 0.5), (0.5, None), (None, None)])
def test_a_difference_with_a_run_that_came_to_nothing_is_no_number(run, first, second):
    assert math.isnan(difference([run({"m": first}), run({"m": second})], "m"))


@pytest.mark.parametrize(
    "name", ["nowhere.f", "regbench.tables.reductions.nothing", "difference", "os.path.nothing"]
)
def test_a_function_that_is_not_there(name):
    with pytest.raises(UserError, match=f"The function {name} of a cell's value can't be imported"):
        reduction(Value(function=name), "m")


def test_a_function_of_ones_own_gets_runs_and_metric(run, tmp_path, monkeypatch):
    (tmp_path / "my_reductions.py").write_text(
        "def total(runs, metric):\n    return sum(run.metric(metric) for run in runs)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    runs = [run({"test/nll": value}) for value in (1.0, 2.0, 4.0)]
    assert reduced(runs, metric="test/nll", function="my_reductions.total") == 7.0
