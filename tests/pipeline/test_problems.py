"""What a user gets wrong ends in one line that says what, where and the way out; bad data does not pass."""

from __future__ import annotations

import json
import shutil
import sqlite3
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml
from domain import Params, Project, cheap, choose

# Runs stages over many wrong params.yaml in one process, and tells what each said.
TRY = """
import json, sys, warnings
from pathlib import Path
from pipeline.project import Problem
from pipeline import evaluate, features, train, validate

told = []
for stage, text in json.loads(Path("cases.json").read_text()):
    Path("params.yaml").write_text(text)
    try:
        {"features": features.main, "train": train.main, "validate": validate.main}[stage]("late_arrival")
        told.append("passed")
    except Problem as problem:
        told.append(str(problem))
print(json.dumps(told))
"""

WRONG: list[tuple[str, str, Any, str]] = [
    ("features", "window.train", "four", "models.late_arrival.window.train"),
    ("features", "window.months", 3, "window.months: Extra inputs are not permitted"),
    ("features", "window.validation", 9, "partitions are too few"),
    ("features", "features.horizon_minutes", None, "features.horizon_minutes"),
    ("features", "features.numeric", ["distance", "moon"], "features names moon; there are"),
    ("features", "features.label.column", "moon", "has no column moon"),
    ("train", "train.estimator", "os.system", "'os.system' is no classifier or regressor of scikit-learn"),
    ("train", "train.fixed", {"colour": 1}, "does not suit HistGradientBoostingClassifier"),
    ("train", "train.fixed", {"max_iter": -5}, "cannot be fitted"),
    ("train", "train.metric", "rmse", "'rmse' is no metric for a classifier; there are roc_auc"),
    ("train", "train.search.learning_rate", {"low": 0.1}, "train.search.learning_rate"),
    ("train", "train.search.learning_rate", {"low": 0.3, "high": 0.1}, "learning_rate"),
    ("train", "train.trials", 0, "train.trials"),
    ("train", "train.estimator", "LogisticRegression", "does not suit LogisticRegression"),
    ("validate", "datasets", ["flights", "moons"], "no checks for dataset 'moons'"),
    ("validate", "validate.flights.missing.moon", 0.5, "names moon, no column of it"),
]


def test_wrong_parameters_are_told_in_one_line(small: Project) -> None:
    small.succeed("features", "late_arrival")
    cases = []
    for stage, path, value, _ in WRONG:
        params: Params = yaml.safe_load(yaml.safe_dump(small.params))
        *parents, last = path.split(".")
        found = params["models"]["late_arrival"]
        for name in parents:
            found = found[name]
        found[last] = value
        cases.append((stage, yaml.safe_dump(params)))
    (small.folder / "cases.json").write_text(json.dumps(cases))
    for (_, path, value, expected), told in zip(WRONG, small.script(TRY), strict=True):
        assert expected in told, f"{path} = {value}: {told}"
        assert "\n" not in told


def told_in_one_line(project: Project, stage: str, model: str = "late_arrival") -> str:
    done = project.run(stage, model)
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert done.stderr.startswith(f"{stage} {model}: ")
    return done.stderr


def test_an_unknown_model_is_told(small: Project) -> None:
    assert "params.yaml has no models.moon" in told_in_one_line(small, "features", "moon")


def test_a_malformed_partition_is_told(small: Project, small_raw: Path, tmp_path: Path) -> None:
    (small.folder / "data/raw").unlink()
    shutil.copytree(small_raw, small.folder / "data/raw")
    shutil.rmtree(small.folder / "data/raw/weather")
    assert "data/raw/weather has no partition" in told_in_one_line(small, "features")
    (small.folder / "data/raw/flights/2013-03.parquet").write_bytes(b"no parquet")
    assert "cannot read data/raw/flights/2013-03.parquet" in told_in_one_line(small, "features")
    assert "cannot read data/raw/flights/2013-03.parquet" in told_in_one_line(small, "validate")


def spoil_months_of_nan(rows: pd.DataFrame) -> pd.DataFrame:
    return rows.assign(arrival_delay=float("nan"))


def spoil_range(rows: pd.DataFrame) -> pd.DataFrame:
    return rows.assign(departure_delay=rows["departure_delay"].where(rows.index != 5, 9999.0))


def spoil_duplicates(rows: pd.DataFrame) -> pd.DataFrame:
    return pd.concat([rows, rows.head(3)], ignore_index=True)


def spoil_volume(rows: pd.DataFrame) -> pd.DataFrame:
    return rows.head(10)


def spoil_column(rows: pd.DataFrame) -> pd.DataFrame:
    return rows.drop(columns="carrier")


def spoil_kind(rows: pd.DataFrame) -> pd.DataFrame:
    return rows.assign(distance=rows["distance"].astype(str))


def spoil_airport(rows: pd.DataFrame) -> pd.DataFrame:
    return rows.assign(origin=rows["origin"].replace("JFK", "LAX"))


SPOILT = {
    "NaN": (spoil_months_of_nan, "column arrival_delay not so: is missing in at most 15% (float64, 100% missing)"),
    "range": (spoil_range, "column departure_delay not so: is between -60 and 2880"),
    "duplicates": (spoil_duplicates, "has no two rows of one scheduled_departure"),
    "volume": (spoil_volume, "has 1,000 to 60,000 rows (10 rows)"),
    "column": (spoil_column, "column carrier not so: is there"),
    "kind": (spoil_kind, "column distance not so: is a number"),
    "airport": (spoil_airport, "column origin not so: is one of EWR, JFK, LGA"),
}


Told = dict[str, tuple[str, dict[str, Any]]]


@pytest.fixture(scope="module")
def spoilt(raw: Path, stage_python: Path, tmp_path_factory: pytest.TempPathFactory) -> Told:
    """What validation says and reports when March is spoilt, each way in turn."""
    months = ["2013-01", "2013-02", "2013-03"]
    data = choose(raw, tmp_path_factory.mktemp("spoilt") / "raw", months, share=10)
    project = Project(tmp_path_factory.mktemp("spoilt") / "project", stage_python, data).edit(cheap)
    project.edit(lambda params: params["models"]["late_arrival"]["validate"]["flights"]["rows"].update(at_least=1000))
    path = data / "flights/2013-03.parquet"
    good = pd.read_parquet(path)
    project.succeed("validate", "late_arrival")
    told = {}
    for name, (spoil, _) in SPOILT.items():
        spoil(good.copy()).to_parquet(path, index=False)
        line = told_in_one_line(project, "validate")
        told[name] = line, json.loads((project.folder / "reports/late_arrival/validation.json").read_text())
    return told


@pytest.mark.parametrize("name", SPOILT)
def test_bad_data_does_not_pass(name: str, spoilt: Told) -> None:
    line, report = spoilt[name]
    assert "bad data in flights 2013-03: " in line
    assert SPOILT[name][1] in line
    assert report["passed"] is False
    failed = [check for check in report["checks"] if not check["passed"]]
    assert {(check["dataset"], check["partition"]) for check in failed} == {("flights", "2013-03")}
    assert set(failed[0]) == {"dataset", "partition", "column", "check", "passed", "detail"}
    assert any(check["partition"] == "2013-02" and check["passed"] for check in report["checks"])


def test_the_source_is_filled_once_and_truly(database: Path, small: Project) -> None:
    connection = sqlite3.connect(database)
    counts = [connection.execute(f"SELECT count(*) FROM {table}").fetchone()[0] for table in ("flights", "weather")]
    assert counts == [336776, 26112]
    # N14228 from Newark to Houston, an hour behind: up at 5:17, down at 8:30 there, 9:30 in New York.
    first = connection.execute(
        "SELECT departure, arrival, arrival_delay FROM flights WHERE scheduled_departure = '2013-01-01 05:15:00'"
    ).fetchall()
    assert first == [("2013-01-01 05:17:00", "2013-01-01 09:30:00", 11.0)]
    wrong = connection.execute(
        "SELECT count(*) FROM flights WHERE arrival_delay IS NOT NULL AND "
        "(julianday(arrival) - julianday(scheduled_arrival)) * 1440 - arrival_delay NOT BETWEEN -0.1 AND 0.1"
    ).fetchone()
    assert wrong == (0,)
    connection.close()
    before = database.read_bytes()
    assert "are there already" in small.succeed("source", f"sqlite:///{database}")
    assert database.read_bytes() == before
    done = small.run("source", "sqlite:////proc/nowhere/source.db")
    assert (done.returncode, len(done.stderr.splitlines())) == (1, 1)
