"""The record: all that a version is made of, read from its commit alone. No remote, MLflow or Airflow is asked."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Any

from retrace import manifest, versions, yaml12
from retrace.dvcfiles import LOCK, RAW, entries_of, lock_entries, pointer_md5
from retrace.environment import EnvironmentLock
from retrace.git import Git, GitError
from retrace.lineage import event
from retrace.register import snapshot_facts
from retrace.versions import Version


@dataclass(frozen=True)
class RawDataset:
    """A raw dataset as a version saw it."""

    name: str
    md5: str
    partitions: tuple[manifest.Partition, ...]

    @property
    def rows(self) -> int:
        return sum(partition.rows for partition in self.partitions)


@dataclass(frozen=True)
class StageRecord:
    """How one stage made its outputs: the facts of its event."""

    name: str
    run_id: str
    started: str
    ended: str
    facts: dict[str, Any]

    @property
    def files(self) -> list[dict[str, Any]]:
        """Every file that the stage made: path, md5, sha256, size in bytes."""
        return [file for output in self.facts["outputs"] for file in output["files"]]


@dataclass(frozen=True)
class Record:
    """All that a version is made of."""

    version: Version
    aliases: tuple[str, ...]
    code: str
    data: str
    datasets: tuple[RawDataset, ...]
    parameters: dict[str, Any]
    environment: str
    python: str
    packages: tuple[str, ...]
    stages: tuple[StageRecord, ...]
    metrics: dict[str, Any]
    lock: dict[str, dict[str, Any]]

    @property
    def parameters_digest(self) -> str:
        """sha256 of the model's parameters as sorted JSON."""
        return hashlib.sha256(json.dumps(self.parameters, sort_keys=True, default=str).encode()).hexdigest()

    def files(self) -> dict[str, dict[str, Any]]:
        """Path -> {md5, sha256, size} of every file that the version's stages made."""
        return {file["path"]: file for stage in self.stages for file in stage.files}

    def outputs(self) -> dict[str, str]:
        """Output path -> md5 as in dvc.lock; a directory's ends in `.dir`."""
        return {str(out["path"]): str(out["md5"]) for entry in self.lock.values() for out in entry["outs"]}

    def as_dict(self) -> dict[str, Any]:
        """The record as JSON can hold it."""
        return {
            "version": self.version.name,
            "created": self.version.created.isoformat(),
            "commit": self.version.commit,
            "tag": self.version.tag_object,
            "aliases": list(self.aliases),
            "run": {"id": self.version.run_id, "ref": self.version.run_ref},
            "code": self.code,
            "data": {
                "commit": self.data,
                "through": self.version.through.isoformat() if self.version.through else None,
                "datasets": [
                    {
                        "name": dataset.name,
                        "md5": dataset.md5,
                        "rows": dataset.rows,
                        "partitions": [vars(partition) for partition in dataset.partitions],
                    }
                    for dataset in self.datasets
                ],
            },
            "parameters": {"sha256": self.parameters_digest, "values": self.parameters},
            "environment": {"sha256": self.environment, "python": self.python, "packages": list(self.packages)},
            "stages": [
                {"name": stage.name, "lineageRunId": stage.run_id, "started": stage.started, "ended": stage.ended}
                | {key: stage.facts[key] for key in ("commit", "machine", "attempt", "inputs", "outputs")}
                for stage in self.stages
            ],
            "metrics": self.metrics,
        }


def read_record(git: Git, version: Version) -> Record:
    """Read a version's record from its commit. Raises `GitError` when the commit lacks what every version has."""
    model, commit = version.model, version.commit
    facts = snapshot_facts(git, commit, model)
    lock = entries_of(lock_entries(git.read(commit, LOCK)), model)
    parameters = _parameters(git, commit, model)
    environment = EnvironmentLock.of_commit(git, commit)
    metrics = git.read(commit, f"metrics/{model}.json")
    return Record(
        version=version,
        aliases=tuple(versions.aliases_of(git, version)),
        code=facts["code"],
        data=facts["data"],
        datasets=_datasets(git, commit, parameters),
        parameters=parameters,
        environment=environment.digest,
        python=environment.python,
        packages=environment.packages,
        stages=_stages(git, commit, model, lock),
        metrics=json.loads(metrics) if metrics else {},
        lock=lock,
    )


def _parameters(git: Git, commit: str, model: str) -> dict[str, Any]:
    text = git.read(commit, "params.yaml")
    models = (yaml12.load(text.decode()) or {}).get("models", {}) if text else {}
    if model not in models:
        raise GitError(f"commit {commit[:8]} has no params.yaml with {model}: it is not a version of that model")
    return dict(models[model])


def _datasets(git: Git, commit: str, parameters: dict[str, Any]) -> tuple[RawDataset, ...]:
    found = []
    for name in parameters["datasets"]:
        pointer, rows = git.read(commit, f"{RAW}/{name}.dvc"), git.read(commit, f"{RAW}/{name}.manifest")
        if pointer is None or rows is None:
            raise GitError(f"commit {commit[:8]} lacks {RAW}/{name}.dvc or its manifest")
        partitions = manifest.parse_manifest(rows.decode(), f"{RAW}/{name}.manifest of {commit[:8]}")
        found.append(RawDataset(name, pointer_md5(pointer, f"{RAW}/{name}.dvc"), partitions))
    return tuple(found)


def _stages(git: Git, commit: str, model: str, lock: dict[str, dict[str, Any]]) -> tuple[StageRecord, ...]:
    names = [address.partition("@")[0] for address in lock]
    contents = git.read_many([f"{commit}:{event.path(model, name)}" for name in names])
    found = []
    for name, content in zip(names, contents, strict=True):
        if content is None:
            raise GitError(
                f"commit {commit[:8]} lacks {event.path(model, name)}: it is not a version that Retrace made"
            )
        told = json.loads(content)
        facts = told["run"]["facets"]["retrace"]
        found.append(StageRecord(name, told["run"]["runId"], facts["startedAt"], told["eventTime"], facts))
    return tuple(sorted(found, key=lambda stage: stage.started))
