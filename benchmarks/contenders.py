"""What Retrace is compared with: the stage programs run by a shell, and by four plain Airflow tasks."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from benchmarks.laboratory import MODEL, ROOT, STAGES, Laboratory, copy_tree, remove_tree, tool
from retrace.config import Settings
from retrace.stage import stage_environment

_OUTPUTS = ("data/features", "data/predictions", "models", "metrics", "plots", "reports", "mlruns")


def program_environment(laboratory: Laboratory, checkout: Path) -> Mapping[str, str]:
    """The very variables that Retrace gives to a stage's program."""
    settings = Settings.load(laboratory.project, {})
    home = checkout.with_name(f"{checkout.name}.site") / "home"
    return stage_environment(laboratory.stage_environment, home, settings.var / "scratch")


def make_checkout(laboratory: Laboratory, name: str) -> Path:
    """A plain checkout with the raw data in it, as somebody without Retrace would have it."""
    checkout = laboratory.folder / name
    if not checkout.exists():
        laboratory.restore("pulled")
        copy_tree(laboratory.project, checkout)
        remove_tree(checkout / "var")
    for output in _OUTPUTS:
        remove_tree(checkout / output)
    return checkout


def run_by_shell(laboratory: Laboratory) -> tuple[float, dict[str, float]]:
    """The stage programs one after another: wall time in all, and of each."""
    checkout = make_checkout(laboratory, "shell")
    steps = [f"date +%s.%N && python -m pipeline.{stage} {MODEL} >/dev/null" for stage in STAGES]
    environ = program_environment(laboratory, checkout)
    wall = laboratory.run(["/bin/sh", "-c", " && ".join([*steps, "date +%s.%N"])], checkout, environ)
    marks = [float(line) for line in laboratory.output().splitlines() if line[:1].isdigit()]
    return wall, {stage: marks[number + 1] - marks[number] for number, stage in enumerate(STAGES)}


class PlainAirflow:
    """Airflow and MLflow without Retrace; both databases are made beforehand, as for Retrace."""

    def __init__(self, laboratory: Laboratory) -> None:
        self.laboratory = laboratory
        self.checkout = make_checkout(laboratory, "plain")
        self.home = laboratory.folder / "plain-home"
        self.saved = laboratory.folder / "plain-home.saved"
        self.dags = laboratory.folder / "plain-dags"
        self.environ = laboratory.environ(
            AIRFLOW_HOME=str(self.home),
            AIRFLOW__CORE__DAGS_FOLDER=str(self.dags),
            AIRFLOW__CORE__LOAD_EXAMPLES="False",
            AIRFLOW__OPENLINEAGE__DISABLED="True",
            MLFLOW_TRACKING_URI=f"sqlite:///{self.home}/mlflow.db",
            MLFLOW_DISABLE_TELEMETRY="true",
            PLAIN_PROJECT=str(self.checkout),
            PLAIN_PYTHON=str(laboratory.stage_environment / "bin/python"),
        )
        if not self.saved.exists():
            shutil.copytree(ROOT / "benchmarks/plain_dag", self.dags, ignore=shutil.ignore_patterns("__pycache__"))
            laboratory.run([tool("airflow"), "db", "migrate"], self.checkout, self.environ)
            make_store(laboratory, self.environ["MLFLOW_TRACKING_URI"])
            copy_tree(self.home, self.saved)

    def forget(self) -> None:
        """Set back to nothing: no output, no run."""
        remove_tree(self.home)
        copy_tree(self.saved, self.home)
        make_checkout(self.laboratory, "plain")

    def edit(self, path: str, change: Callable[[str], str]) -> None:
        file = self.checkout / path
        file.write_text(change(file.read_text()))

    def run(self) -> float:
        """One run of the DAG: wall time of the whole command."""
        return self.laboratory.run([tool("airflow"), "dags", "test", "plain_late_arrival"], self.checkout, self.environ)


def make_store(laboratory: Laboratory, uri: str) -> float:
    """Make the tables of a new MLflow store: seconds."""
    program = "import sys; from retrace.registry import prepare; prepare(sys.argv[1])"
    return laboratory.run([sys.executable, "-c", program, uri])
