"""Turn the end of a run into a version: an annotated tag, unless the run made nothing new."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from retrace import manifest, signatures, versions
from retrace.config import Settings
from retrace.dvcfiles import RAW
from retrace.errors import RetraceError
from retrace.git import Git, Mirror
from retrace.lineage import event
from retrace.lineage.jobs import documentation
from retrace.lineage.project import project_at
from retrace.runs import THROUGH, Task, chain, params_at
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


def holdout(git: Git, commit: str, model: str) -> dict[str, Any]:
    """What `reports/<model>/holdout.json` says of the rows that a commit's metrics are on; nothing without it."""
    content = git.read(commit, f"reports/{model}/holdout.json")
    found = json.loads(content) if content is not None else {}
    return dict(found) if isinstance(found, dict) else {}


def register(settings: Settings, task: Task, commit: str) -> Registered:
    """Tag the commit as the model's next version; or find the version that this run, or the same inputs, made before.

    Raises `MetricsMissing`, `OriginUnavailable`, `NoSigningKey`, `CannotSign`.
    """
    from retrace.lineage.facets import as_line  # the client of OpenLineage is slow to import

    run, started = task.run, datetime.now(UTC)
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
    own = params_at(mirror, commit).models[run.model]
    gated = [rule.metric for rule in own.gate if rule.metric in metrics]
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
    project = project_at(settings, mirror, commit, own.owner)

    def tell(name: str) -> str:
        return as_line(_event(mirror, task, commit, name, facts, metrics, started), project)

    sign = signatures.required_signer(settings, mirror)
    version = versions.create(mirror, run.model, commit, shown, trailers, tell, sign)
    return Registered(version, new=True)


def _event(
    git: Git,
    task: Task,
    commit: str,
    name: str,
    facts: Mapping[str, str],
    metrics: Mapping[str, float],
    started: datetime,
) -> event.Event:
    """The event of a registration: the version is a dataset, made of the model's file and its metrics."""
    model = task.run.model
    known = event.producers(git, commit, model)
    code, data = facts["code"], facts["data"]
    spans = [manifest.span(git.read(commit, path)) for path in git.files(commit, RAW) if path.endswith(".manifest")]
    essentials = {**facts, "version": name, "commit": commit, "metrics": dict(metrics)}
    registered = event.Output(
        event.registry_name(model),
        name,
        essentials={key: essentials[key] for key in ("version", "commit", "code", "data", "dataThrough", "metrics")},
        documentation=f"{name} = commit {commit[:8]}, code {code[:8]}, data {data[:8]} ({', '.join(sorted({*spans}))})",
    )
    return event.Event(
        "COMPLETE",
        task.lineage_run_id,
        task.lineage_job,
        started,
        datetime.now(UTC),
        inputs=[
            read for key, read in sorted(known.items()) if key.startswith((f"models/{model}.", f"metrics/{model}."))
        ],
        outputs=[registered],
        facts={"version": name, "run": task.run.run_id, "metrics": dict(metrics)},
        parent=task.parent,
        documentation=documentation(model, task.job),
        code="params.yaml",
        commit=commit,
    )


def registered(git: Git, version: Version) -> event.Read:
    """A version as a dataset that others read, with the run that registered it."""
    told = versions.event_of(git, version.ref)
    run = str(told["run"]["runId"]) if told is not None else None
    return event.Read(event.registry_name(version.model), version.name, run)


def gate_facts(git: Git, version: Version, head: str | None) -> dict[str, Any] | None:
    """What the gate said of a version, from `head`, the end of its run's ref; None before the gate has spoken."""
    if head is None or chain(git, head)[-1].stage != f"gate@{version.model}":
        return None
    content = git.read(head, event.path(version.model, "gate"))
    return None if content is None else dict(event.facts_of(content))
