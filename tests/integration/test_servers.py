"""The servers that other tests lean on: they are real, they refuse strangers, and nothing of them is left behind."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import boto3
import botocore.exceptions
import psutil
import psycopg2
import pytest
import servers
import sqlalchemy
from botocore.config import Config
from servers import PostgresServer, S3Server, Server, free_port, hanging_server

SERVERS = [
    pytest.param(S3Server, id="S3Server"),
    pytest.param(lambda: PostgresServer(servers.wheel_postgres()), id="PostgresServer of the wheel"),
    pytest.param(
        lambda: PostgresServer(servers.installed_postgres()),
        id="PostgresServer of Debian",
        marks=pytest.mark.skipif(servers.installed_postgres() is None, reason="Debian's PostgreSQL is not installed"),
    ),
]


def client(s3: S3Server, secret: str) -> Any:
    return boto3.client(
        "s3",
        endpoint_url=s3.endpoint,
        region_name=s3.region,
        aws_access_key_id=s3.access_key,
        aws_secret_access_key=secret,
        config=Config(retries={"max_attempts": 0}),
    )


def connect(url: sqlalchemy.URL, **changes: str) -> None:
    known = {"password": url.password or "", "user": url.username or "", "dbname": url.database or ""}
    psycopg2.connect(host=url.host, port=url.port, **{**known, **changes}, connect_timeout=2).close()


def test_s3_objects_are_files(s3: S3Server) -> None:
    owner = client(s3, s3.secret_key)
    owner.put_object(Bucket=s3.bucket, Key="some/object", Body=b"content")
    assert (s3.folder / "some/object").read_bytes() == b"content"
    (s3.folder / "some/object").write_bytes(b"flipped")
    assert owner.get_object(Bucket=s3.bucket, Key="some/object")["Body"].read() == b"flipped"
    owner.delete_object(Bucket=s3.bucket, Key="some/object")
    assert list(s3.folder.rglob("object")) == []


def test_s3_checks_signatures(s3: S3Server) -> None:
    with pytest.raises(botocore.exceptions.ClientError) as error:
        client(s3, "0" * 40).put_object(Bucket=s3.bucket, Key="forged", Body=b"content")
    assert error.value.response["ResponseMetadata"]["HTTPStatusCode"] == 403
    assert error.value.response["Error"]["Code"] == "SignatureDoesNotMatch"
    assert not (s3.folder / "forged").exists()


def test_postgres_checks_passwords(database: sqlalchemy.URL) -> None:
    connect(database)
    with pytest.raises(psycopg2.OperationalError, match="password authentication failed"):
        connect(database, password="wrong")


def test_postgres_makes_fresh_databases(postgres: PostgresServer, database: sqlalchemy.URL) -> None:
    name = database.database or ""
    postgres.execute("CREATE TABLE numbers (n INTEGER)", name)
    with pytest.raises(psycopg2.errors.UndefinedTable):
        postgres.execute("SELECT * FROM numbers")


@pytest.mark.parametrize("make", SERVERS)
def test_a_server_comes_back_on_its_port_and_leaves_nothing(make: Callable[[], Server]) -> None:
    with make() as server:
        port, before = server.port, server.processes()
        with server.outage():
            assert not any(process.is_running() for process in before)
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection((servers.HOST, port))
        socket.create_connection((servers.HOST, port)).close()
        assert server.port == port
        after, home = server.processes(), server.home
        if os.geteuid() == 0 and isinstance(server, PostgresServer):
            assert after[0].username() in {"postgres", "nobody"}
    assert not any(process.is_running() for process in after)
    assert not home.exists()


def test_data_survive_an_outage() -> None:
    with PostgresServer() as server:
        url = server.create_database("kept")
        with server.outage(), pytest.raises(psycopg2.OperationalError, match="refused"):
            connect(url)
        connect(url)


@pytest.mark.parametrize("make", SERVERS)
def test_a_frozen_server_neither_answers_nor_refuses_and_can_be_ended(make: Callable[[], Server]) -> None:
    with make() as server, server.hanging():
        assert _is_silent(server.port)
        frozen = server.processes()
        server.stop()
        assert not any(process.is_running() for process in frozen)


def test_a_hanging_server_is_silent() -> None:
    with hanging_server() as port:
        assert _is_silent(port)


def test_free_ports_are_free() -> None:
    with socket.create_server((servers.HOST, free_port())):
        pass


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process that its parent was killed")
@pytest.mark.parametrize("blow", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_servers_end_with_the_process_that_started_them(blow: signal.Signals) -> None:
    program = """
import json, sys, time
from servers import PostgresServer, S3Server
with S3Server() as s3, PostgresServer() as postgres:
    processes = [process.pid for server in (s3, postgres) for process in server.processes()]
    print(json.dumps({"processes": processes, "homes": [str(s3.home), str(postgres.home)]}), flush=True)
    time.sleep(600)
"""
    owner = subprocess.Popen(
        [sys.executable, "-c", program], cwd=Path(__file__).parent, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    try:
        assert owner.stdout is not None
        started = json.loads(owner.stdout.readline())
        processes = [psutil.Process(pid) for pid in started["processes"] if psutil.pid_exists(pid)]
        owner.send_signal(blow)
        owner.wait()
    finally:
        owner.kill()
    _, alive = psutil.wait_procs(processes, timeout=10)
    assert [process for process in alive if process.status() != psutil.STATUS_ZOMBIE] == []
    for home in started["homes"]:
        shutil.rmtree(home, ignore_errors=True)


def _is_silent(port: int) -> bool:
    with socket.create_connection((servers.HOST, port), timeout=1) as connection:
        connection.sendall(b"GET / HTTP/1.0\r\n\r\n")
        started = time.monotonic()
        try:
            connection.recv(1)
        except TimeoutError:
            return time.monotonic() - started > 0.5
        return False
