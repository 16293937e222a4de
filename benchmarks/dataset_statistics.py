"""What the statistics of a stage's output cost, against the program that wrote it.

The file is not called `statistics`: run.py, started by its path, would take it for Python's own module.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence

from benchmarks.contenders import make_checkout, program_environment
from benchmarks.laboratory import MODEL, Laboratory, Table, limit, median, remove_tree, seconds, tell

SHARE = 0.05
FEATURES = f"data/features/{MODEL}"
_TIMED = f"""
import json, sys, time
from pathlib import Path
marks = [time.perf_counter()]
from retrace.statistics import kept
import duckdb, pyarrow.parquet
marks.append(time.perf_counter())
for _ in range(2):
    table = kept(Path(sys.argv[1]), "version", Path(), "{FEATURES}")
    marks.append(time.perf_counter())
shape = f"{{table.rows:,}} rows, {{len(table.columns)}} columns, {{table.files}} files"
print(json.dumps([shape, [after - before for before, after in zip(marks, marks[1:])]]))
"""


def measure(laboratory: Laboratory) -> list[Table]:
    _repetition(laboratory)  # the first one finds packages on a cold disk
    programs, imports, new, again = [], [], [], []
    for repetition in range(laboratory.repetitions):
        tell(f"statistics {repetition + 1}/{laboratory.repetitions}")
        program, shape, (imported, computed, read) = _repetition(laboratory)
        programs.append(program)
        imports.append(imported)
        new.append(computed)
        again.append(read)
    rows = [
        ("the features stage's program", seconds(programs)),
        ("statistics of what it wrote, a new version", seconds(new)),
        ("- before them, once in a process: imports", seconds(imports)),
        ("the same version again", f"{median(again):.4f}"),
    ]
    share = f"{median(new) / median(programs):.1%} of the program for a new version"
    held = limit(median(again) <= SHARE * median(programs), f"{SHARE:.0%}, or computed once a version and kept")
    return [Table("Statistics of a stage's output (s)", ("", "median (from, to)"), rows, (shape, share, held))]


def _repetition(laboratory: Laboratory) -> tuple[float, str, Sequence[float]]:
    """The program's time, what the table holds, and the times of: imports, a new version, the same again."""
    checkout = make_checkout(laboratory, "statistics")
    store = laboratory.folder / "kept"
    remove_tree(store)
    environ = program_environment(laboratory, checkout)
    laboratory.run(["/bin/sh", "-c", f"python -m pipeline.validate {MODEL}"], checkout, environ)
    program = laboratory.run(["/bin/sh", "-c", f"python -m pipeline.features {MODEL}"], checkout, environ)
    laboratory.run([sys.executable, "-c", _TIMED, str(store)], checkout)
    shape, times = json.loads(laboratory.output().splitlines()[-1])
    return program, shape, times
