"""The DVC remote's server: whether it is still there, and what its client's errors mean."""

from __future__ import annotations

import http.client
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

from retrace.child.report import Failure, Reporter

# A server that hangs is given up after three questions of three seconds each.
_PROBE_TIMEOUT = 3.0
_PROBE_FAILURES = 3
_PROBE_PAUSE = 2.0
_PROBE_PAUSE_AFTER_FAILURE = 1.0


def _answers(url: str) -> bool:
    """Whether anything at all answers HTTP at the address: an error status is a sign of life, too."""
    parts = urlsplit(url)
    kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    connection = kind(parts.hostname or "", parts.port, timeout=_PROBE_TIMEOUT)
    try:
        connection.request("HEAD", "/")
        connection.getresponse()
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()
    return True


@contextmanager
def watched(endpoint: str | None, shown: str, reporter: Reporter) -> Iterator[None]:
    """End this process when the remote's server stops answering, instead of sitting through every retry."""
    if endpoint is None:
        yield
        return
    done = threading.Event()

    def watch() -> None:
        failures = 0
        while not done.is_set():
            failures = 0 if _answers(endpoint) else failures + 1
            if failures >= _PROBE_FAILURES and not done.is_set():
                reporter.say({"error": "remote-unavailable", "remote": shown, "reason": "the server does not answer"})
                os.killpg(0, signal.SIGKILL)
            done.wait(_PROBE_PAUSE_AFTER_FAILURE if failures else _PROBE_PAUSE)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()


def explain(error: BaseException, shown: str) -> Failure:
    """What a remote's client raised as one failure with a reason; `shown` is the remote's address for messages."""
    chain: list[BaseException] = []
    current: BaseException | None = error
    while current is not None and current not in chain:
        chain.append(current)
        current = current.__cause__ or current.__context__
    text = " ".join(str(link) for link in chain)
    names = {kind.__name__ for link in chain for kind in type(link).__mro__}
    reason = " ".join(str(chain[-1]).split())[:300]
    if any(getattr(link, "errno", None) == 28 for link in chain):
        return Failure("disk-full", reason=reason)
    if names & {"HTTPClientError", "ConnectionError", "TimeoutError", "EndpointConnectionError", "gaierror"}:
        return Failure("remote-unavailable", remote=shown, reason=reason)
    if "PermissionError" in names or "NoCredentialsError" in names or "Forbidden" in text or "(403)" in text:
        return Failure("remote-refused", remote=shown, reason=reason)
    return Failure("remote-failed", remote=shown, reason=f"{type(error).__name__}: {reason}")
