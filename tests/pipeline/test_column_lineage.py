"""The source columns that a feature declares are those that move it: change one, and see what moves."""

from __future__ import annotations

import json
from typing import Any

import pandas as pd
import pytest
from domain import Params, Project

# Shuffles one column of the raw data at a time, so that every value stays one that may occur, and builds all anew.
SHUFFLE = """
import json
from pathlib import Path
import pandas as pd
from pipeline import features
from pipeline.project import FeatureSettings, read, setting

models = {name: setting(name, "features", FeatureSettings) for name in ("late_arrival", "air_time")}
raw = {name: read(sorted(Path("data/raw", name).glob("*.parquet"))) for name in ("flights", "weather")}

def table(settings, flights, weather):
    asked = flights.iloc[-2000:]
    label = {settings.label.name: features.label(asked, settings)}
    return {**asked[settings.key], **features.build(asked, flights, weather, settings), **label}

before = {model: table(settings, **raw) for model, settings in models.items()}
moved = {model: {name: [] for name in columns} for model, columns in before.items()}
for dataset, rows in raw.items():
    for column in rows:
        shuffled = rows.assign(**{column: rows[column].sample(frac=1, random_state=1).to_numpy()})
        for model, settings in models.items():
            after = table(settings, **{**raw, dataset: shuffled})
            for name in after:
                if not before[model][name].equals(after[name]):
                    moved[model][name].append([f"data/raw/{dataset}", column])
print(json.dumps(moved))
"""
MODELS = ["late_arrival", "air_time"]


@pytest.fixture
def complete(small: Project) -> Project:
    """Both models with every feature that there is."""
    names = "import json; from pipeline import features; print(json.dumps([features.CATEGORICAL, features.NUMERIC]))"
    categorical, numeric = small.script(names)

    def choose_all(params: Params) -> None:
        for model in MODELS:
            params["models"][model]["features"] |= {"categorical": categorical, "numeric": numeric}

    return small.edit(choose_all)


def declared(project: Project, model: str) -> dict[str, Any]:
    """What the stage writes of its table."""
    project.succeed("features", model)
    return json.loads((project.folder / f"reports/{model}/columns.json").read_text())[f"data/features/{model}"]


def test_a_column_moves_exactly_the_features_that_declare_it(complete: Project) -> None:
    moved = complete.script(SHUFFLE)
    for model in MODELS:
        told = declared(complete, model)
        assert told == {name: sorted(columns) for name, columns in moved[model].items()}
        assert all(told.values())


@pytest.mark.parametrize("model", MODELS)
def test_every_column_of_the_table_is_declared_and_no_other(model: str, small: Project) -> None:
    told = declared(small, model)
    table = pd.read_parquet(small.folder / f"data/features/{model}/2013-04.parquet")
    assert list(told) == sorted(table)
    label = small.params["models"][model]["features"]["label"]
    assert told[label["name"]] == [["data/raw/flights", label["column"]]]
    path = small.folder / f"reports/{model}/columns.json"
    before = path.read_bytes()
    declared(small, model)
    assert path.read_bytes() == before
