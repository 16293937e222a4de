"""A version's files taken out of a real MLflow store, whose entry and number stay."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from test_registry import (  # noqa: F401 - fixtures
    COMMITS,
    client,
    entry,
    estimators,
    everything,
    features,
    make_entry,
    model_files,
    registry,
    template,
)

from retrace.published import Entry
from retrace.registry import Registry, RegistryConflict

if TYPE_CHECKING:
    from mlflow import MlflowClient

TICKET = "DSR-42"


def files(registry: Registry) -> list[Path]:  # noqa: F811
    root = Path(registry.uri.removeprefix("sqlite:///")).parent / "artifacts"
    return [path for path in root.rglob("*") if path.is_file()]


def test_a_forgotten_version_keeps_its_number_and_loses_every_file(
    registry: Registry,  # noqa: F811
    client: MlflowClient,  # noqa: F811
    entry: Entry,  # noqa: F811
    model_files: Mapping[str, Path],  # noqa: F811
) -> None:
    run = client.get_run(registry.publish(entry))
    registry.publish(make_entry(model_files["late_arrival"], 2))
    kept = len(files(registry)) // 2
    registry.forget("late_arrival", 1, entry.commit, TICKET)
    assert len(files(registry)) == kept
    assert registry.versions("late_arrival") == {1: "late_arrival@v1", 2: "late_arrival@v2"}
    version = client.get_model_version("late_arrival", "1")
    assert version.tags["retrace.forgotten"] == TICKET
    assert version.description == f"late_arrival@v1: its files were removed on request {TICKET}"
    assert client.get_run(run.info.run_id).data.metrics == entry.metrics
    assert client.get_run(run.info.run_id).data.tags["retrace.forgotten"] == TICKET
    assert "retrace.forgotten" not in client.get_model_version("late_arrival", "2").tags
    before = everything(client, "late_arrival")
    registry.forget("late_arrival", 1, entry.commit, TICKET)
    assert everything(client, "late_arrival") == before
    registry.publish(make_entry(model_files["late_arrival"], 3))
    assert max(registry.versions("late_arrival")) == 3


def test_a_version_that_mlflow_never_had_gets_an_entry_so_that_the_next_has_its_number(
    registry: Registry,  # noqa: F811
    client: MlflowClient,  # noqa: F811
    model_files: Mapping[str, Path],  # noqa: F811
) -> None:
    registry.forget("late_arrival", 1, COMMITS[1], TICKET)
    assert registry.versions("late_arrival") == {1: "late_arrival@v1"}
    assert files(registry) == []
    registry.publish(make_entry(model_files["late_arrival"], 2))
    registry.forget("late_arrival", 1, COMMITS[1], TICKET)
    assert registry.versions("late_arrival") == {1: "late_arrival@v1", 2: "late_arrival@v2"}


def test_what_is_not_the_version_is_left_alone(
    registry: Registry,  # noqa: F811
    client: MlflowClient,  # noqa: F811
    entry: Entry,  # noqa: F811
) -> None:
    with pytest.raises(RegistryConflict, match="lacks versions of late_arrival before late_arrival@v2; run `retrace"):
        registry.forget("late_arrival", 2, COMMITS[2], TICKET)
    registry.publish(entry)
    client.create_model_version("late_arrival", "/nowhere", await_creation_for=0)
    with pytest.raises(RegistryConflict, match="has one made by hand in the place of late_arrival@v2"):
        registry.forget("late_arrival", 2, COMMITS[2], TICKET)
    assert files(registry)
