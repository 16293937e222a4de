"""MLflow made ready while other work goes on: its tables and its import cost seconds that nobody need wait for.

Neither is ever waited for here. Whoever publishes finds the store's lock, or Python's import lock, held until it is
done; what fails here fails again there, and is told there.
"""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from retrace.registry.contact import be_quiet, prepare, sqlite_file

_TURN_SECONDS = 0.0002
_MODULES = ("mlflow.pyfunc", "mlflow.store.tracking.sqlalchemy_store")


@contextmanager
def store_made_early(uri: str) -> Iterator[None]:
    """Make a SQLite store that is not there yet in a process beside this one; it ends with the block at the latest."""
    file = sqlite_file(uri)
    if file is None or file.exists():
        yield
        return
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    maker = subprocess.Popen(
        [sys.executable, "-P", "-m", "retrace.registry.early", uri],
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        yield
    finally:
        maker.kill()
        maker.communicate()


def import_early() -> None:
    """Import what publishing needs in a thread, once; made for a process that waits for others just now."""
    be_quiet()
    if "mlflow" not in sys.modules:
        threading.Thread(target=_import, name="import-mlflow", daemon=True).start()


def _import() -> None:
    # The main thread wakes up often and briefly; at the usual 5 ms a turn it would wait for the import after all.
    usual = sys.getswitchinterval()
    sys.setswitchinterval(_TURN_SECONDS)
    try:
        with suppress(ImportError):
            for name in _MODULES:
                importlib.import_module(name)
    finally:
        sys.setswitchinterval(usual)


def _end_with_parent() -> None:
    sys.stdin.buffer.read()
    os._exit(1)


if __name__ == "__main__":
    threading.Thread(target=_end_with_parent, daemon=True).start()
    prepare(sys.argv[1])
