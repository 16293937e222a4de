"""`retrace sync` of a long history into an empty consumer, against the same events posted bare, one after another.

The consumer is the tests' double of Marquez, in a process of its own: `python -m benchmarks.sync` runs it.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from benchmarks.laboratory import ROOT, Laboratory, Table, tell
from retrace.config import Settings
from retrace.git import Mirror
from retrace.lineage.consumer import Consumer as Client
from retrace.lineage.consumer import ConsumerSettings
from retrace.lineage.sync import sync_lineage

sys.path.insert(0, str(ROOT / "tests"))
from consumer import Consumer  # noqa: E402 - the tests' double of Marquez
from histories import History  # noqa: E402 - and their histories written by hand

EVENTS, FEW = 10_000, 300
MODELS = 5
RUNS_BETWEEN_INGESTIONS = 20
FILES = 12  # named by each event with path, md5, sha256 and size: 2 to 3 KB in all


def measure(laboratory: Laboratory) -> list[Table]:
    folder = laboratory.folder / "sync"
    folder.mkdir()
    count = FEW if laboratory.small else EVENTS
    tell(f"sync: a history of {count:,} events")
    history = _history(folder / "origin.git", count)
    history.save()
    size = sum(len(json.dumps(event)) for event in history.events.values()) / len(history.events) / 1000
    rows = []
    with _double() as double:
        tell("sync: posted bare")
        rows.append(_row("posted bare", *_measured(double, lambda: _bare(history, double))))
        double.command("empty")
        for name in ("sync into an empty consumer", "a second sync", "a third, and any later one"):
            tell(f"sync: {name}")
            rows.append(_row(name, *_measured(double, lambda: _sync(folder / "machine", history, double))))
        tell("sync: from another machine")
        rows.append(
            _row("one from another machine", *_measured(double, lambda: _sync(folder / "other", history, double)))
        )
    title = f"`retrace sync` of {len(history.events):,} events of {size:.1f} KB, {MODELS} models"
    header = ("", "seconds", "events/s", "posts", "questions")
    notes = (
        "the consumer is the tests' double, on the same machine; a Marquez with its database takes 8 to 16 posts a "
        "second, so that there the posts are what counts: a START for each event, and what steering adds",
    )
    return [Table(title, header, rows, notes)]


def _row(name: str, taken: float, events: int, posts: int, questions: int) -> tuple[str, ...]:
    return name, f"{taken:.1f}", f"{events / taken:.0f}" if posts else "", f"{posts:,}", f"{questions:,}"


class _Double:
    """The double in its process: where it is, and what it counts."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self.url = str(self.answer()["url"])

    def command(self, text: str) -> Mapping[str, Any]:
        assert self._process.stdin is not None
        print(text, file=self._process.stdin, flush=True)
        return self.answer()

    def answer(self) -> Mapping[str, Any]:
        assert self._process.stdout is not None
        return dict(json.loads(self._process.stdout.readline()))


@contextmanager
def _double() -> Iterator[_Double]:
    command = [sys.executable, "-m", "benchmarks.sync"]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield _Double(process)
        finally:
            process.terminate()


def _measured(double: _Double, work: Callable[[], int]) -> tuple[float, int, int, int]:
    before, start = double.command("count"), time.perf_counter()
    events = work()
    taken, after = time.perf_counter() - start, double.command("count")
    return taken, events, after["posts"] - before["posts"], after["questions"] - before["questions"]


def _bare(history: History, double: _Double) -> int:
    with closing(Client(ConsumerSettings(double.url), 10.0)) as client:
        for event in history.events.values():
            client.post(event)
    return len(history.events)


def _sync(machine: Path, history: History, double: _Double) -> int:
    settings = Settings.load(machine, {"RETRACE_ORIGIN": str(history.origin)})
    mirror = Mirror.open(settings.mirror, settings.origin)
    for line in sync_lineage(settings, mirror, lambda _: None, {"OPENLINEAGE_URL": double.url}):
        tell(line)
    return len(history.events)


def _history(origin: Path, count: int) -> History:
    """Retrains of a few models in turn, on data that grows; some on the first data, some failed, some promoted."""
    history = History(origin, payload=_payload())
    first = history.ingest(flights="flights 0", weather="weather 0")
    number = 0
    while len(history.events) < count:
        number += 1
        model = f"model_{number % MODELS}"
        if number % RUNS_BETWEEN_INGESTIONS == 0:
            history.ingest(flights=f"flights {number}", weather=f"weather {number}")
        run = history.begin(model, first if number % 50 == 0 else None)
        if number % 30 == 0:
            run.snapshot()
            run.features(state="FAIL")
        elif number % 40 == 0:
            history.promote(model, run.finish(skip=["features"]))
        else:
            run.finish()
    return history


def _payload() -> dict[str, Any]:
    file = {"md5": "0" * 32, "sha256": "0" * 64, "size": 1_000_000}
    return {
        "inputs": [{"path": f"data/raw/flights/2013-{number:02d}.parquet", **file} for number in range(1, FILES + 1)]
    }


class _Counting(Consumer):
    questions = 0

    def answer(self, path: str, query: Mapping[str, list[str]]) -> dict[str, Any]:
        self.questions += 1
        return super().answer(path, query)


def _serve() -> None:
    """Run the double, and answer on standard output what is asked on standard input."""
    with _Counting() as consumer:
        posts = 0
        print(json.dumps({"url": consumer.url}), flush=True)
        for line in sys.stdin:
            if line.strip() == "empty":
                posts += len(consumer.received)
                consumer.empty()
            counted = {"posts": posts + len(consumer.received), "questions": consumer.questions}
            print(json.dumps(counted), flush=True)


if __name__ == "__main__":
    _serve()
