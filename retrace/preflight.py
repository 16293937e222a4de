"""Whether a stage need not run, told from its commit alone: no checkout, no process of DVC's, a tenth of the time.

It says yes only where DVC would: the lock's entry has this very command, these dependencies, parameters and outputs,
and the remote, a folder of this machine, has every object. Whatever it cannot tell by itself (a remote elsewhere, a
dependency that is part of an output) is left to DVC.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from retrace import yaml12
from retrace.dvcfiles import LOCK, StageTemplate, object_path, output_md5s, pointer_md5
from retrace.git import Git
from retrace.hashing import is_directory_object, md5_of

_PLACE = re.compile(r"\$\{([^}]*)\}")


class _Unresolved(Exception):
    """An expression of dvc.yaml that is DVC's to resolve."""


def unchanged(git: Git, commit: str, template: StageTemplate, model: str, remote: Path) -> bool:
    """Whether nothing would be done for this stage of a model in this commit. False also means: not known."""
    texts = git.read_many([f"{commit}:params.yaml", f"{commit}:{LOCK}"])
    params, lock = (yaml12.load(text.decode()) if text else {} for text in texts)
    entries = lock.get("stages", {})
    entry = entries.get(template.address(model))
    if entry is None:
        return False
    try:
        return (
            entry["cmd"] == _resolve(template.command, model, params)
            and _same_parameters(entry, _all(template.parameters, model, params), params)
            and _same_files(git, commit, entries, entry, template, model, params)
            and _has_outputs(entry, _all(template.uncached, model, params), remote)
        )
    except _Unresolved:
        return False


def _resolve(text: str, model: str, params: Any) -> str:
    def value(found: re.Match[str]) -> str:
        if found[1] == "key":
            return model
        if not found[1].startswith("item."):
            raise _Unresolved
        return str(_look_up(params, f"models.{model}.{found[1].removeprefix('item.')}"))

    return _PLACE.sub(value, text)


def _look_up(tree: Any, key: str) -> Any:
    for name in key.split("."):
        if not isinstance(tree, Mapping) or name not in tree:
            raise _Unresolved
        tree = tree[name]
    return tree


def _all(texts: Iterable[str], model: str, params: Any) -> set[str]:
    return {_resolve(text, model, params) for text in texts}


def _same_parameters(entry: Any, keys: set[str], params: Any) -> bool:
    recorded = entry.get("params", {})
    values = recorded.get("params.yaml", {})
    if set(recorded) - {"params.yaml"} or set(values) != keys:
        return False
    return all(_look_up(params, key) == value for key, value in values.items())


def _same_files(
    git: Git, commit: str, entries: Any, entry: Any, template: StageTemplate, model: str, params: Any
) -> bool:
    """Whether the lock's dependencies and outputs are those of dvc.yaml, and the commit's files are what it says."""
    dependencies, outputs = (
        {item["path"]: item.get("md5") for item in entry.get(kind, ())} for kind in ("deps", "outs")
    )
    declared = (_all(paths, model, params) for paths in (template.dependencies, template.outputs))
    if [set(dependencies), set(outputs)] != list(declared):
        return False
    uncached = {path: outputs[path] for path in _all(template.uncached, model, params)}
    made = {path: md5 for path, md5 in output_md5s(entries).items() if path not in uncached}
    return _present(git, commit, made, {*dependencies, *uncached}) == dependencies | uncached


def _present(git: Git, commit: str, made: Mapping[str, str], paths: Iterable[str]) -> dict[str, str | None]:
    """Path -> md5 of what a stage would find: a file of the commit, raw data by pointer, an output by the lock."""
    blobs = git.files(commit)
    names = {path: path if path in blobs else f"{path}.dvc" for path in paths}
    in_git = {path: name for path, name in names.items() if name in blobs}
    contents = git.read_many([blobs[name] for name in in_git.values()])
    found: dict[str, str | None] = {path: made.get(path) for path in paths}
    for (path, name), content in zip(in_git.items(), contents, strict=True):
        assert content is not None
        found[path] = md5_of(content) if name == path else pointer_md5(content, name)
    return found


def _has_outputs(entry: Any, uncached: set[str], remote: Path) -> bool:
    return all(_is_stored(remote, out.get("md5", "")) for out in entry.get("outs", ()) if out["path"] not in uncached)


def _is_stored(remote: Path, md5: str) -> bool:
    place = object_path(remote, md5)
    if not place.is_file():
        return False
    if not md5.endswith(".dir"):
        return True
    content = place.read_bytes()
    return is_directory_object(content, md5) and all(
        object_path(remote, file["md5"]).is_file() for file in json.loads(content)
    )
