"""Check the raw partitions that a model's windows and look-back use: python -m pipeline.validate MODEL

One partition is in memory at a time. The report names every check and is written whether or not all of them hold.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
from pandera.pandas import Check
from pydantic import NonNegativeFloat, NonNegativeInt

from pipeline.project import Problem, Strict, Window, partitions, read, run, setting, split, write_json
from pipeline.schema import COLUMNS, KEYS, has_rows, is_unique, missing_at_most


class Rows(Strict):
    at_least: NonNegativeInt
    at_most: NonNegativeInt


class Limits(Strict):
    """How many rows a partition has, and the greatest share of missing values of a column (0 where not named)."""

    rows: Rows
    missing: dict[str, NonNegativeFloat] = {}


def outcome(column: str | None, check: Check, values: pd.DataFrame | pd.Series) -> dict[str, Any]:
    """What one check says of a column, or of the rows as a whole."""
    result = check(values)
    passed, detail = bool(result.check_passed), ""
    if not passed and column is None:
        detail = f"{len(values):,} rows"
    elif not passed:
        wrong = values[~result.check_output] if isinstance(result.check_output, pd.Series) else values[:0]
        detail = f"{len(wrong):,} others, such as {wrong.iloc[0]}" if len(wrong) else f"{values.isna().mean():.0%} missing"
    return {"column": column, "check": str(check.name), "passed": passed, "detail": detail}


def outcomes(dataset: str, limits: Limits, rows: pd.DataFrame) -> list[dict[str, Any]]:
    """Every check of one partition. What comes after a failed check of its column would only repeat it."""
    result = [outcome(None, has_rows(limits.rows.at_least, limits.rows.at_most), rows)]
    for column, checks in COLUMNS[dataset].items():
        result.append({"column": column, "check": "is there", "passed": column in rows, "detail": ""})
        for check in [missing_at_most(limits.missing.get(column, 0.0)), *checks]:
            if result[-1]["passed"]:
                result.append(outcome(column, check, rows[column]))
    if all(column in rows for column in KEYS[dataset]):
        result.append(outcome(None, is_unique(KEYS[dataset]), rows))
    return result


def used(dataset: str, window: Window) -> list[str]:
    """The partitions of the windows, and the one before them, which the features look back into."""
    names = partitions(Path("data/raw") / dataset)
    return names[-len(split(names, window).all) - 1 :]


def main(model: str) -> None:
    window = setting(model, "window", Window)
    limits = setting(model, "validate", dict[str, Limits])
    checks: list[dict[str, Any]] = []
    for dataset in setting(model, "datasets", list[str]):
        if dataset not in limits or dataset not in COLUMNS:
            raise Problem(f"no checks for the dataset {dataset!r}; add it to models.{model}.validate and pipeline/schema.py")
        unknown = set(limits[dataset].missing) - set(COLUMNS[dataset])
        if unknown:
            raise Problem(f"models.{model}.validate.{dataset}.missing names {', '.join(sorted(unknown))}, no such column")
        for name in used(dataset, window):
            rows = read([Path("data/raw") / dataset / f"{name}.parquet"])
            found = outcomes(dataset, limits[dataset], rows)
            checks += [{"dataset": dataset, "partition": name, **item} for item in found]
    failed = [item for item in checks if not item["passed"]]
    write_json({"passed": not failed, "failed": len(failed)}, Path("reports") / model / "validation.json", checks=checks)
    if failed:
        first = failed[0]
        more = f"; {len(failed) - 1} more in reports/{model}/validation.json" if len(failed) > 1 else ""
        what = f"column {first['column']} not so: {first['check']}" if first["column"] else f"not so: {first['check']}"
        told = f" ({first['detail']})" if first["detail"] else ""
        raise Problem(f"bad data in {first['dataset']} {first['partition']}: {what}{told}{more}")
    print(f"validate {model}: {len(checks)} checks passed", flush=True)


if __name__ == "__main__":
    run(main)
