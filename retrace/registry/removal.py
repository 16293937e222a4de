"""Take a version's files out of MLflow. Its entry stays, without them: numbers there are git's, and it did exist."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from retrace.published import GIT_COMMIT, GIT_TAG

FORGOTTEN = "retrace.forgotten"  # the tag that names the ticket


def remove_files(client: Any, runs: Iterable[Any], logged_models: Iterable[Any], ticket: str) -> None:
    """Delete all files of these runs and logged models, and the logged models themselves; the runs keep their numbers
    and say on whose request their files are gone. A second time changes nothing."""
    for run in runs:
        _delete(client, run.info.artifact_uri)
        if run.info.lifecycle_stage == "active":
            client.set_tag(run.info.run_id, FORGOTTEN, ticket)
    for model in logged_models:
        _delete(client, model.artifact_location)
        client.delete_logged_model(model.model_id)


def _delete(client: Any, location: str) -> None:
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    repository: Any = get_artifact_repository(location, tracking_uri=client.tracking_uri)
    repository.delete_artifacts()


def mark(client: Any, model: str, number: int, tag: str, ticket: str) -> None:
    """Say on a registered version why nothing can be loaded from it."""
    version = str(number)
    client.set_model_version_tag(model, version, FORGOTTEN, ticket)
    client.update_model_version(model, version, f"{tag}: its files were removed on request {ticket}")


def stand_in(client: Any, experiment: str, model: str, tag: str, commit: str, ticket: str) -> int:
    """Register a version without files in the place of one that MLflow never had; the number that it was given."""
    tags = {GIT_TAG: tag, GIT_COMMIT: commit, FORGOTTEN: ticket}
    run = client.create_run(experiment, tags=tags, run_name=tag)
    client.set_terminated(run.info.run_id)
    if not client.search_registered_models(f"name = '{model}'"):
        client.create_registered_model(model)
    made = client.create_model_version(
        model, run.info.artifact_uri, run_id=run.info.run_id, tags=tags, await_creation_for=0
    )
    return int(made.version)
