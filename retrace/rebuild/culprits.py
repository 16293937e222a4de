"""Whom a failed stage's last line points at: code, files and parameters that are there and that it does not declare."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from retrace import yaml12
from retrace.dvcfiles import overlap
from retrace.rebuild.declared import Declared
from retrace.rebuild.view import STRUCTURED

_QUOTED = re.compile(r"['\"`]([^'\"`\s]+)['\"`]|(?<![\w/])([\w.-]+(?:/[\w.-]+)+)")

_DOTTED = re.compile(r"(?<![\w./])[A-Za-z_]\w*(?:\.\w+)+")
_IMPORTED = re.compile(r"cannot import name '(\w+)' from '([\w.]+)'")


def culprits(said: str, tree: Path, stage: Declared) -> list[str]:
    """In words, what the line names that the tree has and the stage does not declare."""
    names = [first or second for first, second in _QUOTED.findall(said)]
    names += _DOTTED.findall(said)
    names += [f"{package}.{name}" for name, package in _IMPORTED.findall(said)]
    found = [text for name in names for text in (*_files(name, tree, stage), *_parameters(name, tree, stage))]
    return list(dict.fromkeys(found))


def _files(name: str, tree: Path, stage: Declared) -> Iterable[str]:
    module = name.replace(".", "/")
    for path in (name, f"{module}.py", f"{module}/__init__.py"):
        declared = (*stage.dependencies, *stage.outputs, *stage.parameters)
        known = any(path == own or path.startswith(f"{own}/") for own in declared)
        if not known and not path.startswith(("/", "..")) and os.path.isfile(tree / path):
            yield f"reads {path}, which it does not declare"


def _parameters(name: str, tree: Path, stage: Declared) -> Iterable[str]:
    for file, declared in stage.parameters.items():
        if PurePosixPath(file).suffix not in STRUCTURED:
            continue
        for key in _keys(yaml12.load((tree / file).read_text())):
            covered = any(overlap(key, own, ".") for own in declared)
            if name in (key, key.rpartition(".")[2]) and not covered and _of_model(key, stage):
                yield f"reads the parameter {key}, which it does not declare"


def _of_model(key: str, stage: Declared) -> bool:
    """A parameter of another model has the same name and is not meant."""
    parts = key.split(".")
    return parts[0] != "models" or len(parts) < 2 or parts[1] == stage.address.partition("@")[2]


def _keys(tree: Any, prefix: str = "") -> Iterable[str]:
    if isinstance(tree, Mapping):
        for key, value in tree.items():
            name = f"{prefix}.{key}" if prefix else str(key)
            yield name
            yield from _keys(value, name)
