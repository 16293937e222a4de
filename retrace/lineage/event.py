"""OpenLineage run events as they stand in commits: `lineage/<model>/<job>.json`, one JSON object a file.

Outputs carry the `version` facet (the md5 that dvc.lock records), inputs carry none; what was exactly read and written
stands in the run facet `retrace`. Field names follow the OpenLineage 2-0-2 specification.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

PRODUCER = "https://github.com/retrace-ml/retrace"
SCHEMA = "https://openlineage.io/spec/2-0-2/OpenLineage.json#/$defs/RunEvent"
_FACETS = "https://openlineage.io/spec/facets"
_OWN_FACET = f"{PRODUCER}/blob/main/docs/retrace-run-facet.json"
NAMESPACE = "retrace"


@dataclass(frozen=True)
class Output:
    """A dataset that a run wrote, with the version that the lock records for it."""

    name: str
    version: str


@dataclass(frozen=True)
class Event:
    """What is told of one finished run; `facts` is the content of our own run facet."""

    state: str
    run_id: str
    job: str
    started: datetime
    ended: datetime
    inputs: Sequence[str] = ()
    outputs: Sequence[Output] = ()
    facts: Mapping[str, Any] = field(default_factory=dict)
    error: str | None = None

    def as_json(self) -> bytes:
        """The event as the bytes that are committed."""
        facts = {"_producer": PRODUCER, "_schemaURL": _OWN_FACET, "source": "git", **self.facts}
        facts["startedAt"] = self.started.astimezone(UTC).isoformat()
        facets: dict[str, Any] = {"retrace": facts}
        if self.error is not None:
            facets["errorMessage"] = {
                "_producer": PRODUCER,
                "_schemaURL": f"{_FACETS}/1-0-1/ErrorMessageRunFacet.json#/$defs/ErrorMessageRunFacet",
                "message": self.error,
                "programmingLanguage": "PYTHON",
            }
        body = {
            "eventType": self.state,
            "eventTime": self.ended.astimezone(UTC).isoformat(),
            "producer": PRODUCER,
            "schemaURL": SCHEMA,
            "run": {"runId": self.run_id, "facets": facets},
            "job": {"namespace": NAMESPACE, "name": self.job, "facets": {}},
            "inputs": [{"namespace": NAMESPACE, "name": name} for name in self.inputs],
            "outputs": [
                {"namespace": NAMESPACE, "name": output.name, "facets": {"version": _version(output.version)}}
                for output in self.outputs
            ],
        }
        return (json.dumps(body, indent=1, sort_keys=True) + "\n").encode()


def _version(value: str) -> dict[str, str]:
    return {
        "_producer": PRODUCER,
        "_schemaURL": f"{_FACETS}/1-0-1/DatasetVersionDatasetFacet.json#/$defs/DatasetVersionDatasetFacet",
        "datasetVersion": value,
    }


def path(model: str, job: str) -> str:
    """Where the event of a model's job stands in its commit."""
    return f"lineage/{model}/{job}.json"


def dataset_name(path_in_repository: str) -> str:
    """A dataset's name begins with its kind: raw data keeps its path, what is derived drops the `data/`."""
    if path_in_repository.startswith("data/") and not path_in_repository.startswith("data/raw/"):
        return path_in_repository.removeprefix("data/")
    return path_in_repository


def facts_of(event: bytes) -> dict[str, Any]:
    """Our own run facet of an event that was read from a commit."""
    facets = json.loads(event)["run"]["facets"]["retrace"]
    return dict(facets)


def fallback_run_id(*parts: str) -> str:
    """A run id for work that Airflow does not run, the same whenever the same work is named."""
    return str(uuid.uuid5(uuid.NAMESPACE_URL, "/".join((PRODUCER, *parts))))
