"""Children that are forked from a process with DVC loaded: like new ones in all but their start."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from projects import Project, processes_of

from retrace.dvcfiles import lock_entries
from retrace.forkserver import VARIABLE, ForkserverGone, forkserver
from retrace.git import Git
from retrace.process import StageFailed, StageTimeout, child_environment


@pytest.fixture
def server(tmp_path: Path) -> Iterator[psutil.Process]:
    before = set(psutil.Process().children())
    with forkserver(child_environment(), tmp_path / "server.log"):
        (process,) = set(psutil.Process().children()) - before
        yield process
    assert not process.is_running()
    assert VARIABLE not in os.environ


def test_a_forked_child_makes_what_a_new_one_makes(
    project: Project, tmp_path: Path, server: psutil.Process, monkeypatch: pytest.MonkeyPatch
) -> None:
    forked = project.copy(tmp_path / "forked")
    locks = []
    for place in (forked, project):
        commit = place.snapshot("alpha", "first")
        for name in ("validate", "features"):
            commit = place.stage("alpha", "first", name, commit).commit
        locks.append(lock_entries(Git(place.settings.mirror).read(commit, "dvc.lock")))
        monkeypatch.delenv(VARIABLE, raising=False)
    assert locks[0] == locks[1] != {}
    assert server.children() == []


def test_one_that_fails_or_is_too_slow_is_ended_and_the_next_one_works(
    project: Project, server: psutil.Process
) -> None:
    project.act("alpha", "validate", "exit")
    commit = project.snapshot("alpha", "failing")
    with pytest.raises(StageFailed, match="bad luck in the stage"):
        project.stage("alpha", "failing", "validate", commit)
    project.act("alpha", "validate", "sleep")
    commit = project.snapshot("alpha", "slow")
    with pytest.raises(StageTimeout):
        project.stage("alpha", "slow", "validate", commit, timeout=6)
    assert processes_of(project.root) == []
    project.act("alpha", "validate", None)
    assert project.stage("alpha", "well", "validate", project.snapshot("alpha", "well")).executed
    assert server.children() == []


def test_secrets_of_the_session_reach_dvc_and_no_stage(
    project: Project, server: psutil.Process, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "s3cret")  # after the server has started
    project.act("alpha", "validate", "environment")
    project.stage("alpha", "first", "validate", project.snapshot("alpha", "first"))
    (log,) = (project.settings.logs / "alpha/first").glob("validate.log")
    assert '"HOME"' in log.read_text()
    assert "s3cret" not in log.read_text()


def test_a_server_that_was_killed_is_told_in_a_line(project: Project, server: psutil.Process) -> None:
    commit = project.snapshot("alpha", "first")
    server.send_signal(signal.SIGKILL)
    with pytest.raises(ForkserverGone, match="was killed; run this again"):
        project.stage("alpha", "first", "validate", commit)
