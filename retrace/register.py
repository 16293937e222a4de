"""Turn the end of a run into a version: an annotated tag, unless the run made nothing new."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from retrace import versions
from retrace.config import Settings
from retrace.errors import RetraceError
from retrace.git import Git, Mirror
from retrace.lineage import event
from retrace.runs import THROUGH, Run, chain, params_at
from retrace.versions import Version


class MetricsMissing(RetraceError):
    """A version has no holdout metrics."""


@dataclass(frozen=True)
class Registered:
    """The version that a run ended in; `new` is false when an older one is made of the very same."""

    version: Version
    new: bool


def snapshot_facts(git: Git, commit: str, model: str) -> dict[str, str]:
    """What the snapshot of a run recorded: code, data, dataThrough, backfill, run."""
    content = git.read(commit, event.path(model, "snapshot"))
    if content is None:
        raise RetraceError(
            f"commit {commit[:8]} is not of a retrain of {model}: it has no {event.path(model, 'snapshot')}"
        )
    return event.facts_of(content)


def holdout_metrics(git: Git, commit: str, model: str) -> dict[str, float]:
    """The metrics on the holdout, from `metrics/<model>.json` with the key `holdout`. Raises `MetricsMissing`."""
    path = f"metrics/{model}.json"
    content = git.read(commit, path)
    try:
        metrics = json.loads(content) if content is not None else None
    except ValueError:
        metrics = None
    found = metrics.get("holdout") if isinstance(metrics, dict) else None
    if not isinstance(found, dict):
        raise MetricsMissing(f"{path} of commit {commit[:8]} has no key 'holdout'; the evaluate stage must write it")
    return {str(name): float(value) for name, value in found.items() if isinstance(value, int | float)}


def register(settings: Settings, run: Run, commit: str) -> Registered:
    """Tag the commit as the model's next version; or find the version that this run, or the same inputs, made before.

    Raises `MetricsMissing`, `OriginUnavailable`.
    """
    mirror = Mirror.open(settings.mirror, settings.origin)
    mirror.fetch_record()
    known = versions.versions(mirror, run.model)
    same = next((version for version in known if version.commit == commit), None)
    if same is not None:
        return Registered(same, new=same.run_id == run.run_id)
    if not mirror.has(commit):
        mirror.fetch_ref(run.ref)
    equal = versions.same_outputs(mirror, run.model, commit, known)
    if equal is not None:
        return Registered(equal, new=False)
    facts = snapshot_facts(mirror, commit, run.model)
    metrics = holdout_metrics(mirror, commit, run.model)
    gated = [rule.metric for rule in params_at(mirror, commit).models[run.model].gate if rule.metric in metrics]
    metrics = {name: metrics[name] for name in dict.fromkeys((*gated, *metrics))}
    shown = ", ".join(f"{name} {value:g}" for name, value in metrics.items())
    trailers = {
        "Retrace-Run": run.run_id,
        "Retrace-Run-Ref": run.ref,
        "Retrace-Code": facts["code"],
        "Retrace-Data": facts["data"],
        THROUGH: facts["dataThrough"],
        "Retrace-Metrics": json.dumps(metrics),
    }
    version = versions.create(mirror, run.model, commit, shown, trailers)
    return Registered(version, new=True)


def gate_facts(git: Git, version: Version, head: str | None) -> dict[str, Any] | None:
    """What the gate said of a version, from `head`, the end of its run's ref; None before the gate has spoken."""
    if head is None or chain(git, head)[-1].stage != f"gate@{version.model}":
        return None
    content = git.read(head, event.path(version.model, "gate"))
    return None if content is None else dict(event.facts_of(content))
