"""Servers that the integration tests share; one that takes a server down must bring it up again (`outage`)."""

from __future__ import annotations

import secrets
from collections.abc import Iterator

import pytest
import sqlalchemy
from servers import PostgresServer, S3Server


@pytest.fixture(scope="session")
def s3() -> Iterator[S3Server]:
    with S3Server() as server:
        yield server


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    with PostgresServer() as server:
        yield server


@pytest.fixture
def database(postgres: PostgresServer) -> Iterator[sqlalchemy.URL]:
    """A fresh, empty database."""
    name = f"test_{secrets.token_hex(4)}"
    yield postgres.create_database(name)
    postgres.drop_database(name)
