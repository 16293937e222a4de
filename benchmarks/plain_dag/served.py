"""The model that the plain DAG registers."""

from __future__ import annotations

from typing import Any

import skops.io
from mlflow.models import set_model
from mlflow.pyfunc.model import PythonModel


class Served(PythonModel):
    def load_context(self, context: Any) -> None:
        path = context.artifacts["model"]
        self.estimator = skops.io.load(path, trusted=skops.io.get_untrusted_types(file=path))

    def predict(self, context: Any, model_input: Any, params: dict[str, Any] | None = None) -> Any:
        return self.estimator.predict_proba(model_input)[:, 1]


set_model(Served())
