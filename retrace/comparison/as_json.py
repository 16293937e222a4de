"""A comparison as JSON, for programs. Keys are only ever added; lists are in the order of the text.

    model                 the model that is compared
    a, b                  name, kind (version | commit | working copy), commit, edited (a working copy with changes
                          that are not committed), code, trained (whether it has results), and data: commit, through
                          (exclusive end), newest (true for code without data of its own: what the branch data holds)
    data.datasets[]       name; from and to {md5, partitions, rows} or null; added[], removed[] {path, md5, rows};
                          replaced[] {path, from {md5, rows}, to {md5, rows}}; psi[] of all rows (--psi) or null
    data.tables[]         tables of which events hold statistics: name; from and to {version, partition, rows} (the
                          partition that they are of, null for all); columns[] {name, change, from, to} (types); psi[]
    psi[]                 column, psi, reading (stable | moderate | large)
    code.stages[]         stage; command {from, to} or null; files[] {path, change}
    code.outside[]        files that no stage declares: path, change
    code.patch            text (--patch) or null
    parameters[]          name (below the model), change, from, to, stages[] that read it
    environment           same; python {from, to} or null; packages[] {name, change, from, to}
    metrics               comparable (same holdout; null: not known); holdout[] {name, change, from, to};
                          values[] {name, from, to, difference}
    stages[]              stage; state (unchanged | changed | depends | not deterministic | added | removed);
                          reasons[] {kind, what, from, to, stage}; roots[]; outputs[]; machine[]

`change` is added, removed or changed; a side that lacks something has null. `kind` of a reason is command, code,
environment, parameter, data, output (of an earlier stage) or dependency (declared on one side only).
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from retrace.comparison.code import Code
from retrace.comparison.compared import Comparison
from retrace.comparison.content import Content
from retrace.comparison.data import DatasetChange
from retrace.comparison.psi import ColumnPsi
from retrace.comparison.raw import Dataset
from retrace.comparison.reasons import StageReasons
from retrace.comparison.tables import Table, TableChange
from retrace.manifest import Partition


def json_text(found: Comparison) -> str:
    """The whole answer as one JSON object."""
    return json.dumps(as_dict(found), indent=1, default=str)


def as_dict(found: Comparison) -> dict[str, Any]:
    """The whole answer; the keys are those above."""
    python, metrics = found.environment.python, found.metrics
    return {
        "model": found.model,
        "a": _side(found.a),
        "b": _side(found.b),
        "data": {"datasets": list(map(_dataset, found.data)), "tables": list(map(_table, found.tables))},
        "code": _code(found.code) | {"patch": found.patch},
        "parameters": [item.change.as_dict() | {"stages": list(item.stages)} for item in found.parameters],
        "environment": {
            "same": found.environment.same,
            "python": {"from": python.before, "to": python.after} if python is not None else None,
            "packages": [change.as_dict() for change in found.environment.packages],
        },
        "metrics": {
            "comparable": metrics.comparable,
            "holdout": [change.as_dict() for change in metrics.holdout],
            "values": [
                {"name": value.name, "from": value.before, "to": value.after, "difference": value.difference}
                for value in metrics.values
            ],
        },
        "stages": list(map(_stage, found.stages)),
    }


def _side(content: Content) -> dict[str, Any]:
    side, data = content.side, content.data
    through = data.through.isoformat() if data.through is not None else None
    return {
        "name": side.name,
        "kind": side.kind,
        "commit": side.commit,
        "edited": content.edited,
        "code": content.code,
        "trained": content.trained,
        "data": {"commit": data.commit, "through": through, "newest": data.newest},
    }


def _dataset(change: DatasetChange) -> dict[str, Any]:
    return {
        "name": change.name,
        "from": _totals(change.before),
        "to": _totals(change.after),
        "added": list(map(_partition, change.added)),
        "removed": list(map(_partition, change.removed)),
        "replaced": [
            {"path": new.path, "from": {"md5": old.md5, "rows": old.rows}, "to": {"md5": new.md5, "rows": new.rows}}
            for old, new in change.replaced
        ],
        "psi": _psi(change.psi) if change.psi is not None else None,
    }


def _totals(dataset: Dataset | None) -> dict[str, Any] | None:
    if dataset is None:
        return None
    return {"md5": dataset.md5, "partitions": len(dataset.partitions), "rows": dataset.rows}


def _partition(partition: Partition) -> dict[str, Any]:
    return {"path": partition.path, "md5": partition.md5, "rows": partition.rows}


def _table(change: TableChange) -> dict[str, Any]:
    return {
        "name": change.name,
        "from": _version(change.before),
        "to": _version(change.after),
        "columns": [column.as_dict() for column in change.columns],
        "psi": _psi(change.psi),
    }


def _version(table: Table) -> dict[str, Any]:
    return {"version": table.version, "partition": table.part, "rows": table.rows}


def _psi(moved: Iterable[ColumnPsi]) -> list[dict[str, Any]]:
    return [{"column": item.column, "psi": round(item.value, 6), "reading": item.reading} for item in moved]


def _code(code: Code) -> dict[str, Any]:
    return {
        "stages": [
            {
                "stage": item.stage,
                "command": {"from": item.command.before, "to": item.command.after} if item.command else None,
                "files": [file.as_dict() for file in item.files],
            }
            for item in code.stages
        ],
        "outside": [file.as_dict() for file in code.outside],
    }


def _stage(stage: StageReasons) -> dict[str, Any]:
    return {
        "stage": stage.name,
        "state": stage.state,
        "reasons": [
            {"kind": item.kind, "what": item.what, "from": item.before, "to": item.after, "stage": item.stage}
            for item in stage.reasons
        ],
        "roots": list(stage.roots),
        "outputs": list(stage.outputs),
        "machine": list(stage.machine),
    }
