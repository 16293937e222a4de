"""What changed between two mappings, name by name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

ChangeKind = Literal["added", "removed", "changed"]


@dataclass(frozen=True)
class Change:
    """One name whose value differs; `before` and `after` are None where there was, or is, no such name."""

    name: str
    kind: ChangeKind
    before: Any
    after: Any

    def as_dict(self) -> dict[str, Any]:
        return {"name": self.name, "change": self.kind, "from": self.before, "to": self.after}


def changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> tuple[Change, ...]:
    """Every name that was added, removed or has another value: as `before` has them, then what is new."""
    found = []
    for name in {**before, **after}:
        old, new = before.get(name), after.get(name)
        if name not in before:
            found.append(Change(name, "added", None, new))
        elif name not in after:
            found.append(Change(name, "removed", old, None))
        elif old != new:
            found.append(Change(name, "changed", old, new))
    return tuple(found)


def tree_changes(before: Any, after: Any) -> tuple[Change, ...]:
    """The same of two trees, by dotted keys; lists are values."""
    old, new = flattened(before), flattened(after)
    return changes(_without_filled(old, new), _without_filled(new, old))


def flattened(tree: Any, prefix: str = "") -> dict[str, Any]:
    """Dotted key -> value of a tree; lists are values, and so is an empty mapping."""
    if not isinstance(tree, Mapping) or not tree:
        return {prefix: tree}
    found: dict[str, Any] = {}
    for key, value in tree.items():
        found |= flattened(value, f"{prefix}.{key}" if prefix else str(key))
    return found


def _without_filled(flat: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """Without the empty mappings that have keys on the other side: those keys say it all."""
    return {
        key: value
        for key, value in flat.items()
        if value != {} or not any(name.startswith(f"{key}." if key else "") for name in other if name != key)
    }
