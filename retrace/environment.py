"""A virtual environment per lock: the stages of a commit run in what it pins, never in Airflow's packages.

The key is a hash of `pipeline/requirements.txt` and `pipeline/.python-version`. An environment is made once per
machine, under a lock; a marker written last tells a whole one from one that a crash left half-made.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from retrace.errors import RetraceError, TransientError
from retrace.git import Git, locked
from retrace.process import DiskFull

REQUIREMENTS = "pipeline/requirements.txt"
PYTHON_VERSION = "pipeline/.python-version"
_COMPLETE = ".complete"
# None at all, or one that cannot be started: pyenv leaves a name in the PATH for each that it has ever installed.
_NO_PYTHON = ("error: No interpreter found", "error: Failed to inspect Python interpreter")
_DISK_FULL = "No space left on device"
_GONE = "404|410|451"  # of all that a server may answer, this alone says that it does not have the file
# What uv says of an index that is down, overloaded or wants other credentials: nothing about what it serves. Each at
# the beginning of one of uv's lines, since names, versions and addresses of packages may hold any of these words.
_UNAVAILABLE = re.compile(
    r"^\s*cause: (error sending request|error decoding response body|HTTP status server error"
    rf"|HTTP status client error \((?!{_GONE}))"
    r"|^hint: (An index URL \(\S*\) could not be queried due to a lack of valid authentication credentials"
    r"|An index \(\S*\) returned a 403 Forbidden error|Packages were unavailable because the network was disabled)",
    re.MULTILINE,
)


class EnvironmentFailed(RetraceError):
    """The stages' environment cannot be made from what the commit locks."""


class IndexUnavailable(TransientError):
    """The package index does not answer."""


class InstallerKilled(TransientError):
    """What makes the environment was killed on the way."""


@dataclass(frozen=True)
class EnvironmentLock:
    """What a commit pins for its stages: the Python version and the hash-pinned requirements."""

    python: str
    requirements: bytes

    @property
    def digest(self) -> str:
        """sha256 over both files: the environment's identity in records and on disk."""
        return hashlib.sha256(self.python.encode() + b"\n" + self.requirements).hexdigest()

    @property
    def packages(self) -> tuple[str, ...]:
        """The pinned packages (`name==version`) that are installed for this Python on this machine."""
        from packaging.requirements import Requirement

        full = self.python if self.python.count(".") == 2 else f"{self.python}.0"
        here = {"python_version": ".".join(self.python.split(".")[:2]), "python_full_version": full}
        lines = [
            line.removesuffix("\\").partition(" --")[0].strip() for line in self.requirements.decode().splitlines()
        ]
        wanted = [Requirement(line) for line in lines if line[:1].isalnum()]
        applying = [item for item in wanted if item.marker is None or item.marker.evaluate(here)]
        return tuple(f"{item.name}{item.specifier}" for item in applying)

    @classmethod
    def of_commit(cls, git: Git, commit: str) -> EnvironmentLock:
        """Read the lock of a commit. Raises `EnvironmentFailed`."""
        return cls._of(lambda path: git.read(commit, path), f"commit {commit[:8]}")

    @classmethod
    def of_folder(cls, root: Path) -> EnvironmentLock:
        """Read the lock of a checkout as it is now. Raises `EnvironmentFailed`."""
        return cls._of(lambda path: (root / path).read_bytes() if (root / path).is_file() else None, str(root))

    @classmethod
    def _of(cls, read: Callable[[str], bytes | None], where: str) -> EnvironmentLock:
        requirements, version = read(REQUIREMENTS), read(PYTHON_VERSION)
        if requirements is None or version is None:
            missing = REQUIREMENTS if requirements is None else PYTHON_VERSION
            raise EnvironmentFailed(f"{where} has no {missing}, which locks the stages' environment; add it")
        python = version.decode().strip()
        if not re.fullmatch(r"\d+\.\d+(\.\d+)?", python):
            raise EnvironmentFailed(f"{PYTHON_VERSION} of {where} is {python!r}; write a version like 3.11")
        return cls(python, requirements)


def is_made(lock: EnvironmentLock, environments: Path) -> bool:
    """Whether this machine has the whole environment for a lock: what a crash left half-made does not count."""
    return (_folder(lock, environments) / _COMPLETE).exists()


def ensure(lock: EnvironmentLock, environments: Path) -> Path:
    """The folder of the environment for a lock, made if this machine does not have it.

    Raises `EnvironmentFailed`, or what says nothing about the lock: `IndexUnavailable`, `InstallerKilled`, `DiskFull`.
    """
    folder = _folder(lock, environments)
    if is_made(lock, environments):
        return folder
    with locked(environments / f"{folder.name}.lock"):
        if not is_made(lock, environments):
            shutil.rmtree(folder, ignore_errors=True)
            _create(lock, folder)
    return folder


def _folder(lock: EnvironmentLock, environments: Path) -> Path:
    return environments / lock.digest[:16]


def _create(lock: EnvironmentLock, folder: Path) -> None:
    requirements = folder.with_suffix(".txt")
    requirements.write_bytes(lock.requirements)
    _uv(["venv", "--quiet", "--no-python-downloads", "--python", lock.python, str(folder)], lock)
    _uv(
        ["pip", "sync", "--quiet", "--require-hashes", "--compile-bytecode", "--python", str(folder / "bin" / "python")]
        + [str(requirements)],
        lock,
    )
    requirements.unlink()
    (folder / _COMPLETE).write_text(lock.digest)


def _uv(arguments: list[str], lock: EnvironmentLock) -> None:
    kept = {key: value for key, value in os.environ.items() if key not in ("VIRTUAL_ENV", "PYTHONPATH")}
    command = [sys.executable, "-m", "uv", "--color", "never", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=kept, check=False)
    if done.returncode != 0:
        raise _failure(done, lock)


def _failure(done: subprocess.CompletedProcess[str], lock: EnvironmentLock) -> RetraceError:
    """What uv's end is: only what the lock itself asks for, and nobody has, is `EnvironmentFailed`."""
    reason = " ".join(done.stderr.split())[:400]
    if done.returncode < 0:
        return InstallerKilled(
            f"uv was killed by signal {-done.returncode} while the stages' environment was made; run this again"
        )
    if _DISK_FULL in done.stderr:
        return DiskFull(
            f"no space left on this machine while the stages' environment was made ({reason}); free some and run this "
            "again"
        )
    if done.stderr.startswith(_NO_PYTHON):
        return EnvironmentFailed(f"this commit's stages need Python {lock.python}, which is not installed; install it")
    if _UNAVAILABLE.search(done.stderr):
        return IndexUnavailable(f"the package index did not answer while the stages' environment was made: {reason}")
    return EnvironmentFailed(f"the environment {lock.digest[:16]} cannot be made from {REQUIREMENTS}: {reason}")
