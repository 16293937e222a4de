"""A request to be forgotten where the DVC remote is a real S3 server: searched, purged, and guarded afterwards."""

from __future__ import annotations

import shutil
import sqlite3
from pathlib import Path

import pytest
from projects import Project
from remotes import credentials, stored, use_s3
from servers import S3Server

from retrace.forget import forget
from retrace.forgetting.plan import Request, newest
from retrace.process import Forgotten
from retrace.tombstones import current

PREFIX = "forget"
PERSON = "INSERT INTO events VALUES ('2013-02-09 00:00:00', 'the person', 1.5)"


def test_objects_are_deleted_from_a_bucket_and_do_not_come_back(
    empty_project: Project, s3: S3Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name, value in credentials(s3).items():
        monkeypatch.setenv(name, value)
    project = empty_project
    use_s3(project.root, s3, PREFIX)
    for month in ("2013-01", "2013-02"):
        project.fill(month)
    with sqlite3.connect(project.source) as database:
        database.execute(PERSON)
    project.ingest("2013-03-01")
    old = {part.path: part.md5 for part in newest(project.mirror, "events")}
    shutil.copytree(project.settings.cache, tmp_path / "cache of another machine")
    shutil.rmtree(project.settings.cache)  # so that the partitions are read from the bucket
    with sqlite3.connect(project.source) as database:
        database.execute("DELETE FROM events WHERE name = 'the person'")

    condition = "name = 'the person'"
    assert forget(project.settings, Request("events", "T-1"), condition, None, project.fetch) == 0

    stones = current(project.mirror)
    assert {stone.path for stone in stones.values()} == {"data/raw/events", "data/raw/events/2013-02.parquet"}
    assert not [md5 for md5 in stones if stored(s3, PREFIX, md5).exists()]
    now = {part.path: part.md5 for part in newest(project.mirror, "events")}
    assert all(stored(s3, PREFIX, md5).exists() for md5 in now.values())
    assert now["data/raw/events/2013-01.parquet"] == old["data/raw/events/2013-01.parquet"]

    shutil.rmtree(project.settings.cache)
    shutil.copytree(tmp_path / "cache of another machine", project.settings.cache)
    with sqlite3.connect(project.source) as database:
        database.execute(PERSON)
    with pytest.raises(Forgotten, match="was removed on request T-1"):
        project.ingest("2013-03-01", "2013-02-01")
    assert not [md5 for md5 in stones if stored(s3, PREFIX, md5).exists()]
