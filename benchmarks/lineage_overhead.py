"""What lineage costs a task: its START and its COMPLETE through Retrace's own transport, whatever the consumer does."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable

from benchmarks.laboratory import ROOT, Laboratory, Table, limit, median, tell

sys.path.insert(0, str(ROOT / "tests"))
from consumer import Consumer  # noqa: E402 - the tests' double of Marquez

LIMIT = 0.05
TASKS = 50
# The worst case: every task has to start a sender, which was killed after the task before.
_PROGRAM = """
import json, sys, time
import psutil
import airflow.providers.openlineage.plugins.adapter
from openlineage.client.client import OpenLineageClient
from openlineage.client.event_v2 import Job, OutputDataset, Run, RunEvent, RunState
from openlineage.client.uuid import generate_new_uuid
client = OpenLineageClient(config={"transport": json.loads(sys.argv[1])})
facets = {"airflow": {"dag": {f"field_{number}": f"{sys.argv[3]}/dags/{'x' * 60}" for number in range(100)}}}
for _ in range(int(sys.argv[2])):
    run, times = Run(str(generate_new_uuid()), facets), []
    for state in (RunState.START, RunState.COMPLETE):
        outputs = [OutputDataset("retrace", f"features/{number}") for number in range(5)]
        event = RunEvent(
            eventTime="2026-01-01T00:00:00+00:00", producer="https://example.org/benchmark", run=run,
            job=Job("retrace", "a.b"), eventType=state, outputs=outputs,
        )
        start = time.perf_counter()
        client.emit(event)
        times.append(time.perf_counter() - start)
        time.sleep(0.25)
    print("task", *times)
    for sender in psutil.Process().children():
        sender.kill()
        sender.wait()
"""


def measure(laboratory: Laboratory) -> list[Table]:
    states: dict[str, Callable[[Consumer], None]] = {
        "up": lambda consumer: None,
        "down": lambda consumer: consumer.down(),
        "refusing (401)": lambda consumer: setattr(consumer, "api_key", "another"),
        "hanging": lambda consumer: setattr(consumer, "hang", True),
    }
    tell("lineage_overhead without a consumer")
    times = {"no consumer": _task_times(laboratory, "none", None)}
    for number, (state, change) in enumerate(states.items()):
        tell(f"lineage_overhead with the consumer {state}")
        with Consumer() as consumer:
            change(consumer)
            times[f"consumer {state}"] = _task_times(laboratory, str(number), consumer.url)
    rows = [(state, *_row(tasks)) for state, tasks in times.items()]
    worst = max(start + complete for tasks in times.values() for start, complete in tasks)
    notes = (
        limit(worst <= LIMIT, f"at most {LIMIT * 1000:g} ms a task, the slowest of {TASKS * len(times)} included"),
        f"{TASKS} tasks in each state; each has to start a sender, since that of the task before was killed",
    )
    header = ("", "START, median", "COMPLETE, median", "a task, median", "a task, slowest")
    return [Table("What lineage costs a task (ms)", header, rows, notes)]


def _row(tasks: list[tuple[float, float]]) -> tuple[str, ...]:
    starts, completes = zip(*tasks, strict=True)
    sums = [start + complete for start, complete in tasks]
    return tuple(f"{value * 1000:.1f}" for value in (median(starts), median(completes), median(sums), max(sums)))


def _task_times(laboratory: Laboratory, name: str, url: str | None) -> list[tuple[float, float]]:
    """The seconds that START and COMPLETE of each task took."""
    folder = laboratory.folder / f"lineage-{name}"
    transport = {
        "type": "retrace.lineage.spool.SpoolTransport",
        "log_file_path": str(folder / "events.jsonl"),
        "spool": str(folder / "spool"),
        "sender_log": str(folder / "lineage.log"),
        "hide": {str(laboratory.folder): "project"},
        "url": url,
    }
    environ = laboratory.environ(AIRFLOW_HOME=str(folder / "home"), PYTHONPATH=str(ROOT))
    command = [sys.executable, "-c", _PROGRAM, json.dumps(transport), str(TASKS), str(laboratory.folder)]
    laboratory.run(command, laboratory.folder, environ)
    lines = [line.split() for line in laboratory.output().splitlines() if line.startswith("task ")]
    return [(float(start), float(complete)) for _, start, complete in lines]
