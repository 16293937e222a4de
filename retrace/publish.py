"""Bring MLflow up to what git says: every version in tag order, then the aliases. Running it again changes nothing.

MLflow is a view: what an outage left out, the next publication or `retrace sync` puts in; nothing waits for it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from retrace import lease, verdicts, versions
from retrace.card import CARD, card
from retrace.config import Settings
from retrace.dvcfiles import object_path
from retrace.git import Git, Mirror
from retrace.hashing import hash_file
from retrace.lineage.links import marquez_job
from retrace.process import Job, ObjectCorrupt, run_job
from retrace.published import Artifact, Dataset, Entry, EntryError, Fingerprint, provenance, told_verdict
from retrace.record import RawDataset, Record, read_record
from retrace.register import registered
from retrace.registry import Registry
from retrace.tombstones import tombstones
from retrace.verdicts import Verdict
from retrace.verify import require, require_holder
from retrace.versions import Version
from retrace.workspace import workspace


def publish_model(settings: Settings, model: str, follow: Callable[[str], None]) -> list[str]:
    """Write what MLflow lacks of a model; what was changed, in words.

    Raises `RegistryUnavailable`, `RegistryConflict`, `ModelBusy`, `NotVerified`, and what fetching a model file may
    raise.
    """
    mirror = Mirror.open(settings.mirror, settings.origin)
    mirror.fetch_record()
    registry = Registry(settings.mlflow, settings.mlflow_artifacts, settings.patience)
    with lease.publication(mirror, model):
        return _publish(settings, mirror, registry, model, follow)


def _publish(
    settings: Settings, mirror: Mirror, registry: Registry, model: str, follow: Callable[[str], None]
) -> list[str]:
    held = registry.versions(model)
    own = versions.versions(mirror, model)
    judged = verdicts.newest(mirror, own)
    changes = []
    for version in own:
        if held.get(version.number) == version.name:
            continue
        verdict = judged.get(version.name)
        if verdict is not None and verdict.ticket is not None:
            registry.forget(model, version.number, version.commit, verdict.ticket)
            changes.append(f"{version.name} written without its files: forgotten on request {verdict.ticket}")
            continue
        follow(f"writes {version.name} to MLflow")
        require(settings, mirror, version, objects=False)  # the file to serve is compared with the record below
        with entry_of(settings, mirror, version) as entry:
            registry.publish(entry)
        changes.append(f"{version.name} written")
    aliases = registry.aliases(model)
    for (name, alias), version in versions.champions(mirror).items():
        if name == model and aliases.get(alias) != version.number:
            require_holder(settings, mirror, version, alias, objects=False)
            registry.alias(model, alias, version.number)
            changes.append(f"{alias} -> v{version.number}")
    known = {version.number: judged[version.name] for version in own if version.name in judged}
    return changes + _tell_verdicts(registry, model, known)


def _tell_verdicts(registry: Registry, model: str, judged: Mapping[int, Verdict]) -> list[str]:
    """Tags of what the last rebuild of each version said."""
    held = registry.all_tags(model) if judged else {}
    changes = []
    for number, verdict in judged.items():
        told = told_verdict(verdict.verdict, verdict.when)
        if number in held and not told.items() <= held[number].items():
            registry.tag(model, number, told)
            changes.append(f"the last rebuild of {verdict.version} was told: {verdict.verdict}")
    return changes


@contextmanager
def entry_of(settings: Settings, mirror: Mirror, version: Version) -> Iterator[Entry]:
    """A version as MLflow is to show it; its model file is at hand while the block lasts."""
    record = read_record(mirror, version)
    path, fingerprint = _model_output(record)
    with _model_file(settings, mirror, record, path, fingerprint) as file:
        yield _entry(settings, mirror, record, file, fingerprint)


def _model_output(record: Record) -> tuple[str, Fingerprint]:
    for path, file in record.files().items():
        if path.startswith(f"models/{record.version.model}."):
            return path, Fingerprint(file["md5"], file["sha256"])
    raise EntryError(f"{record.version.name} has no output models/{record.version.model}.*: nothing can be served")


@contextmanager
def _model_file(settings: Settings, mirror: Mirror, record: Record, path: str, wanted: Fingerprint) -> Iterator[Path]:
    """The model file, from this machine's cache or the remote, after its hash matched the record."""
    cached = object_path(settings.cache, wanted.md5)
    forgotten = wanted.md5 in tombstones(mirror)
    if not forgotten and cached.is_file() and hash_file(cached).sha256 == wanted.sha256:
        yield cached
        return
    version = record.version
    with workspace(settings, mirror, version.commit, f"{version.model}--publish-v{version.number}") as space:
        request = {"operation": "bring", "paths": [path], "sha256": {path: wanted.sha256}}
        log = settings.logs / version.model / f"publish-v{version.number}.log"
        run_job(settings, Job(f"publication of {version.name}", space, request, log))
        file = space.path / path
        if hash_file(file).sha256 != wanted.sha256:
            raise ObjectCorrupt(f"{path} of {version.name} is not what the record says and was not published")
        yield file


def _entry(settings: Settings, git: Git, record: Record, file: Path, fingerprint: Fingerprint) -> Entry:
    version = record.version
    serving = _serving(git, version)
    metrics = {
        f"{part}_{name}" if part != "holdout" else str(name): float(value)
        for part, values in record.metrics.items()
        for name, value in values.items()
    }
    return Entry(
        model=version.model,
        number=version.number,
        commit=version.commit,
        created=version.created,
        parameters=dict(_flat("", record.parameters)),
        metrics=metrics,
        model_file=file,
        model_fingerprint=fingerprint,
        requirements=record.packages,
        input_schema=[(str(name), kind) for name, kind in serving["columns"]],
        input_example=serving["example"],
        datasets=[Dataset(f"data/raw/{dataset.name}", dataset.md5, dataset.rows) for dataset in record.datasets],
        files=_shown_files(git, record),
        provenance=provenance(
            features=_features(record),
            datasets={f"data/raw/{dataset.name}": _dataset_fingerprint(dataset) for dataset in record.datasets},
            environment=record.environment,
            parameters=record.parameters_digest,
            run_id=version.run_id,
            lineage_run_id=registered(git, version).run,
            lineage_page=marquez_job(settings, f"{version.model}.register"),
        ),
    )


def _serving(git: Git, version: Version) -> dict[str, Any]:
    path = f"reports/{version.model}/serving.json"
    content = git.read(version.commit, path)
    if content is None:
        raise EntryError(
            f"{version.name} has no {path}: its evaluate stage must write the model's columns and an example"
        )
    return dict(json.loads(content))


def _flat(prefix: str, value: object) -> Iterator[tuple[str, str]]:
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            yield from _flat(f"{prefix}.{key}" if prefix else str(key), inner)
    else:
        yield prefix, value if isinstance(value, str) else json.dumps(value, default=str)


def _tree_digest(files: dict[str, str]) -> str:
    """One sha256 for a directory: over the sorted lines `sha256 path`."""
    return hashlib.sha256("".join(f"{sha} {path}\n" for path, sha in sorted(files.items())).encode()).hexdigest()


def _dataset_fingerprint(dataset: RawDataset) -> Fingerprint:
    return Fingerprint(dataset.md5, _tree_digest({part.path: part.sha256 for part in dataset.partitions}))


def _features(record: Record) -> Fingerprint:
    path = f"data/features/{record.version.model}"
    files = {name: file["sha256"] for name, file in record.files().items() if name.startswith(f"{path}/")}
    return Fingerprint(record.outputs().get(path, ""), _tree_digest(files))


def _shown_files(git: Git, record: Record) -> list[Artifact]:
    """The version's card, the plots, the trials table and the reports: all outputs that live in git."""
    version = record.version
    tree = git.files(version.commit)
    shown = [path for path in record.files() if path in tree]
    contents = git.read_many([tree[path] for path in shown])
    files = [Artifact(path, content) for path, content in zip(shown, contents, strict=True) if content is not None]
    return [Artifact(CARD, card(git, version, lasting=True).encode()), *files]
