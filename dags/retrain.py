"""One DAG per model of params.yaml: snapshot, the stages of dvc.yaml, register, gate, publish, cleanup."""

from pathlib import Path

from retrace.airflow.factory import retrain_dags

globals().update(retrain_dags(Path(__file__).resolve().parents[1]))
