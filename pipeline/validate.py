"""Check the raw partitions that a model's windows and look-back use: python -m pipeline.validate MODEL

One partition is in memory at a time. The report names every check and is written whether or not all of them hold.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
from pandera.pandas import Check
from pydantic import NonNegativeFloat, NonNegativeInt

from pipeline.project import Problem, Strict, Window, output, partitions, read, run, setting, split
from pipeline.schema import COLUMNS, KEYS, has_rows, is_unique, missing_at_most


class Rows(Strict):
    at_least: NonNegativeInt
    at_most: NonNegativeInt


class Limits(Strict):
    """How many rows a partition has, and the greatest share of missing values of a column (0 where not named)."""

    rows: Rows
    missing: dict[str, NonNegativeFloat]


def outcome(column: str | None, check: Check, values: pd.DataFrame | pd.Series) -> dict[str, Any]:
    """What one check says of a column, or of the rows as a whole."""
    result = check(values)
    passed, detail = bool(result.check_passed), ""
    if not passed and column is None:
        detail = f"{len(values):,} rows"
    elif not passed and isinstance(result.failure_cases, pd.Series):
        detail = f"{len(result.failure_cases):,} are not, such as {result.failure_cases.iloc[0]}"
    elif not passed:
        detail = f"{values.dtype}, {values.isna().mean():.0%} missing"
    return {"column": column, "check": str(check.name), "passed": passed, "detail": detail}


def outcomes(dataset: str, limits: Limits, rows: pd.DataFrame) -> list[dict[str, Any]]:
    """Every check of one partition. What comes after a failed check of its column would only repeat it."""
    found = [outcome(None, has_rows(limits.rows.at_least, limits.rows.at_most), rows)]
    for column, checks in COLUMNS[dataset].items():
        found.append({"column": column, "check": "is there", "passed": column in rows, "detail": ""})
        for check in [missing_at_most(limits.missing.get(column, 0.0)), *checks]:
            if found[-1]["passed"]:
                found.append(outcome(column, check, rows[column]))
    if set(KEYS[dataset]) <= set(rows):
        found.append(outcome(None, is_unique(KEYS[dataset]), rows))
    return found


def report(model: str, checks: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Write every check, a line each; returns those that failed."""
    failed = [check for check in checks if not check["passed"]]
    lines = ",\n".join(f"    {json.dumps(check)}" for check in checks)
    text = f'{{\n  "passed": {json.dumps(not failed)},\n  "failed": {len(failed)},\n  "checks": [\n{lines}\n  ]\n}}\n'
    output("reports", model, "validation.json").write_text(text, encoding="utf-8")
    return failed


def main(model: str) -> None:
    limits, window = setting(model, "validate", dict[str, Limits]), setting(model, "window", Window)
    checks: list[dict[str, Any]] = []
    for dataset in setting(model, "datasets", list[str]):
        if dataset not in limits or dataset not in COLUMNS:
            raise Problem(f"no checks for dataset {dataset!r}; add it to validate and pipeline/schema.py")
        if unknown := set(limits[dataset].missing) - set(COLUMNS[dataset]):
            raise Problem(f"models.{model}.validate.{dataset}.missing names {', '.join(unknown)}, no column of it")
        names = partitions(Path("data/raw") / dataset)
        train, validation, _ = split(names, window)
        for name in names[-len(train) - len(validation) - 2 :]:  # the holdout, and what the oldest looks back into
            rows = read([Path("data/raw") / dataset / f"{name}.parquet"])
            found = outcomes(dataset, limits[dataset], rows)
            checks += [{"dataset": dataset, "partition": name, **check} for check in found]
    if failed := report(model, checks):
        first = failed[0]
        what = f"column {first['column']} not so: {first['check']}" if first["column"] else f"not so: {first['check']}"
        told = f"bad data in {first['dataset']} {first['partition']}: {what} ({first['detail'] or 'absent'})"
        raise Problem(f"{told}; {len(failed)} of {len(checks)} checks failed: reports/{model}/validation.json")
    print(f"{len(checks)} checks passed", flush=True)


if __name__ == "__main__":
    run(main)
