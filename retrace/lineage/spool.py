"""Retrace's own OpenLineage transport: a task writes its events to the disk, a process of its own sends them.

A consumer that is slow, refuses or hangs costs a task nothing, since no task ever talks to it. Every event is appended
to a log. With a consumer, it is also put into a spool folder, and `retrace.lineage.sender` is started unless one lives.

The lock on the spool says whether a sender lives. Whoever finds it free takes it and hands it down to the sender that
it starts, so that there is never a second one; a sender that leaves looks into the spool once more after it gave the
lock up. So no event stays behind, whenever it is written.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attr
from openlineage.client.serde import Serde
from openlineage.client.transport.transport import Config, Transport

from retrace.errors import RetraceError
from retrace.lineage.folder import SpoolFolder, taken
from retrace.lineage.hide import hide
from retrace.lineage.settings import DEFAULT_ENDPOINT

if TYPE_CHECKING:
    from openlineage.client.client import Event

_log = logging.getLogger(__name__)


class SpoolMisconfigured(RetraceError):
    """The configuration of the transport is not complete."""


@attr.define
class SpoolConfig(Config):
    """Where events go. The key of the consumer is none of it: the sender takes that from the environment.

    `hide` gives for a path's prefix what stands for it in events; `url` and `endpoint` name the consumer, `spool` the
    folder of what waits for it, and `sender_log` the file that the sender reports to.
    """

    log_file_path: str
    spool: str
    url: str | None = None
    endpoint: str = DEFAULT_ENDPOINT
    sender_log: str = os.devnull
    hide: dict[str, str] = attr.field(factory=dict)

    @classmethod
    def from_dict(cls, params: dict[str, Any]) -> SpoolConfig:
        """The configuration from Airflow's option. Raises `SpoolMisconfigured`."""
        known = {field.name for field in attr.fields(cls)}
        given = {name: value for name, value in params.items() if name in known and value is not None}
        if missing := [name for name in ("log_file_path", "spool") if name not in given]:
            raise SpoolMisconfigured(f"Retrace's OpenLineage transport lacks {' and '.join(missing)}; add it")
        return cls(**given)


class SpoolTransport(Transport):
    """Appends each event to a file and leaves it to another process to send it; no call of it fails or waits."""

    kind = "spool"
    config_class = SpoolConfig

    def __init__(self, config: SpoolConfig) -> None:
        self._config = config
        self._spool = SpoolFolder(Path(config.spool))
        self._sender: subprocess.Popen[bytes] | None = None

    def emit(self, event: Event) -> None:
        """Keep an event; what the disk does not take is told as a warning."""
        content = hide(json.loads(Serde.to_json(event)), list(self._config.hide.items()))
        line = json.dumps(content, separators=(",", ":")).encode() + b"\n"
        try:
            _append(Path(self._config.log_file_path), line)
        except OSError as error:
            _log.warning("an OpenLineage event is missing in the event log: %s", error.strerror)
        if self._config.url is None:
            return
        try:
            self._spool.put(line)
            self._have_a_sender()
        except OSError as error:
            _log.warning("an OpenLineage event is not sent now, `retrace sync` brings it: %s", error.strerror)

    def _have_a_sender(self) -> None:
        if self._sender is not None:
            self._sender.poll()  # takes note of its end, so that no zombie stays
        lock = os.open(self._spool.lock, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            if taken(lock):
                self._sender = self._start(lock)
        finally:
            os.close(lock)

    def _start(self, lock: int) -> subprocess.Popen[bytes]:
        environment = {
            **os.environ,
            "OPENLINEAGE_URL": str(self._config.url),
            "OPENLINEAGE_ENDPOINT": self._config.endpoint,
            "PYTHONPATH": str(Path(__file__).resolve().parents[2]),
        }
        report = Path(self._config.sender_log)
        report.parent.mkdir(parents=True, exist_ok=True)
        with open(report, "ab") as output:
            return subprocess.Popen(
                [sys.executable, "-P", "-m", "retrace.lineage.sender", self._config.spool, str(lock)],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                pass_fds=(lock,),
                start_new_session=True,
            )


def _append(file: Path, line: bytes) -> None:
    """Append a line by a single write, so that those of several processes do not mix."""
    file.parent.mkdir(parents=True, exist_ok=True)
    log = os.open(file, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        size = os.fstat(log).st_size
        torn = size > 0 and os.pread(log, 1, size - 1) != b"\n"  # by a disk that was full then
        whole = b"\n" + line if torn else line
        if os.write(log, whole) < len(whole):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    finally:
        os.close(log)
