"""The population stability index: how far a column's distribution has moved.

    PSI = sum over bins of (b - a) * ln(b / a)

where a and b are the shares of the rows of side A and side B in a bin, missing values being a bin of their own. It is
Jeffreys' divergence of two binned distributions (H. Jeffreys, "An invariant form for the prior probability in
estimation problems", 1946). The usual reading (E. M. Lewis, "An Introduction to Credit Scoring", 1994; N. Siddiqi,
"Credit Risk Scorecards", 2006): below 0.1 no change to speak of, from 0.1 a moderate one, from 0.25 a large one. It is
a rule of thumb: few rows make it large by chance, and seasons make it large each year.

A share of 0 would make it infinite: shares count as at least `FLOOR`.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any, Literal

MODERATE, LARGE = 0.1, 0.25
FLOOR = 1e-4


@dataclass(frozen=True)
class ColumnPsi:
    """How far one column has moved."""

    column: str
    value: float

    @property
    def reading(self) -> Literal["stable", "moderate", "large"]:
        """What the value is usually taken to say."""
        return "large" if self.value >= LARGE else "moderate" if self.value >= MODERATE else "stable"


def psi(before: Sequence[float], after: Sequence[float]) -> float:
    """The index of two lists of shares (or counts) of the same bins."""
    total_before, total_after = sum(before) or 1.0, sum(after) or 1.0
    shares = ((max(a / total_before, FLOOR), max(b / total_after, FLOOR)) for a, b in zip(before, after, strict=True))
    return sum((b - a) * math.log(b / a) for a, b in shares)


def psi_of_quantiles(
    before: Mapping[str, Any], rows_before: int, after: Mapping[str, Any], rows_after: int
) -> float | None:
    """The index of two columns of which only `nullCount`, `min`, `max` and `quantiles` are known, as events hold them.

    Bins end at A's quantiles: their shares in A are known, those in B are interpolated between its own. An estimate,
    therefore: six bins, and nothing is seen of what moves within one. A value that is several quantiles at once has a
    share of which only bounds are known: what may be the same on both sides counts as the same.
    None for a column without numbers.
    """
    first, second = _points(before), _points(after)
    if not first or not second or not rows_before or not rows_after:
        return None
    edges = sorted({value for value, _ in first[1:-1]})
    pairs = [_nearest(_share_up_to(first, edge), _share_up_to(second, edge)) for edge in edges]
    missing = [int(column.get("nullCount") or 0) for column in (before, after)]
    shares = ([pair[0] for pair in pairs], [pair[1] for pair in pairs])
    return psi(_bins(shares[0], missing[0] / rows_before), _bins(shares[1], missing[1] / rows_after))


def _points(column: Mapping[str, Any]) -> list[tuple[float, float]]:
    """(value, share of the values up to it), both ascending; a value that stands twice is a step."""
    quantiles = column.get("quantiles") or {}
    if column.get("min") is None or column.get("max") is None or not quantiles:
        return []
    inner = sorted((float(value), float(share)) for share, value in quantiles.items())
    return [(float(column["min"]), 0.0), *inner, (float(column["max"]), 1.0)]


def _share_up_to(points: Sequence[tuple[float, float]], value: float) -> tuple[float, float]:
    """Between which bounds the share of the values up to this one lies."""
    end = bisect_right(points, (value, 1.0))
    if end == 0:
        return 0.0, 0.0
    below, share = points[end - 1]
    if end == len(points):
        return share, share
    above, next_share = points[end]
    if below < value:
        share += (next_share - share) * (value - below) / (above - below)
        return share, share
    stands_twice = end > 1 and points[end - 2][0] == below
    return share, next_share if stands_twice else share


def _nearest(one: tuple[float, float], other: tuple[float, float]) -> tuple[float, float]:
    """The two shares within these bounds that are nearest to each other."""
    low = max(one[0], other[0])
    return min(low, one[1]), min(low, other[1])


def _bins(up_to: Sequence[float], missing: float) -> list[float]:
    """The shares of all rows: missing values, the bins that end at the edges, and the one above the last."""
    rising = [0.0, *accumulate(up_to, max), 1.0]
    return [missing, *((high - low) * (1.0 - missing) for low, high in pairwise(rising))]
