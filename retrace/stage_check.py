"""`retrace doctor --stages`: today's pipeline on today's data, each stage twice in a view of what it declares."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from retrace import environment
from retrace.config import Settings
from retrace.environment import EnvironmentLock
from retrace.git import Mirror
from retrace.lineage.hide import hide
from retrace.lineage.project import places
from retrace.process import ObjectLost
from retrace.rebuild import raw
from retrace.rebuild.conditions import Conditions
from retrace.rebuild.declared import Declared, of_checkout, outputs_of
from retrace.rebuild.sandbox import kinds
from retrace.rebuild.stage import Surroundings, disk_full_told, take_over
from retrace.rebuild.twice import run_twice
from retrace.rebuild.view import clear
from retrace.runs import code_commit, data_as_of, with_data
from retrace.workspace import Workspace, passing_logs, workspace


def check_stages(settings: Settings, follow: Callable[[str], None]) -> list[str]:
    """What is wrong with the stages of the code that would be trained now: undeclared inputs, results that change.

    No version is made and nothing is written but scratch. Raises `NoData`, and what a remote or an index may raise.
    """
    mirror = Mirror.open(settings.mirror, settings.origin)
    mirror.fetch_record()
    code = code_commit(settings, mirror)
    data = data_as_of(mirror, None).commit
    commit = mirror.write_commit(code, with_data(mirror, code, data), [code, data], "for a check of the stages")
    folder = environment.ensure(EnvironmentLock.of_commit(mirror, commit), settings.environments)
    with (
        disk_full_told(settings.var),
        workspace(settings, mirror, commit, "doctor--stages") as space,
        passing_logs(settings.logs / space.path.name) as logs,
    ):
        stages = of_checkout(settings, space, logs.folder / "dvc.log")
        _bring_raw_data(settings, space, stages, logs.folder / "raw.log")
        around = Surroundings(space.site_cache, folder, kinds()[0], Conditions(), logs.folder)
        found = list(_run_twice_each(space, stages, around, follow))
        logs.needed = bool(found)
        hidden = places(settings, (space.site_cache, "."), (space.path, "."))
        return [f"{hide(text, hidden)} (log: {log})" for text, log in found]


def _bring_raw_data(settings: Settings, space: Workspace, stages: tuple[Declared, ...], log: Path) -> None:
    """What the stages read and do not make; what they make is cleared away."""
    made = outputs_of(stages)
    for path in made:
        clear(space.path / path)
    wanted, contradictions = raw.tracked(space.path, {path for stage in stages for path in stage.dependencies} - made)
    missing = [*contradictions, *raw.fetch(settings, space, wanted, log).missing]
    if missing:
        raise ObjectLost(f"the stages cannot be checked: {'; '.join(missing[:3])}; see `retrace doctor`")


def _run_twice_each(
    space: Workspace, stages: tuple[Declared, ...], around: Surroundings, follow: Callable[[str], None]
) -> Iterator[tuple[str, Path]]:
    """What was found of each stage, and its log; what comes after one that makes nothing is left out."""
    broken: set[str] = set()
    for stage in stages:
        if any(path in broken for path in stage.dependencies):
            broken |= set(stage.outputs)
            continue
        follow(f"runs {stage.address} twice")
        outcome, found = run_twice(space.path, stage, around)
        yield from ((text, around.log(stage)) for text in found)
        if not take_over(space.path, stage, outcome, linked=False):
            broken |= set(stage.outputs)
