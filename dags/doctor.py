"""What past versions need looked after on a schedule, and leftovers removed: see `doctor` in params.yaml."""

from pathlib import Path

from retrace.airflow.factory import doctor_dag

dag = doctor_dag(Path(__file__).resolve().parents[1])
