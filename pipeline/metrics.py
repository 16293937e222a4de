"""What tuning can optimise and evaluation reports, by the names that params.yaml uses."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from sklearn import metrics

from pipeline.project import Problem


class Metric(NamedTuple):
    """A function of labels and predictions, for classifiers (of probabilities) or regressors."""

    of: str
    direction: str
    compute: Callable[[Any, Any], float]


METRICS = {
    "roc_auc": Metric("classifier", "maximize", metrics.roc_auc_score),
    "average_precision": Metric("classifier", "maximize", metrics.average_precision_score),
    "log_loss": Metric("classifier", "minimize", metrics.log_loss),
    "brier_score": Metric("classifier", "minimize", metrics.brier_score_loss),
    "rmse": Metric("regressor", "minimize", metrics.root_mean_squared_error),
    "mae": Metric("regressor", "minimize", metrics.mean_absolute_error),
    "r2": Metric("regressor", "maximize", metrics.r2_score),
}


def metric(name: str, of: str) -> Metric:
    """The metric of that name for a kind of estimator. Raises `Problem`."""
    fitting = [key for key, value in METRICS.items() if value.of == of]
    if name not in fitting:
        raise Problem(f"{name!r} is no metric for a {of}; there are {', '.join(fitting)}")
    return METRICS[name]
