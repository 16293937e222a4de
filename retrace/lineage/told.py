"""The committed event of a task that Airflow has just ended, found in git by its run id."""

from __future__ import annotations

import json
from typing import Any

from retrace import versions
from retrace.git import Git, Mirror
from retrace.lineage import event
from retrace.runs import INGEST_EVENT, Task


def told_of(mirror: Mirror, task: Task, commit: str) -> dict[str, Any] | None:
    """The event that this very try of a task left at the commit that it handed on, or in a tag of it.

    None for a task that did nothing: its stage was unchanged, or an earlier try had done it.
    """
    places = [f"{commit}:{event.path(task.run.model, task.job)}", f"{commit}:{INGEST_EVENT}"]
    found = [json.loads(content) for content in mirror.read_many(places) if content is not None]
    found += [told for told in _of_tags(mirror, task.run.model, commit) if told is not None]
    return next((told for told in found if told["run"]["runId"] == task.lineage_run_id), None)


def told_on_ref(mirror: Mirror, task: Task) -> dict[str, Any] | None:
    """The event that this try of a task left on its run's ref: a failure, or the gate's decision."""
    head = mirror.fetch_ref(task.run.ref)
    return told_of(mirror, task, head) if head is not None else None


def _of_tags(git: Git, model: str, commit: str) -> list[dict[str, Any] | None]:
    made = [version for version in versions.versions(git, model) if version.commit == commit]
    return [versions.event_of(git, version.ref) for version in made]
