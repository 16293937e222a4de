"""The sender of a spool: python -m retrace.lineage.sender SPOOL LOCK. A task's transport starts it, silence ends it.

It posts the events of one machine in order. What a consumer does not take at once is never delivered later: a START
that arrives late sets a finished run back to running, and late outputs become current. It is dropped, with all that the
run sends after it, and `retrace sync` brings it from git, in the right order.
"""

from __future__ import annotations

import fcntl
import json
import os
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from retrace.errors import RetraceError
from retrace.lineage.consumer import Consumer, ConsumerRefuses, ConsumerSettings, ConsumerUnavailable, EventRejected
from retrace.lineage.folder import SpoolFolder, age, taken

_ANSWER_SECONDS = 5.0
_IDLE_SECONDS = 2.0
_FRESH_SECONDS = 30.0
_LOOK_SECONDS = 0.05


class Sender:
    """Delivers what is in a spool, and ends when nothing has come for a while or the spool is gone."""

    def __init__(self, spool: SpoolFolder, lock: int, consumer: Consumer) -> None:
        self._spool = spool
        self._lock = lock
        self._consumer = consumer

    def work(self) -> None:
        """Deliver until silence; then give the lock up, and go on if an event came just then."""
        self._spool.sweep()
        while True:
            self._until_silence()
            fcntl.flock(self._lock, fcntl.LOCK_UN)
            if not (self._spool.holds(self._lock) and self._spool.waiting()):
                return
            if not taken(self._lock):
                return  # another sender has been started meanwhile

    def _until_silence(self) -> None:
        last = time.monotonic()
        while time.monotonic() - last < _IDLE_SECONDS and self._spool.holds(self._lock):
            events = self._spool.waiting()
            if events:
                self._deliver(events)
                last = time.monotonic()
            else:
                time.sleep(_LOOK_SECONDS)

    def _deliver(self, events: Sequence[Path]) -> None:
        for event in events:
            try:
                self._deliver_one(event)
            except (ConsumerUnavailable, ConsumerRefuses) as error:
                drop(self._spool, self._spool.waiting(), str(error))
                return

    def _deliver_one(self, event: Path) -> None:
        content = _content(event)
        if content is None:
            drop(self._spool, [event], "it cannot be read")
        elif _run(content) in self._spool.dropped():
            drop(self._spool, [event], "what the run sent before was dropped, too")
        elif age(event) > _FRESH_SECONDS:
            drop(self._spool, [event], f"older than {_FRESH_SECONDS:g} s")
        else:
            try:
                self._consumer.post(content)
            except EventRejected as error:
                drop(self._spool, [event], str(error))
            else:
                event.unlink(missing_ok=True)


def drop(spool: SpoolFolder, events: Sequence[Path], reason: str) -> None:
    """Take events out of the spool undelivered, say so, and remember their runs."""
    runs = [_run(content) for content in map(_content, events) if content is not None]
    # Told and written down before anything is removed: whoever is killed in between drops the same again.
    _tell(f"{len(events)} event{'s' * (len(events) != 1)} dropped, which `retrace sync` brings from git: {reason}")
    try:
        spool.remember(list(dict.fromkeys([*spool.dropped(), *runs])))
    except OSError as error:
        _tell(f"the runs that were dropped could not be written down: {error.strerror}")
    for event in events:
        event.unlink(missing_ok=True)


def _content(event: Path) -> dict[str, Any] | None:
    """What a file of the spool holds; None when it is gone, or empty since the machine lost its power."""
    try:
        return dict(json.loads(event.read_bytes()))
    except (FileNotFoundError, ValueError):
        return None


def _run(content: dict[str, Any]) -> str:
    return str(content["run"]["runId"])


def _tell(text: str) -> None:
    with suppress(OSError):  # a full disk must not keep the sender from emptying the spool
        print(f"{datetime.now(UTC).isoformat(timespec='seconds')} {text}", flush=True)


def main(spool: SpoolFolder, lock: int) -> None:
    """Send what is in the spool; `lock` is the descriptor of its lock, which is held already."""
    try:
        settings = ConsumerSettings.of(os.environ)
    except RetraceError as error:
        drop(spool, spool.waiting(), str(error))
        return
    if settings is not None:
        Sender(spool, lock, Consumer(settings, _ANSWER_SECONDS)).work()


if __name__ == "__main__":
    main(SpoolFolder(Path(sys.argv[1])), int(sys.argv[2]))
