"""What differs in the locked environment of the stages: Python and packages."""

from __future__ import annotations

from dataclasses import dataclass

from retrace.comparison.changes import Change, changes
from retrace.comparison.content import Content
from retrace.environment import REQUIREMENTS, EnvironmentFailed


@dataclass(frozen=True)
class Environment:
    """What differs. `same` is False also where the lock differs in nothing that is installed here: hashes, comments."""

    same: bool
    python: Change | None
    packages: tuple[Change, ...]


def environment_changes(a: Content, b: Content) -> Environment:
    """Raises `EnvironmentFailed` for a lock that cannot be read."""
    before, after = a.environment, b.environment
    if before == after:
        return Environment(True, None, ())
    python = changes({"python": before.python}, {"python": after.python})
    return Environment(False, python[0] if python else None, changes(_packages(a), _packages(b)))


def _packages(content: Content) -> dict[str, str]:
    from packaging.requirements import InvalidRequirement

    try:
        pinned = content.environment.packages
    except InvalidRequirement as error:
        reason = str(error).partition("\n")[0]
        raise EnvironmentFailed(f"{REQUIREMENTS} of {content.side.name}: {reason}; lock it anew") from None
    return {name: version for name, _, version in (item.partition("==") for item in pinned)}
