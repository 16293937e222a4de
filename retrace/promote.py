"""Who holds an alias: the assignment tag first, which is the truth, then MLflow's alias, which follows."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime

from retrace import signatures, verdicts, versions
from retrace.config import Settings
from retrace.errors import RetraceError
from retrace.git import Mirror
from retrace.lineage import event
from retrace.lineage.jobs import documentation
from retrace.register import registered
from retrace.runs import project_of
from retrace.verify import require
from retrace.versions import CHAMPION, Version


class NoReason(RetraceError):
    """A promotion without a reason."""


class VersionForgotten(RetraceError):
    """A version whose files were removed on somebody's request."""


def promote_version(settings: Settings, name: str, because: str) -> Iterator[str]:
    """Make a version champion; what was done, line by line.

    Raises `UnknownVersion`, `VersionForgotten`, `NoReason`, `NotVerified`.
    """
    mirror = Mirror.open(settings.mirror, settings.origin)
    mirror.fetch_record()
    version = versions.find(mirror, name)
    ticket = verdicts.ticket_of(mirror, version)
    if ticket is not None:
        raise VersionForgotten(
            f"{version.name} was forgotten on request {ticket}: its files are gone and nobody can serve it; promote "
            "another version"
        )
    return _assign(settings, mirror, version, because, "promote")


def roll_back(settings: Settings, model: str, because: str) -> Iterator[str]:
    """Give the alias champion back. Raises `NothingToRollBackTo`, `UnknownModel`, `NoReason`, `NotVerified`."""
    mirror = Mirror.open(settings.mirror, settings.origin)
    mirror.fetch_record()
    gone = verdicts.forgotten(mirror, versions.versions_of(mirror, model))
    return _assign(settings, mirror, versions.previous_holder(mirror, model, gone=gone), because, "rollback")


def _assign(settings: Settings, mirror: Mirror, version: Version, because: str, job: str) -> Iterator[str]:
    if not because.strip():
        raise NoReason("--because is empty; say in a few words why, for whoever reads the history")
    require(settings, mirror, version)
    sign = signatures.required_signer(settings, mirror)
    before = versions.assignments(mirror, version.model)
    started = datetime.now(UTC)

    def tell(name: str) -> str:
        return _event_line(settings, mirror, version, job, name, because, started)

    assignment = versions.assign(mirror, version, CHAMPION, because, tell, sign)
    if assignment in before:
        yield (
            f"{version.name} is {CHAMPION} of {version.model} already, since {assignment.name} of "
            f"{assignment.created.astimezone():%Y-%m-%d %H:%M} ({assignment.because}); nothing new is written"
        )
    else:
        yield f"{version.name} is {CHAMPION} of {version.model} ({assignment.name})"
    yield from _publish(settings, version.model)


def _event_line(
    settings: Settings, mirror: Mirror, version: Version, job: str, name: str, because: str, started: datetime
) -> str:
    from retrace.lineage.facets import as_line  # the client of OpenLineage is slow to import

    told = event.Event(
        "COMPLETE",
        event.fallback_run_id(name, version.commit),
        f"{version.model}.{job}",
        started,
        datetime.now(UTC),
        inputs=[registered(mirror, version)],
        facts={"version": version.name, "alias": CHAMPION, "assignment": name, "because": because},
        documentation=documentation(version.model, job),
        commit=version.commit,
    )
    return as_line(told, project_of(settings, mirror, version.commit, version.model))


def _publish(settings: Settings, model: str) -> Iterator[str]:
    from retrace.publish import publish_model

    for change in publish_model(settings, model, lambda _: None):
        yield f"MLflow: {change}"
