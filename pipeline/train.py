"""Tune on the train and validation windows, fit on both, write one model file: python -m pipeline.train MODEL

Trials are asked for in rounds of `batch` and told in order, so the result is the same for any number of workers
(RETRACE_WORKERS). Below RETRACE_SCRATCH, if set, finished trials are kept until the model is written: an interrupted
tuning goes on where it was, to the same result.
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
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context, parent_process
from pathlib import Path
from typing import Any, Literal

import numpy as np
import optuna
import pandas as pd
from pydantic import PositiveInt
from sklearn.compose import make_column_transformer
from sklearn.impute import SimpleImputer
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import OneHotEncoder, OrdinalEncoder, StandardScaler
from sklearn.utils import all_estimators

from pipeline.metrics import metric
from pipeline.model_file import dumps, predict
from pipeline.project import (
    FeatureSettings,
    Problem,
    Strict,
    Window,
    one_line,
    output,
    partitions,
    read,
    run,
    setting,
    split,
)

Value = bool | int | float | str | None


class Range(Strict):
    """Whole numbers when both ends are whole, fractions otherwise."""

    low: int | float
    high: int | float
    log: bool = False


class Choices(Strict):
    choices: list[Value]


class Preprocess(Strict):
    """How columns reach the estimator: trees take them nearly as they are, linear models want all of it."""

    categorical: Literal["ordinal", "onehot"]
    impute: bool = False
    scale: bool = False


class TrainSettings(Strict):
    estimator: str
    fixed: dict[str, Value | list[Value]]
    preprocess: Preprocess
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
        train, validation, _ = split(partitions(folder), setting(model, "window", Window))
        self.paths = [folder / f"{name}.parquet" for name in [*train, *validation]]
        self.train, self.validation = read(self.paths[: len(train)]), read(self.paths[len(train) :])
        self.metric = metric(self.settings.metric, self.estimator({}))

    def digest(self) -> str:
        """Names the trials that may be taken over: of the same rows, parameters, code and environment."""
        files = [*self.paths, *sorted(Path(__file__).parent.glob("*.py")), Path("pipeline/requirements.txt")]
        texts = [settings.model_dump_json().encode() for settings in (self.features, self.settings)]
        parts = [hashlib.sha256(part).digest() for part in [*texts, *(path.read_bytes() for path in files)]]
        return hashlib.sha256(b"".join(parts)).hexdigest()[:32]

    def estimator(self, chosen: dict[str, Value]) -> Any:
        """The estimator that params.yaml names: only scikit-learn's own can be, so no name imports foreign code."""
        name, values = self.settings.estimator, {**self.settings.fixed, **chosen}
        kinds = dict(all_estimators(type_filter=["classifier", "regressor"]))
        if name not in kinds:
            raise Problem(f"train.estimator {name!r} is no classifier or regressor of scikit-learn; use a class name")
        try:
            estimator = kinds[name](**values)
        except TypeError as error:
            raise Problem(f"train.fixed or train.search does not suit {name}: {one_line(error)}") from None
        seeded = "random_state" in estimator.get_params() and "random_state" not in values
        return estimator.set_params(random_state=self.settings.seed) if seeded else estimator

    def fit(self, rows: pd.DataFrame, chosen: dict[str, Value]) -> Pipeline:
        encoders = {
            "ordinal": OrdinalEncoder(handle_unknown="use_encoded_value", unknown_value=-1),
            "onehot": OneHotEncoder(handle_unknown="ignore", sparse_output=False),
        }
        how = self.settings.preprocess
        steps = [SimpleImputer(strategy="median")] * how.impute + [StandardScaler()] * how.scale
        numeric = make_pipeline(*steps) if steps else "passthrough"
        table = make_column_transformer(
            (encoders[how.categorical], self.features.categorical), (numeric, self.features.numeric)
        )
        try:
            with warnings.catch_warnings(action="ignore"):  # whether it converged shows in the metric
                pipeline = make_pipeline(table, self.estimator(chosen))
                return pipeline.fit(rows[self.features.columns], rows[self.features.label.name])
        except (ValueError, TypeError) as error:
            raise Problem(f"{self.settings.estimator} cannot be fitted with {chosen}: {one_line(error)}") from None

    def value(self, chosen: dict[str, Value]) -> float:
        """The metric on the validation window of a model of evenly taken rows of the train window."""
        count = min(len(self.train), self.settings.tuning_rows)
        fitted = self.fit(self.train.iloc[np.linspace(0, len(self.train) - 1, count).astype(int)], chosen)
        predictions = predict(fitted, self.validation[self.features.columns])
        return float(self.metric.compute(self.validation[self.features.label.name], predictions))


Evaluate = Callable[[list[dict[str, Value]]], Iterable[float]]
_task: Task  # of a tuning worker


def _prepare(model: str) -> None:
    """In each worker: load the rows once, and end with the parent, even if that is killed."""
    global _task
    _task = Task(model)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    if (parent := parent_process()) is not None:
        parent.join()
        os._exit(1)


def _trial(chosen: dict[str, Value], scratch: Path) -> float:
    return trial(_task, chosen, scratch)


def trial(task: Task, chosen: dict[str, Value], scratch: Path) -> float:
    """The value of one trial, taken over if an interrupted run has finished it."""
    kept = scratch / f"{hashlib.sha256(json.dumps(chosen, sort_keys=True).encode()).hexdigest()}.json"
    if not kept.exists():
        unfinished = kept.with_suffix(f".{os.getpid()}")
        unfinished.write_text(json.dumps(task.value(chosen)), encoding="utf-8")
        unfinished.replace(kept)
    return float(json.loads(kept.read_text(encoding="utf-8")))


def suggest(trial: optuna.Trial, search: dict[str, Range | Choices]) -> dict[str, Value]:
    chosen: dict[str, Value] = {}
    for name, space in search.items():
        try:
            if isinstance(space, Choices):
                chosen[name] = trial.suggest_categorical(name, space.choices)
            elif isinstance(space.low, int) and isinstance(space.high, int):
                chosen[name] = trial.suggest_int(name, space.low, space.high, log=space.log)
            else:
                chosen[name] = trial.suggest_float(name, space.low, space.high, log=space.log)
        except ValueError as error:
            raise Problem(f"params.yaml: train.search.{name}: {one_line(error)}") from None
    return chosen


def tune(task: Task, values_of: Evaluate) -> tuple[pd.DataFrame, dict[str, Value]]:
    """The table of trials and the best parameters; a round depends on the rounds before it, never on timing."""
    settings, rows = task.settings, list[dict[str, Any]]()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(direction=task.metric.direction)
    while (done := len(rows)) < settings.trials:
        seed = settings.seed * 100003 + done
        study.sampler = optuna.samplers.TPESampler(
            seed=seed, n_startup_trials=settings.random_trials, constant_liar=True
        )
        trials = [study.ask() for _ in range(min(settings.batch, settings.trials - done))]
        chosen = [suggest(trial, settings.search) for trial in trials]
        for asked, parameters, value in zip(trials, chosen, values_of(chosen), strict=True):
            if not math.isfinite(value):
                raise Problem(f"{settings.metric} is {value} for {parameters}; narrow train.search")
            study.tell(asked, value)
            told = {"number": asked.number, "state": "complete", "value": value, "best_value": study.best_value}
            rows.append({**told, **parameters})
            print(f"trial {len(rows)}/{settings.trials} {value:.4f} best {study.best_value:.4f}", flush=True)
    return pd.DataFrame(rows), dict(study.best_params)


def workers(batch: int) -> int:
    text = os.environ.get("RETRACE_WORKERS") or str(os.cpu_count() or 1)
    if not text.isdigit() or int(text) < 1:
        raise Problem(f"the environment variable RETRACE_WORKERS is {text!r}; it takes a whole number from 1")
    return min(int(text), batch)


def tuned(task: Task, model: str, scratch: Path) -> tuple[pd.DataFrame, dict[str, Value]]:
    """Tune by as many processes as may be; one alone is this one, since another takes a while to start."""
    count = workers(task.settings.batch)
    if count == 1:
        return tune(task, lambda chosen: (trial(task, parameters, scratch) for parameters in chosen))
    with ProcessPoolExecutor(count, get_context("spawn"), _prepare, (model,)) as pool:
        try:
            return tune(task, lambda chosen: pool.map(_trial, chosen, [scratch] * len(chosen)))
        except BrokenProcessPool:
            raise Problem(f"a tuning worker of {count} died, for want of memory?; set RETRACE_WORKERS=1") from None


def main(model: str) -> None:
    task = Task(model)
    with tempfile.TemporaryDirectory() as temporary:
        scratch = Path(os.environ.get("RETRACE_SCRATCH") or temporary, f"{model}-{task.digest()}")
        scratch.mkdir(parents=True, exist_ok=True)
        trials, best = tuned(task, model, scratch)
        fitted = task.fit(pd.concat([task.train, task.validation], ignore_index=True), best)
        trials.to_csv(output("plots", model, "trials.csv"), index=False, lineterminator="\n")
        output("models", f"{model}.skops").write_bytes(dumps(fitted))
        shutil.rmtree(scratch)


if __name__ == "__main__":
    run(main)
