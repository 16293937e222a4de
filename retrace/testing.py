"""For the tests of a project that is built on Retrace: is a stage deterministic, and does it declare what it reads?"""

from __future__ import annotations

import os
from pathlib import Path

from retrace import environment
from retrace.config import Settings, find_root
from retrace.environment import EnvironmentLock
from retrace.rebuild.conditions import Conditions
from retrace.rebuild.declared import of_checkout
from retrace.rebuild.sandbox import kinds
from retrace.rebuild.stage import Surroundings, disk_full_told
from retrace.rebuild.twice import run_twice
from retrace.workspace import Workspace, temporary_folder


def assert_deterministic(stage: str, root: Path | None = None) -> None:
    """Fail unless a stage such as `train@late_arrival` makes the same bytes twice, from what it declares alone.

    It runs on the files of the checkout `root` (default: the one around the working directory), whose dependencies must
    be there (`retrace data pull`, then `dvc repro`), in views beside it; the second time with another folder, HOME,
    host name, hash seed, time zone, locale, umask, allocator fill and on one processor. The checkout is not changed.

    Raises `AssertionError` with all that was found, and a `RetraceError` when the stage cannot be run.
    """
    settings = Settings.load(root or find_root(Path.cwd()))
    folder = environment.ensure(EnvironmentLock.of_folder(settings.root), settings.environments)
    with disk_full_told(settings.var), temporary_folder(settings, "views") as site:
        logs = settings.logs / f"views-{os.getpid()}"
        known = {
            item.address: item for item in of_checkout(settings, Workspace(settings.root, "", site), logs / "dvc.log")
        }
        if stage not in known:
            raise AssertionError(f"dvc.yaml has no stage {stage!r}; it has {', '.join(known)}")
        around = Surroundings(site, folder, kinds()[0], Conditions(), logs)
        _, found = run_twice(settings.root, known[stage], around)
    assert not found, "\n".join(found)
