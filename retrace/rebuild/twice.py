"""A stage run twice, the second time with all changed that must not matter: what it reads undeclared, what differs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from retrace.hashing import oid_of
from retrace.rebuild.conditions import varied
from retrace.rebuild.culprits import culprits
from retrace.rebuild.declared import Declared
from retrace.rebuild.stage import Outcome, Surroundings, run

_SAID = 300


def run_twice(tree: Path, stage: Declared, around: Surroundings) -> tuple[Outcome, list[str]]:
    """The first run, and what was found of the stage, in words; nothing for one that is as it should be."""
    first = run(tree, stage, around)
    named = dict.fromkeys((*first.undeclared, *culprits(first.said, tree, stage)))
    found = [f"{stage.address} {text}" for text in named]
    if first.code != 0:
        return first, [*found, f"{stage.address} ends with code {first.code}: {first.said[:_SAID]}"]
    conditions = varied(around.kind)
    second = run(tree, stage, replace(around, conditions=conditions))
    if second.code != 0:
        changed = ", ".join(conditions.names)
        said = f"{stage.address} ends with code {second.code} where another {changed} is set: {second.said[:_SAID]}"
        return first, [*found, said]
    differing = [path for path in stage.outputs if _oid(first.view / path) != _oid(second.view / path)]
    found += [f"{stage.address} is not deterministic: {path} has other bytes when it runs again" for path in differing]
    return first, found


def _oid(path: Path) -> str | None:
    return oid_of(path) if path.exists() else None
