"""One MLflow run, one logged model and one registered version for every version tag, and the aliases.

Publishing is idempotent: what an earlier, killed attempt left is found by the tag `git.tag` and finished. The number
in MLflow is the number of the git tag, so versions are published in order, and a registry in which somebody made or
deleted versions by hand is refused. Two publishers of one model at once would compete for a number: callers hold the
model's lock.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from retrace.errors import RetraceError
from retrace.published import GIT_COMMIT, GIT_TAG, Entry
from retrace.registry.contact import address, check_address, contact, prepare, probe, probe_artifacts, sqlite_file
from retrace.registry.removal import mark, remove_files, stand_in
from retrace.registry.servable import check_model_file, save_servable

_UPLOAD_PATIENCE = 60


class RegistryConflict(RetraceError):
    """MLflow holds something else than git says, and only a person can decide."""


class Registry:
    """The MLflow at `tracking_uri`; nothing is contacted, nor MLflow imported, before the first call.

    `artifact_root` is where the artifacts of a new experiment go; a server decides by itself. `patience` limits every
    answer, in seconds. All methods raise `RegistryUnavailable` or `RegistryRefused`.
    """

    def __init__(self, tracking_uri: str, artifact_root: str | None = None, patience: float = 8) -> None:
        check_address(tracking_uri)
        self.uri = tracking_uri
        self._artifact_root = artifact_root
        self._patience = patience

    def publish(self, entry: Entry) -> str:
        """Write the version, or finish writing it; return the id of its run. Nothing is changed if all is there.

        Raises `RegistryConflict`, `ModelFileChanged` or `EntryError`; no version is registered then.
        """
        check_model_file(entry)
        with contact(self.uri, self._patience):
            if done := self._registered(entry):
                return done
            experiment = self._experiment(entry.model)
            run = self._run(experiment, entry)
            run_id = str(run.info.run_id)
            logged_model = self._logged_model(experiment, run_id, entry)
            probe_artifacts(logged_model.artifact_location, self._patience)
        if run.info.status != "FINISHED" or logged_model.status != "READY":
            self._upload(run_id, logged_model, entry)
        with contact(self.uri, self._patience):
            if run.info.status != "FINISHED":
                self._write_run(run_id, logged_model.model_id, entry)
                self._client.set_terminated(run_id, end_time=_milliseconds(entry))
            self._register(run_id, logged_model, entry)
        return run_id

    def versions(self, model: str) -> dict[int, str]:
        """The version tag behind each number in MLflow; an empty string for a version that somebody made by hand."""
        with contact(self.uri, self._patience):
            return self._versions(model)

    def download(self, model: str, number: int, path: str, folder: Path) -> Path:
        """Bring a file of what MLflow would load as this version into a folder."""
        with contact(self.uri, max(self._patience, _UPLOAD_PATIENCE)):
            from mlflow.artifacts import download_artifacts

            place = self._client.get_model_version_download_uri(model, str(number))
            probe_artifacts(place, self._patience)
            return Path(download_artifacts(artifact_uri=f"{place}/{path}", dst_path=str(folder), tracking_uri=self.uri))

    def alias(self, model: str, alias: str, number: int) -> None:
        """Let `models:/<model>@<alias>` be this version. Raises `RegistryConflict` if MLflow does not have it yet."""
        with contact(self.uri, self._patience):
            if number not in self._versions(model):
                raise RegistryConflict(f"{self._here} has no {model}@v{number} yet; run `retrace sync`")
            self._client.set_registered_model_alias(model, alias, str(number))

    def all_tags(self, model: str) -> dict[int, dict[str, str]]:
        """The tags of every version of a model, by number."""
        with contact(self.uri, self._patience):
            return self._tags(model)

    def tag(self, model: str, number: int, tags: Mapping[str, str]) -> None:
        """Set tags of a version, in place of those of the same names."""
        with contact(self.uri, self._patience):
            for key, value in tags.items():
                self._client.set_model_version_tag(model, str(number), key, value)

    def aliases(self, model: str) -> dict[str, int]:
        """The number behind each alias of a model; none for a model that MLflow does not know."""
        with contact(self.uri, self._patience):
            found = self._client.search_registered_models(f"name = '{model}'")
            return {alias: int(number) for item in found for alias, number in item.aliases.items()}

    def remove_alias(self, model: str, alias: str) -> None:
        """Let no version of the model have this alias."""
        if alias in self.aliases(model):
            with contact(self.uri, self._patience):
                self._client.delete_registered_model_alias(model, alias)

    def forget(self, model: str, number: int, commit: str, ticket: str) -> None:
        """Delete a version's files, those of its runs and logged models; its entry stays and says on whose request.

        A version that MLflow has not been told of gets such an entry in its place. Repeating it changes nothing.
        Raises `RegistryConflict` if the number is another's or is not next.
        """
        tag = f"{model}@v{number}"
        with contact(self.uri, max(self._patience, _UPLOAD_PATIENCE)):
            held = self._versions(model)
            if number not in held and number != max(held, default=0) + 1:
                raise RegistryConflict(f"{self._here} lacks versions of {model} before {tag}; run `retrace sync`")
            if held.get(number, tag) != tag:
                raise RegistryConflict(f"{self._here} has {held[number] or 'one made by hand'} in the place of {tag}")
            experiment = self._experiment(model)
            remove_files(self._client, *self._traces(experiment, tag), ticket)
            if number not in held and stand_in(self._client, experiment, model, tag, commit, ticket) != number:
                raise RegistryConflict(f"{self._here} gives {tag} another number: somebody deleted versions by hand")
            mark(self._client, model, number, tag, ticket)

    def _traces(self, experiment: str, tag: str) -> tuple[Sequence[Any], Sequence[Any]]:
        """Every run, deleted ones too, and every logged model of a version."""
        from mlflow.entities import ViewType

        query = f"tags.`{GIT_TAG}` = '{tag}'"
        runs = _pages(
            self._client.search_runs, experiment_ids=[experiment], filter_string=query, run_view_type=ViewType.ALL
        )
        return runs, _pages(self._client.search_logged_models, experiment_ids=[experiment], filter_string=query)

    @property
    def _here(self) -> str:
        return f"MLflow at {address(self.uri)}"

    @cached_property
    def _client(self) -> Any:
        if sqlite_file(self.uri):
            prepare(self.uri, self._patience)
        probe(self.uri)
        from mlflow import MlflowClient

        return MlflowClient(self.uri)

    def _versions(self, model: str) -> dict[int, str]:
        return {number: tags.get(GIT_TAG, "") for number, tags in self._tags(model).items()}

    def _tags(self, model: str) -> dict[int, dict[str, str]]:
        found = _pages(self._client.search_model_versions, filter_string=f"name = '{model}'")
        return {int(item.version): dict(item.tags) for item in sorted(found, key=lambda item: int(item.version))}

    def _registered(self, entry: Entry) -> str | None:
        """The run of the version if MLflow has it; a `RegistryConflict` if the number is another's or is not next."""
        versions = self._versions(entry.model)
        if entry.number not in versions:
            if entry.number != max(versions, default=0) + 1:
                raise self._out_of_step(entry, f"its versions are {', '.join(map(str, sorted(versions))) or 'none'}")
            return None
        found = self._client.get_model_version(entry.model, str(entry.number))
        if (found.tags.get(GIT_TAG), found.tags.get(GIT_COMMIT)) != (entry.tag, entry.commit):
            other = f"{found.tags.get(GIT_TAG, 'made by hand')} at {found.tags.get(GIT_COMMIT, 'no commit')[:8]}"
            raise self._out_of_step(entry, f"version {entry.number} is {other}, not {entry.commit[:8]}")
        return str(found.run_id)

    def _out_of_step(self, entry: Entry, what: str) -> RegistryConflict:
        return RegistryConflict(
            f"{self._here} cannot take {entry.tag} as version {entry.number} of {entry.model}: {what}; publish in order"
            " with `retrace sync`, or, if versions were made or deleted by hand, delete the registered model"
            f" {entry.model} in MLflow first: git has all of it, and sync writes it again"
        )

    def _experiment(self, model: str) -> str:
        """The model's experiment, made or brought back from MLflow's bin."""
        found = self._client.get_experiment_by_name(model)
        if found is None:
            location = f"{self._artifact_root}/{model}" if self._artifact_root else None
            return str(self._client.create_experiment(model, artifact_location=location))
        if found.lifecycle_stage == "deleted":
            self._client.restore_experiment(found.experiment_id)
        return str(found.experiment_id)

    def _run(self, experiment: str, entry: Entry) -> Any:
        """The run of the version: the one that was finished, or begun; any other of the same tag is deleted."""
        from mlflow.entities import ViewType

        found = _pages(
            self._client.search_runs,
            experiment_ids=[experiment],
            filter_string=f"tags.`{GIT_TAG}` = '{entry.tag}' and tags.`{GIT_COMMIT}` = '{entry.commit}'",
            run_view_type=ViewType.ALL,
        )
        if not found:
            own = {"mlflow.source.git.commit": entry.commit, "mlflow.source.name": entry.tag, "mlflow.user": "retrace"}
            tags = entry.tags | own
            return self._client.create_run(experiment, start_time=_milliseconds(entry), tags=tags, run_name=entry.tag)
        kept, *others = sorted(found, key=lambda run: (run.info.status != "FINISHED", run.info.lifecycle_stage))
        if kept.info.lifecycle_stage == "deleted":
            self._client.restore_run(kept.info.run_id)
        for other in others:
            if other.info.lifecycle_stage == "active":
                self._client.delete_run(other.info.run_id)
        return kept

    def _logged_model(self, experiment: str, run_id: str, entry: Entry) -> Any:
        found = _pages(
            self._client.search_logged_models,
            experiment_ids=[experiment],
            filter_string=f"tags.`{GIT_TAG}` = '{entry.tag}' and source_run_id = '{run_id}'",
        )
        if not found:
            name = entry.tag.replace("@", "-")
            return self._client.create_logged_model(experiment, name=name, source_run_id=run_id, tags=entry.tags)
        kept, *others = sorted(found, key=lambda model: model.status != "READY")
        for other in others:
            self._client.delete_logged_model(other.model_id)
        return kept

    def _upload(self, run_id: str, logged_model: Any, entry: Entry) -> None:
        """The files of the run and of the model; writing them again changes nothing."""
        with tempfile.TemporaryDirectory() as folder:
            shown, servable = Path(folder, "shown"), Path(folder, "servable")
            for artifact in entry.files:
                path = shown / artifact.name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(artifact.read())
            with contact(self.uri, max(self._patience, _UPLOAD_PATIENCE)):
                if entry.files:
                    self._client.log_artifacts(run_id, str(shown))
                if logged_model.status != "READY":
                    save_servable(entry, logged_model, servable)
                    self._client.log_model_artifacts(logged_model.model_id, str(servable))
                    self._client.finalize_logged_model(logged_model.model_id, "READY")

    def _write_run(self, run_id: str, model_id: str, entry: Entry) -> None:
        """Parameters, metrics and datasets, at the version's own time: a second writing is the same rows."""
        from mlflow.entities import LoggedModelOutput, Metric, Param

        when = _milliseconds(entry)
        metrics = [Metric(key, value, when, 0, model_id, run_id=run_id) for key, value in entry.metrics.items()]
        parameters = [Param(key, value) for key, value in entry.parameters.items()]
        self._client.log_batch(run_id, metrics=metrics, params=parameters)
        self._client.log_inputs(run_id, datasets=_dataset_inputs(entry))
        outputs = self._client.get_run(run_id).outputs
        if not outputs or not outputs.model_outputs:
            self._client.log_outputs(run_id, [LoggedModelOutput(model_id, step=0)])

    def _register(self, run_id: str, logged_model: Any, entry: Entry) -> None:
        """The last step: a registered version is always a whole one."""
        if not self._client.search_registered_models(f"name = '{entry.model}'"):
            self._client.create_registered_model(entry.model)
        # By location, not by `models:/<id>`: MLflow looks that up in the process' global store, not in this one.
        made = self._client.create_model_version(
            entry.model,
            logged_model.artifact_location,
            run_id=run_id,
            tags=entry.tags,
            description=f"{entry.tag} = commit {entry.commit}",
            model_id=logged_model.model_id,
            await_creation_for=0,
        )
        if int(made.version) != entry.number:
            # MLflow does not show deleted versions, and never gives their numbers again.
            self._client.delete_model_version(entry.model, made.version)
            raise self._out_of_step(entry, f"the next number that it gives is {made.version}")


def _dataset_inputs(entry: Entry) -> list[Any]:
    """Datasets by DVC's md5: MLflow's own digest covers the first 10,000 rows."""
    from mlflow.entities import Dataset, DatasetInput, InputTag

    inputs = []
    for item in entry.datasets:
        source = json.dumps({"tags": {"path": item.name, GIT_COMMIT: entry.commit, "dvc.md5": item.digest}})
        profile = None if item.rows is None else json.dumps({"num_rows": item.rows})
        dataset = Dataset(item.name, item.digest, source_type="code", source=source, profile=profile)
        inputs.append(DatasetInput(dataset, [InputTag("mlflow.data.context", item.context)]))
    return inputs


def _milliseconds(entry: Entry) -> int:
    return int(entry.created.timestamp() * 1000)


def _pages(search: Any, **query: Any) -> Sequence[Any]:
    """All pages of one of MLflow's searches."""
    page = search(**query)
    found = list(page)
    while page.token:
        page = search(**query, page_token=page.token)
        found += page
    return found
