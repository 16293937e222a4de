"""`retrace lineage VERSION` where a model has a thousand versions, each of one more day of data."""

from __future__ import annotations

import hashlib
import json
import subprocess
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import yaml

from benchmarks.laboratory import MODEL, ROOT, Failed, Laboratory, Table, limit, median, megabytes, seconds, tell, tool
from retrace.dvcfiles import lock_text
from retrace.git import message
from retrace.lineage import event
from retrace.lineage.event import Output, Project, Read
from retrace.lineage.facets import as_json, as_line
from retrace.statistics import Column, Statistics

LIMIT = 0.3
_MARKS = ".git/marks"
VERSIONS = 1000
PROMOTED = 3  # every third version becomes champion
_BEGIN = datetime(2013, 1, 1, tzinfo=UTC)
_PROJECT = Project("retrace", "https://example.com/team/flights.git", "s3://bucket/dvc", "team")
_QUANTILES = dict.fromkeys(("0.05", "0.25", "0.5", "0.75", "0.95"), 0.5)
_STAGES = ("snapshot", "validate", "features", "train", "evaluate")


def measure(laboratory: Laboratory) -> list[Table]:
    folder = laboratory.folder / "thousand"
    tell(f"lineage_versions: making {VERSIONS} versions")
    size = _make(folder)
    commands = {
        f"`retrace lineage {MODEL}@v{VERSIONS}`": [f"{MODEL}@v{VERSIONS}"],
        f"`retrace lineage {MODEL}@v1`": [f"{MODEL}@v1"],
        f"`retrace lineage {MODEL}@champion --format mermaid`": [f"{MODEL}@champion", "--format", "mermaid"],
        f"`retrace lineage {MODEL}@v{VERSIONS} --format json`": [f"{MODEL}@v{VERSIONS}", "--format", "json"],
    }
    times: dict[str, list[float]] = {name: [] for name in commands}
    start: list[float] = []
    for repetition in range(max(7, laboratory.repetitions)):
        tell(f"lineage_versions {repetition + 1}")
        for name, arguments in commands.items():
            taken = laboratory.run([tool("retrace"), "lineage", *arguments], folder)
            if repetition:  # the first one compiles
                times[name].append(taken)
        start.append(laboratory.run([tool("retrace"), "--help"], folder))
    rows = [(name, seconds(taken)) for name, taken in times.items()]
    rows.append(("`retrace --help`: Python and the command's own start", seconds(start[1:])))
    worst = max(median(taken) for name, taken in times.items() if "json" not in name)
    notes = [
        limit(worst <= LIMIT, f"at most {LIMIT:g} s for the whole command, as text and as a picture"),
        f"{VERSIONS} versions, {VERSIONS} data commits, {megabytes(size)} of git; JSON names the commit of each of "
        f"{2 * VERSIONS} partitions, from as many events",
    ]
    return [Table("Lineage of one of a thousand versions (s)", ("", "median (from, to)"), rows, notes)]


def _make(folder: Path) -> int:
    """The repository, packed as git packs it; how large it is."""
    folder.mkdir()
    _git(folder, "init", "--quiet", "--initial-branch=main")
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    templates = _templates(params)
    datasets = tuple(params["ingest"]["datasets"])
    _import(folder, _code_and_data(datasets, templates))
    marks = dict(line.split() for line in (folder / _MARKS).read_text().splitlines())
    _import(folder, _runs(datasets, templates, marks))
    _git(folder, "checkout", "--quiet", "main")
    _git(folder, "gc", "--quiet")
    return sum(file.stat().st_size for file in (folder / ".git").rglob("*") if file.is_file())


def _git(folder: Path, *arguments: str) -> None:
    subprocess.run(["git", "-C", str(folder), *arguments], check=True, capture_output=True)


def _import(folder: Path, stream: Iterable[bytes]) -> None:
    marks = [f"--import-marks-if-exists={_MARKS}", f"--export-marks={_MARKS}"]
    command = ["git", "-C", str(folder), "fast-import", "--quiet", *marks]
    with subprocess.Popen(command, stdin=subprocess.PIPE) as importer:
        assert importer.stdin is not None
        importer.stdin.writelines(stream)
    if importer.returncode:
        raise Failed("git fast-import failed")


def _code_and_data(datasets: Sequence[str], templates: Mapping[str, str]) -> Iterator[bytes]:
    names = ("params.yaml", "dvc.yaml", "pipeline/requirements.txt", "pipeline/.python-version")
    yield _commit("refs/heads/main", "code", (), {name: (ROOT / name).read_bytes() for name in names}, mark=1)
    manifests: dict[str, list[str]] = {name: [] for name in datasets}
    for number in range(1, VERSIONS + 1):
        yield from _data(number, manifests, templates)


def _runs(datasets: Sequence[str], templates: Mapping[str, str], marks: Mapping[str, str]) -> Iterator[bytes]:
    for number in range(1, VERSIONS + 1):
        commits = {_CODE: marks[":1"], _DATA: marks[f":{_mark(number, 0)}"]}
        own = {name: _filled(template, commits) for name, template in templates.items()}
        yield from _version(number, datasets, own)
        if number % PROMOTED == 1:
            told = message("champion", {"Retrace-Because": "gate: roc_auc 0.75 >= 0.7; cost_per_flight 0.4 <= 0.41"})
            yield _tag(f"{MODEL}#champion#{number // PROMOTED + 1}", _mark(number, len(_STAGES)), told)


def _mark(number: int, place: int) -> int:
    """Of a version's commits: its data (0), then its stages."""
    return number * 100 + place


def _data(number: int, manifests: dict[str, list[str]], templates: Mapping[str, str]) -> Iterator[bytes]:
    through = _BEGIN + timedelta(days=number)
    files: dict[str, bytes] = {"data/raw/ingest.json": _told(templates["ingest"], number).encode()}
    for place, (name, lines) in enumerate(manifests.items(), start=80):
        path = f"data/raw/{name}/{_day(number)}.parquet"
        lines.append(f"{path} {_md5(path)} {hashlib.sha256(path.encode()).hexdigest()} 1000\n")
        pointer = f"outs:\n- md5: {_raw(name, number)}\n  size: 1\n  nfiles: 1\n  hash: md5\n  path: {name}\n"
        for shift, content in ((0, "".join(lines).encode()), (10, pointer.encode())):
            yield b"blob\nmark :%d\n%s" % (_mark(number, place + shift), _body(content))
    links = _data_links(manifests, number)
    text = message(f"data: {_day(number)}", {"Retrace-Stage": "ingest", "Data-Through": through.isoformat()})
    before = [_mark(number - 1, 0)] if number > 1 else []
    yield _commit("refs/heads/data", text, before, files, mark=_mark(number, 0), links=links)


def _data_links(datasets: Iterable[str], number: int) -> dict[str, int]:
    links = {}
    for place, name in enumerate(datasets, start=80):
        links[f"data/raw/{name}.manifest"] = _mark(number, place)
        links[f"data/raw/{name}.dvc"] = _mark(number, place + 10)
    return links


def _version(number: int, datasets: Sequence[str], templates: Mapping[str, str]) -> Iterator[bytes]:
    ref = f"refs/runs/{MODEL}/run{number:08d}"
    before = [1, _mark(number, 0)]
    for place, stage in enumerate(_STAGES, start=1):
        files = {event.path(MODEL, stage): _told(templates[stage], number).encode()}
        if stage == "evaluate":
            files["dvc.lock"] = _told(templates["lock"], number).encode()
            files[f"metrics/{MODEL}.json"] = json.dumps({"holdout": {"roc_auc": 0.75}}).encode()
        trailers = {"Retrace-Stage": f"{stage}@{MODEL}", "Retrace-State": "complete", "Retrace-Run": f"run{number:08d}"}
        links = _data_links(datasets, number) if stage == "snapshot" else {}
        mark = _mark(number, place)
        yield _commit(ref, message(stage, trailers), before, files, mark=mark, links=links)
        before = [mark]
    trailers = {
        "Retrace-Run": f"run{number:08d}",
        "Retrace-Run-Ref": ref,
        "Data-Through": (_BEGIN + timedelta(days=number)).isoformat(),
        "Retrace-Metrics": json.dumps({"roc_auc": 0.75}),
        event.EVENT: _told(templates["register"], number),
    }
    yield _tag(f"{MODEL}@v{number}", before[0], message(f"{MODEL}@v{number}: roc_auc 0.75", trailers))
    gate = {event.path(MODEL, "gate"): _told(templates["gate"], number).encode()}
    trailers = {"Retrace-Stage": f"gate@{MODEL}", "Retrace-State": "complete"}
    yield _commit(ref, message("gate", trailers), before, gate, mark=_mark(number, len(_STAGES) + 1))


def _commit(
    ref: str,
    text: str,
    parents: list[int] | tuple[int, ...],
    files: Mapping[str, bytes],
    *,
    mark: int,
    links: Mapping[str, int] | None = None,
) -> bytes:
    lines = [f"commit {ref}\nmark :{mark}\ncommitter Benchmark <benchmark@localhost> 1400000000 +0000\n".encode()]
    lines.append(_body(text.encode()))
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


def _md5(text: str) -> str:
    return hashlib.md5(text.encode()).hexdigest()


def _raw(name: str, number: int | str) -> str:
    return f"{_md5(f'{name} {number}')}.dir"


def _day(number: int) -> str:
    return f"{_BEGIN + timedelta(days=number - 1):%Y-%m-%d}"


# In a template these stand for what differs between versions: a number of 8 digits within md5s and run ids, a day.
_NUMBER, _DAY, _NAME = "00112233", "9999-99-99", "@v0"
_CODE, _DATA = "c" * 40, "d" * 40


def _filled(template: str, values: Mapping[str, str]) -> str:
    for name, value in values.items():
        template = template.replace(name, value)
    return template


def _told(template: str, number: int) -> str:
    raw = {_raw(name, _NUMBER): _raw(name, number) for name in ("flights", "weather")}
    return _filled(template, {_NUMBER: f"{number:08d}", _DAY: _day(number), _NAME: f"@v{number}", **raw})


def _version_of(path: str) -> str:
    return _NUMBER + _md5(path)[8:]


def _run_of(job: str) -> str:
    return f"{_NUMBER}-0000-4000-8000-{_md5(job)[:12]}"


def _templates(params: Mapping[str, Any]) -> dict[str, str]:
    """The events and the lock of a version, as long as the real ones: columns, statistics, files."""
    datasets = params["ingest"]["datasets"]
    settings = params["models"][MODEL]["features"]
    features = [*settings["key"], *settings["categorical"], *settings["numeric"], settings["label"]["name"]]
    raw = [Read(f"data/raw/{name}", _raw(name, _NUMBER), _run_of("ingest")) for name in datasets]
    snapshot = Read(f"snapshot/{MODEL}", f"{_NUMBER}cccc+{_DATA[:12]}", _run_of("snapshot"))
    made = {
        path: Read(event.dataset_name(path), _version_of(path), _run_of(stage))
        for stage, paths in _OUTPUTS.items()
        for path in paths
    }
    outs = {path: _output(path, features if "features" in path else ()) for path in made}
    sources = {column: [("data/raw/flights", column), ("data/raw/weather", "observed")] for column in features}
    feature_path = f"data/features/{MODEL}"
    outs[feature_path] = _output(feature_path, features, sources)
    told = {
        "ingest": _event(
            "ingest.ingest", outputs=[_ingested(name, body["columns"]) for name, body in datasets.items()]
        ),
        "snapshot": _event(f"{MODEL}.snapshot", raw, [Output(snapshot.name, snapshot.version)]),
        "register": _event(
            f"{MODEL}.register",
            [made[f"models/{MODEL}.skops"], made[f"metrics/{MODEL}.json"]],
            [Output(f"registry/{MODEL}", f"{MODEL}{_NAME}")],
        ),
        "gate": _event(f"{MODEL}.gate", [Read(f"registry/{MODEL}", f"{MODEL}{_NAME}", _run_of("register"))]),
    }
    for stage, paths in _OUTPUTS.items():
        reads = [made[path] for path in _READS[stage]]
        if stage in ("validate", "features"):
            reads = [*raw, *reads, snapshot]
        told[stage] = _event(f"{MODEL}.{stage}", reads, [outs[path] for path in paths])
    return {
        name: (as_line(body, _PROJECT) if name == "register" else as_json(body, _PROJECT).decode())
        for name, body in told.items()
    } | {"lock": _lock(made)}


_OUTPUTS = {
    "validate": [f"reports/{MODEL}/validation.json"],
    "features": [f"data/features/{MODEL}", f"reports/{MODEL}/columns.json"],
    "train": [f"models/{MODEL}.skops", f"plots/{MODEL}/trials.csv"],
    "evaluate": [
        f"data/predictions/{MODEL}.parquet",
        f"metrics/{MODEL}.json",
        f"plots/{MODEL}/calibration.csv",
        f"plots/{MODEL}/roc.csv",
        f"reports/{MODEL}/holdout.json",
        f"reports/{MODEL}/serving.json",
    ],
}
_READS = {
    "validate": [],
    "features": [f"reports/{MODEL}/validation.json"],
    "train": [f"data/features/{MODEL}"],
    "evaluate": [f"data/features/{MODEL}", f"models/{MODEL}.skops", f"plots/{MODEL}/trials.csv"],
}


def _event(job: str, reads: list[Read] | None = None, outputs: list[Output] | None = None) -> event.Event:
    stage = job.partition(".")[2]
    partitions = [{"path": f"data/raw/{name}/{_DAY}.parquet"} | _hashes(name) for name in ("flights", "weather")]
    facts: dict[str, Any] = {"run": f"run{_NUMBER}", "parameters": {"seed": 1}}
    if stage == "ingest":
        facts |= {"interval": _DAY, "partitions": [item | {"rows": 1000} for item in partitions]}
    if stage == "snapshot":
        facts |= {"code": _CODE, "data": _DATA, "dataThrough": _BEGIN.isoformat(), "backfill": False}
    if stage == "gate":
        facts |= {"version": f"{MODEL}{_NAME}", "passed": True, "promoted": True, "champion": None, "findings": []}
    if stage in _OUTPUTS:
        facts["stage"] = f"{stage}@{MODEL}"
        facts["inputs"] = [_hashes(f"in {number}") | {"path": f"pipeline/{number}.py"} for number in range(12)]
        facts["outputs"] = [
            {
                "path": path,
                "md5": _version_of(path),
                "files": [_hashes(path) | {"path": path}] * (6 if "." not in path else 1),
            }
            for path in _OUTPUTS[stage]
        ]
    return event.Event(
        "COMPLETE", _run_of(stage), job, _BEGIN, _BEGIN, reads or (), outputs or (), facts, commit="e" * 40
    )


def _hashes(text: str) -> dict[str, Any]:
    return {"md5": _md5(text), "sha256": hashlib.sha256(text.encode()).hexdigest(), "size": 1000}


def _statistics(columns: Any) -> Statistics | None:
    found = [Column(name, "double", 1, 1000, 0.0, 1.0, _QUANTILES) for name in columns]
    return Statistics(1000, 1, 1000, tuple(found)) if found else None


def _output(path: str, columns: Any, sources: Mapping[str, Any] | None = None) -> Output:
    name = event.dataset_name(path)
    return Output(name, _version_of(path), 1000, 1, statistics=_statistics(columns), sources=sources or {})


def _ingested(name: str, columns: Any) -> Output:
    return Output(f"data/raw/{name}", _raw(name, _NUMBER), 1000, 1, statistics=_statistics(columns))


def _lock(made: Mapping[str, Read]) -> str:
    stages = {}
    for stage, paths in _OUTPUTS.items():
        deps = [
            {"path": f"pipeline/{number}.py", "hash": "md5", "md5": _md5(str(number)), "size": 1} for number in range(8)
        ]
        deps += [{"path": path, "hash": "md5", "md5": made[path].version, "size": 1} for path in _READS[stage]]
        outs = [{"path": path, "hash": "md5", "md5": made[path].version, "size": 1} for path in paths]
        params = {"params.yaml": {f"models.{MODEL}.{stage}": {"seed": 1, "window": {"train": 4, "validation": 1}}}}
        stages[f"{stage}@{MODEL}"] = {
            "cmd": f"python -m pipeline.{stage}",
            "deps": deps,
            "params": params,
            "outs": outs,
        }
    return lock_text(stages).decode()
