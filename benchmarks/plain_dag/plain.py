"""The four steps of late_arrival as plain Airflow tasks with MLflow logging, as one would write them by hand."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

from airflow.sdk import DAG, task

MODEL = "late_arrival"
PROJECT = Path(os.environ["PLAIN_PROJECT"])


def run_stage(stage: str) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONHASHSEED": "0"}
    environment.pop("PYTHONPATH", None)
    command = [os.environ["PLAIN_PYTHON"], "-m", f"pipeline.{stage}", MODEL]
    subprocess.run(command, cwd=PROJECT, env=environment, check=True)


def log_to_mlflow() -> None:
    import mlflow
    import yaml

    parameters = yaml.safe_load((PROJECT / "params.yaml").read_text())["models"][MODEL]
    metrics = json.loads((PROJECT / f"metrics/{MODEL}.json").read_text())
    mlflow.set_experiment(MODEL)
    with mlflow.start_run():
        mlflow.log_params(
            {f"{part}.{key}": value for part in ("train", "evaluate") for key, value in parameters[part].items()}
        )
        mlflow.log_metrics(
            metrics["holdout"] | {f"validation_{name}": value for name, value in metrics["validation"].items()}
        )
        mlflow.log_artifacts(str(PROJECT / "plots" / MODEL), "plots")
        mlflow.log_artifacts(str(PROJECT / "reports" / MODEL), "reports")
        mlflow.pyfunc.log_model(
            name="model",
            python_model=str(Path(__file__).with_name("served.py")),
            artifacts={"model": str(PROJECT / f"models/{MODEL}.skops")},
            pip_requirements=["mlflow", "scikit-learn", "skops", "pandas"],
            registered_model_name=MODEL,
        )


with DAG("plain_late_arrival", schedule=None) as dag:

    @task
    def validate() -> None:
        run_stage("validate")

    @task
    def features() -> None:
        run_stage("features")

    @task
    def train() -> None:
        run_stage("train")

    @task
    def evaluate() -> None:
        run_stage("evaluate")
        log_to_mlflow()

    validate() >> features() >> train() >> evaluate()
