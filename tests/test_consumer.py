"""The double of Marquez is strict, and wrong where Marquez is: a test that it passes says something."""

from __future__ import annotations

import json
import subprocess
import threading
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from consumer import Consumer
from openlineage.client import OpenLineageClient
from openlineage.client.event_v2 import Job, Run, RunEvent, RunState

FLIGHTS = "data/raw/flights"
FEATURES = "features/late_arrival"
REGISTRY = "registry/late_arrival"


@pytest.fixture
def consumer() -> Iterator[Consumer]:
    with Consumer() as consumer:
        yield consumer


def run_id(name: str) -> str:
    return str(uuid.uuid5(uuid.NAMESPACE_URL, name))


def event(kind: str, run: str, minute: int, reads: tuple[str, ...] = (), **writes: str) -> dict[str, Any]:
    """An event of a run; `writes` are datasets (with `__` for `/`) and their versions."""
    return {
        "eventType": kind,
        "eventTime": f"2026-01-01T00:{minute:02}:00+00:00",
        "producer": "https://example.org",
        "schemaURL": "https://openlineage.io/spec/2-0-2/OpenLineage.json#/$defs/RunEvent",
        "run": {"runId": run_id(run), "facets": {}},
        "job": {"namespace": "retrace", "name": run.split(" ")[0]},
        "inputs": [{"namespace": "retrace", "name": name} for name in reads],
        "outputs": [
            {
                "namespace": "retrace",
                "name": name.replace("__", "/"),
                "facets": {"version": {"datasetVersion": version}},
            }
            for name, version in writes.items()
        ],
    }


def post(consumer: Consumer, body: dict[str, Any] | bytes, *, timeout: float = 30, key: str | None = None) -> int:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {key}"} if key else {})
    request = urllib.request.Request(f"{consumer.url}/api/v1/lineage", data, headers)
    try:
        with urllib.request.urlopen(request, timeout=timeout) as response:
            return int(response.status)
    except urllib.error.HTTPError as refused:
        return refused.code


def run_of(consumer: Consumer, run: str) -> dict[str, Any]:
    return consumer.get(f"/api/v1/jobs/runs/{run_id(run)}")


def dataset(consumer: Consumer, name: str) -> dict[str, Any]:
    return consumer.get(f"/api/v1/namespaces/retrace/datasets/{quote(name, safe='')}")


def producers(consumer: Consumer, run: str) -> set[str | None]:
    answer = consumer.get("/api/v1/runlineage/upstream", runId=run_id(run), depth=0)
    return {bound["producedByRunId"] for bound in answer["runs"][0]["inputs"]}


def without(key: str) -> dict[str, Any]:
    return {name: value for name, value in event("COMPLETE", "train", 1).items() if name != key}


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (event("COMPLETE", "train", 1), 201),
        (b"{", 400),
        (b"[]", 400),
        (without("eventType"), 500),
        (without("eventTime"), 500),
        (without("eventTime") | {"eventTime": "2026-02-30T00:00:00Z"}, 500),
        (without("eventTime") | {"eventTime": "2026-02-03T00:00:00"}, 500),
        (without("job") | {"job": {"namespace": "retrace", "name": "a\0b"}}, 500),
        (without("run"), 422),
        (without("inputs") | {"inputs": [{"name": "no namespace"}]}, 422),
    ],
)
def test_events_are_checked(consumer: Consumer, body: dict[str, Any] | bytes, status: int) -> None:
    assert post(consumer, body) == status
    assert len(consumer.accepted) == (status == 201)


def test_a_start_after_the_end_runs_again_and_an_end_without_a_start_began_in_1970(consumer: Consumer) -> None:
    post(consumer, event("COMPLETE", "train", 2))
    assert run_of(consumer, "train")["startedAt"] == "1970-01-01T00:00:00Z"
    post(consumer, event("START", "train", 1))
    assert (run_of(consumer, "train")["state"], run_of(consumer, "train")["startedAt"]) == (
        "RUNNING",
        "2026-01-01T00:01:00Z",
    )
    with pytest.raises(urllib.error.HTTPError, match="404"):
        run_of(consumer, "another")


def test_an_input_binds_to_what_is_current_and_a_repeated_complete_steers(consumer: Consumer) -> None:
    old, new = (
        event("COMPLETE", f"ingest {age}", minute, data__raw__flights=age) for minute, age in ((1, "a"), (2, "b"))
    )
    post(consumer, old)
    post(consumer, new)
    before = consumer.snapshot()["datasets"]
    post(consumer, event("COMPLETE", "features 1", 3, (FLIGHTS,)))
    post(consumer, old)
    post(consumer, event("COMPLETE", "features 2", 4, (FLIGHTS,)))
    assert producers(consumer, "features 1") == {run_id("ingest b")}
    assert producers(consumer, "features 2") == {run_id("ingest a")}
    assert consumer.snapshot()["datasets"] == before
    post(consumer, event("COMPLETE", "features 1", 3, (FLIGHTS,)))
    assert producers(consumer, "features 1") == {run_id("ingest a"), run_id("ingest b")}


def test_a_reader_before_any_writer_makes_a_version_without_a_run(consumer: Consumer) -> None:
    for reader in ("features 1", "features 2"):
        post(consumer, event("COMPLETE", reader, 1, (FLIGHTS,)))
        assert producers(consumer, reader) == {None}
    (version,) = consumer.versions_of(FLIGHTS)
    assert version["createdByRun"] is None
    assert dataset(consumer, FLIGHTS)["currentVersion"] == version["version"]


def test_what_only_a_start_named_stays_as_a_ghost(consumer: Consumer) -> None:
    post(consumer, event("COMPLETE", "features 1", 1, features__late_arrival="a"))
    current = dataset(consumer, FEATURES)["currentVersion"]
    post(consumer, event("START", "features 2", 2, features__late_arrival="b"))
    post(consumer, event("FAIL", "features 2", 3))
    versions = consumer.versions_of(FEATURES)
    assert [version["facets"]["version"]["datasetVersion"] for version in versions] == ["b", "a"]
    assert dataset(consumer, FEATURES)["currentVersion"] == current == versions[1]["version"]


def test_facets_on_an_input_overwrite_and_the_latest_event_counts_not_the_last_to_arrive(consumer: Consumer) -> None:
    post(consumer, event("COMPLETE", "ingest", 1, data__raw__flights="a"))
    reader = event("COMPLETE", "features", 3, (FLIGHTS,))
    reader["inputs"][0]["facets"] = {"version": {"datasetVersion": "wrong"}}
    post(consumer, reader)
    assert dataset(consumer, FLIGHTS)["facets"]["version"]["datasetVersion"] == "wrong"
    for minute, source in ((5, "live"), (4, "git")):
        told = event("COMPLETE", "train", minute)
        told["run"]["facets"] = {"retrace": {"source": source}}
        post(consumer, told)
    assert run_of(consumer, "train")["facets"]["retrace"]["source"] == "live"


def test_bindings_name_versions_by_ids_that_the_history_does_not_know(consumer: Consumer) -> None:
    post(consumer, event("COMPLETE", "ingest", 1, data__raw__flights="a"))
    post(consumer, event("COMPLETE", "features", 2, (FLIGHTS,)))
    (bound,) = run_of(consumer, "features")["inputDatasetVersions"]
    assert bound["datasetVersionId"]["version"] not in {known["version"] for known in consumer.versions_of(FLIGHTS)}


def test_a_start_without_datasets_takes_the_job_out_of_the_graph(consumer: Consumer) -> None:
    inputs = {}
    for kind, run, reads in (("COMPLETE", 1, (FLIGHTS,)), ("START", 2, ()), ("COMPLETE", 1, (FLIGHTS,))):
        post(consumer, event(kind, f"train {run}", run, reads))
        inputs[kind, run] = consumer.get("/api/v1/namespaces/retrace/jobs/train")["inputs"]
        assert bool(inputs[kind, run]) == bool(reads)


def test_raw_data_of_a_version_is_answered_over_http(consumer: Consumer) -> None:
    for number, data in ((1, "a"), (2, "b")):
        post(consumer, event("COMPLETE", f"ingest {number}", 3 * number, data__raw__flights=data))
        post(consumer, event("COMPLETE", f"train {number}", 3 * number + 1, (FLIGHTS,), models__late_arrival=data))
        register = event("COMPLETE", f"register {number}", 3 * number + 2, ("models/late_arrival",))
        register["outputs"] = [
            {
                "namespace": "retrace",
                "name": REGISTRY,
                "facets": {"version": {"datasetVersion": f"late_arrival@v{number}"}},
            }
        ]
        post(consumer, register)
    assert consumer.raw_data_of(REGISTRY, "late_arrival@v1") == {FLIGHTS: "a"}
    assert consumer.raw_data_of(REGISTRY, "late_arrival@v2") == {FLIGHTS: "b"}
    post(consumer, event("COMPLETE", "train 1", 4, (FLIGHTS,), models__late_arrival="a"))
    assert consumer.raw_data_of(REGISTRY, "late_arrival@v1") == {FLIGHTS: "a, b"}
    with pytest.raises(AssertionError, match="0 versions"):
        consumer.raw_data_of(REGISTRY, "late_arrival@v3")


def test_lists_come_in_pages(consumer: Consumer) -> None:
    for number in range(120):
        post(consumer, event("COMPLETE", f"ingest {number}", number % 60, data__raw__flights=str(number)))
    path = "/api/v1/namespaces/retrace/jobs/ingest/runs"
    assert [len(consumer.get(path)["runs"]), len(consumer.get(path, limit=50, offset=100)["runs"])] == [100, 20]
    assert len(consumer.versions_of(FLIGHTS)) == 120


def test_equal_knowledge_compares_equal(consumer: Consumer) -> None:
    events = [
        event("COMPLETE", "ingest", 1, data__raw__flights="a"),
        event("COMPLETE", "features", 2, (FLIGHTS,), features__late_arrival="f"),
    ]
    with Consumer() as other:
        for told in events:
            post(consumer, told)
        for told in (events[1], events[0]):
            post(other, told)
        assert consumer.snapshot() != other.snapshot()
        other.empty()
        for told in (*events, *events):
            post(other, told)
        assert consumer.snapshot() == other.snapshot()


def test_a_key_is_asked_for_and_an_event_is_refused_for_ever(consumer: Consumer) -> None:
    consumer.api_key = "secret"
    consumer.refuse(lambda event: event["run"]["runId"] == run_id("train 2"))
    assert post(consumer, event("COMPLETE", "train 1", 1)) == 401
    assert post(consumer, event("COMPLETE", "train 1", 1), key="secret") == 201
    assert [post(consumer, event("COMPLETE", "train 2", 2), key="secret") for _ in range(2)] == [500, 500]
    assert run_of(consumer, "train 1")["state"] == "COMPLETED"


def test_down_in_the_middle_and_up_again_on_the_same_port(consumer: Consumer) -> None:
    url = consumer.url
    consumer.after(2, consumer.down)
    assert post(consumer, event("COMPLETE", "train 1", 1)) == 201
    for run in ("train 2", "train 3"):
        with pytest.raises(OSError):
            post(consumer, event("COMPLETE", run, 2))
    consumer.up()
    assert consumer.url == url
    assert post(consumer, event("COMPLETE", "train 4", 4)) == 201
    assert [told["job"]["name"] for told in consumer.accepted] == ["train"] * 3


def test_a_hanging_consumer_answers_nobody_and_can_be_closed() -> None:
    with Consumer() as consumer:
        consumer.hang = True
        with pytest.raises(TimeoutError):
            post(consumer, event("COMPLETE", "train", 1), timeout=0.2)
        waiting = threading.Thread(target=lambda: pytest.raises(OSError, post, consumer, event("START", "train", 1)))
        waiting.start()
    waiting.join(timeout=30)
    assert not waiting.is_alive()
    assert consumer.received == []
    with pytest.raises(urllib.error.URLError, match="refused"):
        post(consumer, event("COMPLETE", "train", 1))


def test_a_slow_consumer_has_taken_what_it_has_not_yet_answered(consumer: Consumer) -> None:
    taken = threading.Event()
    consumer.delay = 600
    consumer.after(1, taken.set)
    with pytest.raises(TimeoutError):
        post(consumer, event("COMPLETE", "train", 1), timeout=0.5)
    assert taken.wait(60)
    assert len(consumer.accepted) == 1


def test_an_error_in_what_a_test_planned_ends_the_test() -> None:
    with pytest.raises(ZeroDivisionError), Consumer() as consumer:
        consumer.after(1, lambda: 1 / 0)
        with pytest.raises(OSError):
            post(consumer, event("COMPLETE", "train", 1))


@pytest.mark.parametrize("compression", [None, "gzip"])
def test_the_clients_own_transport_is_understood(consumer: Consumer, compression: str | None) -> None:
    consumer.api_key = "secret"
    told = event("COMPLETE", "train", 1)
    settings = {"url": consumer.url, "auth": {"type": "api_key", "apiKey": "secret"}, "compression": compression}
    OpenLineageClient(config={"transport": {"type": "http", **settings}}).emit(
        RunEvent(
            eventType=RunState.COMPLETE,
            eventTime=told["eventTime"],
            run=Run(told["run"]["runId"]),
            job=Job("retrace", "train"),
            producer=told["producer"],
        )
    )
    assert run_of(consumer, "train")["state"] == "COMPLETED"


def test_it_speaks_tls(tmp_path: Path) -> None:
    certificate, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=127.0.0.1"]
        + ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", key, "-out", certificate],
        check=True,
        capture_output=True,
    )
    with Consumer(tls=(str(certificate), str(key))) as consumer:
        with pytest.raises(urllib.error.URLError, match="CERTIFICATE_VERIFY_FAILED"):
            post(consumer, event("COMPLETE", "train", 1))
        consumer.receive(json.dumps(event("COMPLETE", "train", 1)).encode())
        assert run_of(consumer, "train")["state"] == "COMPLETED"
