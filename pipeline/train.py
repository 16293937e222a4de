"""Tune on the train and validation windows, fit on both, write one model file: python -m pipeline.train MODEL

Trials are asked for in rounds of `batch` and told in order, so the result is the same for any number of workers
(RETRACE_WORKERS). With RETRACE_SCRATCH set, finished trials are kept there until the model is written, so that an
interrupted tuning goes on where it was, to the same result.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
import tempfile
import threading
import warnings
from collections.abc import Iterator
from concurrent.futures import Executor, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import get_context, parent_process
from pathlib import Path
from typing import Any, Literal

import numpy as np
import optuna
import pandas as pd
from pydantic import PositiveInt
from sklearn.base import is_classifier
from sklearn.compose import ColumnTransformer
from sklearn.impute import SimpleImputer
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import OneHotEncoder, OrdinalEncoder, StandardScaler
from sklearn.utils import all_estimators

from pipeline.metrics import metric
from pipeline.model_file import dumps, predict
from pipeline.project import FeatureSettings, Problem, Strict, Window, partitions, read, run, setting, split

Value = bool | int | float | str | None


class Preprocess(Strict):
    """How columns reach the estimator: trees take them nearly as they are, linear models want all of it."""

    categorical: Literal["ordinal", "onehot"] = "ordinal"
    impute: bool = False
    scale: bool = False


class Range(Strict):
    """Whole numbers when both ends are whole, fractions otherwise."""

    low: int | float
    high: int | float
    log: bool = False


class Choices(Strict):
    choices: list[Value]


class TrainSettings(Strict):
    estimator: str
    fixed: dict[str, Value | list[Value]] = {}
    preprocess: Preprocess = Preprocess()
    metric: str
    seed: int
    trials: PositiveInt
    batch: PositiveInt
    random_trials: PositiveInt
    tuning_rows: PositiveInt
    search: dict[str, Range | Choices]


class Task:
    """All that training depends on: settings, and the rows of the windows."""

    def __init__(self, model: str) -> None:
        self.features = setting(model, "features", FeatureSettings)
        self.settings = setting(model, "train", TrainSettings)
        folder = Path("data/features") / model
        window = split(partitions(folder), setting(model, "window", Window))
        self.paths = [folder / f"{name}.parquet" for name in [*window.train, *window.validation]]
        self.train = read(self.paths[: len(window.train)])
        self.validation = read(self.paths[len(window.train) :])
        self.kind = self._kind()
        self.metric = metric(self.settings.metric, "classifier" if is_classifier(self.kind()) else "regressor")

    def _kind(self) -> Any:
        kinds = dict(all_estimators(type_filter=["classifier", "regressor"]))
        name = self.settings.estimator
        if name not in kinds:
            raise Problem(f"train.estimator {name!r} is no classifier or regressor of scikit-learn; see its class names")
        unknown = {*self.settings.fixed, *self.settings.search} - set(kinds[name]().get_params())
        if unknown:
            raise Problem(f"{name} has no parameter {', '.join(sorted(unknown))}; correct train.fixed or train.search")
        return kinds[name]

    def digest(self) -> str:
        """Names the finished trials that may be taken over: same rows, parameters, code and environment."""
        code = sorted(Path(__file__).parent.glob("*.py"))
        parts = [self.features.model_dump_json().encode(), self.settings.model_dump_json().encode()]
        parts += [path.read_bytes() for path in [*self.paths, *code, Path("pipeline/requirements.txt")]]
        return hashlib.sha256(b"".join(hashlib.sha256(part).digest() for part in parts)).hexdigest()[:32]

    def estimator(self, chosen: dict[str, Value]) -> Pipeline:
        values = {**self.settings.fixed, **chosen}
        estimator = self.kind(**values)
        if "random_state" in estimator.get_params() and "random_state" not in values:
            estimator.set_params(random_state=self.settings.seed)
        return make_pipeline(self._preprocessor(), estimator)

    def _preprocessor(self) -> ColumnTransformer:
        how = self.settings.preprocess
        if how.categorical == "onehot":
            encoder: Any = OneHotEncoder(handle_unknown="ignore", sparse_output=False)
        else:
            encoder = OrdinalEncoder(handle_unknown="use_encoded_value", unknown_value=-1)
        steps = [SimpleImputer(strategy="median")] * how.impute + [StandardScaler()] * how.scale
        numeric = make_pipeline(*steps) if steps else "passthrough"
        columns = self.features.columns
        return ColumnTransformer([("categorical", encoder, columns.categorical), ("numeric", numeric, columns.numeric)])

    def fit(self, rows: pd.DataFrame, chosen: dict[str, Value]) -> Pipeline:
        try:
            with warnings.catch_warnings(action="ignore"):  # convergence is for the metric to judge
                return self.estimator(chosen).fit(rows[self.features.columns.all], rows[self.features.label.name])
        except (ValueError, TypeError) as error:
            reason = " ".join(str(error).split())[:240]
            raise Problem(f"{self.settings.estimator} refuses {chosen or 'its parameters'}: {reason}") from None

    def value(self, chosen: dict[str, Value]) -> float:
        """The metric on the validation window of a model fitted to evenly taken rows of the train window."""
        count = min(len(self.train), self.settings.tuning_rows)
        fitted = self.fit(self.train.iloc[np.linspace(0, len(self.train) - 1, count).astype(int)], chosen)
        table = self.validation[self.features.columns.all]
        return float(self.metric.compute(self.validation[self.features.label.name], predict(fitted, table)))


_task: Task


def _prepare(model: str) -> None:
    """In each worker: end with the parent, even if that is killed; load the rows once."""
    global _task
    parent = parent_process()
    if parent is not None:
        threading.Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()
    _task = Task(model)


def _trial(chosen: dict[str, Value], scratch: Path) -> float:
    """The value of one trial, taken over if an interrupted run has finished it."""
    kept = scratch / f"{hashlib.sha256(json.dumps(chosen, sort_keys=True).encode()).hexdigest()}.json"
    if not kept.exists():
        unfinished = kept.with_suffix(f".{os.getpid()}")
        unfinished.write_text(json.dumps(_task.value(chosen)), encoding="utf-8")
        unfinished.replace(kept)
    return float(json.loads(kept.read_text(encoding="utf-8")))


def suggest(trial: optuna.Trial, search: dict[str, Range | Choices]) -> dict[str, Value]:
    chosen: dict[str, Value] = {}
    for name, space in search.items():
        if isinstance(space, Choices):
            chosen[name] = trial.suggest_categorical(name, space.choices)
        elif isinstance(space.low, int) and isinstance(space.high, int):
            chosen[name] = trial.suggest_int(name, space.low, space.high, log=space.log)
        else:
            chosen[name] = trial.suggest_float(name, float(space.low), float(space.high), log=space.log)
    return chosen


def tune(task: Task, pool: Executor, scratch: Path) -> tuple[pd.DataFrame, dict[str, Value]]:
    """The table of trials and the best parameters. A round's outcome depends on the rounds before, never on timing."""
    settings = task.settings
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(direction=task.metric.direction)
    rows: list[dict[str, Any]] = []
    while (done := len(rows)) < settings.trials:
        study.sampler = optuna.samplers.TPESampler(
            seed=settings.seed * 100003 + done, n_startup_trials=settings.random_trials, constant_liar=True
        )
        trials = [study.ask() for _ in range(min(settings.batch, settings.trials - done))]
        chosen = [suggest(trial, settings.search) for trial in trials]
        for trial, parameters, value in zip(trials, chosen, pool.map(_trial, chosen, [scratch] * len(chosen)), strict=True):
            if not math.isfinite(value):
                raise Problem(f"trial {trial.number} gave {settings.metric} = {value}: {parameters}; narrow train.search")
            study.tell(trial, value)
            rows.append({"number": trial.number, "state": "complete", "value": value, "best_value": study.best_value, **parameters})
            print(f"trial {len(rows)}/{settings.trials} {value:.4f} best {study.best_value:.4f}", flush=True)
    return pd.DataFrame(rows), dict(study.best_params)


@contextmanager
def scratch_folder(name: str) -> Iterator[Path]:
    """Where finished trials are kept: until success below RETRACE_SCRATCH, or else for this run only."""
    parent = os.environ.get("RETRACE_SCRATCH")
    folder = Path(parent, name) if parent else Path(tempfile.mkdtemp())
    folder.mkdir(parents=True, exist_ok=True)
    try:
        yield folder
    except BaseException:
        if not parent:
            shutil.rmtree(folder, ignore_errors=True)
        raise
    shutil.rmtree(folder, ignore_errors=True)


def workers(batch: int) -> int:
    text = os.environ.get("RETRACE_WORKERS") or str(os.cpu_count() or 1)
    if not text.isdigit() or int(text) < 1:
        raise Problem(f"the environment variable RETRACE_WORKERS is {text!r}; it takes a whole number from 1")
    return min(int(text), batch)


def main(model: str) -> None:
    task = Task(model)
    with scratch_folder(f"{model}-{task.digest()}") as scratch:
        count = workers(task.settings.batch)
        with ProcessPoolExecutor(count, get_context("spawn"), _prepare, (model,)) as pool:
            try:
                trials, best = tune(task, pool, scratch)
            except BrokenProcessPool:
                raise Problem(f"one of {count} tuning workers died, perhaps for want of memory; set RETRACE_WORKERS=1") from None
        fitted = task.fit(pd.concat([task.train, task.validation], ignore_index=True), best)
        plot, target = Path("plots") / model / "trials.csv", Path("models") / f"{model}.skops"
        plot.parent.mkdir(parents=True, exist_ok=True)
        target.parent.mkdir(parents=True, exist_ok=True)
        trials.to_csv(plot, index=False, lineterminator="\n")
        target.write_bytes(dumps(fitted))


if __name__ == "__main__":
    run(main)
