"""`retrace demo`, what `make demo` runs after the installation, in a fresh copy: time, memory, disk."""

from __future__ import annotations

import subprocess
import threading
import time
from contextlib import suppress
from pathlib import Path

import psutil

from benchmarks.laboratory import Failed, Laboratory, Table, limit, megabytes, remove_tree, tell, tool

MINUTES, GIGABYTES = 5.0, 3.0
_SAMPLE_SECONDS = 0.1


class Memory:
    """The resident memory of a process and all below it, sampled until it ends."""

    def __init__(self, pid: int) -> None:
        self.peak, self.largest, self.largest_name = 0, 0, ""
        self._root = psutil.Process(pid)
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._ended.set()
        self._thread.join()

    def _sample(self) -> None:
        while not self._ended.wait(_SAMPLE_SECONDS):
            with suppress(psutil.NoSuchProcess):
                self._look([self._root, *self._root.children(recursive=True)])

    def _look(self, processes: list[psutil.Process]) -> None:
        total = 0
        for process in processes:
            with suppress(psutil.NoSuchProcess):
                size = process.memory_info().rss
                total += size
                if size > self.largest:
                    self.largest, self.largest_name = size, " ".join(process.cmdline()[1:4])
        self.peak = max(self.peak, total)


def measure(laboratory: Laboratory) -> list[Table]:
    tell("demo")
    project = laboratory.folder / "demo"
    laboratory.new_copy(project)
    log = laboratory.folder / "demo.log"
    with open(log, "wb") as output:
        start = time.perf_counter()
        process = subprocess.Popen(
            [tool("retrace"), "demo"],
            cwd=project,
            env=laboratory.environ(PYTHONPATH=str(project)),
            stdout=output,
            stderr=output,
        )
        memory = Memory(process.pid)
        code = process.wait()
        wall = time.perf_counter() - start
        memory.stop()
    if code:
        raise Failed(f"the demo ended with {code}:\n{log.read_text()[-2000:]}")
    again = laboratory.run([tool("retrace"), "demo"], project, laboratory.environ(PYTHONPATH=str(project)))
    sizes = {place.name: disk_usage(place) for place in sorted((project / "var").iterdir())}
    environments = sizes.pop("environments")
    total = sum(sizes.values())
    remove_tree(project)
    rows = [
        ("wall time", f"{wall:.1f} s"),
        ("a second time, everything done", f"{again:.1f} s"),
        ("peak memory, all processes (sum of RSS)", megabytes(memory.peak)),
        (f"largest process (`{memory.largest_name[-40:]}`)", megabytes(memory.largest)),
        ("disk below var/, environments apart", megabytes(total)),
        *((f"- var/{name}", megabytes(size)) for name, size in sizes.items() if size > 1e6),
        ("the stages' environment", megabytes(environments)),
    ]
    holds = wall <= MINUTES * 60 and max(memory.peak, total) <= GIGABYTES * 1e9
    notes = (
        limit(holds, f"at most {MINUTES:g} minutes and {GIGABYTES:g} GB"),
        "making the stages' environment (packages already downloaded) is within",
    )
    return [Table("`make demo` after the installation (once)", ("", ""), rows, notes)]


def disk_usage(place: Path) -> int:
    """Allocated bytes of a file or a tree."""
    if not place.is_dir():
        return place.lstat().st_blocks * 512
    inodes = {(info.st_dev, info.st_ino): info.st_blocks for info in (path.lstat() for path in place.rglob("*"))}
    return sum(inodes.values()) * 512
