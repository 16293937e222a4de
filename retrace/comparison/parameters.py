"""What differs in a model's parameters, and which stages read each."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from retrace.comparison.changes import Change, tree_changes
from retrace.comparison.content import Content
from retrace.dvcfiles import StageTemplate, overlap


@dataclass(frozen=True)
class ParameterChange:
    """A key below the model whose value differs; without stages, it is the engine's (schedule, gate, owner, ...)."""

    change: Change
    stages: tuple[str, ...]


def parameter_changes(model: str, a: Content, b: Content) -> tuple[ParameterChange, ...]:
    """Every key of the model that differs, by its path below the model."""
    found = tree_changes(a.parameters, b.parameters)
    readers = {**{template.name: template for template in a.templates}, **{item.name: item for item in b.templates}}
    return tuple(ParameterChange(change, _readers(model, change.name, readers.values())) for change in found)


def _readers(model: str, key: str, templates: Iterable[StageTemplate]) -> tuple[str, ...]:
    own = f"models.{model}.{key}"

    def reads(declared: str) -> bool:
        return overlap(own, declared.replace("${key}", model), ".")

    return tuple(template.name for template in templates if any(map(reads, template.parameters)))
