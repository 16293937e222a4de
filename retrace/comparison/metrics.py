"""What differs in metrics, and whether they may be compared at all."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from retrace.comparison.changes import Change, flattened, tree_changes
from retrace.comparison.content import Content


@dataclass(frozen=True)
class Metric:
    """One metric on both sides, None where a side has it not."""

    name: str
    before: Any
    after: Any

    @property
    def difference(self) -> float | None:
        if not _is_number(self.before) or not _is_number(self.after):
            return None
        return float(self.after) - float(self.before)


@dataclass(frozen=True)
class Metrics:
    """The metrics of both sides.

    `comparable` says whether both were measured on the same holdout; None if that is not known. `holdout` is what
    differs in it.
    """

    values: tuple[Metric, ...]
    comparable: bool | None
    holdout: tuple[Change, ...]


def metric_changes(a: Content, b: Content) -> Metrics:
    """All metrics, those that are the same too. A side that is not trained has none."""
    before, after = (flattened(side.metrics) if side.metrics else {} for side in (a, b))
    values = tuple(Metric(name, before.get(name), after.get(name)) for name in {**before, **after})
    if a.holdout is None or b.holdout is None:
        return Metrics(values, None, ())
    differs = tree_changes(a.holdout, b.holdout)
    return Metrics(values, not differs, differs)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
