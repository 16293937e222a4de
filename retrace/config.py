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
from typing import Annotated, Any, Literal, NamedTuple, Self

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    ValidatorFunctionWrapHandler,
    WrapValidator,
    field_validator,
    model_validator,
)

from retrace import yaml12
from retrace.errors import RetraceError

NAME = re.compile(r"[a-z][a-z0-9_]*")
RESERVED_NAMES = frozenset({"ingest", "audit", "sync", "monitor", "doctor", "data"})
CONNECTION = re.compile(r"[A-Za-z][A-Za-z0-9_]*")
STAGE = re.compile(r"[a-z][a-z0-9_]*")
COLUMN = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
MODULE = re.compile(r"[a-z_][a-z0-9_]*(\.[a-z_][a-z0-9_]*)*")
_YEAR_OF_MINUTES = 366 * 24 * 60.0
_CENTURY_OF_DAYS = 36525.0

ColumnType = Literal["string", "integer", "float", "boolean", "timestamp"]


class ConfigError(RetraceError):
    """params.yaml or a setting is wrong; the message names the key and what it takes."""


def check_name(name: str) -> str:
    """Return the model or dataset name if it may stand in a ref, a path and a DAG id; a ValueError otherwise."""
    if not NAME.fullmatch(name) or len(name) > 40:
        raise ValueError(f"{name!r} is not a name: use a letter, then letters, digits and _ (lower case, at most 40)")
    return name


def _as_utc(value: object) -> object:
    """YAML gives a date for 2013-01-01; an interval begins at midnight UTC.

    A number is no date: pydantic would take the year 2013 for so many seconds after 1970.
    """
    if isinstance(value, date) and not isinstance(value, datetime):
        value = datetime(value.year, value.month, value.day)
    if isinstance(value, str):
        value = _moment_of(value)
    if not isinstance(value, datetime):
        raise ValueError('takes a date in quotes, such as "2013-01-01"')
    return value.replace(tzinfo=UTC) if value.tzinfo is None else value


def _moment_of(text: str) -> datetime:
    try:
        return datetime.fromisoformat(text)
    except ValueError:
        raise ValueError(f'{text!r} is not a date, such as "2013-01-01"') from None


Moment = Annotated[datetime, BeforeValidator(_as_utc)]


def _like(pattern: re.Pattern[str], what: str) -> AfterValidator:
    """Refuse in words a text that a pattern does not fit: pydantic would show the pattern."""

    def check(value: str) -> str:
        if not pattern.fullmatch(value):
            raise ValueError(f"{value!r} is not {what}")
        return value

    return AfterValidator(check)


class _CronField(NamedTuple):
    """A field of a cron expression: what it takes, as a pattern and in words."""

    name: str
    pattern: str
    takes: str


def _cron_items(value: str, *others: str) -> str:
    """The pattern of a list of values, ranges and steps, and of what else may stand in it."""
    item = "|".join([rf"(\*|({value})(-({value}))?)(/0?[1-9][0-9]?)?", *others])
    return f"({item})(,({item}))*"


_MONTH = "0?[1-9]|1[0-2]|jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec"
_WEEKDAY = "0?[0-7]|sun|mon|tue|wed|thu|fri|sat"
_NTH_WEEKDAY = rf"({_WEEKDAY})#[1-5]|L[0-7]"  # never together with plain weekdays: Airflow's croniter takes no mixture
# Checked here because Airflow takes any text until a run is due, and its croniter would slow every command's start.
_CRON_FIELDS = (
    _CronField("minute", _cron_items("[0-5]?[0-9]"), "0 to 59"),
    _CronField("hour", _cron_items("[01]?[0-9]|2[0-3]"), "0 to 23"),
    _CronField("day of the month", _cron_items("0?[1-9]|[12][0-9]|3[01]", "L"), "1 to 31, or L for the last"),
    _CronField("month", _cron_items(_MONTH), "1 to 12 or jan to dec"),
    _CronField(
        "weekday",
        f"{_cron_items(_WEEKDAY)}|({_NTH_WEEKDAY})(,({_NTH_WEEKDAY}))*",
        "0 to 7 or sun to sat, or only such as fri#2 (the second) and L5 (the last)",
    ),
)


def _cron(value: str) -> str:
    if value in ("@hourly", "@daily", "@weekly", "@monthly", "@yearly"):
        return value
    given = re.split(" +", value)
    if len(given) != len(_CRON_FIELDS):
        raise ValueError(f'{value!r} is not a cron expression of five fields, such as "0 7 3 * *", or @daily')
    for text, field in zip(given, _CRON_FIELDS, strict=True):
        if not re.fullmatch(field.pattern, text, re.IGNORECASE | re.ASCII):
            raise ValueError(
                f"{value!r} is not a cron expression: its {field.name}, {text!r}, takes * or {field.takes}, and lists "
                "(1,2), ranges (1-3) and steps (*/2) of them"
            )
    return value


Cron = Annotated[str, AfterValidator(_cron)]
Number = Annotated[float, Field(strict=True, allow_inf_nan=False)]
Minutes = Annotated[float, Field(strict=True, allow_inf_nan=False, gt=0, le=_YEAR_OF_MINUTES)]
Switch = Annotated[bool, Field(strict=True)]


def _bound(value: object, check: ValidatorFunctionWrapHandler) -> float | Literal["champion"]:
    """One complaint about one value: a union of types has one for each of them."""
    try:
        bound: float | Literal["champion"] = check(value)
    except ValidationError:
        raise ValueError("takes a number, without quotes, or champion") from None
    return bound


Bound = Annotated[Number | Literal["champion"], WrapValidator(_bound)]


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

    connection: Annotated[
        str, _like(CONNECTION, "the id of an Airflow Connection here: use a letter, then letters, digits and _")
    ]
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
    data: Switch = False


class GateRule(_Strict):
    """One condition on a holdout metric: a number, or the champion's value on the same holdout."""

    metric: str
    at_least: Bound | None = None
    at_most: Bound | None = None
    tolerance: Number = Field(default=0.0, ge=0.0)

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
    timeout_minutes: Minutes = 60.0
    gate: tuple[GateRule, ...] = ()
    score: tuple[
        Annotated[str, _like(STAGE, "the name of a stage: use a letter, then letters, digits and _ (lower case)")], ...
    ] = ("features", "evaluate")

    @field_validator("schedule", mode="before")
    @classmethod
    def _times_or_data(cls, value: object) -> object:
        if not isinstance(value, dict):
            raise ValueError('takes `cron:` and/or `data:`, such as {cron: "0 7 3 * *", data: true}')
        return value

    @field_validator("datasets")
    @classmethod
    def _each_once(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"names {name!r} more than once")
        return names


class DemoSettings(_Strict):
    """What `make demo` plays: a program that fills the source, and the dates up to which data arrives."""

    source: Annotated[str, _like(MODULE, "the name of a module, such as pipeline.source")]
    through: tuple[Moment, ...] = Field(min_length=1)


class SyncSettings(_Strict):
    """When MLflow and the lineage consumer are brought up to git: a cron expression, or never."""

    schedule: Cron | None = "*/15 * * * *"


class AuditSettings(_Strict):
    """When the champions, and the versions that went longest without a verdict, are rebuilt: cron, or never."""

    schedule: Cron | None = "0 3 * * 0"
    timeout_minutes: Minutes = 360.0


class DoctorSettings(_Strict):
    """When the doctor looks, whether it then reads every object again, and after how many days `--fix` removes the refs
    of runs that made no version."""

    schedule: Cron | None = "0 6 * * *"
    keep_runs_days: Number = Field(default=90.0, ge=0, le=_CENTURY_OF_DAYS)
    rehash: Switch = False


class Params(_Strict):
    """params.yaml as a whole. With `require_signature`, gate, promote and serving refuse what does not verify."""

    ingest: IngestSettings
    models: dict[str, ModelSettings] = Field(min_length=1)
    sync: SyncSettings = SyncSettings()
    audit: AuditSettings = AuditSettings()
    doctor: DoctorSettings = DoctorSettings()
    require_signature: Switch = False
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


_MAPPING = "takes a mapping, such as {{key: value}}"
_TEXT_AS_KEY = "this key is no text; put it in quotes"
_IN_WORDS = {  # pydantic's types of error; {braces} are what it tells of one
    "bool_parsing": "takes true or false",
    "bool_type": "takes true or false, without quotes",
    "dict_type": _MAPPING,
    "extra_forbidden": "unknown key; remove it or correct its spelling",
    "finite_number": "takes a finite number",
    "float_parsing": "takes a number",
    "float_type": "takes a number, without quotes",
    "greater_than": "takes a number greater than {gt:g}",
    "greater_than_equal": "takes a number of at least {ge:g}",
    "int_parsing": "takes a whole number",
    "invalid_key": _TEXT_AS_KEY,
    "less_than_equal": "takes a number of at most {le:.0f}",
    "literal_error": "takes {expected}",
    "missing": "is missing; add it",
    "model_type": _MAPPING,
    "string_type": "takes a text; put it in quotes if it is one",
    "too_short": "is empty; it takes at least one entry",
    "tuple_type": "takes a list, such as [x]",
    "value_error": "{error}",
}


def _one_line(error: ValidationError, where: str) -> str:
    """Every key that is wrong and what it takes, in the words of params.yaml and not of Python."""
    parts = []
    for item in error.errors(include_url=False):
        if item["type"] == "too_short" and item["input"]:
            continue  # it counts only the entries that are right, and has complained of the others
        *around, last = item["loc"] or ("",)
        message = _IN_WORDS[item["type"]].format(**item.get("ctx", {})) if item["type"] in _IN_WORDS else item["msg"]
        if last == "[key]":  # what pydantic says of a mapping's key and not of the value under it
            (*around, last), message = around, _TEXT_AS_KEY
        key = ".".join(map(str, (*around, last)))
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
    patience: float = Field(default=10.0, gt=0, allow_inf_nan=False)
    lease_minutes: float = Field(default=120.0, gt=0, le=_YEAR_OF_MINUTES)
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
