"""Ingestion: one commit an interval on the branch `data`, nothing else touched, and nothing at all when it fails."""

from __future__ import annotations

import json
import socket
import sqlite3
import uuid
from pathlib import Path

import pytest
from projects import Project, day, git
from sqlalchemy import URL

from retrace import ingest, runs
from retrace.config import IngestSettings
from retrace.dvcfiles import pointer_md5
from retrace.errors import RetraceError, TransientError
from retrace.git import Mirror, RefUpdate
from retrace.hashing import hash_file
from retrace.ingest import DataMoved, IngestCall, Ingested, NothingToIngest
from retrace.intervals import Interval
from retrace.lineage import event
from retrace.manifest import Partition, parse_manifest
from retrace.sources.sql import ColumnMismatch, EmptyInterval, QueryFailed, SourceRefused, fetch_partition

DATA = "refs/heads/data"
POINTER, MANIFEST, EVENT = "data/raw/events.dvc", "data/raw/events.manifest", "data/raw/ingest.json"


def partition(month: str) -> str:
    return f"data/raw/events/{month}.parquet"


def manifest_at(project: Project, commit: str = DATA) -> dict[str, Partition]:
    """Path -> line of the manifest of a commit on data."""
    text = (project.mirror.read(commit, MANIFEST) or b"").decode()
    return {row.path: row for row in parse_manifest(text, MANIFEST)}


def listing(project: Project, commit: str = DATA) -> dict[str, str]:
    """Path -> md5 of the files that the pointer of a commit stands for, as the DVC remote has them."""
    oid = pointer_md5(project.mirror.read(commit, POINTER) or b"", POINTER)
    entries = json.loads(stored(project, oid).read_text())
    return {f"data/raw/events/{entry['relpath']}": entry["md5"] for entry in entries}


def stored(project: Project, oid: str) -> Path:
    """An object of the DVC remote."""
    return project.settings.var / "remote/files/md5" / oid[:2] / oid[2:]


def history(project: Project) -> list[str]:
    """The titles of the commits on data, oldest first."""
    return git(project.root, "log", "--reverse", "--format=%s", DATA).splitlines()


def through(project: Project, commit: str = DATA) -> str:
    return git(project.root, "log", "-1", "--format=%(trailers:key=Data-Through,valueonly)", commit)


def only_data_moved(project: Project, before: dict[str, str]) -> bool:
    after = project.refs()
    return {ref for ref in before | after if before.get(ref) != after.get(ref)} == {DATA}


def refused(project: Project, error: type[RetraceError], until: str) -> str:
    """The message with which an ingestion is refused; no ref moved and no workspace is left."""
    before = project.refs()
    with pytest.raises(error) as raised:
        project.ingest(until)
    assert project.refs() == before
    assert not list(project.settings.workspaces.glob("*"))
    assert "\n" not in str(raised.value)
    return str(raised.value)


def test_an_interval_makes_one_commit_that_touches_data_raw_alone(project: Project) -> None:
    tip = project.refs()[DATA]
    project.fill("2013-04", rows=12)
    march, april = project.ingest("2013-05-01")
    assert march == Ingested("2013-03", None, "unchanged")
    assert april == Ingested("2013-04", project.refs()[DATA], "events adds 12 rows")
    assert april.commit is not None
    assert git(project.root, "log", "-1", "--format=%P", april.commit) == tip
    changed = git(project.root, "diff-tree", "-r", "--name-only", "--no-commit-id", april.commit).splitlines()
    assert changed == [POINTER, MANIFEST, EVENT]
    assert set(project.mirror.files(april.commit)) == {POINTER, MANIFEST, EVENT}
    assert git(project.root, "log", "-1", "--format=%B", april.commit) == (
        "data: 2013-04: events adds 12 rows\n\nRetrace-Stage: ingest\nRetrace-Run: ingest 2013-05-01\n"
        "Data-Through: 2013-05-01T00:00:00+00:00"
    )


def test_every_interval_has_its_commit_and_the_file_of_its_manifest_line_is_in_the_remote(ingested: Project) -> None:
    assert history(ingested) == [f"data: 2013-0{month}: events adds 10 rows" for month in (1, 2, 3)]
    assert git(ingested.root, "rev-list", "--max-parents=0", DATA) == git(ingested.root, "rev-parse", "data~2")
    for back, end in ((2, "2013-02-01"), (1, "2013-03-01"), (0, "2013-04-01")):
        assert through(ingested, f"{DATA}~{back}") == f"{end}T00:00:00+00:00"
    rows = manifest_at(ingested)
    assert list(rows) == [partition(f"2013-0{month}") for month in (1, 2, 3)]
    assert listing(ingested) == {path: row.md5 for path, row in rows.items()}
    for row in rows.values():
        found = hash_file(stored(ingested, row.md5))
        assert (found.md5, found.sha256, row.rows) == (row.md5, row.sha256, 10)
    first = manifest_at(ingested, f"{DATA}~2")
    assert first == {partition("2013-01"): rows[partition("2013-01")]}


def test_the_event_of_an_ingestion_names_the_dataset_and_what_arrived(ingested: Project) -> None:
    content = ingested.mirror.read(DATA, EVENT) or b""
    told, facts = json.loads(content), event.facts_of(content)
    assert (told["eventType"], told["job"]["name"], told["inputs"]) == ("COMPLETE", "ingest.ingest", [])
    (output,) = told["outputs"]
    pointer = pointer_md5(ingested.mirror.read(DATA, POINTER) or b"", POINTER)
    assert (output["name"], output["facets"]["version"]["datasetVersion"]) == ("data/raw/events", pointer)
    assert (facts["interval"], facts["run"]) == ("2013-03", "ingest 2013-04-01")
    assert facts["partitions"] == [vars(manifest_at(ingested)[partition("2013-03")])]


def test_the_same_rows_again_make_no_commit(project: Project) -> None:
    before = project.refs()
    again = project.ingest("2013-04-01", since="2013-01-01")
    assert again == [Ingested(f"2013-0{month}", None, "unchanged") for month in (1, 2, 3)]
    assert project.refs() == before
    assert not list(project.settings.workspaces.glob("*"))


def test_rows_that_changed_replace_their_partition_and_no_other(project: Project) -> None:
    old = manifest_at(project)
    project.fill("2013-02", rows=1200)
    january, february, march = project.ingest("2013-04-01", since="2013-01-01")
    assert (january.commit, march.commit) == (None, None)
    assert february.summary == "events replaces 10 rows with 1,200 rows"
    assert history(project)[3:] == ["data: 2013-02: events replaces 10 rows with 1,200 rows"]
    assert through(project) == "2013-04-01T00:00:00+00:00", "an old interval took the newest back"
    new = manifest_at(project)
    assert {path for path in new if new[path] != old.get(path)} == {partition("2013-02")}
    assert new.keys() == old.keys()
    assert listing(project) == {path: row.md5 for path, row in new.items()}
    assert runs.data_as_of(project.mirror, None).commit == february.commit
    for row in old.values():
        assert stored(project, row.md5).exists(), "what older versions were made of is gone"


def test_late_rows_of_the_newest_interval_are_found_without_a_date(project: Project) -> None:
    project.fill("2013-02", rows=11)
    project.fill("2013-03", rows=11)
    (march,) = project.ingest("2013-04-01")
    assert (march.interval, march.summary) == ("2013-03", "events replaces 10 rows with 11 rows")
    assert manifest_at(project)[partition("2013-02")].rows == 10, "an older interval needs --since"


def test_the_same_source_gives_the_same_bytes_wherever_and_in_whatever_order_it_is_read(
    ingested: Project, tmp_path: Path, environments: Path
) -> None:
    other = Project.make(tmp_path / "elsewhere", environments)
    for month in ("2013-03", "2013-02", "2013-01"):
        other.fill(month)
    with sqlite3.connect(other.source) as database:
        database.execute("CREATE TABLE reversed AS SELECT * FROM events ORDER BY rowid DESC")
        database.execute("DROP TABLE events")
        database.execute("ALTER TABLE reversed RENAME TO events")
    other.ingest("2013-03-01")
    other.ingest("2013-04-01")
    for path in (POINTER, MANIFEST):
        content = ingested.mirror.read(DATA, path)
        assert content
        assert other.mirror.read(DATA, path) == content
    for row in manifest_at(ingested).values():
        assert stored(other, row.md5).read_bytes() == stored(ingested, row.md5).read_bytes()


def test_an_interval_without_rows_is_refused_after_those_that_have_some(project: Project) -> None:
    source = f"sqlite:///{project.source}"
    advice = (
        "ingest again when the data has arrived, or correct ingest.start or ingest.datasets.events.query in params.yaml"
    )
    assert refused(project, EmptyInterval, "2013-05-01") == (
        f"dataset events has no rows from 2013-04-01 00:00:00 to 2013-05-01 00:00:00 in {source}; {advice}"
    )
    project.fill("2013-04")
    with pytest.raises(EmptyInterval, match="has no rows from 2013-05-01 00:00:00 to 2013-06-01 00:00:00"):
        project.ingest("2013-06-01")
    assert through(project) == "2013-05-01T00:00:00+00:00"


def ask(project: Project, query: str) -> None:
    """Change what is asked of the source."""
    project.edit_params(lambda params: params["ingest"]["datasets"]["events"].update(query=query))


def test_a_source_that_gives_something_else_leaves_everything_as_it_was(project: Project) -> None:
    project.fill("2013-04")
    source = f"sqlite:///{project.source}"
    good = project.params["ingest"]["datasets"]["events"]["query"]
    ask(project, good.replace(", size", ", weight AS size"))
    assert refused(project, QueryFailed, "2013-05-01") == (
        f"dataset events: the query failed at {source}: no such column: weight; correct ingest.datasets.events.query "
        "in params.yaml, or the source"
    )
    ask(project, good.replace(", size", ""))
    assert refused(project, ColumnMismatch, "2013-05-01") == (
        "dataset events: the query's result lacks size; make ingest.datasets.events.query and "
        "ingest.datasets.events.columns in params.yaml agree"
    )
    ask(project, good)
    away = project.source.rename(project.source.with_name("away.db"))
    assert refused(project, SourceRefused, "2013-05-01") == (
        f"source {source}: the file {project.source} does not exist; create it or correct the Airflow Connection"
    )
    away.rename(project.source)
    assert project.ingest("2013-05-01")[-1].summary == "events adds 10 rows"


def test_a_source_that_goes_down_meanwhile_is_worth_another_try(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    project.fill("2013-04")
    reachable = project.fetch
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        url = URL.create("postgresql", host="127.0.0.1", port=silent.getsockname()[1], database="events")

        def down(settings: IngestSettings, name: str, interval: Interval, root: Path, path: str) -> Partition:
            if interval.name == "2013-03":
                return reachable(settings, name, interval, root, path)
            return fetch_partition(url, settings.datasets[name], interval.start, interval.end, root, path)

        monkeypatch.setattr(project, "fetch", down)
        message = refused(project, TransientError, "2013-05-01")
    assert message.startswith(f"source {url.set(drivername='postgresql+psycopg2')} is not available: ")
    assert message.endswith("; start it or correct the Airflow Connection, then try again")
    monkeypatch.undo()
    assert project.ingest("2013-05-01")[-1].summary == "events adds 10 rows"


def test_of_two_datasets_both_arrive_or_neither(project: Project) -> None:
    """A second dataset is declared whose table does not exist yet."""
    events = project.params["ingest"]["datasets"]["events"]
    sizes = {**events, "query": events["query"].replace("FROM events", "FROM sizes")}
    project.edit_params(lambda params: params["ingest"]["datasets"].update(sizes=sizes))
    project.fill("2013-04")
    before = {path.name for path in (project.settings.var / "remote").rglob("*")}
    assert "dataset sizes: the query failed at" in refused(project, RetraceError, "2013-05-01")
    assert {path.name for path in (project.settings.var / "remote").rglob("*")} == before
    with sqlite3.connect(project.source) as database:
        database.execute("CREATE TABLE sizes AS SELECT * FROM events")
    march, april = project.ingest("2013-05-01")
    assert march.summary == "sizes adds 10 rows", "the dataset that is new begins with the interval that is read"
    assert april.summary == "events adds 10 rows; sizes adds 10 rows"
    assert april.commit is not None
    changed = git(project.root, "diff-tree", "-r", "--name-only", "--no-commit-id", april.commit).splitlines()
    assert changed == [POINTER, MANIFEST, EVENT, "data/raw/sizes.dvc", "data/raw/sizes.manifest"]


def test_a_time_without_a_whole_interval_is_refused(project: Project, tmp_path: Path, environments: Path) -> None:
    for until in ("2013-03-31", "2013-01-01"):
        assert refused(project, NothingToIngest, until) == (
            f"no whole month lies between 2013-03-01 and {until}; give a later --until"
        )
    assert refused(Project.make(tmp_path / "empty", environments), NothingToIngest, "2013-01-31") == (
        "no whole month lies between 2013-01-01 and 2013-01-31; give a later --until"
    )
    before = project.refs()
    with pytest.raises(NothingToIngest, match="between 2013-01-01 and 2012-12-01"):  # never before ingest.start
        project.ingest("2012-12-01", since="2012-01-01")
    assert project.refs() == before


class Rival:
    """Somebody who pushes to data while an interval is fetched, from this machine or another one."""

    def __init__(self, project: Project, interval: str, mirror: Mirror) -> None:
        self.project, self.interval, self.mirror = project, interval, mirror
        self.commit: str | None = None

    def fetch(self, settings: IngestSettings, name: str, interval: Interval, root: Path, path: str) -> Partition:
        if interval.name == self.interval and self.commit is None:
            tip = self.project.refs()[DATA]
            old = (self.mirror.read(tip, MANIFEST) or b"").decode().replace(" 10\n", " 77\n", 1)
            text = "data: theirs\n\nData-Through: 2013-04-01T00:00:00+00:00\n"
            self.commit = self.mirror.write_commit(tip, {MANIFEST: old.encode()}, [tip], text)
            self.mirror.push([RefUpdate(DATA, self.commit, tip)])
            self.mirror.fetch_record()
        return self.project.fetch(settings, name, interval, root, path)

    def ingest(self, until: str) -> list[str | None]:
        call = IngestCall(day(until), None, f"ingest {until}", str(uuid.uuid4()))
        done = ingest.ingest(self.project.settings, call, self.fetch, lambda _: None)
        return [result.commit for result in done]


def test_whoever_loses_the_race_to_the_branch_changes_nothing_and_can_go_on(project: Project, tmp_path: Path) -> None:
    project.fill("2013-04")
    theirs = Mirror.open(tmp_path / "theirs.git", project.settings.origin)
    theirs.fetch_record()
    rival = Rival(project, "2013-04", theirs)
    before = project.refs()
    with pytest.raises(DataMoved, match=f"^{DATA} moved in the meantime; nothing was changed; ingest again$"):
        rival.ingest("2013-05-01")
    assert only_data_moved(project, before)
    assert project.refs()[DATA] == rival.commit
    assert not list(project.settings.workspaces.glob("*"))
    assert rival.ingest("2013-05-01") == [None, project.refs()[DATA]]
    assert history(project)[3:] == ["data: theirs", "data: 2013-04: events adds 10 rows"]
    assert manifest_at(project)[partition("2013-01")].rows == 77


def test_a_rival_on_the_same_machine_is_not_overwritten_between_two_intervals(project: Project) -> None:
    """Both use one mirror: what it shows then is newer than the workspace in which the pointer is made."""
    project.fill("2013-04")
    rival = Rival(project, "2013-03", project.mirror)
    with pytest.raises(DataMoved):
        rival.ingest("2013-05-01")
    assert project.refs()[DATA] == rival.commit
    assert rival.ingest("2013-05-01") == [None, project.refs()[DATA]]


def working_copy(project: Project) -> dict[str, int]:
    """Path -> time of the last change of every file that is the user's."""
    found = (path.relative_to(project.root) for path in project.root.rglob("*") if path.is_file())
    mine = [path for path in found if path.parts[0] not in (".git", "var")]
    return {str(path): (project.root / path).stat().st_mtime_ns for path in mine}


def test_an_ingestion_touches_neither_main_nor_the_working_copy(project: Project) -> None:
    (project.root / "params.yaml").write_text("not even YAML: [")
    (project.root / "notes.txt").write_text("mine")
    git(project.root, "add", "notes.txt")
    status = git(project.root, "status", "--porcelain")
    index = (project.root / ".git/index").read_bytes()
    files = working_copy(project)
    before = project.refs()
    project.fill("2013-04")
    assert project.ingest("2013-05-01")[-1].commit is not None
    assert only_data_moved(project, before)
    assert git(project.root, "symbolic-ref", "HEAD") == "refs/heads/main"
    assert (project.root / ".git/index").read_bytes() == index
    assert working_copy(project) == files
    assert git(project.root, "status", "--porcelain") == status
