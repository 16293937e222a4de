"""What is known of a flight some time before its scheduled departure: python -m pipeline.features MODEL

Every feature asks for the state of the world at one moment, `known`: the scheduled departure less the horizon. An event
(a departure, an arrival, an observation) counts from when it happened, in training and in serving by the same code.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from pipeline.project import FeatureSettings, Problem, Window, output, partitions, read, run, setting, split

RAW = Path("data/raw")
CATEGORICAL = ["carrier", "origin", "destination"]
REQUEST = ["scheduled_departure", "scheduled_arrival", *CATEGORICAL, "flight", "tail_number", "distance"]
OUTCOME = ["departure", "departure_delay", "arrival", "arrival_delay", "air_time"]
# Features stand in tables with the raw columns they are made of; `build` works by them and `sources` tells them.
# What the request says: its columns, and what is made of them.
CALENDAR: dict[str, tuple[list[str], Callable[..., pd.Series]]] = {
    "minute_of_day": (["scheduled_departure"], lambda start: start.dt.hour * 60 + start.dt.minute),
    "weekday": (["scheduled_departure"], lambda start: start.dt.day_of_week),
    "day_of_year": (["scheduled_departure"], lambda start: start.dt.day_of_year),
    "scheduled_minutes": (
        ["scheduled_departure", "scheduled_arrival"],
        lambda start, end: (end - start) / pd.Timedelta(minutes=1),
    ),
    "distance": (["distance"], lambda distance: distance),
}
OBSERVED = ["temperature", "dew_point", "humidity", "wind_direction", "wind_speed", "wind_gust"]
OBSERVED += ["precipitation", "pressure", "visibility"]
# Means of what happened lately: to flights of the same ..., the event, its value, and the hours back.
RECENT = {
    "origin_departure_delay_2h": (["origin"], "departure", "departure_delay", 2),
    "carrier_departure_delay_4h": (["origin", "carrier"], "departure", "departure_delay", 4),
    "carrier_arrival_delay_12h": (["carrier"], "arrival", "arrival_delay", 12),
    "destination_arrival_delay_6h": (["destination"], "arrival", "arrival_delay", 6),
    "route_arrival_delay_7d": (["carrier", "origin", "destination"], "arrival", "arrival_delay", 168),
    "flight_arrival_delay_7d": (["carrier", "flight", "origin"], "arrival", "arrival_delay", 168),
    "route_air_time_7d": (["origin", "destination"], "arrival", "air_time", 168),
}
# The last event of the same aircraft.
AIRCRAFT = {
    "aircraft_departure_delay": (["tail_number"], "departure", "departure_delay", 168),
    "aircraft_arrival_delay": (["tail_number"], "arrival", "arrival_delay", 168),
    "aircraft_away_minutes": (["tail_number"], "departure", "departure", 168),
}
# With the last observed weather, all that tells of events.
EVENTS = {**{name: (["origin"], "observed", name, 3) for name in OBSERVED}, **RECENT, **AIRCRAFT}
NUMERIC = [*CALENDAR, *EVENTS]

LOOK_BACK = pd.Timedelta(days=7)  # no feature looks further back than this
LONGEST = pd.Timedelta(days=4)  # from a flight's scheduled departure to its arrival, however late
SPAN = 1 << 36  # seconds; keeps the times of one group apart from those of the next


def seconds(times: pd.Series) -> np.ndarray:
    return np.asarray(times, dtype="datetime64[s]").astype(np.int64)


class Timeline:
    """Events in order of time within groups: what of a request's group had happened by the moment `known`."""

    def __init__(self, events: pd.DataFrame, requests: pd.DataFrame, by: list[str], time: str, value: str) -> None:
        events = events[events[[*by, time, value]].notna().all(axis=1)]
        groups = pd.concat([events[by], requests[by]]).groupby(by, sort=False, dropna=False).ngroup().to_numpy()
        keys = groups[: len(events)] * SPAN + seconds(events[time])
        values = seconds(events[time]) / 60 if value == time else events[value].to_numpy(dtype=float)
        order = np.lexsort((values, keys))  # which of two events of one moment was written first says nothing
        self.keys, self.values = keys[order], values[order]
        self.until = groups[len(events) :] * SPAN + seconds(requests["known"])

    def between(self, hours: float) -> tuple[np.ndarray, np.ndarray]:
        """First and last + 1 of the events of the hours up to and including `known`."""
        since = np.searchsorted(self.keys, self.until - int(hours * 3600), side="right")
        return since, np.searchsorted(self.keys, self.until, side="right")

    def mean(self, hours: float) -> np.ndarray:
        """Minutes are whole numbers, so running sums are exact wherever the history begins."""
        first, last = self.between(hours)
        total = np.concatenate([[0.0], np.cumsum(self.values)])
        return np.where(last > first, (total[last] - total[first]) / np.maximum(last - first, 1), np.nan)

    def latest(self, hours: float) -> np.ndarray:
        first, last = self.between(hours)
        return np.where(last > first, np.append(self.values, np.nan)[last - 1], np.nan)


def build(asked: pd.DataFrame, flights: pd.DataFrame, weather: pd.DataFrame, settings: FeatureSettings) -> pd.DataFrame:
    """The features of scheduled flights, one row each, from the history of flights and weather."""
    scheduled, wanted = asked["scheduled_departure"], set(settings.columns)
    requests = asked.assign(known=scheduled - pd.Timedelta(minutes=settings.horizon_minutes))
    columns: dict[str, Any] = {name: asked[name] for name in CATEGORICAL}
    for name, (used, compute) in CALENDAR.items():
        columns[name] = compute(*(asked[column] for column in used))
    for name in wanted & set(EVENTS):
        by, event, value, hours = EVENTS[name]
        timeline = Timeline(weather if name in OBSERVED else flights, requests, by, event, value)
        columns[name] = timeline.mean(hours) if name in RECENT else timeline.latest(hours)
    if "aircraft_away_minutes" in columns:
        columns["aircraft_away_minutes"] = seconds(scheduled) / 60 - columns["aircraft_away_minutes"]
    kinds = {**dict.fromkeys(settings.categorical, "str"), **dict.fromkeys(settings.numeric, "float64")}
    return pd.DataFrame({name: columns[name] for name in settings.columns}, index=asked.index).astype(kinds)


def sources(settings: FeatureSettings) -> dict[str, list[tuple[str, str]]]:
    """For each column of the table, the raw ones (dataset, column) that can move it: values, groups and times."""
    found = {name: {("flights", name)} for name in [*settings.key, *CATEGORICAL]}
    found |= {name: {("flights", column) for column in used} for name, (used, _) in CALENDAR.items()}
    for name, (by, event, value, _) in EVENTS.items():
        dataset = "weather" if name in OBSERVED else "flights"
        found[name] = {("flights", column) for column in ["scheduled_departure", *by]}
        found[name] |= {(dataset, column) for column in [*by, event, value]}
    found[settings.label.name] = {("flights", settings.label.column)}
    names = sorted({*settings.key, *settings.columns, settings.label.name})
    return {name: sorted((f"{RAW}/{dataset}", column) for dataset, column in found[name]) for name in names}


def history(scheduled: pd.Series) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Flights and weather that can matter to departures at these times: bounded, however much there is."""

    def between(dataset: str, time: str, columns: list[str]) -> pd.DataFrame:
        bounds = [(time, ">=", scheduled.min() - LOOK_BACK - LONGEST), (time, "<=", scheduled.max())]
        paths = [RAW / dataset / f"{name}.parquet" for name in partitions(RAW / dataset)]
        return read(paths, columns=[*columns, time], filters=bounds)

    flights = between("flights", "scheduled_departure", [*REQUEST[1:], *OUTCOME])
    return flights, between("weather", "observed", ["origin", *OBSERVED])


def label(flights: pd.DataFrame, settings: FeatureSettings) -> pd.Series:
    value = flights[settings.label.column]
    return value if settings.label.at_least is None else (value >= settings.label.at_least).astype("int64")


def partition(path: Path, settings: FeatureSettings) -> pd.DataFrame:
    """Keys, features and label of those flights of one raw partition that have an outcome."""
    flights = read([path])
    if absent := {*REQUEST, *OUTCOME, *settings.key, settings.label.column} - set(flights):
        raise Problem(f"{path} has no column {', '.join(sorted(absent))}; correct ingest.datasets.flights or the model")
    flights = flights[flights[settings.label.column].notna()].sort_values(settings.key, ignore_index=True)
    table = build(flights, *history(flights["scheduled_departure"]), settings)
    return pd.DataFrame({**flights[settings.key], **table, settings.label.name: label(flights, settings)})


def main(model: str) -> None:
    settings = setting(model, "features", FeatureSettings)
    for chosen, known in ((settings.categorical, CATEGORICAL), (settings.numeric, NUMERIC)):
        if unknown := [name for name in chosen if name not in known]:
            raise Problem(f"models.{model}.features names {', '.join(unknown)}; there are {', '.join(known)}")
    train, validation, holdout = split(partitions(RAW / "flights"), setting(model, "window", Window))
    names = [*train, *validation, holdout]
    for path in (Path("data/features") / model).glob("*.parquet"):
        if path.stem not in names:  # it has left the window
            path.unlink()
    for name in names:
        table = partition(RAW / "flights" / f"{name}.parquet", settings)
        table.to_parquet(output("data/features", model, f"{name}.parquet"), index=False)
        print(f"{name}: {len(table):,} flights", flush=True)
    lineage = json.dumps({f"data/features/{model}": sources(settings)}, indent=2)
    output("reports", model, "columns.json").write_text(lineage + "\n", encoding="utf-8")


if __name__ == "__main__":
    run(main)
