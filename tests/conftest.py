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


@pytest.fixture
def project(empty_project: Project) -> Project:
    """The toy project with January to March 2013 ingested."""
    for month in ("2013-01", "2013-02", "2013-03"):
        empty_project.fill(month)
    empty_project.ingest("2013-04-01")
    return empty_project
