"""What tuning can optimise and evaluation reports, by the names that params.yaml uses."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

from sklearn import metrics as score
from sklearn.base import is_classifier

from pipeline.project import Problem


class Metric(NamedTuple):
    """A function of labels and predictions (a classifier's are probabilities)."""

    classifier: bool
    direction: Literal["maximize", "minimize"]
    compute: Callable[[Any, Any], float]


METRICS = {
    "roc_auc": Metric(True, "maximize", score.roc_auc_score),
    "average_precision": Metric(True, "maximize", score.average_precision_score),
    "log_loss": Metric(True, "minimize", score.log_loss),
    "brier_score": Metric(True, "minimize", score.brier_score_loss),
    "rmse": Metric(False, "minimize", score.root_mean_squared_error),
    "mae": Metric(False, "minimize", score.mean_absolute_error),
    "r2": Metric(False, "maximize", score.r2_score),
}


def metric(name: str, estimator: Any) -> Metric:
    """The metric of that name, if it suits the estimator. Raises `Problem`."""
    fitting = {key: value for key, value in METRICS.items() if value.classifier == is_classifier(estimator)}
    if name not in fitting:
        kind = "classifier" if is_classifier(estimator) else "regressor"
        raise Problem(f"{name!r} is no metric for a {kind}; there are {', '.join(fitting)}")
    return fitting[name]
