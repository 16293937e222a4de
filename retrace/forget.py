"""`retrace forget`: remove a person's records from all data, with all that was made of them.

In this order, so that the same command finishes what a crash broke off: partitions without the records are pushed and
committed; tombstones keep every old object from coming back; the objects are deleted; verdicts say why the versions
can no longer be rebuilt; MLflow loses its copies. Until the tombstones stand, the search finds the records again; from
then on the ticket does. The condition is personal data: it stays in this process' memory and is written nowhere.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from retrace import lease, versions
from retrace.config import ConfigError, Params, Settings
from retrace.dvcfiles import RAW
from retrace.errors import RetraceError
from retrace.forgetting.find import Found, ask_source, find
from retrace.forgetting.history import History, fetch_all, history
from retrace.forgetting.plan import Plan, Request, every_partition, plan
from retrace.forgetting.purge import judge, judged, kept_rebuilds, purge_objects, purge_registry
from retrace.forgetting.rewrite import replace_partitions
from retrace.forgetting.source import source
from retrace.forgetting.text import done_already, done_lines, nothing_lines, plan_lines
from retrace.git import Mirror
from retrace.ingest import Fetch
from retrace.runs import code_commit, params_at
from retrace.tombstones import Tombstone, bury, tombstones
from retrace.workspace import temporary_folder

_TICKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")

Ask = Callable[[str], str]


class TicketRefused(ConfigError):
    """A ticket's id that cannot stand in git."""


class UnknownDataset(ConfigError):
    """No raw dataset of that name."""


class NoCondition(ConfigError):
    """It was not said which records."""


class RecordMoved(RetraceError):
    """Something was ingested, trained or promoted between the plan and the consent to it."""


def run_forget(settings: Settings, dataset: str, condition: str, ticket: str, ask: Ask | None) -> int:
    """`retrace forget`: the exit code, 0 only when nothing is left to do.

    Raises `TicketRefused`, `UnknownDataset`, `NoCondition`, `ConditionRefused`, `SourceStillHas`, `SourceNotAsked`,
    `RecordMoved`, `ModelBusy`, and what git or the remote may raise; the same command goes on from there.
    """
    if not _TICKET.fullmatch(ticket):
        raise TicketRefused(f"{ticket[:80]!r} is no ticket's id: use letters, digits and . _ - (at most 64)")
    if not condition:
        raise NoCondition("no condition given; name the records with --where, or write it to standard input")
    return forget(settings, Request(dataset, ticket), condition, ask)


def forget(
    settings: Settings,
    request: Request,
    condition: str,
    ask: Ask | None,
    fetch: Fetch | None = None,
    follow: Callable[[str], None] = lambda step: None,
) -> int:
    """Show what a request costs, ask, and carry it out. `fetch` reads the source, by default through Airflow's
    Connection; `follow` hears of each step before it begins."""
    mirror = Mirror.open(settings.mirror, settings.origin)
    seen = _refs(mirror)
    fetch_all(mirror)
    code = code_commit(settings, mirror)
    params = params_at(mirror, code)
    if request.dataset not in params.ingest.datasets:
        raise UnknownDataset(f"no dataset {request.dataset!r}; params.yaml has {', '.join(params.ingest.datasets)}")
    with temporary_folder(settings, "forget") as folder:
        case = _Case.of(settings, mirror, code, request, condition, folder)
        if case.plan.empty:
            return _tell(nothing_lines(case.plan, case.found, len(every_partition(case.known, request.dataset))))
        if case.finished:
            with _undisturbed(settings, mirror, params, request):
                return case.carry_out(condition, follow)
        _tell(plan_lines(case.plan, case.found, kept_rebuilds(settings, case.plan)))
        names = case.intervals()
        ask_source(params.ingest, request.dataset, names, condition, fetch or source(settings, params), folder)
        if ask is not None and (answer := ask("forget all of this? [y/N] ").strip().lower()) not in ("y", "yes"):
            print("nothing is changed" if answer else "nothing is changed; answer y at a terminal, or add --yes")
            return 1
        with _undisturbed(settings, mirror, params, request):
            if _refs(mirror) != seen:
                raise RecordMoved("something was ingested, trained or promoted meanwhile: run this again, and look")
            return case.carry_out(condition, follow)


@dataclass(frozen=True)
class _Case:
    """A request, what it concerns, and what is to be done."""

    settings: Settings
    mirror: Mirror
    code: str
    known: History
    found: Found
    plan: Plan
    buried: Mapping[str, Tombstone]

    @classmethod
    def of(
        cls,
        settings: Settings,
        mirror: Mirror,
        code: str,
        request: Request,
        condition: str,
        folder: Path,
    ) -> _Case:
        known = history(mirror)
        buried = tombstones(mirror)
        partitions = [part for part in every_partition(known, request.dataset) if part.md5 not in buried]
        found = find(settings, mirror, code, partitions, condition, folder)
        cost = plan(mirror, known, request, found.hits, buried)
        return cls(settings, mirror, code, known, found, cost, buried)

    def intervals(self) -> set[str]:
        """The names of the partitions that hold records, or held them before an earlier try of this request."""
        prefix = f"{RAW}/{self.plan.request.dataset}/"
        paths = [stone.path for stone in self.plan.stones if stone.path.startswith(prefix)]
        return {Path(path).stem for path in paths}

    @property
    def finished(self) -> bool:
        """Whether the request was consented to and carried out up to its verdicts: only what came back since, or what
        MLflow still has, can be left."""
        if self.found.hits or any(stone.md5 not in self.buried for stone in self.plan.stones):
            return False
        return judged(self.mirror, self.plan)

    def carry_out(self, condition: str, follow: Callable[[str], None]) -> int:
        """All steps that are left; the exit code."""
        settings, mirror, code, plan = self.settings, self.mirror, self.code, self.plan
        again = self.finished and not kept_rebuilds(settings, plan)
        commit = None
        if plan.replacements:
            follow("replace")
            commit = replace_partitions(settings, mirror, code, plan, condition, self.found.files)
        follow("bury")
        bury(mirror, plan.stones, plan.request.ticket)
        follow("purge")
        purged = purge_objects(settings, mirror, code, plan)
        follow("judge")
        judge(mirror, self.known, plan)
        follow("registry")
        left = purge_registry(settings, mirror, plan)
        nothing = again and not (purged.remote or purged.cache or left)
        _tell([done_already(plan)] if nothing else done_lines(plan, commit, purged))
        if left:
            _tell([f"LEFT: {line}" for line in left] + ["run the same command again to finish this"])
        return 1 if left else 0


def _tell(lines: Iterator[str] | list[str]) -> int:
    for line in lines:
        print(line, flush=True)
    return 0


def _refs(mirror: Mirror) -> Mapping[str, str]:
    """What the origin has, but for who is at work."""
    return {ref: oid for ref, oid in mirror.remote_refs().items() if not ref.startswith("refs/locks/")}


@contextmanager
def _undisturbed(settings: Settings, mirror: Mirror, params: Params, request: Request) -> Iterator[None]:
    """Hold the lease of every model: a retrain that began before would push what derives from the records.

    Raises `ModelBusy`.
    """
    run_id = f"forget {request.ticket}"
    models = sorted({*params.models, *(version.model for version in versions.versions(mirror))})
    taken: list[str] = []
    try:
        for model in models:
            lease.take(mirror, model, run_id, settings.lease_minutes, lease.this_process())
            taken.append(model)
        yield
    finally:
        for model in taken:
            lease.release(mirror, model, run_id)
