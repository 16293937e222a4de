"""The events and the lock of a version, as long as the real ones: columns, statistics, every file that a stage read.

They are made once. What differs between versions stands in them as a placeholder, since making a thousand of each by
OpenLineage's own classes would take minutes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.laboratory import MODEL, STAGES
from benchmarks.partitions import BEGIN, Partitions, day
from retrace.dvcfiles import LOCK, RAW, StageTemplate, lock_text
from retrace.lineage import event
from retrace.lineage.event import Output, Project, Read
from retrace.lineage.facets import as_json, as_line
from retrace.statistics import Column, Statistics

INGEST, SNAPSHOT, REGISTER, GATE = "ingest", "snapshot", "register", "gate"
READ_RAW = ("validate", "features")  # the stages that read raw data, and whose events list every file of it
_PROJECT = Project("retrace", "https://example.com/team/flights.git", "s3://bucket/dvc", "team")
_QUANTILES = dict.fromkeys(("0.05", "0.25", "0.5", "0.75", "0.95"), 0.5)
_MACHINE = {
    "processor": "AMD EPYC 7B13",
    "architecture": "x86_64",
    "system": "Linux 6.1.0",
    "libc": "glibc 2.36",
    "python": "3.11.2",
}
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
_METRICS = {"roc_auc": 0.75, "cost_per_flight": 0.4, "log_loss": 0.5, "brier_score": 0.16}
METRICS = json.dumps(_METRICS)
RESULTS = {  # the results that git keeps and that are read again: the lock names their true md5
    f"metrics/{MODEL}.json": json.dumps({"holdout": _METRICS, "validation": _METRICS}, indent=1).encode(),
    f"reports/{MODEL}/holdout.json": json.dumps({"partition": "2013-06", "rows": 1000, "digest": "a" * 64}).encode(),
}

# In a template these stand for what differs: numbers of 8 digits within md5s and run ids, a day, commits, files.
_NUMBER, _DAYS, _DAY, _NAME, _ROWS = "00112233", "44556677", "9999-99-99", "@v0", 55667788
_CODE, _DATA = "c" * 40, "d" * 40
_FILES = "every raw file"
_INDENT = " " * 5  # of a file in an event


@dataclass(frozen=True)
class Made:
    """What a version, or a commit of data, is made of: its number, the days of data, and the commits that met."""

    days: int
    number: int = 0
    code: str = ""
    data: str = ""


def templates(params: Mapping[str, Any], pipeline: Iterable[StageTemplate]) -> dict[str, str]:
    """Job -> its event with placeholders; and the lock, which has the other models' entries, too."""
    code = {stage.name: [path for path in stage.dependencies if path.startswith("pipeline/")] for stage in pipeline}
    datasets = params["ingest"]["datasets"]
    settings = params["models"][MODEL]["features"]
    features = [*settings["key"], *settings["categorical"], *settings["numeric"], settings["label"]["name"]]
    raw = [Read(f"{RAW}/{name}", _directory(name), _run_of(INGEST)) for name in datasets]
    snapshot = Read(f"snapshot/{MODEL}", f"{_NUMBER}cccc+{_DATA[:12]}", _run_of(SNAPSHOT))
    made = {
        path: Read(event.dataset_name(path), _version_of(path), _run_of(stage))
        for stage, paths in _OUTPUTS.items()
        for path in paths
    }
    outs = {path: _output(path, features if "features" in path else ()) for path in made}
    sources = {column: [(f"{RAW}/flights", column), (f"{RAW}/weather", "observed")] for column in features}
    feature_path = f"data/features/{MODEL}"
    outs[feature_path] = _output(feature_path, features, sources)
    registry = f"registry/{MODEL}"
    told = {
        INGEST: _event("ingest.ingest", outputs=[_ingested(name, body["columns"]) for name, body in datasets.items()]),
        SNAPSHOT: _event(f"{MODEL}.{SNAPSHOT}", raw, [Output(snapshot.name, snapshot.version)]),
        REGISTER: _event(
            f"{MODEL}.{REGISTER}",
            [made[f"models/{MODEL}.skops"], made[f"metrics/{MODEL}.json"]],
            [Output(registry, f"{MODEL}{_NAME}")],
        ),
        GATE: _event(f"{MODEL}.{GATE}", [Read(registry, f"{MODEL}{_NAME}", _run_of(REGISTER))]),
    }
    for stage in STAGES:
        reads = [made[path] for path in _READS[stage]]
        if stage in READ_RAW:
            reads = [*raw, *reads, snapshot]
        told[stage] = _event(f"{MODEL}.{stage}", reads, [outs[path] for path in _OUTPUTS[stage]], code[stage])
    texts = {
        name: (as_line(body, _PROJECT) if name == REGISTER else as_json(body, _PROJECT).decode())
        for name, body in told.items()
    }
    return texts | {LOCK: _lock(made, datasets, params["models"], code)}


def filled(template: str, made: Made, datasets: Sequence[Partitions]) -> bytes:
    """A template with what is true of one version, or of one commit of data."""
    values = {_NUMBER: f"{made.number:08d}", _DAYS: f"{made.days:08d}", _DAY: day(made.days), _NAME: f"@v{made.number}"}
    for dataset in datasets:
        newest, (md5, sha256) = dataset.items[made.days - 1], _hashes(dataset.name)
        values |= {_directory(dataset.name): dataset.directory(made.days), md5: newest.md5, sha256: newest.sha256}
        values |= {str(_ROWS): str(newest.rows)}
    values |= {_CODE: made.code, _DATA: made.data} if made.data else {}
    for name, value in values.items():
        template = template.replace(name, value)
    before, mark, after = template.partition(f'{_INDENT}"{_FILES}"')
    files = [text for dataset in datasets for text in dataset.as_json(_INDENT)[: made.days]] if mark else []
    return (before + ",\n".join(files) + after).encode()


def _hashes(text: str) -> tuple[str, str]:
    return hashlib.md5(text.encode()).hexdigest(), hashlib.sha256(text.encode()).hexdigest()


def _file(path: str, of: str | None = None) -> dict[str, Any]:
    md5, sha256 = _hashes(of or path)
    return {"path": path, "md5": md5, "sha256": sha256, "size": 1000}


def _directory(dataset: str) -> str:
    return f"{_hashes(f'folder {dataset}')[0]}.dir"


def _version_of(path: str) -> str:
    if path in RESULTS:
        return hashlib.md5(RESULTS[path]).hexdigest()
    return _NUMBER + _hashes(path)[0][8:] + (".dir" if path == f"data/features/{MODEL}" else "")


def _run_of(job: str) -> str:
    return f"{_DAYS if job == INGEST else _NUMBER}-0000-4000-8000-{_hashes(job)[0][:12]}"


def _event(
    job: str, reads: Sequence[Read] = (), outputs: Sequence[Output] = (), code: Iterable[str] = ()
) -> event.Event:
    stage = job.partition(".")[2]
    facts = {"run": f"run{_NUMBER}", "attempt": 1} | _facts(stage, code)
    return event.Event(
        "COMPLETE", _run_of(stage), job, BEGIN, BEGIN, reads, outputs, facts, code="params.yaml", commit="e" * 40
    )


def _facts(stage: str, code: Iterable[str]) -> dict[str, Any]:
    if stage == INGEST:
        partitions = [_file(f"{RAW}/{name}/{_DAY}.parquet", name) | {"rows": _ROWS} for name in ("flights", "weather")]
        return {"interval": _DAY, "partitions": partitions}
    if stage == SNAPSHOT:
        return {"code": _CODE, "data": _DATA, "dataThrough": BEGIN.isoformat(), "backfill": False}
    if stage == GATE:
        findings = [{"passed": True, "text": "roc_auc 0.75 >= 0.7"}]
        return {
            "version": f"{MODEL}{_NAME}",
            "passed": True,
            "promoted": True,
            "champion": None,
            "findings": findings,
        }
    if stage not in _OUTPUTS:
        return {}
    read = [_FILES] if stage in READ_RAW else []
    outputs = [
        {"path": path, "md5": _version_of(path), "files": [_file(path)] * (6 if "." not in path else 1)}
        for path in _OUTPUTS[stage]
    ]
    return {
        "stage": f"{stage}@{MODEL}",
        "machine": _MACHINE,
        "environment": _hashes("environment")[1],
        "parameters": {"seed": 1},
        "inputs": [*read, *(_file(path) for path in code)],
        "outputs": outputs,
    }


def _statistics(columns: Sequence[str]) -> Statistics | None:
    found = [Column(name, "double", 1, 1000, 0.0, 1.0, _QUANTILES) for name in columns]
    return Statistics(1000, 1, 1000, tuple(found)) if found else None


def _output(path: str, columns: Sequence[str], sources: Mapping[str, Any] | None = None) -> Output:
    name = event.dataset_name(path)
    return Output(name, _version_of(path), 1000, 1, statistics=_statistics(columns), sources=sources or {})


def _ingested(name: str, columns: Sequence[str]) -> Output:
    return Output(f"{RAW}/{name}", _directory(name), 1000, 1, statistics=_statistics(columns))


def _lock(
    made: Mapping[str, Read], datasets: Iterable[str], models: Mapping[str, Any], code: Mapping[str, Sequence[str]]
) -> str:
    stages: dict[str, Any] = {}
    for stage, paths in _OUTPUTS.items():
        deps = [_locked(path, _hashes(path)[0]) for path in code[stage]]
        deps += [_locked(f"{RAW}/{name}", _directory(name)) for name in datasets if stage in READ_RAW]
        deps += [_locked(path, made[path].version) for path in _READS[stage]]
        stages[f"{stage}@{MODEL}"] = {
            "cmd": f"python -m pipeline.{stage} {MODEL}",
            "deps": deps,
            "params": {"params.yaml": {f"models.{MODEL}.{key}": models[MODEL][key] for key in ("window", stage)}},
            "outs": [_locked(path, made[path].version) for path in paths],
        }
    for other in models.keys() - {MODEL}:
        stages |= json.loads(json.dumps(stages).replace(MODEL, other))
    return lock_text(stages).decode()


def _locked(path: str, md5: str) -> dict[str, Any]:
    return {"path": path, "hash": "md5", "md5": md5, "size": 1}
