"""Serve predictions with the very features of training: python -m pipeline.predict MODEL FLIGHTS.parquet|csv

FLIGHTS has what is known of a flight before it leaves; the history comes from data/raw. Prints CSV.
"""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from pipeline import model_file
from pipeline.features import REQUEST, build, history
from pipeline.project import FeatureSettings, Problem, one_line, read, setting


def load(model: str) -> Any:
    """The model of this checkout; refused before it is opened unless dvc.lock records its very bytes."""
    path = f"models/{model}.skops"
    try:
        lock = yaml.safe_load(Path("dvc.lock").read_text(encoding="utf-8"))
        recorded = {item["path"]: item["md5"] for item in lock["stages"][f"train@{model}"]["outs"]}[path]
        data = Path(path).read_bytes()
    except (OSError, KeyError, TypeError, yaml.YAMLError):
        raise Problem(f"{path} or its entry in dvc.lock is missing; check out a version of the model") from None
    if hashlib.md5(data, usedforsecurity=False).hexdigest() != recorded:
        raise Problem(f"{path} is not the file that dvc.lock records, so it is not loaded; dvc checkout --force {path}")
    return model_file.loads(data, path)


def predict(model: str, flights: pd.DataFrame) -> pd.DataFrame:
    """Keys and prediction of each flight, in order; of each only the columns known beforehand are looked at."""
    if absent := [name for name in REQUEST if name not in flights]:
        raise Problem(f"the flights lack {', '.join(absent)}; they need {', '.join(REQUEST)}")
    settings, flights = setting(model, "features", FeatureSettings), flights[REQUEST].reset_index(drop=True)
    table = build(flights, *history(flights["scheduled_departure"]), settings)
    return flights[settings.key].assign(prediction=model_file.predict(load(model), table))


def read_flights(path: Path) -> pd.DataFrame:
    if path.suffix == ".parquet":
        return read([path])
    try:
        return pd.read_csv(path).astype(dict.fromkeys(REQUEST[:2], "datetime64[us]"))
    except (OSError, ValueError, KeyError) as error:
        raise Problem(f"cannot read flights from {path}: {one_line(error)}") from None


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("usage: python -m pipeline.predict MODEL FLIGHTS.parquet|csv")
    try:
        predict(sys.argv[1], read_flights(Path(sys.argv[2]))).to_csv(sys.stdout, index=False)
    except Problem as problem:
        sys.exit(f"predict {sys.argv[1]}: {problem}")
