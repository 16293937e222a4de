"""Model files that run no code when loaded, and whose bytes depend on the model alone (canonical skops)."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import skops.io
from sklearn.base import BaseEstimator, is_classifier

from pipeline.project import Problem

EPOCH = (1980, 1, 1, 0, 0, 0)  # the first date that a zip can tell


def _renumber(node: Any, names: dict[str, str], numbers: dict[int, int]) -> Any:
    """Replace memory addresses by the order of appearance, and note what files are called from now on."""
    if isinstance(node, list):
        return [_renumber(item, names, numbers) for item in node]
    if not isinstance(node, dict):
        return node
    result = dict(node)
    if "__loader__" in node:
        address = result.pop("__id__", None)
        # A constant is shared or not as the interpreter likes; only what can change has an identity.
        if address is not None and node["__loader__"] not in ("JsonNode", "TypeNode"):
            result["__id__"] = numbers.setdefault(address, len(numbers) + 1)
        if isinstance(node.get("file"), str):
            result["file"] = names.setdefault(node["file"], f"{len(names) + 1}{Path(node['file']).suffix}")
    return {key: _renumber(value, names, numbers) for key, value in result.items()}


def dumps(model: BaseEstimator) -> bytes:
    """The bytes of a model file: the same for the same model in every process."""
    names: dict[str, str] = {}
    target = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(skops.io.dumps(model))) as source, zipfile.ZipFile(target, "w") as zipped:
        schema = _renumber(json.loads(source.read("schema.json")), names, {})
        zipped.writestr(zipfile.ZipInfo("schema.json", EPOCH), json.dumps(schema))
        for old, new in names.items():
            zipped.writestr(zipfile.ZipInfo(new, EPOCH), source.read(old))
    return target.getvalue()


def loads(data: bytes, name: str) -> BaseEstimator:
    """The model of a file's bytes, whose hash has been checked by now; nothing but scikit-learn's types is in it."""
    try:
        foreign = [kind for kind in skops.io.get_untrusted_types(data=data) if not kind.startswith("sklearn.")]
        if foreign:
            raise Problem(f"{name} holds {', '.join(foreign)}, which is not scikit-learn's; it is not loaded")
        return skops.io.loads(data, trusted=skops.io.get_untrusted_types(data=data))
    except (zipfile.BadZipFile, KeyError, ValueError, TypeError) as error:
        raise Problem(f"{name} is no model file: {' '.join(str(error).split())[:200]}; train again") from None


def predict(model: Any, table: pd.DataFrame) -> np.ndarray:
    """The probability of the second class, or the predicted value."""
    return np.asarray(model.predict_proba(table)[:, 1] if is_classifier(model) else model.predict(table), dtype=float)
