"""What a DAG file costs beyond importing Airflow: for this project, and for one with a hundred models."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import yaml

from benchmarks.laboratory import ROOT, Laboratory, Table, limit, median, seconds, tell

LIMIT = 0.3
MODELS = 100
_PROGRAM = """
import importlib.util, sys, time
import airflow.dag_processing.dagbag
from airflow.sdk import DAG, Asset, AssetOrTimeSchedule, BaseOperator, CronTriggerTimetable
start = time.perf_counter()
spec = importlib.util.spec_from_file_location("retrain", sys.argv[1])
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
print("parsed", time.perf_counter() - start, sum(isinstance(value, DAG) for value in vars(module).values()))
"""


def measure(laboratory: Laboratory) -> list[Table]:
    own, many = _project(laboratory, "few", None), _project(laboratory, "many", MODELS)
    times: dict[Path, list[float]] = {own: [], many: []}
    counts: dict[Path, int] = {}
    for repetition in range(max(5, laboratory.repetitions)):
        tell(f"dag_parse {repetition + 1}")
        for project in times:
            taken, counts[project] = _parse(laboratory, project)
            if repetition:  # the first one compiles
                times[project].append(taken)
    rows = [(f"dags/retrain.py with {counts[project]} models", seconds(times[project])) for project in times]
    note = limit(median(times[own]) <= LIMIT, f"at most {LIMIT:g} s beyond importing Airflow")
    return [Table("A DAG file parses (s, beyond importing Airflow)", ("", "median (from, to)"), rows, (note,))]


def _parse(laboratory: Laboratory, project: Path) -> tuple[float, int]:
    environ = laboratory.environ(
        AIRFLOW_HOME=str(laboratory.folder / "parse-home"),
        AIRFLOW__CORE__DAGS_FOLDER=str(project / "dags"),
        AIRFLOW__CORE__LOAD_EXAMPLES="False",
        PYTHONPATH=str(project),
    )
    laboratory.run([sys.executable, "-c", _PROGRAM, str(project / "dags/retrain.py")], project, environ)
    line = next(line for line in laboratory.output().splitlines() if line.startswith("parsed "))
    _, wall, count = line.split()
    return float(wall), int(count)


def _project(laboratory: Laboratory, name: str, models: int | None) -> Path:
    """The DAG files of this project, with as many models as are wanted."""
    project = laboratory.folder / f"parse-{name}"
    project.mkdir()
    for folder in ("dags", "retrace"):
        shutil.copytree(ROOT / folder, project / folder, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "dvc.yaml", project)
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    if models is not None:
        first = next(iter(params["models"].values()))
        params["models"] = {f"model_{number}": first for number in range(models)}
    (project / "params.yaml").write_text(yaml.safe_dump(params))
    return project
