"""What was made again against what the record says: files by their hashes, metrics by their values."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import yaml

from retrace import yaml12
from retrace.dvcfiles import pointer_md5
from retrace.hashing import FileHash, directory_oid, hash_file, oid_of
from retrace.rebuild.declared import Declared
from retrace.rebuild.view import STRUCTURED

DIGITS = 6  # to which metrics are rounded: another processor may change what comes after


@dataclass(frozen=True)
class Departure:
    """An output that did not come out as recorded; of a folder, the files that differ."""

    path: str
    recorded: str
    found: str
    files: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        return {"path": self.path, "recorded": self.recorded, "found": self.found, "files": list(self.files)}


def departures(stage: Declared, made: Path, recorded: Mapping[str, Mapping[str, Any]]) -> list[Departure]:
    """The outputs below `made` whose hash is not the lock's, or a file of which has another sha256.

    `recorded` is, by file path, what the stage's event says: {md5, sha256, size}.
    """
    found = []
    for path, wanted in stage.made.items():
        place = made / path
        if not place.exists():
            found.append(Departure(path, wanted, "not made", ()))
            continue
        hashes = _hashes(place)
        oid = hashes[""].md5 if "" in hashes else directory_oid({name: file.md5 for name, file in hashes.items()})
        files = _differing({f"{path}/{name}".rstrip("/"): file for name, file in hashes.items()}, path, recorded)
        if oid != wanted or files:
            found.append(Departure(path, wanted, oid, files))
    return found


def _hashes(place: Path) -> dict[str, FileHash]:
    """Every file below a folder by its relative path; a file itself under the empty one."""
    if place.is_file():
        return {"": hash_file(place)}
    files = [item for item in place.rglob("*") if item.is_file()]
    return {item.relative_to(place).as_posix(): hash_file(item) for item in files}


def _differing(here: Mapping[str, FileHash], path: str, recorded: Mapping[str, Mapping[str, Any]]) -> tuple[str, ...]:
    told = {name for name in recorded if name == path or name.startswith(f"{path}/")}
    changed = {name for name in here.keys() & told if here[name].sha256 != recorded[name]["sha256"]}
    return tuple(sorted(changed | (here.keys() ^ told if told else set())))


def contradictions(tree: Path, stages: Sequence[Declared], facts: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Where a commit contradicts itself: its dvc.lock against its files, its params.yaml and its stages' events.

    DVC and Retrace write all of them at once; who finds one here finds what somebody edited by hand.
    """
    made = {path: md5 for stage in stages for path, md5 in stage.made.items()}
    found = []
    for stage in stages:
        told = facts[stage.name]
        known = {str(output["path"]): str(output["md5"]) for output in told["outputs"]}
        for path in {**stage.made, **known}:
            locked, event = stage.made.get(path, "none"), known.get(path, "none")
            if locked != event:
                found.append(f"dvc.lock has md5 {locked} for {path} of {stage.address}, the stage's event has {event}")
        for path, md5 in stage.read.items():
            here = made.get(path) or _in_commit(tree, path)
            if here not in (None, md5):
                found.append(f"dvc.lock says that {stage.address} read {path} with md5 {md5}; here it is {here}")
        found += _other_inputs(tree, stage, [str(file["path"]) for file in told["inputs"]])
        for name in stage.parameters:
            found += _changed_parameters(tree, name, stage, told["parameters"] if name == "params.yaml" else None)
    return found


def _other_inputs(tree: Path, stage: Declared, files: Sequence[str]) -> Iterator[str]:
    """What the lock says that a stage read, against the files of its event. Of data that comes from elsewhere the event
    has more than the stage read: the whole folder of which it is a part."""
    for path, md5 in stage.read.items():
        if md5 != directory_oid({}) and not any(_lies_in(file, path) for file in files):
            yield f"dvc.lock says that {stage.address} read {path}, of which the stage's event has nothing"
    for file in files:
        if (tree / file).is_file() and not any(_lies_in(file, path) for path in (*stage.read, *stage.parameters)):
            yield _not_among_inputs(stage, file)


def _lies_in(file: str, path: str) -> bool:
    return PurePosixPath(file).is_relative_to(path)


def _not_among_inputs(stage: Declared, path: str) -> str:
    return f"dvc.lock does not have {path} among what {stage.address} read"


def other_than_declared(stages: Iterable[Declared], declared: Iterable[Declared]) -> list[str]:
    """Where a commit's dvc.lock has another command than its dvc.yaml, or lacks what that names.

    More than that it may have: DVC runs nothing again for a stage, a dependency or a parameter that was taken out.
    """
    wanted = {stage.address: stage for stage in declared}
    found = []
    for stage in stages:
        own = wanted.get(stage.address, stage)
        if own.command != stage.command:
            found.append(f"dvc.lock says that {stage.address} ran {stage.command!r}; dvc.yaml has {own.command!r}")
        found += [_not_among_inputs(stage, path) for path in own.dependencies if path not in stage.read]
        found += [
            f"dvc.lock does not have {lacking} among the parameters of {stage.address}"
            for name, keys in own.parameters.items()
            for lacking in _lacking(name, keys, stage)
        ]
    return found


def _lacking(name: str, keys: Sequence[str], stage: Declared) -> list[str]:
    """Of the keys of a parameter file (none: the whole file) those that a stage of the lock does not have."""
    if name not in stage.parameters:
        return [name]
    return [f"{key} of {name}" for key in keys if key not in stage.parameters[name]]


def _in_commit(tree: Path, path: str) -> str | None:
    """The md5 of what a checkout of git alone has under a path: a file, or a pointer to data."""
    pointer = tree / f"{path}.dvc"
    if pointer.is_file():
        return pointer_md5(pointer.read_bytes(), f"{path}.dvc")
    return oid_of(tree / path) if (tree / path).is_file() else None


def _changed_parameters(tree: Path, name: str, stage: Declared, recorded: Mapping[str, Any] | None) -> Iterator[str]:
    """The parameters of a file that are not what the lock says or, where an event has them too, what that does."""
    if not (tree / name).is_file():
        yield f"{stage.address} ran with parameters of {name}, which its commit does not have"
        return
    if PurePosixPath(name).suffix not in STRUCTURED:
        return  # TOML or Python: DVC's affair
    try:
        values = yaml12.load((tree / name).read_text())
    except (yaml.YAMLError, UnicodeDecodeError):
        yield f"{stage.address} ran with parameters of {name}, which is not YAML in its commit"
        return
    told = [stage.values[name], *([recorded] if recorded is not None else [])]
    for key in dict.fromkeys(key for values_told in told for key in values_told):
        here = _text(_look_up(values, key))
        if any(_text(values_told.get(key)) != here for values_told in told):
            yield f"{stage.address} ran with another {key} than {name} of its commit has"


def _look_up(tree: Any, key: str) -> Any:
    """The value under a dotted key, in a list by its number; None where there is none."""
    for part in key.split("."):
        if isinstance(tree, list) and part.isdecimal() and int(part) < len(tree):
            tree = tree[int(part)]
        else:
            tree = tree.get(part) if isinstance(tree, Mapping) else None
    return tree


def _text(value: Any) -> str:
    return json.dumps(value, sort_keys=True, default=str)  # a date, say, which no event can hold


@dataclass(frozen=True)
class MetricChange:
    """A metric before and now; None where there is none."""

    name: str
    recorded: float | None
    found: float | None

    @property
    def text(self) -> str:
        if self.recorded is None or self.found is None:
            return f"{self.name} {_shown(self.recorded)} -> {_shown(self.found)}"
        return f"{self.name} {self.recorded:.{DIGITS}g} -> {self.found:.{DIGITS}g} ({self.found - self.recorded:+.3g})"


def _shown(value: float | None) -> str:
    return "none" if value is None else f"{value:.{DIGITS}g}"


def metric_changes(recorded: bytes | None, found: bytes | None) -> list[MetricChange]:
    """The metrics that differ after rounding, of two metrics files; all of them when one is not there or no JSON."""
    sound = [content if content is not None and is_json(content) else b"{}" for content in (recorded, found)]
    before, now = (_numbers(json.loads(content)) for content in sound)
    changes = [MetricChange(name, before.get(name), now.get(name)) for name in sorted(before.keys() | now.keys())]
    return [change for change in changes if _rounded(change.recorded) != _rounded(change.found)]


def is_json(content: bytes) -> bool:
    """Whether a file is whole JSON; a program that ended too early may leave half of it."""
    try:
        json.loads(content)
    except ValueError:
        return False
    return True


def _rounded(value: float | None) -> float | str | None:
    return None if value is None else "nan" if math.isnan(value) else round(value, DIGITS)


def _numbers(tree: Any, prefix: str = "") -> dict[str, float]:
    if isinstance(tree, dict):
        return {
            name: value
            for key, inner in tree.items()
            for name, value in _numbers(inner, f"{prefix}.{key}" if prefix else str(key)).items()
        }
    return {prefix: float(tree)} if isinstance(tree, int | float) else {}
