"""A version made again: its commit, its environment, its raw data from the remote, stage by stage, output by output.

Nothing of the past is touched: the rebuild has a checkout of its own, takes nothing from this machine's cache and puts
nothing there, and writes no ref.
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from retrace import dvcfiles, environment, machine
from retrace.config import Settings
from retrace.dvcfiles import PipelineError
from retrace.environment import EnvironmentFailed, EnvironmentLock
from retrace.errors import RetraceError
from retrace.git import Mirror
from retrace.lineage.hide import hide
from retrace.lineage.project import places
from retrace.rebuild import compare, raw
from retrace.rebuild.compare import Departure, MetricChange
from retrace.rebuild.conditions import Conditions
from retrace.rebuild.culprits import culprits
from retrace.rebuild.declared import Declared, of_checkout, of_lock, of_template, outputs_of
from retrace.rebuild.sandbox import Kind
from retrace.rebuild.stage import Outcome, Surroundings, run, take_over
from retrace.rebuild.view import clear
from retrace.record import Record, read_record
from retrace.versions import Version
from retrace.workspace import Workspace

_TIMEOUT_MINUTES = 60.0
Follow = Callable[[str, str], None]  # a step, and what is to be told of it


@dataclass(frozen=True)
class StageOutcome:
    """A stage made again: what departs from the record, and why it failed if it did."""

    stage: Declared
    seconds: float
    departures: tuple[Departure, ...] = ()
    failure: str = ""
    undeclared: tuple[str, ...] = ()

    @property
    def identical(self) -> bool:
        return not self.departures and not self.failure

    def as_dict(self) -> dict[str, Any]:
        return {
            "name": self.stage.name,
            "seconds": round(self.seconds, 3),
            "identical": self.identical,
            "departures": [item.as_dict() for item in self.departures],
            "failure": self.failure,
            "undeclared": list(self.undeclared),
        }


@dataclass
class Rebuilt:
    """What a rebuild found. `missing` says why it could not be: then no stage was run. `ticket` is the request on which
    data was forgotten that it needs."""

    version: Version
    sandbox: Kind
    conditions: Conditions
    missing: list[str] = field(default_factory=list)
    ticket: str | None = None
    stages: list[StageOutcome] = field(default_factory=list)
    metrics: list[MetricChange] = field(default_factory=list)
    here: dict[str, str] = field(default_factory=dict)
    recorded: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0

    @property
    def first(self) -> StageOutcome | None:
        """The first stage that departs."""
        return next((outcome for outcome in self.stages if not outcome.identical), None)


def rebuild(
    settings: Settings,
    mirror: Mirror,
    version: Version,
    space: Workspace,
    kind: Kind,
    conditions: Conditions,
    logs: Path,
    follow: Follow,
) -> Rebuilt:
    """Make a version again in a fresh checkout of its commit; `logs` is where its stages' output goes.

    What can never be made again is in the result's `missing`; an error is raised for what may pass: a service that is
    down, a full disk, a timeout.
    """
    began = time.monotonic()
    result = Rebuilt(version, kind, conditions)
    try:
        _Rebuild(settings, mirror, version, space, result, logs, follow).perform()
    finally:
        result.seconds = time.monotonic() - began
    return result


class _Rebuild:
    def __init__(
        self,
        settings: Settings,
        mirror: Mirror,
        version: Version,
        space: Workspace,
        result: Rebuilt,
        logs: Path,
        follow: Follow,
    ) -> None:
        self.settings, self.mirror, self.version = settings, mirror, version
        self.space, self.result, self.logs, self.follow = space, result, logs, follow
        self.hidden = places(settings, (space.site_cache, "."), (space.path, "."))

    def perform(self) -> None:
        record, stages, declared = self._read()
        if record is None:
            return
        facts = {stage.name: stage.facts for stage in record.stages}
        if self._leads_out(stages):
            return
        folder = self._environment(record)
        # The outputs that git keeps came with the checkout: to be made again they must not be there.
        for path in outputs_of(stages):
            clear(self.space.path / path)
        contradictions = compare.contradictions(self.space.path, stages, facts)
        contradictions += self._other_than_declared(stages, declared)
        self.result.missing += dict.fromkeys(contradictions)
        minutes = self._minutes(record)
        self._raw_data(stages)
        if folder is None or self.result.missing:
            return
        self.result.here = machine.describe(folder)
        around = Surroundings(
            self.space.site_cache, folder, self.result.sandbox, self.result.conditions, self.logs, minutes * 60
        )
        files = record.files()
        for stage in stages:
            if not self._stage(stage, around, files):
                break
        self._judge_metrics(facts)

    def _read(self) -> tuple[Record | None, tuple[Declared, ...], tuple[Declared, ...]]:
        """The record, and the model's stages: by dvc.lock, and by dvc.yaml as far as it can be told without DVC."""
        short = f"commit {self.version.commit[:8]}"
        try:
            record = read_record(self.mirror, self.version)
            found = of_lock(record.lock, f"dvc.lock of {short}")
            wanted = dvcfiles.stages(
                (self.mirror.read(self.version.commit, "dvc.yaml") or b"").decode(), f"dvc.yaml of {short}"
            )
            declared = tuple(of_template(template, self.version.model) for template in wanted)
        except RetraceError as error:  # nothing is asked here but this machine's mirror: none of it passes
            self.result.missing.append(str(error))
            return None, (), ()
        except (KeyError, TypeError, ValueError) as error:
            self.result.missing.append(f"the record in {short} is not one that Retrace wrote ({error!r})")
            return None, (), ()
        locked = {stage.address for stage in found}
        addresses = [stage.address for stage in declared]
        lacking = [f"dvc.lock of {short} has no {address}" for address in addresses if address not in locked]
        self.result.missing += [*self._another_tag(), *lacking]
        return record, found, declared

    def _another_tag(self) -> list[str]:
        """A ref that somebody pointed at the tag object of another version."""
        body = self.mirror.read_many([self.version.tag_object])[0] or b""
        name = re.search(rb"^tag (.*)$", body, re.MULTILINE)
        said = name.group(1).decode(errors="replace") if name else "none"
        if said == self.version.name:
            return []
        return [f"the ref {self.version.name} names a tag object that says it is {said}: somebody put it there by hand"]

    def _leads_out(self, stages: tuple[Declared, ...]) -> bool:
        """Whether a path is a symbolic link out of the checkout: nothing may be read or written through it."""
        tree = self.space.path.resolve()
        paths = {path for stage in stages for path in (*stage.dependencies, *stage.parameters, *stage.outputs)}
        outside = sorted(path for path in paths if not (tree / path).resolve().is_relative_to(tree))
        self.result.missing += [f"{path} is a link out of the repository" for path in outside]
        return bool(outside)

    def _other_than_declared(self, stages: tuple[Declared, ...], declared: tuple[Declared, ...]) -> list[str]:
        """DVC, which takes seconds to start, is asked only for what dvc.yaml does not say by itself."""
        if not compare.other_than_declared(stages, declared):
            return []
        try:
            return compare.other_than_declared(stages, of_checkout(self.settings, self.space, self.logs / "dvc.log"))
        except PipelineError as error:
            return [str(error)]

    def _minutes(self, record: Record) -> float:
        value = record.parameters.get("timeout_minutes", _TIMEOUT_MINUTES)
        try:
            minutes = float(value)
        except (TypeError, ValueError):
            minutes = math.nan
        if not 0 < minutes < math.inf:
            self.result.missing.append(
                f"params.yaml of its commit has {value!r} as timeout_minutes of {self.version.model}, which is no time"
            )
        return minutes

    def _environment(self, record: Record) -> Path | None:
        lock = EnvironmentLock.of_commit(self.mirror, self.version.commit)
        made = environment.is_made(lock, self.settings.environments)
        self.follow("environment", "" if made else "is being made")
        try:
            folder = environment.ensure(lock, self.settings.environments)
        except EnvironmentFailed as error:
            self.result.missing.append(self._hide(str(error)))
            return None
        packages = f"Python {record.python}, {len(record.packages)} packages"
        self.follow("environment", f"{lock.digest[:12]}  {packages}  {'here' if made else 'made from its lock'}")
        return folder

    def _raw_data(self, stages: tuple[Declared, ...]) -> None:
        made = outputs_of(stages)
        read = {path for stage in stages for path in stage.read if path not in made}
        wanted, contradictions = raw.tracked(self.space.path, read)
        self.result.missing += contradictions
        self.follow("raw data", "")
        found = raw.fetch(self.settings, self.space, wanted, self.logs / "raw.log")
        self.result.missing += found.missing
        self.result.ticket = found.ticket
        if not found.missing:
            self.result.missing += [
                f"{path}, which its stages read, is neither in the commit nor in the remote"
                for path in sorted(read)
                if not (self.space.path / path).exists()
            ]
            self.follow(
                "raw data", f"{len(wanted)} files, {found.size / 1e6:,.1f} MB from the remote, hashes as recorded"
            )

    def _stage(self, stage: Declared, around: Surroundings, files: Mapping[str, Mapping[str, Any]]) -> bool:
        """Run a stage and compare; whether the next one has what it needs."""
        self.follow(stage.name, "")
        outcome = run(self.space.path, stage, around)
        named = [*outcome.undeclared, *culprits(outcome.said, self.space.path, stage)]
        undeclared = tuple(dict.fromkeys(self._hide(text) for text in named))
        if outcome.code != 0:
            failure = self._failure(stage, outcome)
            self.result.stages.append(StageOutcome(stage, outcome.seconds, failure=failure, undeclared=undeclared))
            self.follow(stage.name, f"{outcome.seconds:6.1f} s  failed: {failure}")
            return False
        departures = tuple(compare.departures(stage, outcome.view, files))
        failure = self._spoilt_metrics(stage, outcome)
        self.result.stages.append(StageOutcome(stage, outcome.seconds, departures, failure, undeclared))
        said = "identical" if not departures else "differs: " + ", ".join(item.path for item in departures)
        self.follow(stage.name, f"{outcome.seconds:6.1f} s  {f'failed: {failure}' if failure else said}")
        return take_over(self.space.path, stage, outcome, linked=self.result.sandbox != "view")

    @property
    def _metrics(self) -> str:
        return f"metrics/{self.version.model}.json"

    def _spoilt_metrics(self, stage: Declared, outcome: Outcome) -> str:
        """Metrics that cannot be compared are a stage's failure, whatever its exit code."""
        made = outcome.view / self._metrics
        if self._metrics not in stage.outputs or not made.is_file() or compare.is_json(made.read_bytes()):
            return ""
        return f"{stage.address} left {self._metrics} that is no JSON"

    def _failure(self, stage: Declared, outcome: Outcome) -> str:
        ended = f"was killed by signal {-outcome.code}" if outcome.code < 0 else f"ended with code {outcome.code}"
        return f"{stage.address} {ended}: {self._hide(outcome.said)}"

    def _judge_metrics(self, facts: Mapping[str, Mapping[str, Any]]) -> None:
        made = self.space.path / self._metrics
        recorded = self.mirror.read(self.version.commit, self._metrics)
        self.result.metrics = compare.metric_changes(recorded, made.read_bytes() if made.is_file() else None)
        first = self.result.first
        if first is not None:
            self.result.recorded = dict(facts[first.stage.name]["machine"])

    def _hide(self, text: str) -> str:
        return hide(text, self.hidden)
