"""Bring an OpenLineage consumer (Marquez) up to what git says. Running it again changes nothing.

Marquez binds an input to the version that is current when the event arrives, for good. So events are posted in causal
order, and steered: before a reader's event, the COMPLETE of whoever made what it read is posted again where another
version is current. That may need its own inputs to be steered first. At the end each job's last good COMPLETE, and the
newest version of each dataset, are posted again where something older came last.

Everything is asked of the consumer; a journal only saves questions. So a sync can be killed anywhere and run again.
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from retrace import lease
from retrace.config import Settings
from retrace.errors import TransientError
from retrace.git import Mirror
from retrace.lineage.consumer import Consumer, ConsumerSettings, EventRejected
from retrace.lineage.history import COMPLETE, Name, Parent, Read, Told, history
from retrace.lineage.journal import Journal
from retrace.wording import counted

_LEASE, _LEASE_MINUTES = "sync.lineage", 15.0
_RENEWAL_SECONDS = 30.0
_PROGRESS_SECONDS = 0.3
_PAGE = 100
_FINAL = frozenset({"COMPLETED", "FAILED", "ABORTED"})
_KEPT_IN_START = ("parent", "nominalTime")  # Marquez names the job by its parent


class SyncBusy(TransientError):
    """Another sync is under way."""


def sync_lineage(
    settings: Settings, mirror: Mirror, follow: Callable[[str], None], environ: Mapping[str, str]
) -> Iterator[str]:
    """Post what the environment's consumer lacks of git's history; what was done, line by line.

    `follow` hears how far it is. Raises `SyncBusy`, `ConsumerMisconfigured`, `ConsumerUnavailable`, `ConsumerRefuses`,
    `OriginUnavailable`; what was posted until then stays posted.
    """
    address = ConsumerSettings.of(environ)
    if address is None:
        yield "lineage: no consumer is set (OPENLINEAGE_URL); the events are in git"
        return
    with closing(Consumer(address, settings.patience)) as consumer, _alone(mirror) as renew:
        yield from _Sync(settings.var / "lineage", mirror, consumer, follow, renew).run()


@contextmanager
def _alone(mirror: Mirror) -> Iterator[Callable[[], None]]:
    """Hold the right to sync, on whatever machine: two at once would move current versions under each other.

    Yields what renews it. Raises `SyncBusy`.
    """
    writer = str(uuid.uuid4())

    def renew() -> None:
        try:
            lease.take(mirror, _LEASE, writer, _LEASE_MINUTES, lease.this_process())
        except lease.ModelBusy:
            raise SyncBusy("another `retrace sync` is bringing lineage up to date; wait for it to end") from None

    renew()
    try:
        yield renew
    finally:
        lease.release(mirror, _LEASE, writer)


@dataclass(frozen=True)
class _Picture:
    """How a consumer shows a job: its latest run, and what it reads and writes."""

    latest: Mapping[str, Any]
    inputs: frozenset[Name]
    outputs: frozenset[Name]

    def is_of_another(self, good: Told) -> bool:
        """Whether this is not the picture of the last good run: a START or a failure came after it."""
        reads = frozenset(read.dataset for read in good.reads)
        return bool(self.latest) and (self.inputs, self.outputs) != (reads, frozenset(good.outputs))


class _Sync:
    """One reconciliation. What the consumer shows is known from what is posted, and asked once where it is not."""

    def __init__(
        self,
        folder: Path,
        mirror: Mirror,
        consumer: Consumer,
        follow: Callable[[str], None],
        renew: Callable[[], None],
    ) -> None:
        self._mirror = mirror
        self._consumer = consumer
        self._url = consumer.settings.shown
        self._follow = follow
        self._renew = renew
        self._journal = Journal.load(folder, self._url)
        self._aside = folder / "rejected"
        told = history(mirror)
        self._problems = told.problems
        self._events = {event.run_id: event for event in told.events}
        self._order = {event.run_id: number for number, event in enumerate(told.events)}
        self._depth = _depths(told.events)
        self._last_of_parent = {event.parent: event.run_id for event in told.events}
        self._current: dict[Name, str | None] = {}
        self._shown: dict[Name, str] = {}
        self._jobs: dict[Name, _Picture] = {}
        self._busy: frozenset[str] = frozenset()
        self._left: dict[str, str] = {}
        self._rejected: dict[str, str] = {}
        self._deprived: list[Told] = []
        self._unknown: list[tuple[Told, Read]] = []
        self._sent = self._resent = 0
        self._next_renewal = self._next_progress = 0.0

    def run(self) -> Iterator[str]:
        """Do it; what there is to say."""
        if self._problems:
            count = counted(len(self._problems), "event")
            yield f"lineage: {count} in git left out as unreadable, such as {self._problems[0]}"
        try:
            self._tick()
            self._journal.drop(self._journal.held.keys() - self._events.keys())
            self._check_journal()
            self._bring_all()
            self._settle()
        finally:
            self._journal.save()
        yield from self._report()

    def _tick(self) -> None:
        """Now and then: keep the lease, look who is being retrained, write the journal."""
        if time.monotonic() < self._next_renewal:
            return
        self._renew()
        self._busy = _retrained_now(self._mirror, {told.model for told in self._events.values() if told.model})
        self._journal.save()
        self._next_renewal = time.monotonic() + _RENEWAL_SECONDS

    def _progress(self, done: int, total: int) -> None:
        if time.monotonic() >= self._next_progress or done == total:
            self._follow(f"{done} of {total} events")
            self._next_progress = time.monotonic() + _PROGRESS_SECONDS

    # What the consumer holds

    def _check_journal(self) -> None:
        """Trust the journal of a job if the run that was last seen is still there; forget all if any is gone."""
        last: dict[Name, str] = {}
        for run_id in self._journal.held:
            last[self._events[run_id].job] = run_id
        doubtful: set[Name] = set()
        for job, run_id in last.items():
            self._tick()
            latest = self._picture(job).latest
            answer = latest if latest.get("id") == run_id else self._consumer.run(run_id)
            if answer is None:
                self._journal.forget()
                return
            if not is_held(answer):
                doubtful.add(job)
        self._journal.drop({run_id for run_id in self._journal.held if self._events[run_id].job in doubtful})

    def _picture(self, job: Name) -> _Picture:
        """How the consumer shows a job, as it was when first asked in this sync."""
        if job not in self._jobs:
            answer = self._consumer.job(*job) or {}
            self._jobs[job] = _Picture(
                answer.get("latestRun") or {}, _names(answer.get("inputs")), _names(answer.get("outputs"))
            )
        return self._jobs[job]

    def _current_of(self, dataset: Name) -> str | None:
        """The run that made a dataset's current version; None if the consumer does not say."""
        if dataset not in self._current:
            self._current[dataset] = self._ask_current(dataset)
        return self._current[dataset]

    def _ask_current(self, dataset: Name) -> str | None:
        version = (self._consumer.dataset(*dataset) or {}).get("currentVersion")
        if version is None:
            return None
        known = self._journal.current.get(_key(dataset))
        if known is not None and known[0] == version:
            return known[1]
        page = self._consumer.versions(*dataset, limit=_PAGE) or {"versions": []}
        for found in page["versions"]:
            if found["version"] == version and found.get("createdByRun"):
                made = str(found["createdByRun"]["id"])
                self._journal.current[_key(dataset)] = (version, made)
                return made
        return None

    # Posting

    def _bring_all(self) -> None:
        """Every event that the journal does not know to be held, in order."""
        pending = [told for told in self._events.values() if told.run_id not in self._journal.held]
        for done, told in enumerate(pending, start=1):
            self._tick()
            if told.model is not None and (
                told.model in self._busy or any(read.run in self._left for read in told.reads)
            ):
                self._left[told.run_id] = told.model
            else:
                self._bring(told)
            self._progress(done, len(pending))

    def _bring(self, told: Told) -> None:
        answer = self._consumer.run(told.run_id)
        if not is_held(answer):
            self._unknown += [(told, read) for read in told.reads if self._maker(told, read) is None]
            if not self._deliver(told, answer):
                return
            self._sent += 1
        self._verify(told)

    def _deliver(self, told: Told, answer: dict[str, Any] | None) -> bool:
        """Post a run's events; whether the consumer took them."""
        if not _has_started(answer):
            if not self._send(told, _start(told)):
                return False
            self._shown[told.job] = told.run_id
        self._steer(told)
        if told.parent is not None and self._last_of_parent[told.parent] == told.run_id:
            self._end_parent(told, told.parent)
        if not self._send(told, told.event):
            return False
        self._note(told)
        return True

    def _end_parent(self, told: Told, parent: Parent) -> None:
        """End the DAG run of which this is the last that git tells, before it is ended itself.

        Marquez makes a DAG run of the first task's START and lends its state to all its tasks: without an event of its
        own, which only Airflow sends, it would be running for ever. It has a colour and nothing else, so that nothing
        is said where this event is rejected.
        """
        answer = self._consumer.run(parent.run_id)
        if (answer or {}).get("state") in _FINAL:
            return
        job = {"namespace": parent.job.namespace, "name": parent.job.name}
        run = {"runId": parent.run_id, "facets": {}}
        self._post({**told.event, "run": run, "job": job, "inputs": [], "outputs": []}, 1)

    def _send(self, told: Told, event: Mapping[str, Any]) -> bool:
        """Post one of a run's events, or set it aside; whether the consumer took it."""
        aside = self._aside / f"{told.run_id}.json"
        rejection = self._post(event, 1 if aside.exists() else 2)
        if rejection is None:
            aside.unlink(missing_ok=True)
            return True
        self._rejected[told.run_id] = rejection
        _set_aside(aside, self._url, event, rejection)
        return False

    def _post(self, event: Mapping[str, Any], tries: int) -> str | None:
        """Post one event; None, or why it was rejected each time."""
        for left in reversed(range(tries)):
            try:
                self._consumer.post(event)
            except EventRejected as error:
                if not left:
                    return str(error)
            else:
                return None
        return None

    def _note(self, told: Told) -> None:
        """What the consumer shows after an event was accepted."""
        self._shown[told.job] = told.run_id
        if told.state == COMPLETE:
            self._current |= dict.fromkeys(told.outputs, told.run_id)

    def _steer(self, told: Told) -> None:
        """Make current what a run read. The furthest from the sources goes first, since steering it moves others."""
        wanted = {read.dataset: maker for read in told.reads if (maker := self._maker(told, read)) is not None}
        for _ in range(3 * len(wanted)):
            makers = {
                dataset: maker
                for dataset, maker in wanted.items()
                if maker.run_id not in self._rejected and self._current_of(dataset) != maker.run_id
            }
            if not makers:
                return
            furthest = max(makers, key=lambda name: (self._depth[name], -self._order[makers[name].run_id]))
            self._again(makers[furthest])

    def _again(self, told: Told) -> None:
        """Post a finished run's event once more, steered like the first time, so that it binds to nothing else."""
        self._tick()
        self._steer(told)
        if self._send(told, told.event):
            self._resent += 1
            self._note(told)

    def _maker(self, told: Told, read: Read) -> Told | None:
        """The event of the run that made what was read, as far as git knows it."""
        maker = self._events.get(read.run) if read.run is not None else None
        if maker is None or maker.state != COMPLETE or read.dataset not in maker.outputs:
            return None
        return maker if self._order[maker.run_id] < self._order[told.run_id] else None

    # Bindings

    def _verify(self, told: Told) -> None:
        """Compare what the consumer binds a run to with what git says, and note that the run is held."""
        makers = {read.dataset: self._maker(told, read) for read in told.reads}
        found = self._bindings(told) if makers else {}
        lacking = {name for name, maker in makers.items() if maker is not None and maker.run_id in self._rejected}
        right = found.keys() <= makers.keys() and all(
            found.get(name) == {maker.run_id}
            for name, maker in makers.items()
            if maker is not None and name not in lacking
        )
        if right and lacking:
            self._deprived.append(told)
            return
        self._journal.held[told.run_id] = None
        if not right:
            self._journal.wrong.add(told.run_id)

    def _bindings(self, told: Told) -> dict[Name, set[str | None]]:
        found: dict[Name, set[str | None]] = {}
        for row in self._consumer.upstream(told.run_id, 1)["runs"]:
            if row["run"]["id"] == told.run_id:
                for dataset in row["inputs"]:
                    (name,) = _names([dataset])
                    found.setdefault(name, set()).add(dataset.get("producedByRunId"))
        return found

    # The picture at the end

    def _settle(self) -> None:
        """Show each job by its last good run, and of each dataset the newest version.

        The furthest from the sources goes first, since steering it moves what lies before it.
        """
        good: dict[Name, Told] = {}
        newest: dict[Name, Told] = {}
        lacking = (self._rejected.keys() - self._journal.held.keys()) | self._left.keys()
        for told in self._events.values():
            if told.state == COMPLETE and told.run_id not in lacking and told.model not in self._busy:
                good[told.job] = told
                newest |= dict.fromkeys(told.outputs, told)
        for _ in range(2 * (len(good) + len(newest))):
            stale = [told for job, told in good.items() if self._is_hidden(job, told)]
            stale += [told for name, told in newest.items() if self._current_of(name) != told.run_id]
            stale = [told for told in stale if told.run_id not in self._rejected]
            if not stale:
                break
            self._again(max(stale, key=lambda told: (self._distance(told), -self._order[told.run_id])))
        for job, told in good.items():
            self._remember_healed(job, told)

    def _is_hidden(self, job: Name, good: Told) -> bool:
        """Whether the consumer shows a job by something else than its last good run, and posting that may mend it."""
        if job in self._shown:
            return self._shown[job] != good.run_id
        picture = self._picture(job)
        return picture.is_of_another(good) and picture.latest["id"] != self._journal.healed.get(_key(job))

    def _remember_healed(self, job: Name, good: Told) -> None:
        """A picture that posting again has not mended is left alone, until the job has another run."""
        if job in self._shown:
            self._jobs.pop(job, None)
        if self._picture(job).is_of_another(good):
            self._journal.healed[_key(job)] = self._picture(job).latest["id"]
        else:
            self._journal.healed.pop(_key(job), None)

    def _distance(self, told: Told) -> int:
        """How far from the sources a run is."""
        return _distance(told, self._depth)

    # What is said

    def _report(self) -> Iterator[str]:
        for model in sorted(set(self._left.values())):
            count = list(self._left.values()).count(model)
            yield f"lineage: {model} is being retrained; its {counted(count, 'event')} will follow with the next sync"
        if self._unknown:
            told, read = self._unknown[0]
            yield (
                f"lineage: {counted(len(self._unknown), 'input')} that no run in git made may be bound to another "
                f"version, such as {read.dataset.name} of {told.job.name} ({told.run_id})"
            )
        if self._rejected:
            run_id, answer = next(iter(self._rejected.items()))
            yield (
                f"lineage: {counted(len(self._rejected), 'event')} rejected and set aside in {self._aside}, such as "
                f"{self._events[run_id].job.name} ({run_id}): {answer}"
            )
        if self._deprived:
            yield (
                f"lineage: {counted(len(self._deprived), 'run')} read what a rejected event made, such as "
                f"{self._deprived[0].job.name} ({self._deprived[0].run_id}), and cannot be bound to it"
            )
        if self._journal.wrong:
            run_id = next(run_id for run_id in self._journal.held if run_id in self._journal.wrong)
            yield (
                f"lineage: {counted(len(self._journal.wrong), 'run')} bound to other versions than were read, such as "
                f"{self._events[run_id].job.name} ({run_id}): bindings cannot be corrected in Marquez: empty its "
                "database, or give another one, and run `retrace sync` again"
            )
        yield self._outcome()

    def _outcome(self) -> str:
        if not self._sent and not self._resent:
            return f"lineage: {self._url} is up to date"
        again = f", {self._resent} once more so that every input is bound to what was read" if self._resent else ""
        whole = "" if self._left or self._rejected else "; everything is there"
        return f"lineage: {counted(self._sent, 'event')} sent to {self._url}{again}{whole}"


def _names(datasets: Iterable[Mapping[str, Any]] | None) -> frozenset[Name]:
    return frozenset(Name(dataset["namespace"], dataset["name"]) for dataset in datasets or ())


def _retrained_now(mirror: Mirror, models: Collection[str]) -> frozenset[str]:
    """The models whose lease is held: events of theirs may be on the way to the consumer."""
    leased = {ref.removeprefix("refs/locks/") for ref in mirror.remote_refs("refs/locks/*")}
    held = {model: lease.holder(mirror, model) for model in leased & set(models)}
    return frozenset(model for model, found in held.items() if found is not None and not found[1].free())


def _depths(events: Iterable[Told]) -> dict[Name, int]:
    """Dataset -> how many runs lie between it and a source."""
    depth: dict[Name, int] = {}
    for told in events:
        for read in told.reads:
            depth.setdefault(read.dataset, 0)
        reached = _distance(told, depth)
        for name in told.outputs:
            depth[name] = max(reached, depth.get(name, 0))
    return depth


def _distance(told: Told, depth: Mapping[Name, int]) -> int:
    return max((depth[read.dataset] + 1 for read in told.reads), default=0)


def is_held(answer: Mapping[str, Any] | None) -> bool:
    """Whether what the consumer knows of a run came from its committed event."""
    facet = ((answer or {}).get("facets") or {}).get("retrace") or {}
    return answer is not None and answer.get("state") in _FINAL and facet.get("source") == "git"


def _has_started(answer: Mapping[str, Any] | None) -> bool:
    """Whether the consumer knows when a run started: without a START Marquez shows 1970."""
    started = (answer or {}).get("startedAt")
    return started is not None and not started.startswith("1970")


def _start(told: Told) -> dict[str, Any]:
    """A START for a committed event, without datasets: they would leave versions behind should the end not follow."""
    event = told.event
    facets = {name: facet for name, facet in event["run"]["facets"].items() if name in _KEPT_IN_START}
    return {
        **event,
        "eventType": "START",
        "eventTime": told.started.astimezone(UTC).isoformat(),
        "run": {"runId": event["run"]["runId"], "facets": facets},
        "job": {"namespace": told.job.namespace, "name": told.job.name},
        "inputs": [],
        "outputs": [],
    }


def _set_aside(path: Path, url: str, event: Mapping[str, Any], answer: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    report = {"consumer": url, "at": datetime.now(UTC).isoformat(), "answer": answer, "event": event}
    path.write_text(json.dumps(report, indent=1) + "\n")


def _key(name: Name) -> str:
    return f"{name.namespace}\t{name.name}"
