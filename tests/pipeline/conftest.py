"""The real flights, made into raw partitions once, and projects that use them."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import yaml
from domain import ROOT, STAGES, Params, Project, cheap, choose, environment


@pytest.fixture(scope="session")
def stage_python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of the stages' environment: RETRACE_STAGE_PYTHON, or one made for this test session."""
    given = os.environ.get("RETRACE_STAGE_PYTHON")
    if given:
        return Path(given)
    folder = tmp_path_factory.mktemp("stages") / "environment"
    uv = [sys.executable, "-m", "uv"]
    subprocess.run([*uv, "venv", "-q", str(folder), "--python", sys.executable], check=True)
    lock = str(ROOT / "pipeline/requirements.txt")
    python = folder / "bin/python"
    subprocess.run([*uv, "pip", "sync", "-q", "--python", str(python), "--require-hashes", lock], check=True)
    return python


@pytest.fixture(scope="session")
def database(stage_python: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo's source, filled by its own program."""
    path = tmp_path_factory.mktemp("source") / "source.db"
    command = [str(stage_python), "-m", "pipeline.source", f"sqlite:///{path}"]
    subprocess.run(command, cwd=ROOT, env=environment(), check=True, capture_output=True)
    return path


@pytest.fixture(scope="session")
def raw(database: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Raw partitions from January to July, by the queries of params.yaml."""
    folder = tmp_path_factory.mktemp("raw")
    datasets = yaml.safe_load((ROOT / "params.yaml").read_text())["ingest"]["datasets"]
    connection = sqlite3.connect(database)
    for name, dataset in datasets.items():
        (folder / name).mkdir()
        for start in pd.date_range("2013-01-01", "2013-07-01", freq="MS"):
            bounds = {"start": str(start), "end": str(start + pd.offsets.MonthBegin())}
            rows = pd.read_sql_query(dataset["query"], connection, params=bounds)
            assert list(rows) == list(dataset["columns"])
            times = [column for column, kind in dataset["columns"].items() if kind == "timestamp"]
            rows = rows.astype(dict.fromkeys(times, "datetime64[us]")).sort_values(dataset["key"])
            rows.to_parquet(folder / name / f"{start:%Y-%m}.parquet", index=False)
    connection.close()
    return folder


@pytest.fixture(scope="session")
def small_raw(raw: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four months of a tenth of the aircraft."""
    return choose(raw, tmp_path_factory.mktemp("small") / "raw", ["2013-01", "2013-02", "2013-03", "2013-04"], share=10)


@pytest.fixture
def small(small_raw: Path, stage_python: Path, tmp_path: Path) -> Project:
    """A cheap project over few flights."""
    return Project(tmp_path / "project", stage_python, small_raw).edit(cheap)


@pytest.fixture(scope="session")
def july(raw: Path, stage_python: Path, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """late_arrival with July 2013 as its holdout: every stage run with nothing but what dvc.yaml declares for it."""
    months = [f"2013-{month:02}" for month in range(1, 8)]
    data = choose(raw, tmp_path_factory.mktemp("july") / "raw", months)

    def once(params: Params) -> None:
        params["models"]["late_arrival"]["train"] |= {"trials": 2, "tuning_rows": 20000}

    project = Project(tmp_path_factory.mktemp("july") / "project", stage_python, data).edit(once)
    for stage in STAGES:
        done = project.run_alone(stage, "late_arrival", tmp_path_factory.mktemp(stage))
        assert done.returncode == 0, f"{stage} alone, with what dvc.yaml declares: {done.stderr}"
    return project
