"""What root may do and others may not: the commands on past versions as a user who owns the project and no more."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from projects import ROOT, Project

from retrace.dvcfiles import object_path
from retrace.links import cloned
from retrace.record import read_record
from retrace.versions import find

# In a user namespace root's files are this user's own, and none of root's rights are left.
ORDINARY = ["unshare", "--user", "--map-user=1000", "--map-group=1000", "--"] if os.geteuid() == 0 else []


def retrace(project: Project, *arguments: str) -> str:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RETRACE_")}
    done = subprocess.run(
        [*ORDINARY, sys.executable, "-P", "-m", "retrace.cli", *arguments],
        cwd=project.root,
        env={**kept, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture
def owned(trained: Project) -> Project:
    if ORDINARY and subprocess.run([*ORDINARY, "true"], check=False, capture_output=True).returncode != 0:
        pytest.skip("this machine lets nobody make a user namespace")
    return trained


def test_a_version_is_made_again(owned: Project) -> None:
    before = {path for path in owned.settings.var.rglob("*") if "mirror.git" not in path.parts}
    assert "identical: 7 outputs of 4 stages" in retrace(owned, "reproduce", "alpha@v1")
    assert {path for path in owned.settings.var.rglob("*") if "mirror.git" not in path.parts} <= before


def test_a_checkout_shares_its_data_with_the_cache_which_stays_read_only(owned: Project, tmp_path: Path) -> None:
    target = tmp_path / "there"
    assert "all hashes verified" in retrace(owned, "checkout", "alpha@v1", str(target))
    record = read_record(owned.mirror, find(owned.mirror, "alpha@v1"))
    for part in record.datasets[0].partitions:
        place = object_path(owned.settings.cache, part.md5)
        assert cloned(place, tmp_path / "trial") or (target / part.path).samefile(place)
        assert place.stat().st_mode & 0o222 == 0
        (tmp_path / "trial").unlink(missing_ok=True)
