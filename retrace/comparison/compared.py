"""The whole answer to what differs between two sides, before it is written as text, JSON or Markdown."""

from __future__ import annotations

from dataclasses import dataclass, replace

from retrace.comparison.code import Code, changed_files, code_changes, patch
from retrace.comparison.content import Content, read_both
from retrace.comparison.data import DatasetChange, data_changes
from retrace.comparison.environment import Environment, environment_changes
from retrace.comparison.metrics import Metrics, metric_changes
from retrace.comparison.parameters import ParameterChange, parameter_changes
from retrace.comparison.reasons import StageReasons, stage_reasons
from retrace.comparison.sides import Side
from retrace.comparison.tables import TableChange, table_changes
from retrace.config import Settings
from retrace.git import Git

_PARAMETERS = "params.yaml"


@dataclass(frozen=True)
class Comparison:
    """What differs from A to B; `patch` is None unless it was asked for."""

    model: str
    a: Content
    b: Content
    data: tuple[DatasetChange, ...]
    tables: tuple[TableChange, ...]
    code: Code
    patch: str | None
    parameters: tuple[ParameterChange, ...]
    environment: Environment
    metrics: Metrics
    stages: tuple[StageReasons, ...]

    @property
    def same_version(self) -> bool:
        """Whether both sides are one version, under whatever names."""
        return self.a.side.version is not None and self.a.side == self.b.side


def compared(
    settings: Settings, git: Git, model: str, a: Side, b: Side, *, with_patch: bool, exact: bool
) -> Comparison:
    """Compare two sides. Raises what reading them does, and what exact PSI does."""
    first, second = (_with_edits(git, content) for content in read_both(git, model, a, b))
    changed = changed_files(git, a.tree, b.tree, (*first.templates, *second.templates))
    code = code_changes(changed, first, second)
    parameters = parameter_changes(model, first, second)
    data = data_changes(first, second)
    return Comparison(
        model=model,
        a=first,
        b=second,
        data=tuple(_with_psi(settings, git, first, second, change) for change in data) if exact else data,
        tables=table_changes(git, first, second),
        code=_without_told(code, parameters),
        patch=patch(git, first, second, code.files) if with_patch else None,
        parameters=parameters,
        environment=environment_changes(first, second),
        metrics=metric_changes(first, second),
        stages=stage_reasons(first, second, changed),
    )


def _without_told(code: Code, parameters: tuple[ParameterChange, ...]) -> Code:
    """Without params.yaml, where its keys of this model are told as parameters of stages, or are as they were."""
    if not all(change.stages for change in parameters):
        return code
    return replace(code, outside=tuple(file for file in code.outside if file.path != _PARAMETERS))


def _with_edits(git: Git, content: Content) -> Content:
    side = content.side
    if side.kind != "working copy":
        return content
    return replace(content, edited=bool(changed_files(git, side.commit, side.tree, content.templates)))


def _with_psi(settings: Settings, git: Git, a: Content, b: Content, change: DatasetChange) -> DatasetChange:
    if change.same or change.before is None or change.after is None:
        return change
    from retrace.comparison.partitions import exact_psi

    return replace(change, psi=exact_psi(settings, git, a, b, change.name))
