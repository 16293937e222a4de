"""Where the time of one `retrace retrain` went, from the times in Airflow's log."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from benchmarks.laboratory import STAGES, Laboratory

_LINE = re.compile(r"^(\d{4}-\d\d-\d\dT[\d:.]+Z) \[\w+\s*\] (.*?)\s*\[(\S+)\]")
_START = re.compile(r"\[DAG TEST\] starting task_id=(\w+)")
_END = re.compile(r"\[DAG TEST\] end task task_id=(\w+)")
_PHASES = ("check", "pull", "run", "check outputs", "push")


@dataclass(frozen=True)
class Timeline:
    """Seconds of one retrain: in all, to the first task, after the last, of each task, of each stage's phases."""

    wall: float
    start: float
    exit: float
    tasks: dict[str, float]
    phases: dict[str, dict[str, float]]

    @property
    def between(self) -> float:
        """What passed between tasks."""
        return self.wall - self.start - self.exit - sum(self.tasks.values())


def timed_retrain(laboratory: Laboratory, *models: str) -> Timeline:
    """Run `retrace retrain` and read where its time went."""
    log = laboratory.var / "logs/airflow.log"
    before = log.stat().st_size
    began = time.time()
    wall = laboratory.retrace("retrain", *models)
    return _read(log, before, began, wall)


def _read(log: Path, offset: int, began: float, wall: float) -> Timeline:
    """Read the lines after `offset`: tasks' beginnings and ends, and the phases that stages told."""
    starts: dict[str, float] = {}
    ends: dict[str, float] = {}
    marks: dict[str, list[tuple[str, float]]] = {stage: [] for stage in STAGES}
    task = ""
    with open(log, "rb") as handle:
        handle.seek(offset)
        lines = handle.read().decode(errors="replace").splitlines()
    for found in filter(None, map(_LINE.match, lines)):
        moment, said = datetime.fromisoformat(found[1]).timestamp(), found[2]
        if started := _START.match(said):
            task = started[1]
            starts[task] = moment
        elif said == "Task started" and len(starts) == 1 and not ends:
            starts[task] = moment  # Airflow's API server, which the first task waits for, is part of Airflow's start
        elif ended := _END.match(said):
            ends[ended[1]] = moment
        elif task in marks and said in _PHASES:
            marks[task].append((said, moment))
    tasks = {name: ends[name] - starts[name] for name in starts}
    phases = {stage: _phases(starts[stage], ends[stage], marks[stage]) for stage in STAGES}
    return Timeline(wall, min(starts.values()) - began, began + wall - max(ends.values()), tasks, phases)


def _phases(start: float, end: float, marks: list[tuple[str, float]]) -> dict[str, float]:
    points = [("workspace", start), *marks, ("", end)]
    return {name: after - moment for (name, moment), (_, after) in zip(points, points[1:], strict=False)}
