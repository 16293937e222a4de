"""What a stage declares, resolved for one model: as a version's dvc.lock has it, or as DVC reads dvc.yaml today."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from retrace.config import Settings
from retrace.dvcfiles import in_order
from retrace.process import Job, run_job
from retrace.workspace import Workspace


@dataclass(frozen=True)
class Declared:
    """A stage of one model: its command line, the paths that it reads and writes, the parameters that it names.

    `parameters` are keys by file. `made` and `read` are, by path, the md5 that the lock records of an output or a
    dependency (`.dir` for a folder); empty where there is no lock.
    """

    address: str
    command: str
    dependencies: tuple[str, ...]
    parameters: Mapping[str, tuple[str, ...]]
    outputs: tuple[str, ...]
    made: Mapping[str, str] = field(default_factory=dict)
    read: Mapping[str, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return self.address.partition("@")[0]


def of_lock(entries: Mapping[str, dict[str, Any]], where: str) -> tuple[Declared, ...]:
    """The stages of a lock (of one model), producers before consumers."""
    return in_order([_of_entry(address, entry) for address, entry in sorted(entries.items())], where)


def _of_entry(address: str, entry: Mapping[str, Any]) -> Declared:
    read = {str(dep["path"]): str(dep["md5"]) for dep in entry.get("deps", ())}
    made = {str(out["path"]): str(out["md5"]) for out in entry.get("outs", ())}
    parameters = {str(name): tuple(map(str, keys)) for name, keys in (entry.get("params") or {}).items()}
    return Declared(address, str(entry["cmd"]), tuple(read), parameters, tuple(made), made, read)


def of_checkout(settings: Settings, checkout: Workspace, log: Path) -> tuple[Declared, ...]:
    """The stages of a checkout's dvc.yaml for every model, as DVC resolves them, producers before consumers."""
    told = run_job(settings, Job("dvc.yaml", checkout, {"operation": "declare"}, log))["stages"]
    found = [
        Declared(
            stage["address"],
            stage["command"],
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
