"""Score the model on the newest partition: metrics, predictions, plots, and what exactly it was scored on.

python -m pipeline.evaluate MODEL needs the model file and the features only, so an older model can be scored on newer data.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
from pydantic import PositiveFloat
from sklearn.base import is_classifier
from sklearn.metrics import roc_curve

from pipeline.metrics import metric
from pipeline.model_file import loads, predict
from pipeline.project import FeatureSettings, Problem, Strict, partitions, read, run, setting, write, write_json

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
    """The business cost when everyone is warned for whom the expected cost of silence is the greater one."""
    if costs is None:
        raise Problem("the metric cost_per_flight needs evaluate.costs: {missed: ..., false_alarm: ...}")
    warned = predictions >= costs.false_alarm / (costs.false_alarm + costs.missed)
    return float(np.mean(np.where(labels == 1, ~warned * costs.missed, warned * costs.false_alarm)))


def roc(labels: np.ndarray, predictions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Share of false alarms, and of events foretold."""
    return roc_curve(labels, predictions)[:2]


def rec(labels: np.ndarray, predictions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """An error, and the share of rows whose error is not greater."""
    errors = np.sort(np.abs(labels - predictions))
    return errors, np.arange(1, len(errors) + 1) / len(errors)


CURVES: dict[str, Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]] = {"roc": roc, "rec": rec}


def calibration(labels: np.ndarray, predictions: np.ndarray) -> pd.DataFrame:
    """Ten equal groups by prediction: what was predicted on average, and what came."""
    groups = np.array_split(np.argsort(predictions, kind="stable"), 10)
    rows = [(predictions[group].mean(), labels[group].mean(), len(group)) for group in groups if len(group)]
    return pd.DataFrame(rows, columns=["predicted", "observed", "rows"]).round(6)


def compute(name: str, of: str, labels: np.ndarray, predictions: np.ndarray, costs: Costs | None) -> float:
    if name == "cost_per_flight" and of == "classifier":
        return round(cost_per_flight(labels, predictions, costs), 6)
    return round(float(metric(name, of).compute(labels, predictions)), 6)


def digest(rows: pd.DataFrame) -> str:
    """Identifies the holdout: keys and labels in order, as text, so that no file format has a say in it."""
    return hashlib.sha256(rows.to_csv(index=False, lineterminator="\n").encode()).hexdigest()


def main(model: str) -> None:
    features = setting(model, "features", FeatureSettings)
    settings = setting(model, "evaluate", EvaluateSettings)
    tuned = setting(model, "train.metric", str)
    folder, file = Path("data/features") / model, Path("models") / f"{model}.skops"
    newest = partitions(folder)[-1]
    rows = read([folder / f"{newest}.parquet"])
    if not file.exists():
        raise Problem(f"{file} is missing; run the stage train@{model}")
    estimator = loads(file.read_bytes(), str(file))
    predictions, labels = predict(estimator, rows[features.columns.all]), rows[features.label.name].to_numpy()
    of = "classifier" if is_classifier(estimator) else "regressor"
    if (settings.curve == "roc") != (of == "classifier"):
        raise Problem(f"evaluate.curve {settings.curve!r} does not suit a {of}; write {'roc' if of == 'classifier' else 'rec'}")
    told = {name: compute(name, of, labels, predictions, settings.costs) for name in settings.metrics}
    best = round(float(pd.read_csv(Path("plots") / model / "trials.csv")["best_value"].iloc[-1]), 6)

    kept = rows[[*features.key, features.label.name]]
    write(kept.assign(prediction=predictions), Path("data/predictions") / f"{model}.parquet")
    write_json({"partition": newest, "rows": len(kept), "digest": digest(kept)}, Path("reports") / model / "holdout.json")
    write_json({"holdout": told, "validation": {tuned: best}}, Path("metrics") / f"{model}.json")
    points = pd.DataFrame(dict(zip("xy", CURVES[settings.curve](labels, predictions), strict=True))).round(6)
    chosen = np.unique(np.linspace(0, len(points) - 1, POINTS).astype(int))
    plots = Path("plots") / model
    points.iloc[chosen].to_csv(plots / f"{settings.curve}.csv", index=False, lineterminator="\n")
    calibration(labels, predictions).to_csv(plots / "calibration.csv", index=False, lineterminator="\n")
    print(f"evaluate {model} {newest}: " + ", ".join(f"{name} {value:.4f}" for name, value in told.items()), flush=True)


if __name__ == "__main__":
    run(main)
