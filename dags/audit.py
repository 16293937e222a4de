"""Past versions rebuilt on a schedule, and compared bit for bit: see `audit` in params.yaml."""

from pathlib import Path

from retrace.airflow.factory import audit_dag

dag = audit_dag(Path(__file__).resolve().parents[1])
