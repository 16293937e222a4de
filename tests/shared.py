"""What is dear to make and the same for every test: made once in a session of tests, whichever worker asks first."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from retrace.git import locked


def session_folder(factory: pytest.TempPathFactory) -> Path:
    """The folder that all workers of this session have in common."""
    base = factory.getbasetemp()
    return base.parent if "PYTEST_XDIST_WORKER" in os.environ else base


def made_once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], object]) -> Path:
    """A folder of the session that `make` has filled; who asks for it meanwhile waits. Nobody may change it."""
    folder = session_folder(factory) / "shared" / name
    made = folder.with_name(f"{name}.made")
    with locked(folder.with_name(f"{name}.lock")):
        if not made.exists():
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            make(folder)
            made.touch()
    return folder
