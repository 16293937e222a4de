"""How the child tells its parent what it does, and what went wrong."""

from __future__ import annotations

import json
import threading
from typing import Any, TextIO


class Failure(Exception):
    """What the parent is to raise: a kind that it knows, and the facts for its message."""

    def __init__(self, kind: str, **facts: str) -> None:
        super().__init__(kind)
        self.report = {"error": kind, **facts}


class Reporter:
    """The channel back to the parent: one JSON object a line."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._lock = threading.Lock()

    def say(self, message: dict[str, Any]) -> None:
        with self._lock:
            self._stream.write(json.dumps(message) + "\n")
            self._stream.flush()

    def phase(self, name: str) -> None:
        self.say({"phase": name})


def disk_full(error: BaseException | None) -> Failure | None:
    """The failure that a full disk is, if one stands behind an error."""
    while error is not None:
        if getattr(error, "errno", None) == 28:
            return Failure("disk-full", reason=str(error))
        error = error.__cause__ or error.__context__
    return None
