"""Lineage brought up to git: whatever happened to the consumer, it gives git's answer in the end."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from consumer import Consumer
from histories import NAMESPACE, Event, History, Made, Retrain, as_file
from projects import ROOT

from retrace import lease
from retrace.config import Settings
from retrace.errors import TransientError
from retrace.git import Mirror
from retrace.lineage.consumer import ConsumerRefuses, ConsumerUnavailable
from retrace.lineage.history import Told, history, in_order
from retrace.lineage.sync import SyncBusy, sync_lineage

FINAL = {"COMPLETE": "COMPLETED", "FAIL": "FAILED"}
PROGRAM = """
import sys
from pathlib import Path
from retrace.config import Settings
from retrace.git import Mirror
from retrace.lineage.sync import sync_lineage
root, origin, url = sys.argv[1:]
settings = Settings.load(Path(root), {"RETRACE_ORIGIN": origin})
mirror = Mirror.open(settings.mirror, settings.origin)
for line in sync_lineage(settings, mirror, lambda _: None, {"OPENLINEAGE_URL": url}):
    print(line)
"""


@dataclass
class Machine:
    """Where `retrace sync` is run: a folder with a mirror and a journal of its own."""

    root: Path
    history: History
    consumer: Consumer
    progress: list[str] = field(default_factory=list)
    patience: float = 10.0

    @property
    def settings(self) -> Settings:
        environ = {"RETRACE_ORIGIN": str(self.history.origin), "RETRACE_PATIENCE": str(self.patience)}
        return Settings.load(self.root, environ)

    @property
    def mirror(self) -> Mirror:
        return Mirror.open(self.settings.mirror, self.settings.origin)

    def told(self) -> list[Told]:
        """What is read from git."""
        self.history.save()
        return list(history(self.mirror).events)

    def sync(self, **environ: str) -> list[str]:
        """Run it; what it said."""
        self.history.save()
        variables = {"OPENLINEAGE_URL": self.consumer.url, **environ}
        return list(sync_lineage(self.settings, self.mirror, self.progress.append, variables))

    def in_process(self) -> subprocess.Popen[str]:
        """The same in a process of its own."""
        self.history.save()
        command = [sys.executable, "-c", PROGRAM, str(self.root), str(self.history.origin), self.consumer.url]
        return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    def posts(self, **environ: str) -> int:
        """How many events a sync posts."""
        before = len(self.consumer.received)
        self.sync(**environ)
        return len(self.consumer.received) - before


@pytest.fixture
def consumer() -> Iterator[Consumer]:
    with Consumer() as made:
        yield made


@pytest.fixture
def past(tmp_path: Path) -> History:
    """Two datasets, a version of `late`, newer data, another version."""
    made = History(tmp_path / "origin.git")
    made.ingest(flights="f1", weather="w1")
    made.begin("late").finish()
    made.ingest(flights="f2")
    made.begin("late").finish()
    return made


@pytest.fixture
def machine(tmp_path: Path, past: History, consumer: Consumer) -> Machine:
    return Machine(tmp_path / "machine", past, consumer)


def expected_bindings(past: History) -> dict[str, list[tuple[tuple[str, str], str]]]:
    return {
        run_id: sorted(((NAMESPACE, read["dataset"]), read["run"]) for read in reads_of(event))
        for run_id, event in past.events.items()
    }


def reads_of(event: Event) -> list[dict[str, Any]]:
    return list(event["run"]["facets"]["retrace"]["reads"])


def expected_current(past: History) -> dict[tuple[str, str], str]:
    """Of each dataset the run that wrote it last, in a history that was told in causal order."""
    return {(NAMESPACE, output["name"]): run_id for run_id, event in past.events.items() for output in event["outputs"]}


def answers_as_git_does(consumer: Consumer, past: History) -> None:
    """Everything that can be asked: each run and its state and start, each binding, what is current, each version."""
    known = consumer.snapshot(committed_only=True)
    assert {run: state for run, (_, state) in known["runs"].items()} == {
        run: FINAL[event["eventType"]] for run, event in past.events.items()
    }
    assert known["bindings"] == expected_bindings(past)
    assert known["current"] == expected_current(past)
    for run_id, event in past.events.items():
        started = consumer.get(f"/api/v1/jobs/runs/{run_id}")["startedAt"]
        assert datetime.fromisoformat(started) == datetime.fromisoformat(event["run"]["facets"]["retrace"]["startedAt"])
    for version in past.versions:
        dataset = f"registry/{version.partition('@')[0]}"
        assert consumer.raw_data_of(dataset, version) == past.raw_data_of(version)


def live(event: Event, kind: str, **changes: Any) -> bytes:
    """What Airflow's integration sends of a run while it goes on: outputs at its end, never inputs."""
    told = json.loads(json.dumps(event))
    facts = told["run"]["facets"].pop("retrace")
    told["run"]["facets"]["retrace_live"] = {"source": "live"}
    told |= {"eventType": kind, "inputs": [], "eventTime": facts["startedAt"] if kind == "START" else told["eventTime"]}
    if kind != "COMPLETE":
        told["outputs"] = []
    return json.dumps(told | changes).encode()


def stage_events(past: History, job: str) -> list[Event]:
    return [event for event in past.events.values() if event["job"]["name"] == job]


def ids(past: History, job: str) -> list[str]:
    return [event["run"]["runId"] for event in stage_events(past, job)]


def first_data(past: History) -> dict[str, Made]:
    """The raw data of the first run."""
    return {
        read["dataset"]: Made(read["version"], read["run"]) for read in reads_of(stage_events(past, "late.snapshot")[0])
    }


def without(past: History, run_id: str) -> History:
    """The history as if one event had not been."""
    return replace(past, events={run: event for run, event in past.events.items() if run != run_id})


# What git tells


def test_every_event_of_git_is_told_once_a_producer_before_its_readers(machine: Machine, past: History) -> None:
    past.promote("late", "late@v1")
    told = machine.told()
    assert [event.run_id for event in told] == list(past.events), "here the clock is right, so that time is the order"
    assert [event.event for event in told] == list(past.events.values())
    assert {event.model for event in told if event.job.name.startswith("late.")} == {"late"}


def test_runs_that_failed_or_made_no_version_are_told_and_a_ref_that_is_gone_is_not(
    machine: Machine, past: History
) -> None:
    broken = past.begin("late")
    broken.snapshot()
    broken.features(state="FAIL")
    ids = [event.run_id for event in machine.told()]
    assert ids == list(past.events)
    subprocess.run(["git", "-C", past.origin, "update-ref", "-d", broken.ref], check=True)
    assert [event.run_id for event in machine.told()] == ids[:-2]
    subprocess.run(["git", "-C", past.origin, "update-ref", "-d", "refs/runs/late/run1"], check=True)
    gates = {event["run"]["runId"] for event in stage_events(past, "late.gate")[:1]}
    assert {event.run_id for event in machine.told()} == set(ids[:-2]) - gates, "a version's tag keeps its run's stages"


def test_the_order_is_causal_whatever_the_clocks_say(machine: Machine, past: History) -> None:
    past.now -= timedelta(days=30)
    slow = past.begin("late")
    slow.finish(skip=["features"])
    past.now += timedelta(days=90)
    past.ingest(flights="f3")
    past.now -= timedelta(days=59)
    past.ingest(weather="w3")
    run = past.begin("late")
    run.snapshot()
    run.features(started=past.now - timedelta(days=1))
    run.train(state="FAIL", started=past.now - timedelta(days=2))
    past.promote("late", "late@v1")
    past.now -= timedelta(days=70)
    past.promote("late", "late@v2")
    order = {event.run_id: number for number, event in enumerate(machine.told())}
    assert len(order) == len(past.events)
    for run_id, event in past.events.items():
        assert all(order[read["run"]] < order[run_id] for read in reads_of(event))
    snapshots = ids(past, "late.snapshot")
    assert sorted(snapshots[1:], key=order.__getitem__) == snapshots[1:], "what was taken over came before"
    last_run = list(past.events)[-5:-2]
    for line in (ids(past, "ingest.ingest"), ids(past, "late.promote"), last_run):
        assert sorted(line, key=order.__getitem__) == line


def test_a_file_that_is_carried_over_is_no_event_of_its_own(machine: Machine, past: History) -> None:
    """Somebody set the branch `data` back by a commit; and a machine's clock was wrong."""
    past.now -= timedelta(days=1)
    past.ingest(flights="f3")
    files = {"data/raw/ingest.json": as_file(stage_events(past, "ingest.ingest")[0])}
    past.commit("refs/heads/data", "refs/heads/data", "set back", {"Retrace-Stage": "ingest"}, files)
    past.begin("late").snapshot()
    told = [event.run_id for event in machine.told()]
    assert sorted(told) == sorted(past.events)
    assert [run_id for run_id in told if run_id in ids(past, "ingest.ingest")] == ids(past, "ingest.ingest")


def test_a_circle_ends_and_the_order_is_always_the_same() -> None:
    before = {"a": {"b"}, "b": {"a"}, "c": {"a"}, "d": {"unknown"}}
    assert in_order("abcd", before, str) == in_order("dcba", before, str) == ["d", "a", "b", "c"]


def test_an_event_that_was_spoilt_by_hand_is_told_and_left_out(machine: Machine, past: History) -> None:
    run = past.begin("late")
    run.snapshot()
    for number, content in enumerate((b"{", b"[]", b'{"run": 1}', as_file({**run.features(), "eventType": "START"}))):
        path = f"lineage/late/odd{number}.json"
        past.commit(run.ref, run.ref, "odd", {"Retrace-Stage": f"odd{number}@late"}, {path: content})
    past.commit(run.ref, run.ref, "none", {"Retrace-Stage": "none@late"}, {})
    said = machine.sync()
    assert said[0].startswith("lineage: 5 events in git left out as unreadable, such as ")
    assert "lineage/late/odd0.json is no event" in said[0]
    answers_as_git_does(machine.consumer, past)


# The reconciliation


def test_an_empty_consumer_is_filled_and_a_second_sync_posts_nothing(
    machine: Machine, consumer: Consumer, past: History
) -> None:
    assert machine.sync()[-1].startswith(f"lineage: {len(past.events)} events sent to {consumer.url}")
    answers_as_git_does(consumer, past)
    assert machine.progress[-1] == f"{len(past.events)} of {len(past.events)} events"
    before = list(consumer.received)
    assert machine.sync() == [f"lineage: {consumer.url} is up to date"]
    shutil.rmtree(machine.root / "var/lineage")
    assert machine.sync() == [f"lineage: {consumer.url} is up to date"], "what it remembers only saves questions"
    assert consumer.received == before


def test_events_are_posted_as_committed_and_no_more_often_than_steering_needs(
    machine: Machine, consumer: Consumer, past: History
) -> None:
    machine.sync()
    own = [event for event in consumer.received if event["run"]["runId"] in past.events]
    ends = [event for event in own if event["eventType"] != "START"]
    assert ends == list(past.events.values()), "in a straight history nothing is posted twice"
    for event in own:
        if event["eventType"] == "START":
            assert event["inputs"] == event["outputs"] == []
            parent = past.events[event["run"]["runId"]]["run"]["facets"].get("parent")
            assert event["run"]["facets"] == ({"parent": parent} if parent else {})


def test_without_a_consumer_there_is_nothing_to_do(machine: Machine) -> None:
    assert machine.sync(OPENLINEAGE_URL="") == ["lineage: no consumer is set (OPENLINEAGE_URL); the events are in git"]


def test_a_consumer_that_was_down_is_filled_when_it_is_up(machine: Machine, consumer: Consumer, past: History) -> None:
    consumer.down()
    with pytest.raises(ConsumerUnavailable):
        machine.sync()
    consumer.up()
    machine.sync()
    answers_as_git_does(consumer, past)


@pytest.mark.parametrize("posts", [1, 2, 3, 8, 19, 33])
def test_a_sync_that_was_killed_is_taken_up_by_the_next(
    machine: Machine, consumer: Consumer, past: History, posts: int
) -> None:
    past.begin("late", first_data(past)).finish()
    process = machine.in_process()
    consumer.after(posts, process.kill)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL, said
    machine.sync()
    answers_as_git_does(consumer, past)
    assert machine.posts() == 0


def test_a_hanging_consumer_is_not_waited_for(machine: Machine, consumer: Consumer, past: History) -> None:
    machine.patience = 0.5
    consumer.after(5, lambda: setattr(consumer, "hang", True))
    with pytest.raises(ConsumerUnavailable, match="timed out"):
        machine.sync()
    consumer.hang = False
    machine.patience = 10.0
    machine.sync()
    answers_as_git_does(consumer, past)


def test_a_slow_consumer_is_filled_too(machine: Machine, consumer: Consumer, past: History) -> None:
    consumer.delay = 0.02
    machine.sync()
    consumer.delay = 0.0
    answers_as_git_does(consumer, past)
    assert len(machine.progress) < len(past.events), "not a line an event"


def test_a_wrong_key_is_said_and_the_right_one_works(machine: Machine, consumer: Consumer, past: History) -> None:
    consumer.api_key = "right"
    with pytest.raises(ConsumerRefuses, match="OPENLINEAGE_API_KEY") as refused:
        machine.sync(OPENLINEAGE_API_KEY="wrong")
    assert "wrong" not in str(refused.value)
    machine.sync(OPENLINEAGE_API_KEY="right")
    answers_as_git_does(consumer, past)
    kept = [path.read_text() for path in (machine.root / "var/lineage").rglob("*.json")]
    assert kept
    assert not any("right" in text for text in kept)


def test_two_models_that_took_turns(machine: Machine, consumer: Consumer, past: History) -> None:
    first, second = past.begin("late"), past.begin("early")
    for work in ("snapshot", "features", "train", "evaluate", "register", "gate"):
        getattr(first, work)()
        past.ingest(flights=f"f-{work}")
        getattr(second, work)()
    machine.sync()
    answers_as_git_does(consumer, past)


def test_runs_on_older_data_after_newer_runs(machine: Machine, consumer: Consumer, past: History) -> None:
    newest = past.ingest(weather="w3")
    past.ingest(flights="f4", weather="w4")
    for data in (newest, past.raw, newest, past.raw):
        past.begin("late", data).finish()
    machine.sync()
    answers_as_git_does(consumer, past)
    past.begin("late", newest).finish()
    machine.sync()
    answers_as_git_does(consumer, past)


def test_unchanged_stages_and_an_old_version_that_is_promoted(
    machine: Machine, consumer: Consumer, past: History
) -> None:
    past.begin("late").finish(skip=["features"])
    past.ingest(weather="w2")
    past.begin("late").finish(skip=["features", "train"])
    past.promote("late", "late@v3")
    past.promote("late", "late@v1")
    machine.sync()
    answers_as_git_does(consumer, past)


def test_a_failed_run_and_two_tries_of_a_stage(machine: Machine, consumer: Consumer, past: History) -> None:
    again = past.begin("late")
    again.snapshot()
    again.features(state="FAIL")
    again.features()
    again.train()
    again.evaluate()
    again.register()
    broken = past.begin("late")
    broken.snapshot()
    broken.features(state="FAIL")
    machine.sync()
    answers_as_git_does(consumer, past)
    shown = consumer.get(f"/api/v1/namespaces/{NAMESPACE}/jobs/late.features")
    assert shown["outputs"] == [{"namespace": NAMESPACE, "name": "features/late"}], (
        "the failure took it out of the graph"
    )
    assert shown["inputs"]
    assert machine.posts() == 0


def test_a_failure_that_a_broken_off_sync_told_last(machine: Machine, consumer: Consumer, past: History) -> None:
    machine.sync()
    broken = past.begin("late")
    broken.snapshot()
    failed = broken.features(state="FAIL")["run"]["runId"]
    consumer.after(5, consumer.down)
    with pytest.raises(ConsumerUnavailable):
        machine.sync()
    consumer.up()
    assert consumer.accepted[-1]["run"]["runId"] == failed
    machine.sync()
    assert machine.posts() == 0
    shown = consumer.get(f"/api/v1/namespaces/{NAMESPACE}/jobs/late.features")
    assert shown["outputs"] == [{"namespace": NAMESPACE, "name": "features/late"}]


def test_a_dag_run_ends_with_the_last_of_its_tasks(machine: Machine, consumer: Consumer, past: History) -> None:
    """Marquez makes it of the first START that names it, and lends its state to all its tasks."""
    broken = past.begin("late")
    broken.snapshot()
    broken.features(state="FAIL")
    told = past.begin("late")
    ended = {
        **told.snapshot(),
        "job": told.dag_run["job"],
        "run": {"runId": told.dag_run["run"]["runId"]},
        "outputs": [],
    }
    consumer.receive(as_file({**ended, "eventType": "FAIL"}))
    machine.sync()

    def state(run: Retrain) -> str:
        return str(consumer.get(f"/api/v1/jobs/runs/{run.dag_run['run']['runId']}")["state"])

    assert state(past.newest["late"]) == "COMPLETED"
    assert state(broken) == "FAILED"
    assert state(told) == "FAILED", "what Airflow said of it is better known"
    answers_as_git_does(consumer, past)


def test_an_emptied_consumer_is_filled_again_the_same(machine: Machine, consumer: Consumer, past: History) -> None:
    past.begin("late", past.newest["late"].data).finish()
    machine.sync()
    first = consumer.snapshot()
    consumer.empty()
    machine.sync()
    assert consumer.snapshot() == first
    answers_as_git_does(consumer, past)


def test_a_consumer_that_was_set_back_is_brought_up(machine: Machine, consumer: Consumer, past: History) -> None:
    machine.sync()
    backup = list(consumer.accepted)
    past.begin("late").finish()
    machine.sync()
    consumer.empty()
    for event in backup:
        consumer.receive(json.dumps(event).encode())
    machine.sync()
    answers_as_git_does(consumer, past)


def test_a_consumer_that_live_events_reached_first(machine: Machine, consumer: Consumer, past: History) -> None:
    """Most was told live from start to end, one stage only begun, one only ended: none was bound to anything."""
    first = [event for event in past.events.values() if event["job"]["name"].startswith("late.")]
    for event in first[:-3]:
        consumer.receive(live(event, "START"))
        consumer.receive(live(event, "COMPLETE"))
    consumer.receive(live(first[-3], "START"))
    consumer.receive(live(first[-2], "COMPLETE"))
    consumer.received.clear()
    machine.sync()
    answers_as_git_does(consumer, past)
    starts = {event["run"]["runId"] for event in consumer.received if event["eventType"] == "START"}
    assert not starts & {event["run"]["runId"] for event in first[:-2]}, "a start that is known is not told again"
    assert machine.posts() == 0


def test_a_live_start_that_comes_too_late(machine: Machine, consumer: Consumer, past: History) -> None:
    machine.sync()
    consumer.receive(live(stage_events(past, "late.train")[-1], "START"))
    machine.sync()
    answers_as_git_does(consumer, past)


def test_a_job_that_a_live_run_took_out_of_the_graph_is_put_back_once(
    machine: Machine, consumer: Consumer, past: History
) -> None:
    """A retrain that was killed, or had nothing to do: git has nothing of it."""
    machine.sync()
    trained = stage_events(past, "late.train")[-1]
    ghost = {**trained, "run": {**trained["run"], "runId": "00000000-0000-4000-8000-000000000000"}}
    consumer.receive(live(ghost, "START", eventTime=(past.now + timedelta(days=1)).isoformat()))
    address = f"/api/v1/namespaces/{NAMESPACE}/jobs/late.train"
    assert consumer.get(address)["outputs"] == []
    assert machine.posts() == 1
    assert consumer.get(address)["outputs"] == [{"namespace": NAMESPACE, "name": "models/late.skops"}]
    assert machine.posts() == 0
    assert consumer.snapshot(committed_only=True)["current"] == expected_current(past)


def test_a_picture_that_cannot_be_mended_is_not_tried_again_and_again(
    machine: Machine, consumer: Consumer, past: History
) -> None:
    """A live event named an output that git's does not: it stays in the picture."""
    last = stage_events(past, "late.train")[-1]
    more = [*last["outputs"], {"namespace": NAMESPACE, "name": "models/late.log"}]
    consumer.receive(live(last, "COMPLETE", outputs=more))
    machine.sync()
    assert machine.posts() == 0
    past.begin("late").finish()
    machine.sync()
    assert machine.posts() == 0


def test_an_event_that_is_rejected_for_good_is_set_aside_and_tried_again_by_later_syncs(
    machine: Machine, consumer: Consumer, past: History
) -> None:
    refused = stage_events(past, "late.gate")[0]["run"]["runId"]
    accepting = []
    consumer.refuse(lambda event: not accepting and event["run"]["runId"] == refused)
    said = machine.sync()
    assert any(line.startswith("lineage: 1 event rejected and set aside in ") and refused in line for line in said)
    assert "everything is there" not in said[-1]
    report = json.loads((machine.root / f"var/lineage/rejected/{refused}.json").read_text())
    assert report["event"]["run"]["runId"] == refused
    assert "status 500" in report["answer"]
    assert len([event for event in consumer.received if event["run"]["runId"] == refused]) == 2
    answers_as_git_does(consumer, without(past, refused))
    assert machine.posts() == 1, "once more, and nothing else"
    accepting.append(True)
    machine.sync()
    answers_as_git_does(consumer, past)
    assert not (machine.root / f"var/lineage/rejected/{refused}.json").exists()
    assert machine.posts() == 0


def test_who_read_what_a_rejected_event_made_is_told(machine: Machine, consumer: Consumer, past: History) -> None:
    refused = stage_events(past, "late.features")[-1]
    readers = [event["run"]["runId"] for event in stage_events(past, "late.train")[-1:]]
    accepting = []
    consumer.refuse(lambda event: not accepting and event["eventType"] == "COMPLETE" and event == refused)
    said = machine.sync()
    assert any(readers[0] in line and "rejected" in line for line in said)
    assert set(consumer.snapshot(committed_only=True)["runs"]) == set(past.events) - {refused["run"]["runId"]}
    assert consumer.received.count(refused) == 2
    assert consumer.raw_data_of("registry/late", "late@v1") == past.raw_data_of("late@v1")
    accepting.append(True)
    assert any("empty its database" in line for line in machine.sync()), "now that it is there, they are bound wrongly"


def test_wrong_bindings_are_told_every_time_with_the_way_out(
    machine: Machine, consumer: Consumer, past: History
) -> None:
    """Somebody posted the committed events without steering."""
    past.begin("late", first_data(past)).finish()
    gate = stage_events(past, "late.gate")[0]
    for event in past.events.values():
        consumer.receive(as_file(event))
        if event == gate:
            more = [*gate["inputs"], {"namespace": NAMESPACE, "name": "features/late"}]
            consumer.receive(as_file({**gate, "inputs": more}))
    for _ in range(2):
        said = [line for line in machine.sync() if "bound to other versions" in line]
        assert len(said) == 1
        assert said[0].startswith("lineage: 3 runs bound to other versions than were read, such as late.gate (")
        assert said[0].endswith("empty its database, or give another one, and run `retrace sync` again")
    consumer.empty()
    assert not [line for line in machine.sync() if "bound to" in line and "empty" in line]
    answers_as_git_does(consumer, past)


def test_a_read_that_git_knows_no_run_for_is_posted_and_told(
    machine: Machine, consumer: Consumer, past: History
) -> None:
    run = past.begin("late")
    run.snapshot()
    run.has["features/late"].run = None
    trained = run.train()
    said = machine.sync()
    assert any("1 input that no run in git made" in line and trained["run"]["runId"] in line for line in said)
    assert trained["run"]["runId"] in consumer.snapshot(committed_only=True)["runs"]
    assert machine.posts() == 0


def test_a_read_of_what_came_later_is_no_reason_to_post_for_ever(machine: Machine, past: History) -> None:
    """Somebody edited an event: it says that it read what it made."""
    run = past.begin("late")
    run.snapshot()
    edited = past.event("late.features", {}, {"features/late": "new"})
    edited["inputs"] = [{"namespace": NAMESPACE, "name": "features/late"}]
    facts = edited["run"]["facets"]["retrace"]
    facts["reads"] = [{"dataset": "features/late", "version": "new", "run": edited["run"]["runId"]}]
    files = {"lineage/late/features.json": as_file(edited)}
    past.commit(run.ref, run.ref, "edited", {"Retrace-Stage": "features@late"}, files)
    assert any("1 input that no run in git made" in line for line in machine.sync())


def test_one_sync_at_a_time_on_all_machines(machine: Machine, consumer: Consumer, tmp_path: Path) -> None:
    other = Machine(tmp_path / "other", machine.history, consumer)
    turned_away: list[SyncBusy] = []

    def second(_: str) -> None:
        with pytest.raises(SyncBusy, match="wait for it to end") as busy:
            other.sync()
        turned_away.append(busy.value)

    machine.history.save()
    list(sync_lineage(machine.settings, machine.mirror, second, {"OPENLINEAGE_URL": consumer.url}))
    assert turned_away
    assert isinstance(turned_away[0], TransientError)
    assert other.sync() == [f"lineage: {consumer.url} is up to date"]
    assert not [ref for ref in machine.mirror.remote_refs() if ref.startswith("refs/locks/")]


def test_a_model_that_is_being_retrained_is_left_for_the_next_sync(
    machine: Machine, consumer: Consumer, past: History
) -> None:
    past.begin("early").finish()
    machine.history.save()
    lease.take(machine.mirror, "early", "the run", 60)
    said = machine.sync()
    left = [event for event in past.events.values() if event["job"]["name"].startswith("early.")]
    assert f"lineage: early is being retrained; its {len(left)} events will follow with the next sync" in said
    assert not any(event["job"]["name"].startswith("early.") for event in consumer.received)
    lease.release(machine.mirror, "early", "the run")
    assert machine.sync()[-1].startswith(f"lineage: {len(left)} events sent")
    answers_as_git_does(consumer, past)


def test_ten_thousand_runs_are_not_asked_for_one_by_one(
    machine: Machine, consumer: Consumer, past: History, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine.sync()
    machine.sync()
    asked: list[str] = []
    answer: Callable[..., Any] = consumer.answer
    monkeypatch.setattr(consumer, "answer", lambda path, query: asked.append(path) or answer(path, query))
    machine.sync()
    jobs = {event["job"]["name"] for event in past.events.values()}
    assert len(asked) == len(jobs) + len(expected_current(past)), "one question a job and one a dataset"
