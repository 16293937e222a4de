"""For the tests of a project that is built on Retrace: is a stage deterministic, and does it declare what it reads?"""

from __future__ import annotations

from pathlib import Path

from retrace import environment
from retrace.config import Settings, find_root
from retrace.environment import EnvironmentLock
from retrace.rebuild.conditions import Conditions
from retrace.rebuild.declared import of_checkout
from retrace.rebuild.sandbox import kinds
from retrace.rebuild.stage import Surroundings, disk_full_told
from retrace.rebuild.twice import run_twice
from retrace.workspace import Workspace, passing_logs, temporary_folder


def assert_deterministic(stage: str, root: Path | None = None) -> None:
    """Fail unless a stage such as `train@late_arrival` makes the same bytes twice, from what it declares alone.

    It runs on the files of the checkout `root` (default: the one around the working directory), whose dependencies must
    be there (`retrace data pull`, then `dvc repro`), in views beside it; the second time with another folder, HOME,
    host name, hash seed, time zone, locale, umask, allocator fill and on one processor. The checkout is not changed.

    Raises `AssertionError` with all that was found and where the stage's log is, and a `RetraceError` when the stage
    cannot be run.
    """
    settings = Settings.load(root or find_root(Path.cwd()))
    folder = environment.ensure(EnvironmentLock.of_folder(settings.root), settings.environments)
    with (
        disk_full_told(settings.var),
        temporary_folder(settings, "views") as site,
        passing_logs(settings.logs / site.name) as logs,
    ):
        checkout = Workspace(settings.root, "", site)
        known = {item.address: item for item in of_checkout(settings, checkout, logs.folder / "dvc.log")}
        if stage not in known:
            raise AssertionError(f"dvc.yaml has no stage {stage!r}; it has {', '.join(known)}")
        around = Surroundings(site, folder, kinds()[0], Conditions(), logs.folder)
        _, found = run_twice(settings.root, known[stage], around)
        logs.needed = bool(found)
    assert not found, "\n".join([*found, f"its log is {around.log(known[stage])}"])
