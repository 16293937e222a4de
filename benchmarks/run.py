"""Measure Retrace: python -m benchmarks.run [NAME ...]. The report, in Markdown, goes to standard output."""

from __future__ import annotations

import argparse
import os
import platform
import sys
import time
from collections.abc import Callable
from pathlib import Path

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import (
    dag_parse,
    dataset_statistics,
    demo,
    disk,
    lineage_overhead,
    lineage_versions,
    nothing_changed,
    retrain_vs_airflow,
    retrain_vs_shell,
    sync,
    time_machine,
)
from benchmarks.laboratory import Laboratory, Table, laboratory, tell

FIGURES: dict[str, Callable[[Laboratory], list[Table]]] = {
    "retrain_vs_shell": retrain_vs_shell.measure,
    "retrain_vs_airflow": retrain_vs_airflow.measure,
    "nothing_changed": nothing_changed.measure,
    "demo": demo.measure,
    "dag_parse": dag_parse.measure,
    "disk_second_retrain": disk.measure,
    "lineage_overhead": lineage_overhead.measure,
    "statistics": dataset_statistics.measure,
    "sync": sync.measure,
    "lineage_versions": lineage_versions.measure,
    "reproduce": time_machine.measure_reproduce,
    "checkout": time_machine.measure_checkout,
    "thousand_versions": time_machine.measure_questions,
    "search": time_machine.measure_search,
}
EXTRA = {"long": retrain_vs_shell.measure_long}  # six minutes


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join([*FIGURES, *EXTRA])}")
    arguments.add_argument("--repetitions", type=int, default=3, help="of what is compared, interleaved (default: 3)")
    arguments.add_argument(
        "--small", action="store_true", help="hardly any tuning: to try these programs themselves out"
    )
    given = arguments.parse_args()
    known = {**FIGURES, **EXTRA}
    if unknown := [name for name in given.names if name not in known]:
        arguments.error(f"no figure {', '.join(unknown)}; there are {', '.join(known)}")
    begun, load = time.perf_counter(), os.getloadavg()[0]
    with laboratory(given.repetitions, given.small) as place:
        tables = [table for name in given.names or FIGURES for table in known[name](place)]
        first = [(name, f"{taken:.2f}") for name, taken in place.first_times.items()]
        if first:
            tables.append(Table("Paid once, before the measurements (s)", ("", "seconds"), first))
    tell(f"done in {time.perf_counter() - begun:.0f} s")
    print(
        f"{os.cpu_count()} cores, {platform.system()}, Python {platform.python_version()}; repetitions "
        f"{given.repetitions}, interleaved; load average {load:.1f} before and {os.getloadavg()[0]:.1f} after\n"
    )
    print("\n".join(table.markdown() for table in tables))


if __name__ == "__main__":
    main()
