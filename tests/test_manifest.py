"""The manifest of a dataset: read back what was written, refuse what was not."""

from __future__ import annotations

import pytest

from retrace.manifest import ManifestError, Partition, format_manifest, parse_manifest, update_manifest

JUNE = Partition("data/raw/flights/2013-06.parquet", "a" * 32, "b" * 64, 28243)
JULY = Partition("data/raw/flights/2013-07.parquet", "c" * 32, "d" * 64, 29425)
WHERE = "data/raw/flights.manifest"


def test_a_line_per_partition_sorted_by_path() -> None:
    assert format_manifest([JULY, JUNE]) == (
        f"data/raw/flights/2013-06.parquet {'a' * 32} {'b' * 64} 28243\n"
        f"data/raw/flights/2013-07.parquet {'c' * 32} {'d' * 64} 29425\n"
    )


def test_reads_back_what_it_wrote() -> None:
    assert parse_manifest(format_manifest([JULY, JUNE]), WHERE) == (JUNE, JULY)
    assert parse_manifest("", WHERE) == ()
    assert format_manifest([]) == ""


def test_update_adds_replaces_and_leaves_alone() -> None:
    one = update_manifest("", JULY, WHERE)
    both = update_manifest(one, JUNE, WHERE)
    assert parse_manifest(both, WHERE) == (JUNE, JULY)
    assert update_manifest(both, JUNE, WHERE) == both
    changed = Partition(JUNE.path, "e" * 32, "f" * 64, 1)
    assert parse_manifest(update_manifest(both, changed, WHERE), WHERE) == (changed, JULY)


@pytest.mark.parametrize(
    "line",
    [
        "",
        "<<<<<<< ours",
        "# path md5 sha256 rows",
        f"a.parquet {'a' * 31} {'b' * 64} 1",
        f"a.parquet {'a' * 32} {'B' * 64} 1",
        f"a.parquet {'a' * 32} {'b' * 64} -1",
        f"a.parquet {'a' * 32} {'b' * 64} 01",
        f"a.parquet {'a' * 32} {'b' * 64}",
        f"a.parquet  {'a' * 32} {'b' * 64} 1",
        f"a.parquet {'a' * 32} {'b' * 64} 1\r",
        f"/etc/passwd {'a' * 32} {'b' * 64} 1",
        f"data/../../x {'a' * 32} {'b' * 64} 1",
        f"./a.parquet {'a' * 32} {'b' * 64} 1",
        f"data//a.parquet {'a' * 32} {'b' * 64} 1",
        f"data/ {'a' * 32} {'b' * 64} 1",
        f". {'a' * 32} {'b' * 64} 1",
    ],
)
def test_refuses_a_malformed_line_and_says_where(line: str) -> None:
    with pytest.raises(ManifestError, match=r"^data/raw/flights\.manifest, line 2: .*; restore the file"):
        parse_manifest(f"{_line('0.parquet')}{line}\n{_line('b.parquet')}", WHERE)


@pytest.mark.parametrize("second", ["b.parquet", "a.parquet"])
def test_refuses_paths_that_stand_twice_or_out_of_order(second: str) -> None:
    with pytest.raises(ManifestError, match=r"line 2: .* stands twice or out of order"):
        parse_manifest(_line("b.parquet") + _line(second), WHERE)


def test_does_not_write_what_it_could_not_read() -> None:
    with pytest.raises(ManifestError):
        format_manifest([Partition("with space.parquet", "a" * 32, "b" * 64, 1)])


def _line(path: str) -> str:
    return f"{path} {'a' * 32} {'b' * 64} 1\n"
