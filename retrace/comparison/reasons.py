"""Why each stage had to run: what it reads on one side and not on the other, and from whom that came."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, Literal

from retrace.comparison.changes import changes, tree_changes
from retrace.comparison.code import File, below
from retrace.comparison.content import Content
from retrace.comparison.pipeline import Stage
from retrace.comparison.raw import Data
from retrace.dvcfiles import RAW, overlap
from retrace.environment import PYTHON_VERSION, REQUIREMENTS

ReasonKind = Literal["command", "code", "environment", "parameter", "data", "output", "dependency"]
State = Literal["unchanged", "changed", "depends", "not deterministic", "added", "removed"]


@dataclass(frozen=True)
class Reason:
    """One thing that a stage reads and that differs; `stage` made it, where it is an earlier stage's output.

    An output that a side has not made is None there.
    """

    kind: ReasonKind
    what: str
    before: Any = None
    after: Any = None
    stage: str | None = None


@dataclass(frozen=True)
class StageReasons:
    """Why a stage of B is not the same as A's.

    `changed`: it reads something else. `depends`: it reads what an earlier stage will make anew, which may turn out
    the same. `not deterministic`: it read the same and made something else: `outputs`; `machine` is what differed in
    where it ran. `roots` are what all reasons go back to: nothing that a stage made.
    """

    name: str
    state: State
    reasons: tuple[Reason, ...] = ()
    roots: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()
    machine: tuple[str, ...] = ()


def stage_reasons(a: Content, b: Content, changed: Mapping[str, File]) -> tuple[StageReasons, ...]:
    """Every stage of B in the order in which they run, then those that only A has."""
    before = {stage.name: stage for stage in a.stages}
    found: dict[str, StageReasons] = {}
    makers = {path: stage.name for side in (a, b) for stage in side.stages for path in stage.outputs}
    for stage in b.stages:
        if stage.name not in before:
            found[stage.name] = StageReasons(stage.name, "added")
            continue
        reasons = tuple(_reasons(a, b, before[stage.name], stage, changed, makers, found))
        found[stage.name] = _judged(a, b, before[stage.name], stage, reasons, found)
    kept = {stage.name for stage in b.stages}
    return (*found.values(), *(StageReasons(name, "removed") for name in before if name not in kept))


def _judged(
    a: Content, b: Content, old: Stage, new: Stage, reasons: tuple[Reason, ...], earlier: Mapping[str, StageReasons]
) -> StageReasons:
    if not reasons:
        made = {path: md5 for path, md5 in old.outputs.items() if md5 is not None and new.outputs.get(path) is not None}
        other = tuple(path for path, md5 in made.items() if new.outputs[path] != md5)
        if not other:
            return StageReasons(new.name, "unchanged")
        return StageReasons(new.name, "not deterministic", outputs=other, machine=_machines(a, b, new.name))
    waits = all(reason.kind == "output" and None in (reason.before, reason.after) for reason in reasons)
    return StageReasons(
        new.name, "depends" if waits else "changed", reasons, tuple(dict.fromkeys(_roots(reasons, earlier)))
    )


def _roots(reasons: Iterable[Reason], earlier: Mapping[str, StageReasons]) -> Iterator[str]:
    for reason in reasons:
        if reason.stage is None:
            yield reason.what
            continue
        cause = earlier.get(reason.stage)
        if cause is not None and cause.roots:
            yield from cause.roots
        else:
            yield f"{reason.stage} ({cause.state if cause is not None else 'gone'})"


def _reasons(
    a: Content,
    b: Content,
    old: Stage,
    new: Stage,
    changed: Mapping[str, File],
    makers: Mapping[str, str],
    earlier: Mapping[str, StageReasons],
) -> Iterator[Reason]:
    if old.command != new.command:
        yield Reason("command", "command", old.command, new.command)
    for path in new.dependencies:
        if path not in old.dependencies:
            yield Reason("dependency", path, None, path, _maker(path, makers))
    for path in old.dependencies:
        if path not in new.dependencies:
            yield Reason("dependency", path, path, None, _maker(path, makers))
        else:
            yield from _dependency(a, b, path, changed, makers, earlier)
    for change in tree_changes(old.parameters, new.parameters):
        yield Reason("parameter", change.name, change.before, change.after)


def _dependency(
    a: Content,
    b: Content,
    path: str,
    changed: Mapping[str, File],
    makers: Mapping[str, str],
    earlier: Mapping[str, StageReasons],
) -> Iterator[Reason]:
    """What differs in a dependency that both sides have: an earlier stage's output, raw data, or files in git."""
    outputs = [name for name in makers if overlap(path, name)]
    for name in outputs:
        old, new = (_made(side, name) for side in (a, b))
        if old is None or new is None:
            # Not made on one side. A stage that reads the same makes the same, if it is deterministic.
            differs = makers[name] not in earlier or earlier[makers[name]].state != "unchanged"
        else:
            differs = old != new
        if differs:
            yield Reason("output", name, old, new, makers[name])
    if outputs:
        return
    old_data, new_data = _raw(a.data, path), _raw(b.data, path)
    for change in changes(old_data, new_data):
        yield Reason("data", change.name, change.before, change.after)
    for file in (*below(path, changed), *(name for name in (f"{path}.dvc",) if name in changed)):
        kind: ReasonKind = "environment" if file in (REQUIREMENTS, PYTHON_VERSION) else "code"
        yield Reason("data" if file == f"{path}.dvc" else kind, file)


def _maker(path: str, makers: Mapping[str, str]) -> str | None:
    return next((stage for name, stage in makers.items() if overlap(path, name)), None)


def _made(side: Content, path: str) -> str | None:
    return next((stage.outputs[path] for stage in side.stages if path in stage.outputs), None)


def _raw(data: Data, path: str) -> dict[str, str]:
    """Path -> md5 of the raw data that a dependency is, lies in or holds."""
    place = PurePosixPath(path)
    name = place.relative_to(RAW).parts[:1] if place.is_relative_to(RAW) else ()
    if len(place.parts) > len(PurePosixPath(RAW).parts) + 1:
        partitions = data.datasets[name[0]].partitions if name[0] in data.datasets else ()
        return {partition.path: partition.md5 for partition in partitions if partition.path == path}
    found = {f"{RAW}/{dataset.name}": dataset.md5 for dataset in data.datasets.values()}
    return {known: md5 for known, md5 in found.items() if known == path or known.startswith(f"{path}/")}


def _machines(a: Content, b: Content, stage: str) -> tuple[str, ...]:
    """What differs in the machines that a stage ran on, as its events tell."""
    before, after = (_machine(side.events.get(stage)) for side in (a, b))
    return tuple(f"{change.name} {change.before} -> {change.after}" for change in changes(before, after))


def _machine(told: Mapping[str, Any] | None) -> Mapping[str, Any]:
    return told["run"]["facets"]["retrace"].get("machine", {}) if told is not None else {}
