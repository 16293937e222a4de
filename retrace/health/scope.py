"""What the doctor looks at: this machine's copy of the record as the origin has it now, and which services answer."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime

from retrace import versions
from retrace.config import DoctorSettings, Settings
from retrace.errors import RetraceError
from retrace.git import Git, Mirror, TagMoved
from retrace.runs import DATA_BRANCH, code_commit, params_at
from retrace.versions import Version
from retrace.workspace import Remote, remote_of

NEWEST_DATA = "the newest data"
ORIGIN, REMOTE, INDEX, MLFLOW, CONSUMER = "git origin", "DVC remote", "package index", "MLflow", "lineage consumer"


@dataclass
class Scope:
    """The record and its surroundings; `asked` names the services that were, `silent` says why one did not answer.

    `origin_refs` is what the origin has; None when it does not answer, and then the mirror is as old as its last fetch.
    `tags_before` is what the mirror knew before it was brought up to the origin, at `looked`.
    """

    settings: Settings
    mirror: Mirror
    code: str | None
    schedule: DoctorSettings
    versions: list[Version]
    origin_refs: dict[str, str] | None
    tags_before: dict[str, str]
    looked: datetime
    follow: Callable[[str], None]
    asked: list[str] = field(default_factory=list)
    silent: dict[str, str] = field(default_factory=dict)

    @property
    def data(self) -> str | None:
        """The newest commit of the branch `data`."""
        return self.mirror.resolve(DATA_BRANCH)

    def remote(self) -> Remote | None:
        """The DVC remote of today's code; None while there is no code. Raises `NoRemote`."""
        if self.code is None:
            return None
        return remote_of(self.settings, (self.mirror.read(self.code, ".dvc/config") or b"").decode())


def look(settings: Settings, follow: Callable[[str], None]) -> Scope:
    """Bring the mirror up to the origin and read the versions. An origin that does not answer is itself a finding."""
    mirror = Mirror.open(settings.mirror, settings.origin)
    before, looked = local_refs(mirror, "refs/tags/"), datetime.now(UTC)
    silent: dict[str, str] = {}
    origin_refs: dict[str, str] | None = None
    code = mirror.resolve("refs/retrace/head")
    try:
        origin_refs = mirror.remote_refs()
        _fetch(mirror)
        code = code_commit(settings, mirror)
    except RetraceError as error:
        silent[ORIGIN] = str(error)
    schedule = params_at(mirror, code).doctor if code is not None else DoctorSettings()
    known = versions.versions(mirror)
    return Scope(settings, mirror, code, schedule, known, origin_refs, before, looked, follow, [ORIGIN], silent)


def _fetch(mirror: Mirror) -> None:
    kinds = ("heads", "verdicts", "forgotten", "runs", "scores", "locks")
    mirror.fetch("--prune", *(f"+refs/{kind}/*:refs/{kind}/*" for kind in kinds))
    try:
        mirror.fetch("refs/tags/*:refs/tags/*")
    except TagMoved:
        return  # told of every such tag by comparing what origin and mirror have


def local_refs(mirror: Mirror, prefix: str) -> dict[str, str]:
    """Ref -> object id of what the mirror has."""
    lines = mirror.out("for-each-ref", "--format=%(refname) %(objectname)", prefix).splitlines()
    return dict(line.split(" ", 1) for line in lines)


def object_ids(git: Git, names: Iterable[str]) -> dict[str, str]:
    """`commit:path` (or any other name) -> the object's id, for those that are there; in one process."""
    wanted = [name for name in dict.fromkeys(names) if "\n" not in name]
    request = "".join(f"{name}\n" for name in wanted).encode()
    lines = git.out("cat-file", "--batch-check=%(objectname)", "--buffer", stdin=request).splitlines()
    return {name: line for name, line in zip(wanted, lines, strict=True) if not line.endswith(" missing")}
