"""What a person sees while a run goes on: tasks tell what they do, a terminal shows it.

Tasks write JSON lines to the descriptor that RETRACE_PROGRESS_FD names, if there is one; `Terminal` reads them in a
thread. Where the output is a terminal, one live line shows the present step and the last line of its log.
"""

from __future__ import annotations

import json
import os
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

VARIABLE = "RETRACE_PROGRESS_FD"
_WIDTH = 72


def tell(model: str, step: str, state: str, text: str = "", log: Path | None = None) -> None:
    """Say where a step is: `start`, `phase`, `done` or `failed`. Does nothing when nobody listens."""
    descriptor = os.environ.get(VARIABLE)
    if descriptor is None:
        return
    message = {"model": model, "step": step, "state": state, "text": text, "log": str(log) if log else None}
    os.write(int(descriptor), (json.dumps(message) + "\n").encode())


@contextmanager
def overwritten(stream: TextIO) -> Iterator[Callable[[str], None]]:
    """A line of a terminal that each call writes anew; elsewhere than on a terminal nothing is shown."""

    def show(text: str) -> None:
        if stream.isatty():
            stream.write(f"\r\x1b[K{text[:_WIDTH]}")
            stream.flush()

    try:
        yield show
    finally:
        show("")


class Terminal:
    """Renders what tasks tell, a line a finished step."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._live = stream.isatty()
        self._lock = threading.Lock()
        self._step: dict[str, Any] | None = None
        self._since = 0.0
        self._finished = threading.Event()

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Show what this process's tasks tell, until the block ends."""
        reading, writing = os.pipe()
        os.environ[VARIABLE] = str(writing)
        reader = threading.Thread(target=self._read, args=(reading,), daemon=True)
        ticker = threading.Thread(target=self._tick, daemon=True)
        reader.start()
        ticker.start()
        try:
            yield
        finally:
            del os.environ[VARIABLE]
            # A forked process may hold the descriptor open, so the end is said, not closed.
            os.write(writing, b"null\n")
            reader.join()
            os.close(writing)
            self._finished.set()
            ticker.join()
            self._clear()

    def line(self, text: str = "") -> None:
        """Print a line of its own."""
        with self._lock:
            self._clear()
            self._write(text + "\n")

    def _write(self, text: str) -> None:
        """Write; when nobody reads any more (`retrace retrain MODEL | head`), the run goes on and says it to nobody."""
        try:
            self._stream.write(text)
            self._stream.flush()
        except BrokenPipeError:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._stream.fileno())
            os.close(nowhere)

    def _read(self, descriptor: int) -> None:
        with os.fdopen(descriptor) as lines:
            for line in lines:
                message = json.loads(line)
                if message is None:
                    return
                self._show(message)

    def _show(self, message: dict[str, Any]) -> None:
        if message["state"] == "start":
            self._step, self._since = message, time.monotonic()
            return
        if message["state"] == "phase":
            if self._step is not None:
                self._step["text"] = message["text"]
            return
        seconds = time.monotonic() - self._since if self._step is not None else 0.0
        self._step = None
        mark = "  " if message["state"] == "done" else "! "
        first, *more = textwrap.wrap(message["text"], _WIDTH, break_long_words=False, break_on_hyphens=False) or [""]
        self.line(f"  {mark}{message['step']:<9} {first:<{_WIDTH}} {seconds:6.1f} s")
        for text in more:
            self.line(f"{'':<14}{text}")

    def _tick(self) -> None:
        while self._live and not self._finished.wait(0.2):
            step = self._step
            if step is None:
                continue
            said = _last_line(step["log"]) if step["text"] in ("", "run") else step["text"]
            with self._lock:
                if self._step is not step:
                    continue  # it has ended meanwhile: its live line would stand below its last one
                seconds = time.monotonic() - self._since
                self._clear()
                self._write(f"\r    {step['step']:<9} {said[:_WIDTH]:<{_WIDTH}} {seconds:6.1f} s")

    def _clear(self) -> None:
        if self._live:
            self._write("\r\x1b[K")


def _last_line(log: str | None) -> str:
    if log is None or not os.path.exists(log):
        return ""
    with open(log, "rb") as handle:
        handle.seek(max(0, os.path.getsize(log) - 4096))
        lines = handle.read().decode(errors="replace").split("\n")
    return next((line.strip() for line in reversed(lines) if line.strip()), "")
