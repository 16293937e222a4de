"""What is told from a commit alone: that a stage need not run; and every change that DVC would see is seen."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from projects import STAGES, Project

from retrace import preflight
from retrace.dvcfiles import lock_entries, object_path
from retrace.stage import template_at
from retrace.workspace import Remote


def asked(project: Project, commit: str) -> dict[str, bool]:
    """What preflight says of each stage of alpha."""
    remote = project.settings.var / "remote"
    mirror = project.mirror
    return {
        stage: preflight.unchanged(mirror, commit, template_at(mirror, commit, stage), "alpha", remote)
        for stage in STAGES
    }


def changed(project: Project, commit: str) -> list[str]:
    """The stages that are not known to be unchanged."""
    return [stage for stage, unchanged in asked(project, commit).items() if not unchanged]


def edit(project: Project, path: str, change: Callable[[str], str]) -> None:
    file = project.root / path
    before = file.read_text()
    file.write_text(change(before))
    assert file.read_text() != before
    project.commit(path)


def test_nothing_changed_is_told_without_a_workspace(trained: Project) -> None:
    commit = trained.snapshot("alpha", "again")
    assert changed(trained, commit) == []
    logs = set((trained.settings.logs / "alpha").rglob("*.log"))
    for stage in STAGES:
        result = trained.stage("alpha", "again", stage, commit)
        assert (result.commit, result.executed) == (commit, False)
    assert set((trained.settings.logs / "alpha").rglob("*.log")) == logs, "DVC was not even started"


CHANGES: dict[str, tuple[Callable[[Project], object], list[str]]] = {
    "a parameter": (
        lambda project: project.edit_params(lambda params: params["models"]["alpha"]["train"].update(seed=9)),
        ["train"],
    ),
    "another model's parameter": (
        lambda project: project.edit_params(lambda params: params["models"]["beta"]["train"].update(seed=9)),
        [],
    ),
    "a new parameter": (
        lambda project: project.edit_params(lambda params: params["models"]["alpha"]["evaluate"].update(a=1)),
        ["evaluate"],
    ),
    "code": (lambda project: edit(project, "pipeline/stage.py", lambda text: text + "\n"), list(STAGES)),
    "the environment": (
        lambda project: edit(project, "pipeline/requirements.txt", lambda text: text + "# new\n"),
        list(STAGES),
    ),
    "a command": (
        lambda project: edit(project, "dvc.yaml", lambda text: text.replace("stage train", "stage  train")),
        ["train"],
    ),
    "a new dependency": (
        lambda project: edit(
            project, "dvc.yaml", lambda text: text.replace("pipeline/stage.py, ", "pipeline/stage.py, dvc.yaml, ", 1)
        ),
        ["validate"],
    ),
    "a declared parameter": (
        lambda project: edit(project, "dvc.yaml", lambda text: text.replace('.train"]', '.train", "demo"]')),
        ["train"],
    ),
    "a new output": (
        lambda project: edit(
            project, "dvc.yaml", lambda text: text.replace("- models/${key}.skops\n  eva", "- models/x\n  eva")
        ),
        ["train"],
    ),
    "an expression of DVC's own": (
        lambda project: edit(project, "dvc.yaml", lambda text: text.replace("stage train ${key}", "stage train ${x}")),
        ["train"],
    ),
}


@pytest.mark.parametrize(("change", "expected"), CHANGES.values(), ids=list(CHANGES))
def test_a_change_is_seen_by_the_stages_that_read_it(
    trained: Project, change: Callable[[Project], object], expected: list[str]
) -> None:
    change(trained)
    assert changed(trained, trained.snapshot("alpha", "again")) == expected


def test_new_data_are_seen(trained: Project) -> None:
    trained.fill("2013-04")
    trained.ingest("2013-05-01")
    assert changed(trained, trained.snapshot("alpha", "again")) == ["validate", "features"], "the rest waits for them"


def test_a_file_that_is_not_what_the_lock_says_is_seen(trained: Project) -> None:
    mirror, commit = trained.mirror, trained.snapshot("alpha", "again")
    edited = mirror.write_commit(commit, {"reports/alpha/validation.json": b"{}"}, [commit], "by hand")
    assert changed(trained, edited) == ["validate", "features"], "who made it, and who reads it"


@pytest.mark.parametrize("whole", [True, False], ids=["the directory's list", "one file of a directory"])
def test_what_the_remote_has_lost_is_left_to_dvc_which_brings_it_back(trained: Project, whole: bool) -> None:
    commit = trained.snapshot("alpha", "again")
    outs = lock_entries(trained.mirror.read(commit, "dvc.lock"))["features@alpha"]["outs"]
    remote = trained.settings.var / "remote"
    listed = object_path(remote, outs[0]["md5"])
    lost = listed if whole else next(file for file in remote.rglob("*") if file.is_file() and _is_feature(file))
    lost.unlink()
    assert changed(trained, commit) == ["features"]
    assert not trained.stage("alpha", "again", "features", commit).executed
    assert lost.exists() and changed(trained, commit) == []


def _is_feature(file: Path) -> bool:
    content = file.read_bytes()
    return len(content) == 64 and not content.startswith(b"[")


def test_a_remote_elsewhere_is_no_folder() -> None:
    assert Remote("storage", "s3://bucket/prefix", {}).folder is None
    assert Remote("storage", "/srv/remote", {}).folder == Path("/srv/remote")
