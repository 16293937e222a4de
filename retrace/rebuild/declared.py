"""What a stage declares, resolved for one model: as a version's dvc.lock has it, or as DVC reads dvc.yaml today."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from retrace.config import Settings
from retrace.dvcfiles import PipelineError, StageTemplate, in_order
from retrace.process import Job, run_job
from retrace.workspace import Workspace


@dataclass(frozen=True)
class Declared:
    """A stage of one model: its command line, the paths that it reads and writes, the parameters that it names.

    `parameters` are keys by file. `made` and `read` are, by path, the md5 that the lock records of an output or a
    dependency (`.dir` for a folder), `values` what it records of the parameters; empty where there is no lock. Raises
    `PipelineError` for a path that leads out of the repository, which a rebuild can neither have nor may write to.
    """

    address: str
    command: str
    dependencies: tuple[str, ...]
    parameters: Mapping[str, tuple[str, ...]]
    outputs: tuple[str, ...]
    made: Mapping[str, str] = field(default_factory=dict)
    read: Mapping[str, str] = field(default_factory=dict)
    values: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if "/" in self.address:
            raise PipelineError(f"{self.address!r} is no name of a stage")
        for path in (*self.dependencies, *self.parameters, *self.outputs):
            parts = PurePosixPath(path).parts
            if not parts or parts[0] in ("/", ".git") or ".." in parts:
                raise PipelineError(f"{self.address} names {path!r}, which is not a path inside the repository")

    @property
    def name(self) -> str:
        return self.address.partition("@")[0]


def of_lock(entries: Mapping[str, dict[str, Any]], where: str) -> tuple[Declared, ...]:
    """The stages of a lock (of one model), producers before consumers. Raises `PipelineError`."""
    found = []
    for address, entry in sorted(entries.items()):
        try:
            found.append(_of_entry(address, entry))
        except (AttributeError, KeyError, TypeError):
            raise PipelineError(f"{where}: the entry of {address} is not one that DVC wrote") from None
    return in_order(found, where)


def _command(lines: str | list[str]) -> str:
    """One command line, of what may be several in dvc.yaml: each in a shell of its own, up to the first that fails."""
    return lines if isinstance(lines, str) else " && ".join(f"({line})" for line in lines)


def _of_entry(address: str, entry: Mapping[str, Any]) -> Declared:
    read = {str(dep["path"]): str(dep["md5"]) for dep in entry.get("deps", ())}
    made = {str(out["path"]): str(out["md5"]) for out in entry.get("outs", ())}
    values = {str(name): {str(key): value for key, value in kept.items()} for name, kept in _params(entry).items()}
    parameters = {name: tuple(kept) for name, kept in values.items()}
    return Declared(address, _command(entry["cmd"]), tuple(read), parameters, tuple(made), made, read, values)


def _params(entry: Mapping[str, Any]) -> Mapping[str, Mapping[str, Any]]:
    return entry.get("params") or {}


def of_template(template: StageTemplate, model: str) -> Declared:
    """A stage of dvc.yaml with the model's name filled in: all that most need, and without DVC, which is slow to start.

    Any other expression stays as it is written; so do several commands, and parameters of other files are left out.
    """

    def filled(texts: Iterable[str]) -> tuple[str, ...]:
        return tuple(text.replace("${key}", model) for text in texts)

    parameters = {"params.yaml": filled(template.parameters)} if template.parameters else {}
    (command,) = filled([template.command])
    return Declared(
        template.address(model), command, filled(template.dependencies), parameters, filled(template.outputs)
    )


def of_checkout(settings: Settings, checkout: Workspace, log: Path) -> tuple[Declared, ...]:
    """The stages of a checkout's dvc.yaml for every model, as DVC resolves them, producers before consumers."""
    told = run_job(settings, Job("dvc.yaml", checkout, {"operation": "declare"}, log))["stages"]
    found = [
        Declared(
            stage["address"],
            _command(stage["command"]),
            tuple(stage["dependencies"]),
            {name: tuple(keys) for name, keys in stage["parameters"].items()},
            tuple(stage["outputs"]),
        )
        for stage in told
    ]
    return in_order(sorted(found, key=lambda stage: stage.address), "dvc.yaml")


def outputs_of(stages: Iterable[Declared]) -> set[str]:
    """Every path that one of the stages writes."""
    return {path for stage in stages for path in stage.outputs}
