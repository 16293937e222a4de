"""The spool and its sender: tasks lose nothing to a consumer in any state, and a consumer gets nothing late."""

from __future__ import annotations

import fcntl
import json
import logging
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from consumer import Consumer as Double
from openlineage.client.event_v2 import Job, OutputDataset, Run, RunEvent, RunState
from openlineage.client.serde import Serde
from openlineage.client.transport.factory import DefaultTransportFactory
from openlineage.client.uuid import generate_new_uuid
from projects import ROOT

from retrace.airflow.embedded import environment
from retrace.lineage import sender
from retrace.lineage.consumer import (
    Consumer,
    ConsumerMisconfigured,
    ConsumerRefuses,
    ConsumerSettings,
    ConsumerUnavailable,
    EventRejected,
)
from retrace.lineage.folder import SpoolFolder
from retrace.lineage.hide import hide
from retrace.lineage.spool import SpoolConfig, SpoolMisconfigured, SpoolTransport

KEY = "s3cr3t-k3y"
HOST_PATH = "/srv/secret-machine/project/dags/retrain.py"
START, COMPLETE = RunState.START, RunState.COMPLETE


@pytest.fixture
def double() -> Iterator[Double]:
    with Double() as consumer:
        yield consumer


class Spooling:
    """A transport as a task has it, with its files in one folder."""

    def __init__(self, folder: Path, url: str | None) -> None:
        self.folder = folder
        self.log = folder / "lineage/events.jsonl"
        self.report = folder / "logs/lineage.log"
        self.spool = SpoolFolder(folder / "lineage/spool")
        self.configuration = {
            "log_file_path": str(self.log),
            "spool": str(self.spool.path),
            "sender_log": str(self.report),
            "hide": {"/srv/secret-machine/project": "project"},
            "url": url,
        }
        self.transport = SpoolTransport(SpoolConfig.from_dict(self.configuration))

    def emit(self, state: RunState, run: str, job: str = "alpha.train") -> None:
        self.transport.emit(event(state, run, job))

    def wait(self) -> None:
        """Until no sender lives."""
        with open(self.spool.lock) as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)

    def wait_until_empty(self) -> None:
        """Until nothing waits to be sent."""
        self.wait_for(lambda: not self.spool.waiting())

    def wait_for(self, state: Callable[[], bool]) -> None:
        for _ in range(6000):
            if state():
                return
            time.sleep(0.01)
        pytest.fail("it never becomes so")

    def sender(self) -> psutil.Process:
        """The sender that was just started: for an instant it still goes by the name of who started it."""
        self.wait_for(lambda: bool(self.senders()))
        [process] = self.senders()
        return process

    def senders(self) -> list[psutil.Process]:
        mine = ["retrace.lineage.sender", str(self.spool.path)]
        return [process for process in psutil.process_iter() if command(process)[3:5] == mine]

    def logged(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.log.read_text().splitlines()]


def command(process: psutil.Process) -> list[str]:
    try:
        return list(process.cmdline())
    except psutil.Error:
        return []


@pytest.fixture
def spooling(tmp_path: Path, double: Double) -> Iterator[Spooling]:
    made = Spooling(tmp_path / "var", double.url)
    yield made
    for process in made.senders():
        process.kill()


def event(state: RunState, run: str, job: str = "alpha.train") -> RunEvent:
    outputs = [OutputDataset("retrace", "models/alpha.skops")] if state is COMPLETE else []
    return RunEvent(
        eventTime="2026-01-01T00:00:00+00:00",
        producer="https://example.org",
        run=Run(run, {"source": {"path": HOST_PATH}}),  # type: ignore[dict-item]
        job=Job("retrace", job),
        eventType=state,
        outputs=outputs,
    )


def as_json(made: RunEvent) -> dict[str, Any]:
    return dict(json.loads(Serde.to_json(made)))


def locked(spool: SpoolFolder) -> int:
    """The lock of a new spool, taken."""
    spool.path.mkdir(parents=True)
    lock = os.open(spool.lock, os.O_RDWR | os.O_CREAT)
    fcntl.flock(lock, fcntl.LOCK_EX)
    return lock


def new_run() -> str:
    return str(generate_new_uuid())


def told(events: list[dict[str, Any]]) -> list[tuple[str, str]]:
    return [(event["eventType"], event["run"]["runId"]) for event in events]


def test_events_arrive_in_order_and_stand_in_the_log(spooling: Spooling, double: Double) -> None:
    expected = []
    for run in [new_run() for _ in range(10)]:
        for state in (START, COMPLETE):
            spooling.emit(state, run)
            expected.append((state.value, run))
    spooling.wait_until_empty()
    assert told(double.accepted) == told(spooling.logged()) == expected
    assert spooling.spool.waiting() == []
    assert spooling.report.read_text() == ""


def test_one_sender_serves_all_events_and_ends_by_itself(spooling: Spooling) -> None:
    spooling.emit(START, new_run())
    first = spooling.sender()
    spooling.emit(START, new_run())
    assert [process.pid for process in spooling.senders()] == [first.pid]
    assert os.getsid(first.pid) == first.pid
    spooling.wait()
    psutil.wait_procs([first])
    assert spooling.senders() == []


def test_without_a_consumer_there_is_a_log_and_nothing_else(tmp_path: Path) -> None:
    spooling = Spooling(tmp_path / "var", None)
    run = new_run()
    spooling.emit(START, run)
    assert told(spooling.logged()) == [("START", run)]
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["events.jsonl"]


@pytest.mark.parametrize("sender_ended", [True, False])
def test_what_a_dead_consumer_did_not_get_never_comes_late(
    spooling: Spooling, double: Double, sender_ended: bool
) -> None:
    old, new = new_run(), new_run()
    double.down()
    spooling.emit(START, old)
    spooling.wait_until_empty()
    if sender_ended:
        spooling.wait()
    double.up()
    spooling.emit(COMPLETE, old)
    spooling.emit(START, new)
    spooling.emit(COMPLETE, new)
    spooling.wait()
    assert told(double.received) == [("START", new), ("COMPLETE", new)]
    assert len(spooling.logged()) == 4
    report = spooling.report.read_text()
    assert "1 event dropped, which `retrace sync` brings from git: the OpenLineage consumer at" in report
    assert "is not available (Connection refused)" in report


def test_a_dead_consumer_empties_the_whole_spool(spooling: Spooling, double: Double) -> None:
    double.hang = True
    spooling.emit(START, new_run())
    spooling.wait_for(lambda: bool(spooling.report.exists()))
    for _ in range(4):
        spooling.emit(START, new_run())
    double.down()
    spooling.wait_until_empty()
    assert spooling.spool.waiting() == []
    assert double.accepted == []
    assert "5 events dropped" in spooling.report.read_text()


def test_a_consumer_that_refuses_us_gets_nothing_and_is_told_of(
    spooling: Spooling, double: Double, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENLINEAGE_API_KEY", "wr0ng")
    double.api_key = KEY
    spooling.emit(START, new_run())
    spooling.wait_until_empty()
    assert double.accepted == [] and spooling.spool.waiting() == []
    report = spooling.report.read_text()
    assert "does not accept the credentials (status 401); correct OPENLINEAGE_API_KEY" in report
    assert "wr0ng" not in report


def test_the_key_of_the_environment_is_used(
    spooling: Spooling, double: Double, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENLINEAGE_API_KEY", KEY)
    double.api_key = KEY
    run = new_run()
    spooling.emit(START, run)
    spooling.wait_until_empty()
    assert told(double.accepted) == [("START", run)]


def test_a_consumer_that_hangs_holds_nobody(spooling: Spooling, double: Double) -> None:
    old, new = new_run(), new_run()
    double.hang = True
    spooling.emit(START, old)
    spooling.emit(COMPLETE, old)
    spooling.wait()
    assert spooling.spool.waiting() == []
    double.hang = False
    spooling.emit(COMPLETE, old)
    spooling.emit(START, new)
    spooling.wait()
    # the first request may have been read by now: it had left when the answer did not come
    assert told(double.received)[-1:] == [("START", new)]
    assert ("COMPLETE", old) not in told(double.received)
    assert "(timed out)" in spooling.report.read_text()


def test_an_event_that_is_rejected_does_not_hold_up_others(spooling: Spooling, double: Double) -> None:
    bad, good = new_run(), new_run()
    double.refuse(lambda event: event["run"]["runId"] == bad and event["eventType"] == "START")
    for run in (bad, good):
        for state in (START, COMPLETE):
            spooling.emit(state, run)
    spooling.wait_until_empty()
    assert told(double.accepted) == [("START", good), ("COMPLETE", good)]
    assert "rejected the event (status 500: " in spooling.report.read_text()


def test_after_kill_9_the_next_event_starts_another_sender(spooling: Spooling, double: Double) -> None:
    run = new_run()
    double.hang = True
    spooling.emit(START, run)
    first = spooling.sender()
    first.kill()
    double.down()  # with what had been sent
    double.hang = False
    double.up()
    spooling.wait()
    spooling.emit(COMPLETE, run)
    spooling.wait_until_empty()
    # the START may have arrived twice: nobody knows what the first sender had got rid of
    assert list(dict.fromkeys(told(double.accepted))) == [("START", run), ("COMPLETE", run)]


def test_what_a_killed_sender_left_long_ago_is_dropped(spooling: Spooling, double: Double) -> None:
    old, new = new_run(), new_run()
    spooling.spool.put(json.dumps({"run": {"runId": old}}).encode())
    [left] = spooling.spool.waiting()
    left.rename(left.with_name(f"{time.time_ns() - 31 * 10**9:020}-0-0.json"))
    spooling.emit(COMPLETE, old)
    spooling.emit(START, new)
    spooling.wait_until_empty()
    assert told(double.received) == [("START", new)]
    assert "older than 30 s" in spooling.report.read_text()


EMIT = """
import sys
from pathlib import Path
from test_spool import START, Spooling
spooling = Spooling(Path(sys.argv[1]), sys.argv[2])
for run in sys.argv[3:]:
    spooling.emit(START, run)
"""


def test_processes_that_emit_at_once_lose_nothing(spooling: Spooling, double: Double) -> None:
    runs = [[new_run() for _ in range(40)] for _ in range(3)]
    environ = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"}
    begin = [sys.executable, "-c", EMIT, str(spooling.folder), double.url]
    processes = [subprocess.Popen([*begin, *mine], env=environ) for mine in runs]
    assert [process.wait() for process in processes] == [0, 0, 0]
    spooling.wait_until_empty()
    for arrived in (double.accepted, spooling.logged()):
        order = [run for _, run in told(arrived)]
        assert len(order) == 120
        assert [[run for run in order if run in mine] for mine in runs] == runs


def test_an_event_that_comes_as_the_sender_leaves_is_sent(
    spooling: Spooling, double: Double, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = new_run()
    lock = locked(spooling.spool)
    real = fcntl.flock

    def put_before_leaving(descriptor: int, operation: int) -> None:
        if operation == fcntl.LOCK_UN and not double.received:
            spooling.spool.put(json.dumps(as_json(event(START, run))).encode())
        real(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", put_before_leaving)
    sender.Sender(spooling.spool, lock, Consumer(ConsumerSettings(double.url), 5)).work()
    os.close(lock)
    assert told(double.accepted) == [("START", run)]


def test_the_sender_ends_with_its_spool(spooling: Spooling) -> None:
    spooling.emit(START, new_run())
    first = spooling.sender()
    shutil.rmtree(spooling.spool.path)
    psutil.wait_procs([first])


def test_the_sender_leaves_a_spool_that_was_made_anew_to_its_successor(spooling: Spooling, double: Double) -> None:
    lock = locked(spooling.spool)
    shutil.rmtree(spooling.spool.path)
    successor = locked(spooling.spool)
    spooling.spool.put(json.dumps(as_json(event(START, new_run()))).encode())
    sender.Sender(spooling.spool, lock, Consumer(ConsumerSettings(double.url), 5)).work()
    assert len(spooling.spool.waiting()) == 1
    assert double.received == []
    os.close(lock)
    os.close(successor)


def test_no_key_and_no_path_of_the_host_leaves(
    spooling: Spooling, double: Double, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENLINEAGE_API_KEY", KEY)
    double.hang = True
    spooling.emit(START, new_run())
    [waiting] = spooling.spool.waiting()
    process = spooling.sender()
    kept = [waiting.read_text(), spooling.log.read_text(), " ".join(process.cmdline())]
    double.hang = False
    spooling.wait_until_empty()
    kept += [json.dumps(double.received), spooling.report.read_text()]
    for text in kept:
        assert KEY not in text
        assert "/srv/secret-machine" not in text
    assert "project/dags/retrain.py" in kept[0] and "project/dags/retrain.py" in kept[1]


def test_a_full_disk_is_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    spooling = Spooling(tmp_path, None)
    spooling.transport = SpoolTransport(SpoolConfig("/dev/full", str(spooling.spool.path)))
    with caplog.at_level(logging.WARNING):
        spooling.emit(START, new_run())
    assert caplog.messages == ["an OpenLineage event is missing in the event log: No space left on device"]


def test_folders_that_cannot_be_written_are_warnings(
    tmp_path: Path, double: Double, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    spooling = Spooling(tmp_path / "file", double.url)
    with caplog.at_level(logging.WARNING):
        spooling.emit(START, new_run())
    assert caplog.messages == [
        "an OpenLineage event is missing in the event log: Not a directory",
        "an OpenLineage event is not sent now, `retrace sync` brings it: Not a directory",
    ]


def test_a_line_that_a_full_disk_tore_spoils_no_other(spooling: Spooling) -> None:
    run = new_run()
    spooling.log.parent.mkdir(parents=True)
    spooling.log.write_text('{"eventType": "STA')
    spooling.emit(START, run)
    torn, line = spooling.log.read_text().splitlines()
    assert json.loads(line)["run"]["runId"] == run


def test_a_consumer_that_makes_no_sense_is_told_of(tmp_path: Path) -> None:
    spooling = Spooling(tmp_path, "ftp://marquez")
    spooling.emit(START, new_run())
    spooling.wait()
    assert spooling.spool.waiting() == []
    assert "'ftp://marquez' is not http or https" in spooling.report.read_text()


def test_a_transport_without_its_files_is_refused() -> None:
    with pytest.raises(SpoolMisconfigured, match="lacks log_file_path and spool; add it"):
        SpoolConfig.from_dict({"url": "http://localhost"})


def transport_of(environ: dict[str, str]) -> dict[str, Any]:
    return dict(json.loads(environ["AIRFLOW__OPENLINEAGE__TRANSPORT"]))


def test_the_embedded_default_is_the_spool_without_the_key(tmp_path: Path) -> None:
    given = {"OPENLINEAGE_URL": "http://marquez:5000/", "OPENLINEAGE_API_KEY": KEY, "HOME": "/home/me"}
    made = environment(tmp_path / "var", tmp_path / "dags", given)
    transport = transport_of(made)
    assert transport["url"] == "http://marquez:5000"
    assert transport["endpoint"] == "api/v1/lineage"
    assert (
        transport["hide"].items() >= {"/home/me": "~", str(tmp_path): "project", str(tmp_path / "var"): "var"}.items()
    )
    assert [name for name, value in made.items() if KEY in value] == ["OPENLINEAGE_API_KEY"]
    assert isinstance(DefaultTransportFactory().create(transport), SpoolTransport)


def test_the_embedded_default_without_a_consumer_is_a_log(tmp_path: Path) -> None:
    transport = transport_of(environment(tmp_path / "var", tmp_path / "dags", {}))
    assert "url" not in transport
    assert transport["log_file_path"] == str(tmp_path / "var/lineage/events.jsonl")


def test_the_transport_of_the_user_stays(tmp_path: Path) -> None:
    given = {"AIRFLOW__OPENLINEAGE__TRANSPORT": '{"type": "console"}', "OPENLINEAGE_URL": "http://marquez:5000"}
    assert transport_of(environment(tmp_path / "var", tmp_path / "dags", given)) == {"type": "console"}


def airflow(**transport: object) -> dict[str, str]:
    return {"AIRFLOW__OPENLINEAGE__TRANSPORT": json.dumps(transport)}


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({}, None),
        ({"OPENLINEAGE_URL": "http://m:5000/"}, ConsumerSettings("http://m:5000")),
        (
            {"OPENLINEAGE_URL": "https://m", "OPENLINEAGE_ENDPOINT": "/e", "OPENLINEAGE_API_KEY": f"{KEY}\n"},
            ConsumerSettings("https://m", "e", KEY),
        ),
        (airflow(type="console"), None),
        (airflow(type="retrace.lineage.spool.SpoolTransport"), None),
        (
            airflow(type="http", url="http://m", endpoint="e", auth={"apiKey": KEY}, timeout=3, verify=False),
            ConsumerSettings("http://m", "e", KEY, 3.0, False),
        ),
        (
            {**airflow(type="http", url="http://m", auth={"apiKey": KEY}), "OPENLINEAGE_URL": "http://other"},
            ConsumerSettings("http://other"),
        ),
        (
            {"OPENLINEAGE_URL": "https://m", "SSL_CERT_FILE": "/b", "REQUESTS_CA_BUNDLE": "/a"},
            ConsumerSettings("https://m", verify="/a"),
        ),
        ({"OPENLINEAGE_URL": "https://m", "SSL_CERT_FILE": "/b"}, ConsumerSettings("https://m", verify="/b")),
    ],
)
def test_the_settings_are_those_of_any_user_of_openlineage(
    environ: dict[str, str], expected: ConsumerSettings | None
) -> None:
    assert ConsumerSettings.of(environ) == expected


@pytest.mark.parametrize(
    ("environ", "message"),
    [
        ({"OPENLINEAGE_URL": f"http://me:{KEY}@m"}, "holds credentials; take them out and set OPENLINEAGE_API_KEY"),
        ({"OPENLINEAGE_URL": f"http://m?key={KEY}"}, "has a query or a fragment; take it out"),
        ({"OPENLINEAGE_URL": "marquez:5000"}, "'marquez:5000' is not http or https; set OPENLINEAGE_URL"),
        ({"OPENLINEAGE_URL": "http://m:port"}, "cannot be read; set OPENLINEAGE_URL"),
        ({"OPENLINEAGE_URL": "http://m", "OPENLINEAGE_API_KEY": f"{KEY}\nx"}, "characters that no header can carry"),
        ({"AIRFLOW__OPENLINEAGE__TRANSPORT": "{"}, "is not JSON"),
        (airflow(type="http", url="http://m", timeout="soon"), "must be a number of seconds above 0"),
    ],
)
def test_settings_that_make_no_sense_are_refused(environ: dict[str, str], message: str) -> None:
    with pytest.raises(ConsumerMisconfigured) as raised:
        ConsumerSettings.of(environ)
    assert message in str(raised.value)
    assert KEY not in str(raised.value)


def test_settings_do_not_show_the_key() -> None:
    assert KEY not in repr(ConsumerSettings("http://m", api_key=KEY))


def client(double: Double, **more: Any) -> Consumer:
    return Consumer(ConsumerSettings(double.url, **more), 5)


def test_the_consumer_answers_questions(double: Double) -> None:
    consumer, run = client(double), new_run()
    assert consumer.run(run) is None
    assert consumer.dataset("retrace", "models/alpha.skops") is None
    for state in (START, COMPLETE):
        consumer.post(as_json(event(state, run)))
    held, dataset, job = (
        consumer.run(run),
        consumer.dataset("retrace", "models/alpha.skops"),
        consumer.job("retrace", "alpha.train"),
    )
    versions = consumer.versions("retrace", "models/alpha.skops")
    assert held and dataset and job and versions
    assert (held["id"], held["state"]) == (run, "COMPLETED")
    assert (dataset["name"], job["name"]) == ("models/alpha.skops", "alpha.train")
    assert [version["createdByRun"]["id"] for version in versions["versions"]] == [run]
    assert [found["runId"] if "runId" in found else found["id"] for found in consumer.upstream(run, 5)["runs"]] == [run]


def test_the_errors_of_a_consumer(double: Double) -> None:
    body = as_json(event(START, new_run()))
    with pytest.raises(ConsumerRefuses, match="takes no events at nowhere .*OPENLINEAGE_ENDPOINT"):
        client(double, endpoint="nowhere").post(body)
    double.refuse(lambda _: True, 422)
    with pytest.raises(EventRejected, match="status 422"):
        client(double).post(body)
    double.api_key = KEY
    with pytest.raises(ConsumerRefuses, match="OPENLINEAGE_API_KEY"):
        client(double).run(body["run"]["runId"])
    double.down()
    with pytest.raises(ConsumerUnavailable, match="Connection refused"):
        client(double).post(body)


def test_a_busy_consumer_is_not_available(double: Double) -> None:
    double.refuse(lambda _: True, 503)
    with pytest.raises(ConsumerUnavailable, match="status 503"):
        client(double).post(as_json(event(START, new_run())))


def test_an_answer_that_drips_is_not_awaited() -> None:
    answer = b"HTTP/1.1 201 Created\r\nContent-Length: 0\r\n\r\n"
    with socket.create_server(("127.0.0.1", 0)) as server:

        def drip() -> None:
            connection, _ = server.accept()
            with connection:
                for byte in answer:
                    connection.send(bytes([byte]))
                    time.sleep(0.1)

        threading.Thread(target=drip, daemon=True).start()
        consumer = Consumer(ConsumerSettings(f"http://127.0.0.1:{server.getsockname()[1]}"), 0.5)
        with pytest.raises(ConsumerUnavailable, match="timed out"):
            consumer.post({})


PLACES = [("/home/me", "~"), ("/home/me/project", "project"), ("/home/me/my project/", "mine"), ("/", "root")]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("/home/me", "~"),
        ("/home/me/project/dags/a.py", "project/dags/a.py"),
        ("/home/me/projects/a", "~/projects/a"),
        ("/home/me/project-2", "~/project-2"),
        ("/home/me.bak", "/home/me.bak"),
        ("in /home/me.", "in ~."),
        ("/srv/home/me/a", "/srv/home/me/a"),
        ('File "/home/me/a.py", line 1', 'File "~/a.py", line 1'),
        ("file:///home/me/project/a", "file://project/a"),
        ("file:///home/me/my%20project/a", "file://mine/a"),
        ("s3://home/me/a", "s3://home/me/a"),
        ("/home/me:/home/me/project", "~:project"),
    ],
)
def test_paths_of_the_host_are_hidden_at_their_boundaries(text: str, expected: str) -> None:
    assert hide(text, PLACES) == expected


def test_paths_are_hidden_wherever_they_stand() -> None:
    assert hide({"/home/me": ["/home/me", 1, None, {"a": "/home/me/b"}]}, PLACES) == {"~": ["~", 1, None, {"a": "~/b"}]}
