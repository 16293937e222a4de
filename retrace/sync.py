"""Bring the views up to what git says: MLflow's versions and aliases, the lineage consumer's runs."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping

from retrace import versions
from retrace.config import Settings
from retrace.errors import RetraceError
from retrace.git import Mirror
from retrace.runs import code_commit, params_at


def sync(
    settings: Settings,
    model: str | None,
    follow: Callable[[str], None],
    environ: Mapping[str, str] = os.environ,
) -> Iterator[str]:
    """Bring both views up to git and tell what was done; of one model, MLflow alone. `follow` hears of each step.

    One view that is down does not keep the other from being brought up; its error is raised at the end.
    """
    mirror = Mirror.open(settings.mirror, settings.origin)
    mirror.fetch_record()
    failure: RetraceError | None = None
    try:
        yield from _registry(settings, mirror, model, follow)
    except RetraceError as error:
        failure = error
    if model is None:
        yield from _lineage(settings, mirror, follow, environ)
    if failure is not None:
        raise failure


def _registry(settings: Settings, mirror: Mirror, model: str | None, follow: Callable[[str], None]) -> Iterator[str]:
    from retrace.publish import publish_model

    if model is not None:
        params_at(mirror, code_commit(settings, mirror)).model(model)
    changed = False
    for name in [model] if model is not None else sorted(versions.newest_versions(mirror)):
        for change in publish_model(settings, name, follow):
            changed = True
            yield f"{name}: {change}"
    if not changed:
        yield "MLflow is up to date"


def _lineage(
    settings: Settings, mirror: Mirror, follow: Callable[[str], None], environ: Mapping[str, str]
) -> Iterator[str]:
    from retrace.lineage.sync import sync_lineage

    yield from sync_lineage(settings, mirror, follow, environ)
