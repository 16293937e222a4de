"""The DAGs that the files below dags/ make of params.yaml and dvc.yaml, read in a new process as Airflow reads them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from projects import ROOT, STAGES, TOY

from retrace.airflow.embedded import environment, keys
from retrace.lineage.jobs import documentation

RETRAIN = ["snapshot", *STAGES, "register", "gate", "publish", "cleanup"]

DESCRIBE = """
import json, runpy, sys
import airflow.sdk, airflow.sdk.exceptions
from airflow.sdk import DAG, Asset, AssetOrTimeSchedule, BaseHook, BaseOperator
from airflow.sdk import CronTriggerTimetable, ExceptionRetryPolicy

before = set(sys.modules)
files = {}
for file in sys.argv[1:]:
    files.update({dag.dag_id: dag for dag in runpy.run_path(file).values() if isinstance(dag, DAG)})
added = {name.partition(".")[0] for name in set(sys.modules) - before}


def schedule(dag):
    table = dag.timetable
    inner = getattr(table, "timetable", table)
    condition = getattr(table, "asset_condition", None)
    assets = [asset.uri for asset in condition.objects] if condition is not None else []
    return {"cron": getattr(inner, "expression", None), "assets": assets}


def task(item):
    policy = item.retry_policy
    return {
        "upstream": sorted(item.upstream_task_ids),
        "pool": item.pool,
        "owner": item.owner,
        "doc": item.doc,
        "retries": item.retries,
        "delay": item.retry_delay.total_seconds(),
        "backoff": item.retry_exponential_backoff,
        "longest": item.max_retry_delay.total_seconds(),
        "timeout": item.execution_timeout.total_seconds() if item.execution_timeout else None,
        "teardown": item.is_teardown,
        "outlets": [asset.uri for asset in item.outlets],
        "retried": {kind.__name__: policy.evaluate(kind("x"), 1, 4).action.value
                    for kind in (airflow.sdk.exceptions.AirflowException, ConnectionError, ValueError, MemoryError)},
    }


print(json.dumps({
    "added": sorted(added),
    "dags": {
        name: {
            "tasks": {item.task_id: task(item) for item in dag.topological_sort()},
            "schedule": schedule(dag),
            "catchup": dag.catchup,
            "active": dag.max_active_runs,
            "start": dag.start_date.isoformat(),
        }
        for name, dag in files.items()
    },
}))
"""

ERRORS = """
import json, sys
from airflow.dag_processing.dagbag import DagBag

print(json.dumps(DagBag(dag_folder=sys.argv[1], collect_dags=True).import_errors))
"""


def run(folder: Path, var: Path, code: str, *arguments: str) -> Any:
    """What a program prints last, as JSON, in the environment of the embedded Airflow."""
    var.mkdir(exist_ok=True)
    kept = {name: value for name, value in os.environ.items() if not name.startswith("AIRFLOW")}
    environ = environment(var, folder, {**kept, "PYTHONPATH": str(ROOT)}, more=keys(var))
    done = subprocess.run(
        [sys.executable, "-P", "-c", code, *arguments], cwd=var, env=environ, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def describe(project: Path, var: Path) -> Mapping[str, Any]:
    return dict(run(project / "dags", var, DESCRIBE, *(str(path) for path in sorted((project / "dags").glob("*.py")))))


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Any]:
    """The DAGs of the repository itself."""
    return describe(ROOT, tmp_path_factory.mktemp("real") / "var")


def toy(folder: Path, change: Mapping[str, Any]) -> Path:
    shutil.copytree(TOY, folder)
    shutil.copytree(ROOT / "dags", folder / "dags")
    params = json.loads((folder / "params.yaml").read_text())
    params["models"]["beta"] |= change
    (folder / "params.yaml").write_text(json.dumps(params))
    return folder


@pytest.fixture(scope="module")
def toys(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Any]:
    """The toy's, where alpha waits for data, beta for the clock, and ingestion for nobody."""
    folder = tmp_path_factory.mktemp("toy")
    return describe(toy(folder / "project", {"schedule": {"cron": "30 6 * * 1"}}), folder / "var")


def test_a_model_has_a_dag_of_its_own_with_a_task_per_stage_in_order(
    real: Mapping[str, Any], toys: Mapping[str, Any]
) -> None:
    own = {"audit", "doctor", "ingest", "sync"}
    assert set(real["dags"]) == own | set(yaml.safe_load((ROOT / "params.yaml").read_text())["models"])
    assert set(toys["dags"]) == own | {"alpha", "beta"}
    for described in (real, toys):
        for name, dag in described["dags"].items():
            tasks = dag["tasks"]
            assert dag["active"] == 1 and dag["catchup"] is False and dag["start"] == "2013-01-01T00:00:00+00:00"
            if name == "ingest":
                assert list(tasks) == ["ingest"] and tasks["ingest"]["outlets"] == ["retrace://data/raw"]
                continue
            if name == "audit":
                assert set(tasks) == described["dags"].keys() - own
                assert all(not task["upstream"] and not task["outlets"] for task in tasks.values())
                continue
            if name in ("doctor", "sync"):
                assert list(tasks) == [name] and tasks[name]["outlets"] == []
                continue
            assert sorted(tasks) == sorted(RETRAIN)
            work = RETRAIN[:-1]
            assert [tasks[task]["upstream"] for task in work] == [[], *([task] for task in work[:-1])]
            assert tasks["cleanup"]["upstream"] == ["gate"] and tasks["cleanup"]["teardown"] is True
            assert [task for task in work if tasks[task]["teardown"]] == []


def test_stages_share_a_pool_and_everything_that_works_has_a_timeout(real: Mapping[str, Any]) -> None:
    models = yaml.safe_load((ROOT / "params.yaml").read_text())["models"]
    for name, model in models.items():
        tasks = real["dags"][name]["tasks"]
        heavy = {task for task, facts in tasks.items() if facts["pool"] == "retrace_stages"}
        assert heavy == {*STAGES, "gate"}
        rebuilds = real["dags"]["audit"]["tasks"][name]
        assert rebuilds["pool"] == "retrace_stages" and rebuilds["timeout"] == 6 * 3600
        stage_seconds = model["timeout_minutes"] * 60
        for task in RETRAIN[:-1]:
            least = stage_seconds if task in STAGES else 0
            assert least < tasks[task]["timeout"] <= 2 * stage_seconds + 3600, task
    assert real["dags"]["ingest"]["tasks"]["ingest"]["timeout"]


def test_only_what_may_pass_is_retried_and_each_wait_is_longer(real: Mapping[str, Any]) -> None:
    for dag in real["dags"].values():
        for facts in dag["tasks"].values():
            assert facts["retries"] >= 3 and facts["backoff"] == 2.0
            assert 0 < facts["delay"] < facts["longest"] <= 3600
            assert facts["retried"] == {
                "AirflowException": "retry",
                "ConnectionError": "retry",
                "ValueError": "fail",
                "MemoryError": "fail",
            }


def test_schedules_are_those_of_params_yaml(real: Mapping[str, Any], toys: Mapping[str, Any]) -> None:
    data = ["retrace://data/raw"]
    found = {name: dag["schedule"] for name, dag in real["dags"].items()}
    assert found == {
        "ingest": {"cron": "0 5 2 * *", "assets": []},
        "sync": {"cron": "*/15 * * * *", "assets": []},
        "audit": {"cron": "0 3 * * 0", "assets": []},
        "doctor": {"cron": "0 6 * * *", "assets": []},
        "late_arrival": {"cron": "0 7 3 * *", "assets": data},
        "air_time": {"cron": None, "assets": data},
    }
    found = {name: dag["schedule"] for name, dag in toys["dags"].items()}
    assert found == {
        "ingest": {"cron": None, "assets": []},
        "sync": {"cron": "*/15 * * * *", "assets": []},
        "audit": {"cron": "0 3 * * 0", "assets": []},
        "doctor": {"cron": "0 6 * * *", "assets": []},
        "alpha": {"cron": None, "assets": data},
        "beta": {"cron": "30 6 * * 1", "assets": []},
    }


def test_a_dag_file_imports_nothing_heavy(real: Mapping[str, Any]) -> None:
    heavy = {"pandas", "numpy", "pyarrow", "dvc", "mlflow", "sklearn", "skops", "sqlalchemy", "boto3", "typer", "git"}
    assert heavy & set(real["added"]) == set()
    assert "retrace" in real["added"]


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ({"schedule": {"cron": "at noon"}}, "models.beta.schedule.cron: 'at noon' is not a cron expression"),
        ({"schedul": {}, "datasets": "events"}, "models.beta.datasets: "),
    ],
    ids=["cron", "type"],
)
def test_a_broken_params_yaml_is_one_clear_line_among_airflows_import_errors(
    tmp_path: Path, change: Mapping[str, Any], part: str
) -> None:
    project = toy(tmp_path / "project", change)
    errors = run(project / "dags", tmp_path / "var", ERRORS, str(project / "dags"))
    assert len(errors) == len(list((project / "dags").glob("*.py")))
    for error in errors.values():
        line = error.strip().splitlines()[-1]
        assert line.startswith(f"retrace.config.ConfigError: {project / 'params.yaml'}: ") and part in line


def test_a_task_says_what_its_event_says(real: Mapping[str, Any]) -> None:
    """What Airflow tells live of owner and purpose would hide what the committed event tells."""
    tasks = real["dags"]["late_arrival"]["tasks"]
    audited = real["dags"]["audit"]["tasks"]["late_arrival"]
    assert {facts["owner"] for facts in (audited, *tasks.values())} == {"team:arrivals"}
    assert audited["doc"] == documentation("late_arrival", "audit")
    assert real["dags"]["ingest"]["tasks"]["ingest"]["owner"] == "team:operations"
    train = "DVC stage train@late_arrival: python -m pipeline.train late_arrival"
    assert tasks["train"]["doc"] == train
    assert tasks["register"]["doc"] == documentation("late_arrival", "register")
    assert real["dags"]["doctor"]["tasks"]["doctor"]["doc"] == documentation("doctor", "doctor")
