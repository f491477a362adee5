"""Means, t intervals and printed numbers against values worked out by hand or taken from tables of Student's t."""

import math
import subprocess
import sys

import pytest
import scipy.stats

from regbench.tables.statistics import (
    decimals_for,
    format_mean,
    format_number,
    half_width,
    summary,
    t_interval,
    t_quantile,
)


def test_summary():
    assert summary([1.0, 2.0, 3.0]) == (2.0, 1.0, 3)
    assert summary([2.0, 4.0, 4.0, 4.0, 5.0, 5.0, 7.0, 9.0]) == (5.0, pytest.approx(math.sqrt(32 / 7)), 8)
    assert summary([5]) == (5.0, None, 1)
    assert summary([]) == (None, None, 0)


def test_equal_values_have_no_spread_however_their_sum_is_rounded():
    assert summary([0.1] * 3) == (0.1, 0.0, 3)  # 0.1 + 0.1 + 0.1 is not 3 × 0.1


@pytest.mark.parametrize(
    ("df", "error", "table"), [(2, 0.025, 4.3027), (4, 0.025, 2.7764), (9, 0.025, 2.2622), (4, 0.005, 4.6041)]
)
def test_quantiles_are_those_of_the_printed_tables(df, error, table):
    assert t_quantile(df, error) == pytest.approx(table, abs=5e-5)


def test_interval_by_hand():
    mean, (low, high) = t_interval([1.0, 2.0, 3.0])
    assert mean == 2.0
    assert (low, high) == pytest.approx((2 - 2.4841, 2 + 2.4841), abs=5e-5)  # 4.3027 × 1 / √3


def test_interval_is_that_of_scipys_paired_test():
    left, right = [93.1, 92.4, 94.0, 93.3, 92.9], [92.8, 92.5, 93.1, 92.7, 92.6]
    expected = scipy.stats.ttest_rel(left, right).confidence_interval(0.9)
    mean, interval = t_interval([a - b for a, b in zip(left, right, strict=True)], level=0.9)
    assert mean == pytest.approx(0.4)
    assert interval == pytest.approx((expected.low, expected.high))


def test_interval_needs_two():
    assert t_interval([0.3]) == (0.3, None)
    assert t_interval([]) == (None, None)


def test_an_exact_value_has_no_half_width():
    assert half_width(0.0, 1, 0.025) == 0.0


@pytest.mark.parametrize(
    ("spread", "decimals"),
    [(0.21, 1), (0.14, 2), (0.96, 1), (0.0996, 2), (0.196, 1), (3, 0), (1.2, 1), (24000, -4), (13000, -3), (2e-9, 9)],
)  # fmt: skip
def test_decimals_follow_the_spread(spread, decimals):
    assert decimals_for(spread) == decimals


@pytest.mark.parametrize(
    ("mean", "sd", "unit", "text"),
    [
        (92.953, 0.213, "percent", "93.0 ± 0.2"),
        (92.953, 0.14, "percent", "92.95 ± 0.14"),
        (92.953, 0.96, "percent", "93.0 ± 1.0"),
        (92.953, 0.996, "percent", "93.0 ± 1.0"),
        (92.953, 0.0996, "percent", "92.95 ± 0.10"),
        (92.953, 7.3, "percent", "93 ± 7"),
        (92.953, 12.7, "percent", "93 ± 13"),
        (-0.004, 0.3, "", "0.0 ± 0.3"),
        (0.0, 0.3, "", "0.0 ± 0.3"),
        (1.5e-5, 0.3, "", "0.0 ± 0.3"),
        (1234.5, 340.0, "seconds", "1200 ± 300"),
        (3123456.0, 24000.0, "", "(3.12 ± 0.02)e6"),
        (1.234e-7, 2.1e-9, "", "(1.23 ± 0.02)e-7"),
        (92.953, None, "percent", "93.0"),
        (0.92953, None, "fraction", "0.930"),
        (0.82345, None, "nats", "0.823"),
        (1234.5, None, "seconds", "1230"),
        (9.996, None, "seconds", "10.0"),
        (0.0, None, "nats", "0.00"),
        (3.14159e6, None, "", "3.14e6"),
        (1.0e-7, None, "percent", "1.00e-7"),
        (1e-3, None, "", "0.00100"),
        (93.14, 0.0, "percent", "93.1 ± 0.0"),
        (93.14, 1e-14, "percent", "93.1 ± 0.0"),
        (0.0, 0.0, "percent", "0.0 ± 0.0"),
        (math.nan, None, "percent", "nan"),
        (math.inf, math.nan, "percent", "inf"),
    ],
)
def test_means_are_printed_as_far_as_the_spread_supports(mean, sd, unit, text):
    assert format_mean(mean, sd, unit) == text


def test_a_deterministic_mean_stands_alone():
    assert format_mean(93.14, 0.0, "percent", deterministic=True) == "93.1"


@pytest.mark.parametrize(
    ("value", "decimals", "text"),
    [(79.1, 2, "79.10"), (79.12, None, "79.12"), (80.0, None, "80"), (0.1 + 0.2, None, "0.3"), (-0.04, 1, "0.0"),
     (1260, -2, "1300"), (math.nan, 2, "nan")],
)  # fmt: skip
def test_published_numbers(value, decimals, text):
    assert format_number(value, decimals) == text


def test_formatting_loads_no_scipy_and_no_torch():
    code = "import sys\nfrom regbench.tables.statistics import format_mean\nformat_mean(1, 0.1)\n"
    code += "print({'scipy', 'torch'} & {*sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "set()"
