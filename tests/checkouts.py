"""Copies of this very project for tests that use it as a newcomer would: its files, committed, in another folder."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from projects import ROOT, git


def copy_project(target: Path) -> None:
    """What git would clone, with what is not committed yet."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        check=True,
    )
    for name in filter(None, listed.stdout.decode().split("\0")):
        if (ROOT / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, target / name)
    git(target, "init", "-q", "-b", "main")


def commit(target: Path, text: str = "project") -> None:
    """Commit all that is there."""
    git(target, "config", "user.name", "Ann")
    git(target, "config", "user.email", "ann@example.com")
    git(target, "add", "-A")
    git(target, "commit", "-q", "-m", text)


def share_environments(target: Path, environments: Path) -> None:
    """Let a copy use the environments of the test session instead of making its own."""
    (target / "var").mkdir()
    (target / "var/environments").symlink_to(environments)


def environ(home: Path) -> dict[str, str]:
    """A newcomer's environment: an empty home, no setting of Retrace, the commands of this virtual environment."""
    home.mkdir(exist_ok=True)
    kept = {key: os.environ[key] for key in ("LANG", "SSL_CERT_FILE", "PIP_CERT", "UV_CACHE_DIR") if key in os.environ}
    return {**kept, "HOME": str(home), "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}


def retrace(target: Path, home: Path, *arguments: str, expect: int = 0) -> str:
    """Run the command as a user does; its output. The exit code must be the expected one."""
    command = [sys.executable, "-P", "-m", "retrace.cli", *arguments]
    variables = {**environ(home), "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=target, env=variables, capture_output=True, text=True, check=False)
    assert done.returncode == expect, done.stdout + done.stderr
    return done.stdout + done.stderr
