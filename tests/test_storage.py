"""Objects that are lost, rotten or swapped, in the remote and in this machine's cache: healed or refused."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from projects import Project, git, processes_of

from retrace import versions
from retrace.dvcfiles import LOCK, entries_of, lock_entries, output_md5s
from retrace.errors import RetraceError
from retrace.hashing import hash_file
from retrace.process import DiskFull, ObjectCorrupt, ObjectLost, RemoteFailed, RemoteRefused

FEATURES = "data/features/alpha"
MODEL = "models/alpha.skops"


class Stored:
    """The objects of a project in which alpha@v1 exists and its training has to run again."""

    def __init__(self, project: Project) -> None:
        self.project = project
        self.version = versions.find(project.mirror, "alpha@v1")
        self.md5s = output_md5s(entries_of(lock_entries(project.mirror.read(self.version.commit, LOCK)), "alpha"))
        project.edit_params(lambda params: params["models"]["alpha"]["train"].update(seed=5))
        self.start = project.snapshot("alpha", "two")
        self.cache, self.remote = project.settings.cache, project.settings.var / "remote"

    def object(self, store: Path, md5: str) -> Path:
        return store / "files/md5" / md5[:2] / md5[2:]

    @property
    def feature(self) -> str:
        """The md5 of the first file of the features."""
        listing = json.loads(self.object(self.remote, self.md5s[FEATURES]).read_text())
        return str(listing[0]["md5"])

    def forget(self) -> None:
        """Empty the cache, as on a machine that has never seen the project."""
        shutil.rmtree(self.cache)

    def train(self) -> str:
        return self.project.stage("alpha", "two", "train", self.start).commit

    def trained(self, commit: str) -> str:
        """The model of a commit, as the remote has it."""
        md5 = output_md5s(lock_entries(self.project.mirror.read(commit, LOCK)))[MODEL]
        return self.object(self.remote, md5).read_text()


@pytest.fixture
def stored(trained: Project) -> Stored:
    return Stored(trained)


def rot(path: Path) -> bytes:
    """Flip a bit in the middle; the file stays read-only, as DVC leaves it. Returns what it was."""
    content, mode = path.read_bytes(), path.stat().st_mode
    middle = len(content) // 2
    path.chmod(0o644)
    path.write_bytes(content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :])
    path.chmod(mode)
    return content


def restore(path: Path, content: bytes) -> None:
    path.chmod(0o644)
    path.write_bytes(content)
    path.chmod(0o444)


def refused(stored: Stored, error: type[RetraceError]) -> str:
    """The message with which the training is refused; nothing was trained, stored or left."""
    before = {path.name for path in stored.remote.rglob("*")}
    with pytest.raises(error) as raised:
        stored.train()
    assert {path.name for path in stored.remote.rglob("*")} == before
    assert not list(stored.project.settings.workspaces.glob("*"))
    assert not processes_of(stored.project.root)
    return str(raised.value)


def test_a_lost_object_is_named_and_its_return_is_enough(stored: Stored) -> None:
    stored.forget()
    lost = stored.object(stored.remote, stored.feature)
    lost.rename(lost.with_name("aside"))
    assert refused(stored, ObjectLost) == (
        f"{FEATURES}/2013-01.txt (md5 {stored.feature}) is neither in this machine's cache nor in the DVC remote "
        f"{stored.remote}; 1 missing in all; push it from a machine that has it"
    )
    lost.with_name("aside").rename(lost)
    assert stored.trained(stored.train()).startswith("5 ")


def test_a_lost_directory_object_is_named(stored: Stored) -> None:
    stored.forget()
    stored.object(stored.remote, stored.md5s[FEATURES]).unlink()
    assert f"{FEATURES} (md5 {stored.md5s[FEATURES]}) is neither in" in refused(stored, ObjectLost)


def test_a_remote_that_is_gone_is_told(stored: Stored) -> None:
    stored.forget()
    stored.remote.rename(stored.remote.with_name("unmounted"))
    with pytest.raises(ObjectLost, match=f"nor in the DVC remote {stored.remote}"):
        stored.train()
    assert not stored.remote.exists()


def test_a_rotten_object_of_the_remote_is_refused_and_kept_out_of_the_cache(stored: Stored) -> None:
    for md5, path in ((stored.feature, f"{FEATURES}/2013-01.txt"), (stored.md5s[FEATURES], FEATURES)):
        stored.forget()
        place = stored.object(stored.remote, md5)
        content = rot(place)
        assert refused(stored, ObjectCorrupt) == (
            f"{path} (md5 {md5}) in {stored.remote} is not what the record says and was not used; replace it from a "
            "good copy"
        )
        assert not stored.object(stored.cache, md5).exists()
        restore(place, content)
    assert stored.trained(stored.train()).startswith("5 ")


@pytest.mark.parametrize("mode", [0o644, 0o444])
def test_what_only_reads_leaves_a_rotten_object_in_the_remote(stored: Stored, mode: int) -> None:
    """DVC would delete one that is writable: the evidence, and what could be mended."""
    for md5, path in ((stored.feature, f"{FEATURES}/2013-01.txt"), (stored.md5s[FEATURES], FEATURES)):
        stored.forget()
        place = stored.object(stored.remote, md5)
        content = rot(place)
        place.chmod(mode)
        before = {found: found.read_bytes() for found in stored.remote.rglob("*") if found.is_file()}
        assert refused(stored, ObjectCorrupt).startswith(
            f"{path} (md5 {md5}) in {stored.remote} is not what the record"
        )
        assert {found: found.read_bytes() for found in stored.remote.rglob("*") if found.is_file()} == before
        for kept in filter(Path.is_file, (stored.cache / "files/md5").rglob("*")):
            assert hash_file(kept).md5 == (kept.parent.name + kept.name).removesuffix(".dir")
        restore(place, content)


def test_a_rotten_object_of_the_cache_is_replaced_from_the_remote(stored: Stored) -> None:
    good = versions.find(stored.project.mirror, "alpha@v1").commit
    digest = stored.trained(good).split()[1]
    rotten = [stored.object(stored.cache, md5) for md5 in (stored.feature, stored.md5s[FEATURES])]
    for place in rotten:
        rot(place)
    assert stored.trained(stored.train()).split() == ["5", digest]
    for place in rotten:
        assert not place.exists() or hash_file(place).md5 == (place.parent.name + place.name).removesuffix(".dir")


def test_an_object_that_is_rotten_everywhere_is_never_used(stored: Stored) -> None:
    for store in (stored.cache, stored.remote):
        rot(stored.object(store, stored.feature))
    assert f"{FEATURES}/2013-01.txt (md5 {stored.feature}) in {stored.remote} is not" in refused(stored, ObjectCorrupt)
    stored.object(stored.remote, stored.feature).unlink()
    with pytest.raises((ObjectCorrupt, ObjectLost), match=f"{FEATURES}/2013-01.txt"):
        stored.train()


def test_an_object_with_the_right_md5_and_another_sha256_is_refused(project: Project) -> None:
    """md5 can be forged; the manifest's sha256 is what an exchanged file cannot have."""
    git(project.root, "worktree", "add", "-q", "-b", "edit", str(project.root / "var/edit"), "data")
    manifest = project.root / "var/edit/data/raw/events.manifest"
    path, md5, sha256, rows = manifest.read_text().splitlines()[0].split()
    manifest.write_text(manifest.read_text().replace(sha256, "0" * 64))
    git(manifest.parent, "commit", "-q", "-a", "-m", "forged\n\nData-Through: 2013-04-01T00:00:00+00:00")
    git(project.root, "worktree", "remove", str(project.root / "var/edit"))
    git(project.root, "update-ref", "refs/heads/data", "refs/heads/edit")
    start = project.snapshot("alpha", "one")
    with pytest.raises(ObjectCorrupt) as raised:
        project.stage("alpha", "one", "validate", start)
    assert str(raised.value) == (
        f"{path} (md5 {md5}) in {project.settings.var / 'remote'} is not what the record says and was not used; "
        "replace it from a good copy"
    )


def test_a_rotten_output_in_the_cache_is_never_pushed_in_place_of_a_lost_one(stored: Stored) -> None:
    """The stage need not run again and its output is in the cache, it seems: what is pushed is hashed first."""
    md5 = stored.md5s[MODEL]
    stored.project.edit_params(lambda params: params["models"]["alpha"]["train"].update(seed=1))
    start = stored.project.snapshot("alpha", "three")
    good = stored.object(stored.remote, md5).read_bytes()
    stored.object(stored.remote, md5).unlink()
    rot(stored.object(stored.cache, md5))
    made = stored.project.stage("alpha", "three", "train", start)
    assert made.executed
    assert stored.object(stored.remote, md5).read_bytes() == good
    assert stored.object(stored.cache, md5).read_bytes() == good


def test_a_remote_that_cannot_be_written_fails_the_stage_before_anything_is_committed(stored: Stored) -> None:
    before = stored.project.refs()
    stored.remote.rename(stored.remote.with_name("aside"))
    stored.remote.write_text("a file where the folder was")
    with pytest.raises((RemoteFailed, RemoteRefused), match=f"the DVC remote {stored.remote} (failed|refused)"):
        stored.train()
    stored.remote.unlink()
    stored.remote.with_name("aside").rename(stored.remote)
    after = stored.project.refs()
    assert {ref for ref in after if after[ref] != before.get(ref)} == {"refs/runs/alpha/two"}  # the FAIL event
    assert stored.trained(stored.train()).startswith("5 ")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 20 MB."""
    place = tmp_path / "small"
    place.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=20m", "tmpfs", str(place)], check=False)
    if mounted.returncode != 0:
        pytest.skip("only root may mount a file system that is small enough to fill")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def test_a_full_disk_leaves_nothing_half_done(stored: Stored, small_disk: Path) -> None:
    project = stored.project
    for path in stored.cache.iterdir():
        shutil.move(path, small_disk / path.name)
    stored.cache.rmdir()
    stored.cache.symlink_to(small_disk)
    project.act("alpha", "train", "fill-disk")
    start = project.snapshot("alpha", "three")
    with pytest.raises(DiskFull) as raised:
        project.stage("alpha", "three", "train", start)
    assert str(raised.value).startswith("no space left on this machine (")
    assert str(raised.value).endswith(f"free some below {project.settings.var} and run this again")
    assert not list(project.settings.workspaces.glob("*"))
    whole = [path for path in small_disk.rglob("*") if path.is_file() and path.parent.parent.name == "md5"]
    for path in whole:
        assert hash_file(path).md5 == (path.parent.name + path.name).removesuffix(".dir")
    assert sum(path.stat().st_size for path in small_disk.rglob("*") if path.is_file()) < 1 << 20, "a part was left"
    subprocess.run(["mount", "-o", "remount,size=200m", str(small_disk)], check=True)
    assert project.stage("alpha", "three", "train", start).executed
    assert os.statvfs(small_disk).f_bfree > 0
