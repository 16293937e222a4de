"""Score the model on the newest partition: metrics, predictions, plots, and what exactly it was scored on.

python -m pipeline.evaluate MODEL fits nothing, so that a model of an older version can be scored on newer features.
"""

from __future__ import annotations

import hashlib
import json
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from pydantic import PositiveFloat
from sklearn.metrics import roc_curve

from pipeline.metrics import metric
from pipeline.model_file import loads, predict
from pipeline.project import FeatureSettings, Problem, Strict, output, partitions, read, run, setting

POINTS = 200  # of a curve; more than a plot shows


class Costs(Strict):
    """What a mistake costs: an event that was not foretold, and a warning for nothing."""

    missed: PositiveFloat
    false_alarm: PositiveFloat


class EvaluateSettings(Strict):
    metrics: list[str]
    curve: Literal["roc", "rec"]
    costs: Costs | None = None


def cost_per_flight(labels: np.ndarray, predictions: np.ndarray, costs: Costs | None) -> float:
    """The business cost when a warning is given wherever silence is expected to cost more."""
    if costs is None:
        raise Problem("the metric cost_per_flight needs evaluate.costs: {missed: ..., false_alarm: ...}")
    warned = predictions >= costs.false_alarm / (costs.false_alarm + costs.missed)
    return float(np.mean(np.where(labels == 1, ~warned * costs.missed, warned * costs.false_alarm)))


def curve(kind: str, labels: np.ndarray, predictions: np.ndarray) -> pd.DataFrame:
    """roc: share of false alarms, of events foretold. rec: an error, the share of rows with no greater one."""
    if kind == "roc":
        if set(np.unique(labels)) - {0, 1}:
            raise Problem("evaluate.curve roc is for labels 0 and 1; write rec")
        x, y, _ = roc_curve(labels, predictions)
    else:
        x = np.sort(np.abs(labels - predictions))
        y = np.arange(1, len(x) + 1) / len(x)
    points = pd.DataFrame({"x": x, "y": y}).round(6)
    return points.iloc[np.unique(np.linspace(0, len(points) - 1, POINTS).astype(int))]


def calibration(labels: np.ndarray, predictions: np.ndarray) -> pd.DataFrame:
    """Ten equal groups by prediction: what was predicted on average, and what came."""
    groups = [group for group in np.array_split(np.argsort(predictions, kind="stable"), 10) if len(group)]
    rows = [(predictions[group].mean(), labels[group].mean(), len(group)) for group in groups]
    return pd.DataFrame(rows, columns=["predicted", "observed", "rows"]).round(6)


def serving(table: pd.DataFrame) -> dict[str, Any]:
    """What a registry tells of the model's input: the columns with their types, and a few rows."""
    columns = [[name, "float" if kind == "float64" else "string"] for name, kind in table.dtypes.items()]
    return {"columns": columns, "example": json.loads(table.head(3).to_json(orient="records", double_precision=15))}


def write_json(value: dict[str, Any], path: Path) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def main(model: str) -> None:
    features, settings = setting(model, "features", FeatureSettings), setting(model, "evaluate", EvaluateSettings)
    tuned, newest = setting(model, "train.metric", str), partitions(Path("data/features") / model)[-1]
    rows, file = read([Path("data/features") / model / f"{newest}.parquet"]), Path("models") / f"{model}.skops"
    if not file.exists():
        raise Problem(f"{file} is missing; run the stage train@{model}")
    estimator = loads(file.read_bytes(), str(file))
    predictions, labels = predict(estimator, rows[features.columns]), rows[features.label.name].to_numpy()
    scores = {}
    for name in settings.metrics:
        own = name == "cost_per_flight"  # the one that depends on parameters
        compute = partial(cost_per_flight, costs=settings.costs) if own else metric(name, estimator).compute
        scores[name] = round(float(compute(labels, predictions)), 6)
    best = pd.read_csv(Path("plots") / model / "trials.csv")["best_value"].iloc[-1]

    kept = rows[[*features.key, features.label.name]]
    kept.assign(prediction=predictions).to_parquet(output("data/predictions", f"{model}.parquet"), index=False)
    # As text, so that no file format has a say in what the same holdout is.
    digest = hashlib.sha256(kept.to_csv(index=False, lineterminator="\n").encode()).hexdigest()
    holdout = {"partition": newest, "rows": len(kept), "digest": digest}
    costs = {"costs": settings.costs.model_dump()} if settings.costs else {}  # other costs are another metric
    write_json({**holdout, **costs}, output("reports", model, "holdout.json"))
    write_json(serving(rows[features.columns]), output("reports", model, "serving.json"))
    write_json({"holdout": scores, "validation": {tuned: round(float(best), 6)}}, output("metrics", f"{model}.json"))
    plots: dict[str, pd.DataFrame] = {settings.curve: curve(settings.curve, labels, predictions)}
    for name, plot in {**plots, "calibration": calibration(labels, predictions)}.items():
        plot.to_csv(output("plots", model, f"{name}.csv"), index=False, lineterminator="\n")
    told = ", ".join(f"{name} {value:.4f}" for name, value in scores.items())
    print(f"{newest}: {told}", flush=True)


if __name__ == "__main__":
    run(main)
