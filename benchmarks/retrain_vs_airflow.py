"""`retrace retrain` against the same four steps as plain Airflow tasks with MLflow logging."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.contenders import PlainAirflow, make_store
from benchmarks.laboratory import MODEL, Laboratory, Table, limit, median, seconds, tell

FASTER = 3.0


def measure(laboratory: Laboratory) -> list[Table]:
    plain = PlainAirflow(laboratory)
    nothing: list[tuple[float, float]] = []
    changed: list[tuple[float, float]] = []
    for repetition in range(laboratory.repetitions):
        tell(f"retrain_vs_airflow {repetition + 1}/{laboratory.repetitions}")
        plain.forget()
        bare = plain.run()
        laboratory.restore("ingested")
        make_store(laboratory, f"sqlite:///{laboratory.var}/mlflow/mlflow.db")
        nothing.append((bare, laboratory.retrace("retrain", MODEL)))

        plain.edit("params.yaml", _changed)
        bare = plain.run()
        laboratory.restore("trained")
        laboratory.edit("params.yaml", _changed)
        changed.append((bare, laboratory.retrace("retrain", MODEL)))
        plain.edit("params.yaml", _changed)
    return [
        _table("From nothing: retrain against four plain Airflow tasks (s)", nothing, 1.0),
        _table("Only the evaluation changed (s)", changed, FASTER),
    ]


def _changed(text: str) -> str:
    """A parameter of the evaluation, there and back; not the costs, other ones of which make no comparison."""
    there, back = "brier_score, cost_per_flight]", "brier_score, average_precision, cost_per_flight]"
    return text.replace(there, back) if there in text else text.replace(back, there)


def _table(title: str, pairs: Sequence[tuple[float, float]], factor: float) -> Table:
    plain, ours = [bare for bare, _ in pairs], [own for _, own in pairs]
    ratio = median(plain) / median(ours)
    rows = [("four plain tasks, `airflow dags test`", seconds(plain)), ("`retrace retrain`", seconds(ours))]
    rows.append(("times faster", f"{ratio:.2f}"))
    wanted = "not slower" if factor == 1.0 else f"at least {factor:g} times faster"
    return Table(title, ("", "median (from, to)"), rows, (limit(ratio >= factor, wanted),))
