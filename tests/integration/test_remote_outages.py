"""A DVC remote on S3 that is down, silent, closed to us, or has lost or spoilt what it was given."""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

import psutil
import pytest
from projects import STAGES, Project, processes_of
from remotes import Wire, credentials, stored, use_s3
from servers import HOST, S3Server

from retrace import register, stage
from retrace.errors import TransientError
from retrace.lineage import event
from retrace.process import ChildDied, ObjectCorrupt, ObjectLost, RemoteRefused, RemoteUnavailable
from retrace.runs import Link, chain
from retrace.stage import StageResult

BIG = "2013-02"  # its partition takes many packets
PREFIX = "outages"
NOTICED_SECONDS = 45  # S3's own client gives up only after several minutes of silence


@dataclass
class Site:
    """A toy project with one whole run of alpha, whose remote is reached over a wire."""

    project: Project
    server: S3Server
    wire: Wire
    links: list[Link]

    def before(self, name: str) -> tuple[str, str]:
        """A new run that has come as far as this stage: its id and its last commit."""
        run, commit = uuid4().hex, self.links[STAGES.index(name)].commit
        self.project.git.out("update-ref", f"refs/runs/alpha/{run}", commit)
        return run, commit

    def made(self, name: str) -> str:
        """The commit of this stage in the whole run."""
        return self.links[STAGES.index(name) + 1].commit

    def stage(
        self, name: str, run: str, commit: str, follow: Callable[[str], None] = lambda phase: None
    ) -> StageResult:
        task = self.project.task("alpha", run, name)
        call = stage.StageCall(task=task, ref=task.run.ref, commit=commit, stage=name, timeout=300)
        return stage.run_stage(self.project.settings, call, follow)

    def forget(self) -> None:
        """Empty the cache, as on a machine that has just been set up."""
        shutil.rmtree(self.project.settings.cache, ignore_errors=True)

    def object(self, path: str) -> Path:
        """Where the server keeps a partition."""
        manifest = self.project.mirror.read("refs/heads/data", "data/raw/events.manifest") or b""
        md5 = next(line.split()[1] for line in manifest.decode().splitlines() if line.startswith(f"{path} "))
        return stored(self.server, PREFIX, md5)

    def objects(self) -> dict[str, str]:
        """md5 by name and md5 by content of everything that the server keeps of this project."""
        files = (path for path in (self.server.folder / PREFIX).rglob("*") if path.is_file())
        return {path.parent.name + path.name: hashlib.md5(path.read_bytes()).hexdigest() for path in files}

    def assert_only_a_failure_was_kept(self, run: str, commit: str, error: BaseException) -> None:
        mirror = self.project.mirror
        head = mirror.fetch_ref(f"refs/runs/alpha/{run}")
        assert head is not None
        before, after = chain(mirror, commit), chain(mirror, head)
        assert after[: len(before)] == before
        assert {link.state for link in after[len(before) :]} == {"failed"}
        assert mirror.read(head, "dvc.lock") == mirror.read(commit, "dvc.lock")
        assert str(error).replace(f"{self.project.settings.var}/", "var/") in mirror.message(head)
        assert not [path for path in self.project.settings.workspaces.iterdir() if not path.name.endswith(".lock")]
        assert not processes_of(self.project.root)


@pytest.fixture(scope="module")
def site(s3: S3Server, environments: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    wire = Wire(s3.port)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in credentials(s3).items():
            patch.setenv(name, value)
        root = tmp_path_factory.mktemp("outages") / "toy"
        project = Project.make(root, environments)
        use_s3(root, s3, PREFIX, f"http://{HOST}:{wire.port}")
        for month, rows in (("2013-01", 10), (BIG, 60_000)):
            project.fill(month, rows)
        project.ingest("2013-03-01")
        head = project.stages("alpha", "one")
        register.register(project.settings, project.task("alpha", "one", "register"), head)
        yield Site(project, s3, wire, chain(project.mirror, head))
    wire.close()


@pytest.fixture(autouse=True)
def connected(site: Site) -> Iterator[None]:
    """Whatever a test breaks, the next one finds whole."""
    yield
    site.wire.mend()


# Outages


@contextmanager
def noticed_in_seconds() -> Iterator[None]:
    """However the block ends, it does so before S3's own client would have given up."""
    started = time.monotonic()
    try:
        yield
    finally:
        assert time.monotonic() - started < NOTICED_SECONDS


@contextmanager
def closed_during_the_pull(site: Site) -> Iterator[None]:
    site.wire.break_after(100_000, "down", "closed")
    yield
    assert site.wire.broken, "the pull was over before the wire was cut"


@contextmanager
def silent_during_the_pull(site: Site) -> Iterator[None]:
    site.wire.break_after(100_000, "down", "silent")
    yield
    assert site.wire.broken, "the pull was over before the wire was cut"


OUTAGES: dict[str, Callable[[Site], AbstractContextManager[None]]] = {
    "down": lambda site: site.server.outage(),
    "silent": lambda site: site.server.hanging(),
    "closed during the pull": closed_during_the_pull,
    "silent during the pull": silent_during_the_pull,
}


@pytest.mark.parametrize("outage", OUTAGES)
def test_a_remote_that_cannot_be_read_fails_the_stage_and_a_retry_finishes(site: Site, outage: str) -> None:
    run, commit = site.before("features")
    site.forget()
    with OUTAGES[outage](site), pytest.raises(RemoteUnavailable) as caught, noticed_in_seconds():
        site.stage("features", run, commit)
    assert isinstance(caught.value, TransientError)
    assert f"s3://{site.server.bucket}/{PREFIX} does not answer" in str(caught.value)
    assert "check that it is up" in str(caught.value)
    site.wire.mend()
    site.assert_only_a_failure_was_kept(run, commit, caught.value)
    assert site.stage("features", run, commit).executed


def test_a_remote_that_goes_down_while_a_stage_runs_stops_only_what_needs_it(site: Site) -> None:
    run, commit = site.before("features")
    site.forget()

    def stop(phase: str) -> None:
        if phase == "run":
            site.server.stop()

    try:
        with pytest.raises(RemoteUnavailable) as caught:
            site.stage("features", run, commit, stop)
        # The data are here by now, and this stage makes nothing that is to be pushed.
        assert site.stage("validate", *site.before("validate")).executed
    finally:
        site.server.start()
    site.assert_only_a_failure_was_kept(run, commit, caught.value)
    log = stage.log_path(site.project.settings, site.project.task("alpha", run, "features"))
    assert site.stage("features", run, commit).executed
    assert log.read_text().count("> python -m pipeline.stage") == 1


# Credentials


def test_a_wrong_secret_or_none_is_refused_at_once_and_not_retried(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    run, commit = site.before("features")
    site.forget()
    for change, reason in (
        ({"AWS_SECRET_ACCESS_KEY": "x" * 40}, "403"),
        ({"AWS_SECRET_ACCESS_KEY": "", "AWS_ACCESS_KEY_ID": ""}, "credentials"),
    ):
        with monkeypatch.context() as patch, pytest.raises(RemoteRefused, match=reason) as caught:
            for name, value in change.items():
                patch.setenv(name, value)
            site.stage("features", run, commit)
        assert not isinstance(caught.value, TransientError)
        assert "check the credentials in the environment or .dvc/config.local" in str(caught.value)
        assert site.server.secret_key not in str(caught.value)
        site.assert_only_a_failure_was_kept(run, commit, caught.value)
    assert site.stage("features", run, commit).executed


def test_credentials_from_config_local_work_and_are_never_committed(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, commit = site.before("features")
    site.forget()
    for name in credentials(site.server):
        monkeypatch.delenv(name)
    local = site.project.root / ".dvc/config.local"
    key, secret = site.server.access_key, site.server.secret_key
    local.write_text(f"['remote \"storage\"']\n    access_key_id = {key}\n    secret_access_key = {secret}\n")
    try:
        assert site.stage("features", run, commit).executed
    finally:
        local.unlink()
    for repository in (site.project.git, site.project.mirror):
        everything = repository.run("cat-file", "--batch-all-objects", "--batch").stdout
        assert b"data/raw/events" in everything
        assert secret.encode() not in everything


# What the remote has lost or spoilt


@contextmanager
def changed(path: Path, content: bytes | None) -> Iterator[None]:
    """An object with other bytes, or lost, while the block lasts."""
    kept = path.read_bytes()
    path.unlink() if content is None else path.write_bytes(content)
    try:
        yield
    finally:
        path.write_bytes(kept)


def test_a_lost_or_spoilt_object_is_named_and_nothing_is_made_of_it(site: Site) -> None:
    partition = f"data/raw/events/{BIG}.parquet"
    place = site.object(partition)
    pointer = site.project.mirror.read("refs/heads/data", "data/raw/events.dvc") or b""
    whole = pointer.decode().partition("md5: ")[2].split()[0]
    directory = stored(site.server, PREFIX, whole)
    flipped = bytearray(place.read_bytes())
    flipped[len(flipped) // 2] ^= 1
    other = directory.read_bytes().replace(b'"md5": "', b'"md5": "0', 1)
    cases: list[tuple[Path, bytes | None, type[Exception], str]] = [
        (place, None, ObjectLost, f"{partition} (md5 {place.parent.name}{place.name}) is neither"),
        (place, bytes(flipped), ObjectCorrupt, f"{partition} (md5 {place.parent.name}{place.name}) in s3://"),
        (directory, None, ObjectLost, f"data/raw/events (md5 {whole}) is neither"),
        (directory, other, ObjectCorrupt, f"data/raw/events (md5 {whole}) in s3://"),
    ]
    run, commit = site.before("features")
    for path, content, kind, said in cases:
        site.forget()
        with changed(path, content), pytest.raises(kind) as caught:
            site.stage("features", run, commit)
        assert said in str(caught.value)
        assert not isinstance(caught.value, TransientError)
        site.assert_only_a_failure_was_kept(run, commit, caught.value)
    assert site.stage("features", run, commit).executed


def test_a_file_that_the_remote_lost_of_a_directory_is_healed_by_the_next_push(site: Site) -> None:
    facts = event.facts_of(site.project.mirror.read(site.made("features"), "lineage/alpha/features.json") or b"")
    place = stored(site.server, PREFIX, facts["outputs"][0]["files"][0]["md5"])
    assert site.stage("features", *site.before("features")).executed
    before = site.objects()
    place.unlink()
    assert site.stage("features", *site.before("features")).executed
    assert site.objects() == before
    place.unlink()
    unchanged = site.project.snapshot("alpha", "unchanged")
    assert not site.stage("features", "unchanged", unchanged).executed
    assert site.objects() == before


def test_ingestion_says_which_partition_the_remote_has_lost(site: Site) -> None:
    partition = f"data/raw/events/{BIG}.parquet"
    site.project.fill("2013-03")
    tip = site.project.refs()["refs/heads/data"]
    site.forget()
    with changed(site.object(partition), None), pytest.raises(ObjectLost) as caught:
        site.project.ingest("2013-04-01", since="2013-03-01")
    assert f"{partition} (md5 " in str(caught.value)
    assert site.project.refs()["refs/heads/data"] == tip


# A push that is killed


def kill_children() -> None:
    """End every child of this process that does DVC's work, with all its group."""
    for child in psutil.Process().children():
        if "retrace.child" in child.cmdline():
            os.killpg(child.pid, signal.SIGKILL)


def test_a_push_that_is_killed_leaves_whole_objects_and_is_finished_by_the_next(site: Site) -> None:
    site.project.fill("2013-05", rows=60_000, size=2.0)
    tip = site.project.refs()["refs/heads/data"]
    site.wire.act_after(200_000, "up", kill_children)
    with pytest.raises(ChildDied, match="ingest of 2013-05 was killed"):
        site.project.ingest("2013-06-01", since="2013-05-01")
    assert site.project.refs()["refs/heads/data"] == tip
    assert all(name.removesuffix(".dir") == md5 for name, md5 in site.objects().items())
    site.wire.mend()
    [done] = site.project.ingest("2013-06-01", since="2013-05-01")
    assert done.summary == "events adds 60,000 rows"
    assert site.object("data/raw/events/2013-05.parquet").is_file()
    assert all(name.removesuffix(".dir") == md5 for name, md5 in site.objects().items())


@pytest.mark.parametrize(
    ("action", "error", "said"),
    [
        (kill_children, ChildDied, "features@alpha was killed before it finished"),
        (lambda: None, RemoteUnavailable, f"{PREFIX} does not answer .*; check that it is up"),
    ],
    ids=["killed", "silent"],
)
def test_a_stage_that_ends_in_its_push_is_finished_by_a_retry(
    site: Site, action: Callable[[], None], error: type[Exception], said: str
) -> None:
    """The second file of the features is on its way, and the directory's object is still to come.

    The process is killed, or nothing but the silence of the remote ends it.
    """
    run, commit = site.before("features")
    facts = event.facts_of(site.project.mirror.read(site.made("features"), "lineage/alpha/features.json") or b"")
    [made] = facts["outputs"]
    before = site.objects()
    places = [stored(site.server, PREFIX, md5) for md5 in (made["md5"], *(file["md5"] for file in made["files"]))]
    for place in places:
        place.unlink()
    site.wire.stall_upload(2, action)
    with pytest.raises(error, match=said) as caught, noticed_in_seconds():
        site.stage("features", run, commit)
    assert site.wire.broken, "the push was over before the wire fell silent"
    site.wire.mend()
    assert not places[0].exists(), "the directory's object came before its files"
    assert not all(place.exists() for place in places[1:])
    site.assert_only_a_failure_was_kept(run, commit, caught.value)
    assert site.stage("features", run, commit).executed
    assert site.objects() == before
