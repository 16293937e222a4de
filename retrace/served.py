"""The model that MLflow serves: the DVC-tracked file, checked before it is opened.

MLflow copies this one file into the version and runs it on the server ("models from code"), where Retrace is not
installed: it imports nothing of it. The version's configuration records the sha256 of the model file and the
scikit-learn that wrote it.
"""

from __future__ import annotations

import hashlib
import importlib
from pathlib import Path
from typing import Any

import pandas
from mlflow.models import set_model
from mlflow.pyfunc.model import PythonModel

TRUSTED_PACKAGES = ("sklearn", "numpy", "scipy")


class ModelRefused(Exception):
    """A model that is not what was registered, or that this process must not or cannot load."""


def check_content(content: bytes, recorded: str) -> None:
    """Raise `ModelRefused` unless these bytes are the registered ones."""
    found = hashlib.sha256(content).hexdigest()
    if found != recorded:
        raise ModelRefused(
            f"the model file was changed after it was registered (sha256 {found}, recorded {recorded}) and was not"
            " opened; publish the version again from DVC"
        )


def check_scikit_learn(recorded: str) -> None:
    """Raise `ModelRefused` unless this process has the scikit-learn that the model was trained with."""
    import sklearn

    if sklearn.__version__ != recorded:
        raise ModelRefused(
            f"the model was trained with scikit-learn {recorded} and this process has {sklearn.__version__}, which may"
            f" predict something else; install scikit-learn=={recorded}"
        )


def is_trusted(kind: str) -> bool:
    """Whether a type named in a model file is a class of scikit-learn, numpy or scipy; functions are not."""
    module, _, name = kind.rpartition(".")
    if module.partition(".")[0] not in TRUSTED_PACKAGES:
        return False
    try:
        return isinstance(getattr(importlib.import_module(module), name, None), type)
    except ImportError:
        return False


def load_estimator(content: bytes) -> Any:
    """The estimator in the bytes of a skops file; raises `ModelRefused` when it names anything that is not trusted."""
    import skops.io

    kinds = skops.io.get_untrusted_types(data=content)
    foreign = sorted(kind for kind in kinds if not is_trusted(kind))
    if foreign:
        raise ModelRefused(f"the model file holds {', '.join(foreign)}, not of scikit-learn; it was not loaded")
    return skops.io.loads(content, trusted=kinds)


class ServedModel(PythonModel):
    """The registered estimator: the positive class's probability of a classifier, the value of a regressor."""

    def load_context(self, context: Any) -> None:
        """Check the file, then load the very bytes that were checked."""
        content = Path(context.artifacts["model"]).read_bytes()
        check_content(content, context.model_config["sha256"])
        check_scikit_learn(context.model_config["scikit_learn"])
        self._estimator = load_estimator(content)
        self._classifies = hasattr(self._estimator, "predict_proba")
        if self._classifies and len(self._estimator.classes_) != 2:
            classes = ", ".join(map(str, self._estimator.classes_))
            raise ModelRefused(f"the classifier knows the classes {classes}; only two-class models have a positive one")

    def predict(self, context: Any, model_input: pandas.DataFrame, params: dict[str, Any] | None = None) -> Any:
        """One number a row."""
        if self._classifies:
            return self._estimator.predict_proba(model_input)[:, 1]
        return self._estimator.predict(model_input)


set_model(ServedModel())
