"""Fixtures for the engine's tests."""

from __future__ import annotations

from pathlib import Path

import pytest
from projects import Project


@pytest.fixture(scope="session")
def environments(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the stages' environments of this test session are."""
    return tmp_path_factory.mktemp("environments")


@pytest.fixture
def empty_project(tmp_path: Path, environments: Path) -> Project:
    """The toy project before any data."""
    return Project.make(tmp_path / "project", environments)


@pytest.fixture(scope="session")
def ingested(tmp_path_factory: pytest.TempPathFactory, environments: Path) -> Project:
    """What `project` is a copy of; nobody's to change."""
    project = Project.make(tmp_path_factory.mktemp("ingested") / "project", environments)
    for month in ("2013-01", "2013-02", "2013-03"):
        project.fill(month)
    project.ingest("2013-04-01")
    return project


@pytest.fixture
def project(ingested: Project, tmp_path: Path) -> Project:
    """The toy project with January to March 2013 ingested."""
    return ingested.copy(tmp_path / "project")


@pytest.fixture(scope="session")
def with_a_version(ingested: Project, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """What `trained` is a copy of; nobody's to change."""
    project = ingested.copy(tmp_path_factory.mktemp("trained") / "project")
    project.retrain("alpha", "first")
    return project


@pytest.fixture
def trained(with_a_version: Project, tmp_path: Path) -> Project:
    """The toy project with alpha@v1, which is champion, made by the run `first`."""
    return with_a_version.copy(tmp_path / "project")


# The longest files first, so that no worker is left alone with one of them at the end.
LONGEST = ("test_readme.py", "test_schedule.py", "test_production.py", "test_cli.py", "test_second_domain.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    rank = {name: number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: rank.get(item.path.name, len(rank)))
