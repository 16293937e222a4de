"""Lineage from end to end: the command, Airflow, DVC and git, and a consumer that behaves, and errs, as Marquez does.

One project lives through everything that can happen to a consumer; after each of it the consumer is asked which raw
data went into every version, and must say what git says.
"""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml
from command import Command, Done, hold, left_behind, let_go, retrace, served, until, wait_for_stage
from consumer import Consumer
from events import check, check_live, committed
from projects import ROOT, STAGES, Project, processes_of

from retrace.lineage.sync import sync_lineage
from retrace.runs import COMPLETE, chain
from retrace.versions import Version, champions, event_of, find, versions

Event = dict[str, Any]

KEY = "open-sesame-6f1c"
NAMESPACE = "retrace"
TASKS = ("snapshot", *STAGES, "register", "gate")
FINAL = {"COMPLETE": "COMPLETED", "FAIL": "FAILED"}


@dataclass
class Scene:
    """A project, and the consumer that its environment names."""

    project: Project
    consumer: Consumer
    seen: list[Event] = field(default_factory=list)
    rejected_job: str | None = None
    """The consumer answers 500 to this job's events."""

    @property
    def environ(self) -> dict[str, str]:
        return {"OPENLINEAGE_URL": self.consumer.url, "OPENLINEAGE_API_KEY": KEY}

    def start(self, *arguments: str, **environ: str) -> Command:
        return Command(self.project.root, *arguments, **{**self.environ, **environ})

    def run(self, *arguments: str, **environ: str) -> Done:
        return retrace(self.project, *arguments, **{**self.environ, **environ})

    def good(self, *arguments: str, **environ: str) -> list[str]:
        """Run a command that must succeed; what it said of lineage."""
        done = self.run(*arguments, **environ)
        assert (done.code, done.err) == (0, ""), done
        return lineage_lines(done)

    def ingest(self, month: str, end: str) -> list[str]:
        """Bring a further month in."""
        self.project.fill(month)
        return self.good("ingest", "--until", end)

    def wait_for_live_events(self) -> None:
        """Wait until everything that tasks told has left the machine, one way or the other."""
        spool = self.project.settings.var / "lineage/spool"
        until(lambda: not list(spool.glob("*.json")), "the sender to empty the spool")

    def sync(self, **environ: str) -> list[str]:
        """What `retrace sync` does of lineage; what it says."""
        variables = {**self.environ, **environ}
        return list(sync_lineage(self.project.settings, self.project.mirror, lambda _: None, variables))

    def committed(self) -> dict[str, Event]:
        """Run -> its event in git."""
        found = list(committed(self.project))
        assert len({event["run"]["runId"] for event in found}) == len(found)
        return {event["run"]["runId"]: event for event in found}

    def asserted(self) -> None:
        """The consumer answers every question as git does."""
        answers_as_git_does(self, self.consumer)


def answers_as_git_does(scene: Scene, consumer: Consumer) -> None:
    """Runs and how they ended, what each was bound to, which data is current, and the raw data of every version."""
    told = scene.committed()
    known = consumer.snapshot(committed_only=True)
    assert {run: state for run, (_, state) in known["runs"].items()} == {
        run: FINAL[event["eventType"]] for run, event in told.items()
    }
    assert known["bindings"] == {
        run: sorted(((NAMESPACE, read["dataset"]), read["run"]) for read in reads_of(event))
        for run, event in told.items()
    }
    git = scene.project.mirror
    newest = json.loads(git.read("refs/heads/data", "data/raw/ingest.json") or b"")
    assert known["current"][NAMESPACE, "data/raw/events"] == newest["run"]["runId"]
    for version in versions(git):
        assert consumer.raw_data_of(f"registry/{version.model}", version.name) == raw_data(scene.project, version)


def raw_data(project: Project, version: Version) -> dict[str, str]:
    """What git says: the pointer of DVC at the version's commit."""
    pointer = yaml.safe_load(project.mirror.read(version.commit, "data/raw/events.dvc") or b"")
    return {"data/raw/events": pointer["outs"][0]["md5"]}


def reads_of(event: Event) -> list[dict[str, Any]]:
    return list(event["run"]["facets"]["retrace"]["reads"])


def lineage_lines(done: Done) -> list[str]:
    return [line for line in done.out.splitlines() if line.startswith("lineage: ")]


def is_live(event: Event) -> bool:
    """Whether Airflow's integration sent it, and not a sync."""
    return "/airflow/" in event["producer"]


def live(events: list[Event], job: str) -> dict[str, list[Event]]:
    """Run -> what was told of it while it went on."""
    found: dict[str, list[Event]] = defaultdict(list)
    for event in events:
        if is_live(event) and event["job"]["name"] == job:
            found[event["run"]["runId"]].append(event)
    return found


def strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from strings(item)
    elif isinstance(value, list):
        for item in value:
            yield from strings(item)


def retrained(project: Project, model: str) -> list[tuple[str, str]]:
    """Stage and state of each commit of the model's last run."""
    refs = [ref for ref in project.refs() if ref.startswith(f"refs/runs/{model}/")]
    head = project.mirror.resolve(max(refs))
    assert head is not None
    return [(link.stage, link.state) for link in chain(project.mirror, head)]


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory, environments: Path, seeded: Path) -> Iterator[Scene]:
    """Two ingestions, of which the first told nobody, and two versions of alpha, while the consumer is there."""
    project = served(tmp_path_factory.mktemp("lineage") / "ann/project", environments, seeded)
    with Consumer() as consumer:
        consumer.api_key = KEY
        made = Scene(project, consumer)
        consumer.refuse(lambda event: event["job"]["name"] == made.rejected_job)
        sent = f"events sent to {consumer.url}; everything is there"
        project.ingest("2013-03-01")
        assert made.good("retrain", "alpha")[-1] == f"lineage: 9 {sent}", "two months, and the run's seven"
        made.good("ingest", "--until", "2013-04-01")
        assert made.good("retrain", "alpha")[-1] == f"lineage: 7 {sent}"
        made.wait_for_live_events()
        made.seen = list(consumer.received)
        yield made
    until(lambda: processes_of(project.root) == [], "the sender to end")


@pytest.fixture(autouse=True)
def recovered(scene: Scene) -> Iterator[None]:
    """A test that fails leaves no outage behind."""
    yield
    scene.rejected_job = None
    scene.consumer.hang = False
    scene.consumer.up()


def test_a_consumer_that_is_there_knows_all_when_the_command_ends(scene: Scene) -> None:
    scene.asserted()
    assert {version.name for version in versions(scene.project.mirror)} == {"alpha@v1", "alpha@v2"}
    first, second = (raw_data(scene.project, version) for version in versions(scene.project.mirror))
    assert first != second, "the question is worth asking"


def test_what_airflow_tells_live_and_what_git_keeps_are_the_same_runs(scene: Scene) -> None:
    told = scene.committed().values()
    for job in (f"alpha.{task}" for task in TASKS):
        found = live(scene.seen, job)
        assert (
            set(found) == {event["run"]["runId"] for event in told if event["job"]["name"] == job} and len(found) == 2
        )
        for event_types in ([event["eventType"] for event in run] for run in found.values()):
            assert event_types == ["START", "COMPLETE"]
    ingestions = live(scene.seen, "ingest.ingest")
    assert len(ingestions) == 1 and ingestions.keys() <= {event["run"]["runId"] for event in told}
    for dag, number in (("alpha", 2), ("ingest", 1)):
        runs = live(scene.seen, dag)
        assert len(runs) == number and {event["eventType"] for run in runs.values() for event in run} >= {"COMPLETE"}
        parents = {event["run"]["facets"]["parent"]["run"]["runId"] for event in told if belongs_to(event, dag)}
        assert parents == set(runs), "a committed event hangs under the very run of the DAG"


def belongs_to(event: Event, dag: str) -> bool:
    return bool(event["run"]["facets"].get("parent", {}).get("job", {}).get("name") == dag)


def test_live_events_say_what_was_made_and_bind_nothing(scene: Scene) -> None:
    told = scene.committed()
    seen = [event for event in scene.seen if is_live(event)]
    assert all(not event["inputs"] for event in seen)
    for event in seen:
        assert "retrace" not in event["run"]["facets"], "a sync would take the run for held"
        if event["eventType"] == "START":
            assert not event["outputs"], "what is named too early stays behind when the run fails"
    for task in TASKS:
        for run in live(seen, f"alpha.{task}").values():
            facet = run[-1]["run"]["facets"]["retrace_live"]
            own = told[run[-1]["run"]["runId"]]
            assert facet["source"] == "live" and facet["reads"] == reads_of(own)
            assert labels(run[-1]) == labels(own)
    assert labels(live(seen, "alpha.register").popitem()[1][-1]).keys() == {"registry/alpha"}


def labels(event: Event) -> dict[str, str]:
    return {item["name"]: item["facets"]["version"]["datasetVersion"] for item in event["outputs"]}


def test_every_event_is_one_of_openlineage_and_tells_nothing_of_the_machine(scene: Scene) -> None:
    places = (str(scene.project.root), str(ROOT), f"{Path.home()}/", sys.prefix, tempfile.gettempdir(), "/ann/")
    host = re.compile(rf"(?<![\w.-]){re.escape(platform.node())}(?![\w-])")
    assert len(scene.seen) >= 60
    for event in scene.seen:
        if is_live(event) or event["eventType"] == "START":
            check_live(event)
        else:
            check(event)
        for text in strings(event):
            assert not any(place in text for place in places), text
            assert KEY not in text, text
            # Where Airflow says that its own page is: localhost, unless it is configured.
            assert not host.search(text.replace("http://localhost:8080/", "")), text


def test_the_consumers_key_is_in_no_file(scene: Scene) -> None:
    looked_at = 0
    for path in scene.project.root.rglob("*"):
        if path.is_file() and not path.is_symlink():
            assert KEY.encode() not in path.read_bytes(), path
            looked_at += 1
    assert looked_at > 200
    events = (scene.project.settings.var / "lineage/events.jsonl").read_text().splitlines()
    assert len(events) == len([event for event in scene.seen if is_live(event)])


def test_an_outage_of_everything_and_a_sync_that_is_killed_cost_nothing(scene: Scene) -> None:
    """Two models retrained at the same time while nobody listens; the sync afterwards is killed half-way."""
    scene.consumer.down()
    later = (
        f"lineage: the OpenLineage consumer at {scene.consumer.url} is not available (Connection refused);"
        " try again when it is; `retrace sync` tells it later, git has it all"
    )
    assert scene.ingest("2013-04", "2013-05-01") == [later]
    both = [scene.start("retrain", model) for model in ("alpha", "beta")]
    ended = [command.done() for command in both]
    assert [(done.code, done.err) for done in ended] == [(0, ""), (0, "")], ended
    # The two may end at once; only one of them can be the one that asks.
    said = [lineage_lines(done) for done in ended]
    assert [later] in said and all(len(lines) == 1 for lines in said), said
    scene.wait_for_live_events()

    scene.consumer.up()
    sync = scene.start("sync")
    scene.consumer.after(8, lambda: os.kill(sync.process.pid, signal.SIGKILL))
    assert sync.done().code == -signal.SIGKILL
    assert len(scene.committed()) - len(scene.consumer.snapshot(committed_only=True)["runs"]) > 0, (
        "it was in the middle"
    )
    done = scene.run("sync")
    assert (done.code, done.err) == (0, "")
    mlflow, *rest, last = done.out.splitlines()
    assert mlflow == "MLflow is up to date" and rest == []
    assert re.fullmatch(rf"lineage: \d+ events sent to {scene.consumer.url}(, .*)?; everything is there", last)
    scene.asserted()
    newest = [find(scene.project.mirror, name) for name in ("alpha@v3", "beta@v1")]
    assert raw_data(scene.project, newest[0]) == raw_data(scene.project, newest[1])

    posts = len(scene.consumer.received)
    again = scene.run("sync")
    assert (again.code, again.err) == (0, "")
    assert again.out.splitlines() == ["MLflow is up to date", f"lineage: {scene.consumer.url} is up to date"]
    assert len(scene.consumer.received) == posts
    with Consumer() as empty:
        scene.sync(OPENLINEAGE_URL=empty.url)
        assert empty.snapshot(committed_only=True) == scene.consumer.snapshot(committed_only=True)


def test_a_failed_stage_is_told_with_its_traceback_and_one_rejected_event_keeps_nothing_else_back(scene: Scene) -> None:
    scene.rejected_job = "alpha.features"
    scene.project.edit_params(
        lambda params: (
            params["models"]["alpha"]["features"].update(note="another"),
            params["models"]["alpha"]["evaluate"].update(action="raise"),
        )
    )
    failed = scene.run("retrain", "alpha")
    scene.project.act("alpha", "evaluate", None)
    ended_at_once_and_was_kept(scene.project, failed)
    scene.wait_for_live_events()
    told = [event for event in scene.consumer.accepted if event["job"]["name"] == "alpha.evaluate"]
    failures = [event for event in told if event["eventType"] == "FAIL"]
    assert [is_live(event) for event in failures] == [True, False], "while the run went on, and from git"
    assert len({event["run"]["runId"] for event in failures}) == 1
    for event in failures:
        message = event["run"]["facets"]["errorMessage"]
        assert "bad luck in the stage" in message["message"]
        assert 'raise RuntimeError("bad luck in the stage")' in message["stackTrace"], "the stage's own, not Airflow's"
        assert str(scene.project.root) not in json.dumps(event)
    aside = scene.project.settings.var / "lineage/rejected"
    rejected, rest = lineage_lines(failed)
    assert re.fullmatch(
        rf"lineage: 1 event rejected and set aside in {aside}, such as alpha\.features \([\w-]+\): the OpenLineage "
        rf"consumer at {scene.consumer.url} rejected the event \(status 500: .*refused for this test.*\)",
        rejected,
    )
    assert re.fullmatch(rf"lineage: \d events sent to {scene.consumer.url}.*(?<!everything is there)", rest)
    assert len(list(aside.iterdir())) == 1

    scene.rejected_job = None
    assert scene.sync()[-1].endswith("; everything is there")
    assert list(aside.iterdir()) == []
    scene.asserted()


def ended_at_once_and_was_kept(project: Project, failed: Done) -> None:
    """What a user sees of a stage that fails, and what is left of its run."""
    assert (failed.code, failed.err) == (1, "")
    steps = [line for line in failed.out.splitlines() if line.startswith("  ") and not line.startswith("      ")]
    *_, train, evaluate, last = steps
    assert train.startswith("    train ")
    assert evaluate.startswith("  ! evaluate  evaluate@alpha ended with code 1: RuntimeError: bad luck in the stage")
    log = project.settings.logs / "airflow.log"
    assert last == f"  alpha failed; what it had done is kept on its run's ref; Airflow's log: {log}"
    assert log.is_file()
    failures = [stage for stage, state in retrained(project, "alpha") if state != COMPLETE]
    assert failures == ["evaluate@alpha"], "one failure: Airflow did not try again"
    until(lambda: left_behind(project) == [], "the run and the sender to be gone")


def test_one_that_hangs_and_one_that_refuses_fail_no_retrain(scene: Scene) -> None:
    """What the user sees of both, and that the key is not shown."""
    scene.project.edit_params(lambda params: params["models"]["alpha"]["evaluate"].update(note="nobody listens"))
    scene.consumer.hang = True
    (hanging,) = scene.good("retrain", "alpha", RETRACE_PATIENCE="1")
    assert hanging == (
        f"lineage: the OpenLineage consumer at {scene.consumer.url} is not available (timed out);"
        " try again when it is; `retrace sync` tells it later, git has it all"
    )
    assert retrained(scene.project, "alpha")[-1] == ("gate@alpha", COMPLETE)
    scene.consumer.hang = False
    refusal = (
        f"the OpenLineage consumer at {scene.consumer.url} does not accept the credentials (status 401);"
        " correct OPENLINEAGE_API_KEY"
    )
    before = len(scene.consumer.received)
    (refused,) = scene.good("retrain", "beta", OPENLINEAGE_API_KEY="wrong-0815")
    assert refused == f"lineage: {refusal}; `retrace sync` tells it later, git has it all"
    done = scene.run("sync", OPENLINEAGE_API_KEY="wrong-0815")
    assert (done.code, done.out, done.err) == (1, "MLflow is up to date\n", f"error: {refusal}\n")
    scene.wait_for_live_events()
    assert not [event for event in scene.consumer.received[before:] if event["job"]["name"].startswith("beta")]
    log = (scene.project.settings.logs / "lineage.log").read_text()
    assert "timed out" in log and "status 401" in log
    assert "wrong-0815" not in log and KEY not in log
    assert scene.sync()[-1].endswith("; everything is there")
    scene.asserted()


def test_a_killed_backfill_goes_on_as_the_same_runs_and_old_data_stays_old(scene: Scene) -> None:
    project = scene.project
    project.act("beta", "train", "wait")
    hold(project, "beta")
    command = scene.start("retrain", "beta", "--as-of", "2013-03-01")
    stage = wait_for_stage(project, "beta")
    os.kill(command.process.pid, signal.SIGKILL)
    command.done()
    until(
        lambda: str(stage) not in os.listdir("/proc") and processes_of(project.root) == [], "the processes to be gone"
    )
    let_go(project, "beta")
    before = len(scene.consumer.received)
    done = scene.run("retrain", "beta", "--as-of", "2013-03-01")
    going_on, retrain, *_ = done.out.splitlines()
    assert done.code == 0 and "which was killed" in going_on and retrain == "retrain beta as of 2013-03-01"
    assert re.search(r"\n +gate +beta@v2 not promoted: ", done.out)
    assert retrained(project, "beta") == [
        ("snapshot", COMPLETE),
        *((f"{name}@beta", COMPLETE) for name in STAGES),
        ("gate@beta", COMPLETE),
    ]
    scene.wait_for_live_events()
    scene.asserted()
    newest = versions(project.mirror, "beta")[-1]
    assert newest.name == "beta@v2" and newest.through is not None and f"{newest.through:%Y-%m-%d}" == "2013-03-01"
    validation = json.loads(project.mirror.read(newest.commit, "reports/beta/validation.json") or b"")
    assert validation["partitions"] == ["2013-01.parquet", "2013-02.parquet"]
    assert champions(project.mirror)["beta", "champion"].name == "beta@v1"
    (first,) = (version for version in versions(project.mirror) if version.name == "alpha@v1")
    assert raw_data(project, newest) == raw_data(project, first) != raw_data(project, find(project.mirror, "beta@v1"))
    assert before < len(scene.consumer.received)
    told = scene.committed().values()
    for task in TASKS:
        own = [event["run"]["runId"] for event in told if event["job"]["name"] == f"beta.{task}"][-1]
        events = live(scene.consumer.received, f"beta.{task}")[own]
        assert events[-1]["eventType"] == "COMPLETE" and events[0]["eventType"] == "START"
    with Consumer() as empty:
        scene.sync(OPENLINEAGE_URL=empty.url)
        assert empty.snapshot(committed_only=True) == scene.consumer.snapshot(committed_only=True)


def test_a_persons_decisions_are_told_and_an_emptied_mlflow_is_written_again(scene: Scene) -> None:
    project = scene.project
    before = mlflow_says(project)
    assert len(before["versions"]) == len(versions(project.mirror)) and before["aliases"]
    assert scene.good("promote", "beta@v2", "--because", "January was best") == []
    assert scene.good("rollback", "beta", "--because", "it was not") == []
    assert mlflow_says(project) == before
    shutil.rmtree(project.settings.var / "mlflow")

    done = scene.run("sync")
    assert (done.code, done.err) == (0, "")
    written = [f"{version.model}: {version.name} written" for version in versions(project.mirror)]
    aliases = [f"{model}: champion -> v{number}" for (model, _), number in before["aliases"].items()]
    *registry, lineage = done.out.splitlines()
    assert sorted(registry) == sorted(written + aliases)
    assert re.fullmatch(rf"lineage: 2 events sent to {scene.consumer.url}(, .*)?; everything is there", lineage)
    assert mlflow_says(project) == before
    for version in versions(project.mirror):
        told = event_of(project.mirror, version.ref)
        assert told is not None
        assert before["versions"][version.name]["lineage.run_id"] == told["run"]["runId"]
        assert scene.consumer.get(f"/api/v1/jobs/runs/{told['run']['runId']}")["jobVersion"]["name"] == (
            f"{version.model}.register"
        )
    scene.asserted()
    decisions = {job: state for job, state in scene.consumer.snapshot()["runs"].values() if job[1] in DECISIONS}
    assert decisions == {(NAMESPACE, job): "COMPLETED" for job in DECISIONS}
    again = scene.run("sync")
    assert again.out.splitlines() == ["MLflow is up to date", f"lineage: {scene.consumer.url} is up to date"]
    assert mlflow_says(project) == before


DECISIONS = ("beta.promote", "beta.rollback")


def mlflow_says(project: Project) -> dict[str, Any]:
    """Versions with their numbers and tags, and who holds each alias."""
    from mlflow.tracking import MlflowClient

    client = MlflowClient(project.settings.mlflow, project.settings.mlflow)
    found = client.search_model_versions()
    return {
        "versions": {f"{item.name}@v{item.version}": dict(item.tags) for item in found},
        "aliases": {
            (model.name, alias): int(number)
            for model in client.search_registered_models()
            for alias, number in model.aliases.items()
        },
    }


# In a process of its own: Airflow reads its configuration while it is imported.
SYNC_DAG = """
import json
import sys
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace

from retrace.airflow import inprocess

root = Path(sys.argv[1])
with inprocess.quiet(root / "var/logs/airflow.log") as terminal:
    with inprocess.airflow(root / "var", root / "dags") as dags:
        result = inprocess.run_dag(dags["sync"], logical_date=datetime(2026, 1, 1, tzinfo=UTC))
        publish = dags["alpha"].get_task("publish")
        publish.commit = sys.argv[2]
        print(json.dumps({
            "state": result.state,
            "schedule": dags["sync"].timetable.expression,
            "links": {
                f"{dag.dag_id}.{task.task_id}": {
                    link.name: link.get_link(task, ti_key=SimpleNamespace(dag_id=dag.dag_id, task_id=task.task_id))
                    for link in task.operator_extra_links
                }
                for dag in dags.values()
                for task in dag.tasks
            },
        }), file=terminal)
"""


def sync_dag(scene: Scene, **environ: str) -> dict[str, Any]:
    """Run the DAG `sync` in a process of its own; how it ended, when it is due, and where each task's links lead."""
    version = find(scene.project.mirror, "alpha@v2")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("RETRACE_", "AIRFLOW_"))}
    done = subprocess.run(
        [sys.executable, "-P", "-c", SYNC_DAG, str(scene.project.root), version.commit],
        cwd=scene.project.root,
        env={**kept, "PYTHONPATH": str(ROOT), **scene.environ, **environ},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def test_the_dag_sync_fills_an_emptied_consumer_and_tasks_lead_to_marquez_and_mlflow(scene: Scene) -> None:
    scene.sync()
    before = scene.consumer.snapshot(committed_only=True)
    scene.consumer.empty()
    found = sync_dag(scene, RETRACE_MARQUEZ="http://marquez.example:3000/")
    assert found["state"] == "success" and found["schedule"] == "*/15 * * * *"
    assert scene.consumer.snapshot(committed_only=True) == before
    scene.asserted()
    tasks = [f"{model}.{task}" for model in ("alpha", "beta") for task in (*TASKS, "publish", "cleanup")]
    assert found["links"].keys() == {"ingest.ingest", "sync.sync", "doctor.doctor", "audit.alpha", "audit.beta", *tasks}
    for task, links in found["links"].items():
        page = f"http://marquez.example:3000/lineage/job/retrace/{task}?"
        assert links["Lineage in Marquez"].startswith(page)
        assert ("Version in MLflow" in links) is task.endswith(".publish")
    assert found["links"]["alpha.publish"]["Version in MLflow"] == "http://127.0.0.1:5000/#/models/alpha/versions/2"
    assert found["links"]["beta.publish"]["Version in MLflow"] == "", "it has brought none"
    known = {name for _, name in scene.consumer.snapshot()["jobs"]}
    assert {task for task in tasks if not task.endswith((".publish", ".cleanup"))} <= known, "the pages exist"


def test_the_dag_sync_fails_when_the_consumer_does_not_take_events_and_is_due_when_params_yaml_says(
    scene: Scene,
) -> None:
    scene.project.edit_params(lambda params: params.update(sync={"schedule": "5 * * * *"}))
    found = sync_dag(scene, OPENLINEAGE_API_KEY="wrong-0815")
    assert found["state"] == "failed" and found["schedule"] == "5 * * * *"
    assert all("Lineage in Marquez" not in links for links in found["links"].values())
    assert "wrong-0815" not in (scene.project.settings.logs / "airflow.log").read_text()
