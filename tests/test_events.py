"""What is told of a run in its commit: what it read and wrote, exactly, in OpenLineage's own terms."""

from __future__ import annotations

import json
import platform
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml
from events import check, committed
from openlineage.client.serde import Serde
from projects import Project, day
from shared import session_folder

from retrace import ingest, promote, runs, versions
from retrace.lineage import event, facets
from retrace.lineage.event import Parent, Read
from retrace.process import StageFailed
from retrace.runs import Run, Task

pytestmark = pytest.mark.usefixtures("forked")

FACET = facets.FACET
DAG_RUN = "11111111-1111-4111-8111-111111111111"


def job_of(told: dict[str, Any]) -> str:
    return str(told["job"]["name"])


def by_job(project: Project) -> dict[str, dict[str, Any]]:
    """Job -> its newest event."""
    return {job_of(told): told for told in committed(project)}


@pytest.fixture(scope="module")
def with_decisions(with_a_version: Project, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """What `decided` is a copy of; nobody's to change."""
    project = with_a_version.copy(tmp_path_factory.mktemp("decisions") / "project")
    project.edit_params(lambda params: params["models"]["alpha"]["train"].update(quality=0.9))
    project.retrain("alpha", "second")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(promote, "_publish", lambda settings, model: iter(()))
        list(promote.roll_back(project.settings, "alpha", "it was not"))
        list(promote.promote_version(project.settings, "alpha@v2", "it  was\nbetter"))
    return project


@pytest.fixture
def decided(with_decisions: Project, tmp_path: Path) -> Project:
    """A project with two versions, of which a person has promoted one and gone back."""
    return with_decisions.copy(tmp_path / "project")


def test_every_event_is_one_of_openlineage_and_every_job_has_its_own(decided: Project) -> None:
    found = list(committed(decided))
    for told in found:
        check(told)
    jobs = Counter(map(job_of, found))
    assert jobs == {
        "ingest.ingest": 3,
        **{f"alpha.{name}": 2 for name in ("snapshot", "register", "gate")},
        **{f"alpha.{name}": 1 for name in ("validate", "features", "promote", "rollback")},
        **{f"alpha.{name}": 2 for name in ("train", "evaluate")},
    }
    run_ids = [told["run"]["runId"] for told in found]
    assert len(set(run_ids)) == len(run_ids), "one run, one event: a consumer keeps a dataset version per run"


def test_a_run_names_what_it_read_and_which_run_made_that(decided: Project) -> None:
    """All the way from the registered version to the partitions, by run ids alone."""
    found = {told["run"]["runId"]: told for told in committed(decided)}
    version = versions.find(decided.mirror, "alpha@v2")
    lock = yaml.safe_load(decided.mirror.read(version.commit, "dvc.lock") or b"")["stages"]
    told = versions.event_of(decided.mirror, version.ref)
    assert told is not None
    seen: dict[str, str] = {}
    waiting = [told]
    while waiting:
        for read in waiting.pop()["run"]["facets"][FACET]["reads"]:
            maker = found[read["run"]]
            outputs = {item["name"]: item["facets"]["version"]["datasetVersion"] for item in maker["outputs"]}
            assert outputs[read["dataset"]] == read["version"], "the run that is named made this very version"
            seen[read["dataset"]] = read["version"]
            waiting.append(maker)
    expected = {
        event.dataset_name(out["path"]): out["md5"]
        for address, entry in lock.items()
        if address.endswith("@alpha")
        for out in entry["outs"]
    }
    expected |= {
        dep["path"]: dep["md5"] for dep in lock["features@alpha"]["deps"] if dep["path"].startswith("data/raw/")
    }
    assert set(seen) - set(expected) == {"snapshot/alpha"}
    assert {name: seen[name] for name in expected if name in seen} == {
        name: md5 for name, md5 in expected.items() if name in seen
    }
    assert {"data/raw/events", "features/alpha", "models/alpha.skops", "metrics/alpha.json"} <= set(seen)


def test_outputs_say_what_they_are(trained: Project) -> None:
    found = by_job(trained)
    outputs = {item["name"]: item for told in found.values() for item in told["outputs"]}
    model = outputs["models/alpha.skops"]
    assert model["facets"]["storage"]["fileFormat"] == "skops"
    assert model["facets"]["dataSource"]["uri"] == "dvc:storage", "a folder of a machine is named, not told"
    assert model["outputFacets"]["outputStatistics"]["fileCount"] == 1
    raw = outputs["data/raw/events"]
    columns = raw["facets"]["dataQualityMetrics"]["columnMetrics"]
    assert [field["name"] for field in raw["facets"]["schema"]["fields"]] == ["moment", "name", "size"]
    assert columns["size"]["nullCount"] == 0 and columns["size"]["min"] <= columns["size"]["quantiles"]["0.5"]
    assert raw["outputFacets"]["outputStatistics"]["rowCount"] == raw["facets"]["dataQualityMetrics"]["rowCount"]
    registered = outputs["registry/alpha"]["facets"]
    assert registered["version"]["datasetVersion"] == "alpha@v1"
    assert re.fullmatch(
        r"alpha@v1 = commit \w{8}, code \w{8}, data \w{8} \(2013-01 \.\. 2013-03\)",
        registered["documentation"]["description"],
    )
    assert registered[FACET]["metrics"] == versions.find(trained.mirror, "alpha@v1").metrics
    sql = found["ingest.ingest"]["job"]["facets"]["sql"]["query"]
    assert sql == "SELECT moment, name, size FROM events WHERE moment >= :start AND moment < :end"
    location = found["alpha.train"]["job"]["facets"]["sourceCodeLocation"]
    assert location["version"] == found["alpha.train"]["run"]["facets"][FACET]["commit"]


def test_who_owns_it_and_where_its_code_is(project: Project) -> None:
    project.edit_params(lambda params: params["models"]["alpha"].update(owner="team:arrivals"))
    address = "https://somebody:secret@git.example.org/team/project.git"
    project.mirror.out("--git-dir", str(project.root / ".git"), "remote", "add", "origin", address)
    commit = project.stage("alpha", "one", "validate", project.snapshot("alpha", "one")).commit
    told = json.loads(project.mirror.read(commit, event.path("alpha", "validate")) or b"")
    check(told)
    owners = [told["job"]["facets"]["ownership"], told["outputs"][0]["facets"]["ownership"]]
    assert [item["owners"] for item in owners] == [[{"name": "team:arrivals"}]] * 2
    location = told["job"]["facets"]["sourceCodeLocation"]
    assert location["repoUrl"] == "https://git.example.org/team/project.git"
    assert location["url"] == (
        f"https://git.example.org/team/project/blob/{told['run']['facets'][FACET]['commit']}/{location['path']}"
    )


def test_a_failure_is_told_with_the_program_s_own_traceback_and_no_path_of_the_machine(project: Project) -> None:
    project.act("alpha", "validate", "raise")
    commit = project.snapshot("alpha", "one")
    with pytest.raises(StageFailed):
        project.stage("alpha", "one", "validate", commit)
    told = by_job(project)["alpha.validate"]
    check(told)
    assert told["eventType"] == "FAIL" and told["outputs"] == []
    message = told["run"]["facets"]["errorMessage"]
    trace = message["stackTrace"]
    assert trace.startswith("Traceback (most recent call last):")
    assert 'File "./pipeline/stage.py", line ' in trace and trace.endswith("RuntimeError: bad luck in the stage")
    assert "the full log is var/logs/alpha/one/validate.log" in message["message"]


CHECKS = [
    {"dataset": "events", "partition": month, "column": column, "check": check, "passed": passed, "detail": detail}
    for month, passed, detail in (("2013-01", True, ""), ("2013-02", False, "3 are not, such as -1"))
    for column, check in ((None, "has rows"), ("size", "is positive"))
]


@pytest.mark.parametrize("fails", [False, True])
def test_each_check_stands_on_the_dataset_that_it_judged(project: Project, fails: bool) -> None:
    project.report("alpha", {"passed": not fails, "checks": CHECKS}, fails)
    commit = project.snapshot("alpha", "one")
    if fails:
        with pytest.raises(StageFailed):
            project.stage("alpha", "one", "validate", commit)
    else:
        project.stage("alpha", "one", "validate", commit)
    told = by_job(project)["alpha.validate"]
    check(told)
    assert told["eventType"] == ("FAIL" if fails else "COMPLETE")
    raw = next(item for item in told["inputs"] if item["name"] == "data/raw/events")
    assertions = raw["inputFacets"]["dataQualityAssertions"]["assertions"]
    assert {(item.get("column"), item["assertion"], item["success"]) for item in assertions} == {
        (None, "has rows", False),
        ("size", "is positive", False),
    }
    assert assertions[0]["actual"] == "2013-02: 3 are not, such as -1"
    assert assertions[0]["params"] == {"partitions": 2, "failed": ["2013-02"]}


def test_a_task_says_which_dag_run_it_belongs_to_and_for_which_date(project: Project) -> None:
    parent = Parent("alpha", DAG_RUN, day("2013-04-01"))
    task = Task(Run("alpha", "one"), "snapshot", "22222222-2222-4222-8222-222222222222", 1, parent)
    commit = runs.snapshot(project.settings, task)
    told = json.loads(project.mirror.read(commit, event.path("alpha", "snapshot")) or b"")
    check(told)
    run = told["run"]
    assert run["runId"] == task.lineage_run_id
    assert run["facets"]["parent"]["run"]["runId"] == DAG_RUN
    assert run["facets"]["parent"]["job"]["name"] == "alpha"
    assert run["facets"]["nominalTime"]["nominalStartTime"] == "2013-04-01T00:00:00+00:00"


def test_each_commit_of_an_ingestion_is_a_run_of_its_own(empty_project: Project) -> None:
    for month in ("2013-01", "2013-02"):
        empty_project.fill(month)
    call = ingest.IngestCall(day("2013-03-01"), None, "ingest", DAG_RUN)
    ingest.ingest(empty_project.settings, call, empty_project.fetch, lambda _: None)
    first, second = (told["run"]["runId"] for told in committed(empty_project))
    assert first == DAG_RUN != second


def test_a_promotion_tells_why_and_of_which_version(decided: Project) -> None:
    found = by_job(decided)
    told = found["alpha.promote"]["run"]["facets"][FACET]
    assert (told["version"], told["because"].split(), told["assignment"]) == (
        "alpha@v2",
        ["it", "was", "better"],
        "alpha#champion#4",
    )
    assert told["reads"] == [
        {
            "dataset": "registry/alpha",
            "version": "alpha@v2",
            "run": (versions.event_of(decided.mirror, "refs/tags/alpha@v2") or {})["run"]["runId"],
        }
    ]
    assert found["alpha.rollback"]["run"]["facets"][FACET]["version"] == "alpha@v1"


def test_no_event_holds_a_path_of_the_machine_or_its_name(
    decided: Project, tmp_path_factory: pytest.TempPathFactory
) -> None:
    decided.act("alpha", "evaluate", "raise")
    with pytest.raises(StageFailed):
        decided.stages("alpha", "fails")
    text = "\n".join(json.dumps(told) for told in committed(decided))
    everything = session_folder(tmp_path_factory)  # the project has lived in several folders
    assert decided.root.is_relative_to(everything)
    for secret in (str(everything), str(Path.home()), platform.node()):
        assert secret not in text


def test_two_clones_in_different_folders_name_the_same_things(project: Project, tmp_path: Path) -> None:
    other = project.copy(tmp_path / "elsewhere" / "deep")
    told = []
    for site in (project, other):
        commit = site.stage("alpha", "one", "validate", site.snapshot("alpha", "one")).commit
        told.append(json.loads(site.mirror.read(commit, event.path("alpha", "validate")) or b""))
    timeless = [json.dumps(item["inputs"] + item["outputs"] + [item["job"]["name"]], sort_keys=True) for item in told]
    assert re.sub(r'"\w{12}\+', '"', timeless[0]) == re.sub(r'"\w{12}\+', '"', timeless[1])


def test_what_goes_out_live_has_no_input_and_is_not_taken_for_what_git_says(trained: Project) -> None:
    told = by_job(trained)["alpha.evaluate"]
    outputs, run, job = facets.live(told)
    assert [output.name for output in outputs] == [item["name"] for item in told["outputs"]]
    assert FACET not in run and {"parent", "nominalTime", "processing_engine"}.isdisjoint(run)
    content = Serde.to_dict(run["retrace_live"])
    assert content["source"] == "live" and content["commit"] == told["run"]["facets"][FACET]["commit"]
    assert Serde.to_dict(outputs[0])["facets"] == told["outputs"][0]["facets"]
    assert {name: Serde.to_dict(facet) for name, facet in job.items()} == told["job"]["facets"]


def test_a_dataset_of_another_version_than_the_known_one_has_no_known_maker() -> None:
    known = {"features/alpha": Read("features/alpha", "a", "run")}
    wanted = {"features/alpha": "b", "models/alpha.skops": "c"}
    assert list(event.reads_of(known, wanted)) == [
        Read("features/alpha", "b", None),
        Read("models/alpha.skops", "c", None),
    ]
