"""The folder that MLflow serves a version from: the DVC-tracked file byte for byte, and `retrace/served.py`."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from retrace.errors import RetraceError
from retrace.published import Entry, EntryError, FeatureType

if TYPE_CHECKING:
    from pandas import DataFrame

SERVED = Path(__file__).parent.parent / "served.py"
_MLFLOW_TYPES: dict[FeatureType, str] = {
    "string": "string",
    "integer": "long",
    "float": "double",
    "boolean": "boolean",
    "timestamp": "datetime",
}
_PANDAS_TYPES: dict[FeatureType, str] = {
    "string": "object",
    "integer": "int64",
    "float": "float64",
    "boolean": "bool",
    "timestamp": "datetime64[us]",
}


class ModelFileChanged(RetraceError):
    """The model file is not the one that the version records."""


def check_model_file(entry: Entry) -> None:
    """Raise `ModelFileChanged` unless the file is the one that the version records."""
    with open(entry.model_file, "rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != entry.model_fingerprint.sha256:
        raise ModelFileChanged(
            f"{entry.model_file} is not the model of {entry.tag} (sha256 {found[:12]}…, recorded"
            f" {entry.model_fingerprint.sha256[:12]}…); pull it again from the DVC remote"
        )


def save_servable(entry: Entry, logged_model: Any, folder: Path) -> None:
    """Write the folder of a logged model, ready for upload. Raises `EntryError` if the example is not of the schema.

    The file may come from the DVC cache, where it has no name and is read-only: its copy has a name, and can be
    overwritten by a second attempt. A link will not do, since MLflow refuses those that lead elsewhere.
    """
    import mlflow.pyfunc
    from mlflow.models import Model

    named = folder.with_name(f"{entry.model}.skops")
    shutil.copyfile(entry.model_file, named)
    mlflow.pyfunc.save_model(
        path=folder,
        mlflow_model=Model(
            artifact_path=logged_model.artifact_location,
            model_uuid=logged_model.model_id,
            model_id=logged_model.model_id,
            run_id=logged_model.source_run_id,
        ),
        python_model=SERVED,
        artifacts={"model": str(named)},
        model_config={"sha256": entry.model_fingerprint.sha256, "scikit_learn": entry.scikit_learn},
        pip_requirements=list(entry.requirements),
        signature=_signature(entry),
        input_example=_example(entry),
        metadata=entry.tags,
    )


def _signature(entry: Entry) -> Any:
    import numpy
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, Schema, TensorSpec

    columns: list[ColSpec | TensorSpec] = [ColSpec(_MLFLOW_TYPES[kind], name) for name, kind in entry.input_schema]
    return ModelSignature(Schema(columns), Schema([TensorSpec(numpy.dtype("float64"), (-1,))]))


def _example(entry: Entry) -> DataFrame:
    """The example rows in the very types of the signature: pandas alone would make 1 an integer and None an object."""
    import pandas

    rows = pandas.DataFrame(list(entry.input_example), columns=[name for name, _ in entry.input_schema], dtype=object)
    try:
        return rows.astype({name: _PANDAS_TYPES[kind] for name, kind in entry.input_schema})
    except (TypeError, ValueError) as error:
        raise EntryError(f"the input example of {entry.tag} is not of the model's columns: {error}") from None
