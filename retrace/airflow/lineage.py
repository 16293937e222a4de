"""What operators tell Airflow's OpenLineage integration: the committed event of the task, as far as it may go live."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from airflow.providers.openlineage.extractors import OperatorLineage
from airflow.providers.openlineage.plugins.adapter import OpenLineageAdapter
from airflow.providers.openlineage.plugins.macros import lineage_run_id

from retrace.dvcfiles import RAW
from retrace.lineage.event import Parent
from retrace.lineage.facets import live, verdict_facet


def run_id_of(instance: Any) -> str:
    """OpenLineage's id of this try of a task, the one that Airflow's integration emits."""
    return str(lineage_run_id(instance))


def parent_of(dag_run: Any) -> Parent:
    """The run of the DAG, by the id that Airflow's integration gives it, and the date that it stands for."""
    when = dag_run.logical_date or dag_run.run_after
    number = getattr(dag_run, "clear_number", 0)
    run_id = OpenLineageAdapter.build_dag_run_id(dag_run.dag_id, logical_date=when, clear_number=number)
    nominal: datetime | None = dag_run.data_interval_start or dag_run.logical_date
    return Parent(str(dag_run.dag_id), str(run_id), nominal)


def operator_lineage(told: Mapping[str, Any] | None) -> OperatorLineage[Any, Any]:
    """The live half of a committed event; nothing for a task that has left none.

    Raw data is not named: other runs may have brought newer data, and nobody but `retrace sync` knows in which order.
    """
    if told is None:
        return OperatorLineage()
    outputs, run_facets, job_facets = live(told)
    return OperatorLineage(
        outputs=[output for output in outputs if not output.name.startswith(f"{RAW}/")],
        run_facets=run_facets,
        job_facets=job_facets,
    )


def verdict_lineage(verdicts: Sequence[Mapping[str, Any]]) -> OperatorLineage[Any, Any]:
    """What rebuilds said: a run facet, and no dataset."""
    return OperatorLineage(run_facets=verdict_facet(verdicts))
