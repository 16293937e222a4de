"""Serve predictions with the very features of training: python -m pipeline.predict MODEL FLIGHTS.parquet|csv

FLIGHTS has what is known of a flight before it leaves; the history comes from data/raw. Prints CSV.
"""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

import pandas as pd
import yaml
from sklearn.base import BaseEstimator

from pipeline.features import REQUEST, build, history
from pipeline.model_file import loads
from pipeline.model_file import predict as apply
from pipeline.project import FeatureSettings, Problem, read, setting


def load(model: str) -> BaseEstimator:
    """The model of this checkout; refused before it is opened unless dvc.lock knows its very bytes."""
    path = f"models/{model}.skops"
    try:
        lock = yaml.safe_load(Path("dvc.lock").read_text(encoding="utf-8"))
        recorded = {item["path"]: item["md5"] for item in lock["stages"][f"train@{model}"]["outs"]}[path]
        data = Path(path).read_bytes()
    except (OSError, KeyError, TypeError, yaml.YAMLError):
        raise Problem(f"{path} or its entry train@{model} in dvc.lock is missing; check out a version of the model") from None
    if hashlib.md5(data, usedforsecurity=False).hexdigest() != recorded:
        raise Problem(f"{path} is not the file that dvc.lock records; it is not loaded: dvc checkout --force {path}")
    return loads(data, path)


def features(requests: pd.DataFrame, settings: FeatureSettings) -> pd.DataFrame:
    """Only the columns known beforehand are looked at, whatever else came with the request."""
    absent = [name for name in REQUEST if name not in requests]
    if absent:
        raise Problem(f"the flights lack {', '.join(absent)}; they need {', '.join(REQUEST)}")
    requests = requests[REQUEST].reset_index(drop=True)
    return build(requests, *history(requests["scheduled_departure"]), settings)


def predict(model: str, requests: pd.DataFrame) -> pd.DataFrame:
    """Keys and prediction for each flight, in the order of the requests."""
    settings = setting(model, "features", FeatureSettings)
    predictions = apply(load(model), features(requests, settings))
    return requests[settings.key].reset_index(drop=True).assign(prediction=predictions)


def flights(path: Path) -> pd.DataFrame:
    if path.suffix == ".parquet":
        return read([path])
    try:
        table = pd.read_csv(path)
        times = [name for name in REQUEST[:2] if name in table]
        return table.astype(dict.fromkeys(times, "datetime64[us]"))
    except (OSError, ValueError) as error:
        raise Problem(f"cannot read flights from {path}: {str(error).splitlines()[0]}") from None


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("usage: python -m pipeline.predict MODEL FLIGHTS.parquet|csv")
    try:
        predict(sys.argv[1], flights(Path(sys.argv[2]))).to_csv(sys.stdout, index=False)
    except Problem as problem:
        sys.exit(f"predict {sys.argv[1]}: {problem}")
