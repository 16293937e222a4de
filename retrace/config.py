"""params.yaml and the settings of a machine: typed, checked once, refused with a message that names the key.

`params.yaml` belongs to the repository: what is ingested, trained, gated and when. It is read from a commit, never from
a working copy, so that a run and its record agree. `Settings` belong to the machine: where git, DVC, MLflow and the
state are; they come from the environment and have defaults that need no server.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from retrace import yaml12
from retrace.errors import RetraceError

NAME = re.compile(r"[a-z][a-z0-9_]*")
RESERVED_NAMES = frozenset({"ingest", "audit", "sync", "monitor", "doctor", "data"})
COLUMN = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
MODULE = re.compile(r"[a-z_][a-z0-9_]*(\.[a-z_][a-z0-9_]*)*")

ColumnType = Literal["string", "integer", "float", "boolean", "timestamp"]


class ConfigError(RetraceError):
    """params.yaml or a setting is wrong; the message names the key and what it takes."""


def check_name(name: str) -> str:
    """Return the model or dataset name if it may stand in a ref, a path and a DAG id; a ValueError otherwise."""
    if not NAME.fullmatch(name) or len(name) > 40:
        raise ValueError(f"{name!r} is not a name: use a letter, then letters, digits and _ (lower case, at most 40)")
    return name


def _as_utc(value: object) -> object:
    """YAML gives a date for 2013-01-01; an interval begins at midnight UTC."""
    if isinstance(value, date) and not isinstance(value, datetime):
        value = datetime(value.year, value.month, value.day)
    if isinstance(value, str):
        value = datetime.fromisoformat(value)
    if isinstance(value, datetime) and value.tzinfo is None:
        return value.replace(tzinfo=UTC)
    return value


Moment = Annotated[datetime, BeforeValidator(_as_utc)]


def _cron(value: str) -> str:
    if not re.fullmatch(r"(@(hourly|daily|weekly|monthly|yearly))|([0-9A-Za-z*,/#-]+( +[0-9A-Za-z*,/#-]+){4})", value):
        raise ValueError(f"{value!r} is not a cron expression of five fields")
    return value


Cron = Annotated[str, AfterValidator(_cron)]  # five fields of digits, names and `* , - / #`, or a name like `@daily`


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class DatasetSettings(_Strict):
    """One raw dataset: a query for an interval and the schema that its partitions have."""

    name: str
    query: str
    key: tuple[str, ...] = Field(min_length=1)
    columns: dict[str, ColumnType] = Field(min_length=1)

    @model_validator(mode="after")
    def _check(self) -> Self:
        for column in self.columns:
            if not COLUMN.fullmatch(column):
                raise ValueError(f"{column!r} is not a column name: letters, digits and _")
        missing = [column for column in self.key if column not in self.columns]
        if missing:
            raise ValueError(f"key names {', '.join(missing)}, which columns does not")
        for bound in (":start", ":end"):
            if bound not in self.query:
                raise ValueError(f"query lacks the bound parameter {bound}")
        return self


class IngestSettings(_Strict):
    """What ingestion fetches, from where and how often."""

    connection: Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9_]*$")]
    start: Moment
    every: Literal["month", "week", "day"]
    schedule: Cron | None = None
    owner: str | None = None
    datasets: dict[str, DatasetSettings] = Field(min_length=1)

    @field_validator("datasets", mode="before")
    @classmethod
    def _named(cls, value: object) -> object:
        if not isinstance(value, dict):
            return value
        return {
            check_name(str(name)): {**body, "name": name} if isinstance(body, dict) else body
            for name, body in value.items()
        }


class ScheduleSettings(_Strict):
    """When a model is retrained: at times (cron), when new data has arrived, or both."""

    cron: Cron | None = None
    data: bool = False


class GateRule(_Strict):
    """One condition on a holdout metric: a number, or the champion's value on the same holdout."""

    metric: str
    at_least: float | Literal["champion"] | None = None
    at_most: float | Literal["champion"] | None = None
    tolerance: float = Field(default=0.0, ge=0.0)

    @model_validator(mode="after")
    def _one_bound(self) -> Self:
        if (self.at_least is None) == (self.at_most is None):
            raise ValueError("give exactly one of at_least and at_most")
        return self

    @property
    def against_champion(self) -> bool:
        return "champion" in (self.at_least, self.at_most)


class ModelSettings(BaseModel):
    """What the engine needs of a model; the other keys under it are the domain's and are its to check."""

    model_config = ConfigDict(extra="allow", frozen=True)

    datasets: tuple[str, ...] = Field(min_length=1)
    schedule: ScheduleSettings = ScheduleSettings()
    owner: str | None = None
    timeout_minutes: float = Field(default=60.0, gt=0)
    gate: tuple[GateRule, ...] = ()
    score: tuple[Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")], ...] = ("features", "evaluate")


class DemoSettings(_Strict):
    """What `make demo` plays: a program that fills the source, and the dates up to which data arrives."""

    source: Annotated[str, Field(pattern=f"^{MODULE.pattern}$")]
    through: tuple[Moment, ...] = Field(min_length=1)


class SyncSettings(_Strict):
    """When MLflow and the lineage consumer are brought up to git: a cron expression, or never."""

    schedule: Cron | None = "*/15 * * * *"


class AuditSettings(_Strict):
    """When the champions, and the versions that went longest without a verdict, are rebuilt: cron, or never."""

    schedule: Cron | None = "0 3 * * 0"
    timeout_minutes: float = Field(default=360.0, gt=0)


class DoctorSettings(_Strict):
    """When the doctor looks, and after how many days `--fix` removes the refs of runs that made no version."""

    schedule: Cron | None = "0 6 * * *"
    keep_runs_days: float = Field(default=90.0, ge=0)


class Params(_Strict):
    """params.yaml as a whole. With `require_signature`, gate, promote and serving refuse what does not verify."""

    ingest: IngestSettings
    models: dict[str, ModelSettings] = Field(min_length=1)
    sync: SyncSettings = SyncSettings()
    audit: AuditSettings = AuditSettings()
    doctor: DoctorSettings = DoctorSettings()
    require_signature: bool = False
    demo: DemoSettings | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        for name, model in self.models.items():
            check_name(name)
            if name in RESERVED_NAMES:
                raise ValueError(f"models.{name}: the name {name!r} is reserved for Retrace's own DAGs; choose another")
            for dataset in model.datasets:
                if dataset not in self.ingest.datasets:
                    raise ValueError(f"models.{name}.datasets names {dataset!r}, which ingest.datasets does not")
        return self

    def model(self, name: str) -> ModelSettings:
        """The settings of a model; an `UnknownModel` if there is none of that name."""
        if name not in self.models:
            raise UnknownModel(f"no model {name!r} in params.yaml; it has {', '.join(sorted(self.models))}")
        return self.models[name]


class UnknownModel(ConfigError):
    """A model that params.yaml does not have."""


def _one_line(error: ValidationError, where: str) -> str:
    parts = []
    for item in error.errors(include_url=False):
        key = ".".join(str(part) for part in item["loc"])
        message = item["msg"].removeprefix("Value error, ")
        if item["type"] == "extra_forbidden":
            message = "unknown key; remove it or correct its spelling"
        parts.append(f"{key}: {message}" if key else message)
    return f"{where}: " + "; ".join(parts)


def _check_models_are_declared(tree: Any, where: str) -> None:
    """Refuse names that would reach a shell before anything else looks at them: DVC pastes them into commands."""
    models = tree.get("models") if isinstance(tree, dict) else None
    for name in models if isinstance(models, dict) else ():
        try:
            check_name(str(name))
        except ValueError as error:
            raise ConfigError(f"{where}: models: {error}") from None


def parse_params(text: str, where: str = "params.yaml") -> Params:
    """Read params.yaml's text; `where` names it in messages. Raises `ConfigError`."""
    try:
        tree = yaml12.load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"{where} is not YAML: {' '.join(str(error).split())}") from None
    _check_models_are_declared(tree, where)
    try:
        return Params.model_validate(tree)
    except ValidationError as error:
        raise ConfigError(_one_line(error, where)) from None


class Settings(_Strict):
    """Where things are on this machine. Every field is an environment variable `RETRACE_<FIELD>` with a default.

    `root` is the project's checkout; `origin` the git repository that is the one record (default: `root` itself);
    `code_ref` what of it is trained (default: its HEAD); `var` all state that may be lost (cache, environments, ...).
    `namespace` is that of lineage's jobs and datasets, by default Airflow's; `marquez` where people look at lineage.
    `signing_key` signs tags (a private SSH key, or its public half where an agent holds it); `allowed_signers` and
    `revoked_signers` say whose signatures count, as `ssh-keygen` reads them; `require_signature` adds to params.yaml's.
    """

    root: Path
    var: Path
    origin: str
    code_ref: str = "HEAD"
    remote: str | None = None
    mlflow: str
    mlflow_artifacts: str | None = None
    namespace: str
    marquez: str | None = None
    patience: float = Field(default=10.0, gt=0)
    lease_minutes: float = Field(default=120.0, gt=0)
    airflow_port: int = Field(default=8080, ge=1, le=65535)
    mlflow_port: int = Field(default=5000, ge=1, le=65535)
    stage_slots: int = Field(default=2, ge=1)
    signing_key: Path | None = None
    allowed_signers: Path | None = None
    revoked_signers: Path | None = None
    require_signature: bool = False

    @field_validator("code_ref")
    @classmethod
    def _ref(cls, value: str) -> str:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._/-]*", value) or ".." in value:
            raise ValueError(f"{value!r} is not a branch, tag or commit")
        return value

    @field_validator("marquez")
    @classmethod
    def _address(cls, value: str | None) -> str | None:
        if value is not None and not re.fullmatch(r"https?://[^\s@?#]+", value):
            raise ValueError(f"{value!r} is not the address of Marquez' web UI, such as http://marquez:3000")
        return value.rstrip("/") if value is not None else None

    @classmethod
    def load(cls, root: Path, environ: Mapping[str, str] = os.environ) -> Settings:
        """The settings of the project at `root` from the environment. Raises `ConfigError`."""
        root = root.resolve()
        given = {
            field: environ[f"RETRACE_{field.upper()}"]
            for field in cls.model_fields
            if environ.get(f"RETRACE_{field.upper()}") and field != "root"
        }
        var = Path(given.get("var", root / "var")).resolve()
        tracking = environ.get("MLFLOW_TRACKING_URI")
        defaults = {
            "origin": str(root),
            "namespace": environ.get("AIRFLOW__OPENLINEAGE__NAMESPACE") or "retrace",
            "mlflow": tracking or f"sqlite:///{var}/mlflow/mlflow.db",
            "mlflow_artifacts": None if tracking or "mlflow" in given else f"{var}/mlflow/artifacts",
        }
        try:
            return cls.model_validate({"root": root, **defaults, **given, "var": var})
        except ValidationError as error:
            raise ConfigError(_one_line(error, "environment variable RETRACE_…")) from None

    @property
    def cache(self) -> Path:
        return self.var / "cache"

    @property
    def mirror(self) -> Path:
        return self.var / "mirror.git"

    @property
    def environments(self) -> Path:
        return self.var / "environments"

    @property
    def workspaces(self) -> Path:
        return self.var / "workspaces"

    @property
    def logs(self) -> Path:
        return self.var / "logs"


class NoProject(ConfigError):
    """No Retrace project here."""


def find_root(start: Path, environ: Mapping[str, str] = os.environ) -> Path:
    """The project that `start` is in: the nearest parent with params.yaml and dvc.yaml, or RETRACE_ROOT."""
    if environ.get("RETRACE_ROOT"):
        return Path(environ["RETRACE_ROOT"]).resolve()
    for folder in (start.resolve(), *start.resolve().parents):
        if (folder / "params.yaml").is_file() and (folder / "dvc.yaml").is_file():
            return folder
    raise NoProject(f"{start} is in no Retrace project: no params.yaml and dvc.yaml here or above; cd into one")
