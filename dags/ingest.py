"""New data on a schedule: see `ingest` in params.yaml."""

from pathlib import Path

from retrace.airflow.factory import ingest_dag

dag = ingest_dag(Path(__file__).resolve().parents[1])
