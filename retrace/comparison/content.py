"""What both sides hold, read from git in few processes: nothing here is compared yet."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

import yaml

from retrace import yaml12
from retrace.comparison.pipeline import Stage, declared, recorded, with_results
from retrace.comparison.raw import Data, raw_data, raw_paths
from retrace.comparison.sides import Side
from retrace.config import ConfigError, UnknownModel, check_name
from retrace.dvcfiles import LOCK, RAW, PipelineError, StageTemplate, entries_of, lock_entries, pointer_md5, stages
from retrace.environment import PYTHON_VERSION, REQUIREMENTS, EnvironmentLock
from retrace.git import Git, GitError
from retrace.hashing import directory_oid, md5_of
from retrace.lineage import event
from retrace.runs import SNAPSHOT

_RAW = PurePosixPath(RAW)
_STAGE_NAME = re.compile(r"[\w-]+", re.ASCII)


@dataclass(frozen=True)
class Content:
    """All that a side holds of one model. `metrics` and `holdout` are None for a side that is not trained.

    `edited` is a working copy with changes that are not committed; results are none.
    """

    side: Side
    code: str
    parameters: Mapping[str, Any]
    templates: tuple[StageTemplate, ...]
    stages: tuple[Stage, ...]
    data: Data
    environment: EnvironmentLock
    metrics: Mapping[str, Any] | None
    holdout: Any
    events: Mapping[str, Mapping[str, Any]] = field(repr=False)
    edited: bool = False

    @property
    def trained(self) -> bool:
        return self.side.version is not None or all(stage.made for stage in self.stages)


@dataclass(frozen=True)
class _Files:
    """The files of a side that are known by name."""

    side: Side
    model: str
    found: Mapping[str, bytes | None]

    @property
    def where(self) -> str:
        return f"of {self.side.name}"

    def text(self, path: str) -> str:
        """Raises `GitError`."""
        content = self.found[path]
        if content is None:
            raise GitError(f"{self.side.name} has no {path}: it is no commit of this project's code")
        try:
            return content.decode()
        except UnicodeDecodeError:
            raise GitError(f"{path} {self.where} is not UTF-8 text") from None

    def json(self, path: str) -> Any:
        """What a JSON file says, None without it. Raises `GitError`."""
        content = self.found[path]
        return None if content is None else self.parsed(content, path)

    def result(self, path: str, made: Mapping[str, str | None]) -> Any:
        """The same of a stage's output, if the file is the one that the stage made."""
        content = self.found[path]
        recorded = content is not None and made.get(path) in (None, md5_of(content))
        return self.json(path) if recorded else None

    def parsed(self, content: bytes, what: str) -> Any:
        """Raises `GitError`."""
        try:
            return json.loads(content)
        except ValueError:
            raise GitError(f"{what} {self.where} is not JSON; the stage that writes it must be mended") from None


def read_both(git: Git, model: str, a: Side, b: Side) -> tuple[Content, Content]:
    """What two sides hold. Raises `GitError`, `ConfigError`, `PipelineError`, `ManifestError`, `NoData`."""
    names = ["params.yaml", "dvc.yaml", LOCK, REQUIREMENTS, PYTHON_VERSION]
    names += [f"metrics/{model}.json", f"reports/{model}/holdout.json", event.path(model, SNAPSHOT)]
    contents = iter(git.read_many([f"{side.tree}:{name}" for side in (a, b) for name in names]))
    first, second = (_Files(side, model, {name: next(contents) for name in names}) for side in (a, b))
    texts = {file.text("params.yaml"): file.where for file in (first, second)}
    params = {text: _params(text, where) for text, where in texts.items()}
    pipelines = {file.text("dvc.yaml"): file.where for file in (first, second)}
    templates = {text: _templates(text, where) for text, where in pipelines.items()}

    def content(file: _Files) -> Content:
        return _content(git, file, params[file.text("params.yaml")], templates[file.text("dvc.yaml")])

    return content(first), content(second)


def _params(text: str, where: str) -> Any:
    try:
        return yaml12.load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"params.yaml {where} is not YAML: {' '.join(str(error).split())}") from None


def _templates(text: str, where: str) -> tuple[StageTemplate, ...]:
    found = stages(text, f"dvc.yaml {where}")
    for template in found:
        if not _STAGE_NAME.fullmatch(template.name):
            raise PipelineError(
                f"dvc.yaml {where}: {template.name[:40]!r} is no name of a stage; use letters and digits"
            )
    return found


def _content(git: Git, files: _Files, params: Any, templates: tuple[StageTemplate, ...]) -> Content:
    side, model = files.side, files.model
    parameters = _parameters(params, model, files.where)
    snapshot = files.json(event.path(model, SNAPSHOT))
    facts = snapshot["run"]["facets"]["retrace"] if snapshot is not None else {}
    wanted = [declared(template, model, params) for template in templates]
    names = _dataset_names(parameters, wanted, files.where)
    jobs = {template.name: f"{side.tree}:{event.path(model, template.name)}" for template in templates}
    pointers = [f"{side.tree}:{path}" for path in raw_paths(names)]
    contents = git.read_many([*pointers, *jobs.values()])
    told = zip(jobs, contents[len(pointers) :], strict=True)
    data = raw_data(git, side, names, contents[: len(pointers)], facts)
    entries = entries_of(lock_entries(files.found[LOCK], f"{LOCK} {files.where}"), model)
    known = _stages(git, side, model, wanted, entries, data)
    made = {path: md5 for stage in known for path, md5 in stage.outputs.items()}
    trained = side.version is not None or None not in made.values()
    return Content(
        side=side,
        code=str(facts.get("code") or side.commit) if side.version is not None else side.commit,
        parameters=parameters,
        templates=templates,
        stages=known,
        data=data,
        environment=EnvironmentLock(files.text(PYTHON_VERSION).strip(), files.text(REQUIREMENTS).encode()),
        metrics=files.result(f"metrics/{model}.json", made) if trained else None,
        holdout=files.result(f"reports/{model}/holdout.json", made) if trained else None,
        events={job: files.parsed(content, f"the event of {job}") for job, content in told if content is not None},
    )


def _parameters(params: Any, model: str, where: str) -> Mapping[str, Any]:
    models = params.get("models") if isinstance(params, Mapping) else None
    own = models.get(model) if isinstance(models, Mapping) else None
    if not isinstance(own, Mapping):
        raise UnknownModel(f"params.yaml {where} has no model {model!r}, so there is nothing to compare with")
    return own


def _dataset_names(parameters: Mapping[str, Any], wanted: Iterable[Stage], where: str) -> list[str]:
    """The datasets that the model names, and those that its stages read."""
    own = parameters.get("datasets") or []
    if not isinstance(own, list):
        raise ConfigError(f"params.yaml {where}: the datasets of a model are a list, such as [flights, weather]")
    read = (PurePosixPath(path) for stage in wanted for path in stage.dependencies)
    named = [place.relative_to(RAW).parts[0] for place in read if place.is_relative_to(RAW) and place != _RAW]
    try:
        return list(dict.fromkeys(check_name(str(name)) for name in (*own, *named)))
    except ValueError as error:
        raise ConfigError(f"the datasets of the model in params.yaml and dvc.yaml {where}: {error}") from None


def _stages(
    git: Git,
    side: Side,
    model: str,
    wanted: Sequence[Stage],
    entries: Mapping[str, Mapping[str, Any]],
    data: Data,
) -> tuple[Stage, ...]:
    """A version's stages are what its lock says; another side's results count where they are of what it holds now."""
    if side.version is not None:
        ran = {stage.name: stage for stage in (recorded(*item) for item in entries.items())}
        return tuple(ran.get(stage.name, stage) for stage in wanted)
    if not entries:
        return tuple(wanted)
    blobs = git.files(side.tree)
    return with_results(wanted, entries, model, lambda path: _hash_of(git, blobs, data, path))


def _hash_of(git: Git, blobs: Mapping[str, str], data: Data, path: str) -> str | None:
    """DVC's name of what lies at a path: raw data, what another .dvc file points to, a file or folder in git."""
    place = PurePosixPath(path)
    if place.parent == _RAW and place.name in data.datasets:
        return data.datasets[place.name].md5
    for dataset in data.datasets.values():
        for partition in dataset.partitions:
            if partition.path == path:
                return partition.md5
    if f"{path}.dvc" in blobs:
        return pointer_md5(git.read_many([blobs[f"{path}.dvc"]])[0] or b"", f"{path}.dvc")
    below = {name: blob for name, blob in blobs.items() if name == path or name.startswith(f"{path}/")}
    contents = git.read_many(list(below.values()))
    hashes = {name: md5_of(content or b"") for name, content in zip(below, contents, strict=True)}
    if path in hashes:
        return hashes[path]
    return directory_oid({name.removeprefix(f"{path}/"): md5 for name, md5 in hashes.items()}) if hashes else None
