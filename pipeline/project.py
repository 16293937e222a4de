"""What every stage shares: a model's settings from params.yaml, partitions and windows, and how a stage ends."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import pandas as pd
import pyarrow
import yaml
from pydantic import BaseModel, ConfigDict, NonNegativeInt, PositiveInt, TypeAdapter, ValidationError

T = TypeVar("T")


class Problem(Exception):
    """What the user can put right: one sentence that says what, where, and what to do."""


class _Loader(yaml.SafeLoader):
    """YAML 1.2's numbers and truth values, as DVC records them; PyYAML's are those of 1.1, where 010 is 8."""

    yaml_implicit_resolvers = {
        first: [(tag, pattern) for tag, pattern in known if tag.rpartition(":")[2] not in ("bool", "int", "float")]
        for first, known in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_integer(self, node: yaml.ScalarNode) -> int:
        text = str(self.construct_scalar(node)).replace("_", "")
        return int(text, 0) if re.match("[-+]?0[box]", text) else int(text)


for _kind, _pattern, _first in (
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("int", r"[-+]?(0b[01_]+|0o[0-7_]+|0x[0-9a-fA-F_]+|[0-9][0-9_]*)", "-+0123456789"),
    ("float", r"[-+]?([0-9][0-9_]*\.[0-9_]*|\.[0-9][0-9_]*)([eE][-+]?[0-9]+)?", "-+0123456789."),
    ("float", r"[-+]?[0-9][0-9_]*[eE][-+]?[0-9]+|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)", "-+0123456789."),
):
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_kind}", re.compile(f"({_pattern})$"), list(_first))
_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_integer)


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Window(Strict):
    """How many partitions before the newest, the holdout, are for training (at most) and for validation."""

    train: PositiveInt
    validation: PositiveInt


class Split(NamedTuple):
    train: list[str]
    validation: list[str]
    holdout: str


class Label(Strict):
    """The column to predict; with `at_least`, whether it reaches that value."""

    name: str
    column: str
    at_least: float | None = None


class FeatureSettings(Strict):
    """The features of a model, and how long before scheduled departure they must be known."""

    horizon_minutes: NonNegativeInt
    key: list[str]
    label: Label
    categorical: list[str]
    numeric: list[str]

    @property
    def columns(self) -> list[str]:
        return [*self.categorical, *self.numeric]


def setting(model: str, path: str, kind: type[T]) -> T:
    """The value of `models.<model>.<path>` in params.yaml, checked against a type. Raises `Problem`."""
    where = f"models.{model}.{path}"
    try:
        value: Any = yaml.load(Path("params.yaml").read_text(encoding="utf-8"), Loader=_Loader)
        for key in where.split("."):
            value = value[key]
        return TypeAdapter(kind).validate_python(value)
    except (KeyError, TypeError):
        raise Problem(f"params.yaml has no {where}; add it") from None
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        keys = [where, *_keys(value, first["loc"], first["type"] == "missing")]
        raise Problem(f"params.yaml: {'.'.join(keys)}: {first['msg']}") from None
    except (OSError, yaml.YAMLError, ValueError) as error:  # ValueError: a date that is none, text that is no UTF-8
        raise Problem(f"params.yaml cannot be read: {one_line(error)}") from None


def _keys(value: Any, location: tuple[int | str, ...], missing: bool) -> Iterator[str]:
    """The keys on the way to what is wrong: pydantic puts the names of types between them where it tried several."""
    for index, part in enumerate(location):
        known = part in value if isinstance(value, dict) else isinstance(value, list) and isinstance(part, int)
        if known:
            value = value[part]
        if known or (missing and index == len(location) - 1):
            yield str(part)


def one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:240]


def partitions(folder: Path) -> list[str]:
    """The names of the partitions in a folder, oldest first."""
    names = sorted(path.stem for path in folder.glob("*.parquet"))
    if not names:
        raise Problem(
            f"{folder} has no partition; ingest (retrace ingest), fetch (retrace data pull) or run the stage before"
        )
    return names


def split(names: list[str], window: Window) -> Split:
    """Windows relative to the newest partition, so that new data moves them and no parameter does."""
    train, validation = names[: -window.validation - 1], names[-window.validation - 1 : -1]
    if not train:
        raise Problem(
            f"{len(names)} partitions are too few: window.validation takes {window.validation}, the holdout one, and "
            "at least one must be left to train on; ingest more or lower it"
        )
    return Split(train[-window.train :], validation, names[-1])


def read(paths: list[Path], **options: Any) -> pd.DataFrame:
    """Rows of parquet files, in their order. Raises `Problem` for what is missing or no such file."""
    tables = []
    for path in paths:
        try:
            tables.append(pd.read_parquet(path, engine="pyarrow", **options))
        except (OSError, pyarrow.ArrowException) as error:
            raise Problem(f"cannot read {path}: {one_line(error)}; fetch the data again") from None
    filled = [table for table in tables if len(table)]  # a column without a value would spoil the others' type
    return pd.concat(filled or tables, ignore_index=True)


def output(*parts: str) -> Path:
    """The path of an output, its folder made."""
    path = Path(*parts)
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def run(stage: Callable[[str], None]) -> None:
    """Run a stage for the model named on the command line; a `Problem` is one line and exit code 1."""
    name = Path(sys.argv[0]).stem
    if len(sys.argv) != 2:
        sys.exit(f"usage: python -m pipeline.{name} MODEL")
    try:
        stage(sys.argv[1])
    except Problem as problem:
        sys.exit(f"{name} {sys.argv[1]}: {problem}")
