"""Code: which versions have a file as of some commit, and which contain a commit."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from retrace.dvcfiles import overlap, stages
from retrace.git import trailer
from retrace.lineage import event
from retrace.runs import DATA_BRANCH
from retrace.usage.answer import SHORT, Answer, Content, UnknownThing, Use, counted
from retrace.usage.holdings import Holdings

_PIPELINE = "dvc.yaml"
_PARAMS = "params.yaml"


def about_path(holdings: Holdings, path: str, revision: str | None) -> Answer | None:
    """The answer about a file or folder in git, with all its contents in versions, or that of a commit.

    None if neither a version nor a branch has the path. Raises `UnknownThing` if the commit does not.
    """
    having = holdings.at(path)
    asked = {"kind": "code", "path": path, "commit": revision}
    if revision is not None:
        wanted = holdings.ids([f"{revision}:{path}"])[0]
        if wanted is None:
            raise UnknownThing(f"commit {revision[:SHORT]} has no {path}; git log -- {path} tells which do")
        having = {name: oid for name, oid in having.items() if oid == wanted}
    elif not having:
        return Answer(path, asked, [], notes=[_NOT_YET]) if _on_a_branch(holdings, path) else None
    declared = _declared(holdings, having, path)
    uses = [
        Use(
            holdings.named[name],
            f"{_titled(oid)}, {_stages_told(path, declared[name])}",
            {"path": path, "blob": oid, "stages": declared[name]},
        )
        for name, oid in having.items()
    ]
    title = f"{path} as of {revision[:SHORT]}" if revision else path
    contents = list(_contents(holdings, having)) if revision is None else []
    if len(contents) > 1:
        title += f", {counted(len(contents), 'content')}"
    unused = [name for name, found in declared.items() if not found]
    notes = [_UNDECLARED.format(path=path, versions=", ".join(unused[-3:]))] if unused else []
    if path == _PARAMS and len(unused) < len(declared):
        notes.append(_BY_KEY)
    return Answer(title, asked, uses, contents, notes)


_NOT_YET = "a branch has this path, but no version does"
_UNDECLARED = (
    "no stage of dvc.yaml declares {path} among its deps (as of {versions}): the versions have it, but a change of it "
    "would make no stage run again"
)
_BY_KEY = (
    "a stage reads the keys of params.yaml that its params: in dvc.yaml name, and runs again when one of them changes; "
    "`retrace diff` tells in which keys two versions differ"
)


def _on_a_branch(holdings: Holdings, path: str) -> bool:
    heads = holdings.git.out("for-each-ref", "--format=%(objectname)", "refs/heads").splitlines()
    return any(holdings.ids([f"{head}:{path}" for head in heads]))


def _titled(oid: str) -> str:
    return f"blob {oid[:SHORT]}"


def _stages_told(path: str, found: Iterable[str]) -> str:
    listed = ", ".join(found)
    read = "keys of it read by" if path == _PARAMS else "read by"
    return f"{read} {listed}" if listed else "declared by no stage"


def _contents(holdings: Holdings, having: Mapping[str, str]) -> Iterable[Content]:
    """The distinct contents, in the order of the versions, each with the code of the first version that has it."""
    by_content: dict[str, list[str]] = {}
    for name, oid in having.items():
        by_content.setdefault(oid, []).append(name)
    first = [holdings.named[found[0]] for found in by_content.values()]
    told = holdings.git.read_many([f"{version.commit}:{event.path(version.model, 'snapshot')}" for version in first])
    for (oid, found), snapshot in zip(by_content.items(), told, strict=True):
        code = str(event.facts_of(snapshot)["code"]) if snapshot is not None else None
        text = _titled(oid) + (f"  as of commit {code[:SHORT]}" if code else "")
        yield Content(text, {"blob": oid, "code": code}, tuple(found))


def _declared(holdings: Holdings, having: Iterable[str], path: str) -> dict[str, list[str]]:
    """Version name -> the stages of its own dvc.yaml that depend on the path, on a folder that it lies in,
    or on keys of it."""
    pipelines = holdings.at(_PIPELINE)
    chosen = {name: pipelines[name] for name in having if name in pipelines}
    templates = {
        oid: stages(content.decode(), f"{_PIPELINE} {oid[:SHORT]}")
        for oid, content in holdings.contents(chosen.values())
    }
    found = {}
    for name in having:
        model = holdings.named[name].model
        found[name] = [
            stage.name
            for stage in templates.get(chosen.get(name, ""), ())
            if any(overlap(item.replace("${key}", model), path) for item in stage.dependencies)
            or (path == _PARAMS and stage.parameters)
        ]
    return found


def about_commit(holdings: Holdings, commit: str) -> Answer:
    """The answer about a commit: the versions whose history has it, be it of the code, of the data or of a run."""
    listed = holdings.git.out(
        "for-each-ref", f"--contains={commit}", "--format=%(refname:strip=2)", "refs/tags/*@v*"
    ).splitlines()
    of_data = holdings.git.run("merge-base", "--is-ancestor", commit, DATA_BRANCH).returncode == 0
    told = holdings.git.message(commit)
    kind = "data" if of_data else "run" if trailer(told, "Retrace-Stage") else "code"
    uses = []
    for version in holdings.versions:
        if version.name in listed:
            how = _how(version.commit, version.data, commit, kind)
            uses.append(Use(version, how, {"commit": commit, "how": how}))
    return Answer(
        f"{commit[:SHORT]}  {told.partition(chr(10))[0]}", {"kind": "commit", "commit": commit, "of": kind}, uses
    )


def _how(own: str, data: str, commit: str, kind: str) -> str:
    if commit == own:
        return "the version's own commit"
    if commit == data:
        return "its data"
    if kind == "run":
        return "a commit of its run"
    return f"in the history of its {kind}"
