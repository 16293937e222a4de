"""`retrace score`: how a version would do on other data, by its own code, parameters and environment.

The gate's machinery as a command: the version's stages but its training, on its tree with the raw data of another
commit, on `refs/scores/...`. The lock there joins an old model with new features: it is no consistent pipeline and
never becomes a version.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from retrace import gate, manifest, versions
from retrace.config import Settings
from retrace.dvcfiles import RAW
from retrace.errors import RetraceError
from retrace.git import Git, Mirror, escape_ref_part
from retrace.lineage import event
from retrace.progress import overwritten
from retrace.reader import last_day
from retrace.register import holdout, holdout_metrics
from retrace.runs import DataCommit, NoData, Run, Task, data_as_of, data_commits, params_at, raw_files
from retrace.versions import Version

LATEST = "latest"
_REVISION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/@#~^-]*")


class UnknownData(RetraceError):
    """What is named as data is no commit."""


class NoNewerData(RetraceError):
    """The version was trained on that data, or on newer."""


@dataclass(frozen=True)
class Scored:
    """A version's holdout metrics on its own data and on other data; `commit` holds the latter, on `ref`."""

    version: Version
    data: str
    through: datetime | None
    ref: str
    commit: str
    own: Mapping[str, float]
    other: Mapping[str, float]
    own_holdout: Mapping[str, Any]
    other_holdout: Mapping[str, Any]
    spans: Mapping[str, str]


def score_lines(settings: Settings, version: str, data: str, as_json: bool) -> Iterator[str]:
    """Score a version on a data commit, or find that it was; what to print.

    Raises `UnknownVersion`, `UnknownData`, `NoData`, `NoNewerData`, and what running its stages may raise.
    """
    mirror = Mirror.open(settings.mirror, settings.origin)
    mirror.fetch_record()
    found = score(settings, mirror, versions.find(mirror, version), data)
    if as_json:
        yield json.dumps(_as_dict(found), indent=1)
        return
    yield from _text(found)


def score(settings: Settings, mirror: Mirror, version: Version, data: str) -> Scored:
    """Run the version's stages on the data. The commit is named after it, so that a second call finds the first's."""
    commit, through = _data(mirror, data)
    _check(mirror, version, commit, through)
    run = Run(version.model, f"data-{commit}")
    own = params_at(mirror, version.commit).models[version.model]
    ref = f"refs/scores/{version.model}/v{version.number}--{escape_ref_part(run.run_id)}"
    with overwritten(sys.stderr) as follow:
        follow(f"{version.name} meets the data through {last_day(through)} ...")
        task = Task(run, "score", event.fallback_run_id(ref))
        made = gate.score(settings, task, version, commit, own.timeout_minutes * 60)
    return Scored(
        version=version,
        data=commit,
        through=through,
        ref=ref,
        commit=made,
        own=holdout_metrics(mirror, version.commit, version.model),
        other=holdout_metrics(mirror, made, version.model),
        own_holdout=holdout(mirror, version.commit, version.model),
        other_holdout=holdout(mirror, made, version.model),
        spans=_spans(mirror, commit, own.datasets),
    )


def _data(git: Git, name: str) -> tuple[str, datetime | None]:
    """The commit of a name, and up to when its data goes, as far as the branch `data` says."""
    if name == LATEST:
        newest = data_as_of(git, None)
        return newest.commit, newest.through
    commit = git.resolve(name) if _REVISION.fullmatch(name) else None
    if commit is None:
        raise UnknownData(
            f"--data {name}: no such commit; name one of the branch data (git log refs/heads/data), or {LATEST}"
        )
    known: list[DataCommit] = data_commits(git)
    return commit, next((data.through for data in known if data.commit == commit), None)


def _check(git: Git, version: Version, commit: str, through: datetime | None) -> None:
    """Refuse a commit without the model's datasets, and data that the version was made of, or older."""
    files = raw_files(git, commit)
    datasets = params_at(git, version.commit).models[version.model].datasets
    lacking = [name for name in datasets if f"{RAW}/{name}.dvc" not in files]
    if lacking:
        raise NoData(
            f"commit {commit[:12]} has no data of {', '.join(lacking)}, which {version.name} reads; name a commit of "
            f"the branch data (git log refs/heads/data), or {LATEST}"
        )
    own = raw_files(git, version.commit)
    if all(own.get(f"{RAW}/{name}.dvc") == files[f"{RAW}/{name}.dvc"] for name in datasets):
        raise NoNewerData(
            f"{version.name} was made of this very data (through {last_day(version.through)}): its own metrics are the "
            f"answer, see `retrace show {version.name}`; `retrace ingest` brings newer data"
        )
    if git.run("merge-base", "--is-ancestor", commit, version.data).returncode == 0:
        raise NoNewerData(
            f"the data of {commit[:12]} (through {last_day(through)}) is older than that of {version.name} (through "
            f"{last_day(version.through)}), which may have learned from it; name a newer commit, or {LATEST}"
        )


def _spans(git: Git, commit: str, datasets: tuple[str, ...]) -> dict[str, str]:
    """Dataset -> its first and last partition in the data."""
    return {name: manifest.span(git.read(commit, f"{RAW}/{name}.manifest")) for name in datasets}


def _as_dict(found: Scored) -> dict[str, Any]:
    version = found.version
    return {
        "version": version.name,
        "data": {
            "commit": found.data,
            "through": found.through.isoformat() if found.through else None,
            "partitions": found.spans,
        },
        "own": {"data": version.data, "holdout": found.own_holdout, "metrics": found.own},
        "other": {"data": found.data, "holdout": found.other_holdout, "metrics": found.other},
        "kept": {"ref": found.ref, "commit": found.commit},
    }


def _text(found: Scored) -> Iterator[str]:
    spans = ", ".join(f"{name} {span}" for name, span in found.spans.items())
    yield f"{found.version.name} on the data of {found.data[:12]} ({spans}), by its own code and environment"
    rows = [("", "ITS OWN", "THIS DATA", "CHANGE")]
    own, other = (_shown(holdout) for holdout in (found.own_holdout, found.other_holdout))
    rows += [(f"holdout {key}", own.get(key, "-"), other.get(key, "-"), "") for key in dict.fromkeys((*own, *other))]
    for name in dict.fromkeys((*found.own, *found.other)):
        before, after = found.own.get(name), found.other.get(name)
        change = f"{after - before:+.6g}" if before is not None and after is not None else ""
        rows.append((name, _number(before), _number(after), change))
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    for name, *cells in rows:
        shown = [cell.rjust(width) for cell, width in zip(cells, widths[1:], strict=True)]
        yield "  ".join([f"  {name.ljust(widths[0])}", *shown]).rstrip()
    yield f"kept on {found.ref}"
    yield "and nowhere else: its dvc.lock joins an old model with new features, so it never becomes a version"


def _shown(holdout: Mapping[str, Any]) -> dict[str, str]:
    """What a person reads of a holdout: its partition and size, not its digest."""
    return {
        key: f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
        for key, value in holdout.items()
        if key != "digest" and isinstance(value, str | int | float)
    }


def _number(value: float | None) -> str:
    return f"{value:g}" if value is not None else "-"
