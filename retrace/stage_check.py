"""`retrace doctor --stages`: today's pipeline on today's data, each stage twice in a view of what it declares."""

from __future__ import annotations

from collections.abc import Callable

from retrace import environment
from retrace.config import Settings
from retrace.environment import EnvironmentLock
from retrace.git import Mirror
from retrace.lineage.hide import hide
from retrace.lineage.project import places
from retrace.process import ObjectLost
from retrace.rebuild import raw
from retrace.rebuild.conditions import Conditions
from retrace.rebuild.declared import of_checkout, outputs_of
from retrace.rebuild.sandbox import kinds
from retrace.rebuild.stage import Surroundings, disk_full_told, take_over
from retrace.rebuild.twice import run_twice
from retrace.rebuild.view import clear
from retrace.runs import code_commit, data_as_of, with_data
from retrace.workspace import workspace


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
    with disk_full_told(settings.var), workspace(settings, mirror, commit, "doctor--stages") as space:
        logs = settings.logs / "doctor" / space.path.name
        stages = of_checkout(settings, space, logs / "dvc.log")
        made = outputs_of(stages)
        for path in made:
            clear(space.path / path)
        wanted, contradictions = raw.tracked(
            space.path, {path for stage in stages for path in stage.dependencies} - made
        )
        missing = [*contradictions, *raw.fetch(settings, space, wanted, logs / "raw.log").missing]
        if missing:
            raise ObjectLost(f"the stages cannot be checked: {'; '.join(missing[:3])}; see `retrace doctor`")
        around = Surroundings(space.site_cache, folder, kinds()[0], Conditions(), logs)
        found: list[str] = []
        broken: set[str] = set()
        for stage in stages:
            if any(path in broken for path in stage.dependencies):
                broken |= set(stage.outputs)
                continue
            follow(f"runs {stage.address} twice")
            outcome, said = run_twice(space.path, stage, around)
            found += said
            if not take_over(space.path, stage, outcome, linked=False):
                broken |= set(stage.outputs)
        hidden = places(settings, (space.site_cache, "."), (space.path, "."))
        return [hide(text, hidden) for text in found]
