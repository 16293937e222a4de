"""A version's lineage for programs: all that is known of it, under keys that stay."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from retrace.git import Git
from retrace.trace import Dataset, Job, Sources, Tenure, Trace, origins


def json_text(git: Git, trace: Trace) -> str:
    """The lineage as JSON; `up` or `down` is null where it was not asked for."""
    version, found = trace.version, trace.consequences
    body = {
        "version": {
            "name": version.name,
            "commit": version.commit,
            "tag": version.tag_object,
            "created": version.created.isoformat(),
            "run": {"id": version.run_id, "ref": version.run_ref},
            "aliases": list(trace.aliases),
        },
        "up": trace.sources and _up(git, trace.sources),
        "down": found
        and {
            "gate": found.gate,
            "assignments": [_assignment(tenure) for tenure in found.tenures],
            "carriedOverBy": [{"version": carrier.version, "jobs": list(carrier.jobs)} for carrier in found.carriers],
        },
    }
    return json.dumps(body, indent=1)


def _up(git: Git, sources: Sources) -> dict[str, Any]:
    jobs = sorted(sources.jobs.values(), key=lambda job: (job.started, job.name))
    makers = {dataset: job for job in jobs for dataset in job.outputs}
    read = {(read.name, read.version): read.run for job in jobs for read in job.reads}
    brought = {commit: origins(git, commit) for commit in {raw.data for raw in sources.raw.values()}}
    return {
        "registration": sources.registration.run,
        "code": {"commit": sources.own.code, "subject": sources.own.subject},
        "data": {
            "commit": sources.own.data,
            "subject": sources.own.data_subject,
            "through": sources.own.through.isoformat(),
            "backfill": sources.own.backfill,
        },
        "datasets": [
            {
                "dataset": dataset[0],
                "version": dataset[1],
                "run": makers[dataset].run if dataset in makers else read[dataset],
                **_content(sources, dataset, makers.get(dataset), brought),
            }
            for dataset in sorted({*makers, *read})
        ],
        "jobs": [_job(job) for job in jobs],
    }


def _content(sources: Sources, dataset: Dataset, job: Job | None, brought: dict[str, Any]) -> dict[str, Any]:
    raw, snapshot = sources.raw.get(dataset), sources.snapshots.get(dataset)
    output = job.outputs[dataset] if job is not None else {}
    return {
        "path": dataset[0] if raw else output.get("path"),
        "files": output.get("files"),
        "partitions": list(_partitions(sources, dataset, brought)) if raw else None,
        "snapshot": vars(snapshot) | {"through": snapshot.through.isoformat()} if snapshot else None,
        "columns": dict(job.columns.get(dataset, {})) or None if job is not None else None,
    }


def _partitions(sources: Sources, dataset: Dataset, brought: dict[str, Any]) -> Iterator[dict[str, Any]]:
    raw = sources.raw[dataset]
    for partition in raw.partitions:
        origin = brought[raw.data].get((partition.path, partition.md5))
        yield {**vars(partition), "ingestion": vars(origin) if origin else None}


def _job(job: Job) -> dict[str, Any]:
    facts = job.facts
    return {
        "job": job.name,
        "run": job.run,
        "event": job.event,
        "startedAt": job.started,
        "endedAt": job.ended,
        "stage": facts.get("stage"),
        "retrain": job.made_in,
        "carriedFrom": job.carried_from,
        "commit": facts.get("commit"),
        "reads": [{"dataset": read.name, "version": read.version, "run": read.run} for read in job.reads],
        "inputs": facts.get("inputs", []),
        "outputs": facts.get("outputs", []),
        "parameters": facts.get("parameters"),
        "environment": facts.get("environment"),
        "machine": facts.get("machine"),
    }


def _assignment(tenure: Tenure) -> dict[str, Any]:
    held, until = tenure.assignment, tenure.until
    return {
        "name": held.name,
        "alias": held.alias,
        "since": held.created.isoformat(),
        "by": held.by,
        "because": held.because,
        "job": tenure.job,
        "run": tenure.run,
        "until": until and {"name": until.name, "at": until.created.isoformat(), "version": tenure.until_version},
    }
