"""Promise 3 of the design: `kill -9` at any step leaves either the old state or the new one; the same again finishes.

The engine runs in a process of its own, with a git on its PATH that counts the calls that write and ends its caller at
one of them. Every broken run is continued by the next one, which is killed one step further: at the end stands one run
that was killed at each of its steps, and that must be the same as one that never was.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest
from projects import STAGES, Project, git, processes_of

from retrace import register, stage, versions
from retrace.dvcfiles import LOCK, lock_entries, output_md5s, pointer_md5
from retrace.git import Git, Mirror, OriginUnavailable, RefMoved
from retrace.hashing import hash_file
from retrace.lineage import event
from retrace.runs import COMPLETE, Run, chain
from retrace.workspace import sweep

RUN = Run("alpha", "one")
PATIENCE = 60.0

# What only reads is not counted, nor are the steps between `read-tree`, with which the writing of a commit begins, and
# `commit-tree`: they make objects that nothing names yet. Every command that is not listed here is. `late` lets go of
# the killed caller's push only when the test says so.
GIT = """\
#!/bin/sh
case $3 in
    rev-parse | cat-file | ls-tree | log | for-each-ref | ls-remote | var) exec {git} "$@" ;;
    hash-object | update-index | write-tree) exec {git} "$@" ;;
    config) if [ "$4" = --get-regexp ]; then exec {git} "$@"; fi ;;
esac
if [ $CRASH_COUNTS = pushes ] && [ $3 != push ]; then exec {git} "$@"; fi
echo "$@" >> "$CRASH/calls"
number=$(wc -l < "$CRASH/calls")
if [ $number -eq 1 ] && [ -n "$CRASH_OVERTAKEN_BY" ]; then
    touch "$CRASH_OVERTAKEN_BY/go"
    until [ -e "$CRASH_OVERTAKEN_BY/code" ]; do sleep 0.02; done
fi
if [ $number -ne $CRASH_AT ]; then exec {git} "$@"; fi
if [ $CRASH_HOW = late ]; then
    kill -9 $PPID
    until [ -e "$CRASH/go" ]; do sleep 0.02; done
    {git} "$@" > "$CRASH/said" 2>&1
    echo $? > "$CRASH/code.part"
    mv "$CRASH/code.part" "$CRASH/code"
else
    {git} "$@"
    kill -9 $PPID
fi
"""


def in_a_process(work: Callable[[], object]) -> int:
    """Do something in a process of its own; its exit code."""
    process = get_context("fork").Process(target=work)
    process.start()
    process.join()
    assert process.exitcode is not None
    return process.exitcode


def until(condition: Callable[[], bool], what: str) -> None:
    """Wait for something that is sure to come, or fail."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, f"waited in vain for {what}"
        time.sleep(0.02)


@dataclass(frozen=True)
class Attempt:
    """One try, with the calls of git that it came to; its last push may still be on its way."""

    folder: Path
    code: int

    @property
    def killed(self) -> bool:
        assert self.code in (0, -signal.SIGKILL), f"it failed after {self.calls[-1:]}"
        return self.code != 0

    @property
    def calls(self) -> list[str]:
        """What was called, without git's options."""
        path = self.folder / "calls"
        return [line.split(" ", 2)[2] for line in path.read_text().splitlines()] if path.exists() else []

    @property
    def pushed(self) -> list[str]:
        """The refs of its pushes."""
        pushes = [call.split(" ") for call in self.calls if call.startswith("push ")]
        return [spec.split(":", 1)[1] for words in pushes for spec in words if ":refs/" in spec and spec[0] != "-"]

    def let_go(self) -> int:
        """Let the push that its dead caller has started go on; how it ends."""
        (self.folder / "go").touch()
        until((self.folder / "code").exists, "the end of a late push")
        return int((self.folder / "code").read_text())


class Crashes:
    """Attempts at a piece of work on a project that are killed."""

    def __init__(self, project: Project, work: Callable[[], object], folder: Path) -> None:
        self.project, self.work, self.folder = project, work, folder
        self.attempts: list[Attempt] = []
        real = shutil.which("git")
        (folder / "bin").mkdir(parents=True)
        (folder / "bin/git").write_text(GIT.format(git=real))
        (folder / "bin/git").chmod(0o755)

    def attempt(self, at: int, counts: str = "writes", how: str = "after", overtaken_by: Attempt | None = None) -> None:
        """Do the work and die at the call with this number (0: never)."""
        folder = self.folder / f"attempt-{len(self.attempts)}"
        folder.mkdir()
        variables = {
            "PATH": f"{self.folder / 'bin'}:{os.environ['PATH']}",
            "CRASH": str(folder),
            "CRASH_AT": str(at),
            "CRASH_COUNTS": counts,
            "CRASH_HOW": how,
            "CRASH_OVERTAKEN_BY": str(overtaken_by.folder) if overtaken_by else "",
        }

        def work() -> None:
            os.environ.update(variables)
            self.work()

        self.attempts.append(Attempt(folder, in_a_process(work)))
        assert_consistent(self.project)

    @property
    def last(self) -> Attempt:
        return self.attempts[-1]

    def at_every_call(self, counts: str = "writes") -> list[str]:
        """Die after the first call, after the second, …, until nothing is left to be done; the calls died after."""
        died_after: list[str] = []
        at = 1
        while True:
            self.attempt(at, counts)
            if not self.last.killed:
                return died_after
            call = self.last.calls[-1]
            died_after.append(call)
            # What was pushed is not done again: the next attempt counts from there.
            at = 1 if call.startswith("push ") else at + 1

    def late_at_every_push(self, overtaking: bool) -> list[str]:
        """Die in each push, which goes on alone: after the next attempt's, or (overtaking) just before it.

        Returns the refs of the pushes.
        """
        self.attempt(1, "pushes", "late")
        refs = list(self.last.pushed)
        while self.last.killed:
            before = self.last
            self.attempt(2, "pushes", "late", overtaken_by=before if overtaking else None)
            now = self.project.refs()
            code = before.let_go()
            assert self.project.refs() == now, f"a late push of {before.pushed[-1]} overwrote a later one"
            assert code == 0 or not overtaking, f"{before.pushed[-1]} was pushed too late to overtake"
            refs += self.last.pushed[1:]
        return refs

    def end(self) -> None:
        """Nothing that was started here goes on."""
        for attempt in self.attempts:
            (attempt.folder / "go").touch()


Crash = Callable[[Project, Callable[[], object]], Crashes]


@pytest.fixture
def crash(tmp_path: Path) -> Iterator[Crash]:
    """Make attempts at a piece of work."""
    made: list[Crashes] = []

    def make(project: Project, work: Callable[[], object]) -> Crashes:
        made.append(Crashes(project, work, tmp_path / f"crashes-{len(made)}"))
        return made[-1]

    yield make
    for crashes in made:
        crashes.end()


# What must hold at any time, and in the end


def assert_consistent(project: Project) -> None:
    """Nothing goes on, the repositories are whole, and the remote has all that a ref's commit names."""
    until(lambda: not processes_of(project.root), "the end of what a killed process had started")
    for repository in (project.root, project.settings.mirror):
        if (repository / "HEAD").exists() or (repository / ".git").exists():
            git(repository, "fsck", "--connectivity-only", "--no-dangling")
    for ref in project.refs():
        assert_stored(project, ref)


def assert_stored(project: Project, ref: str) -> None:
    """Every object that a commit's dvc.lock and pointers name is in the DVC remote, whole."""
    files = project.git.files(ref)
    entries = lock_entries(project.git.read(ref, LOCK)) if LOCK in files else {}
    wanted = {path: md5 for path, md5 in output_md5s(entries).items() if not any_below(path, files)}
    for path in files:
        if path.startswith("data/raw/") and path.endswith(".dvc"):
            wanted[path] = pointer_md5(project.git.read(ref, path) or b"", path)
    for path, md5 in wanted.items():
        place = remote_object(project, md5)
        assert place.is_file(), f"{ref} names {path}, which was not pushed"
        listed = json.loads(place.read_text()) if md5.endswith(".dir") else []
        for oid in (md5, *(entry["md5"] for entry in listed)):
            assert hash_file(remote_object(project, oid)).md5 == oid.removesuffix(".dir")


def any_below(path: str, files: dict[str, str]) -> bool:
    return any(name == path or name.startswith(f"{path}/") for name in files)


def remote_object(project: Project, md5: str) -> Path:
    return project.settings.var / "remote/files/md5" / md5[:2] / md5[2:]


def result(project: Project, run: Run) -> dict[str, Any]:
    """All that a retrain leaves, without times, and without the ids of commits that hold times."""
    mirror = project.mirror
    head = mirror.fetch_ref(run.ref)
    assert head is not None
    version = next(version for version in versions.versions(mirror, run.model) if version.run_id == run.run_id)
    return {
        "stages": [(link.stage, link.state) for link in chain(mirror, head)],
        "version": (version.name, version.metrics, *told_by_tag(mirror, version.ref)),
        "versions": [known.name for known in versions.versions(mirror)],
        "assignments": [(given.name, given.because) for given in versions.assignments(mirror)],
        "files": made_files(mirror, version.commit),
        "files after the gate": made_files(mirror, head),
        "lock": mirror.read(version.commit, LOCK),
        "facts": facts(mirror, version.commit, run.model),
        "gate": timeless(register.gate_facts(mirror, version, head) or {}),
        "refs": sorted(project.refs()),
    }


def told_by_tag(mirror: Mirror, ref: str) -> tuple[str, dict[str, Any]]:
    """A tag's message without its event, and the facts of that."""
    text, _, rest = mirror.message(ref).partition(f"{event.EVENT}: ")
    return text, timeless(event.facts_of(rest.encode()))


def made_files(repository: Git, commit: str) -> dict[str, str]:
    """Path -> blob; of events, which hold times, the path alone."""
    return {path: "" if path.startswith("lineage/") else blob for path, blob in repository.files(commit).items()}


def facts(mirror: Mirror, commit: str, model: str) -> dict[str, dict[str, Any]]:
    """What each event of a commit says."""
    told = {name: mirror.read(commit, event.path(model, name)) for name in ("snapshot", *STAGES)}
    return {name: timeless(event.facts_of(content or b"")) for name, content in told.items()}


def timeless(facts: dict[str, Any]) -> dict[str, Any]:
    """An event's facts without its time, and without the commit that its stage started from, which holds a time."""
    return {key: value for key, value in facts.items() if key not in ("startedAt", "commit")}


def assert_swept(project: Project) -> None:
    sweep(project.settings)
    assert not list(project.settings.workspaces.iterdir())


# A retrain


@pytest.fixture(scope="module")
def unbroken(ingested: Project, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What a retrain leaves that nothing has broken off."""
    project = ingested.copy(tmp_path_factory.mktemp("unbroken") / "project")
    project.retrain(*(RUN.model, RUN.run_id))
    found = result(project, RUN)
    addresses = [f"{name}@alpha" for name in STAGES]
    assert found["stages"] == [(name, COMPLETE) for name in ("snapshot", *addresses, "gate@alpha")]
    assert found["gate"]["promoted"]
    return found


PUSHES = [*[RUN.ref] * (1 + len(STAGES)), "refs/tags/alpha@v1", "refs/tags/alpha#champion#1", RUN.ref]


def test_a_retrain_that_is_killed_after_every_write_ends_like_one_that_is_not(
    project: Project, crash: Crash, unbroken: dict[str, Any]
) -> None:
    shutil.rmtree(project.settings.mirror)  # so that making it is among the steps
    crashes = crash(project, lambda: project.retrain(RUN.model, RUN.run_id))
    commands = [call.split(" ", 1)[0] for call in crashes.at_every_call()]
    assert commands.count("push") == len(PUSHES)
    assert {"init", "config", "fetch", "clone", "checkout", "commit-tree", "mktag"} <= set(commands)
    assert result(project, RUN) == unbroken
    assert Mirror.open(project.settings.mirror, project.settings.origin).out("config", "gc.auto") == "0"
    assert_swept(project)


@pytest.mark.parametrize("overtaking", [False, True], ids=["after the next try's", "just before the next try's"])
def test_a_retrain_that_is_killed_in_every_push_ends_like_one_that_is_not(
    project: Project, crash: Crash, unbroken: dict[str, Any], overtaking: bool
) -> None:
    """The push itself goes on when its caller is dead, and comes through when nobody waits for it any more."""
    crashes = crash(project, lambda: project.retrain(RUN.model, RUN.run_id))
    assert crashes.late_at_every_push(overtaking) == PUSHES
    assert result(project, RUN) == unbroken
    assert_swept(project)


def test_a_gate_that_is_killed_says_once_that_a_version_is_worse_than_the_champion(
    trained: Project, crash: Crash, tmp_path: Path
) -> None:
    """It scores the champion on the new holdout first, on a ref of its own."""
    run = Run("alpha", "two")
    trained.edit_params(lambda params: params["models"]["alpha"]["train"].update(quality=0.6))
    trained.fill("2013-04")
    trained.ingest("2013-05-01")
    register.register(trained.settings, trained.task("alpha", "two", "register"), trained.stages("alpha", "two"))
    expected = trained.copy(tmp_path / "unbroken")
    expected.retrain("alpha", "two")
    crashes = crash(trained, lambda: trained.retrain("alpha", "two"))
    crashes.at_every_call("pushes")
    scores = "refs/scores/alpha/v1--two"
    assert [ref for attempt in crashes.attempts for ref in attempt.pushed] == [*[scores] * 3, run.ref]
    found = result(trained, run)
    assert found == result(expected, run)
    assert not found["gate"]["passed"]
    assert made_files(trained.git, scores) == made_files(expected.git, scores)
    assert_swept(trained)


# A stage


def test_a_stage_dies_with_its_task_in_every_phase_and_a_retry_finishes(project: Project, tmp_path: Path) -> None:
    """In the phase `run` the stage's program itself is at work."""
    project.act("alpha", "validate", "wait")
    commit = project.snapshot("alpha", "one")
    task = project.task("alpha", "one", "validate")
    call = stage.StageCall(task=task, ref=task.run.ref, commit=commit, stage="validate", timeout=PATIENCE)
    scratch = project.settings.var / "scratch"
    unbroken = project.copy(tmp_path / "unbroken")
    (unbroken.settings.var / "scratch").mkdir()
    (unbroken.settings.var / "scratch/alpha.go").touch()
    phases: list[str] = []
    made = stage.run_stage(unbroken.settings, call, phases.append).commit
    phases = [phase for phase in phases if phase != "environment"]  # made once in a session of tests
    assert {"check", "pull", "run", "check outputs", "push"} <= set(phases)
    before = project.refs()

    def die_in(wanted: str) -> None:
        def follow(phase: str) -> None:
            if phase == wanted:
                until(lambda: phase != "run" or (scratch / "alpha.pid").exists(), "the stage's program")
                os.kill(os.getpid(), signal.SIGKILL)
            elif phase == "run":
                scratch.mkdir(exist_ok=True)
                (scratch / "alpha.go").touch()

        stage.run_stage(project.settings, call, follow)

    for phase in phases:
        shutil.rmtree(scratch, ignore_errors=True)
        assert in_a_process(partial(die_in, phase)) == -signal.SIGKILL
        assert_consistent(project)
        assert project.refs() == before
    assert in_a_process(partial(die_in, "never")) == 0
    assert_consistent(project)
    head = project.refs()[task.run.ref]
    assert [(link.stage, link.state) for link in chain(project.git, head)[1:]] == [("validate@alpha", COMPLETE)]
    assert made_files(project.mirror, head) == made_files(unbroken.mirror, made)
    assert_swept(project)


# An ingestion


@pytest.fixture(scope="module")
def without_data(tmp_path_factory: pytest.TempPathFactory, environments: Path) -> Project:
    """What `source` is a copy of."""
    project = Project.make(tmp_path_factory.mktemp("source") / "project", environments)
    for month in ("2013-01", "2013-02"):
        project.fill(month)
    return project


@pytest.fixture
def source(without_data: Project, tmp_path: Path) -> Project:
    """A project without data whose source has two months."""
    return without_data.copy(tmp_path / "project")


def ingested_data(project: Project) -> list[tuple[str, dict[str, str], dict[str, Any]]]:
    """Message, files and event of each commit on the branch data."""
    mirror = project.mirror
    found = []
    for commit in mirror.out("log", "--format=%H", "refs/heads/data").split():
        files = mirror.files(commit)
        assert files.pop("data/raw/ingest.json")
        told = event.facts_of(mirror.read(commit, "data/raw/ingest.json") or b"")
        found.append((mirror.message(commit), files, timeless(told)))
    return found


@pytest.fixture(scope="module")
def expected_data(
    without_data: Project, tmp_path_factory: pytest.TempPathFactory
) -> list[tuple[str, dict[str, str], dict[str, Any]]]:
    """What ingestion leaves that nothing has broken off."""
    unbroken = without_data.copy(tmp_path_factory.mktemp("expected") / "project")
    unbroken.ingest("2013-03-01")
    found = ingested_data(unbroken)
    assert [text.splitlines()[0] for text, _, _ in found] == [
        "data: 2013-02: events adds 10 rows",
        "data: 2013-01: events adds 10 rows",
    ]
    return found


def test_an_ingestion_that_is_killed_after_every_write_ends_like_one_that_is_not(
    source: Project, crash: Crash, expected_data: list[Any]
) -> None:
    crashes = crash(source, lambda: source.ingest("2013-03-01"))
    commands = [call.split(" ", 1)[0] for call in crashes.at_every_call()]
    assert commands.count("push") == 2
    assert {"init", "fetch", "clone", "checkout", "read-tree", "commit-tree"} <= set(commands)
    assert ingested_data(source) == expected_data
    assert_swept(source)


def test_an_ingestion_that_is_killed_in_every_push_ends_like_one_that_is_not(
    source: Project, crash: Crash, expected_data: list[Any]
) -> None:
    crashes = crash(source, lambda: source.ingest("2013-03-01"))
    assert crashes.late_at_every_push(overtaking=False) == ["refs/heads/data"] * 2
    assert ingested_data(source) == expected_data
    assert_swept(source)


def test_an_ingestion_that_finds_its_dead_predecessor_still_pushing_gives_way_to_it(
    source: Project, crash: Crash, expected_data: list[Any]
) -> None:
    def give_way() -> None:
        with pytest.raises(RefMoved, match="refs/heads/data moved in the meantime; nothing was changed"):
            source.ingest("2013-03-01")

    crashes = crash(source, lambda: source.ingest("2013-03-01"))
    crashes.attempt(1, "pushes", "late")
    crashes.work = give_way
    crashes.attempt(0, "pushes", overtaken_by=crashes.last)
    assert not crashes.last.killed
    source.ingest("2013-03-01")
    assert ingested_data(source) == expected_data
    assert_swept(source)


# Git itself


@pytest.mark.parametrize("where", ["the mirror", "the origin"])
def test_a_git_that_was_killed_while_it_held_a_lock_blocks_nothing(project: Project, where: str) -> None:
    project.commit("so that there is something to fetch")
    repository = project.settings.mirror if where == "the mirror" else project.root / ".git"
    hook = repository / "hooks/reference-transaction"
    hook.write_text("#!/bin/sh\nif [ $1 = prepared ]; then kill -9 $PPID; fi\n")
    hook.chmod(0o755)
    with pytest.raises(OriginUnavailable):
        project.snapshot("alpha", "one")
    hook.unlink()
    locks = list((repository / "refs").rglob("*.lock"))
    assert locks
    for lock in locks:
        os.utime(lock, (0, 0))
    commit = project.snapshot("alpha", "one")
    assert project.refs()[RUN.ref] == commit
    assert not list((repository / "refs").rglob("*.lock"))
