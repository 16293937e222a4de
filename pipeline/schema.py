"""What raw data must look like: columns, kinds, ranges, keys. How much may be missing stands in params.yaml."""

from __future__ import annotations

from pandas.api.types import is_datetime64_any_dtype, is_numeric_dtype, is_string_dtype
from pandera.pandas import Check

TIME = [Check(is_datetime64_any_dtype, name="is a timestamp")]
TEXT = [Check(is_string_dtype, name="is text")]


def between(low: float, high: float) -> list[Check]:
    number = Check(is_numeric_dtype, name="is a number")
    return [number, Check.in_range(low, high, name=f"is between {low:g} and {high:g}")]


def letters(count: int) -> list[Check]:
    return [*TEXT, Check.str_length(count, count, name=f"has {count} letters")]


ORIGIN = [*TEXT, Check.isin(["EWR", "JFK", "LGA"], name="is one of EWR, JFK, LGA")]
KEYS = {"flights": ["scheduled_departure", "carrier", "flight", "origin"], "weather": ["origin", "observed"]}
COLUMNS: dict[str, dict[str, list[Check]]] = {
    "flights": {
        "scheduled_departure": TIME,
        "scheduled_arrival": TIME,
        "carrier": letters(2),
        "flight": between(1, 9999),
        "tail_number": TEXT,
        "origin": ORIGIN,
        "destination": letters(3),
        "distance": between(10, 6000),
        "departure": TIME,
        "departure_delay": between(-60, 2880),  # serving rests on nobody leaving more than the horizon early
        "arrival": TIME,
        "arrival_delay": between(-180, 2880),  # features.LONGEST rests on it
        "air_time": between(10, 900),
    },
    "weather": {
        "origin": ORIGIN,
        "observed": TIME,
        "temperature": between(-40, 130),
        "dew_point": between(-60, 100),
        "humidity": between(0, 100),
        "wind_direction": between(0, 360),
        "wind_speed": between(0, 200),
        "wind_gust": between(0, 250),
        "precipitation": between(0, 10),
        "pressure": between(850, 1100),
        "visibility": between(0, 20),
    },
}


def missing_at_most(share: float) -> Check:
    return Check(lambda cells: cells.isna().mean() <= share, name=f"is missing in at most {share:.0%}", ignore_na=False)


def has_rows(at_least: int, at_most: int) -> Check:
    return Check(lambda rows: at_least <= len(rows) <= at_most, name=f"has {at_least:,} to {at_most:,} rows")


def is_unique(key: list[str]) -> Check:
    return Check(lambda rows: not rows.duplicated(key).any(), name=f"has no two rows of one {', '.join(key)}")
