"""The stages of a checkout's dvc.yaml as DVC resolves them: templates, interpolation and all."""

from __future__ import annotations

from typing import Any

from retrace.child.report import Reporter
from retrace.child.store import Store


def declare(repo: Any, store: Store, request: dict[str, Any], reporter: Reporter) -> dict[str, Any]:
    """Every stage that stands for one model: its address, command line, dependencies, parameters and outputs."""
    reporter.phase("check")
    return {"stages": [_of(stage) for stage in repo.index.stages if stage.cmd and "@" in stage.addressing]}


def _of(stage: Any) -> dict[str, Any]:
    return {
        "address": stage.addressing,
        "command": stage.cmd,
        "dependencies": [dep.def_path for dep in stage.deps if not hasattr(dep, "params")],
        "parameters": {dep.def_path: list(dep.params) for dep in stage.deps if hasattr(dep, "params")},
        "outputs": [out.def_path for out in stage.outs],
    }
