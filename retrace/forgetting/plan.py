"""What a request to be forgotten would cost: computed from git and the search's hits, before anything is changed."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from retrace import versions
from retrace.dvcfiles import RAW
from retrace.forgetting.derived import tainted
from retrace.forgetting.history import Carrier, History, RawState, object_ids
from retrace.git import Git
from retrace.manifest import Partition, parse_manifest
from retrace.runs import DATA_BRANCH
from retrace.search import Hit
from retrace.tombstones import Tombstone
from retrace.versions import Version


@dataclass(frozen=True)
class Request:
    """Whose records are to go: the dataset and the ticket. The condition is personal data and is never part of it."""

    dataset: str
    ticket: str


@dataclass(frozen=True)
class Replacement:
    """A partition of the newest data that holds records, and how many."""

    partition: Partition
    rows: int


@dataclass(frozen=True)
class Plan:
    """All that would be lost, and what stays although it derives from the records.

    `stones` are for every object that goes, those of an earlier try of the same ticket among them; `shared` counts the
    objects that stay because something without the records has them, too.
    """

    request: Request
    replacements: tuple[Replacement, ...]
    partitions: tuple[Hit, ...]
    stones: tuple[Tombstone, ...]
    versions: tuple[Version, ...]
    aliases: Mapping[str, tuple[str, ...]]
    runs: tuple[str, ...]
    in_git: tuple[str, ...]
    shared: int

    @property
    def empty(self) -> bool:
        """Whether there is nothing to do."""
        return not self.stones


def every_partition(known: History, dataset: str) -> tuple[Partition, ...]:
    """Every content that a partition of the dataset ever had, as far as git knows."""
    found = {
        (part.path, part.md5): part for state in known.states if state.dataset == dataset for part in state.partitions
    }
    return tuple(part for _, part in sorted(found.items()))


def newest(git: Git, dataset: str) -> tuple[Partition, ...]:
    """The partitions of the dataset on the branch data."""
    path = f"{RAW}/{dataset}.manifest"
    text = git.read(DATA_BRANCH, path)
    return parse_manifest(text.decode() if text else "", f"{path} on data")


def plan(git: Git, known: History, request: Request, hits: Sequence[Hit], buried: Mapping[str, Tombstone]) -> Plan:
    """What the request costs: `hits` are the partitions, old ones too, that hold the records; `buried` what is
    forgotten already, be it by an earlier try of this request."""
    own = [stone for stone in buried.values() if stone.ticket == request.ticket]
    parts = {hit.md5 for hit in hits} | {stone.md5 for stone in own if stone.raw and not stone.md5.endswith(".dir")}
    bad_states = [state for state in known.states if any(part.md5 in parts for part in state.partitions)]
    raw = parts | {state.md5 for state in bad_states} | {stone.md5 for stone in own if stone.raw}
    impure = tainted(known.events.values(), raw)
    touched = [carrier for carrier in known.carriers if _carries(known, carrier, impure)]
    gone = tuple(carrier.version for carrier in touched if carrier.version is not None)
    in_git = _in_git(git, known, touched, impure)
    pure = _pure(known, raw, impure)
    found = dict(_objects(known, bad_states, parts, impure, request, {path for _, path in in_git}))
    found |= {stone.md5: stone for stone in own}
    stones = {md5: buried.get(md5, stone) for md5, stone in found.items() if md5 not in pure}
    rows = {hit.md5: hit.rows for hit in hits}
    return Plan(
        request=request,
        replacements=tuple(
            Replacement(part, rows[part.md5]) for part in newest(git, request.dataset) if part.md5 in rows
        ),
        partitions=tuple(hits),
        stones=tuple(sorted(stones.values(), key=lambda stone: (stone.path, stone.md5))),
        versions=tuple(sorted(gone, key=lambda version: (version.model, version.number))),
        aliases=_aliases(git, gone),
        runs=tuple(sorted(_without_version(known, touched))),
        in_git=tuple(sorted({path for _, path in in_git})),
        shared=len(found.keys() & pure),
    )


def _carries(known: History, carrier: Carrier, impure: Collection[str]) -> bool:
    """Whether a commit has something of its own model (a version) or of any (a run, a branch) that is impure."""
    prefix = f"lineage/{carrier.version.model}/" if carrier.version is not None else "lineage/"
    events = (known.events.get(blob) for path, blob in carrier.events.items() if path.startswith(prefix))
    return any(made is not None and made.run in impure and made.outputs for made in events)


def _without_version(known: History, touched: Iterable[Carrier]) -> Iterable[str]:
    """The touched refs that are no version and did not become one."""
    made = {carrier.version.run_ref for carrier in known.carriers if carrier.version is not None}
    return (carrier.name for carrier in touched if carrier.version is None and carrier.name not in made)


def _in_git(git: Git, known: History, touched: Iterable[Carrier], impure: Collection[str]) -> set[tuple[str, str]]:
    """(carrier, path) of the outputs of impure runs that stand in git itself."""
    wanted = [
        (carrier.commit, path)
        for carrier in touched
        for blob in carrier.events.values()
        if (made := known.events.get(blob)) is not None and made.run in impure
        for path in made.outputs
    ]
    ids = object_ids(git, [f"{commit}:{path}" for commit, path in wanted])
    return {place for place, oid in zip(wanted, ids, strict=True) if oid is not None}


def _pure(known: History, raw: Collection[str], impure: Collection[str]) -> set[str]:
    """The md5 of everything that something without the records has: data, or what was made of it."""
    states = [state for state in known.states if state.md5 not in raw]
    found = {state.md5 for state in states}
    found |= {part.md5 for state in known.states for part in state.partitions if part.md5 not in raw}
    return found | {md5 for made in known.events.values() if made.run not in impure for md5 in made.objects}


def _objects(
    known: History,
    bad_states: Iterable[RawState],
    parts: Collection[str],
    impure: Collection[str],
    request: Request,
    in_git: Collection[str],
) -> Iterable[tuple[str, Tombstone]]:
    """md5 -> the tombstone of everything that holds the records or was made of them."""
    today = f"{datetime.now(UTC):%Y-%m-%d}"
    for made in known.events.values():
        if made.run in impure:
            for path, (md5, sha256) in made.outputs.items():
                if path not in in_git:
                    yield md5, Tombstone(md5, sha256, request.ticket, today, path)
    for state in bad_states:
        yield state.md5, Tombstone(state.md5, None, request.ticket, today, f"{RAW}/{state.dataset}")
        for part in state.partitions:
            if part.md5 in parts:
                yield part.md5, Tombstone(part.md5, part.sha256, request.ticket, today, part.path)


def _aliases(git: Git, gone: Iterable[Version]) -> dict[str, tuple[str, ...]]:
    """Version name -> the aliases that it holds now."""
    names = {version.name for version in gone}
    held: dict[str, list[str]] = {}
    for (_, alias), version in versions.champions(git).items():
        if version.name in names:
            held.setdefault(version.name, []).append(alias)
    return {name: tuple(sorted(aliases)) for name, aliases in held.items()}
