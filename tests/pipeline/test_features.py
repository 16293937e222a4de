"""Features know nothing that happened after the horizon, and are the same in training and in serving."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

import pandas as pd
import pytest
from domain import Project, choose

# Rewrites all that became known after a moment, and compares the features of the flights that were asked about before.
REWRITE = """
import json, sys
import numpy as np, pandas as pd
from pathlib import Path
from pipeline import features
from pipeline.project import FeatureSettings, setting

settings = setting("late_arrival", "features", FeatureSettings)
settings = settings.model_copy(update={"categorical": features.CATEGORICAL, "numeric": features.NUMERIC})
flights = pd.read_parquet("data/raw/flights/2013-02.parquet")
weather = pd.read_parquet("data/raw/weather/2013-02.parquet")
noise = np.random.default_rng(1)

def rewritten(moment):
    later, observed = flights.copy(), weather.copy()
    minutes = lambda rows: pd.to_timedelta(noise.integers(1, 900, int(rows.sum())), unit="min")
    gone = ~(later["departure"] <= moment)
    later.loc[gone, "departure"] = moment + minutes(gone)
    later.loc[gone, "departure_delay"] = noise.integers(-40, 600, int(gone.sum())).astype(float)
    landed = ~(later["arrival"] <= moment)
    later.loc[landed, "arrival"] = moment + minutes(landed)
    for column in ("arrival_delay", "air_time"):
        later.loc[landed, column] = noise.integers(20, 600, int(landed.sum())).astype(float)
    unseen = observed["observed"] > moment
    for column in features.OBSERVED:
        observed.loc[unseen, column] = noise.normal(size=int(unseen.sum()))
    return later, observed

def moved(horizon):
    found = set()
    for moment in pd.to_datetime(["2013-02-08 09:00", "2013-02-09 17:13", "2013-02-17 12:59", "2013-02-26 20:30"]):
        until = moment + pd.Timedelta(minutes=60)
        asked = flights[flights["scheduled_departure"].between(moment - pd.Timedelta(days=2), until)]
        used = settings.model_copy(update={"horizon_minutes": horizon})
        before = features.build(asked, flights, weather, used)
        after = features.build(asked, *rewritten(moment), used)
        assert len(asked) > 500
        found |= {name for name in before if not before[name].equals(after[name])}
    return sorted(found)

print(json.dumps({"honest": moved(60), "late": moved(0)}))
"""

# Serves flights of the holdout at the moments they are asked about, with all that came later blanked or gone.
SERVE = """
import json, shutil
import pandas as pd
from pathlib import Path
from pipeline import features, predict
from pipeline.project import FeatureSettings, setting

settings = setting("late_arrival", "features", FeatureSettings)
offline = pd.read_parquet("data/predictions/late_arrival.parquet").set_index(settings.key)["prediction"]
july, raw = pd.read_parquet("data/raw/flights/2013-07.parquet"), Path("data/raw")
weather = pd.read_parquet("data/raw/weather/2013-07.parquet")
times = july["scheduled_departure"].value_counts().index  # the busiest first
times = [*times[:3], *times.sort_values()[[0, 700, 2500, 5000, 7000, -1]]]
rows, apart = 0, 0
for scheduled in times:
    moment = scheduled - pd.Timedelta(minutes=60)
    past = july[july["scheduled_departure"] <= scheduled].copy()
    past.loc[~(past["departure"] <= moment), ["departure", "departure_delay"]] = None
    past.loc[~(past["arrival"] <= moment), ["arrival", "arrival_delay", "air_time"]] = None
    past.to_parquet(raw / "flights/2013-07.parquet", index=False)
    weather[weather["observed"] <= moment].to_parquet(raw / "weather/2013-07.parquet", index=False)
    asked = july.loc[july["scheduled_departure"] == scheduled, features.REQUEST]
    served = predict.predict("late_arrival", asked).set_index(settings.key)["prediction"]
    both = offline.reindex(served.index).dropna()
    rows, apart = rows + len(both), apart + int((served[both.index].to_numpy() != both.to_numpy()).sum())
print(json.dumps({"rows": rows, "apart": apart}))
"""


def test_nothing_after_the_horizon_moves_a_feature(july: Project) -> None:
    moved = july.script(REWRITE)
    assert moved["honest"] == []
    # The same test sees a horizon of nothing: weather and delays of the hour before departure show.
    assert {"temperature", "origin_departure_delay_2h", "aircraft_departure_delay"} <= set(moved["late"])


def with_lock(project: Project, folder: Path) -> Project:
    """A copy of a project with raw data of its own and a dvc.lock that knows its model."""
    served = Project(folder, project.python)
    served.edit(lambda params: params.update(project.params))
    for path in ("data/predictions", "data/raw", "models"):
        shutil.copytree(project.folder / path, folder / path)
    digest = hashlib.md5((folder / "models/late_arrival.skops").read_bytes()).hexdigest()
    entry = f"{{outs: [{{path: models/late_arrival.skops, hash: md5, md5: {digest}}}]}}"
    (folder / "dvc.lock").write_text(f"schema: '2.0'\nstages:\n  train@late_arrival: {entry}\n")
    return served


def test_serving_gives_the_offline_predictions_bit_for_bit(july: Project, tmp_path: Path) -> None:
    told = with_lock(july, tmp_path / "served").script(SERVE)
    assert told["rows"] >= 50
    assert told["apart"] == 0


def test_the_program_predicts_from_csv(july: Project, tmp_path: Path) -> None:
    served = with_lock(july, tmp_path / "served")
    flights = pd.read_parquet(served.folder / "data/raw/flights/2013-07.parquet").head(20)
    flights.to_csv(tmp_path / "flights.csv", index=False)
    lines = served.succeed("predict", "late_arrival", str(tmp_path / "flights.csv")).splitlines()
    assert lines[0] == "scheduled_departure,carrier,flight,origin,prediction"
    assert len(lines) == 21


def test_a_model_that_the_lock_does_not_know_is_not_loaded(july: Project, tmp_path: Path) -> None:
    served = with_lock(july, tmp_path / "served")
    flights = tmp_path / "flights.parquet"
    pd.read_parquet(served.folder / "data/raw/flights/2013-07.parquet").head(2).to_parquet(flights)
    path = served.folder / "models/late_arrival.skops"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    done = served.run("predict", "late_arrival", str(flights))
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert "not the file that dvc.lock records" in done.stderr


@pytest.mark.parametrize("model", ["late_arrival", "air_time"])
def test_a_month_keeps_its_bytes(model: str, raw: Path, stage_python: Path, tmp_path: Path) -> None:
    """... when the next one arrives, so that only the new one is stored."""
    months = [f"2013-{month:02}" for month in range(1, 6)]
    digests = []
    for count in (4, 5):
        data = choose(raw, tmp_path / f"raw{count}", months[:count], share=10)
        project = Project(tmp_path / f"project{count}", stage_python, data)
        project.succeed("features", model)
        files = sorted((project.folder / f"data/features/{model}").iterdir())
        digests.append({path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files})
    assert digests[0].items() <= digests[1].items()
    assert len(digests[1]) == 5
