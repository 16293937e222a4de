"""A person's request to be forgotten, on a project in which the person is in one of two versions."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sqlite3
from collections.abc import Callable
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from events import check
from projects import Project, day

from retrace import lease, verdicts, versions
from retrace.checkout import checkout_version
from retrace.dvcfiles import lock_entries, object_path, output_md5s
from retrace.errors import RetraceError
from retrace.forget import NoCondition, RecordMoved, TicketRefused, UnknownDataset, forget, run_forget
from retrace.forgetting.find import Found, SourceNotAsked, SourceStillHas
from retrace.forgetting.history import history
from retrace.forgetting.plan import Request, newest, plan
from retrace.forgetting.text import plan_lines
from retrace.gate import HoldoutMismatch, gate
from retrace.git import Git
from retrace.process import Forgotten
from retrace.promote import VersionForgotten, promote_version
from retrace.publish import entry_of, publish_model
from retrace.pull import pull_data
from retrace.register import register
from retrace.registry import prepare
from retrace.reproduce import run_reproduce
from retrace.runs import INGEST_EVENT
from retrace.search import ConditionRefused
from retrace.tombstones import current
from retrace.verdicts import IMPOSSIBLE
from retrace.verify import run_verify

pytestmark = pytest.mark.usefixtures("forked")

if TYPE_CHECKING:
    from mlflow import MlflowClient

PERSON = "zygmunt-the-person"
CONDITION = f"name = '{PERSON}'"
TICKET = "DSR-42"
REQUEST = Request("events", TICKET)
FEBRUARY = "data/raw/events/2013-02.parquet"


def add(project: Project, month: str, name: str) -> None:
    with sqlite3.connect(project.source) as database:
        database.execute("INSERT INTO events VALUES (?, ?, ?)", (f"{month}-09 00:00:00", name, 3.5))


def delete_in_source(project: Project) -> None:
    with sqlite3.connect(project.source) as database:
        database.execute("DELETE FROM events WHERE name = ?", (PERSON,))


@pytest.fixture(scope="module")
def with_the_person(with_a_version: Project, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """alpha@v1 without the person, alpha@v2 with; a run of alpha that has not begun, in which nothing is to be done; a
    run of beta that broke off after its features; a later content of February that no version has. In the source the
    person is deleted by now. Nobody's to change."""
    project = with_a_version.copy(tmp_path_factory.mktemp("person") / "project")
    add(project, "2013-02", PERSON)
    project.ingest("2013-04-01", "2013-02-01")
    project.retrain("alpha", "second")
    project.snapshot("alpha", "waiting")
    commit = project.snapshot("beta", "broken")
    for name in ("validate", "features"):
        commit = project.stage("beta", "broken", name, commit).commit
    add(project, "2013-02", "somebody else")
    project.ingest("2013-04-01", "2013-02-01")
    delete_in_source(project)
    return project


@dataclass
class Told:
    """What a request printed, and what it ended with."""

    code: int
    text: str


Run = Callable[..., Told]


@pytest.fixture
def person(with_the_person: Project, tmp_path: Path) -> Project:
    return with_the_person.copy(tmp_path / "project")


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    def run(project: Project, request: Request = REQUEST, condition: str = CONDITION, ask: object = None) -> Told:
        code = forget(project.settings, request, condition, ask, project.fetch)  # type: ignore[arg-type]
        return Told(code, capsys.readouterr().out)

    return run


def stored(project: Project) -> dict[str, set[str]]:
    """The objects of cache and remote."""
    found = {}
    for name, place in (("cache", project.settings.cache), ("remote", project.settings.var / "remote")):
        files = place / "files/md5"
        found[name] = {"".join(path.relative_to(files).parts) for path in files.rglob("*") if path.is_file()}
    return found


def md5_in_february(project: Project) -> str:
    return next(part.md5 for part in newest(project.mirror, "events") if part.path == FEBRUARY)


def holding(project: Project, text: str, *folders: Path) -> list[Path]:
    """The files below folders that hold a text, git's objects read as git reads them."""
    plain = [path for folder in folders for path in folder.rglob("*") if path.is_file() and not path.is_symlink()]
    found = [path for path in plain if text.encode() in path.read_bytes()]
    for repository in (project.root, project.settings.mirror):
        git = Git(repository)
        names = git.out("cat-file", "--batch-all-objects", "--batch-check=%(objectname)").splitlines()
        contents = git.read_many(names)
        found += [
            repository / name for name, body in zip(names, contents, strict=True) if body and text.encode() in body
        ]
    return found


def test_a_plan_without_consent_changes_nothing(person: Project, run: Run) -> None:
    before = person.refs(), stored(person)
    questions: list[str] = []
    told = run(person, ask=lambda question: questions.append(question) or "no")
    assert (told.code, len(questions)) == (1, 1)
    assert (person.refs(), stored(person)) == before
    assert "2013-02: 1 row of 12 removed, the partition replaced" in told.text
    assert "1 older content of partitions" in told.text
    assert "can never be rebuilt or served again: alpha@v2\n" in told.text
    assert "WARNING: alpha@v2 is champion" in told.text
    assert "refs/runs/beta/broken" in told.text
    assert "reports/alpha/serving.json" in told.text
    assert told.text.endswith("nothing is changed\n")


@pytest.fixture(scope="module")
def forgotten(with_the_person: Project, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """The project after the request was carried out. Nobody's to change."""
    project = with_the_person.copy(tmp_path_factory.mktemp("forgotten") / "project")
    assert forget(project.settings, REQUEST, CONDITION, None, project.fetch) == 0
    return project


def test_what_held_the_records_or_was_made_of_them_is_gone_everywhere(
    with_the_person: Project, forgotten: Project
) -> None:
    stones = current(forgotten.mirror)
    after, before = stored(forgotten), stored(with_the_person)
    for place in ("cache", "remote"):
        assert not after[place] & stones.keys()
        assert before[place] & stones.keys()
    made = {stone.path for stone in stones.values()}
    assert {FEBRUARY, "data/raw/events", "models/alpha.skops", "data/predictions/alpha.txt"} < made
    # Both models' features are the same bytes.
    assert {path.replace("beta", "alpha") for path in made} > {"data/features/alpha", "data/features/alpha/2013-02.txt"}
    assert {stone.ticket for stone in stones.values()} == {TICKET}
    assert not [path for path in (forgotten.settings.var / "statistics").iterdir() if path.stem in stones]


def test_what_versions_without_the_records_have_stays(forgotten: Project, tmp_path: Path) -> None:
    from retrace.checkout import checkout_version

    shutil.copytree(forgotten.root, tmp_path / "project", symlinks=True)
    project = Project(tmp_path / "project", forgotten.settings.load(tmp_path / "project", {}))
    shutil.rmtree(project.settings.cache)
    assert "all hashes verified" in checkout_version(project.settings, "alpha@v1", tmp_path / "v1")
    with pytest.raises(Forgotten, match=rf"checkout of alpha@v2: .* was removed on request {TICKET} and must not"):
        checkout_version(project.settings, "alpha@v2", tmp_path / "v2")


def test_the_new_partition_is_what_the_source_gives_without_the_records(forgotten: Project, tmp_path: Path) -> None:
    project = forgotten.copy(tmp_path / "project")
    head = project.refs()["refs/heads/data"]
    results = project.ingest("2013-04-01", "2013-01-01")
    assert [result.summary for result in results] == ["unchanged"] * 3
    assert project.refs()["refs/heads/data"] == head
    assert project.mirror.message(head).startswith(
        f"data: 2013-02: 1 partition of events replaced by request {TICKET}\n"
    )


def test_the_record_says_why_the_versions_cannot_be_rebuilt(forgotten: Project) -> None:
    mirror = forgotten.mirror
    found = verdicts.newest(mirror, versions.versions(mirror))
    assert list(found) == ["alpha@v2"]
    assert (found["alpha@v2"].verdict, found["alpha@v2"].reason) == (IMPOSSIBLE, f"forgotten on request {TICKET}")
    assert found["alpha@v2"].facts["ticket"] == TICKET
    assert {FEBRUARY, "models/alpha.skops"} < set(found["alpha@v2"].facts["missing"])


def test_lineage_is_told_of_it_by_the_commit_s_own_event(forgotten: Project) -> None:
    told = forgotten.mirror.read("refs/heads/data", INGEST_EVENT)
    assert told is not None
    check(json.loads(told))
    assert json.loads(told)["run"]["facets"]["retrace"]["ticket"] == TICKET


def test_the_condition_is_written_nowhere(forgotten: Project, with_the_person: Project) -> None:
    copies = holding(with_the_person, PERSON, with_the_person.settings.var / "cache", with_the_person.root / ".git")
    assert copies, "the search must be able to find the person"
    left = holding(forgotten, PERSON, forgotten.settings.var, forgotten.root / ".git")
    assert [path for path in left if path != forgotten.source] == []


def test_a_retrain_goes_on_although_it_makes_some_files_again(forgotten: Project, tmp_path: Path) -> None:
    project = forgotten.copy(tmp_path / "project")
    stones = current(project.mirror)
    version, _ = project.retrain("beta", "third")
    assert version.name == "beta@v1"
    assert not {md5 for md5, stone in stones.items() if stone.raw} & stored(project)["remote"]
    again = {md5 for md5 in stored(project)["remote"] if md5 in stones}
    assert forget(project.settings, REQUEST, CONDITION, None, project.fetch) == 0
    assert again <= stored(project)["remote"], "what was made again without the records is not purged a second time"


def test_no_alias_returns_to_a_version_whose_files_are_gone(forgotten: Project, tmp_path: Path) -> None:
    project = forgotten.copy(tmp_path / "project")
    with pytest.raises(VersionForgotten, match=f"^alpha@v2 was forgotten on request {TICKET}: its files are gone"):
        promote_version(project.settings, "alpha@v2", "it was good")
    project.fill("2013-04")
    project.ingest("2013-05-01")
    commit = project.stages("alpha", "third")
    third = register(project.settings, project.task("alpha", "third", "register"), commit).version
    with pytest.raises(HoldoutMismatch, match=f"retrace promote {third.name} --because TEXT$"):
        gate(project.settings, project.task("alpha", "third", "gate"), commit)
    versions.assign(project.mirror, third, "champion", "by hand")
    assert versions.previous_holder(project.mirror, "alpha").name == "alpha@v2"
    gone = verdicts.forgotten(project.mirror, versions.versions(project.mirror))
    assert gone == {"alpha@v2": TICKET}
    assert versions.previous_holder(project.mirror, "alpha", gone=gone).name == "alpha@v1"


def test_a_retrain_carries_no_results_whose_files_are_gone(forgotten: Project, tmp_path: Path) -> None:
    project = forgotten.copy(tmp_path / "project")
    project.fill("2013-04")
    project.ingest("2013-05-01")
    commit = project.snapshot("beta", "fourth")
    lock = lock_entries(Git(project.settings.mirror).read(commit, "dvc.lock"))
    md5s = set(output_md5s(lock).values())
    assert not md5s & current(project.mirror).keys()
    assert "train@alpha" in lock, "alpha@v1 still has its files"


def test_a_forgotten_version_is_not_rebuilt_again(
    forgotten: Project, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    project = forgotten.copy(tmp_path / "project")
    code = run_reproduce(project.settings, "alpha@v2", vary=False, keep=False, as_json=False)
    assert (code, capsys.readouterr().out) == (
        5,
        f"alpha@v2 is impossible to make again: forgotten on request {TICKET}\n",
    )
    assert len(verdicts.verdicts(project.mirror, versions.find(project.mirror, "alpha@v2"))) == 1


@pytest.fixture
def another_machine(forgotten: Project, with_the_person: Project, tmp_path: Path) -> Project:
    """One whose cache still has all that was forgotten."""
    project = forgotten.copy(tmp_path / "project")
    shutil.rmtree(project.settings.cache)
    shutil.copytree(with_the_person.settings.cache, project.settings.cache)
    return project


def test_another_machines_cache_brings_nothing_back(another_machine: Project) -> None:
    project = another_machine
    remote, stones = stored(project)["remote"], current(project.mirror)
    for model, name in (("beta", "broken"), ("alpha", "waiting")):
        head = project.mirror.fetch_ref(f"refs/runs/{model}/{name}")
        assert head is not None
        with pytest.raises(Forgotten, match=rf"train@{model}: data/features/{model} \(md5 .* removed on .*{TICKET}"):
            project.stage(model, name, "train", head)
    assert stored(project)["remote"] == remote
    assert (
        next(md5 for md5, stone in stones.items() if stone.path == "data/features/beta")
        not in (stored(project)["cache"])
    )


def test_another_machines_cache_gives_a_checkout_no_records_either(another_machine: Project, tmp_path: Path) -> None:
    project = another_machine
    with pytest.raises(Forgotten, match=rf"checkout of alpha@v2: .* was removed on request {TICKET}"):
        checkout_version(project.settings, "alpha@v2", tmp_path / "there")
    assert not (tmp_path / "there").exists()
    version = versions.find(project.mirror, "alpha@v2")
    with (
        pytest.raises(Forgotten, match=rf"publication of alpha@v2: .* was removed on request {TICKET}"),
        entry_of(project.settings, project.mirror, version),
    ):
        pass
    checkout_version(project.settings, "alpha@v1", tmp_path / "there")
    assert PERSON not in (tmp_path / "there" / "reports/alpha/serving.json").read_text()


def test_an_ingestion_does_not_bring_the_records_back(forgotten: Project, tmp_path: Path) -> None:
    project = forgotten.copy(tmp_path / "project")
    add(project, "2013-02", PERSON)
    before = project.refs(), stored(project)["remote"]
    with pytest.raises(Forgotten, match=rf"ingest of 2013-02: .* was removed on request {TICKET}"):
        project.ingest("2013-04-01", "2013-02-01")
    assert (project.refs(), stored(project)["remote"]) == before
    assert not stored(project)["cache"] & current(project.mirror).keys()


def test_a_source_that_has_the_records_is_refused(person: Project, run: Run) -> None:
    add(person, "2013-02", PERSON)
    before = person.refs(), stored(person)
    with pytest.raises(
        SourceStillHas, match="still has 1 such rows in 2013-02 for events, as asked through the Connection "
    ):
        run(person)
    assert (person.refs(), stored(person)) == before


def test_a_source_that_does_not_answer_is_refused(person: Project, run: Run) -> None:
    person.source.rename(person.source.with_name("away"))
    with pytest.raises(SourceNotAsked, match="would bring the records of 2013-02 back is not known, so nothing is"):
        run(person)


def test_an_interval_that_is_empty_in_the_source_leaves_a_partition_without_rows(
    ingested: Project, tmp_path: Path, run: Run
) -> None:
    project = ingested.copy(tmp_path / "project")
    with sqlite3.connect(project.source) as database:
        database.execute("DELETE FROM events WHERE moment LIKE '2013-02%'")
    told = run(project, condition="moment >= '2013-02-01' AND moment < '2013-03-01'")
    assert told.code == 0
    assert [part.rows for part in newest(project.mirror, "events")] == [10, 0, 10]


def test_records_that_are_nowhere_need_nothing(person: Project, run: Run) -> None:
    before = person.refs(), stored(person)
    told = run(person, condition="name = 'never heard of'")
    assert (told.code, told.text) == (0, "no such records in events: 5 contents of partitions searched\n")
    assert (person.refs(), stored(person)) == before


def test_partitions_that_only_the_remote_has_are_searched_and_kept_out_of_the_cache(person: Project, run: Run) -> None:
    shutil.rmtree(person.settings.cache)
    person.settings.cache.mkdir()
    told = run(person, ask=lambda question: "no")
    assert "2013-02: 1 row of 12 removed" in told.text
    assert not stored(person)["cache"]
    assert run(person).code == 0
    assert not stored(person)["remote"] & current(person.mirror).keys()


def test_files_in_the_users_own_checkout_and_objects_of_nobody_are_told(person: Project, run: Run) -> None:
    pull_data(person.settings)
    for place in (person.settings.cache, person.settings.var / "remote"):
        unknown = object_path(place, "0" * 32)
        unknown.parent.mkdir(exist_ok=True)
        unknown.write_bytes(b"of a run that was given up")
    told = run(person)
    assert f"stays in this checkout until `retrace data pull`: {FEBRUARY}\n" in told.text
    assert "1 object is left in cache or remote that no commit names" in told.text
    assert unknown.exists()
    pull_data(person.settings)
    assert PERSON.encode() not in (person.root / FEBRUARY).read_bytes()


def test_kept_rebuilds_of_the_versions_are_named_and_removed(person: Project, run: Run) -> None:
    rebuilds = person.settings.var / "rebuilds"
    for name in ("alpha@v1--20130501T000000.0", "alpha@v2--20130501T000000.0"):
        (rebuilds / name / "tree").mkdir(parents=True)
    told = run(person, ask=lambda question: "")
    assert told.text.endswith("nothing is changed; answer y at a terminal, or add --yes\n")
    told = run(person)
    assert f"left here, removed: {rebuilds}/alpha@v2--20130501T000000.0\n" in told.text
    assert [folder.name for folder in rebuilds.iterdir()] == ["alpha@v1--20130501T000000.0"]


def test_of_several_partitions_one_list_is_left_and_not_one_of_each_step(person: Project, run: Run) -> None:
    with sqlite3.connect(person.source) as database:
        database.execute("DELETE FROM events WHERE name = 'event 7'")
    before = stored(person)["cache"]
    told = run(person, condition="name = 'event 7'")
    assert "3 partitions of events replaced" in told.text
    assert "that no commit names" not in told.text
    assert len([oid for oid in stored(person)["cache"] - before if oid.endswith(".dir")]) == 1


def test_verify_says_once_that_a_version_was_forgotten(
    person: Project, mlflow_copies: MlflowClient, run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(person).code == 0
    assert run_verify(person.settings, "alpha@v2", as_json=False) == 1
    told = capsys.readouterr().out
    assert told.count(f"? alpha@v2 was forgotten on request {TICKET}: its files are gone\n") == 1
    assert "DVC remote" not in told and "MLflow" not in told


def test_examples_for_serving_are_all_named_and_first(with_the_person: Project, forgotten: Project) -> None:
    known = history(forgotten.mirror)
    cost = plan(forgotten.mirror, known, REQUEST, [], current(forgotten.mirror))
    rows = [f"reports/model_{number}/serving.json" for number in range(10)]
    paths = (*(f"metrics/model_{number}.json" for number in range(9)), *rows)
    runs = ("refs/runs/beta/broken",) * 4
    told = list(plan_lines(replace(cost, in_git=paths, runs=runs), Found((), {}, (), (), ()), []))
    assert f"  stays in git, whose history is not rewritten: {', '.join(rows)} and 9 more" in told
    assert "  what other runs and scores made of the data: refs/runs/beta/broken" in told


def test_what_is_nowhere_and_what_is_damaged_is_told(person: Project, run: Run) -> None:
    md5 = md5_in_february(person)
    object_path(person.settings.cache, md5).unlink()
    object_path(person.settings.var / "remote", md5).unlink()
    assert f"in neither cache nor remote: {FEBRUARY} ({md5[:12]})" in run(person, ask=lambda question: "no").text


def test_a_retrain_under_way_must_end_first(person: Project, run: Run) -> None:
    lease.take(person.mirror, "beta", "scheduled", 60)
    before = stored(person)
    with pytest.raises(lease.ModelBusy, match="beta is being retrained by scheduled; wait for it to end"):
        run(person)
    assert stored(person) == before
    assert lease.holder(person.mirror, "alpha") is None


def test_consent_to_what_is_no_longer_so_counts_for_nothing(person: Project, run: Run) -> None:
    def slow_to_answer(question: str) -> str:
        person.fill("2013-04")
        person.ingest("2013-05-01")
        return "yes"

    before = stored(person)["remote"]
    with pytest.raises(RecordMoved, match="ingested, trained or promoted meanwhile"):
        run(person, ask=slow_to_answer)
    assert before <= stored(person)["remote"]


def test_what_is_asked_for_wrongly_is_refused(person: Project, run: Run) -> None:
    with pytest.raises(TicketRefused, match="'DSR 42; rm' is no ticket's id"):
        run_forget(person.settings, "events", CONDITION, "DSR 42; rm", None)
    with pytest.raises(NoCondition):
        run_forget(person.settings, "events", "", TICKET, None)
    with pytest.raises(UnknownDataset, match="no dataset 'people'; params.yaml has events"):
        run_forget(person.settings, "people", CONDITION, TICKET, None)
    with pytest.raises(ConditionRefused) as refused:
        run(person, condition=f"nonsense = '{PERSON}'")
    assert PERSON not in str(refused.value)


def killed_at(project: Project, step: str) -> None:
    """Carry the request out in a process of its own, which is killed before a step begins."""

    def follow(now: str) -> None:
        if now == step:
            os.kill(os.getpid(), signal.SIGKILL)

    def work() -> None:
        forget(project.settings, REQUEST, CONDITION, None, project.fetch, follow)

    process = get_context("fork").Process(target=work)
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL


def test_a_request_that_is_killed_again_and_again_is_finished_by_the_same_command(
    person: Project, forgotten: Project, run: Run
) -> None:
    killed_at(person, "replace")
    killed_at(person, "bury")  # the data is replaced
    head = person.refs()["refs/heads/data"]
    killed_at(person, "purge")  # the tombstones stand
    stones = current(person.mirror)
    gone = sorted(stones)[::2]
    for md5 in gone:  # half a purge
        object_path(person.settings.var / "remote", md5).unlink(missing_ok=True)
        object_path(person.settings.cache, md5).unlink(missing_ok=True)
    killed_at(person, "judge")
    assert not stored(person)["remote"] & stones.keys()
    assert run(person).code == 0
    assert person.refs()["refs/heads/data"] == head, "the data is replaced once"
    assert {(stone.md5, stone.path) for stone in current(person.mirror).values()} == {
        (stone.md5, stone.path) for stone in current(forgotten.mirror).values()
    }
    assert len(verdicts.verdicts(person.mirror, versions.find(person.mirror, "alpha@v2"))) == 1
    assert stored(person)["remote"] == stored(forgotten)["remote"]
    done = f"request {TICKET} is done: {len(stones)} tombstones, nothing left to do\n"
    assert run(person, ask=None) == Told(0, done)
    back = next(md5 for md5, stone in stones.items() if stone.path == FEBRUARY)
    object_path(person.settings.var / "remote", back).write_bytes(b"of an old cache")
    assert "1 object deleted from the remote" in run(person).text
    assert len(verdicts.verdicts(person.mirror, versions.find(person.mirror, "alpha@v2"))) == 1


def test_a_new_mlflow_is_told_that_a_version_was_there_and_gets_no_file_of_it(
    forgotten: Project, tmp_path: Path
) -> None:
    project = forgotten.copy(tmp_path / "project")
    shutil.rmtree(project.settings.var / "mlflow", ignore_errors=True)
    client = mlflow_with(project, tmp_path, 1)
    changes = publish_model(project.settings, "alpha", lambda _: None)
    assert f"alpha@v2 written without its files: forgotten on request {TICKET}" in changes
    assert publish_model(project.settings, "alpha", lambda _: None) == []
    assert client.get_model_version("alpha", "2").tags["retrace.forgotten"] == TICKET


@pytest.fixture
def mlflow_copies(person: Project, tmp_path: Path) -> MlflowClient:
    """An MLflow that has both versions, each with a file."""
    return mlflow_with(person, tmp_path, 1, 2)


def mlflow_with(project: Project, tmp_path: Path, *numbers: int) -> MlflowClient:
    from mlflow import MlflowClient

    prepare(project.settings.mlflow)
    client = MlflowClient(project.settings.mlflow)
    experiment = client.create_experiment("alpha", artifact_location=str(tmp_path / "artifacts"))
    client.create_registered_model("alpha")
    for number in numbers:
        tags = {"git.tag": f"alpha@v{number}"}
        run = client.create_run(experiment, tags=tags)
        client.log_text(run.info.run_id, PERSON, "example.txt")
        client.create_model_version("alpha", run.info.artifact_uri, run.info.run_id, tags, await_creation_for=0)
    return client


def test_mlflow_that_does_not_answer_is_left_for_the_same_command(
    person: Project, mlflow_copies: MlflowClient, tmp_path: Path, run: Run
) -> None:
    reachable = person.settings
    person.settings = reachable.model_copy(update={"mlflow": "http://127.0.0.1:9", "patience": 2.0})
    told = run(person)
    assert told.code == 1
    assert "LEFT: alpha@v2 in MLflow: MLflow at http://127.0.0.1:9 is not available" in told.text
    assert not stored(person)["remote"] & current(person.mirror).keys()
    assert len(list((tmp_path / "artifacts").rglob("example.txt"))) == 2
    person.settings = reachable
    assert run(person).code == 0
    assert len(list((tmp_path / "artifacts").rglob("example.txt"))) == 1
    held = {int(item.version): item.tags.get("retrace.forgotten") for item in mlflow_copies.search_model_versions()}
    assert held == {1: None, 2: TICKET}


def test_the_command_finds_the_source_by_its_connection(
    person: Project, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    address = json.dumps({"conn_type": "sqlite", "host": str(person.source)})
    monkeypatch.setenv("AIRFLOW_CONN_EVENTS", address)
    for name in ("AIRFLOW_HOME", "AIRFLOW__OPENLINEAGE__TRANSPORT"):
        monkeypatch.setenv(name, os.environ.get(name, ""))
    assert run_forget(person.settings, "events", CONDITION, TICKET, None) == 0
    out = capfd.readouterr().out
    assert "1 partition of events replaced" in out
    assert PERSON not in out


def test_data_through_stays(forgotten: Project) -> None:
    from retrace.runs import data_as_of

    assert data_as_of(forgotten.mirror, None).through == day("2013-04-01")


def test_an_error_of_retrace_is_what_a_user_sees() -> None:
    assert issubclass(SourceStillHas, RetraceError)
