"""Intervals of time that partitions stand for: months, ISO weeks or days, each with a name that sorts."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Literal

Every = Literal["month", "week", "day"]


@dataclass(frozen=True)
class Interval:
    """From `start` to `end` (exclusive), both at midnight UTC."""

    start: datetime
    end: datetime
    name: str


def _interval(start: datetime, every: Every) -> Interval:
    if every == "month":
        start = start.replace(day=1)
        end = (start + timedelta(days=32)).replace(day=1)
        return Interval(start, end, f"{start:%Y-%m}")
    if every == "week":
        start -= timedelta(days=start.weekday())
        year, week, _ = start.isocalendar()
        return Interval(start, start + timedelta(days=7), f"{year}-W{week:02d}")
    return Interval(start, start + timedelta(days=1), f"{start:%Y-%m-%d}")


def intervals(start: datetime, until: datetime, every: Every) -> Iterator[Interval]:
    """The whole intervals from the one that holds `start` up to `until` (exclusive)."""
    current = _interval(start.replace(hour=0, minute=0, second=0, microsecond=0), every)
    while current.end <= until:
        yield current
        current = _interval(current.end, every)
