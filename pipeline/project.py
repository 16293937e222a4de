"""What every stage shares: a model's settings from params.yaml, partitions and windows, and how a stage ends."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import pandas as pd
import pyarrow
import pyarrow.parquet
import yaml
from pydantic import BaseModel, ConfigDict, PositiveInt, TypeAdapter, ValidationError

T = TypeVar("T")


class Problem(Exception):
    """What the user can put right: one sentence that says what, where, and what to do."""


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Window(Strict):
    """How many partitions before the newest (the holdout) are for training (at most) and for validation."""

    train: PositiveInt
    validation: PositiveInt


class Split(NamedTuple):
    train: list[str]
    validation: list[str]
    holdout: str

    @property
    def all(self) -> list[str]:
        return [*self.train, *self.validation, self.holdout]


class Label(Strict):
    """The column to predict; with `at_least`, whether it reaches that value."""

    name: str
    column: str
    at_least: float | None = None


class Columns(Strict):
    categorical: list[str]
    numeric: list[str]

    @property
    def all(self) -> list[str]:
        return [*self.categorical, *self.numeric]


class FeatureSettings(Strict):
    """Which features a model has, and how long before scheduled departure they must be known."""

    horizon_minutes: int
    key: list[str]
    label: Label
    columns: Columns


def setting(model: str, path: str, kind: type[T]) -> T:
    """The value of `models.<model>.<path>` in params.yaml, checked against a type. Raises `Problem`."""
    where = f"models.{model}.{path}"
    try:
        value: Any = yaml.safe_load(Path("params.yaml").read_text(encoding="utf-8"))
        for key in where.split("."):
            value = value[key]
        return TypeAdapter(kind).validate_python(value)
    except (OSError, yaml.YAMLError) as error:
        raise Problem(f"params.yaml cannot be read: {' '.join(str(error).split())}") from None
    except (KeyError, TypeError):
        raise Problem(f"params.yaml has no {where}; add it") from None
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise Problem(f"params.yaml: {'.'.join([where, *map(str, first['loc'])])}: {first['msg']}") from None


def partitions(folder: Path) -> list[str]:
    """The names of the partitions in a folder, oldest first."""
    names = sorted(path.stem for path in folder.glob("*.parquet"))
    if not names:
        raise Problem(f"{folder} has no partition; ingest data (retrace ingest) or fetch it (retrace data pull)")
    return names


def split(names: list[str], window: Window) -> Split:
    """Windows relative to the newest partition, so that new data moves them and no parameter does."""
    rest, holdout = names[:-1], names[-1]
    train, validation = rest[: -window.validation], rest[-window.validation :]
    if not train:
        raise Problem(
            f"{len(names)} partitions are too few: window.validation is {window.validation}, one more is the holdout "
            "and at least one must be left to train on; ingest more or lower it"
        )
    return Split(train[-window.train :], validation, holdout)


def read(paths: list[Path], **options: Any) -> pd.DataFrame:
    """Rows of parquet files, in their order. Raises `Problem` for what is missing or no such file."""
    try:
        return pd.concat([pd.read_parquet(path, engine="pyarrow", **options) for path in paths], ignore_index=True)
    except (OSError, pyarrow.ArrowException) as error:
        names = ", ".join(map(str, paths))
        raise Problem(f"cannot read {names}: {' '.join(str(error).split())[:200]}; fetch the data again") from None


def write(frame: pd.DataFrame, path: Path) -> None:
    """The same rows give the same bytes: no index, one schema."""
    path.parent.mkdir(parents=True, exist_ok=True)
    frame.to_parquet(path, engine="pyarrow", index=False)


def write_json(value: dict[str, Any], path: Path, **lists: list[dict[str, Any]]) -> None:
    """Values, and lists with a line for each item: readable, and small in git."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(value, indent=2)
    for name, items in lists.items():
        lines = ",\n".join("    " + json.dumps(item) for item in items)
        text = f'{text[:-2]},\n  "{name}": [\n{lines}\n  ]\n}}'
    path.write_text(text + "\n", encoding="utf-8")


def run(stage: Callable[[str], None]) -> None:
    """Run a stage for the model named on the command line; a `Problem` is one line and exit code 1."""
    if len(sys.argv) != 2:
        sys.exit(f"usage: python -m {stage.__module__} MODEL")
    try:
        stage(sys.argv[1])
    except Problem as problem:
        sys.exit(f"{Path(sys.argv[0]).stem} {sys.argv[1]}: {problem}")
