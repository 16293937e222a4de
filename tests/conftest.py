"""Fixtures for the engine's tests."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from projects import Project
from shared import made_once, session_folder

from retrace.forkserver import VARIABLE, forkserver
from retrace.process import child_environment


@pytest.fixture(scope="session")
def environments(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the stages' environments of this test session are; the engine makes each of them once."""
    folder = session_folder(tmp_path_factory) / "environments"
    folder.mkdir(exist_ok=True)
    return folder


@pytest.fixture(scope="session")
def forking(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Where a process with DVC loaded listens, as in a session of `retrace retrain`."""
    with forkserver(child_environment(), tmp_path_factory.mktemp("forking") / "server.log"):
        listens = os.environ.pop(VARIABLE)
        yield listens
        os.environ[VARIABLE] = listens


@pytest.fixture(scope="module")
def forked(forking: str) -> Iterator[None]:
    """For modules in which many stages run, and none is about its process: children are forked, which is quicker."""
    os.environ[VARIABLE] = forking
    yield
    del os.environ[VARIABLE]


@pytest.fixture
def empty_project(tmp_path: Path, environments: Path) -> Project:
    """The toy project before any data."""
    return Project.make(tmp_path / "project", environments)


@pytest.fixture(scope="session")
def ingested(tmp_path_factory: pytest.TempPathFactory, environments: Path) -> Project:
    """What `project` is a copy of; nobody's to change."""

    def make(folder: Path) -> None:
        project = Project.make(folder / "project", environments)
        for month in ("2013-01", "2013-02", "2013-03"):
            project.fill(month)
        project.ingest("2013-04-01")

    shared = Project.at(made_once(tmp_path_factory, "ingested", make) / "project")
    return shared.copy(tmp_path_factory.mktemp("ingested") / "project")


@pytest.fixture
def project(ingested: Project, tmp_path: Path) -> Project:
    """The toy project with January to March 2013 ingested."""
    return ingested.copy(tmp_path / "project")


@pytest.fixture(scope="session")
def with_a_version(ingested: Project, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """What `trained` is a copy of; nobody's to change."""

    def make(folder: Path) -> None:
        ingested.copy(folder / "project").retrain("alpha", "first")

    shared = Project.at(made_once(tmp_path_factory, "trained", make) / "project")
    return shared.copy(tmp_path_factory.mktemp("trained") / "project")


@pytest.fixture
def trained(with_a_version: Project, tmp_path: Path) -> Project:
    """The toy project with alpha@v1, which is champion, made by the run `first`."""
    return with_a_version.copy(tmp_path / "project")


# The longest files first, so that no worker is left alone with one of them at the end.
LONGEST = (
    "test_readme.py",
    "test_schedule.py",
    "test_cli.py",
    "test_lineage.py",
    "test_production.py",
    "test_crash.py",
    "test_train.py",
    "test_second_domain.py",
    "test_features.py",
    "test_reproduce.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    rank = {name: number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: rank.get(item.path.name, len(rank)))
