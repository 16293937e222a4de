"""The spool's folder: a file for each event that waits, a lock, and the runs of which something was dropped."""

from __future__ import annotations

import fcntl
import itertools
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

_SUFFIX = ".json"
_DROPPED = "dropped"
_REMEMBERED = 1000
_DRAFT_SECONDS = 60.0


class SpoolFolder:
    """A spool folder; any number of processes put events into it, and whoever holds `lock` takes them out."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.lock = path / "sender.lock"
        self._counter = itertools.count()

    def put(self, line: bytes) -> None:
        """Put an event behind all that are there; it appears whole or not at all. Raises `OSError`."""
        self.path.mkdir(parents=True, exist_ok=True)
        name = f"{time.time_ns():020}-{os.getpid():010}-{next(self._counter):010}"
        self._write(line, self.path / f".{name}", self.path / f"{name}{_SUFFIX}")

    def waiting(self) -> list[Path]:
        """The events in the order in which they were put; none when the folder is gone."""
        with suppress(FileNotFoundError):
            return sorted(self.path / name for name in os.listdir(self.path) if name.endswith(_SUFFIX))
        return []

    def holds(self, lock: int) -> bool:
        """Whether an open lock is this folder's: neither gone nor made anew since."""
        with suppress(FileNotFoundError):
            return os.path.samestat(os.fstat(lock), self.lock.stat())
        return False

    def dropped(self) -> list[str]:
        """The runs of which something was dropped, the oldest first."""
        with suppress(FileNotFoundError):
            return (self.path / _DROPPED).read_text().split()
        return []

    def remember(self, runs: Sequence[str]) -> None:
        """Write down the newest of the runs of which something was dropped. Raises `OSError`."""
        text = "".join(f"{run}\n" for run in runs[-_REMEMBERED:])
        self._write(text.encode(), self.path / f".{_DROPPED}", self.path / _DROPPED)

    @contextmanager
    def still(self, patience: float) -> Iterator[bool]:
        """Wait, so many seconds at most, until all is sent or dropped; whether it is. In the block no sender begins."""
        self.path.mkdir(parents=True, exist_ok=True)
        with open(self.lock, "a") as lock:
            deadline = time.monotonic() + patience
            while not (done := taken(lock.fileno())) and time.monotonic() < deadline:
                time.sleep(0.05)
            yield done

    def sweep(self) -> None:
        """Remove what a process that was killed left half-written."""
        for draft in self.path.glob(".*"):
            with suppress(FileNotFoundError):
                if time.time() - draft.stat().st_mtime > _DRAFT_SECONDS:
                    draft.unlink()

    def _write(self, content: bytes, draft: Path, target: Path) -> None:
        try:
            draft.write_bytes(content)
            draft.rename(target)
        except OSError:
            with suppress(OSError):
                draft.unlink(missing_ok=True)
            raise


def taken(lock: int) -> bool:
    """Take a lock unless a sender holds it."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def age(event: Path) -> float:
    """For how many seconds an event has been waiting: its name says when it came."""
    return time.time() - int(event.name.partition("-")[0]) / 1e9
