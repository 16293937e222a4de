"""What raw data must look like: the columns, their kinds, ranges and keys. Shares of missing values are in params.yaml."""

from __future__ import annotations

import pandera.pandas as pa
from pandas.api.types import is_datetime64_any_dtype, is_numeric_dtype, is_string_dtype

AIRPORTS = ["EWR", "JFK", "LGA"]
TIME = pa.Check(is_datetime64_any_dtype, name="is a timestamp")
NUMBER = pa.Check(is_numeric_dtype, name="is a number")
TEXT = pa.Check(is_string_dtype, name="is text")


def between(low: float, high: float) -> list[pa.Check]:
    return [NUMBER, pa.Check.in_range(low, high, name=f"is between {low:g} and {high:g}")]


def at(places: list[str]) -> list[pa.Check]:
    return [TEXT, pa.Check.isin(places, name=f"is one of {', '.join(places)}")]


COLUMNS: dict[str, dict[str, list[pa.Check]]] = {
    "flights": {
        "scheduled_departure": [TIME],
        "scheduled_arrival": [TIME],
        "carrier": [TEXT, pa.Check.str_length(2, 2, name="has two letters")],
        "flight": between(1, 9999),
        "tail_number": [TEXT],
        "origin": at(AIRPORTS),
        "destination": [TEXT, pa.Check.str_length(3, 3, name="has three letters")],
        "distance": between(10, 6000),
        "departure": [TIME],
        # Nobody leaves more than an hour early: the features' horizon rests on it. Nor is anybody days late.
        "departure_delay": between(-60, 2880),
        "arrival": [TIME],
        "arrival_delay": between(-180, 2880),
        "air_time": between(10, 900),
    },
    "weather": {
        "origin": at(AIRPORTS),
        "observed": [TIME],
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
KEYS = {"flights": ["scheduled_departure", "carrier", "flight", "origin"], "weather": ["origin", "observed"]}


def missing_at_most(share: float) -> pa.Check:
    return pa.Check(lambda values: values.isna().mean() <= share, name=f"is missing in at most {share:.0%}", ignore_na=False)


def has_rows(at_least: int, at_most: int) -> pa.Check:
    return pa.Check(lambda rows: at_least <= len(rows) <= at_most, name=f"has {at_least:,} to {at_most:,} rows")


def is_unique(key: list[str]) -> pa.Check:
    return pa.Check(lambda rows: not rows.duplicated(key).any(), name=f"has no two rows of one {', '.join(key)}")
