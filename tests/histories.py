"""Histories written by hand: a bare origin with ingestions, runs, versions and their events, in milliseconds each.

Every event says what it read, so that a history also knows the truth: which raw data went into a version.
"""

from __future__ import annotations

import json
import subprocess
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

NAMESPACE = "retrace"
RAW = "data/raw/"
WHO = "Retrace <retrace@localhost>"

Event = dict[str, Any]


@dataclass
class Made:
    """A version of a dataset, and the run that made it."""

    version: str
    run: str | None


@dataclass
class Retrain:
    """A run under way: what it has made or taken over, by dataset."""

    history: History
    model: str
    name: str
    data: dict[str, Made]
    has: dict[str, Made] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)

    @property
    def ref(self) -> str:
        return f"refs/runs/{self.model}/{self.name}"

    @property
    def dag_run(self) -> Event:
        """The parent facet of its tasks' events."""
        run_id = str(uuid.uuid5(uuid.NAMESPACE_OID, self.ref))
        return {"job": {"namespace": NAMESPACE, "name": self.model}, "run": {"runId": run_id}}

    def snapshot(self) -> Event:
        """The first commit: the events of the newest version are carried over."""
        held = self.history.newest.get(self.model)
        if held is not None:
            self.has, self.files = dict(held.has), dict(held.files)
        return self.commit("snapshot", "refs/heads/main", self.data, [f"snapshot/{self.model}"])

    def features(self, **given: Any) -> Event:
        return self.commit("features", self.ref, self.data, [f"features/{self.model}"], **given)

    def train(self, **given: Any) -> Event:
        return self.commit("train", self.ref, self.taken("features"), [f"models/{self.model}.skops"], **given)

    def evaluate(self, **given: Any) -> Event:
        reads = self.taken("features") | self.taken("models")
        return self.commit("evaluate", self.ref, reads, [f"metrics/{self.model}.json"], **given)

    def gate(self) -> Event:
        return self.commit("gate", self.ref, self.taken("registry"), [])

    def register(self) -> str:
        """Tag the run as a version; its name."""
        number = self.history.numbers[self.model] = self.history.numbers.get(self.model, 0) + 1
        name = f"{self.model}@v{number}"
        reads = self.taken("models") | self.taken("metrics")
        made = {f"registry/{self.model}": name}
        event = self.history.event(f"{self.model}.register", reads, made, parent=self.dag_run)
        self.has[f"registry/{self.model}"] = Made(name, event["run"]["runId"])
        self.history.newest[self.model] = self
        self.history.tag(name, self.ref, event)
        self.history.versions[name] = event["run"]["runId"]
        return name

    def finish(self, *, skip: Iterable[str] = ()) -> str:
        """All of it, but the stages that are unchanged; the version."""
        self.snapshot()
        for stage in ("features", "train", "evaluate"):
            if stage not in skip:
                getattr(self, stage)()
        name = self.register()
        self.gate()
        return name

    def taken(self, kind: str) -> dict[str, Made]:
        return {name: made for name, made in self.has.items() if name.startswith(f"{kind}/")}

    def commit(
        self,
        job: str,
        parent: str,
        reads: Mapping[str, Made],
        outputs: Iterable[str],
        *,
        state: str = "COMPLETE",
        **event: Any,
    ) -> Event:
        """A commit of the run with the event of a job in it; a failed one made nothing."""
        made = {} if state == "FAIL" else {name: f"{name}#{self.name}" for name in outputs}
        told = self.history.event(f"{self.model}.{job}", reads, made, state=state, parent=self.dag_run, **event)
        self.has |= {name: Made(version, told["run"]["runId"]) for name, version in made.items()}
        self.files[f"lineage/{self.model}/{job}.json"] = as_file(told)
        stage = job if job == "snapshot" else f"{job}@{self.model}"
        trailers = {"Retrace-Stage": stage, "Retrace-State": "failed" if state == "FAIL" else "complete"}
        self.history.commit(self.ref, parent, stage, trailers, self.files)
        return told


@dataclass
class History:
    """A history that grows; `save` writes what is new into the origin."""

    origin: Path
    now: datetime = datetime(2013, 1, 1, tzinfo=UTC)
    payload: Mapping[str, Any] = field(default_factory=dict)
    events: dict[str, Event] = field(default_factory=dict)
    raw: dict[str, Made] = field(default_factory=dict)
    newest: dict[str, Retrain] = field(default_factory=dict)
    numbers: dict[str, int] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    _stream: list[bytes] = field(default_factory=list)
    _marks: dict[str, int] = field(default_factory=dict)
    _commits: int = 0
    _runs: int = 0
    _assignments: int = 0

    def __post_init__(self) -> None:
        if not self.origin.exists():
            subprocess.run(["git", "init", "-q", "--bare", "-b", "main", self.origin], check=True)
            self.commit("refs/heads/main", None, "code", {}, {"params.yaml": b"{}\n"})

    def ingest(self, **versions: str) -> dict[str, Made]:
        """A commit on `data` that brings versions of some datasets; what all of them are now."""
        outputs = {f"{RAW}{name}": version for name, version in versions.items()}
        event = self.event("ingest.ingest", {}, outputs)
        self.raw = self.raw | {name: Made(version, event["run"]["runId"]) for name, version in outputs.items()}
        files = {"data/raw/ingest.json": as_file(event)}
        parent = "refs/heads/data" if "refs/heads/data" in self._marks else None
        self.commit("refs/heads/data", parent, "data", {"Retrace-Stage": "ingest"}, files)
        return self.raw

    def begin(self, model: str, data: Mapping[str, Made] | None = None) -> Retrain:
        """A run of a model on the newest data, or on older."""
        self._runs += 1
        return Retrain(self, model, f"run{self._runs}", dict(self.raw if data is None else data))

    def promote(self, model: str, version: str) -> Event:
        self._assignments += 1
        made = {f"registry/{model}": Made(version, self.versions[version])}
        event = self.event(f"{model}.promote", made, {})
        self.tag(f"{model}#champion#{self._assignments}", f"refs/tags/{version}", event)
        return event

    def event(
        self,
        job: str,
        reads: Mapping[str, Made],
        outputs: Mapping[str, str],
        *,
        state: str = "COMPLETE",
        started: datetime | None = None,
        parent: Event | None = None,
    ) -> Event:
        """The committed event of a run that takes a minute; the clock goes on."""
        started = started or self.now
        self.now += timedelta(minutes=1)
        facts = {
            **self.payload,
            "source": "git",
            "startedAt": started.isoformat(),
            "reads": [{"dataset": name, "version": made.version, "run": made.run} for name, made in reads.items()],
        }
        event: Event = {
            "eventType": state,
            "eventTime": (started + timedelta(seconds=50)).isoformat(),
            "producer": "https://example.com/retrace",
            "schemaURL": "https://openlineage.io/spec/2-0-2/OpenLineage.json#/$defs/RunEvent",
            "run": {"runId": str(uuid.uuid5(uuid.NAMESPACE_OID, f"{job} {len(self.events)}")), "facets": {}},
            "job": {"namespace": NAMESPACE, "name": job, "facets": {}},
            "inputs": [{"namespace": NAMESPACE, "name": name} for name in reads],
            "outputs": [
                {"namespace": NAMESPACE, "name": name, "facets": {"version": {"datasetVersion": version}}}
                for name, version in outputs.items()
            ],
        }
        event["run"]["facets"] = {"retrace": facts, **({"parent": parent} if parent is not None else {})}
        self.events[event["run"]["runId"]] = event
        return event

    def raw_data_of(self, version: str) -> dict[str, str]:
        """The truth: the raw data that a version was made of."""
        found: dict[str, set[str]] = {}
        todo = [self.versions[version]]
        while todo:
            for read in self.events[todo.pop()]["run"]["facets"]["retrace"]["reads"]:
                if read["dataset"].startswith(RAW):
                    found.setdefault(read["dataset"], set()).add(read["version"])
                elif read["run"]:
                    todo.append(read["run"])
        return {name: ", ".join(sorted(versions)) for name, versions in sorted(found.items())}

    def commit(
        self, ref: str, parent: str | None, title: str, trailers: Mapping[str, str], files: Mapping[str, bytes]
    ) -> None:
        """A commit on a ref, on top of another ref's, with files put in place."""
        lines = "".join(f"{key}: {value}\n" for key, value in trailers.items())
        start = f"from :{self._marks[parent]}\n" if parent is not None else ""
        self._commits += 1
        self._marks[ref] = self._commits
        self._stream.append(f"commit {ref}\nmark :{self._marks[ref]}\n{self._who()}".encode())
        self._stream.append(_data(f"{title}\n\n{lines}".encode()) + start.encode())
        for path, content in files.items():
            self._stream.append(f"M 100644 inline {path}\n".encode() + _data(content))

    def tag(self, name: str, target: str, event: Event | None) -> None:
        """An annotated tag with an event in its message."""
        trailers = f"Retrace-Event: {json.dumps(event)}\n" if event is not None else ""
        self._marks[f"refs/tags/{name}"] = self._marks[target]
        self._stream.append(f"tag {name}\nfrom :{self._marks[target]}\n{self._who('tagger')}".encode())
        self._stream.append(_data(f"{name}\n\n{trailers}".encode()))

    def save(self) -> None:
        """Write what is new into the origin."""
        stream, self._stream = b"".join(self._stream), []
        marks = self.origin / "marks"
        command = ["git", "-C", self.origin, "fast-import", "--quiet", f"--export-marks={marks}"]
        command.append(f"--import-marks-if-exists={marks}")
        subprocess.run(command, input=stream, check=True)

    def _who(self, role: str = "committer") -> str:
        return f"{role} {WHO} {int(self.now.timestamp())} +0000\n"


def as_file(event: Event) -> bytes:
    return (json.dumps(event, indent=1, sort_keys=True) + "\n").encode()


def _data(content: bytes) -> bytes:
    return b"data %d\n%s\n" % (len(content), content)
