"""What is told of a table's columns: right, bounded in memory, the same everywhere, and computed once."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from datetime import date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from retrace import statistics
from retrace.locked_down import reading
from retrace.statistics import Column, Statistics, StatisticsFailed, describe, kept

SHARES = [float(name) for name in statistics.QUANTILES]


def write(root: Path, path: str, table: pa.Table, **options: Any) -> Path:
    file = root / path
    file.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, file, **options)
    return file


def only(root: Path, kind: pa.DataType, values: list[Any]) -> Column:
    """The statistics of a table of this column alone."""
    write(root, "only.parquet", pa.table({"c": pa.array(values, kind)}))
    found = describe(root, "only.parquet")
    assert found is not None
    assert found.rows == len(values)
    return found.columns[0]


def columns(root: Path, path: str) -> dict[str, Column]:
    found = describe(root, path)
    assert found is not None
    return {column.name: column for column in found.columns}


@pytest.fixture
def flights() -> pd.DataFrame:
    draw = np.random.default_rng(7)
    frame = pd.DataFrame(
        {
            "delay": draw.normal(10, 40, 5_000).round(1),
            "distance": draw.integers(80, 5_000, 5_000),
            "departure": pd.Timestamp("2013-01-01") + pd.to_timedelta(draw.integers(0, 10**7, 5_000), unit="s"),
            "carrier": draw.choice(["UA", "AA", "B6"], 5_000),
            "late": draw.random(5_000) < 0.3,
        }
    )
    frame.loc[draw.choice(5_000, 321, replace=False), ["delay", "carrier"]] = None
    return frame


def test_every_figure_is_the_one_of_pandas(flights: pd.DataFrame, tmp_path: Path) -> None:
    files = [
        write(tmp_path, f"data/{name}.parquet", pa.Table.from_pandas(part, preserve_index=False))
        for name, part in (("2013-01", flights[:2_000]), ("more/2013-02", flights[2_000:]))
    ]
    found = describe(tmp_path, "data")
    assert found is not None
    assert (found.rows, found.files) == (5_000, 2)
    assert found.size == sum(file.stat().st_size for file in files)
    assert [column.name for column in found.columns] == list(flights)
    assert [column.type for column in found.columns] == [str(kind) for kind in pq.read_schema(files[0]).types]
    numbers = flights[["delay", "distance"]].assign(
        departure=flights["departure"].astype("datetime64[s]").astype("int64")
    )
    for column in found.columns:
        assert column.nulls == flights[column.name].isna().sum()
        assert column.distinct == flights[column.name].nunique()
        if column.name in numbers:
            values = numbers[column.name].dropna()
            assert (column.low, column.high) == (values.min(), values.max())
            assert list(column.quantiles.values()) == list(np.quantile(values, SHARES, method="inverted_cdf"))
        else:
            assert (column.low, column.high, column.quantiles) == (None, None, {})


@pytest.mark.parametrize(("name", "most"), [("EXACT_ROWS", 4_999), ("EXACT_BYTES", 1_000)])
def test_a_large_table_is_approximated(
    name: str, most: int, flights: pd.DataFrame, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, "data/all.parquet", pa.Table.from_pandas(flights, preserve_index=False))
    exact = columns(tmp_path, "data")
    monkeypatch.setattr(statistics, name, most)
    near = columns(tmp_path, "data")
    for column in exact.values():
        other = near[column.name]
        assert (other.nulls, other.low, other.high) == (column.nulls, column.low, column.high)
        assert other.distinct == pytest.approx(column.distinct, rel=0.2)
        spread = (column.high or 0) - (column.low or 0)
        assert other.quantiles == pytest.approx(column.quantiles, abs=0.02 * spread)
    assert near["delay"].quantiles != exact["delay"].quantiles


def test_more_distinct_values_than_there_are_values_are_never_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(statistics, "EXACT_ROWS", 0)
    table = pa.table({f"c{number}": [f"{number} {row}" for row in range(3_000)] for number in range(30)})
    write(tmp_path, "data.parquet", table)
    found = columns(tmp_path, "data.parquet")
    assert max(column.distinct or 0 for column in found.values()) == 3_000  # some of the thirty would exceed it


@pytest.mark.parametrize(
    ("kind", "values", "expected"),
    [
        (pa.float64(), [1.0, math.nan, None, math.inf, -math.inf, 3.0], (2, 4, 1.0, 3.0)),
        (pa.float64(), [math.nan, math.nan], (2, 0, None, None)),
        (pa.float64(), [1.0, math.nan, 9.0], (1, 2, 1.0, 9.0)),  # the extremes in the file know nothing of it
        (pa.float32(), [0.5, -0.5], (0, 2, -0.5, 0.5)),
        (pa.float16(), [np.float16(0.5), None], (1, 1, 0.5, 0.5)),
        (pa.int64(), [None, None], (2, 0, None, None)),
        (pa.uint64(), [2**64 - 1], (0, 1, float(2**64), float(2**64))),
        (pa.decimal128(10, 2), [Decimal("1.25"), Decimal("-3.50"), None], (1, 2, -3.5, 1.25)),
        (pa.decimal256(60, 1), [Decimal("1.5")], (0, 1, 1.5, 1.5)),
        (pa.date32(), [date(1970, 1, 2), None, date(1969, 12, 31)], (1, 2, -86400.0, 86400.0)),
        (pa.timestamp("us"), [datetime(1970, 1, 1, 0, 0, 1, 500_000)], (0, 1, 1.5, 1.5)),
        (pa.timestamp("ns"), [1_500_000_000], (0, 1, 1.5, 1.5)),
        (pa.timestamp("us"), [2**63 - 1, 0], (0, 2, 0.0, 0.0)),  # DuckDB's infinity
        (pa.timestamp("ms", "America/New_York"), [1500], (0, 1, 1.5, 1.5)),
        (pa.time64("us"), [1, 1], (0, 1, None, None)),
        (pa.duration("us"), [1, 1], (0, 1, None, None)),
        (pa.bool_(), [True, False, None], (1, 2, None, None)),
        (pa.string(), ["a", "", None, "a"], (1, 2, None, None)),
        (pa.binary(), [b"\x00\xff", None], (1, 1, None, None)),
        (pa.dictionary(pa.int32(), pa.string()), ["a", "b", "a"], (0, 2, None, None)),
        (pa.null(), [None, None], (2, 0, None, None)),
        (pa.list_(pa.int64()), [[1], None, [1]], (1, None, None, None)),
        (pa.struct({"x": pa.int64()}), [{"x": None}, None], (1, None, None, None)),
        (pa.map_(pa.string(), pa.int64()), [[("a", 1)], None], (1, None, None, None)),
    ],
    ids=str,
)
def test_every_type(
    kind: pa.DataType, values: list[Any], expected: tuple[int, int | None, float | None, float | None], tmp_path: Path
) -> None:
    column = only(tmp_path, kind, values)
    assert (column.nulls, column.distinct, column.low, column.high) == expected
    assert set(column.quantiles) == (set() if column.low is None else set(statistics.QUANTILES))
    json.dumps(column.quantiles, allow_nan=False)


def test_no_infinity_where_the_greatest_numbers_are_far_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(statistics, "EXACT_ROWS", 0)
    column = only(tmp_path, pa.float64(), sorted(np.random.default_rng(0).uniform(-1, 1, 20_000) * 1.79e308))
    assert all(math.isfinite(value) for value in column.quantiles.values())
    assert column.quantiles  # some are left


@pytest.mark.parametrize("name", ['a"b; drop', "a'; --", "", "c0", "value", "a.b", "äöü \n?", "SELECT"])
def test_a_column_may_have_any_name(name: str, tmp_path: Path) -> None:
    write(tmp_path, "data.parquet", pa.table({"first": [0, 0], name: [1, 2]}))
    column = columns(tmp_path, "data.parquet")[name]
    assert (column.nulls, column.distinct, column.low, column.high) == (0, 2, 1.0, 2.0)


def test_columns_whose_names_differ_in_case_alone_are_told_apart(tmp_path: Path) -> None:
    write(tmp_path, "data.parquet", pa.table({"a": [1, 2], "A": [3, 3]}))
    found = columns(tmp_path, "data.parquet")
    assert [(column.low, column.distinct) for column in found.values()] == [(1.0, 2), (3.0, 1)]


@pytest.mark.parametrize(
    "name", ["a*b", "a?b", "[ab]", "**", "a'b\"c", "{a,b}", "a b;", "~", "äöü", "c=1/a", "line\nbreak"]
)
def test_a_file_may_have_any_name_and_is_read_alone(name: str, tmp_path: Path) -> None:
    for other in ("aXb", "a", "b", "anything"):
        write(tmp_path, f"{other}.parquet", pa.table({"other": [0] * 9}))
    write(tmp_path, f"{name}.parquet", pa.table({"c": [1, 2]}))
    found = describe(tmp_path, f"{name}.parquet")
    assert found is not None
    assert (found.rows, [column.name for column in found.columns]) == (2, ["c"])
    assert found.columns[0].distinct == 2


def test_a_folder_with_such_names_is_read_whole(tmp_path: Path) -> None:
    for number, name in enumerate(("*/[a]", "*/a", "b/*")):
        write(tmp_path, f"[x]/{name}.parquet", pa.table({"c": [number]}))
    assert columns(tmp_path, "[x]")["c"].distinct == 3


def test_a_link_to_the_cache_is_read(tmp_path: Path) -> None:
    content = write(tmp_path, "cache/6f/1ed0", pa.table({"c": [1, 2]}))
    (tmp_path / "data").mkdir()
    (tmp_path / "data/part.parquet").symlink_to(content)
    assert columns(tmp_path, "data")["c"].high == 2.0


def test_nothing_else_can_be_read_and_nothing_written(tmp_path: Path) -> None:
    import duckdb

    allowed = write(tmp_path, "in.parquet", pa.table({"c": [1]}))
    other = write(tmp_path, "out.parquet", pa.table({"c": [1]}))
    with reading([allowed], "512MB") as database:
        assert database.execute("SELECT * FROM read_parquet(?)", [str(allowed)]).fetchall() == [(1,)]
        assert database.execute("SELECT current_setting('temp_directory')").fetchall() == [("",)]
        for refused in (
            f"SELECT * FROM read_parquet('{other}')",
            f"COPY (SELECT 1) TO '{tmp_path}/new.csv'",
            f"ATTACH '{tmp_path}/new.db'",
            "SET enable_external_access = true",
            "SET memory_limit = '8GB'",
            "INSTALL httpfs",
        ):
            with pytest.raises(duckdb.Error):
                database.execute(refused)
    assert sorted(os.listdir(tmp_path)) == ["in.parquet", "out.parquet"]


SHOWS_PROGRESS = """
import sys
from pathlib import Path
from retrace.locked_down import reading
with reading([Path(sys.argv[1])], "512MB") as database:
    database.execute("SELECT current_setting('enable_progress_bar')")
    sys.exit(database.fetchone()[0])
"""


def test_a_long_query_prints_nothing(tmp_path: Path) -> None:
    file = write(tmp_path, "data.parquet", pa.table({"c": [1]}))
    # Without a program's file, Python counts as interactive.
    subprocess.run([sys.executable, "-c", SHOWS_PROGRESS, str(file)], check=True)


def test_partitions_may_lack_columns_or_have_another_type_for_them(tmp_path: Path) -> None:
    write(tmp_path, "data/1.parquet", pa.table({"a": pa.array([1, 2], pa.int32()), "b": pa.nulls(2)}))
    write(tmp_path, "data/2.parquet", pa.table({"b": ["x"], "a": pa.array([2**40], pa.int64()), "c": [0.5]}))
    found = columns(tmp_path, "data")
    assert [(column.name, column.type, column.nulls, column.high) for column in found.values()] == [
        ("a", "int64", 0, float(2**40)),
        ("b", "string", 2, None),
        ("c", "double", 2, 0.5),
    ]


def test_a_table_without_rows_or_without_columns(tmp_path: Path) -> None:
    write(tmp_path, "rows.parquet", pa.table({"n": pa.array([], pa.int64()), "t": pa.array([], pa.string())}))
    found = describe(tmp_path, "rows.parquet")
    assert found is not None
    assert found.columns == (Column("n", "int64", 0, 0), Column("t", "string", 0, 0))
    write(tmp_path, "columns.parquet", pa.table({}))
    found = describe(tmp_path, "columns.parquet")
    assert found is not None
    assert (found.rows, found.columns) == (0, ())


def test_what_is_not_parquet_has_none(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder/model.skops").write_bytes(b"PAR1 this is not")
    assert describe(tmp_path, "folder") is None
    assert describe(tmp_path, "folder/model.skops") is None
    assert describe(tmp_path, "nothing/there") is None


@pytest.mark.parametrize("content", [b"", b"PAR1", b"no parquet", b"PAR1" + b"\x00" * 100 + b"PAR1"])
def test_a_damaged_file_is_one_error_that_names_it(content: bytes, tmp_path: Path) -> None:
    write(tmp_path, "data/1.parquet", pa.table({"c": [1]}))
    (tmp_path / "data/2.parquet").write_bytes(content)
    with pytest.raises(StatisticsFailed, match=r"^no statistics of data: data/2\.parquet: "):
        describe(tmp_path, "data")


def test_damage_within_is_one_error(tmp_path: Path) -> None:
    file = write(tmp_path, "data/1.parquet", pa.table({"c": [f"text {number}" for number in range(10_000)]}))
    content = bytearray(file.read_bytes())
    content[4:2_000] = b"\xff" * 1_996
    file.write_bytes(content)
    with pytest.raises(StatisticsFailed, match="^no statistics of data: ") as failure:
        describe(tmp_path, "data")
    assert str(tmp_path) not in str(failure.value)


@pytest.mark.parametrize("second", [{"c": [[1]]}, {"C": [1]}], ids=str)
def test_columns_that_cannot_be_one_are_one_error(second: dict[str, list[Any]], tmp_path: Path) -> None:
    write(tmp_path, "data/1.parquet", pa.table({"c": [1]}))
    write(tmp_path, "data/2.parquet", pa.table(second))
    with pytest.raises(StatisticsFailed, match="^no statistics of data: ") as failure:
        describe(tmp_path, "data")
    assert "\n" not in str(failure.value)


def test_a_relative_root_will_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, "~/1.parquet", pa.table({"c": [1]}))  # a folder of this name, no home
    monkeypatch.chdir(tmp_path)
    assert describe(Path(), "~") == describe(tmp_path, "~")


IN_ANOTHER_PROCESS = """
import json, sys
from pathlib import Path
from retrace import statistics
statistics.EXACT_ROWS = int(sys.argv[2])
print(json.dumps(statistics.describe(Path(sys.argv[1]), "data").as_dict()))
"""


@pytest.mark.parametrize("exact_rows", [0, 1_000_000])
def test_the_same_bytes_in_two_processes_whatever_the_order_of_creation(exact_rows: int, tmp_path: Path) -> None:
    draw = np.random.default_rng(3)
    tables = [pa.table({"c": draw.normal(number, 1, 20_000)}) for number in range(4)]
    printed = set()
    for place, order in (("one", (0, 1, 2, 3)), ("two", (2, 0, 3, 1))):
        for number in order:
            write(tmp_path / place, f"data/{number}.parquet", tables[number])
        command = [sys.executable, "-c", IN_ANOTHER_PROCESS, str(tmp_path / place), str(exact_rows)]
        environ = {**os.environ, "PYTHONHASHSEED": str(len(printed)), "TZ": f"UTC+{len(printed) * 5}"}
        printed.add(subprocess.run(command, env=environ, check=True, capture_output=True, text=True).stdout)
    assert len(printed) == 1


def test_files_come_in_the_order_of_their_names_not_of_the_disk(tmp_path: Path) -> None:
    for number in np.random.default_rng(1).permutation(50):
        (tmp_path / f"{number:02}.parquet").touch()
    assert [file.name for file in statistics.parquet_files(tmp_path)] == [
        f"{number:02}.parquet" for number in range(50)
    ]


PEAK_GROWTH = """
import sys
from pathlib import Path
from retrace.statistics import describe
def peak():
    return next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith("VmHWM"))
describe(Path(sys.argv[1]), "small.parquet")
before = peak()
describe(Path(sys.argv[1]), "large.parquet")
print(peak() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="a process's peak of memory is read from /proc")
def test_memory_does_not_grow_with_the_table(tmp_path: Path) -> None:
    draw = np.random.default_rng(5)
    write(tmp_path, "small.parquet", pa.table({"c": [1.0], "t": ["a"]}))
    rows, parts, numbers = 500_000, 10, 4
    names = [f"c{number}" for number in range(numbers)]
    schema = pa.schema([*((name, pa.float64()) for name in names), ("t", pa.string())])
    with pq.ParquetWriter(tmp_path / "large.parquet", schema, compression="none") as writer:
        for _ in range(parts):
            drawn = [draw.random(rows) for _ in range(numbers)]
            texts = pa.array(draw.integers(10**15, 10**16, rows)).cast(pa.string())
            writer.write_table(pa.table([*drawn, texts], schema=schema), row_group_size=125_000)
    held = rows * parts * (8 * numbers + 16)
    command = [sys.executable, "-c", PEAK_GROWTH, str(tmp_path)]
    growth = int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    assert growth < held / 3


def test_what_was_computed_is_kept(tmp_path: Path) -> None:
    file = write(tmp_path, "data/1.parquet", pa.table({"c": [1, 2], "t": ["a", None]}))
    store = tmp_path / "var/statistics"
    first = kept(store, "0a1b.dir", tmp_path, "data")
    assert first == describe(tmp_path, "data")
    assert os.listdir(store) == ["0a1b.dir.json"]
    file.unlink()
    assert kept(store, "0a1b.dir", tmp_path, "data") == first
    assert kept(store, "other", tmp_path, "data") is None


@pytest.mark.parametrize(
    "damage",
    [
        b"",
        b"{",
        b"\xff\xfe\xfd",
        b"[]",
        b"{}",
        b'{"rows": 1, "files": 1, "size": 1, "columns": [{"name": "c"}]}',
        b'{"rows": 1, "files": 1, "size": 1, "columns": [], "later": 1}',
        b'{"rows": 1, "files": 1, "size": 1, "columns": [{"name": "c", "type": "t", "nulls": 0, "distinct": 0,'
        b' "low": NaN}]}',
    ],
)
def test_a_damaged_one_is_computed_anew(damage: bytes, tmp_path: Path) -> None:
    write(tmp_path, "data/1.parquet", pa.table({"c": [1, 2]}))
    file = tmp_path / "store/0a1b.json"
    file.parent.mkdir()
    file.write_bytes(damage)
    found = kept(file.parent, "0a1b", tmp_path, "data")
    assert found == describe(tmp_path, "data")
    assert found is not None
    assert Statistics.from_dict(json.loads(file.read_bytes())) == found


def test_a_store_that_cannot_be_written_is_one_error_and_leaves_nothing(tmp_path: Path) -> None:
    write(tmp_path, "data/1.parquet", pa.table({"c": [1]}))
    (tmp_path / "store/0a1b.json").mkdir(parents=True)
    with pytest.raises(StatisticsFailed, match="cannot keep the statistics of data"):
        kept(tmp_path / "store", "0a1b", tmp_path, "data")
    assert os.listdir(tmp_path / "store") == ["0a1b.json"]


def test_statistics_go_through_json_and_back(tmp_path: Path) -> None:
    table = pa.table({"n": [1.5, math.nan], "t": ["a", "b"], "l": [[1], None]})
    write(tmp_path, "data.parquet", table)
    found = describe(tmp_path, "data.parquet")
    assert found is not None
    assert Statistics.from_dict(json.loads(json.dumps(found.as_dict(), allow_nan=False))) == found
