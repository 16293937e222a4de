"""What a version looks like to MLflow: plain values, read from git and DVC by whoever publishes.

Every run, model version and logged model of a version carries the same tags, so that either half of a question finds
the other: `tags."model.md5" = '...'` names the version of a file, `tags."data/raw/flights.md5" = '...'` the versions
that were trained on a dataset.

| tag | value |
|---|---|
| `git.tag`, `git.commit` | the version (`late_arrival@v3`) and the full commit that it tags |
| `model.md5`, `model.sha256` | the model file, as DVC tracks it and as served |
| `<dataset>.md5`, `<dataset>.sha256` | each raw dataset by its path: `data/raw/flights.md5` |
| `features.md5`, `features.sha256` | the features that the model was trained on |
| `environment.lock` | sha256 of what the stages' environment pins |
| `params.sha256` | the parameters |
| `airflow.run_id` | the run that made the version |
| `lineage.run_id`, `lineage.page` | the OpenLineage run that registered it; where Marquez shows the job |
| `verdict`, `verdict.when` | what the last rebuild of the version said (model versions only) |

The first two rows are written by `Registry.publish` itself, the others come from `provenance`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path, PurePosixPath
from typing import Literal, get_args

from retrace.errors import RetraceError

FeatureType = Literal["string", "integer", "float", "boolean", "timestamp"]
FeatureValue = str | int | float | bool | datetime | None

GIT_TAG = "git.tag"
GIT_COMMIT = "git.commit"
VERDICT, VERDICT_WHEN = "verdict", "verdict.when"
_PINNED_SCIKIT_LEARN = re.compile(r"scikit[-_.]learn==([^\s;]+)", re.IGNORECASE)


class EntryError(RetraceError):
    """A version whose record is not whole enough to be published."""


def told_verdict(verdict: str, when: datetime) -> dict[str, str]:
    """The tags that say what the last rebuild of a version said."""
    return {VERDICT: verdict, VERDICT_WHEN: when.isoformat(timespec="seconds")}


@dataclass(frozen=True)
class Fingerprint:
    """The two hashes of a file or directory."""

    md5: str
    sha256: str


@dataclass(frozen=True)
class Artifact:
    """A file to show beside the run: its path there and its content, or where that is."""

    name: str
    content: bytes | Path

    def __post_init__(self) -> None:
        path = PurePosixPath(self.name)
        if not path.name or path.is_absolute() or ".." in path.parts:
            raise EntryError(f"{self.name!r} cannot be the name of an artifact; use a path inside the repository")

    def read(self) -> bytes:
        return self.content if isinstance(self.content, bytes) else self.content.read_bytes()


@dataclass(frozen=True)
class Dataset:
    """Data that a version was made of: a path in the repository and DVC's md5 of it (`.dir` included)."""

    name: str
    digest: str
    rows: int | None = None
    context: str = "training"


@dataclass(frozen=True)
class Entry:
    """A model version as MLflow is to show it; `created` is timezone-aware.

    `requirements` are pinned (`name==version`, without hashes); `input_schema` names the model's columns in order.
    """

    model: str
    number: int
    commit: str
    created: datetime
    parameters: Mapping[str, str]
    metrics: Mapping[str, float]
    model_file: Path
    model_fingerprint: Fingerprint
    requirements: Sequence[str]
    input_schema: Sequence[tuple[str, FeatureType]]
    input_example: Sequence[Mapping[str, FeatureValue]]
    datasets: Sequence[Dataset] = ()
    files: Sequence[Artifact] = ()
    provenance: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self._scikit_learn_pins:
            raise EntryError(f"the lock of {self.tag} pins no scikit-learn: it cannot be served; add it, run make lock")
        if not self.input_schema:
            raise EntryError(f"{self.tag} names no input columns: it cannot be served")
        for name, kind in self.input_schema:
            if kind not in get_args(FeatureType):
                known = ", ".join(get_args(FeatureType))
                raise EntryError(f"column {name} of {self.tag} is of type {kind!r}; MLflow is told one of {known}")

    @property
    def tag(self) -> str:
        return f"{self.model}@v{self.number}"

    @property
    def tags(self) -> dict[str, str]:
        """Every searchable tag of the version."""
        return {
            **self.provenance,
            GIT_TAG: self.tag,
            GIT_COMMIT: self.commit,
            "model.md5": self.model_fingerprint.md5,
            "model.sha256": self.model_fingerprint.sha256,
        }

    @property
    def scikit_learn(self) -> str:
        """The scikit-learn that the model was trained with."""
        return self._scikit_learn_pins[0]

    @property
    def _scikit_learn_pins(self) -> list[str]:
        return [pinned[1] for item in self.requirements if (pinned := _PINNED_SCIKIT_LEARN.match(item))]


def provenance(
    *,
    features: Fingerprint,
    datasets: Mapping[str, Fingerprint],
    environment: str,
    parameters: str,
    run_id: str,
    lineage_run_id: str | None = None,
    lineage_page: str | None = None,
) -> dict[str, str]:
    """The tags of what a version was made of, under the names that the head of this module lists."""
    tags = {
        "features.md5": features.md5,
        "features.sha256": features.sha256,
        "environment.lock": environment,
        "params.sha256": parameters,
        "airflow.run_id": run_id,
    }
    tags |= {"lineage.run_id": lineage_run_id} if lineage_run_id is not None else {}
    tags |= {"lineage.page": lineage_page} if lineage_page is not None else {}
    for path, fingerprint in datasets.items():
        tags |= {f"{path}.md5": fingerprint.md5, f"{path}.sha256": fingerprint.sha256}
    return tags
