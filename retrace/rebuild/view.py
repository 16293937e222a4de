"""A view: a folder that holds what one stage declares, and nothing else.

Files come from a tree by hard link, or as copies where nothing keeps the stage from writing through a link: without a
sandbox, and in the folders of its outputs. A parameter file is cut to the declared keys, value by value as it was
written.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import Any

import yaml

from retrace.errors import RetraceError
from retrace.rebuild.declared import Declared

STRUCTURED = (".yaml", ".yml", ".json")  # DVC reads parameters from other files too: those a stage sees whole


class NotThere(RetraceError):
    """A dependency that a stage declares is not in the tree."""


def make(tree: Path, stage: Declared, view: Path, linked: bool) -> None:
    """Make the view of a stage. Raises `NotThere`."""
    view.mkdir(parents=True)
    for path in stage.dependencies:
        if not (tree / path).exists():
            raise NotThere(
                f"{stage.address} depends on {path}, which is not in {tree}; `retrace data pull` or `dvc repro`"
            )
        place(tree / path, view / path, linked and not _beside_outputs(path, stage))
    for name, keys in stage.parameters.items():
        (view / name).parent.mkdir(parents=True, exist_ok=True)
        whole = not keys or PurePosixPath(name).suffix not in STRUCTURED
        (view / name).write_text((tree / name).read_text() if whole else cut((tree / name).read_text(), keys))
    for path in stage.outputs:
        (view / path).parent.mkdir(parents=True, exist_ok=True)


def _beside_outputs(path: str, stage: Declared) -> bool:
    """Whether a dependency lies in, or holds, a folder that the stage may write to."""
    own = PurePosixPath(path)
    folders = [PurePosixPath(output).parent for output in stage.outputs]
    return any(own.is_relative_to(folder) or folder.is_relative_to(own) for folder in folders)


def place(source: Path, target: Path, linked: bool) -> None:
    """Put a file or folder at `target`, by links or as a copy; what is there already stays."""
    target.parent.mkdir(parents=True, exist_ok=True)
    copy: Any = _link if linked else _copy
    if source.is_dir():
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(source, target, copy_function=copy, ignore=ignored, dirs_exist_ok=True)
    else:
        copy(source, target)


def clear(path: Path) -> None:
    """Remove a file or folder, if it is there."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _link(source: str | Path, target: str | Path) -> None:
    try:
        os.link(source, target)
    except OSError:
        _copy(source, target)


def _copy(source: str | Path, target: str | Path) -> None:
    if not os.path.lexists(target):
        shutil.copy(source, target)


def cut(text: str, keys: Iterable[str]) -> str:
    """A YAML text with these keys (dotted paths) and nothing else; every value stands as it was written."""
    root = yaml.compose(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    wanted: dict[str, Any] = {}
    for key in keys:
        place: dict[str, Any] = wanted
        *parents, last = key.split(".")
        for parent in parents:
            inner = place.setdefault(parent, {})
            if inner is None:  # a parent is declared as a whole
                break
            place = inner
        else:
            place[last] = None
    return str(yaml.serialize(_pruned(root, wanted), Dumper=yaml.SafeDumper, width=1_000_000, allow_unicode=True))


def _copied(node: Any) -> Any:
    """A node without what other places share with it: an anchor must not depend on what was cut off."""
    if isinstance(node, yaml.MappingNode):
        pairs = [(_copied(key), _copied(value)) for key, value in node.value]
        return yaml.MappingNode(node.tag, pairs, flow_style=node.flow_style)
    if isinstance(node, yaml.SequenceNode):
        return yaml.SequenceNode(node.tag, [_copied(item) for item in node.value], flow_style=node.flow_style)
    return yaml.ScalarNode(node.tag, node.value, style=node.style)


def _pruned(node: Any, wanted: dict[str, Any]) -> Any:
    pairs = []
    for key, inner in wanted.items():
        found = _entry(node, key)
        if found is not None:
            pairs.append((_copied(found[0]), _copied(found[1]) if inner is None else _pruned(found[1], inner)))
    style = node.flow_style if isinstance(node, yaml.MappingNode) else None
    return yaml.MappingNode("tag:yaml.org,2002:map", pairs, flow_style=style)


def _entry(node: Any, name: str) -> tuple[Any, Any] | None:
    """A mapping's key and value nodes, from what it merges (`<<`) if it has none itself."""
    if not isinstance(node, yaml.MappingNode):
        return None
    merged: list[Any] = []
    for key, value in node.value:
        if key.value == name:
            return key, value
        if key.tag == "tag:yaml.org,2002:merge":
            merged += value.value if isinstance(value, yaml.SequenceNode) else [value]
    return next((found for inner in merged if (found := _entry(inner, name)) is not None), None)
