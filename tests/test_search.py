"""Search of records: what a condition matches, what is refused, and that nothing of it is repeated or acts."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from retrace.locked_down import reading
from retrace.search import ConditionRefused, Hit, Place, remaining, search

PERSON = "N14228"


class Partitions:
    """Partitions in a folder, as a cache has them: named by nothing that says what they are."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.places: list[Place] = []

    def add(self, name: str, **columns: Any) -> Place:
        md5 = f"{len(self.places):032x}"
        file = self.folder / md5
        pq.write_table(pa.table(columns), file)
        self.places.append(Place(f"data/raw/flights/{name}.parquet", md5, file))
        return self.places[-1]


@pytest.fixture
def flights(tmp_path: Path) -> Partitions:
    found = Partitions(tmp_path)
    found.add("2013-01", tail=[PERSON, "N1", None], delay=[1, 2, 3])
    found.add("2013-02", tail=[PERSON, PERSON, "N2"], delay=[1, 2, 3])
    found.add("2013-03", tail=["N3"], delay=[4])
    return found


def test_counts_the_rows_that_match_in_each_partition_and_names_only_those_with_some(flights: Partitions) -> None:
    found = search(f"tail = '{PERSON}'", flights.places)
    one, two, _ = flights.places
    assert found.hits == (Hit(one.path, one.md5, 1), Hit(two.path, two.md5, 2))
    assert found.unsearchable == ()


@pytest.mark.parametrize(
    ("condition", "rows"),
    [
        ("tail = 'N14228' AND delay BETWEEN 1 AND 1", 2),
        ("TAIL ILIKE 'n1%' OR delay IN (4)", 5),
        ("NOT (tail IS NULL) AND lower(tail) = 'n14228'", 3),
        ("CASE WHEN delay > 3 THEN TRUE ELSE FALSE END", 1),
        ("TRY_CAST(tail AS INTEGER) IS NULL -- all of them", 7),
        ("regexp_matches(tail, '^N[0-9]$') AND delay::VARCHAR <> '2'", 2),
    ],
)
def test_takes_one_expression_over_the_columns(flights: Partitions, condition: str, rows: int) -> None:
    assert sum(hit.rows for hit in search(condition, flights.places).hits) == rows


def test_a_file_that_stands_for_two_paths_counts_for_both(flights: Partitions) -> None:
    one = flights.places[0]
    twin = Place("data/raw/flights/again.parquet", one.md5, one.file)
    assert [hit.path for hit in search(f"tail = '{PERSON}'", [one, twin]).hits] == [one.path, twin.path]


def test_a_partition_without_the_column_is_named_and_the_others_are_searched(flights: Partitions) -> None:
    bare = flights.add("2013-04", delay=[1])
    found = search(f"tail = '{PERSON}'", flights.places)
    assert len(found.hits) == 2
    assert found.unsearchable == ((bare.path, bare.md5, "has no column tail"),)


def test_a_partition_whose_values_do_not_suit_the_condition_is_named(flights: Partitions) -> None:
    numbers = flights.add("2013-04", tail=["1", "2"], delay=[1, 2])
    found = search("CAST(tail AS INTEGER) = 2", flights.places)
    assert [(hit.path, hit.rows) for hit in found.hits] == [(numbers.path, 1)]
    assert [path for path, _, _ in found.unsearchable] == [place.path for place in flights.places[:3]]
    assert all(PERSON not in why and "TRY_CAST" in why for _, _, why in found.unsearchable)


def test_a_lost_or_damaged_file_is_named(flights: Partitions) -> None:
    gone, damaged, rotten = (
        flights.places[0],
        flights.places[1],
        flights.add("2013-04", tail=["N1", "N5"], delay=[0, 0]),
    )
    gone.file.unlink()
    damaged.file.write_bytes(b"PAR1 and nothing else")
    content = rotten.file.read_bytes()
    rotten.file.write_bytes(content[:4] + b"\xff" * 40 + content[44:])
    found = search("tail = 'N3'", flights.places)
    assert [hit.rows for hit in found.hits] == [1]
    assert {md5: why.split(":")[0] for _, md5, why in found.unsearchable} == {
        gone.md5: "is not on this machine",
        damaged.md5: "cannot be read as Parquet",
        rotten.md5: "cannot be read as Parquet",
    }


def test_a_dataset_with_a_column_called_filename_is_searched(tmp_path: Path) -> None:
    found = Partitions(tmp_path)
    found.add("one", filename=["a", "b"])
    found.add("two", filename=["a"])
    assert [hit.rows for hit in search("filename = 'a'", found.places).hits] == [1, 1]


def test_folders_with_signs_that_mean_something_to_duckdb_are_read(tmp_path: Path) -> None:
    folder = tmp_path / "it's [a] café"
    folder.mkdir()
    found = Partitions(folder)
    found.add("one", tail=[PERSON])
    found.add("two", tail=[PERSON])
    assert len(search(f"tail = '{PERSON}'", found.places).hits) == 2


REFUSED = [
    "tail = 'N14228'; SELECT 1",
    "tail = 'N14228'; COPY (SELECT 1) TO '{folder}/written'",
    "1 = 1) ; COPY (SELECT 1) TO '{folder}/written'; --",
    "tail = 'N14228') TO '{folder}/written' --",
    "COPY (SELECT 1) TO '{folder}/written'",
    "ATTACH '{folder}/written' AS other",
    "tail IN (SELECT content FROM read_text('/etc/passwd'))",
    "EXISTS (SELECT 1 FROM read_csv('/etc/passwd') WHERE tail = 'N14228')",
    "tail = (SELECT content FROM '{folder}/secret')",
    "tail IN (SELECT tail FROM read_parquet('{folder}/{md5}'))",
    "tail = ARRAY(SELECT 1)[1]",
    "EXISTS (SELECT 1) AND tail = 'N14228'",
    "tail = 'N14228' UNION SELECT 1",
    "tail = 'N14228' LIMIT 1",
    "tail = 'N14228' ORDER BY tail",
    "tail = 'N14228', delay = 1",
    "tail = 'N14228' FROM range(3)",
    "sum(delay) > 1 AND tail = 'N14228'",
    "row_number() OVER () = 1 AND tail = 'N14228'",
    "delay > random() AND tail = 'N14228'",
    "nextval('N14228') = delay",
    "error('N14228') = tail",
    "write_log('N14228') IS NULL OR delay = 1",
    "N14228(tail) = 1",
    "tail = $1 OR tail = 'N14228'",
    "COLUMNS('N14228') = tail",
    "list_filter([delay], lambda x: x > 1)[1] = 2 AND tail = 'N14228'",
    "'N14228' = 'N14228'",
    "TRUE",
    "",
    "tail = 'N14228",
    "tail == == 'N14228'",
    'tail = "N14228"',
    "tailnum = 'N14228'",
    "delay = 'N14228'",
    "delay",
    "tail || 'N14228'",
    "filename = 'N14228'",
    "(" * 5000 + "tail = 'N14228'" + ")" * 5000,
]


@pytest.mark.parametrize("condition", REFUSED)
def test_all_else_is_refused_does_nothing_and_is_not_repeated(flights: Partitions, condition: str) -> None:
    (flights.folder / "secret").write_text("secret")
    before = {file: file.read_bytes() for file in flights.folder.iterdir()}
    text = condition.replace("{folder}", str(flights.folder)).replace("{md5}", flights.places[1].md5)
    with pytest.raises(ConditionRefused) as refused:
        search(text, flights.places)
    assert not any(word in str(refused.value).replace("tail_number = 'N14228'", "") for word in (PERSON, "secret"))
    with pytest.raises(ConditionRefused), remaining(text, flights.places[0]) as reader:
        reader.read_all()
    assert {file: file.read_bytes() for file in flights.folder.iterdir()} == before


def test_the_connection_itself_lets_nothing_else_be_read_or_written(flights: Partitions) -> None:
    import duckdb

    (flights.folder / "secret").write_text("secret")
    with reading([flights.places[0].file], "1GB") as connection:
        for statement in (
            f"SELECT * FROM read_text('{flights.folder}/secret')",
            f"SELECT * FROM read_parquet('{flights.places[1].file}')",
            f"COPY (SELECT 1) TO '{flights.folder}/written'",
            f"ATTACH '{flights.folder}/written'",
            "SET enable_external_access = true",
            "SET temp_directory = '/tmp'",
            "SET memory_limit = '64GB'",
            "INSTALL httpfs",
            "LOAD httpfs",
        ):
            with pytest.raises(duckdb.Error):
                connection.execute(statement).fetchall()
    assert not (flights.folder / "written").exists()


def test_a_refusal_names_the_columns_and_their_types(flights: Partitions) -> None:
    with pytest.raises(ConditionRefused, match=r"the columns are tail, delay; text stands in single quotes"):
        search("tail_number = 'x'", flights.places)
    with pytest.raises(ConditionRefused, match=r"tail string, delay int64"):
        search("delay = 'x'", flights.places)
    with pytest.raises(ConditionRefused, match="see its character 8"):
        search("tail = = 'x'", flights.places)


def test_a_condition_is_checked_where_there_is_nothing_to_search() -> None:
    assert search("a = 1", []).hits == ()
    with pytest.raises(ConditionRefused):
        search("a = 1; SELECT 1", [])


def test_what_remains_is_all_that_does_not_match_in_order_and_with_its_types(flights: Partitions) -> None:
    place = flights.places[0]
    with remaining(f"tail = '{PERSON}'", place) as reader:
        table = reader.read_all()
    assert table.to_pydict() == {"tail": ["N1", None], "delay": [2, 3]}
    assert table.schema == pq.read_schema(place.file)


def test_what_remains_and_what_matches_are_the_whole_whatever_is_null(tmp_path: Path) -> None:
    found = Partitions(tmp_path)
    rows = 300_000
    place = found.add("one", n=[None if i % 7 == 0 else i for i in range(rows)], s=[str(i % 10) for i in range(rows)])
    condition = "n % 2 = 0 AND s <> '4'"
    hit = search(condition, [place]).hits[0]
    with remaining(condition, place) as reader:
        batches = [batch.num_rows for batch in reader]
    assert sum(batches) + hit.rows == rows
    assert len(batches) > 1


def test_what_remains_is_not_read_where_the_condition_cannot_be_computed(flights: Partitions) -> None:
    with (
        pytest.raises(ConditionRefused) as refused,
        remaining("CAST(tail AS INTEGER) = 1", flights.places[0]) as reader,
    ):
        reader.read_all()
    assert PERSON not in str(refused.value)
    gone = Place("data/raw/flights/2012.parquet", "0" * 32, flights.folder / "gone")
    with pytest.raises(ConditionRefused, match=r"2012\.parquet .*is not on this machine"), remaining("a = 1", gone):
        pass


SEARCH = """
import sys
from pathlib import Path
from retrace.search import Place, search
places = [Place("p", "m", Path(sys.argv[1]))]
search("delay = 1", places)
print("begins", flush=True)
search("levenshtein(repeat(tail, 5000), repeat(tail, 5001)) = delay", places)  # hours of work
"""


def test_an_interrupt_ends_a_search_at_once(tmp_path: Path) -> None:
    place = Partitions(tmp_path).add("one", tail=[f"N{n}" for n in range(50_000)], delay=list(range(50_000)))
    with subprocess.Popen(
        [sys.executable, "-c", SEARCH, str(place.file)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None and process.stderr is not None
        assert process.stdout.readline() == "begins\n"
        time.sleep(1.0)
        process.send_signal(signal.SIGINT)
        process.wait(timeout=60)
        assert "KeyboardInterrupt" in process.stderr.read()
