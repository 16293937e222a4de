"""MLflow and the lineage consumer brought up to git on a schedule: see `sync` in params.yaml."""

from pathlib import Path

from retrace.airflow.factory import sync_dag

dag = sync_dag(Path(__file__).resolve().parents[1])
