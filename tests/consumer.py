"""The tests' own OpenLineage consumer: the double of Marquez behind a real HTTP server, with faults, and questions."""

from __future__ import annotations

import gzip
import json
import socket
import ssl
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any
from urllib.parse import parse_qs, quote, urlencode, urlsplit
from urllib.request import HTTPSHandler, ProxyHandler, Request, build_opener

from marquez import DEFAULT_DEPTH, DEFAULT_LIMIT, NO_RUN, Event, Refused, Store, Views, check, label, parsed

LINEAGE = "/api/v1/lineage"
RAW_DATA = "data/raw/"


class Consumer:
    """The server, its faults, and the questions that tests put to it.

    >>> with Consumer() as consumer:
    ...     sync(consumer.url)
    ...     assert consumer.raw_data_of("registry/late_arrival", "late_arrival@v3") == {"data/raw/flights": md5}

    Faults are plain attributes or methods and can be set at any time, also while requests are under way:
    `api_key` (others get 401), `delay` (seconds before each answer; what was posted has taken effect by then),
    `hang` (requests are read by nobody until it is False again or the test ends).
    """

    def __init__(self, *, endpoint: str = LINEAGE, tls: tuple[str, str] | None = None) -> None:
        self.received: list[Event] = []
        self.accepted: list[Event] = []
        self.api_key: str | None = None
        self.delay = 0.0
        self.errors: list[BaseException] = []
        """Failures of the double itself; the test ends with the first."""
        self._endpoints = {LINEAGE, "/" + endpoint.lstrip("/")}
        self._tls = tls
        self._lock = threading.Lock()
        self._store = Store()
        self._refusals: list[tuple[Callable[[Event], bool], int]] = []
        self._actions: list[tuple[int, Callable[[], object]]] = []
        self._count = 0
        self._answering = threading.Event()
        self._answering.set()
        self._closing = threading.Event()
        self._server: _Server | None = None
        self._reserved: socket.socket | None = None
        self.port = 0

    def __enter__(self) -> Consumer:
        self.up()
        return self

    def __exit__(self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None) -> None:
        self._closing.set()
        self._answering.set()
        self.down()
        if self._reserved is not None:
            self._reserved.close()
        if kind is None and self.errors:
            raise self.errors[0]

    @property
    def url(self) -> str:
        return f"{'https' if self._tls else 'http'}://127.0.0.1:{self.port}"

    @property
    def hang(self) -> bool:
        return not self._answering.is_set()

    @hang.setter
    def hang(self, value: bool) -> None:
        if value:
            self._answering.clear()
        else:
            self._answering.set()

    def up(self) -> None:
        """Open the port, the same one as before."""
        if self._server is not None:
            return
        if self._reserved is not None:
            self._reserved.close()
            self._reserved = None
        self._server = _Server(self, self.port, self._tls)
        self.port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()

    def down(self) -> None:
        """Close the port and every connection; what is known is kept."""
        server, self._server = self._server, None
        if server is None:
            return
        server.shutdown()
        server.server_close()
        server.drop_connections()
        # Bound but not listening: connections are refused, and nobody else is given the port meanwhile.
        self._reserved = socket.socket()
        self._reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._reserved.bind(("127.0.0.1", self.port))

    def empty(self) -> None:
        """Forget every event, as a new database does; faults stay."""
        with self._lock:
            self._store = Store()
            self.received.clear()
            self.accepted.clear()

    def refuse(self, predicate: Callable[[Event], bool], status: int = 500) -> None:
        """Answer events that match with an error, for ever."""
        self._refusals.append((predicate, status))

    def after(self, count: int, action: Callable[[], object]) -> None:
        """Call the action once, when so many more events were accepted, before the last of them is answered."""
        with self._lock:
            self._actions.append((self._count + count, action))

    def receive(self, body: bytes) -> None:
        """Take in one posted event, or raise Refused."""
        event = parsed(body)
        with self._lock:
            self.received.append(event)
            for predicate, status in self._refusals:
                if predicate(event):
                    raise Refused(status, "refused for this test")
            check(event)
            self._store.accept(event)
            self.accepted.append(event)
            self._count += 1
            due = [action for count, action in self._actions if count <= self._count]
            self._actions = [waiting for waiting in self._actions if waiting[0] > self._count]
        for action in due:
            action()

    def answer(self, path: str, query: Mapping[str, list[str]]) -> dict[str, Any]:
        """The answer to a GET, or Refused."""
        with self._lock:
            return Views(self._store).answer(path, query)

    def takes_events_at(self, path: str) -> bool:
        return path in self._endpoints

    def wait_for_turn(self) -> bool:
        """Whether to go on with a request: False when the test ended while it hung."""
        self._answering.wait()
        return not self._closing.is_set()

    def wait_for_answer(self) -> None:
        if self.delay:
            self._closing.wait(self.delay)

    def get(self, path: str, **query: str | int) -> dict[str, Any]:
        """Ask over HTTP, as any client would; the path starts with /api/v1."""
        context = ssl.create_default_context(cafile=self._tls[0]) if self._tls else None
        opener = build_opener(ProxyHandler({}), HTTPSHandler(context=context))
        headers = {"Authorization": f"Bearer {self.api_key}"} if self.api_key else {}
        address = f"{self.url}{path}" + (f"?{urlencode(query)}" if query else "")
        with opener.open(Request(address, headers=headers), timeout=60) as response:
            answer: dict[str, Any] = json.load(response)
        return answer

    def versions_of(self, dataset: str, namespace: str = "retrace") -> list[dict[str, Any]]:
        """All versions of a dataset over HTTP, newest first."""
        path = f"/api/v1/namespaces/{quote(namespace, safe='')}/datasets/{quote(dataset, safe='')}/versions"
        found: list[dict[str, Any]] = []
        while page := self.get(path, limit=DEFAULT_LIMIT, offset=len(found))["versions"]:
            found += page
        return found

    def raw_data_of(self, registry_dataset: str, version: str, namespace: str = "retrace") -> dict[str, str]:
        """Which raw data went into a model version, by what Marquez's API says: datasets and their versions.

        Bindings to several versions of one dataset are all given, so that a wrong one shows; one without a producer
        is given as `(no run)`. Fails when the model version is unknown or not one.
        """
        made = [found for found in self.versions_of(registry_dataset, namespace) if label(found) == version]
        assert len(made) == 1, f"{registry_dataset} has {len(made)} versions called {version}"
        answer = self.get("/api/v1/runlineage/upstream", runId=made[0]["createdByRun"]["id"], depth=DEFAULT_DEPTH)
        read = {
            (dataset["name"], dataset["producedByRunId"])
            for run in answer["runs"]
            for dataset in run["inputs"]
            if dataset["name"].startswith(RAW_DATA)
        }
        found: dict[str, set[str]] = {}
        for name, producer in read:
            found.setdefault(name, set()).update(self._labels_by(name, producer, namespace))
        return {name: ", ".join(sorted(labels)) for name, labels in sorted(found.items())}

    def _labels_by(self, dataset: str, run_id: str | None, namespace: str) -> Iterator[str]:
        if run_id is None:
            yield NO_RUN
            return
        for version in self.versions_of(dataset, namespace):
            if version["createdByRun"] and version["createdByRun"]["id"] == run_id:
                yield label(version)

    def snapshot(self, *, committed_only: bool = False) -> dict[str, Any]:
        """All that is known, in a form in which two consumers can be compared: equal when they know the same.

        Ids that Marquez draws, and times, are left out. `committed_only` leaves out the runs that git does not record,
        as a DAG run's, and what only they wrote.
        """
        with self._lock:
            return self._store.snapshot(committed_only)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 128

    def __init__(self, consumer: Consumer, port: int, tls: tuple[str, str] | None) -> None:
        self.consumer = consumer
        self._connections: set[socket.socket] = set()
        super().__init__(("127.0.0.1", port), _Handler)
        if tls:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(*tls)
            # The handshake is left to the connection's own thread: a client that never ends it blocks nobody.
            self.socket = context.wrap_socket(self.socket, server_side=True, do_handshake_on_connect=False)

    def process_request(self, request: Any, client_address: Any) -> None:
        self._connections.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        self._connections.discard(request)
        super().shutdown_request(request)

    def drop_connections(self) -> None:
        for connection in list(self._connections):
            try:
                connection.shutdown(socket.SHUT_RDWR)
            except OSError:
                continue  # gone by itself

    def handle_error(self, request: Any, client_address: Any) -> None:
        failure = sys.exc_info()[1]
        # A client that goes away, or does not like the certificate, is what tests are about.
        if failure is not None and not isinstance(failure, OSError):
            self.consumer.errors.append(failure)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: _Server

    def do_POST(self) -> None:
        self._serve(self._post)

    def do_GET(self) -> None:
        self._serve(self._get)

    def _serve(self, work: Callable[[], tuple[int, dict[str, Any] | None]]) -> None:
        consumer = self.server.consumer
        if not consumer.wait_for_turn():
            self.close_connection = True
            return
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self._body = gzip.decompress(body) if self.headers.get("Content-Encoding") == "gzip" else body
        try:
            if consumer.api_key is not None and self.headers.get("Authorization") != f"Bearer {consumer.api_key}":
                raise Refused(401, "Credentials are required to access this resource.")
            status, answer = work()
        except Refused as refused:
            status, answer = refused.status, {"code": refused.status, "message": str(refused)}
        consumer.wait_for_answer()
        self._respond(status, answer)

    def _post(self) -> tuple[int, dict[str, Any] | None]:
        if not self.server.consumer.takes_events_at(urlsplit(self.path).path):
            raise Refused(404, "HTTP 404 Not Found")
        self.server.consumer.receive(self._body)
        return 201, None

    def _get(self) -> tuple[int, dict[str, Any] | None]:
        address = urlsplit(self.path)
        return 200, self.server.consumer.answer(address.path, parse_qs(address.query))

    def _respond(self, status: int, answer: dict[str, Any] | None) -> None:
        body = b"" if answer is None else json.dumps(answer).encode()
        self.send_response(status, HTTPStatus(status).phrase)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: pytest's output is for the tests'."""
