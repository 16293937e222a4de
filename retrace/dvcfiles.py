"""What dvc.yaml, dvc.lock and the .dvc pointers say, read as data: stages of a model, hashes of what they made.

DVC itself resolves and runs the stages; here is only what must be known without a checkout: the order of the tasks,
which outputs belong to a model, and the md5 of each.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

import yaml

from retrace import yaml12
from retrace.config import ConfigError, Params
from retrace.errors import RetraceError

LOCK = "dvc.lock"
RAW = "data/raw"
_EACH_MODEL = "${models}"


class PipelineError(RetraceError):
    """dvc.yaml or dvc.lock is not of the form that Retrace runs."""


@dataclass(frozen=True)
class StageTemplate:
    """A stage of dvc.yaml, written once for all models; `${key}` in its paths stands for the model."""

    name: str
    command: str
    dependencies: tuple[str, ...]
    outputs: tuple[str, ...]
    uncached: tuple[str, ...]
    parameters: tuple[str, ...] = ()

    def address(self, model: str) -> str:
        return f"{self.name}@{model}"


def _load(text: str, where: str) -> dict[str, Any]:
    try:
        tree = yaml12.load(text) or {}
    except yaml.YAMLError as error:
        raise PipelineError(f"{where} is not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(tree, dict):
        raise PipelineError(f"{where} must be a mapping")
    return tree


def _path_of(item: object) -> tuple[str, Mapping[str, Any]]:
    if isinstance(item, Mapping):
        path, flags = next(iter(item.items()))
        return str(path), flags if isinstance(flags, Mapping) else {}
    return str(item), {}


def stages(text: str, where: str = "dvc.yaml") -> tuple[StageTemplate, ...]:
    """The stages of dvc.yaml, producers before consumers. Raises `PipelineError`."""
    found = []
    for name, body in _load(text, where).get("stages", {}).items():
        if not isinstance(body, Mapping) or body.get("foreach") != _EACH_MODEL:
            raise PipelineError(
                f"{where}: stage {name!r} is not written for every model; give it `foreach: {_EACH_MODEL}` and `do:`"
            )
        do = body.get("do") or {}
        outputs = [_path_of(item) for kind in ("outs", "metrics", "plots") for item in do.get(kind, ())]
        found.append(
            StageTemplate(
                name=str(name),
                command=str(do.get("cmd", "")),
                dependencies=tuple(_path_of(item)[0] for item in do.get("deps", ())),
                outputs=tuple(path for path, _ in outputs),
                uncached=tuple(path for path, flags in outputs if flags.get("cache") is False),
                parameters=tuple(_parameters(do.get("params", ()))),
            )
        )
    if not found:
        raise PipelineError(f"{where} has no stages")
    return in_order(found, where)


def _parameters(items: Iterable[object]) -> Iterator[str]:
    """The keys of params.yaml that a stage names; those of other files are DVC's affair."""
    for item in items:
        if isinstance(item, Mapping):
            yield from (str(key) for key in item.get("params.yaml") or ())
        else:
            yield str(item)


def check_parameters(params: Params, templates: Iterable[StageTemplate], where: str) -> None:
    """Refuse a key of a model that no stage names: a slip, or a parameter whose change nothing would notice.

    Raises `ConfigError`.
    """
    named = {parameter for template in templates for parameter in template.parameters}
    prefix = "models.${key}"
    if prefix in named:
        return
    known = {name.removeprefix(f"{prefix}.").partition(".")[0] for name in named if name.startswith(f"{prefix}.")}
    for model, settings in params.models.items():
        for key in settings.model_extra or ():
            if key not in known:
                raise ConfigError(
                    f"{where}: models.{model}.{key}: unknown key, neither Retrace's nor under `params` of a stage in "
                    "dvc.yaml; correct its spelling or declare it there"
                )


class Step(Protocol):
    """What is put in order: it reads paths and writes paths."""

    @property
    def name(self) -> str: ...
    @property
    def dependencies(self) -> tuple[str, ...]: ...
    @property
    def outputs(self) -> tuple[str, ...]: ...


_Step = TypeVar("_Step", bound=Step)


def in_order(found: Iterable[_Step], where: str) -> tuple[_Step, ...]:
    """Producers before consumers, else as given. Raises `PipelineError` for stages that wait for each other."""
    ordered: list[_Step] = []
    waiting = list(found)
    while waiting:
        pending = {path for stage in waiting for path in stage.outputs}
        ready = next((stage for stage in waiting if not _needs(stage, pending - set(stage.outputs))), None)
        if ready is None:
            raise PipelineError(f"{where}: the stages {', '.join(stage.name for stage in waiting)} wait for each other")
        ordered.append(ready)
        waiting.remove(ready)
    return tuple(ordered)


def _needs(stage: Step, outputs: Iterable[str]) -> bool:
    return any(overlap(dependency, output) for dependency in stage.dependencies for output in outputs)


def overlap(path: str, other: str, separator: str = "/") -> bool:
    """Whether one of two paths is, lies in or holds the other; of parameters' keys the separator is a dot."""
    return path == other or path.startswith(other + separator) or other.startswith(path + separator)


def lock_entries(text: bytes | None, where: str = LOCK) -> dict[str, dict[str, Any]]:
    """Stage address -> its entry in dvc.lock; empty for a missing lock."""
    if text is None:
        return {}
    entries = _load(text.decode(), where).get("stages", {})
    return dict(entries) if isinstance(entries, Mapping) else {}


def entries_of(entries: Mapping[str, dict[str, Any]], model: str) -> dict[str, dict[str, Any]]:
    """The part of a lock that belongs to one model."""
    return {address: entry for address, entry in entries.items() if address.endswith(f"@{model}")}


def lock_text(entries: Mapping[str, dict[str, Any]]) -> bytes:
    """A dvc.lock with these entries, in the order in which DVC writes them."""
    body = {"schema": "2.0", "stages": dict(sorted(entries.items()))}
    return yaml12.dump(body).encode()


def output_md5s(entries: Mapping[str, dict[str, Any]]) -> dict[str, str]:
    """Path -> md5 (directories end in `.dir`) of every output in a lock."""
    return {str(out["path"]): str(out["md5"]) for entry in entries.values() for out in entry.get("outs", ())}


def object_path(store: Path, md5: str) -> Path:
    """Where a cache, or a remote that is a folder, keeps the object of this name."""
    return store / "files/md5" / md5[:2] / md5[2:]


def pointer_md5(text: bytes, where: str) -> str:
    """The md5 that a .dvc file records for its single output."""
    outputs = _load(text.decode(), where).get("outs") or [{}]
    if "md5" not in outputs[0]:
        raise PipelineError(f"{where} records no md5")
    return str(outputs[0]["md5"])
