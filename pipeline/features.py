"""What is known of a flight some time before its scheduled departure: python -m pipeline.features MODEL

Every feature asks for the state of the world at one moment, `known`: the scheduled departure less the horizon. An event
(a departure, an arrival, an observation) counts from the moment it happened, in training and in serving by the same code.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from pipeline.project import FeatureSettings, Problem, Window, partitions, read, run, setting, split, write

RAW = Path("data/raw")
REQUEST = ["scheduled_departure", "scheduled_arrival", "carrier", "flight", "tail_number", "origin", "destination", "distance"]
OUTCOME = ["departure", "departure_delay", "arrival", "arrival_delay", "air_time"]
OBSERVED = ["temperature", "dew_point", "humidity", "wind_direction", "wind_speed", "wind_gust", "precipitation"]
OBSERVED += ["pressure", "visibility"]

# Means over what happened lately: feature -> flights of the same ..., the event, its value, and the hours back.
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
    "aircraft_departure_delay": ("departure", "departure_delay"),
    "aircraft_arrival_delay": ("arrival", "arrival_delay"),
    "aircraft_away_minutes": ("departure", "departed_at"),
}
CALENDAR = ["minute_of_day", "weekday", "day_of_year", "scheduled_minutes", "distance"]
CATEGORICAL = ["carrier", "origin", "destination"]
NUMERIC = [*CALENDAR, *OBSERVED, *RECENT, *AIRCRAFT]

LOOK_BACK = pd.Timedelta(days=7)  # no feature looks further back than this
LONGEST = pd.Timedelta(days=4)  # from a flight's scheduled departure to its arrival, however late
WEATHER_LASTS = pd.Timedelta(hours=3)
SPAN = 1 << 36  # seconds; keeps the times of one group apart from those of the next


def seconds(times: pd.Series | pd.DatetimeIndex) -> np.ndarray:
    return np.asarray(times, dtype="datetime64[s]").astype(np.int64)


class Timeline:
    """Events in order of time within groups; tells which of a request's group had happened by a moment."""

    def __init__(self, events: pd.DataFrame, requests: pd.DataFrame, by: list[str], time: str, value: str) -> None:
        events = events[events[time].notna() & events[value].notna() & events[by].notna().all(axis=1)]
        groups = pd.concat([events[by], requests[by]]).groupby(by, sort=False, dropna=False).ngroup().to_numpy()
        keys = groups[: len(events)] * SPAN + seconds(events[time])
        # Ties are put in order by value: which of two equal moments was written first must not matter.
        order = np.lexsort((events[value], keys))
        self.keys, self.values = keys[order], events[value].to_numpy(dtype=float)[order]
        self.offsets = groups[len(events) :] * SPAN

    def between(self, known: pd.Series, back: pd.Timedelta) -> tuple[np.ndarray, np.ndarray]:
        """First and last + 1 of the events after `known - back`, up to and including `known`."""
        until = self.offsets + seconds(known)
        since = until - int(back.total_seconds())
        return np.searchsorted(self.keys, since, side="right"), np.searchsorted(self.keys, until, side="right")

    def mean(self, known: pd.Series, back: pd.Timedelta) -> np.ndarray:
        """Minutes are whole numbers, so the running sums are exact wherever the history begins."""
        first, last = self.between(known, back)
        total = np.concatenate([[0.0], np.cumsum(self.values)])
        return np.where(last > first, (total[last] - total[first]) / np.maximum(last - first, 1), np.nan)

    def latest(self, known: pd.Series, back: pd.Timedelta) -> np.ndarray:
        first, last = self.between(known, back)
        return np.where(last > first, np.append(self.values, np.nan)[last - 1], np.nan)


def build(requests: pd.DataFrame, flights: pd.DataFrame, weather: pd.DataFrame, settings: FeatureSettings) -> pd.DataFrame:
    """The features of scheduled flights, one row each, from the history of flights and weather."""
    unknown = [name for name in settings.columns.all if name not in CATEGORICAL + NUMERIC]
    if unknown:
        raise Problem(f"features.columns has {', '.join(unknown)}; there are {', '.join(CATEGORICAL + NUMERIC)}")
    scheduled = requests["scheduled_departure"]
    known = scheduled - pd.Timedelta(minutes=settings.horizon_minutes)
    columns: dict[str, object] = {name: requests[name] for name in [*CATEGORICAL, "distance"]}
    columns["minute_of_day"] = scheduled.dt.hour * 60 + scheduled.dt.minute
    columns["weekday"], columns["day_of_year"] = scheduled.dt.day_of_week, scheduled.dt.day_of_year
    columns["scheduled_minutes"] = (requests["scheduled_arrival"] - scheduled) / pd.Timedelta(minutes=1)
    for name in set(OBSERVED) & set(settings.columns.numeric):
        columns[name] = Timeline(weather, requests, ["origin"], "observed", name).latest(known, WEATHER_LASTS)
    for name, (by, event, value, hours) in RECENT.items():
        if name in settings.columns.numeric:
            columns[name] = Timeline(flights, requests, by, event, value).mean(known, pd.Timedelta(hours=hours))
    departed = flights.assign(departed_at=seconds(flights["departure"]) / 60)
    for name, (event, value) in AIRCRAFT.items():
        if name in settings.columns.numeric:
            columns[name] = Timeline(departed, requests, ["tail_number"], event, value).latest(known, LOOK_BACK)
    if "aircraft_away_minutes" in columns:
        columns["aircraft_away_minutes"] = seconds(scheduled) / 60 - columns["aircraft_away_minutes"]
    table = pd.DataFrame({name: columns[name] for name in settings.columns.all}, index=requests.index)
    return table.astype({**dict.fromkeys(settings.columns.categorical, str), **dict.fromkeys(settings.columns.numeric, float)})


def history(scheduled: pd.Series, raw: Path = RAW) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Flights and weather that can matter to departures at these times: bounded, however much is in `raw`."""
    start, end = scheduled.min() - LOOK_BACK - LONGEST, scheduled.max()

    def between(dataset: str, time: str, columns: list[str]) -> pd.DataFrame:
        paths = [raw / dataset / f"{name}.parquet" for name in partitions(raw / dataset)]
        return read(paths, columns=columns, filters=[(time, ">=", start), (time, "<=", end)])

    flights = between("flights", "scheduled_departure", [*REQUEST, *OUTCOME])
    return flights, between("weather", "observed", ["origin", "observed", *OBSERVED])


def label(flights: pd.DataFrame, settings: FeatureSettings) -> pd.Series:
    value = flights[settings.label.column]
    return value if settings.label.at_least is None else (value >= settings.label.at_least).astype("int64")


def partition(path: Path, settings: FeatureSettings) -> pd.DataFrame:
    """Keys, features and label of the flights of one raw partition that have an outcome (no cancelled ones)."""
    flights = read([path])
    absent = [name for name in [*REQUEST, *OUTCOME, *settings.key, settings.label.column] if name not in flights]
    if absent:
        raise Problem(f"{path} has no column {', '.join(dict.fromkeys(absent))}; correct ingest.datasets.flights or the model")
    flights = flights[flights[settings.label.column].notna()].sort_values(settings.key, kind="stable", ignore_index=True)
    table = build(flights, *history(flights["scheduled_departure"]), settings)
    return pd.DataFrame({**flights[settings.key], **table, settings.label.name: label(flights, settings)})


def main(model: str) -> None:
    settings = setting(model, "features", FeatureSettings)
    window = split(partitions(RAW / "flights"), setting(model, "window", Window))
    for name in window.all:
        table = partition(RAW / "flights" / f"{name}.parquet", settings)
        write(table, Path("data/features") / model / f"{name}.parquet")
        print(f"features {model} {name}: {len(table):,} flights", flush=True)


if __name__ == "__main__":
    run(main)
