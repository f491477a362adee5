"""Claims as a table file writes them: what is understood, which cells are named, what is refused with which words."""

import pytest
from pydantic import TypeAdapter, ValidationError

from regbench.tables.claims import Claim, cells_of

LEFT, RIGHT = {"column": "dm"}, {"column": "mce"}


def read(kind: str, **keys):
    return TypeAdapter(Claim).validate_python({"says": "it is so", "kind": kind, **keys})


@pytest.mark.parametrize(
    ("claim", "cells"),
    [
        (
            {"kind": "better", "left": {"row": "a", "column": "dm"}, "right": {"row": "b", "column": "mce"}},
            [("a", "dm"), ("b", "mce")],
        ),
        (
            {"kind": "better", "left": LEFT, "right": RIGHT, "over": {"row": ["a", "b"]}, "means": "mean"},
            [("a", "dm"), ("a", "mce"), ("b", "dm"), ("b", "mce")],
        ),
        (
            {"kind": "ratio", "left": LEFT, "right": {"row": "none", "column": "mce"}, "over": {"row": ["a", "b"]},
             "means": "all", "at_least": 1.5},
            [("a", "dm"), ("none", "mce"), ("b", "dm")],
        ),
        (
            {"kind": "within", "left": {"row": "a"}, "right": {"row": "b"}, "over": {"column": ["x"]}, "tolerance": 1},
            [("a", "x"), ("b", "x")],
        ),
        (
            {"kind": "monotone", "at": {"row": "a"}, "along": {"column": [10, "20", 0.5]}, "direction": "increasing"},
            [("a", "20"), ("a", "10"), ("a", "0.5")],
        ),
        (
            {"kind": "interior_optimum", "at": {"column": "x"}, "along": {"row": ["a", "b", "c", "d"]}},
            [("b", "x"), ("a", "x"), ("d", "x"), ("c", "x")],
        ),
        (
            {"kind": "sign_change", "left": LEFT, "right": RIGHT, "along": {"row": ["a", "b", "c"]},
             "first": "positive"},
            [("a", "dm"), ("a", "mce"), ("b", "dm"), ("b", "mce"), ("c", "dm"), ("c", "mce")],
        ),
    ],
    ids=lambda value: value["kind"] if isinstance(value, dict) else "",
)  # fmt: skip
def test_cells(claim, cells):
    assert cells_of(read(**claim)) == cells


TWO = {"left": LEFT, "right": RIGHT, "over": {"row": ["a", "b"]}}


@pytest.mark.parametrize(
    ("kind", "keys", "words"),
    [
        ("bettr", TWO, "expected tags: 'better', 'ratio'"),
        ("better", {**TWO, "means": "all", "margn": 1}, "margn\n  Extra inputs are not permitted"),
        ("better", {**TWO, "means": "all", "margin": float("nan")}, "finite number"),
        ("better", {**TWO, "means": "any"}, "'all' or 'mean'"),
        ("better", TWO, "over names several places; say means: all .* or means: mean"),
        ("better", {"left": {"colum": "dm"}, "right": RIGHT}, "should be 'row' or 'column'"),
        ("better", {"left": LEFT, "right": RIGHT}, "left has no row: name it in left or give several under over"),
        ("better", {"left": {"row": "a", **LEFT}, "right": RIGHT}, "right has no row"),
        ("better", {**TWO, "over": {"row": ["a", "a"]}, "means": "all"}, "one row or more, each once"),
        ("better", {**TWO, "over": {"row": []}}, "one row or more, each once"),
        ("better", {**TWO, "over": {"row": ["a"], "column": ["x"]}}, "names rows and columns; keep one"),
        (
            "better",
            {"left": {"row": "a", **LEFT}, "right": {"row": "b", **LEFT}, "over": {"row": ["c"]}},
            "over gives the row, but left and right name one already",
        ),
        ("better", {**TWO, "right": {"row": "b", **LEFT}, "means": "all"}, "the cell b / dm with itself"),
        ("ratio", {**TWO, "means": "all"}, "needs one of at_least and at_most"),
        ("ratio", {**TWO, "means": "all", "at_least": 1, "at_most": 2}, "needs one of at_least and at_most"),
        ("ratio", {**TWO, "means": "all", "at_least": 0}, "greater than 0"),
        ("within", {**TWO, "means": "all"}, "tolerance\n  Field required"),
        ("within", {**TWO, "means": "all", "tolerance": 0}, "greater than 0"),
        ("monotone", {"at": {"row": "a"}, "along": {"column": ["x"]}, "direction": "increasing"}, "2 columns or more"),
        ("monotone", {"at": {"row": "a"}, "along": {}, "direction": "increasing"}, "at least 1 item"),
        (
            "monotone",
            {"at": {"column": "x"}, "along": {"column": ["x", "y"]}, "direction": "increasing"},
            "at has to name the row and nothing else",
        ),
        ("interior_optimum", {"at": {"row": "a"}, "along": {"column": ["x", "y"]}}, "3 columns or more"),
        (
            "sign_change",
            {"left": LEFT, "right": RIGHT, "along": {"row": ["a"]}, "first": "positive"},
            "a first and a last place",
        ),
    ],
)  # fmt: skip
def test_refused(kind, keys, words):
    with pytest.raises(ValidationError, match=words):
        read(kind, **keys)


def test_says_is_needed():
    with pytest.raises(ValidationError, match="at least 1 character"):
        read("better", **{**TWO, "means": "all", "says": ""})
