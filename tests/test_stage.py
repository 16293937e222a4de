"""A stage task: the protocol, step by step, and what a stage may not do."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from projects import STAGES, Project, git, processes_of

from retrace import environment, register, stage, versions
from retrace.dvcfiles import PipelineError, lock_entries
from retrace.errors import TransientError
from retrace.git import RefMoved, RefUpdate
from retrace.hashing import hash_file
from retrace.lineage import event
from retrace.process import DependencyMissing, InputEdited, OutputMissing, StageFailed, StageTimeout, UndeclaredWrite
from retrace.pull import pull_data
from retrace.runs import COMPLETE, FAILED, CodeIsARun, Run, RunUnknown, chain


def states(project: Project, run_id: str) -> list[tuple[str, str]]:
    """(stage, state) of each commit on a run's ref."""
    mirror = project.mirror
    head = mirror.fetch_ref(Run("alpha", run_id).ref)
    assert head is not None
    return [(link.stage, link.state) for link in chain(mirror, head)]


def nothing_left(project: Project) -> bool:
    """No workspace and no process."""
    return not list(project.settings.workspaces.glob("*")) and not processes_of(project.root)


def test_a_retrain_makes_a_version_and_the_first_one_is_champion(trained: Project) -> None:
    version = versions.find(trained.mirror, "alpha@v1")
    assert versions.champions(trained.mirror)["alpha", "champion"] == version
    addresses = [f"{name}@alpha" for name in STAGES]
    assert states(trained, "first") == [(name, COMPLETE) for name in ["snapshot", *addresses, "gate@alpha"]]
    assert nothing_left(trained)


def test_a_run_starts_where_code_and_data_meet(trained: Project) -> None:
    mirror = trained.mirror
    version = versions.find(mirror, "alpha@v1")
    first = chain(mirror, version.commit)[0].commit
    code, data = mirror.resolve("refs/heads/main"), mirror.resolve("refs/heads/data")
    assert mirror.out("log", "-1", "--format=%P", first).split() == [code, data]
    assert code is not None
    assert data is not None
    raw = set(mirror.files(data, "data/raw/"))
    assert set(mirror.files(first)) - set(mirror.files(code)) == {
        *(path for path in raw if path.endswith((".dvc", ".manifest"))),
        event.path("alpha", "snapshot"),
    }


def test_a_retry_after_success_returns_what_was_made(trained: Project) -> None:
    mirror, before = trained.mirror, trained.refs()
    links = {link.stage: link.commit for link in chain(mirror, versions.find(mirror, "alpha@v1").commit)}
    started = time.time_ns()
    assert trained.snapshot("alpha", "first") == links["snapshot"]
    again = trained.stage("alpha", "first", "train", links["features@alpha"], attempt=2)
    assert (again.commit, again.executed) == (links["train@alpha"], False)
    assert trained.refs() == before
    log = stage.log_path(trained.settings, trained.task("alpha", "first", "train"))
    assert log.stat().st_mtime_ns < started


def test_nothing_runs_when_nothing_changed(trained: Project) -> None:
    trained.snapshot("alpha", "second")
    last = trained.stages("alpha", "second")
    assert states(trained, "second") == [("snapshot", COMPLETE)]
    mirror, version = trained.mirror, versions.find(trained.mirror, "alpha@v1")
    assert lock_entries(mirror.read(last, "dvc.lock")) == lock_entries(mirror.read(version.commit, "dvc.lock"))
    for name in STAGES:  # what is reused keeps the event and the run that made it
        path = event.path("alpha", name)
        assert mirror.read(last, path) == mirror.read(version.commit, path)


def test_only_what_depends_on_a_change_runs(trained: Project) -> None:
    trained.edit_params(lambda params: params["models"]["alpha"]["evaluate"].update(note="new"))
    trained.edit_params(lambda params: params["models"]["beta"]["train"].update(seed=7))
    trained.stages("alpha", "evaluation")
    assert states(trained, "evaluation") == [("snapshot", COMPLETE), ("evaluate@alpha", COMPLETE)]
    source = trained.root / "pipeline/requirements.txt"
    source.write_text(source.read_text() + "# another environment\n")
    trained.commit()
    commit = trained.snapshot("alpha", "environment")
    assert trained.stage("alpha", "environment", "validate", commit).executed


def test_new_data_reruns_what_reads_it(trained: Project) -> None:
    trained.fill("2013-04")
    trained.ingest("2013-05-01")
    trained.stages("alpha", "april")
    assert states(trained, "april")[1:] == [(f"{name}@alpha", COMPLETE) for name in STAGES]


def test_a_run_on_older_data_finds_what_was_made_of_them(trained: Project) -> None:
    trained.fill("2013-04")
    trained.ingest("2013-05-01")
    register.register(trained.settings, trained.task("alpha", "april", "register"), trained.stages("alpha", "april"))
    last = trained.stages("alpha", "back", as_of="2013-04-01")
    assert states(trained, "back") == [("snapshot", COMPLETE)]
    assert (
        register.register(trained.settings, trained.task("alpha", "back", "register"), last).version.name == "alpha@v1"
    )


def test_what_dvc_repro_made_in_a_working_copy_is_never_taken_for_a_result(project: Project, tmp_path: Path) -> None:
    """DVC remembers it in the shared cache, whatever environment it was made in."""
    (tmp_path / "python").write_text(
        f'#!/bin/sh\nif [ "$3" = features ]; then mkdir -p data/features/alpha; echo forged > data/features/alpha/x; '
        f'else exec {sys.executable} "$@"; fi\n'
    )
    (tmp_path / "python").chmod(0o755)
    pull_data(project.settings)
    repro = [sys.executable, "-m", "dvc", "repro", "features@alpha"]
    environ = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    subprocess.run(repro, cwd=project.root, env=environ, check=True, capture_output=True)
    assert (project.root / "data/features/alpha/x").read_text() == "forged\n"

    commit = project.stage("alpha", "one", "validate", project.snapshot("alpha", "one")).commit
    commit = project.stage("alpha", "one", "features", commit).commit
    made = event.facts_of(project.mirror.read(commit, event.path("alpha", "features")) or b"")["outputs"]
    assert [Path(file["path"]).name for file in made[0]["files"]] == ["2013-01.txt", "2013-02.txt", "2013-03.txt"]


def test_a_version_is_no_code_to_train(trained: Project) -> None:
    git(trained.root, "checkout", "-q", "alpha@v1")
    before = trained.refs()
    with pytest.raises(CodeIsARun, match="HEAD of .* is .*, a commit of an earlier run .* `git switch main`, or set"):
        trained.snapshot("alpha", "two")
    assert trained.refs() == before


def test_a_stage_that_fails_leaves_its_event_its_report_and_its_log(project: Project) -> None:
    project.act("alpha", "validate", "exit")
    commit = project.snapshot("alpha", "one")
    with pytest.raises(StageFailed) as raised:
        project.stage("alpha", "one", "validate", commit)
    log = stage.log_path(project.settings, project.task("alpha", "one", "validate"))
    expected = f"validate@alpha ended with code 1: bad luck in the stage (the full log is {log})"
    assert str(raised.value) == expected
    assert "bad luck in the stage" in log.read_text()
    assert not isinstance(raised.value, TransientError)
    assert nothing_left(project)
    mirror = project.mirror
    head = mirror.fetch_ref(Run("alpha", "one").ref)
    assert head is not None
    assert states(project, "one") == [("snapshot", COMPLETE), ("validate@alpha", FAILED)]
    told = json.loads(mirror.read(head, event.path("alpha", "validate")) or b"")
    assert told["eventType"] == "FAIL"
    assert told["run"]["runId"] == project.task("alpha", "one", "validate").lineage_run_id
    assert "bad luck in the stage" in told["run"]["facets"]["errorMessage"]["message"]
    report = json.loads(mirror.read(head, "reports/alpha/validation.json") or b"")
    assert report["passed"] is False
    assert mirror.read(head, "dvc.lock") is None


def test_after_a_failure_the_same_run_can_go_on(project: Project) -> None:
    """Whatever made it fail has passed: the retry's commit continues the run and takes nothing from the failure."""
    commit = project.snapshot("alpha", "one")
    with pytest.raises(StageTimeout):
        project.stage("alpha", "one", "validate", commit, timeout=0.001)
    done = project.stage("alpha", "one", "validate", commit, attempt=2)
    assert states(project, "one") == [("snapshot", COMPLETE), ("validate@alpha", FAILED), ("validate@alpha", COMPLETE)]
    told = json.loads(project.mirror.read(done.commit, event.path("alpha", "validate")) or b"")
    assert told["eventType"] == "COMPLETE"
    assert told["run"]["facets"]["retrace"]["attempt"] == 2


@pytest.mark.parametrize(
    ("action", "error", "text"),
    [
        (
            "edit-input",
            InputEdited,
            "validate@alpha changed its own input data/raw/events/2013-01.parquet; a stage may only write its outs in "
            "dvc.yaml",
        ),
        (
            "write-elsewhere",
            UndeclaredWrite,
            "validate@alpha wrote notes.txt, which is none of its outs in dvc.yaml; declare it there",
        ),
        (
            "no-output",
            OutputMissing,
            "validate@alpha did not write reports/alpha/validation.json, which dvc.yaml declares; write it, or take it "
            "out there",
        ),
    ],
)
def test_a_stage_that_does_not_keep_to_its_declaration_is_refused(
    project: Project, action: str, error: type[Exception], text: str
) -> None:
    project.act("alpha", "validate", action)
    commit = project.snapshot("alpha", "one")
    stored = objects(project)
    for _ in range(2):  # what was made is not taken for a result by another try
        with pytest.raises(error) as raised:
            project.stage("alpha", "one", "validate", commit)
        assert str(raised.value) == text
    assert states(project, "one") == [("snapshot", COMPLETE), *[("validate@alpha", FAILED)] * 2]
    assert nothing_left(project)
    left = objects(project)
    if action == "edit-input" and os.geteuid() != 0:  # through a hard link, into this machine's cache
        (edited,) = stored.keys() - left.keys()
        assert edited.startswith("cache/")
        del stored[edited]
    assert left == stored


def test_a_link_more_to_an_input_is_no_change_of_it(project: Project) -> None:
    """Where inputs are hard links to the cache, every other job that has the same data makes one."""
    project.act("alpha", "validate", "link-input")
    project.stage("alpha", "one", "validate", project.snapshot("alpha", "one"))
    assert states(project, "one") == [("snapshot", COMPLETE), ("validate@alpha", COMPLETE)]


def objects(project: Project) -> dict[str, str]:
    """Every object of remote and cache with the md5 of its bytes."""
    found = {}
    for store in ("remote", "cache"):
        for path in (project.settings.var / store / "files").rglob("*"):
            if path.is_file():
                found[path.relative_to(project.settings.var).as_posix()] = hash_file(path).md5
    return found


def test_a_stage_that_runs_too_long_is_ended_with_all_its_processes(project: Project) -> None:
    project.act("alpha", "validate", "sleep")
    commit = project.snapshot("alpha", "one")
    with pytest.raises(StageTimeout) as raised:
        project.stage("alpha", "one", "validate", commit, timeout=4)
    log = stage.log_path(project.settings, project.task("alpha", "one", "validate"))
    assert str(raised.value) == (
        "validate@alpha ran longer than 0.0666667 minutes and was stopped; raise its model's timeout_minutes in "
        f"params.yaml or make it faster; its log is {log}"
    )
    assert (project.settings.var / "scratch/alpha.pid").exists(), "the program had not even begun"
    assert nothing_left(project)
    assert states(project, "one")[-1] == ("validate@alpha", FAILED)


def test_an_interrupted_stage_leaves_the_state_as_it_was(project: Project) -> None:
    project.act("alpha", "validate", "sleep")
    commit = project.snapshot("alpha", "one")
    before = project.refs()
    begun = project.settings.var / "scratch/alpha.pid"

    def interrupt(phase: str) -> None:
        if phase == "run":
            while not begun.exists():
                time.sleep(0.05)
            raise KeyboardInterrupt

    task = project.task("alpha", "one", "validate")
    call = stage.StageCall(task=task, ref=task.run.ref, commit=commit, stage="validate", timeout=300)
    with pytest.raises(KeyboardInterrupt):
        stage.run_stage(project.settings, call, interrupt)
    assert nothing_left(project)
    assert project.refs() == before


def test_a_dependency_that_nothing_makes_is_named(project: Project) -> None:
    text = (project.root / "dvc.yaml").read_text()
    (project.root / "dvc.yaml").write_text(text.replace("[pipeline/__init__.py, ", "[data/absent.csv, ", 1))
    project.commit()
    commit = project.snapshot("alpha", "one")
    with pytest.raises(DependencyMissing) as raised:
        project.stage("alpha", "one", "validate", commit)
    assert str(raised.value) == (
        "validate@alpha depends on data/absent.csv, which no commit holds and no stage has made; add it to git, or to "
        "the outs of a stage in dvc.yaml"
    )
    with pytest.raises(DependencyMissing, match="features@alpha depends on reports/alpha/validation.json, which no"):
        project.stage("alpha", "one", "features", commit)
    assert nothing_left(project)


def test_a_dependency_may_be_a_folder_of_code_or_one_that_holds_datasets(project: Project) -> None:
    text = (project.root / "dvc.yaml").read_text()
    code = (
        "pipeline/__init__.py, pipeline/stage.py, pipeline/requirements.txt, pipeline/.python-version, data/raw/events"
    )
    assert code in text
    (project.root / "dvc.yaml").write_text(text.replace(code, "pipeline, data/raw"))
    project.commit()
    last = project.stages("alpha", "one")
    assert len(json.loads(project.mirror.read(last, "reports/alpha/validation.json") or b"")["partitions"]) == 3
    told = event.facts_of(project.mirror.read(last, event.path("alpha", "validate")) or b"")
    inputs = {item["path"] for item in told["inputs"]}
    assert {"pipeline/stage.py", "data/raw/events/2013-01.parquet", "data/raw/events.dvc"} <= inputs
    register.register(project.settings, project.task("alpha", "one", "register"), last)
    again = project.stage("alpha", "two", "validate", project.snapshot("alpha", "two"))
    assert not again.executed, "nothing has changed"


def test_a_stage_that_dvc_yaml_does_not_have_is_named(project: Project) -> None:
    commit = project.snapshot("alpha", "one")
    with pytest.raises(
        PipelineError, match=rf"dvc.yaml of commit {commit[:8]} has no stage 'fit'; it has validate, fea"
    ):
        project.stage("alpha", "one", "fit", commit)
    with pytest.raises(RunUnknown, match="the origin has no refs/runs/alpha/two; .*start the run again"):
        project.stage("alpha", "two", "validate", commit)


def test_a_stage_sees_no_secret(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    secrets = ("AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AIRFLOW_CONN_EVENTS", "PGPASSWORD", "MLFLOW_TRACKING_URI")
    for name in secrets:
        monkeypatch.setenv(name, "hunter2")
    monkeypatch.setenv("PYTHONPATH", "/elsewhere")
    project.act("alpha", "validate", "environment")
    result = project.stage("alpha", "one", "validate", project.snapshot("alpha", "one"))
    log = stage.log_path(project.settings, project.task("alpha", "one", "validate")).read_text()
    assert "hunter2" not in log
    seen = json.loads(next(line for line in log.splitlines() if line.startswith("{")))
    assert not {*secrets, "PYTHONPATH"} & set(seen)
    assert {name: seen[name] for name in ("OMP_NUM_THREADS", "PYTHONHASHSEED", "TZ", "LC_ALL")} == {
        "OMP_NUM_THREADS": "1",
        "PYTHONHASHSEED": "0",
        "TZ": "UTC",
        "LC_ALL": "C.UTF-8",
    }
    lock = environment.EnvironmentLock.of_commit(project.mirror, result.commit)
    assert seen["PATH"].startswith(f"{project.settings.environments / lock.digest[:16]}/bin:")
    assert Path(seen["HOME"]).is_relative_to(project.settings.workspaces)


def test_packages_are_read_from_locks_of_either_form() -> None:
    lock = environment.EnvironmentLock("3.11", b"one==1.0 --hash=sha256:aa\ntwo==2.0 \\\n    --hash=sha256:bb\n")
    assert lock.packages == ("one==1.0", "two==2.0")


def test_an_environment_that_cannot_be_made_fails_the_stage(project: Project) -> None:
    (project.root / "pipeline/requirements.txt").write_text("no-such-package-of-retrace==1\n")
    project.commit()
    commit = project.snapshot("alpha", "one")
    with pytest.raises(environment.EnvironmentFailed, match="cannot be made from pipeline/requirements.txt: .*hash"):
        project.stage("alpha", "one", "validate", commit)
    (project.root / "pipeline/.python-version").write_text("3.99\n")
    project.commit()
    commit = project.snapshot("alpha", "two")
    with pytest.raises(environment.EnvironmentFailed, match="need Python 3.99, which is not installed; install it"):
        project.stage("alpha", "two", "validate", commit)
    assert states(project, "two")[-1] == ("validate@alpha", FAILED)
    assert nothing_left(project)


def rival(project: Project, commit: str, change: dict[str, bytes | str | None]) -> str:
    """What an earlier try of the same stage would have pushed meanwhile: the same commit but for some files."""
    mirror = project.mirror
    parent, text = mirror.resolve(f"{commit}^"), mirror.message(commit)
    assert parent is not None
    return mirror.write_commit(commit, change, [parent], text + "\n")


def test_of_two_tries_the_later_to_push_takes_an_equal_result_and_never_overwrites_another(project: Project) -> None:
    mirror, start = project.mirror, project.snapshot("alpha", "one")
    mine = project.stage("alpha", "one", "validate", start).commit
    ref = Run("alpha", "one").ref
    call = _call(project, start)
    equal = rival(project, mine, {"lineage/other": b""})
    mirror.push([RefUpdate(ref, equal, mine)])
    assert stage.publish(mirror, call, start, mine) == equal
    lock = (mirror.read(mine, "dvc.lock") or b"").replace(b"md5: ", b"md5: f", 1)
    other = rival(project, mine, {"dvc.lock": lock})
    mirror.push([RefUpdate(ref, other, equal)])
    with pytest.raises(RefMoved, match=f"{ref} moved in the meantime; nothing was changed"):
        stage.publish(mirror, call, start, mine)
    assert mirror.fetch_ref(ref) == other


def test_a_try_that_dies_late_does_not_spoil_the_next_one(project: Project) -> None:
    """Two tries overlap: the first one's failure arrives while the second one works."""
    mirror, start = project.mirror, project.snapshot("alpha", "one")
    ref = Run("alpha", "one").ref
    text = "late\n\nRetrace-Stage: validate@alpha\nRetrace-State: failed\n"
    failure = mirror.write_commit(start, {}, [start], text)

    def fail_late(phase: str) -> None:
        if phase == "push":
            mirror.push([RefUpdate(ref, failure, start)])

    made = stage.run_stage(project.settings, _call(project, start), fail_late)
    assert mirror.fetch_ref(ref) == made.commit
    assert states(project, "one")[1:] == [("validate@alpha", FAILED), ("validate@alpha", COMPLETE)]


def test_a_stage_never_continues_a_commit_that_its_run_has_left_behind(project: Project) -> None:
    start, other = project.snapshot("alpha", "one"), project.snapshot("alpha", "two")
    project.stage("alpha", "one", "validate", start)
    before = project.refs()
    for commit in (start, other):
        with pytest.raises(RefMoved, match=f"does not continue {commit[:8]}: another task moved it; start a new run"):
            project.stage("alpha", "one", "features", commit)
    assert project.refs() == before


def _call(project: Project, commit: str) -> stage.StageCall:
    task = project.task("alpha", "one", "validate")
    return stage.StageCall(task=task, ref=task.run.ref, commit=commit, stage="validate", timeout=300)
