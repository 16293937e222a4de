"""What git tells of every run that there was, as OpenLineage events in causal order: a producer before its consumers.

Events stand in the commits of the branch `data`, in the commits of runs, and in tags (a version's, an assignment's).
Clocks of machines differ, so that times decide only where nothing else does.
"""

from __future__ import annotations

import heapq
import json
import re
import uuid
from collections.abc import Callable, Collection, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from itertools import pairwise
from typing import Any, NamedTuple, TypeVar

from retrace.git import Git, Mirror, trailer
from retrace.lineage import event
from retrace.runs import DATA_BRANCH, INGEST_EVENT, SNAPSHOT

COMPLETE = "COMPLETE"
_STATES = (COMPLETE, "FAIL")
_GATE, _INGEST = "gate", "ingest"
_TAG = re.compile(r"(?P<model>[a-z][a-z0-9_]*)(@v|#(?P<alias>[a-z][a-z0-9_-]*)#)(?P<number>[1-9][0-9]*)")

_Node = TypeVar("_Node", bound=Hashable)


class Name(NamedTuple):
    """A job or a dataset."""

    namespace: str
    name: str


@dataclass(frozen=True)
class Read:
    """A dataset that a run read, and the run that had made what it read, where that is known."""

    dataset: Name
    run: str | None


class Parent(NamedTuple):
    """The DAG run that a run is a task of."""

    job: Name
    run_id: str


@dataclass(frozen=True)
class Told:
    """One committed event; `model` is None for an ingestion, `place` says where it stands, `content` is its JSON."""

    run_id: str
    job: Name
    model: str | None
    state: str
    started: datetime
    reads: tuple[Read, ...]
    outputs: tuple[Name, ...]
    parent: Parent | None
    place: str
    content: bytes

    @property
    def event(self) -> dict[str, Any]:
        """The event as it is to be posted."""
        return dict(json.loads(self.content))


@dataclass(frozen=True)
class History:
    """All events, a producer before its consumers; and what could not be read, in words."""

    events: Sequence[Told]
    problems: Sequence[str]


@dataclass
class _Retrain:
    """The events of one run: its stages in the chain's order, its registration, its gate."""

    model: str
    key: str
    stages: list[Told] = field(default_factory=list)
    registrations: list[Told] = field(default_factory=list)
    gates: list[Told] = field(default_factory=list)

    @property
    def line(self) -> list[Told]:
        """All of them, each after the one before it."""
        return [*self.stages, *self.registrations, *self.gates]

    @property
    def began(self) -> datetime:
        """When the snapshot was made: the first that is told of a run."""
        return self.stages[0].started


@dataclass(frozen=True)
class _Tag:
    model: str
    alias: str | None
    number: int
    commit: str
    event: str | None


@dataclass(frozen=True)
class _Commit:
    parent: str | None
    stage: str


def history(mirror: Mirror) -> History:
    """Every committed event once, from the origin's branch `data`, its runs and its tags.

    An event that cannot be read is left out and told. Raises `OriginUnavailable`, `TagMoved`, `GitError`.
    """
    mirror.fetch("+refs/heads/*:refs/heads/*", "+refs/runs/*:refs/runs/*", "refs/tags/*:refs/tags/*", "--prune")
    reader = _Reader(mirror)
    ingestions = reader.ingestions()
    tags = _tags(mirror)
    retrains = reader.retrains(tags)
    lines = [ingestions, *(retrain.line for retrain in retrains), *reader.assignments(tags)]
    before = _constraints(lines, retrains)
    by_id = {told.run_id: told for line in lines for told in line}
    order = in_order(by_id, before, lambda run_id: (by_id[run_id].started, run_id))
    return History([by_id[run_id] for run_id in order], reader.problems)


class _Reader:
    """Reads events out of git, each run id once."""

    def __init__(self, git: Git) -> None:
        self._git = git
        self._seen: set[str] = set()
        self.problems: list[str] = []

    def ingestions(self) -> list[Told]:
        """The events on the branch `data`, oldest first."""
        if self._git.resolve(DATA_BRANCH) is None:
            return []
        form = "%H%x1f%(trailers:key=Retrace-Stage,valueonly,separator=)"
        log = self._git.out("log", "--first-parent", "--reverse", f"--format={form}", DATA_BRANCH, "--")
        lines = (line.split("\x1f") for line in log.splitlines())
        commits = [commit for commit, stage in lines if stage == _INGEST]
        places = [f"{commit}:{INGEST_EVENT}" for commit in commits]
        return [told for told in self._read(places, [None] * len(places)) if told is not None]

    def retrains(self, tags: Iterable[_Tag]) -> list[_Retrain]:
        """The events of every run, with those of the versions that they became."""
        tags = list(tags)
        chains, owner = self._chains(tags)
        links = [(key, model, commit, stage) for key, model, chain in chains for commit, stage in chain]
        places = [f"{commit}:{event.path(model, _job(stage))}" for _, model, commit, stage in links]
        found = self._read(places, [model for _, model, _, _ in links])
        retrains = {key: _Retrain(model, key) for key, model, _ in chains}
        for (key, _, _, stage), told in zip(links, found, strict=True):
            if told is not None:
                retrain = retrains[key]
                (retrain.gates if _job(stage) == _GATE else retrain.stages).append(told)
        for tag in tags:
            if tag.alias is None and tag.commit in owner:
                told = self._tagged(tag)
                if told is not None:
                    retrains[owner[tag.commit]].registrations.append(told)
        return list(retrains.values())

    def assignments(self, tags: Iterable[_Tag]) -> list[list[Told]]:
        """The promotions and rollbacks that people made: of each model's alias in the order of their tags."""
        lines: dict[tuple[str, str], list[Told]] = {}
        for tag in tags:
            told = self._tagged(tag) if tag.alias is not None else None
            if tag.alias is not None and told is not None:
                lines.setdefault((tag.model, tag.alias), []).append(told)
        return list(lines.values())

    def _chains(self, tags: Iterable[_Tag]) -> tuple[list[tuple[str, str, list[tuple[str, str]]]], dict[str, str]]:
        """Of every run its first commit, its model and its commits with their stages; and commit -> first commit."""
        listing = self._git.out("for-each-ref", "--format=%(objectname) %(refname)", "refs/runs/").splitlines()
        heads = [(head, name.split("/")[2]) for head, name in (line.split(" ", 1) for line in listing)]
        heads += [(tag.commit, tag.model) for tag in tags if tag.alias is None]
        commits = _commits(self._git, {head for head, _ in heads})
        chains: dict[str, tuple[str, list[tuple[str, str]]]] = {}
        owner: dict[str, str] = {}
        for head, model in heads:
            links = _chain(commits, head)
            if not links:
                continue
            key = links[0][0]
            own = chains.setdefault(key, (model, []))[1]
            own += [link for link in links if link[0] not in owner]
            owner |= {commit: key for commit, _ in links}
        return [(key, model, links) for key, (model, links) in chains.items()], owner

    def _read(self, places: Sequence[str], models: Sequence[str | None]) -> list[Told | None]:
        contents = self._git.read_many(places)
        return [self._told(*found) for found in zip(places, models, contents, strict=True)]

    def _tagged(self, tag: _Tag) -> Told | None:
        if tag.event is None:
            return None
        name = f"{tag.model}@v{tag.number}" if tag.alias is None else f"{tag.model}#{tag.alias}#{tag.number}"
        return self._told(name, tag.model, tag.event.encode())

    def _told(self, place: str, model: str | None, content: bytes | None) -> Told | None:
        """The event at a place; None when an earlier place has it, or when it is none."""
        if content is None:
            self.problems.append(f"{_short(place)} is missing")
            return None
        try:
            told = _parsed(place, model, content)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            self.problems.append(f"{_short(place)} is no event ({type(error).__name__}: {error})")
            return None
        if told.run_id in self._seen:
            return None
        self._seen.add(told.run_id)
        return told


def _short(place: str) -> str:
    commit, colon, path = place.partition(":")
    return f"{commit[:12]}:{path}" if colon else place


def _job(stage: str) -> str:
    return stage.partition("@")[0]


def _parsed(place: str, model: str | None, content: bytes) -> Told:
    """The event in a file. Raises `ValueError` and its like for anything else."""
    body = json.loads(content)
    facts = body["run"]["facets"]["retrace"]
    if body["eventType"] not in _STATES or facts["source"] != "git":
        raise ValueError("it is not the end of a run, or not from a commit")
    datetime.fromisoformat(body["eventTime"])
    started = datetime.fromisoformat(facts["startedAt"])
    if started.tzinfo is None:
        raise ValueError("startedAt has no time zone")
    producers = {str(read["dataset"]): read["run"] for read in facts.get("reads", ())}
    if not all(run is None or isinstance(run, str) for run in producers.values()):
        raise ValueError("a run in reads is no text")
    inputs = [_name(dataset) for dataset in body["inputs"]]
    parent = body["run"]["facets"].get("parent")
    return Told(
        run_id=str(uuid.UUID(body["run"]["runId"])),
        job=_name(body["job"]),
        model=model,
        state=body["eventType"],
        started=started,
        reads=tuple(Read(dataset, producers.get(dataset.name)) for dataset in inputs),
        outputs=tuple(_name(dataset) for dataset in body["outputs"]),
        parent=None if parent is None else Parent(_name(parent["job"]), str(uuid.UUID(parent["run"]["runId"]))),
        place=place,
        content=content,
    )


def _name(thing: Mapping[str, Any]) -> Name:
    namespace, name = thing["namespace"], thing["name"]
    if not isinstance(namespace, str) or not isinstance(name, str):
        raise ValueError("a name is no text")
    return Name(namespace, name)


def _tags(git: Git) -> list[_Tag]:
    form = "%(refname:strip=2)%1f%(*objectname)%1f%(contents)%1e"
    tags = []
    for entry in git.out("for-each-ref", f"--format={form}", "refs/tags/").split("\x1e"):
        name, _, rest = entry.lstrip("\n").partition("\x1f")
        commit, _, text = rest.partition("\x1f")
        match = _TAG.fullmatch(name)
        if match is not None and commit:
            tags.append(_Tag(match["model"], match["alias"], int(match["number"]), commit, trailer(text, event.EVENT)))
    return sorted(tags, key=lambda tag: (tag.model, tag.alias or "", tag.number))


def _commits(git: Git, heads: Collection[str]) -> dict[str, _Commit]:
    """Every commit on the way back from the heads along first parents, in one process."""
    form = "%H%x1f%P%x1f%(trailers:key=Retrace-Stage,valueonly,separator=)"
    if not heads:
        return {}
    names = "".join(f"{head}\n" for head in sorted(heads)).encode()
    log = git.out("log", "--first-parent", f"--format={form}", "--stdin", stdin=names)
    commits = {}
    for line in log.splitlines():
        commit, parents, stage = line.split("\x1f")
        commits[commit] = _Commit(parents.split()[0] if parents else None, stage)
    return commits


def _chain(commits: Mapping[str, _Commit], head: str) -> list[tuple[str, str]]:
    """The commits of a run with their stages, from its snapshot to `head`."""
    links: list[tuple[str, str]] = []
    place: str | None = head
    while place is not None and commits[place].stage:
        links.append((place, commits[place].stage))
        if commits[place].stage == SNAPSHOT:
            break
        place = commits[place].parent
    return links[::-1]


def _constraints(lines: Iterable[Sequence[Told]], retrains: Sequence[_Retrain]) -> dict[str, set[str]]:
    """Run id -> run ids that come before it: who wrote what it reads, and who came before it in its own line."""
    before: dict[str, set[str]] = {}
    for line in lines:
        for told in line:
            before[told.run_id] = {read.run for read in told.reads if read.run is not None}
        for first, second in pairwise(line):
            before[second.run_id].add(first.run_id)
    models: dict[str, list[_Retrain]] = {}
    for retrain in retrains:
        if retrain.stages:
            models.setdefault(retrain.model, []).append(retrain)
    for own in models.values():
        for earlier, later in pairwise(_in_order_of_runs(own)):
            before[later.stages[0].run_id].add([*earlier.stages, *earlier.registrations][-1].run_id)
    return before


def _in_order_of_runs(retrains: Sequence[_Retrain]) -> list[_Retrain]:
    """The runs of a model in the order in which they began, and never before one whose results they took over."""
    by_key = {retrain.key: retrain for retrain in retrains}
    owner = {told.run_id: retrain.key for retrain in retrains for told in retrain.stages}
    before: dict[str, set[str]] = {}
    for retrain in retrains:
        made = {owner[read.run] for told in retrain.stages for read in told.reads if read.run in owner}
        before[retrain.key] = made - {retrain.key}
    return [by_key[key] for key in in_order(by_key, before, lambda key: (by_key[key].began, key))]


def in_order(
    nodes: Collection[_Node], before: Mapping[_Node, Collection[_Node]], rank: Callable[[_Node], Any]
) -> list[_Node]:
    """The nodes, each after those that come before it, and otherwise by rank.

    Where nodes wait for each other in a circle (a history that people edited) the lowest goes first.
    """
    waiting = {node: {other for other in before.get(node, ()) if other in nodes and other != node} for node in nodes}
    followers: dict[_Node, list[_Node]] = {}
    for node, others in waiting.items():
        for other in others:
            followers.setdefault(other, []).append(node)
    ready = [(rank(node), node) for node, others in waiting.items() if not others]
    heapq.heapify(ready)
    order: list[_Node] = []
    done: set[_Node] = set()
    while len(order) < len(waiting):
        node = heapq.heappop(ready)[1] if ready else min((node for node in waiting if node not in done), key=rank)
        if node in done:
            continue
        order.append(node)
        done.add(node)
        for follower in followers.get(node, ()):
            waiting[follower].discard(node)
            if not waiting[follower] and follower not in done:
                heapq.heappush(ready, (rank(follower), follower))
    return order
