"""A version as an in-toto statement with an SLSA v1 provenance predicate, from git alone.

`docs/slsa-retrain.md` says what each field means. It holds no host name, user or path of a machine.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from typing import Any

from retrace.environment import PYTHON_VERSION, REQUIREMENTS
from retrace.errors import RetraceError
from retrace.git import Git
from retrace.lineage import event
from retrace.proof.tracked import tracked
from retrace.record import Record, read_record
from retrace.versions import Version

STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
PREDICATE_TYPE = "https://slsa.dev/provenance/v1"
BUILD_TYPE = f"{event.PRODUCER}/blob/main/docs/slsa-retrain.md"
_DIGESTS = {"sha256": re.compile(r"[0-9a-f]{64}"), "gitCommit": re.compile(r"[0-9a-f]{40}([0-9a-f]{24})?")}
_PIN = re.compile(r"^([A-Za-z0-9._-]+)==([^\s;\\]+)(?:[^\n]*\\\n(?:[^\n]*\\\n)*[^\n]*)?", re.MULTILINE)
_HASH = re.compile(r"--hash=sha256:([0-9a-f]{64})")


class StatementInvalid(RetraceError):
    """A version whose record makes no valid statement."""


def statement(git: Git, version: Version) -> dict[str, Any]:
    """The statement of a version, checked by `in-toto-attestation`. Raises `GitError`, `StatementInvalid`."""
    record = read_record(git, version)
    subject = [_resource(version.name, gitCommit=version.commit)]
    subject += [_resource(path, sha256=file["sha256"]) for path, file in _model_files(record)]
    made = {
        "_type": STATEMENT_TYPE,
        "subject": subject,
        "predicateType": PREDICATE_TYPE,
        "predicate": {"buildDefinition": _definition(git, record), "runDetails": _run(git, record)},
    }
    check(made, version)
    return made


def _resource(name: str, **digest: str) -> dict[str, Any]:
    return {"name": name, "digest": digest}


def _model_files(record: Record) -> list[tuple[str, dict[str, Any]]]:
    return [item for item in record.files().items() if item[0].startswith(f"models/{record.version.model}.")]


def _definition(git: Git, record: Record) -> dict[str, Any]:
    through = record.version.through
    asked = {
        "model": record.version.model,
        "code": record.code,
        "data": record.data,
        "dataThrough": through.isoformat() if through is not None else None,
        "parameters": record.parameters,
    }
    return {
        "buildType": BUILD_TYPE,
        "externalParameters": json.loads(json.dumps(asked, default=str)),
        "internalParameters": {"python": record.python, "stages": [stage.name for stage in record.stages]},
        "resolvedDependencies": list(_dependencies(git, record)),
    }


def _dependencies(git: Git, record: Record) -> Iterator[dict[str, Any]]:
    yield _resource("code", gitCommit=record.code)
    yield _resource("data", gitCommit=record.data)
    for dataset in record.datasets:
        for part in dataset.partitions:
            yield _resource(part.path, sha256=part.sha256)
    locks = git.read_many([f"{record.version.commit}:{path}" for path in (REQUIREMENTS, PYTHON_VERSION)])
    for path, content in zip((REQUIREMENTS, PYTHON_VERSION), locks, strict=True):
        yield _resource(path, sha256=hashlib.sha256(content or b"").hexdigest())
    yield from _packages(record, (locks[0] or b"").decode())


def _packages(record: Record, lock: str) -> Iterator[dict[str, Any]]:
    """The pinned packages. The lock admits several files of most, a wheel for each platform: which of them was
    installed is on no record, and a digest means one file; so the admitted ones are told as what they are."""
    pinned = {f"{name}=={version}": _HASH.findall(found) for name, version, found in _pins(lock)}
    for package in record.packages:
        name, _, number = package.partition("==")
        admitted = pinned.get(package, [])
        uri = f"pkg:pypi/{re.sub(r'[-_.]+', '-', name).lower()}@{number}"
        found: dict[str, Any] = {"name": name, "uri": uri}
        if len(admitted) == 1:
            found["digest"] = {"sha256": admitted[0]}
        elif admitted:
            found["annotations"] = {"sha256OneOf": admitted}
        yield found


def _pins(lock: str) -> Iterator[tuple[str, str, str]]:
    for found in _PIN.finditer(lock):
        yield found[1], found[2], found[0]


def _run(git: Git, record: Record) -> dict[str, Any]:
    version = record.version
    content = git.read(version.commit, event.path(version.model, "snapshot"))
    assert content is not None  # the record was read from it
    engine = json.loads(content)["run"]["facets"].get("processing_engine", {}).get("version")
    builder = {"id": event.PRODUCER} | ({"version": {"retrace": engine}} if engine else {})
    kept = {path for path, _ in _model_files(record)}
    files = [file for thing in tracked(record)[len(record.datasets) :] for file in thing.files]
    return {
        "builder": builder,
        "metadata": {
            "invocationId": version.run_ref,
            "startedOn": event.facts_of(content)["startedAt"],
            "finishedOn": version.created.isoformat(),
        },
        "byproducts": [_resource(file.path, sha256=file.sha256) for file in files if file.path not in kept],
    }


def check(found: dict[str, Any], version: Version) -> None:
    """Raise `StatementInvalid` unless this is a valid statement of SLSA provenance about the version.

    The library checks the form, and takes any text for a digest; types, subject and digests are compared here.
    """
    from google.protobuf.json_format import ParseDict, ParseError
    from in_toto_attestation.predicates.provenance.v1.provenance_pb2 import Provenance
    from in_toto_attestation.v1.resource_descriptor import ResourceDescriptor
    from in_toto_attestation.v1.statement import Statement

    try:
        resources = [*found["subject"], *found["predicate"]["buildDefinition"]["resolvedDependencies"]]
        resources += found["predicate"]["runDetails"]["byproducts"]
        described = [_described(ResourceDescriptor, resource) for resource in resources]
        ParseDict(found["predicate"], Provenance())
        subject = [resource.pb for resource in described[: len(found["subject"])]]
        Statement(subject, found["predicateType"], found["predicate"]).validate()
        wrong = _wrong(found, resources, version)
    except (ParseError, ValueError, KeyError, TypeError) as error:
        wrong = f"{type(error).__name__}: {' '.join(str(error).split())}"
    if wrong is not None:
        raise StatementInvalid(f"{version.name} makes no valid statement of provenance: {wrong}")


def _described(kind: Any, resource: dict[str, Any]) -> Any:
    made = kind(**{key: resource[key] for key in ("name", "uri", "digest", "annotations") if key in resource})
    made.validate()
    return made


def _wrong(found: dict[str, Any], resources: list[dict[str, Any]], version: Version) -> str | None:
    if (found["_type"], found["predicateType"]) != (STATEMENT_TYPE, PREDICATE_TYPE):
        return f"its types are {found['_type']} and {found['predicateType']}"
    if found["subject"][0] != _resource(version.name, gitCommit=version.commit):
        return f"it is about {found['subject'][0]['name']}, or another commit"
    for resource in resources:
        for algorithm, digest in resource.get("digest", {}).items():
            if algorithm not in _DIGESTS or not _DIGESTS[algorithm].fullmatch(digest):
                return f"{digest[:80]!r} is no {algorithm} of {resource['name']}"
    return None
