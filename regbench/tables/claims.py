"""Claims of a paper about the cells of a table: what a table file may say, and when it is true of an effect.

A claim is one effect and a condition on it. Its parts are differences of cells; the effect is that of its only part, or
the smallest of several ("in every place", monotone, a change of sign) or the largest (an interior optimum, a tie).
`verdict` turns an interval of the effect into a verdict; `verdicts.judge` makes the interval from measured values.
"""

import itertools
import math
from collections.abc import Callable
from typing import Annotated, ClassVar, Literal, NamedTuple

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, FiniteFloat, PositiveFloat, model_validator

Coordinate = Literal["row", "column"]
Cell = tuple[str, str]  # (row, column)
Name = Callable[[str, str], str]  # (coordinate, key) → label


class Comparison(NamedTuple):
    """`sign` times the mean, within a seed, of left minus right over `pairs` of cells."""

    pairs: list[tuple[Cell, Cell]]
    sign: int = 1


Part = tuple[str, list[Comparison]]  # (place, what it compares: the smallest of these is the part's effect)


def _one_coordinate(places: dict[Coordinate, list[str]]) -> dict[Coordinate, list[str]]:
    if len(places) > 1:
        raise ValueError("names rows and columns; keep one of the two")
    for coordinate, keys in places.items():
        if not keys or len(set(keys)) < len(keys):
            raise ValueError(f"needs one {coordinate} or more, each once")
    return places


Selector = dict[Coordinate, str]
Places = Annotated[dict[Coordinate, list[str]], AfterValidator(_one_coordinate)]
Along = Annotated[Places, Field(min_length=1)]


def _fill(selector: Selector, coordinate: str, place: str) -> Cell:
    """The cell of a selector at a place; what the selector names itself stays."""
    whole = {coordinate: place} | selector
    return whole["row"], whole["column"]


def _pairs(
    left: Selector, right: Selector, places: dict[Coordinate, list[str]], field: str
) -> list[tuple[str, Cell, Cell]]:
    """(place, left cell, right cell) for each place; ValueError where a cell is not named fully or meets itself."""
    for side, selector in {"left": left, "right": right}.items():
        for coordinate in ("row", "column"):
            if coordinate not in selector and coordinate not in places:
                raise ValueError(
                    f"{side} has no {coordinate}: name it in {side} or give several under {field}"
                )
    [(coordinate, keys)] = places.items() or [("", [""])]
    if coordinate in left and coordinate in right:
        raise ValueError(
            f"{field} gives the {coordinate}, but left and right name one already; take one away"
        )
    pairs = [(key, _fill(left, coordinate, key), _fill(right, coordinate, key)) for key in keys]
    for _, one, other in pairs:
        if one == other:
            raise ValueError(f"compares the cell {' / '.join(one)} with itself")
    return pairs


class _Claim(BaseModel):
    """What all kinds share: `says` is the claim in words; the parts' smallest (or largest) effect decides."""

    model_config = ConfigDict(extra="forbid", coerce_numbers_to_str=True)
    says: str = Field(min_length=1)
    logs: ClassVar[bool] = False  # effects are differences of logarithms
    absolute: ClassVar[bool] = False  # over several parts the sizes of the differences count
    extreme: ClassVar[str] = "smallest"  # which of several parts is the effect

    def parts(self, direction: Literal["max", "min"], name: Name) -> list[Part]:
        raise NotImplementedError

    def verdict(self, low: float, high: float) -> str:
        """Verdict by an interval of the effect (of its logarithm for ratios); here: above 0."""
        return "holds" if low > 0 else "fails" if high <= 0 else "undecided"


class _Pair(_Claim):
    """Left against right. Each is {row: …, column: …}; `over` names the places of a coordinate that is left out."""

    left: Selector
    right: Selector
    over: Places = {}
    means: Literal["all", "mean"] | None = None

    @model_validator(mode="after")
    def _complete(self) -> "_Pair":
        if len(_pairs(self.left, self.right, self.over, "over")) > 1 and self.means is None:
            raise ValueError(
                "over names several places; say means: all (each of them) or means: mean (on average)"
            )
        return self

    def parts(self, direction: Literal["max", "min"], name: Name) -> list[Part]:
        sign = -1 if self.kind == "better" and direction == "min" else 1
        pairs = _pairs(self.left, self.right, self.over, "over")
        if self.means == "mean":
            return [("", [Comparison([(left, right) for _, left, right in pairs], sign)])]
        coordinate = next(iter(self.over), "")
        return [(name(coordinate, key), [Comparison([(left, right)], sign)]) for key, left, right in pairs]


class Better(_Pair):
    """Left is better than right by more than `margin` (table's unit). The effect is positive where left is better, so
    it is left minus right in a table with direction max and right minus left in one with direction min.
    """

    kind: Literal["better"]
    margin: FiniteFloat = 0.0

    def verdict(self, low: float, high: float) -> str:
        return super().verdict(low - self.margin, high - self.margin)


class Ratio(_Pair):
    """Left / right is `at_least` or `at_most` so much. Logarithms of the paired ratios are averaged: the effect is
    their geometric mean. All values must be positive.
    """

    kind: Literal["ratio"]
    at_least: PositiveFloat | None = None
    at_most: PositiveFloat | None = None
    logs: ClassVar[bool] = True

    @model_validator(mode="after")
    def _one_bound(self) -> "Ratio":
        if (self.at_least is None) == (self.at_most is None):
            raise ValueError("needs one of at_least and at_most")
        return self

    @property
    def extreme(self) -> str:
        return "smallest" if self.at_least else "largest"

    def verdict(self, low: float, high: float) -> str:
        if self.at_least:
            bound = math.log(self.at_least)
            return "holds" if low >= bound else "fails" if high < bound else "undecided"
        bound = math.log(self.at_most)
        return "holds" if high <= bound else "fails" if low > bound else "undecided"


class Within(_Pair):
    """A tie: left minus right lies within ± `tolerance` (table's unit). Over several places the effect is the largest
    absolute difference, else the signed one.
    """

    kind: Literal["within"]
    tolerance: PositiveFloat
    absolute: ClassVar[bool] = True
    extreme: ClassVar[str] = "largest"

    def verdict(self, low: float, high: float) -> str:
        if max(high, -low) <= self.tolerance:
            return "holds"
        return "fails" if low > self.tolerance or high < -self.tolerance else "undecided"


class _Line(_Claim):
    """One row or column, `at`, along several places of the other coordinate."""

    at: Selector
    along: Along
    least: ClassVar[int] = 2

    @model_validator(mode="after")
    def _complete(self) -> "_Line":
        [(coordinate, keys)] = self.along.items()
        other = "column" if coordinate == "row" else "row"
        if set(self.at) != {other}:
            raise ValueError(f"along gives the {coordinate}s, so at has to name the {other} and nothing else")
        if len(keys) < self.least:
            raise ValueError(f"along needs {self.least} {coordinate}s or more")
        return self

    def line(self) -> tuple[str, list[tuple[str, Cell]]]:
        [(coordinate, keys)] = self.along.items()
        return coordinate, [(key, _fill(self.at, coordinate, key)) for key in keys]


class Monotone(_Line):
    """The value goes up (`increasing`) or down with every step along the places. Effect: the smallest step that way."""

    kind: Literal["monotone"]
    direction: Literal["increasing", "decreasing"]

    def parts(self, direction: Literal["max", "min"], name: Name) -> list[Part]:
        sign = 1 if self.direction == "increasing" else -1
        coordinate, cells = self.line()
        return [
            (f"{name(coordinate, a)} → {name(coordinate, b)}", [Comparison([(after, before)], sign)])
            for (a, before), (b, after) in itertools.pairwise(cells)
        ]


class InteriorOptimum(_Line):
    """Some inner place is better than both ends. Effect: by how much the best one is better."""

    kind: Literal["interior_optimum"]
    least: ClassVar[int] = 3
    extreme: ClassVar[str] = "largest"

    def parts(self, direction: Literal["max", "min"], name: Name) -> list[Part]:
        sign = 1 if direction == "max" else -1
        coordinate, [(_, first), *inner, (_, last)] = self.line()
        return [
            (name(coordinate, key), [Comparison([(cell, first)], sign), Comparison([(cell, last)], sign)])
            for key, cell in inner
        ]


class SignChange(_Claim):
    """Left minus right has the sign `first` at the first place along and the opposite one at the last. The places
    between are not judged. Effect: the smaller of the two differences, each positive where its sign is as claimed.
    """

    kind: Literal["sign_change"]
    left: Selector
    right: Selector
    along: Along
    first: Literal["positive", "negative"]

    @model_validator(mode="after")
    def _complete(self) -> "SignChange":
        if len(_pairs(self.left, self.right, self.along, "along")) < 2:
            raise ValueError("along needs a first and a last place")
        return self

    def parts(self, direction: Literal["max", "min"], name: Name) -> list[Part]:
        [coordinate] = self.along
        pairs = _pairs(self.left, self.right, self.along, "along")
        left, right = (
            " / ".join(name(*item) for item in selector.items()) for selector in (self.left, self.right)
        )
        sign = 1 if self.first == "positive" else -1
        return [
            (
                f"{name(coordinate, key)}: {left} {'above' if sign > 0 else 'below'} {right}",
                [Comparison([(one, other)], sign)],
            )
            for (key, one, other), sign in ((pairs[0], sign), (pairs[-1], -sign))
        ]


Claim = Annotated[
    Better | Ratio | Within | Monotone | InteriorOptimum | SignChange, Field(discriminator="kind")
]


def cells_of(claim: Claim) -> list[Cell]:
    """All (row, column) that a claim names, each once."""
    if isinstance(claim, SignChange):
        pairs = [pair for _, *pair in _pairs(claim.left, claim.right, claim.along, "along")]
    else:
        parts = claim.parts("max", lambda coordinate, key: key)
        pairs = [pair for _, comparisons in parts for comparison in comparisons for pair in comparison.pairs]
    return list(dict.fromkeys(cell for pair in pairs for cell in pair))
