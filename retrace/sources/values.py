"""A database's values as Arrow columns of the declared types, the same whichever database they come from.

SQLite keeps timestamps as text, booleans as integers and whole numbers in REAL columns as floats; PostgreSQL has
datetimes, booleans and decimals. What fits the declared type is converted without loss, anything else is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, date, datetime
from decimal import Decimal

import pyarrow
import pyarrow.compute

from retrace.config import DatasetSettings
from retrace.errors import RetraceError
from retrace.partition import ARROW_TYPES


class ValueMismatch(RetraceError):
    """A value of the source does not fit the type that params.yaml declares for its column."""


def record_batch(
    dataset: DatasetSettings, names: Sequence[str], rows: Sequence[Sequence[object]]
) -> pyarrow.RecordBatch:
    """The rows of a result as Arrow, columns in the declared order; `names` are the result's columns."""
    columns = dict(zip(names, zip(*rows, strict=True), strict=True))
    return pyarrow.record_batch(
        {name: _column(dataset, name, columns[name]) for name in dataset.columns},
    )


def _column(dataset: DatasetSettings, name: str, values: Sequence[object]) -> pyarrow.Array:
    kind = dataset.columns[name]
    # Arrow truncates 1.5 to an integer without a word: it is given nothing but values of the very type.
    if not set(map(type, values)) <= {_NATIVE[kind], type(None)}:
        values = [_converted(dataset, name, value) for value in values]
    try:
        array = pyarrow.array(values, ARROW_TYPES[kind])
    except (pyarrow.ArrowException, OverflowError, UnicodeError):
        # A native value that is too large, or text that is not Unicode: find it, to name it.
        array = pyarrow.array([_converted(dataset, name, value) for value in values], ARROW_TYPES[kind])
    return _canonical_floats(array) if kind == "float" else array


def _canonical_floats(array: pyarrow.Array) -> pyarrow.Array:
    """SQLite can keep neither NaN (it stores NULL) nor the sign of a zero, so no partition has them."""
    missing = pyarrow.compute.is_nan(array)
    return pyarrow.compute.add(pyarrow.compute.if_else(missing, None, array), 0.0)


def _converted(dataset: DatasetSettings, name: str, value: object) -> object:
    if value is None:
        return None
    kind = dataset.columns[name]
    try:
        return _CONVERT[kind](value)
    except (ValueError, OverflowError):
        example = repr(value) if len(repr(value)) <= 60 else f"{repr(value)[:60]}..."
        raise ValueMismatch(
            f"dataset {dataset.name}: column {name} is declared {kind}, but the source gave {example}; correct "
            f"ingest.datasets.{dataset.name}.columns.{name} in params.yaml, or cast the column in the query"
        ) from None


def _string(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError
    value.encode()
    return value


def _integer(value: object) -> int:
    if not isinstance(value, int | float | Decimal):
        raise ValueError
    number = int(value)
    if number != value or not -(2**63) <= number < 2**63:
        raise ValueError
    return number


def _float(value: object) -> float:
    if not isinstance(value, int | float | Decimal):
        raise ValueError
    return float(value)


def _boolean(value: object) -> bool:
    if not isinstance(value, int | float | Decimal) or value not in (0, 1):
        raise ValueError
    return bool(value)


def _timestamp(value: object) -> datetime:
    if isinstance(value, str):
        value = datetime.fromisoformat(value)
    if isinstance(value, date) and not isinstance(value, datetime):
        value = datetime(value.year, value.month, value.day)
    if not isinstance(value, datetime):
        raise ValueError
    return value if value.tzinfo is None else value.astimezone(UTC).replace(tzinfo=None)


_CONVERT: dict[str, Callable[[object], object]] = {
    "string": _string,
    "integer": _integer,
    "float": _float,
    "boolean": _boolean,
    "timestamp": _timestamp,
}
# A datetime may carry a zone, so that timestamps are always converted.
_NATIVE: dict[str, type] = {"string": str, "integer": int, "float": float, "boolean": bool, "timestamp": type(None)}
