"""What a terminal shows while a step goes on, and that nothing of it stays."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

import pytest

from retrace.progress import Terminal, overwritten, tell

CLEARED = "\r\x1b[K"


class Screen:
    """The other end of a terminal."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self.seen = ""
        self._waited_for = 0
        os.set_blocking(descriptor, False)

    def until(self, text: str) -> None:
        """Read until a text has come, after the one that was waited for before."""
        deadline = time.monotonic() + 20
        while text not in self.seen[self._waited_for :]:
            assert time.monotonic() < deadline, self.seen
            try:
                self.seen += os.read(self._descriptor, 4096).decode()
            except BlockingIOError:
                time.sleep(0.01)
        self._waited_for = self.seen.index(text, self._waited_for) + len(text)


@contextmanager
def terminal() -> Iterator[tuple[Screen, TextIO]]:
    screen, descriptor = os.openpty()
    with os.fdopen(descriptor, "w") as stream:
        yield Screen(screen), stream
    os.close(screen)


def test_the_last_line_of_the_log_is_shown_while_a_step_runs_and_then_cleared(tmp_path: Path) -> None:
    log = tmp_path / "train.log"
    log.write_text("trial 1\n")
    with terminal() as (screen, stream), Terminal(stream).listening():
        tell("alpha", "train", "start", log=log)
        screen.until("    train     trial 1 ")
        with open(log, "a") as more:
            more.write(f"trial 2 {'x' * 100}\n\n")
        screen.until(f"{CLEARED}\r    train     trial 2 {'x' * 64} ")
        assert "x" * 65 not in screen.seen, "a line that is longer than the terminal could not be cleared"
        tell("alpha", "train", "phase", "saving")
        screen.until(f"{CLEARED}\r    train     saving ")
        tell("alpha", "train", "done", "best trial 2")
        screen.until(f"{CLEARED}    train     best trial 2 ")
        screen.until("\n")
        live, told = screen.seen.rsplit(CLEARED, 1)
        assert "\n" not in live and told.count("\n") == 1


def test_the_line_of_a_step_that_was_broken_off_does_not_stay(tmp_path: Path) -> None:
    with terminal() as (screen, stream):
        with pytest.raises(KeyboardInterrupt), Terminal(stream).listening():
            tell("alpha", "train", "start", "tuning")
            screen.until("    train     tuning ")
            raise KeyboardInterrupt
        stream.write("stopped")
        stream.flush()
        screen.until(f"{CLEARED}stopped")


def test_elsewhere_than_on_a_terminal_finished_steps_are_told_and_nothing_is_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "out"
    with open(path, "w") as stream, Terminal(stream).listening(), overwritten(stream) as follow:
        follow("1 of 2")
        tell("alpha", "train", "start", "tuning")
        time.sleep(0.3)  # a live line would come after 0.2 s
        tell("alpha", "train", "failed", "no rows")
    assert path.read_text().split()[:4] == ["!", "train", "no", "rows"]
    assert "\r" not in path.read_text()
