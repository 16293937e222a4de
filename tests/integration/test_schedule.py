"""The project's own DAGs under the real scheduler: new data, backfills, what is retried and what is not."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from airflow_server import AirflowServer, Run
from command import left_behind, served
from projects import STAGES, Project, day

from retrace.airflow.links import MlflowLink
from retrace.lineage import event
from retrace.runs import COMPLETE, chain
from retrace.verdicts import IDENTICAL, newest
from retrace.versions import Version, champions, versions

PATIENCE = 300.0
TASKS = {"snapshot", *STAGES, "register", "gate", "publish", "cleanup"}
# A run's date -> the end of the data that was known then.
BACKFILLED = {
    "2013-02-03 07:00": "2013-02-01",
    "2013-03-03 07:00": "2013-03-01",
    "2013-04-03 07:00": "2013-04-01",
}


class Scene:
    """A scheduler that has lived through ingestion, retrains, a backfill, an audit and a doctor's visit; tests look at
    what it left.

    alpha asks for new data, gamma for new data and a date in each month, beta for nothing.
    """

    def __init__(self, project: Project, server: AirflowServer) -> None:
        self.project, self.server = project, server
        server.wait_for_dags("ingest", "alpha", "beta", "gamma", "audit", "doctor")
        self.import_errors = server.import_errors()
        server.unpause("ingest", "alpha", "beta", "gamma")
        self.wait("the scheduled run to take its data", self.scheduled_has_its_data)
        with sqlite3.connect(project.source, isolation_level=None) as source:
            source.execute("BEGIN EXCLUSIVE")
            self.ingested = server.trigger("ingest", conf={"until": "2013-06-01"})
            self.failed = server.trigger("beta")
            self.wait("ingest", lambda: self.ingest_task()["state"] == "up_for_retry")
            self.first_try = self.ingest_task()
            source.execute("ROLLBACK")
        self.wait("the retrains on new data", lambda: all(self.ended(name, "asset_triggered") for name in self.asked))
        self.repeated = server.trigger("ingest", conf={"until": "2013-06-01"})
        server.backfill("gamma", day("2013-02-01"), day("2013-04-30"), max_active_runs=2)
        self.wait("the backfill", lambda: len(self.ended("gamma", "backfill")) == len(BACKFILLED))
        server.wait_for_runs("ingest", 2, PATIENCE)
        server.wait_for_runs("beta", 1, PATIENCE)
        for name in ("audit", "doctor"):
            server.unpause(name)
            server.wait_for_runs(name, 1, PATIENCE)

    asked = ("alpha", "gamma")

    def wait(self, what: str, condition: Any) -> None:
        self.server.wait(condition, PATIENCE, what)

    def ended(self, dag: str, kind: str) -> list[Run]:
        return [run for run in self.server.runs(dag) if run.run_type == kind and run.state in ("success", "failed")]

    def scheduled_has_its_data(self) -> bool:
        runs = [run for run in self.server.runs("gamma") if run.run_type == "scheduled"]
        return any(self.server.task_states("gamma", run.run_id).get("snapshot") == "success" for run in runs)

    def ingest_task(self) -> dict[str, Any]:
        return self.server.tasks("ingest", self.ingested)["ingest"]

    def versions(self, model: str) -> dict[str, Version]:
        """Run id -> the version that it made."""
        return {version.run_id: version for version in versions(self.project.mirror, model)}


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory, environments: Path, seeded: Path) -> Iterator[Scene]:
    project = served(tmp_path_factory.mktemp("schedule") / "project", environments, seeded)
    project.edit_params(
        lambda params: params["models"].update(
            gamma=params["models"]["alpha"] | {"schedule": {"cron": "0 7 3 * *", "data": True}}
        )
    )
    project.act("beta", "features", "exit")
    for month in ("2013-04", "2013-05"):
        project.fill(month)
    project.ingest("2013-05-01")
    environ = {
        "AIRFLOW_CONN_EVENTS": json.dumps({"conn_type": "sqlite", "host": str(project.source)}),
        "AIRFLOW__OPENLINEAGE__NAMESPACE": "retrace",
    }
    with AirflowServer(project.settings.var, project.root / "dags", environ) as server:
        yield Scene(project, server)


def through(version: Version) -> str:
    return f"{version.through:%Y-%m-%d}"


def test_new_data_sets_off_the_retrains_of_exactly_the_models_that_asked_for_it(scene: Scene) -> None:
    assert scene.import_errors == []
    for model in scene.asked:
        (run,) = scene.ended(model, "asset_triggered")
        assert (run.state, run.logical_date) == ("success", None)
        (event_,) = scene.server.asset_events(model, run.run_id)
        assert event_["source_run_id"] == scene.ingested
        assert event_["extra"]["commit"] == scene.project.mirror.resolve("refs/heads/data")
        version = scene.versions(model)[run.run_id]
        assert through(version) == "2013-06-01"
        assert champions(scene.project.mirror)[model, "champion"] == version
        assert scene.server.task_states(model, run.run_id) == dict.fromkeys(TASKS, "success")
    assert {run.run_type for run in scene.server.runs("beta")} == {"manual"}


def test_an_ingestion_that_finds_nothing_new_sets_off_nothing(scene: Scene) -> None:
    assert scene.server.task_states("ingest", scene.repeated) == {"ingest": "skipped"}
    assert [len(scene.ended(model, "asset_triggered")) for model in scene.asked] == [1, 1]


def test_a_scheduled_run_trains_on_the_newest_data_of_its_date(scene: Scene) -> None:
    (run,) = scene.ended("gamma", "scheduled")
    assert run.state == "success"
    version = scene.versions("gamma")[run.run_id]
    assert (version.number, through(version)) == (1, "2013-05-01")


def test_a_backfill_makes_a_version_a_date_of_what_was_known_then_one_at_a_time_and_promotes_none(
    scene: Scene,
) -> None:
    runs = {run.run_id: run for run in scene.ended("gamma", "backfill")}
    assert [run.state for run in runs.values()] == ["success"] * len(BACKFILLED)
    known = scene.versions("gamma")
    dates = {str(run.logical_date)[:16]: through(known[run.run_id]) for run in runs.values()}
    assert dates == BACKFILLED
    assert sorted(known[run_id].number for run_id in runs) == [3, 4, 5]
    assert champions(scene.project.mirror)["gamma", "champion"].number == 2

    held = []
    for run_id in runs:
        tasks = scene.server.tasks("gamma", run_id)
        assert {facts["try_number"] for facts in tasks.values()} == {1}, "waiting for one's turn uses up no retry"
        held.append((moment(tasks["snapshot"]["end_date"]), moment(tasks["cleanup"]["start_date"])))
    held.sort()
    assert all(earlier[1] < later[0] for earlier, later in zip(held, held[1:], strict=False)), held


def moment(text: str) -> datetime:
    return datetime.fromisoformat(text)


def test_only_a_commit_id_goes_from_task_to_task(scene: Scene) -> None:
    (run,) = scene.ended("gamma", "asset_triggered")
    version = scene.versions("gamma")[run.run_id]
    handed_on = {link.stage.partition("@")[0]: link.commit for link in chain(scene.project.mirror, version.commit)}
    assert set(handed_on) == {"snapshot", *STAGES}
    handed_on |= dict.fromkeys(("register", "gate", "publish"), version.commit)
    told = scene.server.xcoms("gamma", run.run_id)
    link = told["publish"].pop(MlflowLink().xcom_key)
    assert link is None or link.startswith("http"), "the page that the task links to"
    assert told == {task: {"return_value": commit} for task, commit in handed_on.items()}


def test_what_may_pass_is_retried_and_bad_data_is_not(scene: Scene) -> None:
    assert (scene.first_try["state"], scene.first_try["try_number"]) == ("up_for_retry", 1)
    assert (scene.ingest_task()["state"], scene.ingest_task()["try_number"]) == ("success", 2)

    (run,) = scene.server.runs("beta")
    tasks = scene.server.tasks("beta", run.run_id)
    assert run.state == "failed"
    assert (tasks["features"]["state"], tasks["features"]["try_number"]) == ("failed", 1)
    assert (tasks["train"]["state"], tasks["publish"]["state"]) == ("upstream_failed", "upstream_failed")
    assert tasks["cleanup"]["state"] == "success"
    assert scene.versions("beta") == {}
    mirror = scene.project.mirror
    head = mirror.fetch_ref(f"refs/runs/beta/{run.run_id}".replace(":", "=3A").replace("+", "=2B").replace(".", "=2E"))
    assert head is not None
    assert [(link.stage, link.state) for link in chain(mirror, head) if link.state != COMPLETE] == [
        ("features@beta", "failed")
    ]


def test_every_run_cleans_up(scene: Scene) -> None:
    assert list(scene.project.settings.workspaces.iterdir()) == []
    assert [item for item in left_behind(scene.project) if item.startswith("refs/locks/")] == []


def test_the_audit_rebuilds_what_is_due_on_its_schedule(scene: Scene) -> None:
    (run,) = scene.server.runs("audit")
    assert (run.run_type, run.state) == ("scheduled", "success")
    assert scene.server.task_states("audit", run.run_id) == dict.fromkeys(("alpha", "beta", "gamma"), "success")
    found = newest(scene.project.mirror, versions(scene.project.mirror))
    champion = champions(scene.project.mirror)["gamma", "champion"].name
    assert {name: verdict.verdict for name, verdict in found.items()} == dict.fromkeys(
        ("alpha@v1", "gamma@v1", champion), IDENTICAL
    )


def test_the_doctor_finds_all_well_on_its_schedule(scene: Scene) -> None:
    (run,) = scene.server.runs("doctor")
    assert (run.run_type, run.state) == ("scheduled", "success")


def test_the_commit_names_the_run_that_airflow_told_of(scene: Scene) -> None:
    lines = (scene.project.settings.var / "lineage/events.jsonl").read_text().splitlines()
    told = [json.loads(line) for line in lines]
    (run,) = scene.ended("gamma", "asset_triggered")
    version = scene.versions("gamma")[run.run_id]
    mirror = scene.project.mirror
    for stage in STAGES:
        content = mirror.read(version.commit, event.path("gamma", stage))
        assert content is not None
        committed = json.loads(content)["run"]["runId"]
        events = [item for item in told if item["run"]["runId"] == committed]
        assert {item["job"]["name"] for item in events} == {f"gamma.{stage}"}
        assert [item["eventType"] for item in events] == ["START", "COMPLETE"]
        assert events[0]["run"]["facets"]["airflow"]["dagRun"]["run_id"] == run.run_id
