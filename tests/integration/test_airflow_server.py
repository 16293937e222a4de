"""The real scheduler, through the fixture that other tests build on: asset events, backfills, failed work."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

from airflow_server import AirflowServer
from command import copy_seed

DAGS = """
from datetime import datetime
from airflow.sdk import DAG, Asset, AssetOrTimeSchedule, BaseOperator, CronTriggerTimetable

DATA = Asset("toy_data", uri="toy://data")


class Emit(BaseOperator):
    def execute(self, context):
        context["outlet_events"][DATA].extra = {"commit": "69fa2f18"}


class Ok(BaseOperator):
    def execute(self, context):
        return context["run_id"]


with DAG("emit", schedule=None) as emit:
    Emit(task_id="emit", outlets=[DATA])
with DAG("on_data", schedule=[DATA]) as on_data:
    Ok(task_id="only")
with DAG("by_hand", schedule=None) as by_hand:
    Ok(task_id="only")
with DAG(
    "on_both",
    schedule=AssetOrTimeSchedule(timetable=CronTriggerTimetable("0 7 3 * *", timezone="UTC"), assets=[DATA]),
    start_date=datetime(2013, 1, 1),
    catchup=False,
) as on_both:
    Ok(task_id="only")
"""


def test_assets_and_backfills(tmp_path: Path, seeded: Path) -> None:
    copy_seed(seeded, tmp_path / "var")
    dags = tmp_path / "dags"
    dags.mkdir()
    (dags / "toy.py").write_text(DAGS)
    with AirflowServer(tmp_path / "var", dags) as server:
        server.wait_for_dags("emit", "on_data", "by_hand", "on_both")
        assert server.import_errors() == []
        server.unpause("emit", "on_data", "by_hand", "on_both")

        emitted = server.trigger("emit")
        (run,) = server.wait_for_runs("on_data", 1)
        assert (run.state, run.run_type, run.logical_date) == ("success", "asset_triggered", None)
        (event,) = server.asset_events("on_data", run.run_id)
        assert (event["source_run_id"], event["extra"]) == (emitted, {"commit": "69fa2f18"})
        assert server.task_states("on_data", run.run_id) == {"only": "success"}
        assert server.runs("by_hand") == []

        server.backfill("on_both", datetime(2013, 7, 1, tzinfo=UTC), datetime(2013, 9, 30, tzinfo=UTC))
        server.wait(
            lambda: [run.state for run in server.runs("on_both") if run.run_type == "backfill"] == ["success"] * 3,
            120,
            "three backfilled runs",
        )
        dates = [run.logical_date for run in server.runs("on_both") if run.run_type == "backfill"]
        assert dates == [datetime(2013, month, 3, 7, tzinfo=UTC) for month in (7, 8, 9)]
