"""Delete what a plan names: objects of remote and cache, what this machine keeps about them, copies in MLflow."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from retrace import lease, verdicts
from retrace.config import Settings
from retrace.errors import RetraceError
from retrace.forgetting.history import History, history
from retrace.forgetting.plan import Plan
from retrace.git import Mirror
from retrace.process import Job, run_job
from retrace.registry import Registry
from retrace.registry.contact import sqlite_file
from retrace.tombstones import Tombstone
from retrace.verdicts import IMPOSSIBLE
from retrace.versions import Version
from retrace.workspace import sweep, workspace


@dataclass(frozen=True)
class Purged:
    """How many objects there were to delete, and how many are left that no commit names, in cache and remote."""

    remote: int
    cache: int
    unnamed: int


def kept_rebuilds(settings: Settings, plan: Plan) -> list[Path]:
    """The folders of this machine in which `reproduce --keep` left a rebuild of one of the versions."""
    names = {version.name for version in plan.versions}
    folders = sorted((settings.var / "rebuilds").glob("*--*"))
    return [folder for folder in folders if folder.name.rpartition("--")[0] in names]


def purge_objects(settings: Settings, mirror: Mirror, code: str, plan: Plan) -> Purged:
    """Delete the objects from the remote and this machine's cache, with the statistics of them and what unfinished
    runs and kept rebuilds hold. Raises what the remote may raise."""
    oids = [stone.md5 for stone in plan.stones]
    ticket = plan.request.ticket
    named = history(mirror).named()  # now: the new partitions are among them
    request = {"operation": "purge", "objects": oids, "named": sorted(named)}
    with workspace(settings, mirror, code, f"forget--{ticket}") as space:
        log = settings.logs / "forget" / f"{ticket}.log"
        result = run_job(settings, Job(f"request {ticket}", space, request, log))
    for oid in oids:
        (settings.var / "statistics" / f"{oid}.json").unlink(missing_ok=True)
    for name in ("runs", "scratch"):  # nobody trains meanwhile: what they hold only saves time
        shutil.rmtree(settings.var / name, ignore_errors=True)
    for folder in kept_rebuilds(settings, plan):
        shutil.rmtree(folder)
    sweep(settings)
    return Purged(result["remote"], result["cache"], result["unnamed"])


def judge(mirror: Mirror, known: History, plan: Plan) -> None:
    """Keep the verdict that the versions cannot be rebuilt, with the ticket and what is missing of each."""
    for version in _unjudged(mirror, plan):
        facts = {
            "reason": f"forgotten on request {plan.request.ticket}",
            "ticket": plan.request.ticket,
            "missing": _missing(known, version, plan.stones),
        }
        verdicts.keep(mirror, version, IMPOSSIBLE, facts)


def judged(mirror: Mirror, plan: Plan) -> bool:
    """Whether every version has the verdict of this request."""
    return not _unjudged(mirror, plan)


def _unjudged(mirror: Mirror, plan: Plan) -> list[Version]:
    newest = verdicts.newest(mirror, plan.versions)
    last = {name: (verdict.verdict, verdict.ticket) for name, verdict in newest.items()}
    return [version for version in plan.versions if last.get(version.name) != (IMPOSSIBLE, plan.request.ticket)]


def _missing(known: History, version: Version, stones: Sequence[Tombstone]) -> list[str]:
    """The paths of the objects that a version used or made and that are gone."""
    own = next(carrier for carrier in known.carriers if carrier.version == version)
    events = [
        known.events[blob]
        for path, blob in own.events.items()
        if path.startswith(f"lineage/{version.model}/") and blob in known.events
    ]
    had = {md5 for made in events for md5 in (*made.inputs, *made.objects)}
    return sorted({stone.path for stone in stones if stone.md5 in had})


def purge_registry(settings: Settings, mirror: Mirror, plan: Plan) -> list[str]:
    """Delete the versions' files from MLflow; what could not be done, in words."""
    file = sqlite_file(settings.mlflow)
    if file is not None and not file.exists():
        return []  # nothing was ever published from here
    registry = Registry(settings.mlflow, settings.mlflow_artifacts, settings.patience)
    left = []
    for model in dict.fromkeys(version.model for version in plan.versions):
        own = [version for version in plan.versions if version.model == model]
        try:
            with lease.publication(mirror, model):
                for version in own:
                    registry.forget(model, version.number, version.commit, plan.request.ticket)
        except RetraceError as error:
            left.append(f"{', '.join(version.name for version in own)} in MLflow: {error}")
    return left
