"""Versions and aliases: tags that count up, say what they are made of, and are never moved."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from handmade import Overtaken, finish, registered
from projects import ROOT, Project, day, git

from retrace import versions
from retrace.config import UnknownModel
from retrace.errors import RetraceError
from retrace.git import Mirror, RefUpdate, trailer
from retrace.promote import NoReason, promote_version, roll_back
from retrace.register import MetricsMissing, register
from retrace.show import log_lines
from retrace.versions import CHAMPION, NothingToRollBackTo, UnknownVersion, Version


def names(project: Project, model: str | None = None) -> list[str]:
    return [version.name for version in versions.versions(project.mirror, model)]


@pytest.fixture(scope="module")
def with_versions(ingested: Project, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A project with alpha@v1 to v3; nobody's to change."""
    project = ingested.copy(tmp_path_factory.mktemp("versions") / "project")
    for number in (1, 2, 3):
        registered(project, f"run {number}")
    return project


@pytest.fixture
def three(with_versions: Project, tmp_path: Path) -> Project:
    """A project with alpha@v1 to v3."""
    return with_versions.copy(tmp_path / "project")


def all_of(project: Project, model: str = "alpha") -> list[Version]:
    return versions.versions(project.mirror, model)


def assign(project: Project, version: Version, because: str = "better") -> str:
    return versions.assign(project.mirror, version, CHAMPION, because).name


def champion(project: Project) -> str:
    return versions.champions(project.mirror)["alpha", CHAMPION].name


def tags(project: Project) -> dict[str, str]:
    return {ref: oid for ref, oid in project.refs().items() if ref.startswith("refs/tags/")}


def annotate(project: Project, names: Iterable[str], target: str = "main") -> None:
    """Tags that somebody makes by hand."""
    for name in names:
        git(project.root, "tag", "-a", "-m", "by hand", name, target)


def test_versions_of_a_model_count_up_from_one_and_sort_as_numbers(three: Project) -> None:
    mirror = three.mirror
    main = three.refs()["refs/heads/main"]
    for number in range(4, 12):
        commit = mirror.write_commit(main, {}, [main], f"{number}")
        assert versions.create(mirror, "alpha", commit, "more", {}).name == f"alpha@v{number}"
    other = registered(three, "run 1", model="beta")
    assert (other.version.name, other.new) == ("beta@v1", True)
    assert names(three) == [*(f"alpha@v{number}" for number in range(1, 12)), "beta@v1"]
    assert names(three, "beta") == ["beta@v1"]
    newest = versions.newest_versions(three.mirror)
    assert {model: version.name for model, version in newest.items()} == {"alpha": "alpha@v11", "beta": "beta@v1"}


def test_a_version_is_an_annotated_tag_that_says_what_it_is_made_of(project: Project) -> None:
    commit = finish(project, "one: two", metrics={"holdout": {"rows": 3, "cost": 0.2, "accuracy": 0.75}})
    version = register(project.settings, project.task("alpha", "one: two", "register"), commit).version
    assert (version.commit, version.run_id, version.run_ref) == (commit, "one: two", "refs/runs/alpha/one=3A=20two")
    assert (version.ref, project.refs()[version.ref]) == ("refs/tags/alpha@v1", version.tag_object)
    assert version.through == day("2013-04-01")
    assert list(version.metrics.items()) == [("accuracy", 0.75), ("cost", 0.2), ("rows", 3.0)], "gated ones come first"
    assert git(project.root, "cat-file", "-t", version.tag_object) == "tag"
    text = git(project.root, "tag", "-l", "--format=%(contents)", "alpha@v1")
    assert text.splitlines()[0] == "alpha@v1: accuracy 0.75, cost 0.2, rows 3"
    assert trailer(text, "Retrace-Code") == project.refs()["refs/heads/main"]
    assert trailer(text, "Retrace-Data") == project.refs()["refs/heads/data"]
    assert trailer(text, "Data-Through") == "2013-04-01T00:00:00+00:00"
    assert json.loads(trailer(text, "Retrace-Metrics") or "") == version.metrics
    assert versions.versions(project.mirror) == [version]


def test_a_version_is_found_by_number_newest_or_alias(three: Project) -> None:
    first, second, third = all_of(three)
    assign(three, second)
    mirror = three.mirror
    for name, expected in (
        ("alpha@v1", first),
        ("alpha@v3", third),
        ("alpha@latest", third),
        ("alpha@champion", second),
    ):
        assert versions.find(mirror, name) == expected


@pytest.mark.parametrize(
    "name",
    ["alpha@v4", "alpha@v0", "alpha@v01", "alpha@v1\n", "alpha@v", "alpha@3", "alpha@challenger"],
)
def test_a_version_that_is_not_there_is_told_with_what_is(with_versions: Project, name: str) -> None:
    with pytest.raises(UnknownVersion) as raised:
        versions.find(with_versions.mirror, name)
    assert str(raised.value) == f"no version {name!r}: it has v1 to v3"


@pytest.mark.parametrize("name", ["alpha", "alpha@"])
def test_who_names_a_model_alone_is_told_how_to_name_a_version(with_versions: Project, name: str) -> None:
    with pytest.raises(UnknownVersion) as raised:
        versions.find(with_versions.mirror, name)
    assert str(raised.value) == (
        f"no version {name!r}: it has v1 to v3; name one of them, alpha@latest or alpha@champion"
    )


@pytest.mark.parametrize(
    "name",
    [
        "$(touch x)@v1",
        "*@v1",
        "--format=%(refname)@latest",
        "al*@latest",
        "../alpha@v1",
        "Alpha@v1",
        "gamma@v1",
        "@v1",
        "",
    ],
)
def test_a_name_that_no_model_has_finds_nothing(
    with_versions: Project, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UnknownVersion) as raised:
        versions.find(with_versions.mirror, name)
    assert str(raised.value) == f"no version {name!r}: `retrace log` lists what there is"
    assert not list(tmp_path.iterdir())


def test_registering_a_run_again_changes_nothing(project: Project) -> None:
    commit, task = finish(project, "one"), project.task("alpha", "one", "register")
    first = register(project.settings, task, commit)
    before = project.refs()
    assert register(project.settings, task, commit) == first
    assert project.refs() == before
    assert first.new


def test_a_run_that_made_what_a_version_is_made_of_makes_no_new_one(three: Project) -> None:
    old = all_of(three)[0]
    before = tags(three)
    again = registered(three, "again", made="run 1", metrics={"holdout": {"accuracy": 0.9}})
    assert (again.version, again.new) == (old, False)
    assert tags(three) == before
    unchanged = three.snapshot("alpha", "nothing new")  # carries what the newest version is made of
    found = register(three.settings, three.task("alpha", "nothing new", "register"), unchanged)
    assert (found.version.name, found.new) == ("alpha@v3", False)
    assert register(three.settings, three.task("alpha", "another", "register"), old.commit).new is False
    assert tags(three) == before


def test_a_commit_without_holdout_metrics_becomes_no_version(project: Project) -> None:
    before = tags(project)
    unfit: list[dict[str, Any]] = [{}, {"validation": {"accuracy": 1.0}}, {"holdout": 0.8}]
    for number, metrics in enumerate(unfit):
        task = project.task("alpha", f"run {number}", "register")
        commit = finish(project, task.run.run_id, metrics=metrics)
        with pytest.raises(MetricsMissing) as raised:
            register(project.settings, task, commit)
        assert str(raised.value) == (
            f"metrics/alpha.json of commit {commit[:8]} has no key 'holdout'; the evaluate stage must write it"
        )
    assert tags(project) == before


@pytest.mark.parametrize("content", [b"[1, 2]", b"accuracy: 0.8", b"\xff"])
def test_metrics_that_are_no_json_object_are_told_like_missing_ones(project: Project, content: bytes) -> None:
    mirror, task, commit = project.mirror, project.task("alpha", "one", "register"), finish(project, "one")
    spoilt = mirror.write_commit(commit, {"metrics/alpha.json": content}, [commit], "spoilt")
    mirror.push([RefUpdate(task.run.ref, spoilt, commit)])
    with pytest.raises(MetricsMissing, match="metrics/alpha.json of commit .* has no key 'holdout'"):
        register(project.settings, task, spoilt)


def test_only_the_end_of_a_retrain_becomes_a_version(project: Project) -> None:
    main = project.refs()["refs/heads/main"]
    metrics: dict[str, bytes | str | None] = {"metrics/alpha.json": b'{"holdout": {"accuracy": 1}}'}
    mirror = project.mirror
    commit = mirror.write_commit(main, metrics, [main], "not a run")
    with pytest.raises(RetraceError) as raised:
        register(project.settings, project.task("alpha", "one", "register"), commit)
    assert str(raised.value) == (
        f"commit {commit[:8]} is not of a retrain of alpha: it has no lineage/alpha/snapshot.json"
    )
    assert not tags(project)


def test_registrations_at_the_same_time_on_several_machines_get_a_number_each(project: Project) -> None:
    commits = {f"run {number}": finish(project, f"run {number}") for number in range(4)}
    start = threading.Barrier(len(commits))
    found: dict[str, Version] = {}

    def one(run_id: str) -> None:
        machine = project.settings.model_copy(update={"var": project.root / "var" / run_id})
        Mirror.open(machine.mirror, machine.origin).fetch_record()
        start.wait()
        found[run_id] = register(machine, project.task("alpha", run_id, "register"), commits[run_id]).version

    threads = [threading.Thread(target=one, args=(run_id,)) for run_id in commits]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {run_id: version.commit for run_id, version in found.items()} == commits
    assert sorted(version.number for version in found.values()) == [1, 2, 3, 4]
    assert names(project) == ["alpha@v1", "alpha@v2", "alpha@v3", "alpha@v4"]


def test_two_processes_that_register_the_same_run_make_one_version(project: Project) -> None:
    commit = finish(project, "one")
    program = (
        "import sys, uuid; from pathlib import Path; from retrace.config import Settings\n"
        "from retrace.register import register; from retrace.runs import Run, Task\n"
        "root, commit = sys.argv[1:]; settings = Settings.load(Path(root), {})\n"
        "task = Task(Run('alpha', 'one'), 'register', str(uuid.uuid4()))\n"
        "print(register(settings, task, commit).version.name)"
    )
    command = [sys.executable, "-c", program, str(project.root), commit]
    running = [subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    assert [process.communicate()[0] for process in running] == ["alpha@v1\n"] * 2
    assert list(tags(project)) == ["refs/tags/alpha@v1"]


def test_whoever_is_overtaken_takes_the_next_number(three: Project, tmp_path: Path) -> None:
    first, second, _ = all_of(three)
    four, five = finish(three, "four"), finish(three, "five")
    theirs = Mirror.open(tmp_path / "theirs.git", three.settings.origin)
    theirs.fetch("+refs/runs/*:refs/runs/*")
    overtaken = Overtaken(three.mirror, lambda: versions.create(theirs, "alpha", four, "theirs", {}))
    mine = versions.create(overtaken, "alpha", five, "mine", {})
    assert (mine.name, mine.commit) == ("alpha@v5", five)
    assert versions.find(three.mirror, "alpha@v4").commit == four
    overtaken = Overtaken(three.mirror, lambda: versions.assign(theirs, first, CHAMPION, "theirs"))
    given = versions.assign(overtaken, second, CHAMPION, "mine")
    assert (given.name, given.because, champion(three)) == ("alpha#champion#2", "mine", "alpha@v2")


def test_an_assignment_is_a_tag_with_a_reason_and_the_last_one_counts(three: Project) -> None:
    first, second, _ = all_of(three)
    assert assign(three, first, "the first") == "alpha#champion#1"
    assert assign(three, second, "of two lines:\nRetrace-Version: alpha@v7") == "alpha#champion#2"
    assert champion(three) == "alpha@v2"
    found = versions.assignments(three.mirror, "alpha")
    assert [(item.name, item.commit, item.because) for item in found] == [
        ("alpha#champion#1", first.commit, "the first"),
        ("alpha#champion#2", second.commit, "of two lines: Retrace-Version: alpha@v7"),
    ]
    text = git(three.root, "tag", "-l", "--format=%(contents)", "alpha#champion#2")
    assert text.splitlines()[0] == "alpha#champion#2: alpha@v2"
    assert trailer(text, "Retrace-Version") == "alpha@v2"


def test_whoever_holds_an_alias_keeps_the_tag_that_gave_it(three: Project) -> None:
    first, second, _ = all_of(three)
    assign(three, first, "once")
    before = tags(three)
    kept = versions.assign(three.mirror, first, CHAMPION, "twice")
    assert (kept.name, kept.because) == ("alpha#champion#1", "once")
    assert tags(three) == before
    assert versions.assign(three.mirror, first, "shadow", "another alias").name == "alpha#shadow#1"
    assert assign(three, second) == "alpha#champion#2"
    assert versions.aliases_of(three.mirror, first) == ["shadow"], "champion is another one now"
    assert assign(three, first) == "alpha#champion#3", "it was given back, which is news"
    assert versions.aliases_of(three.mirror, first) == ["champion", "shadow"]
    assert versions.aliases_of(three.mirror, second) == []
    assert before.items() < tags(three).items()


def test_the_tenth_assignment_comes_after_the_ninth(three: Project) -> None:
    pair = all_of(three)[:2]
    for number in range(1, 12):
        assert assign(three, pair[number % 2]) == f"alpha#champion#{number}"
    assert champion(three) == pair[11 % 2].name


def test_a_roll_back_undoes_what_came_in_between(three: Project) -> None:
    a, b, c = all_of(three)
    mirror = three.mirror

    def previous() -> str:
        mirror.fetch_record()
        return versions.previous_holder(mirror, "alpha").name

    nothing = r"^alpha has no earlier champion to return to; name a version with `retrace promote VERSION`$"
    for holders, expected in (
        ([], None),
        ([a], None),
        ([b], "alpha@v1"),
        ([a], None),
        ([c], "alpha@v1"),
        ([b], "alpha@v3"),
        ([c], "alpha@v1"),
        ([a], None),
    ):
        for version in holders:
            assign(three, version)
        if expected is None:
            with pytest.raises(NothingToRollBackTo, match=nothing):
                previous()
        else:
            assert previous() == expected
    assert len(versions.assignments(mirror)) == 7


def test_a_roll_back_of_one_model_or_alias_does_not_see_another(three: Project) -> None:
    a, b, _ = all_of(three)
    other = registered(three, "one", model="beta").version
    versions.assign(three.mirror, other, CHAMPION, "beta's")
    versions.assign(three.mirror, b, "shadow", "for looking")
    assign(three, a)
    for model in ("alpha", "beta"):
        with pytest.raises(NothingToRollBackTo, match=f"^{model} has no earlier champion to return to"):
            versions.previous_holder(three.mirror, model)


def test_promotion_and_roll_back_tag_first_and_say_so(three: Project) -> None:
    """Their first line comes before MLflow is asked at all."""
    for name, tag in (("alpha@v1", 1), ("alpha@latest", 2)):
        promotion = promote_version(three.settings, name, f"reason {tag}")
        version = "alpha@v3" if name == "alpha@latest" else name
        assert next(promotion) == f"{version} is champion of alpha (alpha#champion#{tag})"
    assert champion(three) == "alpha@v3"
    undone = roll_back(three.settings, "alpha", "complaints")
    assert next(undone) == "alpha@v1 is champion of alpha (alpha#champion#3)"
    assert champion(three) == "alpha@v1"
    assert versions.assignments(three.mirror)[-1].because == "complaints"
    assert not (three.settings.var / "mlflow").exists()
    with pytest.raises(NothingToRollBackTo):
        roll_back(three.settings, "alpha", "once more")
    with pytest.raises(UnknownVersion, match="no version 'alpha@v9': it has v1 to v3"):
        promote_version(three.settings, "alpha@v9", "a slip")


def test_a_model_without_versions_is_not_rolled_back_and_those_with_some_are_named(three: Project) -> None:
    registered(three, "one", model="beta")
    for model in ("gamma", "al*", "$(touch x)", ""):
        expected = f"^no versions of {re.escape(repr(model))}; there are versions of alpha, beta$"
        with pytest.raises(UnknownModel, match=expected):
            roll_back(three.settings, model, "a slip")
        with pytest.raises(UnknownModel, match=expected):
            list(log_lines(three.settings, model, as_json=False))


def test_whoever_is_champion_already_is_told_since_when_and_why(three: Project) -> None:
    first, second, _ = all_of(three)
    assign(three, second)
    assign(three, first, "the best of January")
    before, (_, held) = three.refs(), versions.assignments(three.mirror)
    since = f"{held.created.astimezone():%Y-%m-%d %H:%M}"
    assert next(promote_version(three.settings, "alpha@champion", "another reason")) == (
        f"alpha@v1 is champion of alpha already, since alpha#champion#2 of {since} (the best of January); "
        "nothing new is written"
    )
    assert three.refs() == before


def test_without_a_reason_nobody_is_promoted(three: Project) -> None:
    a, b, _ = all_of(three)
    assign(three, a)
    assign(three, b)
    before = three.refs()
    for because in ("", " \n\t"):
        for change in (
            promote_version(three.settings, "alpha@v1", because),
            roll_back(three.settings, "alpha", because),
        ):
            with pytest.raises(NoReason) as raised:
                list(change)
            assert str(raised.value) == "--because is empty; say in a few words why, for whoever reads the history"
    assert three.refs() == before


def test_tags_that_do_not_follow_the_grammar_are_nothing_to_us(three: Project) -> None:
    first, *_ = all_of(three)
    assign(three, first)
    annotate(
        three, ("v1.0", "alpha@v0", "alpha@v04", "alpha@4", "alpha@v4-rc", "alpha@v4x", "Alpha@v4", "old/alpha@v4")
    )
    annotate(three, ("alpha@v1@v4", "alpha#champion", "alpha#champion#0", "alpha#champion#x", "alpha#Champion#2"))
    annotate(three, ("alpha#champion#2#3", "old/alpha#champion#2", "#champion#2"))
    assert names(three) == ["alpha@v1", "alpha@v2", "alpha@v3"]
    assert [item.name for item in versions.assignments(three.mirror)] == ["alpha#champion#1"]
    assert champion(three) == "alpha@v1"
    fourth = registered(three, "fourth").version
    assert fourth.name == "alpha@v4"
    assert assign(three, fourth) == "alpha#champion#2"


def test_a_name_that_a_plain_tag_has_taken_is_passed_over(three: Project) -> None:
    """`git tag alpha@v4` makes no version, nor is it moved: a registration must not wait for the name for ever."""
    first, *_ = all_of(three)
    assign(three, first)
    for name in ("alpha@v4", "alpha#champion#2"):
        git(three.root, "tag", name, "main")
    before = tags(three)
    fourth = registered(three, "fourth").version
    assert fourth.name == "alpha@v5"
    assert assign(three, fourth) == "alpha#champion#3"
    assert names(three) == ["alpha@v1", "alpha@v2", "alpha@v3", "alpha@v5"]
    assert champion(three) == "alpha@v5"
    assert before.items() < tags(three).items()


def test_an_alias_of_a_commit_that_is_no_version_is_ignored(three: Project) -> None:
    first, second, _ = all_of(three)
    assign(three, first)
    annotate(three, ("alpha#champion#2",))
    assert champion(three) == "alpha@v1"
    assert versions.aliases_of(three.mirror, first) == [CHAMPION]
    assert assign(three, second) == "alpha#champion#3"
    assert versions.previous_holder(three.mirror, "alpha") == first


def test_a_version_is_the_same_whoever_reads_it(with_versions: Project, tmp_path: Path) -> None:
    """From a fresh clone, with nothing of this machine, all that is known of a version is there."""
    git(tmp_path, "clone", "-q", "--bare", str(with_versions.root), "clone.git")
    fresh = Mirror.open(tmp_path / "mirror.git", str(tmp_path / "clone.git"))
    fresh.fetch_record()
    found = versions.versions(fresh)
    assert found == versions.versions(with_versions.mirror)
    assert [version.run_id for version in found] == ["run 1", "run 2", "run 3"]
