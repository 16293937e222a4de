"""Whether a version's commit agrees with itself: dvc.lock, the events, the manifests, and what lies in git."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence

from retrace.git import Git
from retrace.hashing import md5_of
from retrace.proof.finding import Finding, fails, holds
from retrace.proof.tracked import Tracked
from retrace.record import Record

CHECK = "record"


def check_record(git: Git, record: Record, things: Sequence[Tracked]) -> Iterator[Finding]:
    """What disagrees, one finding each, or that nothing does."""
    in_git = git.files(record.version.commit)
    wrong = [*_lock_and_events(record), *_folders(things), *_read_files(git, record, things, in_git)]
    wrong += _files_in_git(git, things, in_git)
    yield from (fails(CHECK, text) for text in wrong)
    if not wrong:
        yield holds(CHECK, "dvc.lock, the events of the stages, the manifests and the files in git agree")


def _lock_and_events(record: Record) -> Iterator[str]:
    """An event lists the sha256 of what its stage made, dvc.lock names what a checkout brings: one and the same."""
    locked = record.outputs()
    told = {output["path"]: output["md5"] for stage in record.stages for output in stage.facts["outputs"]}
    for path in sorted(locked.keys() | told.keys()):
        if locked.get(path) != told.get(path):
            yield f"dvc.lock has md5 {locked.get(path)} for {path} and the event of its stage {told.get(path)}"


def _folders(things: Sequence[Tracked]) -> Iterator[str]:
    for thing in things:
        whole = f"{md5_of(thing.directory_object)}.dir" if thing.md5.endswith(".dir") else _only(thing)
        if whole != thing.md5:
            yield f"{thing.path} has md5 {thing.md5}, which is not that of the files that the record lists for it"


def _only(thing: Tracked) -> str | None:
    return thing.files[0].md5 if [file.path for file in thing.files] == [thing.path] else None


def _read_files(git: Git, record: Record, things: Sequence[Tracked], in_git: dict[str, str]) -> Iterator[str]:
    """What dvc.lock says that a stage read must be what this commit has of it: data, earlier outputs, code."""
    known = {thing.path: thing.md5 for thing in things}
    reads = [(address, dep) for address, entry in sorted(record.lock.items()) for dep in entry.get("deps", ())]
    code = sorted({dep["path"] for _, dep in reads if dep["path"] in in_git and dep["path"] not in known})
    contents = git.read_many([in_git[path] for path in code])
    known |= {path: md5_of(content or b"") for path, content in zip(code, contents, strict=True)}
    for address, dep in reads:
        if known.get(dep["path"], dep["md5"]) != dep["md5"]:
            here = known[dep["path"]]
            yield f"dvc.lock says that {address} read {dep['path']} with md5 {dep['md5']}; here it is {here}"


def _files_in_git(git: Git, things: Sequence[Tracked], in_git: dict[str, str]) -> Iterator[str]:
    """Outputs that DVC leaves to git (metrics, reports) are in the commit itself."""
    files = [file for thing in things for file in thing.files if file.path in in_git]
    contents = git.read_many([in_git[file.path] for file in files])
    for file, content in zip(files, contents, strict=True):
        if hashlib.sha256(content or b"").hexdigest() != file.sha256:
            yield f"{file.path} in the commit is not what its stage wrote (sha256 {file.sha256[:12]}… recorded)"
