"""`retrace retrain` against the same stage programs run one after another by a shell, both from nothing."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.contenders import make_store, run_by_shell
from benchmarks.laboratory import MODEL, STAGES, Laboratory, Table, limit, median, seconds, tell
from benchmarks.timeline import Timeline, timed_retrain

STAGE_LIMIT, RUN_LIMIT, LONG_LIMIT = 1.5, 15.0, 1.10
LONG_WORK = 300.0
_ENGINE_STEPS = ("snapshot", "register", "gate", "publish", "cleanup")
_ITEMS = (
    ("workspace", "lease, workspace, start of DVC's process"),
    ("check", "what has changed (DVC)"),
    ("pull", "inputs brought and hashed (sha256)"),
    ("check outputs", "side effects, hashes of the outputs"),
    ("push", "push, commit, ref"),
)


def measure(laboratory: Laboratory) -> list[Table]:
    shell, programs, retrains = [], [], []
    run_by_shell(laboratory)  # the first one finds the stages' packages on a cold disk
    for repetition in range(laboratory.repetitions):
        tell(f"retrain_vs_shell {repetition + 1}/{laboratory.repetitions}")
        wall, parts = run_by_shell(laboratory)
        shell.append(wall)
        programs.append(parts)
        laboratory.restore("ingested")
        retrains.append(timed_retrain(laboratory, MODEL))
    uri = f"sqlite:///{laboratory.folder}/first.db"
    laboratory.first_times["MLflow's store (SQLite)"] = make_store(laboratory, uri)
    return [_in_all(shell, retrains), _itemised(programs, retrains)]


def _in_all(shell: Sequence[float], retrains: Sequence[Timeline]) -> Table:
    over = [retrain.wall - bare for retrain, bare in zip(retrains, shell, strict=True)]
    rows = [
        ("four programs by a shell", seconds(shell)),
        ("`retrace retrain`", seconds([retrain.wall for retrain in retrains])),
        ("over", seconds(over)),
    ]
    note = limit(median(over) <= RUN_LIMIT, f"at most {RUN_LIMIT:g} s over")
    return Table("From nothing: retrain against a shell (s)", ("", "median (from, to)"), rows, (note,))


def _itemised(programs: Sequence[dict[str, float]], retrains: Sequence[Timeline]) -> Table:
    """Every item's median; a stage's overhead is its task less the same program under the shell."""
    rows = [("Airflow starts", *[""] * len(STAGES), seconds([retrain.start for retrain in retrains]))]
    for phase, text in _ITEMS:
        cells = [median([retrain.phases[stage].get(phase, 0.0) for retrain in retrains]) for stage in STAGES]
        rows.append((text, *(f"{cell:.2f}" for cell in cells), f"{sum(cells):.2f}"))
    around = [
        median([retrain.phases[stage]["run"] - bare[stage] for retrain, bare in zip(retrains, programs, strict=True)])
        for stage in STAGES
    ]
    rows.append(("DVC around the program", *(f"{cell:.2f}" for cell in around), f"{sum(around):.2f}"))
    over = [
        median([retrain.tasks[stage] - bare[stage] for retrain, bare in zip(retrains, programs, strict=True)])
        for stage in STAGES
    ]
    rows.append(("**over the program, a stage**", *(f"**{cell:.2f}**" for cell in over), f"**{sum(over):.2f}**"))
    for step in _ENGINE_STEPS:
        rows.append((step, *[""] * len(STAGES), f"{median([retrain.tasks[step] for retrain in retrains]):.2f}"))
    rows.append(("between tasks", *[""] * len(STAGES), f"{median([retrain.between for retrain in retrains]):.2f}"))
    rows.append(("exit", *[""] * len(STAGES), f"{median([retrain.exit for retrain in retrains]):.2f}"))
    bare = [f"{median([parts[stage] for parts in programs]):.2f}" for stage in STAGES]
    notes = (
        limit(max(over) <= STAGE_LIMIT, f"at most {STAGE_LIMIT:g} s a stage"),
        f"the programs themselves, by the shell: {', '.join(f'{s} {b}' for s, b in zip(STAGES, bare, strict=True))} s",
        "MLflow's store did not exist before: making it is within",
    )
    return Table("The same, itemised (s)", ("", *STAGES, "in all"), rows, notes)


def measure_long(laboratory: Laboratory) -> list[Table]:
    """The same with five minutes of stage work: the train program sleeps for what is missing."""
    work, _ = run_by_shell(laboratory)
    idle = LONG_WORK - work
    laboratory.restore("ingested")
    anchor = "def main(model: str) -> None:\n"
    sleep = f"{anchor}    import time; time.sleep({idle:.1f})\n"
    laboratory.edit("pipeline/train.py", lambda text: text.replace(anchor, sleep))
    retrain = timed_retrain(laboratory, MODEL)
    ratio = retrain.wall / LONG_WORK
    rows = [("stage work, by a shell", f"{LONG_WORK:.0f}"), ("`retrace retrain`", f"{retrain.wall:.2f}")]
    rows.append(("times", f"{ratio:.3f}"))
    note = limit(ratio <= LONG_LIMIT, f"at most {LONG_LIMIT:g} times")
    return [Table("Five minutes of stage work (s, once)", ("", "seconds"), rows, (note, f"train sleeps {idle:.1f} s"))]
