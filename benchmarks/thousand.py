"""A repository with a thousand versions of a model, each of one more day of data: real objects of git, written fast."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import yaml

from benchmarks.laboratory import MODEL, ROOT, STAGES, Failed
from benchmarks.partitions import BEGIN, Partitions, day
from benchmarks.templates import GATE, INGEST, METRICS, READ_RAW, REGISTER, RESULTS, SNAPSHOT, Made, filled, templates
from retrace.dvcfiles import LOCK, RAW, stages
from retrace.git import message
from retrace.lineage import event
from retrace.verdicts import IDENTICAL, ref_of

VERSIONS = 1000
PROMOTED, CODE_CHANGED = 3, 10  # every third version becomes champion; the code changes with every tenth
_JOBS = (SNAPSHOT, *STAGES)
_MARKS = ".git/marks"
_CODE, _MANIFEST, _POINTER, _EVENT = 50, 60, 70, 80  # places of marks, see `_mark`
_NAMES = ("params.yaml", "dvc.yaml", ".dvc/config", ".gitignore", "pipeline")


@dataclass(frozen=True)
class Story:
    """What is to be told: version N has the first N + `before` partitions of each dataset."""

    datasets: Sequence[Partitions]
    before: int
    templates: Mapping[str, str]

    def days(self, version: int) -> int:
        return version + self.before

    def told(self, job: str, made: Made) -> bytes:
        return filled(self.templates[job], made, self.datasets)


def make(folder: Path, datasets: Sequence[Partitions], verdicts_every: int = 0) -> int:
    """The repository, packed as git packs it; how large it is in bytes."""
    (folder / ".git").mkdir(parents=True)
    _git(folder, "init", "--quiet", "--initial-branch=main")
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    story = Story(
        datasets, len(datasets[0].items) - VERSIONS, templates(params, stages((ROOT / "dvc.yaml").read_text()))
    )
    _import(folder, _code())
    _import(folder, _data(story))
    marks = dict(line.split() for line in (folder / _MARKS).read_text().splitlines())
    _import(folder, _versions(story, marks))
    if verdicts_every:
        listed = _git(folder, "for-each-ref", "--format=%(refname:strip=2) %(objectname) %(*objectname)", "refs/tags")
        tags = {name: (tag, commit) for name, tag, commit in (line.split() for line in listed.splitlines())}
        names = (f"{MODEL}@v{number}" for number in range(verdicts_every, VERSIONS + 1, verdicts_every))
        _import(folder, (_verdict(name, *tags[name]) for name in names))
    _git(folder, "checkout", "--quiet", "main")
    _git(folder, "gc", "--quiet")
    return sum(file.stat().st_size for file in (folder / ".git").rglob("*") if file.is_file())


def _git(folder: Path, *arguments: str) -> str:
    return subprocess.run(["git", "-C", str(folder), *arguments], check=True, capture_output=True, text=True).stdout


def _import(folder: Path, stream: Iterable[bytes]) -> None:
    marks = [f"--import-marks-if-exists={_MARKS}", f"--export-marks={_MARKS}"]
    command = ["git", "-C", str(folder), "fast-import", "--quiet", *marks]
    with subprocess.Popen(command, stdin=subprocess.PIPE) as importer:
        assert importer.stdin is not None
        importer.stdin.writelines(stream)
    if importer.returncode:
        raise Failed("git fast-import failed")


def _mark(number: int, place: int) -> int:
    """Of the data of so many days: its commit (0); of a version: its stages' commits (from 1), and what is large."""
    return number * 100 + place


def _code_mark(number: int) -> int:
    """The commit of the code that a version is made of."""
    return _mark((number - 1) // CODE_CHANGED, _CODE)


def _code() -> Iterator[bytes]:
    """The code of this project, and a comment more in the features with every change."""
    listed = [
        path for name in _NAMES for path in ((ROOT / name).rglob("*") if (ROOT / name).is_dir() else [ROOT / name])
    ]
    files = {
        str(path.relative_to(ROOT)): path.read_bytes()
        for path in sorted(listed)
        if path.is_file() and "__pycache__" not in path.parts
    }
    features = files["pipeline/features.py"]
    for change in range((VERSIONS - 1) // CODE_CHANGED + 1):
        if change:
            files = {"pipeline/features.py": features + b"# change %d\n" % change}
        before = [_mark(change - 1, _CODE)] if change else []
        yield _commit("refs/heads/main", f"code {change}", before, files, mark=_mark(change, _CODE))


def _data(story: Story) -> Iterator[bytes]:
    """The branch data. What is alike goes in one after another: git stores each as its difference to the one before."""
    known = range(1, story.days(VERSIONS) + 1)
    for place, dataset in enumerate(story.datasets):
        for days in known:
            yield _blob(_mark(days, _MANIFEST + place), dataset.manifest(days))
        for days in known:
            yield _blob(_mark(days, _POINTER + place), dataset.pointer(days))
    for days in known:
        through = BEGIN + timedelta(days=days)
        text = message(f"data: {day(days)}", {"Retrace-Stage": INGEST, "Data-Through": through.isoformat()})
        files = {f"{RAW}/ingest.json": story.told(INGEST, Made(days))}
        before = [_mark(days - 1, 0)] if days > 1 else []
        yield _commit("refs/heads/data", text, before, files, mark=_mark(days, 0), links=_raw(story, days))


def _raw(story: Story, days: int) -> dict[str, int]:
    links = {}
    for place, dataset in enumerate(story.datasets):
        links[f"{RAW}/{dataset.name}.manifest"] = _mark(days, _MANIFEST + place)
        links[f"{RAW}/{dataset.name}.dvc"] = _mark(days, _POINTER + place)
    return links


def _versions(story: Story, marks: Mapping[str, str]) -> Iterator[bytes]:
    known = []
    for number in range(1, VERSIONS + 1):
        days = story.days(number)
        known.append(Made(days, number, marks[f":{_code_mark(number)}"], marks[f":{_mark(days, 0)}"]))
    for stage in READ_RAW:
        for made in known:
            yield _blob(_mark(made.number, _EVENT + _JOBS.index(stage)), story.told(stage, made))
    for made in known:
        yield from _version(story, made)
        if made.number % PROMOTED == 1:
            told = message("champion", {"Retrace-Because": "gate: roc_auc 0.75 >= 0.7; cost_per_flight 0.4 <= 0.41"})
            yield _tag(f"{MODEL}#champion#{made.number // PROMOTED + 1}", _mark(made.number, len(_JOBS)), told)


def _version(story: Story, made: Made) -> Iterator[bytes]:
    number, run = made.number, f"run{made.number:08d}"
    ref = f"refs/runs/{MODEL}/{run}"
    before = [_code_mark(number), _mark(made.days, 0)]
    for place, job in enumerate(_JOBS):
        files, links = {}, {}
        if job in READ_RAW:
            links = {event.path(MODEL, job): _mark(number, _EVENT + place)}
        else:
            files = {event.path(MODEL, job): story.told(job, made)}
        if job == SNAPSHOT:
            links |= _raw(story, made.days)
        if job == STAGES[-1]:
            files |= {LOCK: story.told(LOCK, made), **RESULTS}
        trailers = {"Retrace-Stage": f"{job}@{MODEL}", "Retrace-State": "complete", "Retrace-Run": run}
        yield _commit(ref, message(job, trailers), before, files, mark=_mark(number, place + 1), links=links)
        before = [_mark(number, place + 1)]
    trailers = {
        "Retrace-Run": run,
        "Retrace-Run-Ref": ref,
        "Retrace-Code": made.code,
        "Retrace-Data": made.data,
        "Data-Through": (BEGIN + timedelta(days=made.days)).isoformat(),
        "Retrace-Metrics": METRICS,
        event.EVENT: story.told(REGISTER, made).decode(),
    }
    yield _tag(f"{MODEL}@v{number}", before[0], message(f"{MODEL}@v{number}: roc_auc 0.75", trailers))
    trailers = {"Retrace-Stage": f"{GATE}@{MODEL}", "Retrace-State": "complete"}
    gate = {event.path(MODEL, GATE): story.told(GATE, made)}
    yield _commit(ref, message(GATE, trailers), before, gate, mark=_mark(number, len(_JOBS) + 1))


def _verdict(name: str, tag: str, commit: str) -> bytes:
    outcomes = [
        {"name": stage, "seconds": 1.0, "identical": True, "departures": [], "failure": "", "undeclared": []}
        for stage in STAGES
    ]
    facts: dict[str, Any] = {
        "version": name,
        "tag": tag,
        "commit": commit,
        "verdict": IDENTICAL,
        "when": BEGIN.isoformat(),
        "reason": "",
        "first": None,
        "stages": outcomes,
        "missing": [],
        "metrics": [],
        "platformChanged": {},
        "sandbox": "boxed",
        "varied": [],
        "seconds": 20.0,
        "where": "worker",
    }
    text = f"{name}: {IDENTICAL}\n\n{json.dumps(facts, indent=1, sort_keys=True)}\n"
    return _commit(ref_of(name), text, [], {}, mark=None)


def _blob(mark: int, content: bytes) -> bytes:
    return b"blob\nmark :%d\n%s" % (mark, _body(content))


def _commit(
    ref: str,
    text: str,
    parents: Sequence[int],
    files: Mapping[str, bytes],
    *,
    mark: int | None,
    links: Mapping[str, int] | None = None,
) -> bytes:
    """A commit whose tree has these files, and these blobs that have marks already, over that of the first parent."""
    lines = [f"commit {ref}\n".encode(), b"mark :%d\n" % mark if mark is not None else b""]
    lines += [b"committer Benchmark <benchmark@localhost> 1400000000 +0000\n", _body(text.encode())]
    lines += [f"{'merge' if place else 'from'} :{parent}\n".encode() for place, parent in enumerate(parents)]
    lines += [f"M 100644 :{blob} {path}\n".encode() for path, blob in (links or {}).items()]
    for path, content in files.items():
        lines += [f"M 100644 inline {path}\n".encode(), _body(content)]
    return b"".join(lines)


def _tag(name: str, target: int, text: str) -> bytes:
    head = f"tag {name}\nfrom :{target}\ntagger Benchmark <benchmark@localhost> 1400000000 +0000\n"
    return head.encode() + _body(text.encode())


def _body(content: bytes) -> bytes:
    return b"data %d\n%s\n" % (len(content), content)
