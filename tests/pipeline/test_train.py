"""Training: the same bytes whatever the workers, the folder or an interruption; any estimator by params.yaml alone."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pandas as pd
import pytest
from domain import Params, Project, cheap, environment


def result(project: Project, model: str = "late_arrival") -> tuple[bytes, bytes]:
    paths = (f"models/{model}.skops", f"plots/{model}/trials.csv")
    first, second = ((project.folder / path).read_bytes() for path in paths)
    return first, second


@pytest.fixture(scope="module")
def trained(small_raw: Path, stage_python: Path, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A cheap project, trained with one worker."""
    project = Project(tmp_path_factory.mktemp("trained") / "project", stage_python, small_raw).edit(cheap)
    project.succeed("features", "late_arrival")
    project.succeed("train", "late_arrival", RETRACE_WORKERS="1")
    return project


def copied(project: Project, folder: Path) -> Project:
    """The same project in another folder, with features and no model."""
    other = Project(folder, project.python)
    other.edit(lambda params: params.update(project.params))
    shutil.copytree(project.folder / "data/features", folder / "data/features")
    return other


def test_two_workers_another_folder_and_hash_seed_give_the_same_bytes(trained: Project, tmp_path: Path) -> None:
    other = copied(trained, tmp_path / "elsewhere")
    other.succeed("train", "late_arrival", RETRACE_WORKERS="2", PYTHONHASHSEED="77", OMP_NUM_THREADS="2")
    assert result(other) == result(trained)
    table = pd.read_csv(other.folder / "plots/late_arrival/trials.csv")
    assert list(table)[:4] == ["number", "state", "value", "best_value"]
    assert list(table["number"]) == [0, 1, 2, 3]
    assert table["best_value"].iloc[-1] == table["value"].max()


def group_is_gone(group: int) -> bool:
    """Whether no process of a group is left, waiting for the last ones to notice that they are orphans."""
    for _ in range(100):
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.1)
    return False


def test_a_killed_tuning_goes_on_to_the_same_bytes(trained: Project, tmp_path: Path) -> None:
    other = copied(trained, tmp_path / "killed")
    scratch = tmp_path / "scratch"
    env = environment(RETRACE_WORKERS="2", RETRACE_SCRATCH=str(scratch))
    command = [str(other.python), "-m", "pipeline.train", "late_arrival"]
    with subprocess.Popen(
        command, cwd=other.folder, env=env, stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("trial 1/"):  # its round's other trial, and the next round, are still to come
                break
        process.send_signal(signal.SIGKILL)
    assert group_is_gone(process.pid)
    assert not (other.folder / "models").exists()
    kept = list(scratch.glob("late_arrival-*/*.json"))
    assert 1 <= len(kept) < 4
    told = other.succeed("train", "late_arrival", RETRACE_WORKERS="2", RETRACE_SCRATCH=str(scratch))
    assert "trial 4/4" in told
    assert result(other) == result(trained)
    assert list(scratch.iterdir()) == []


def test_finished_trials_are_taken_over(trained: Project, tmp_path: Path) -> None:
    """A kept value shows in the table; it would not if the trial had been run again."""
    other = copied(trained, tmp_path / "resumed")
    scratch = tmp_path / "scratch"
    kept = """
import json, hashlib, pandas as pd
from pipeline.train import Task
row = pd.read_csv("first.csv").iloc[0]
search = Task("late_arrival").settings.search
chosen = {name: int(row[name]) if isinstance(space.low, int) else float(row[name]) for name, space in search.items()}
trial = hashlib.sha256(json.dumps(chosen, sort_keys=True).encode()).hexdigest()
print(json.dumps([Task("late_arrival").digest(), trial]))
"""
    shutil.copy(trained.folder / "plots/late_arrival/trials.csv", other.folder / "first.csv")
    study, trial = other.script(kept)
    (scratch / f"late_arrival-{study}").mkdir(parents=True)
    (scratch / f"late_arrival-{study}" / f"{trial}.json").write_text(json.dumps(0.123456789))
    other.succeed("train", "late_arrival", RETRACE_SCRATCH=str(scratch))
    assert pd.read_csv(other.folder / "plots/late_arrival/trials.csv")["value"].iloc[0] == 0.123456789


def test_july_is_told_honestly(july: Project) -> None:
    metrics = json.loads((july.folder / "metrics/late_arrival.json").read_text())
    assert 0.74 < metrics["holdout"]["roc_auc"] < 0.80
    assert 0.74 < metrics["validation"]["roc_auc"] < 0.82
    # Warning nobody costs 5 for each of the 32 late in a hundred; warning everybody 1 for each of the others.
    assert 0.3 < metrics["holdout"]["cost_per_flight"] < 0.65


def test_evaluation_writes_what_is_declared(july: Project) -> None:
    predictions = pd.read_parquet(july.folder / "data/predictions/late_arrival.parquet")
    assert list(predictions) == ["scheduled_departure", "carrier", "flight", "origin", "late", "prediction"]
    assert predictions["prediction"].between(0, 1).all()
    assert predictions["scheduled_departure"].dt.month.eq(7).all()
    holdout = json.loads((july.folder / "reports/late_arrival/holdout.json").read_text())
    assert holdout["partition"] == "2013-07"
    assert holdout["rows"] == len(predictions)
    assert len(holdout["digest"]) == 64
    serving = json.loads((july.folder / "reports/late_arrival/serving.json").read_text())
    assert serving["columns"][:4] == [["carrier", "string"], ["origin", "string"], ["destination", "string"]] + [
        ["minute_of_day", "float"]
    ]
    assert [list(row) for row in serving["example"]] == [[name for name, _ in serving["columns"]]] * 3
    curve = pd.read_csv(july.folder / "plots/late_arrival/roc.csv")
    assert curve["x"].is_monotonic_increasing
    assert curve["y"].is_monotonic_increasing
    assert tuple(curve.iloc[0]) == (0, 0)
    assert tuple(curve.iloc[-1]) == (1, 1)
    calibration = pd.read_csv(july.folder / "plots/late_arrival/calibration.csv")
    assert len(calibration) == 10
    assert (calibration["predicted"] - calibration["observed"]).abs().max() < 0.15


def third_model(params: Params) -> None:
    """A linear classifier of long flights, and a ridge regression: nothing but entries in params.yaml."""
    linear = {"preprocess": {"categorical": "onehot", "impute": True, "scale": True}, "trials": 2, "tuning_rows": 3000}
    late, air = params["models"]["late_arrival"], params["models"]["air_time"]
    very_late = {
        **late,
        "features": {**late["features"], "label": {"name": "very", "column": "arrival_delay", "at_least": 60}},
    }
    very_late["train"] = {**late["train"], **linear, "estimator": "LogisticRegression", "fixed": {"max_iter": 200}}
    very_late["train"] |= {"metric": "average_precision", "search": {"C": {"low": 0.01, "high": 10.0, "log": True}}}
    very_late["evaluate"] = {"metrics": ["average_precision", "roc_auc"], "curve": "roc"}
    params["models"]["very_late"] = very_late
    air["train"] = {**air["train"], **linear, "estimator": "Ridge", "fixed": {}, "metric": "mae"}
    air["train"]["search"] = {"alpha": {"low": 0.1, "high": 10.0}, "fit_intercept": {"choices": [True, False]}}


@pytest.mark.parametrize(("model", "metric"), [("very_late", "average_precision"), ("air_time", "mae")])
def test_another_estimator_or_model_is_an_edit_of_params(model: str, metric: str, small: Project) -> None:
    small.edit(third_model)
    for stage in ("features", "train", "evaluate"):
        small.succeed(stage, model)
    holdout = json.loads((small.folder / f"metrics/{model}.json").read_text())["holdout"]
    assert holdout["average_precision"] > 0.15 if model == "very_late" else holdout["mae"] < 15
    assert metric in holdout
    assert (small.folder / f"plots/{model}" / ("roc.csv" if model == "very_late" else "rec.csv")).exists()
