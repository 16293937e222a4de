"""A stage as one side has it: from the lock of what ran, or as dvc.yaml and params.yaml would have it run."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from retrace.dvcfiles import StageTemplate

_PLACE = re.compile(r"\$\{([^}]*)\}")
_PARAMS = "params.yaml"


@dataclass(frozen=True)
class Stage:
    """What a stage of one model reads and writes; an output's md5 is None where it has not been made."""

    name: str
    command: str
    dependencies: tuple[str, ...]
    parameters: Mapping[str, Any]
    outputs: Mapping[str, str | None]

    @property
    def made(self) -> bool:
        return all(md5 is not None for md5 in self.outputs.values())


def recorded(address: str, entry: Mapping[str, Any]) -> Stage:
    """A stage that ran, by its entry in dvc.lock."""
    return Stage(
        address.partition("@")[0],
        str(entry.get("cmd", "")),
        tuple(str(item["path"]) for item in entry.get("deps", ())),
        dict(entry.get("params", {}).get(_PARAMS, {})),
        {str(item["path"]): item.get("md5") for item in entry.get("outs", ())},
    )


def declared(template: StageTemplate, model: str, params: Any) -> Stage:
    """A stage that is to run, by its template in dvc.yaml."""

    def resolved(texts: Iterable[str]) -> tuple[str, ...]:
        return tuple(_resolve(text, model, params) for text in texts)

    keys = resolved(template.parameters)
    return Stage(
        template.name,
        _resolve(template.command, model, params),
        resolved(template.dependencies),
        {key: _look_up(params, key) for key in keys},
        dict.fromkeys(resolved(template.outputs)),
    )


def with_results(
    stages: Iterable[Stage], entries: Mapping[str, Mapping[str, Any]], model: str, hash_of: Callable[[str], str | None]
) -> tuple[Stage, ...]:
    """Stages that are to run, with the outputs of those that did, by the lock, and of just what they would read now.

    `hash_of` is DVC's name of what lies at a path that no stage makes.
    """
    found: list[Stage] = []
    made: dict[str, str | None] = {}
    for stage in stages:
        entry = entries.get(f"{stage.name}@{model}")
        ran = recorded(stage.name, entry) if entry is not None else None
        if entry is not None and ran is not None and _same(stage, ran):
            read = {str(item["path"]): item.get("md5") for item in entry.get("deps", ())}
            if all(md5 == (made[path] if path in made else hash_of(path)) for path, md5 in read.items()):
                stage = replace(stage, outputs=ran.outputs)
        made |= stage.outputs
        found.append(stage)
    return tuple(found)


def _same(stage: Stage, ran: Stage) -> bool:
    return (stage.command, set(stage.dependencies), stage.parameters, set(stage.outputs)) == (
        ran.command,
        set(ran.dependencies),
        ran.parameters,
        set(ran.outputs),
    )


def _resolve(text: str, model: str, params: Any) -> str:
    """`${key}` is the model and `${item.x}` a key below it, as DVC has them; what is not there stays as it is."""

    def value(found: re.Match[str]) -> str:
        if found[1] == "key":
            return model
        path = f"models.{model}.{found[1].removeprefix('item.')}" if found[1].startswith("item.") else found[1]
        looked_up = _look_up(params, path)
        if isinstance(looked_up, bool):
            return str(looked_up).lower()
        return found[0] if looked_up is None or isinstance(looked_up, dict | list) else str(looked_up)

    return _PLACE.sub(value, text)


def _look_up(tree: Any, key: str) -> Any:
    for name in key.split("."):
        if not isinstance(tree, Mapping):
            return None
        tree = tree.get(name)
    return tree
