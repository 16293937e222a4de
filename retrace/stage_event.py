"""The lineage event of a stage: what it read and wrote, who made that, and what its reports say of it.

Two of a stage's reports are read, where it writes them: `reports/<model>/validation.json`, each check of the data, and
`reports/<model>/columns.json`, the source columns of each column it makes.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

from retrace.config import Settings
from retrace.dvcfiles import RAW, StageTemplate
from retrace.errors import RetraceError
from retrace.git import Git
from retrace.lineage import event
from retrace.lineage.event import Output, Read
from retrace.lineage.facets import as_json
from retrace.lineage.hide import hide
from retrace.lineage.jobs import stage_documentation
from retrace.lineage.project import places
from retrace.process import StageFailed, traceback_of
from retrace.runs import log_path, project_of
from retrace.statistics import Statistics
from retrace.workspace import Workspace

if TYPE_CHECKING:
    from retrace.stage import StageCall


def completed(
    settings: Settings, git: Git, call: StageCall, template: StageTemplate, space: Workspace, result: Mapping[str, Any]
) -> bytes:
    """The COMPLETE event of a stage that ran, with the result that its process reported."""
    known = event.producers(git, call.commit, call.model)
    deps = {dep["path"]: dep["md5"] for dep in result["lock"].get("deps", ())}
    reads = {read.name: read for read in _reads(known, deps)}
    for name, checks in _checks(space, call.model, template).items():
        reads[name] = Read(name, reads[name].version, reads[name].run, checks)
    told = event.Event(
        "COMPLETE",
        inputs=[reads[name] for name in sorted(reads)],
        outputs=_outputs(call, template, space, result),
        facts={
            **_facts(call),
            "environment": result["environment"],
            "machine": result["machine"],
            "parameters": result["lock"].get("params", {}).get("params.yaml", {}),
            "inputs": result["inputs"],
            "outputs": result["outputs"],
        },
        **_run(call, template, result["started"], result["ended"]),
    )
    return as_json(told, project_of(settings, git, call.commit, call.model))


def failed(
    settings: Settings,
    git: Git,
    call: StageCall,
    template: StageTemplate,
    space: Workspace,
    started: datetime,
    error: RetraceError,
) -> bytes:
    """The FAIL event of a stage: no output, and no input but what its checks judged."""
    known = event.producers(git, call.commit, call.model)
    checks = _checks(space, call.model, template)
    hidden = places(settings, (space.path, "."))
    trace = traceback_of(log_path(settings, call.task), call.address) if isinstance(error, StageFailed) else None
    told = event.Event(
        "FAIL",
        inputs=[Read(name, known[name].version, known[name].run, checks[name]) for name in sorted(checks)],
        facts=_facts(call),
        error=hide(str(error), hidden),
        trace=hide(trace, hidden) if trace else None,
        **_run(call, template, started.timestamp(), datetime.now(UTC).timestamp()),
    )
    return as_json(told, project_of(settings, git, call.commit, call.model))


def _facts(call: StageCall) -> dict[str, Any]:
    return {"stage": call.address, "run": call.task.run.run_id, "attempt": call.task.attempt}


def _run(call: StageCall, template: StageTemplate, started: float, ended: float) -> dict[str, Any]:
    program = f"pipeline/{template.name}.py"
    return {
        "run_id": call.task.lineage_run_id,
        "job": call.task.lineage_job,
        "started": datetime.fromtimestamp(started, UTC),
        "ended": datetime.fromtimestamp(ended, UTC),
        "parent": call.task.parent,
        "documentation": stage_documentation(call.address, template.command.replace("${key}", call.model)),
        "code": program if program in template.dependencies else "dvc.yaml",
        "commit": call.commit,
    }


def _reads(known: Mapping[str, Read], deps: Mapping[str, str]) -> Iterable[Read]:
    """The datasets among a stage's dependencies; code and environment are none. Raw data comes by the snapshot, too."""
    wanted = {}
    for path, md5 in deps.items():
        name = event.dataset_name(path)
        parts = [
            read for dataset, read in known.items() if name.startswith(f"{dataset}/") or dataset.startswith(f"{name}/")
        ]
        if parts:  # a part of a dataset, or a folder that holds some
            yield from parts
        elif name in known or path.startswith("data/"):
            wanted[name] = md5
    if any(name.startswith(f"{RAW}/") for name in wanted):
        yield from (read for name, read in known.items() if name.startswith("snapshot/"))
    yield from event.reads_of(known, wanted)


def _outputs(call: StageCall, template: StageTemplate, space: Workspace, result: Mapping[str, Any]) -> list[Output]:
    files = {item["path"]: item["files"] for item in result["outputs"]}
    report = _report(space, call.model, "columns", template)
    sources = report if isinstance(report, Mapping) else {}
    return [
        Output(
            event.dataset_name(out["path"]),
            out["md5"],
            size=sum(int(file["size"]) for file in files[out["path"]]),
            files=len(files[out["path"]]),
            format=_format(file["path"] for file in files[out["path"]]),
            statistics=_statistics(result, out["path"]),
            sources=sources.get(out["path"], {}),
            documentation=f"{out['path']}, made by the stage {call.address}; its versions are DVC's md5",
        )
        for out in result["lock"]["outs"]
    ]


def _statistics(result: Mapping[str, Any], path: str) -> Statistics | None:
    found = result["statistics"].get(path)
    return Statistics.from_dict(found) if found is not None else None


def _format(paths: Iterable[str]) -> str | None:
    found = {PurePosixPath(path).suffix.removeprefix(".") for path in paths}
    return found.pop() if len(found) == 1 else None


def _report(space: Workspace, model: str, name: str, template: StageTemplate) -> Any:
    """A report that the stage declares and wrote, or None."""
    path = f"reports/${{key}}/{name}.json"
    file = space.path / path.replace("${key}", model)
    if path not in template.uncached or not file.is_file():
        return None
    try:
        return json.loads(file.read_text())
    except ValueError:
        return None  # a stage that failed may have left half of it


def _checks_told(report: Any) -> Iterable[Mapping[str, Any]]:
    """The checks of a report, if it is of that form: a pipeline may write another, and no task fails for lineage."""
    checks = report.get("checks") if isinstance(report, Mapping) else None
    told = [item for item in checks or () if isinstance(item, Mapping)]
    return [item for item in told if item.keys() >= {"dataset", "partition", "column", "check", "passed", "detail"}]


def _checks(space: Workspace, model: str, template: StageTemplate) -> dict[str, list[dict[str, Any]]]:
    """Raw dataset -> its checks over all partitions that were judged; a check failed where it did in one of them."""
    report = _report(space, model, "validation", template)
    found: dict[tuple[str, str | None, str], dict[str, Any]] = {}
    for item in _checks_told(report):
        key = (item["dataset"], item["column"], item["check"])
        empty = {"check": item["check"], "column": item["column"], "passed": True, "partitions": 0, "failed": []}
        check = found.setdefault(key, empty | {"detail": ""})
        check["partitions"] += 1
        if not item["passed"]:
            check["passed"], check["detail"] = False, f"{item['partition']}: {item['detail'] or 'no'}"
            check["failed"].append(item["partition"])
    by_dataset: dict[str, list[dict[str, Any]]] = {}
    for (dataset, _, _), check in found.items():
        by_dataset.setdefault(f"{RAW}/{dataset}", []).append(check)
    return by_dataset
