"""Who holds an alias: the assignment tag first, which is the truth, then MLflow's alias, which follows."""

from __future__ import annotations

from collections.abc import Iterator

from retrace import versions
from retrace.config import Settings
from retrace.errors import RetraceError
from retrace.git import Mirror
from retrace.runs import code_commit, params_at
from retrace.versions import CHAMPION, Version


class NoReason(RetraceError):
    """A promotion without a reason."""


def promote_version(settings: Settings, name: str, because: str) -> Iterator[str]:
    """Make a version champion; what was done, line by line. Raises `UnknownVersion`, `NoReason`."""
    mirror = Mirror.open(settings.mirror, settings.origin)
    mirror.fetch_record()
    return _assign(settings, mirror, versions.find(mirror, name), because)


def roll_back(settings: Settings, model: str, because: str) -> Iterator[str]:
    """Give the alias champion back. Raises `NothingToRollBackTo`, `UnknownModel`, `NoReason`."""
    mirror = Mirror.open(settings.mirror, settings.origin)
    mirror.fetch_record()
    return _assign(settings, mirror, versions.previous_holder(mirror, model), because)


def _assign(settings: Settings, mirror: Mirror, version: Version, because: str) -> Iterator[str]:
    if not because.strip():
        raise NoReason("--because is empty; say in a few words why, for whoever reads the history")
    before = versions.assignments(mirror, version.model)
    assignment = versions.assign(mirror, version, CHAMPION, because)
    if assignment in before:
        yield (
            f"{version.name} is {CHAMPION} of {version.model} already, since {assignment.name} of "
            f"{assignment.created.astimezone():%Y-%m-%d %H:%M} ({assignment.because}); nothing new is written"
        )
    else:
        yield f"{version.name} is {CHAMPION} of {version.model} ({assignment.name})"
    yield from _publish(settings, version.model)


def _publish(settings: Settings, model: str) -> Iterator[str]:
    from retrace.publish import publish_model

    for change in publish_model(settings, model, lambda _: None):
        yield f"MLflow: {change}"


def sync_registry(settings: Settings, model: str | None) -> Iterator[str]:
    """Bring MLflow up to git for one model or all. Raises `UnknownModel`, `RegistryUnavailable`."""
    mirror = Mirror.open(settings.mirror, settings.origin)
    mirror.fetch_record()
    if model is not None:
        params_at(mirror, code_commit(settings, mirror)).model(model)
    models = [model] if model is not None else sorted(versions.newest_versions(mirror))
    changed = False
    for name in models:
        for line in _publish(settings, name):
            changed = True
            yield f"{name}: {line.removeprefix('MLflow: ')}"
    if not changed:
        yield "MLflow is up to date"
