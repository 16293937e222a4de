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
from sklearn.base import is_classifier

from pipeline.project import Problem, one_line

TRUSTED = ("sklearn.", "numpy.dtype")
EPOCH = (1980, 1, 1, 0, 0, 0)  # the first date that a zip can tell


def _renumbered(node: Any, files: dict[str, str], numbers: dict[int, int]) -> Any:
    """The schema with memory addresses replaced by the order of appearance; fills in the files' new names."""
    if isinstance(node, list):
        return [_renumbered(item, files, numbers) for item in node]
    if not isinstance(node, dict):
        return node
    if "__loader__" in node:
        node = dict(node)
        address = node.pop("__id__", None)
        # Whether equal constants are one object is the interpreter's affair: only what can change has an identity.
        if address is not None and node["__loader__"] not in ("JsonNode", "TypeNode"):
            node["__id__"] = numbers.setdefault(address, len(numbers) + 1)
        if isinstance(node.get("file"), str):
            node["file"] = files.setdefault(node["file"], f"{len(files) + 1}{Path(node['file']).suffix}")
    return {key: _renumbered(value, files, numbers) for key, value in node.items()}


def dumps(model: Any) -> bytes:
    """The bytes of a model file: the same for the same model in every process."""
    target, files = io.BytesIO(), dict[str, str]()
    with zipfile.ZipFile(io.BytesIO(skops.io.dumps(model))) as source, zipfile.ZipFile(target, "w") as zipped:
        schema = _renumbered(json.loads(source.read("schema.json")), files, {})
        zipped.writestr(zipfile.ZipInfo("schema.json", EPOCH), json.dumps(schema))
        for old, new in files.items():
            zipped.writestr(zipfile.ZipInfo(new, EPOCH), source.read(old))
    return target.getvalue()


def loads(data: bytes, name: str) -> Any:
    """The model of a file whose hash was checked; it is refused if it holds anything but scikit-learn's types."""
    try:
        types = skops.io.get_untrusted_types(data=data)
        if foreign := [kind for kind in types if not kind.startswith(TRUSTED)]:
            raise Problem(f"{name} holds {', '.join(foreign)}, which is not scikit-learn's; it is not loaded")
        return skops.io.loads(data, trusted=types)
    except (zipfile.BadZipFile, KeyError, ValueError, TypeError) as error:
        raise Problem(f"{name} is no model file: {one_line(error)}; train again") from None


def predict(model: Any, table: pd.DataFrame) -> np.ndarray:
    """The probability of the second class, or the predicted value."""
    return np.asarray(model.predict_proba(table)[:, 1] if is_classifier(model) else model.predict(table), dtype=float)
