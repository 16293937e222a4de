"""Children without the wait for their imports: a process that has DVC loaded forks one for each request.

Started by `retrace.forkserver` with one end of a socket as standard input. A request is a line of JSON with three
descriptors: what the child reads (its standard input), where it reports, and its log. The answer is its process id. The
child is in a session of its own; when it has ended, `reap` lets its number go. The server ends with its client.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import traceback
from importlib import import_module
from typing import Any

# What a stage's child imports on its way.
_NEEDED = (
    "dvc.repo",
    "dvc.repo.reproduce",
    "dvc.repo.fetch",
    "dvc.repo.push",
    "dvc.stage.cache",
    "dvc.dvcfile",
    "dvc_data.index",
    "duckdb",
    "pyarrow.parquet",
    "pydantic",
)
REPORT_TO = 63  # the descriptor on which a forked child reports
_LONGEST = 1 << 20


def main() -> None:
    """Load what children need, then fork for whoever asks until nobody can any more."""
    for name in _NEEDED:
        import_module(name)
    import retrace.child.__main__ as child

    signal.signal(signal.SIGINT, signal.SIG_DFL)
    with socket.socket(fileno=0) as client:
        while True:
            content, descriptors, _, _ = socket.recv_fds(client, _LONGEST, 3)
            if not content:
                return
            request = json.loads(content)
            if "reap" in request:
                os.waitpid(request["reap"], 0)
                continue
            ready, begun = os.pipe()
            process = os.fork()
            if process == 0:
                try:
                    _become(request, descriptors, begun)
                    child.main()
                except BaseException:
                    traceback.print_exc()
                    raise
                finally:
                    sys.stdout.flush()
                    sys.stderr.flush()
                    os._exit(0)
            for descriptor in (*descriptors, begun):
                os.close(descriptor)
            os.read(ready, 1)  # from now on it can be ended with its whole group
            os.close(ready)
            client.sendall(b"%d" % process)


def _become(request: dict[str, Any], descriptors: list[int], begun: int) -> None:
    """Take on what a process that was started anew would have."""
    os.setsid()
    os.write(begun, b".")
    given, reports, log = descriptors
    os.dup2(reports, REPORT_TO)
    os.dup2(given, 0)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.closerange(3, REPORT_TO)
    os.chdir(request["folder"])
    os.environ.clear()
    os.environ.update(request["environment"])
    sys.stdin = os.fdopen(0)


if __name__ == "__main__":
    main()
