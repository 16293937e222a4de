"""Whether git still has all that a version stands for: tags that nobody moved, runs, code, data, events."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from retrace.git import is_commit_id, trailer
from retrace.health.finding import Finding, Section, named
from retrace.health.needs import Needs
from retrace.health.scope import Scope, local_refs, object_ids
from retrace.lineage.event import EVENT
from retrace.versions import ASSIGNMENT_NAME, VERSION_NAME
from retrace.wording import counted

_SECTION = "refs"
_TAGS = "refs/tags/"


def refs(scope: Scope, needs: Needs) -> Section:
    """Compare the tags of origin and mirror, and look for what each version's tag and commit name."""
    plain = _plain_tags(scope)
    findings = [
        *_moved(scope),
        *_removed(scope),
        *_in_the_way(plain),
        *_gaps(scope, plain),
        *_runs(scope),
        *_commits(scope),
        *_events(scope, needs),
    ]
    summary = counted(len(scope.versions), "version")
    return Section(_SECTION, summary if findings else f"{summary}, all whole", tuple(findings))


def _plain_tags(scope: Scope) -> list[str]:
    """Tags that look like ours and stand for nothing: not annotated, or not in the grammar."""
    listing = scope.mirror.out("for-each-ref", "--format=%(objecttype) %(refname:strip=2)", _TAGS).splitlines()
    found = (line.split(" ", 1) for line in listing)
    return [
        name
        for kind, name in found
        if (kind != "tag" and ("@v" in name or "#" in name))
        or ("@v" in name and not VERSION_NAME.fullmatch(name))
        or ("#" in name and not ASSIGNMENT_NAME.fullmatch(name))
    ]


def _moved(scope: Scope) -> Iterator[Finding]:
    """Tags that are not the object that this machine has known: nothing of ours ever moves one."""
    for ref, known in local_refs(scope.mirror, _TAGS).items():
        now = (scope.origin_refs or {}).get(ref, known)
        name = ref.removeprefix(_TAGS)
        if now != known and (VERSION_NAME.fullmatch(name) or ASSIGNMENT_NAME.fullmatch(name)):
            moved = f"the tag {name} was moved in the origin: it is {now[:12]} there and was {known[:12]} here"
            text = f"{moved}; find out who did, and put the right one back"
            yield Finding("tag-moved", text, facts={"tag": name, "origin": now, "known": known})


def _removed(scope: Scope) -> Iterator[Finding]:
    """Tags that the mirror had and the origin has no more."""
    if scope.origin_refs is None:
        return
    for ref in scope.tags_before.keys() - scope.origin_refs.keys():
        name = ref.removeprefix(_TAGS)
        if VERSION_NAME.fullmatch(name) or ASSIGNMENT_NAME.fullmatch(name):
            known = scope.tags_before[ref]
            text = (
                f"the tag {name} was removed from the origin; this machine still has it: "
                f"git -C {scope.mirror.directory} push {scope.mirror.origin} {known}:{ref}"
            )
            yield Finding("tag-removed", text, facts={"tag": name, "known": known})


def _in_the_way(plain: Iterable[str]) -> Iterator[Finding]:
    for name in plain:
        text = (
            f"the tag {name} is none of Retrace's (not annotated, or not MODEL@vN or MODEL#ALIAS#N) and stands for "
            f"nothing; remove it: git push --delete ORIGIN {_TAGS}{name}"
        )
        yield Finding("tag-in-the-way", text, facts={"tag": name})


def _gaps(scope: Scope, plain: Iterable[str]) -> Iterator[Finding]:
    """Numbers count up by one: one that is missing was a version."""
    numbers: dict[str, set[int]] = {}
    for name in (*(version.name for version in scope.versions), *plain):
        if match := VERSION_NAME.fullmatch(name):
            numbers.setdefault(match["model"], set()).add(int(match["number"]))
    for model, own in sorted(numbers.items()):
        gone = [f"{model}@v{number}" for number in range(1, max(own)) if number not in own]
        if gone:
            text = f"there is no tag of {named(gone)}, though of later versions: push it from a clone that has it"
            yield Finding("version-gone", text, facts={"versions": gone})


def _runs(scope: Scope) -> Iterator[Finding]:
    """A version's run ref holds what its gate said; the version itself stands without it."""
    if scope.origin_refs is None:
        return
    known = local_refs(scope.mirror, "refs/runs/")
    heads = {head: f"{head}^" for head in known.values()}
    parents = object_ids(scope.mirror, heads.values())
    for version in scope.versions:
        head = scope.origin_refs.get(version.run_ref)
        if head is None:
            text = f"{version.run_ref or 'the run ref'} of {version.name} is gone: what its gate said is lost"
            yield Finding("run-missing", text, facts={"versions": [version.name], "ref": version.run_ref})
        elif version.commit not in (head, parents.get(f"{head}^")) and not _is_ancestor(scope, version.commit, head):
            text = f"{version.run_ref} no longer leads to {version.name}: it was rewritten"
            yield Finding("run-rewritten", text, facts={"versions": [version.name], "ref": version.run_ref})


def _is_ancestor(scope: Scope, commit: str, head: str) -> bool:
    return scope.mirror.run("merge-base", "--is-ancestor", commit, head).returncode == 0


def _commits(scope: Scope) -> Iterator[Finding]:
    """Code, data and the version's own commit, as its tag names them."""
    texts = scope.mirror.read_many([version.tag_object for version in scope.versions])
    named_by: list[tuple[str, str, str]] = []
    for version, text in zip(scope.versions, texts, strict=True):
        told = (text or b"").decode(errors="replace")
        named_by += [(version.name, "commit", version.commit), (version.name, "data", version.data)]
        named_by.append((version.name, "code", trailer(told, "Retrace-Code") or ""))
        if trailer(told, EVENT) is None:
            text_ = f"the tag of {version.name} tells no lineage event: lineage does not know how it was registered"
            yield Finding("event-missing", text_, facts={"versions": [version.name], "path": "tag"})
    there = object_ids(scope.mirror, (f"{commit}^{{commit}}" for _, _, commit in named_by if is_commit_id(commit)))
    for name, kind, commit in named_by:
        if f"{commit}^{{commit}}" not in there:
            text_ = f"{name} cannot be rebuilt: its {kind} {commit[:12] or '(none is named)'} is not in git"
            yield Finding("commit-missing", text_, facts={"versions": [name], "what": kind, "commit": commit})


def _events(scope: Scope, needs: Needs) -> Iterator[Finding]:
    by_path: dict[str, list[str]] = {}
    for name, path in needs.lacks:
        by_path.setdefault(path, []).append(name)
    for path, names in by_path.items():
        text = f"the record of {named(names)} is not whole: its commit has no {path} that can be read"
        yield Finding("event-missing", text, facts={"versions": names, "path": path})
