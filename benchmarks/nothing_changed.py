"""`retrace retrain` where nothing changed, against a bare `dvc repro` that finds nothing to do."""

from __future__ import annotations

from benchmarks.laboratory import MODEL, STAGES, Failed, Laboratory, Table, median, seconds, tell, tool
from benchmarks.timeline import timed_retrain


def measure(laboratory: Laboratory) -> list[Table]:
    laboratory.restore("trained")
    tags = laboratory.git("tag")
    checkout = laboratory.folder / "developer"
    laboratory.retrace("checkout", f"{MODEL}@v1", str(checkout))
    repro = [tool("dvc"), "repro", f"evaluate@{MODEL}"]
    environ = laboratory.environ(PATH=f"{laboratory.stage_environment}/bin:{laboratory.environ()['PATH']}")
    laboratory.run(repro, checkout, environ)  # the first one hashes what was checked out
    bare, retrains = [], []
    for repetition in range(laboratory.repetitions):
        tell(f"nothing_changed {repetition + 1}/{laboratory.repetitions}")
        bare.append(laboratory.run(repro, checkout, environ))
        if "Running stage" in laboratory.output():
            raise Failed("dvc repro found something to do")
        retrains.append(timed_retrain(laboratory, MODEL))
        if any("run" in phases for phases in retrains[-1].phases.values()) or laboratory.git("tag") != tags:
            raise Failed("a stage was executed, or a version made, though nothing changed")
    rows = [("`dvc repro`, nothing to do", seconds(bare))]
    rows.append(("`retrace retrain`, nothing changed", seconds([retrain.wall for retrain in retrains])))
    rows.append(("- Airflow starts", f"{median([retrain.start for retrain in retrains]):.2f}"))
    stages = [sum(retrain.tasks[stage] for stage in STAGES) for retrain in retrains]
    rows.append(("- four stages found unchanged", f"{median(stages):.2f}"))
    others = [retrain.wall - retrain.start - stage for retrain, stage in zip(retrains, stages, strict=True)]
    rows.append(("- snapshot, register, gate, MLflow, exit", f"{median(others):.2f}"))
    note = "no stage executed, no version made, in every repetition"
    return [Table("Nothing changed (s)", ("", "median (from, to)"), rows, (note,))]
