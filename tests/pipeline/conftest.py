"""The real flights, made into raw partitions once, and projects that use them."""

from __future__ import annotations

import os
import sqlite3
import subprocess
from pathlib import Path

import pandas as pd
import pytest
import yaml
from domain import ROOT, STAGES, Params, Project, cheap, choose, environment
from shared import made_once

from retrace.environment import EnvironmentLock, ensure


@pytest.fixture(scope="session")
def stage_python(environments: Path) -> Path:
    """The Python of the stages' environment: RETRACE_STAGE_PYTHON, or the one that the engine makes."""
    given = os.environ.get("RETRACE_STAGE_PYTHON")
    return Path(given) if given else ensure(EnvironmentLock.of_folder(ROOT), environments) / "bin/python"


@pytest.fixture(scope="session")
def database(stage_python: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo's source, filled by its own program."""

    def make(folder: Path) -> None:
        command = [str(stage_python), "-m", "pipeline.source", f"sqlite:///{folder / 'source.db'}"]
        subprocess.run(command, cwd=ROOT, env=environment(), check=True, capture_output=True)

    return made_once(tmp_path_factory, "source", make) / "source.db"


@pytest.fixture(scope="session")
def raw(database: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Raw partitions from January to July, by the queries of params.yaml."""

    def make(folder: Path) -> None:
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

    return made_once(tmp_path_factory, "raw", make)


@pytest.fixture(scope="session")
def small_raw(raw: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four months of a tenth of the aircraft."""
    months = ["2013-01", "2013-02", "2013-03", "2013-04"]
    return made_once(tmp_path_factory, "small", lambda folder: choose(raw, folder, months, share=10))


@pytest.fixture
def small(small_raw: Path, stage_python: Path, tmp_path: Path) -> Project:
    """A cheap project over few flights."""
    return Project(tmp_path / "project", stage_python, small_raw).edit(cheap)


@pytest.fixture(scope="session")
def july(raw: Path, stage_python: Path, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """late_arrival with July 2013 as its holdout: every stage run with nothing but what dvc.yaml declares for it."""

    def once(params: Params) -> None:
        params["models"]["late_arrival"]["train"] |= {"trials": 2, "tuning_rows": 20000}

    def make(folder: Path) -> None:
        project = Project(folder / "project", stage_python, raw).edit(once)
        for stage in STAGES:
            done = project.run_alone(stage, "late_arrival", folder / stage)
            assert done.returncode == 0, f"{stage} alone, with what dvc.yaml declares: {done.stderr}"

    return Project(made_once(tmp_path_factory, "july", make) / "project", stage_python)
