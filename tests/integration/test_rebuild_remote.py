"""A rebuild whose raw data comes from a real S3 server, which loses an object, spoils another, and goes down."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from forgeries import partition
from projects import Project
from remotes import credentials, stored, use_s3
from servers import S3Server

from retrace import verdicts, versions
from retrace.process import RemoteRefused, RemoteUnavailable
from retrace.reproduce import Reproduction, reproduce
from retrace.verdicts import IDENTICAL, IMPOSSIBLE

PREFIX = "rebuilds"


@pytest.fixture(scope="module")
def site(s3: S3Server, environments: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Project]:
    """alpha@v1, whose data are on S3; this machine's cache is empty."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in credentials(s3).items():
            patch.setenv(name, value)
        project = Project.make(tmp_path_factory.mktemp("rebuilds") / "toy", environments)
        use_s3(project.root, s3, PREFIX)
        for month in ("2013-01", "2013-02", "2013-03"):
            project.fill(month)
        project.ingest("2013-04-01")
        project.retrain("alpha", "first")
        shutil.rmtree(project.settings.cache)
        yield project


def rebuilt(project: Project) -> Reproduction:
    return reproduce(project.settings, versions.find(project.mirror, "alpha@v1"), project.mirror, lambda *_: None)


def test_a_version_is_made_again_from_what_the_server_has(site: Project) -> None:
    assert rebuilt(site).verdict.verdict == IDENTICAL
    assert not site.settings.cache.exists(), "nothing is put into the cache"


def test_what_the_server_has_lost_or_spoilt_is_named_and_never_used(site: Project, s3: S3Server) -> None:
    (first, a), (second, b) = partition(site, "2013-01"), partition(site, "2013-02")
    lost, spoilt = stored(s3, PREFIX, a), stored(s3, PREFIX, b)
    kept = [place.read_bytes() for place in (lost, spoilt)]
    lost.unlink()
    spoilt.write_bytes(kept[1][:-1] + bytes([kept[1][-1] ^ 1]))
    try:
        found = rebuilt(site).verdict
    finally:
        lost.write_bytes(kept[0])
        spoilt.write_bytes(kept[1])
    assert found.verdict == IMPOSSIBLE and found.facts["stages"] == []
    assert found.facts["missing"] == [
        f"{first} (md5 {a}) is not in the remote",
        f"{second} (md5 {b}) is in the remote with other bytes than the record says; it was not used",
    ]
    assert rebuilt(site).verdict.verdict == IDENTICAL


def test_a_server_that_is_down_or_closed_to_us_is_no_verdict(
    site: Project, s3: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    version = versions.find(site.mirror, "alpha@v1")
    before = len(verdicts.verdicts(site.mirror, version))
    with s3.outage(), pytest.raises(RemoteUnavailable, match=f"s3://{s3.bucket}/{PREFIX} does not answer"):
        rebuilt(site)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "x" * 40)
    with pytest.raises(RemoteRefused, match=f"s3://{s3.bucket}/{PREFIX} refused"):
        rebuilt(site)
    assert len(verdicts.verdicts(site.mirror, version)) == before
    assert not list(site.settings.workspaces.glob("*"))
