"""Tombstones in git: added and never lost, read strictly, and left aside for what was made again without the data."""

from __future__ import annotations

import json
import subprocess
import threading
from pathlib import Path

import pytest
from handmade import Overtaken

from retrace.git import GitError, Mirror, RefUpdate
from retrace.tombstones import FILE, REF, Tombstone, bury, current, forbidden, tombstones

PART, LIST, MODEL, FEATURE = "a" * 32, "b" * 32 + ".dir", "c" * 32, "d" * 32
PATHS = {
    PART: "data/raw/events/2013-02.parquet",
    LIST: "data/raw/events",
    MODEL: "models/alpha.skops",
    FEATURE: "data/features/alpha/2013-01 a.txt",
}


def stone(md5: str, ticket: str = "T-1", date: str = "2026-01-02") -> Tombstone:
    return Tombstone(md5, None if md5.endswith(".dir") else "e" * 64, ticket, date, PATHS.get(md5, "models/beta.skops"))


STONES = {md5: stone(md5) for md5 in PATHS}


@pytest.fixture
def mirror(tmp_path: Path) -> Mirror:
    subprocess.run(["git", "init", "-q", "--bare", tmp_path / "origin"], check=True)
    return Mirror.open(tmp_path / "mirror.git", str(tmp_path / "origin"))


def test_what_is_buried_is_read_back_by_every_machine(mirror: Mirror, tmp_path: Path) -> None:
    assert current(mirror) == {}
    assert bury(mirror, STONES.values(), "T-1") == 4
    assert tombstones(mirror) == current(mirror) == STONES
    other = Mirror.open(tmp_path / "other.git", mirror.origin)
    assert current(other) == STONES
    assert mirror.message(REF) == "4 objects forgotten on request T-1\n"


def test_the_first_ticket_stays_and_nothing_is_written_twice(mirror: Mirror) -> None:
    bury(mirror, [stone(PART)], "T-1")
    head = mirror.resolve(REF)
    assert bury(mirror, [stone(PART, "T-2")], "T-2") == 0
    assert mirror.resolve(REF) == head
    assert bury(mirror, [stone(PART, "T-2"), stone(MODEL, "T-2")], "T-2") == 1
    assert {md5: found.ticket for md5, found in tombstones(mirror).items()} == {PART: "T-1", MODEL: "T-2"}


def test_two_requests_at_once_lose_nothing(mirror: Mirror, tmp_path: Path) -> None:
    other = Mirror.open(tmp_path / "other.git", mirror.origin)
    overtaken = Overtaken(mirror, lambda: bury(other, [stone(PART)], "T-1"))
    bury(overtaken, [stone(MODEL, "T-2")], "T-2")
    assert current(other).keys() == current(mirror).keys() == {PART, MODEL}


def test_many_writers_lose_nothing(mirror: Mirror, tmp_path: Path) -> None:
    md5s = [f"{number:032x}" for number in range(6)]
    mirrors = [Mirror.open(tmp_path / f"{number}.git", mirror.origin) for number in range(6)]
    threads = [
        threading.Thread(target=bury, args=(own, [stone(md5)], "T-1")) for own, md5 in zip(mirrors, md5s, strict=True)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(current(mirror)) == md5s


@pytest.mark.parametrize(
    "line",
    ["", "a b c", f"{PART} - T-1 2026-01-02 ", f"{PART} x T-1 2026-01-02 p", f"{PART[:-1]} - T-1 2026-01-02 p"],
)
def test_a_file_that_somebody_edited_is_refused(mirror: Mirror, line: str) -> None:
    commit = mirror.write_commit(None, {FILE: f"{line}\n".encode()}, [], "edited")
    mirror.push([RefUpdate(REF, commit, "")])
    with pytest.raises(GitError, match="which is no tombstone"):
        current(mirror)


def write(folder: Path, job: str, *, inputs: list[str], reads: list[tuple[str, str | None]], made: list[str]) -> None:
    outputs = [{"path": PATHS.get(md5, md5), "md5": md5, "files": []} for md5 in made]
    facts = {
        "inputs": [{"path": "x", "md5": md5} for md5 in inputs],
        "reads": [{"dataset": "x", "version": version, "run": run} for version, run in reads],
        "outputs": outputs,
    }
    body = {
        "eventType": "COMPLETE",
        "job": {"name": f"alpha.{job}"},
        "run": {"runId": f"run of {job}", "facets": {"retrace": facts}},
    }
    place = folder / "lineage/alpha" / f"{job}.json"
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_text(json.dumps(body))


def test_without_events_everything_is_forbidden(tmp_path: Path) -> None:
    assert forbidden(STONES, tmp_path) == dict.fromkeys(STONES, "T-1")
    assert forbidden({}, tmp_path) == {}


def test_what_was_made_of_the_forgotten_is_forbidden_at_every_remove(tmp_path: Path) -> None:
    write(tmp_path, "features", inputs=[PART], reads=[], made=[FEATURE])
    write(tmp_path, "train", inputs=[FEATURE], reads=[(FEATURE, "run of features")], made=[MODEL])
    assert forbidden(STONES, tmp_path).keys() == STONES.keys()


def test_what_was_made_again_without_it_is_not(tmp_path: Path) -> None:
    write(tmp_path, "features", inputs=["f" * 32], reads=[("9" * 32 + ".dir", None)], made=[FEATURE])
    write(tmp_path, "train", inputs=[FEATURE], reads=[(FEATURE, "run of features")], made=[MODEL])
    assert forbidden(STONES, tmp_path).keys() == {PART, LIST}


def test_an_old_model_beside_new_features_stays_forbidden(tmp_path: Path) -> None:
    write(tmp_path, "features", inputs=["f" * 32], reads=[], made=["1" * 32])
    write(tmp_path, "train", inputs=["2" * 32], reads=[(FEATURE, "a run that is not here")], made=[MODEL])
    assert forbidden(STONES, tmp_path).keys() == STONES.keys()


def test_raw_data_is_never_made_again(tmp_path: Path) -> None:
    write(tmp_path, "features", inputs=["f" * 32], reads=[], made=[PART, LIST])
    assert {PART, LIST} <= forbidden(STONES, tmp_path).keys()


def test_what_is_no_event_says_nothing(tmp_path: Path) -> None:
    (tmp_path / "lineage/alpha").mkdir(parents=True)
    for name, text in (("a", "not JSON"), ("b", "[]"), ("c", '{"run": 1}')):
        (tmp_path / f"lineage/alpha/{name}.json").write_text(text)
    assert forbidden(STONES, tmp_path).keys() == STONES.keys()
