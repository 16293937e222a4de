"""A version's files, brought back by Retrace or by plain git and DVC; and the newest data for whoever works on main."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from projects import Project, git

from retrace import versions
from retrace.checkout import DirectoryTaken, checkout_version
from retrace.config import Settings
from retrace.dvcfiles import object_path
from retrace.errors import RetraceError
from retrace.hashing import hash_file
from retrace.links import cloned
from retrace.manifest import parse_manifest
from retrace.process import Job, ObjectCorrupt, ObjectLost, run_job
from retrace.pull import OwnData, pull_data
from retrace.record import read_record
from retrace.runs import NoData
from retrace.versions import UnknownVersion
from retrace.workspace import temporary_folder

MANIFEST = "data/raw/events.manifest"
MODEL = "models/alpha.skops"


def recorded(project: Project, name: str) -> dict[str, tuple[str, str]]:
    """Path -> (md5, sha256) of every file that a version is made of, as its record says."""
    record = read_record(project.mirror, versions.find(project.mirror, name))
    made = {path: (file["md5"], file["sha256"]) for path, file in record.files().items()}
    raw = {row.path: (row.md5, row.sha256) for dataset in record.datasets for row in dataset.partitions}
    return made | raw


def newest_data(project: Project) -> dict[str, tuple[str, str]]:
    """Path -> (md5, sha256) of the partitions at the tip of data."""
    rows = parse_manifest((project.mirror.read("refs/heads/data", MANIFEST) or b"").decode(), MANIFEST)
    return {row.path: (row.md5, row.sha256) for row in rows}


def found(folder: Path, paths: dict[str, tuple[str, str]]) -> dict[str, tuple[str, str]]:
    """The same of the files that lie in a folder."""
    hashes = {path: hash_file(folder / path) for path in paths if (folder / path).is_file()}
    return {path: (hashed.md5, hashed.sha256) for path, hashed in hashes.items()}


def stored(project: Project, md5: str) -> Path:
    """An object of the DVC remote."""
    return project.settings.var / "remote/files/md5" / md5[:2] / md5[2:]


def rot(path: Path) -> None:
    """Flip a bit of the first byte; the file stays read-only, as DVC leaves it."""
    content = path.read_bytes()
    path.chmod(0o644)
    path.write_bytes(bytes([content[0] ^ 1]) + content[1:])
    path.chmod(0o444)


def dvc(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """DVC as a user runs it in a folder."""
    variables = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "DVC_NO_ANALYTICS": "1"}
    variables |= {"DVC_SITE_CACHE_DIR": str(folder / "var/site"), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-P", "-m", "dvc", *arguments]
    return subprocess.run(command, cwd=folder, env=variables, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def both(with_a_version: Project, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A project in which each model has a version; nobody's to change."""
    project = with_a_version.copy(tmp_path_factory.mktemp("both") / "project")
    project.retrain("beta", "first")
    return project


def test_a_version_is_brought_with_every_file_as_it_was_recorded(trained: Project, tmp_path: Path) -> None:
    target = tmp_path / "not/yet/there"
    version = versions.find(trained.mirror, "alpha@v1")
    before, expected = trained.refs(), recorded(trained, "alpha@v1")
    assert checkout_version(trained.settings, "alpha@v1", target) == (
        f"alpha@v1 is in {target} (commit {version.commit[:8]}, 4 data paths, all hashes verified)"
    )
    assert {MODEL, "data/raw/events/2013-01.parquet", "data/features/alpha/2013-03.txt"} < expected.keys()
    assert len(expected) == 3 + 1 + 3 + 1 + 4  # partitions, validation, features, model, what evaluate writes
    assert found(target, expected) == expected
    assert git(target, "rev-parse", "HEAD") == version.commit
    assert git(target, "status", "--porcelain") == ""
    assert trained.refs() == before
    assert git(trained.root, "status", "--porcelain") == ""
    assert [path.name for path in target.parent.iterdir()] == ["there"]
    assert not list(trained.settings.workspaces.glob("*"))


def test_what_was_checked_out_stands_on_its_own(trained: Project, tmp_path: Path) -> None:
    """Plain git and DVC go on with it when this machine's state is gone."""
    target = tmp_path / "there"
    checkout_version(trained.settings, "alpha@v1", target)
    shutil.rmtree(trained.settings.mirror)
    git(target, "fsck", "--full", "--strict")
    assert git(target, "remote", "get-url", "origin") == str(trained.root)
    git(target, "fetch", "-q", "origin")
    (target / MODEL).unlink()
    assert dvc(target, "checkout", MODEL).returncode == 0
    expected = recorded(trained, "alpha@v1")
    assert found(target, expected) == expected


def test_without_a_directory_it_is_beside_the_project_and_named_after_the_version(
    trained: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(trained.root / "data")
    assert checkout_version(trained.settings, "alpha@champion", None).startswith(
        f"alpha@v1 is in {tmp_path / 'alpha@v1'} (commit "
    )
    with pytest.raises(UnknownVersion, match="no version 'alpha@v2': it has v1 to v1"):
        checkout_version(trained.settings, "alpha@v2", None)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["alpha@v1", "project"]
    assert git(trained.root, "status", "--porcelain") == ""


def test_a_directory_is_named_as_it_is_and_not_by_the_way_there(
    trained: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(trained.root / "data")
    said = checkout_version(trained.settings, "alpha@v1", Path("../../there"))
    assert said.startswith(f"alpha@v1 is in {tmp_path / 'there'} (commit ")
    with pytest.raises(DirectoryTaken, match=f"^{tmp_path / 'there'} exists already; name a directory"):
        checkout_version(trained.settings, "alpha@v1", Path("../../there"))


def test_dvc_s_own_state_is_below_var_and_gone_at_the_end(
    trained: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither beside the project nor beside the user's target, not even while DVC works."""
    seen: list[tuple[list[str], list[str]]] = []

    def watched(settings: Settings, job: Job) -> dict[str, Any]:
        done = run_job(settings, job)
        seen.append((inside(tmp_path), inside(job.workspace.site_cache)))
        return done

    def inside(folder: Path) -> list[str]:
        return sorted(path.name for path in folder.iterdir())

    monkeypatch.setattr("retrace.checkout.run_job", watched)
    monkeypatch.setattr("retrace.pull.run_job", watched)
    shutil.rmtree(trained.settings.cache)  # from a warm one no DVC is needed
    before = inside(trained.settings.var)
    checkout_version(trained.settings, "alpha@v1", None)
    pull_data(trained.settings)
    assert [around for around, _ in seen] == [["alpha@v1", "project"]] * 2
    assert all(state for _, state in seen), "DVC used it"
    assert inside(tmp_path) == ["alpha@v1", "project"]
    assert inside(trained.settings.var) == sorted({*before, "cache"})


@pytest.mark.parametrize(("user", "shared"), [(1000, True), (0, False)], ids=["a person", "root"])
def test_a_warm_checkout_shares_files_with_the_cache_but_for_root_who_could_write_through_a_link(
    trained: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, user: int, shared: bool
) -> None:
    monkeypatch.setattr("os.geteuid", lambda: user)
    checkout_version(trained.settings, "alpha@v1", tmp_path / "there")
    model = tmp_path / "there/models/alpha.skops"
    cached = object_path(trained.settings.cache, hash_file(model).md5)
    assert cached.read_bytes() == model.read_bytes()
    assert model.samefile(cached) == shared or cloned(cached, tmp_path / "clone")


def test_a_folder_that_a_killed_process_left_below_var_is_removed_and_no_other(project: Project) -> None:
    dead = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, check=True)
    var = project.settings.var
    gone, mine = var / f"site-{int(dead.stdout)}", var / f"site-{os.getpid()}"
    kept = [var / name for name in (f"site-{os.getppid()}", f"dags-{int(dead.stdout)}", "site-of-ann")]
    for folder in (gone, mine, *kept):
        (folder / "of/a run").mkdir(parents=True)
    with temporary_folder(project.settings, "site") as folder:
        assert folder == mine and not list(folder.iterdir())
        assert not gone.exists()
        (folder / "file").touch()
    assert not mine.exists()
    assert all((folder / "of/a run").is_dir() for folder in kept)


def test_a_directory_that_is_in_use_is_left_alone(trained: Project, tmp_path: Path) -> None:
    used, file, empty = tmp_path / "used", tmp_path / "file", tmp_path / "empty"
    used.mkdir()
    empty.mkdir()
    for path in (file, used / "thesis.tex"):
        path.write_text("years of work")
    for target in (used, file):
        with pytest.raises(DirectoryTaken) as raised:
            checkout_version(trained.settings, "alpha@v1", target)
        assert str(raised.value) == f"{target} exists already; name a directory that does not"
    assert [path.name for path in used.iterdir()] == ["thesis.tex"]
    assert file.read_text() == (used / "thesis.tex").read_text() == "years of work"
    checkout_version(trained.settings, "alpha@v1", empty)
    assert (empty / MODEL).is_file()


def test_a_file_that_the_remote_cannot_give_is_named_and_nothing_is_left(trained: Project, tmp_path: Path) -> None:
    remote = trained.settings.var / "remote"
    expected = recorded(trained, "alpha@v1")
    corrupt = f"in {remote} is not what the record says and was not used; replace it from a good copy"
    lost = (
        f"is neither in this machine's cache nor in the DVC remote {remote}; 1 missing in all; push it from a machine "
        "that has it"
    )
    damages: tuple[tuple[str, Callable[[Path], None], type[RetraceError], str], ...] = (
        (MODEL, rot, ObjectCorrupt, corrupt),
        ("data/raw/events/2013-02.parquet", rot, ObjectCorrupt, corrupt),
        (MODEL, Path.unlink, ObjectLost, lost),
    )
    for path, damage, error, text in damages:
        shutil.rmtree(trained.settings.cache)
        md5, _ = expected[path]
        good = stored(trained, md5).read_bytes()
        damage(stored(trained, md5))
        with pytest.raises(error) as raised:
            checkout_version(trained.settings, "alpha@v1", tmp_path / "there")
        assert str(raised.value) == f"{path} (md5 {md5}) {text}"
        assert [left.name for left in tmp_path.iterdir()] == ["project"]
        stored(trained, md5).unlink(missing_ok=True)
        stored(trained, md5).write_bytes(good)
    checkout_version(trained.settings, "alpha@v1", tmp_path / "there")
    assert found(tmp_path / "there", expected) == expected


@pytest.mark.parametrize("mode", [0o644, 0o444])
def test_a_rotten_object_is_still_in_the_remote_after_it_was_refused(
    trained: Project, tmp_path: Path, mode: int
) -> None:
    remote, (md5, _) = trained.settings.var / "remote", recorded(trained, "alpha@v1")[MODEL]
    cached = trained.settings.cache / "files/md5" / md5[:2] / md5[2:]
    cached.unlink()
    rot(stored(trained, md5))
    stored(trained, md5).chmod(mode)
    before = {path: path.read_bytes() for path in remote.rglob("*") if path.is_file()}
    with pytest.raises(ObjectCorrupt) as raised:
        checkout_version(trained.settings, "alpha@v1", tmp_path / "there")
    assert str(raised.value).startswith(f"{MODEL} (md5 {md5}) in {remote} is not what the record says and was not used")
    assert {path: path.read_bytes() for path in remote.rglob("*") if path.is_file()} == before
    assert not cached.exists() and not (tmp_path / "there").exists()


def test_a_rotten_file_of_this_machine_s_cache_is_not_what_is_brought(trained: Project, tmp_path: Path) -> None:
    expected = recorded(trained, "alpha@v1")
    md5, _ = expected[MODEL]
    rot(trained.settings.cache / "files/md5" / md5[:2] / md5[2:])
    checkout_version(trained.settings, "alpha@v1", tmp_path / "there")
    assert found(tmp_path / "there", expected) == expected


def test_a_file_whose_md5_alone_is_right_is_refused(trained: Project, tmp_path: Path) -> None:
    """md5 can be forged: a version whose record has another sha256 for a partition gets none of its files."""
    mirror, first = trained.mirror, versions.find(trained.mirror, "alpha@v1")
    path, (md5, sha256) = sorted(newest_data(trained).items())[0]
    forged = (mirror.read(first.commit, MANIFEST) or b"").replace(sha256.encode(), b"0" * 64)
    commit = mirror.write_commit(first.commit, {MANIFEST: forged}, [first.commit], "another record")
    versions.create(mirror, "alpha", commit, "forged", {})
    with pytest.raises(ObjectCorrupt) as raised:
        checkout_version(trained.settings, "alpha@v2", tmp_path / "there")
    assert str(raised.value) == (
        f"{path} (md5 {md5}) in {trained.settings.var / 'remote'} is not what the record says and was not used; "
        "replace it from a good copy"
    )
    assert [left.name for left in tmp_path.iterdir()] == ["project"]


def test_git_and_the_remote_are_all_that_is_needed(trained: Project, tmp_path: Path) -> None:
    expected, var = recorded(trained, "alpha@v1"), trained.settings.var
    (var / "remote").rename(tmp_path / "kept")
    shutil.rmtree(var)
    var.mkdir()
    (tmp_path / "kept").rename(var / "remote")
    checkout_version(trained.settings, "alpha@v1", tmp_path / "there")
    assert found(tmp_path / "there", expected) == expected


def test_plain_git_and_dvc_bring_a_version_in_a_clone_once_every_model_has_one(both: Project, tmp_path: Path) -> None:
    """The clone has the cache that the committed configuration names, and nothing was set up for it."""
    clone = tmp_path / "clone"
    git(tmp_path, "clone", "-q", str(both.root), str(clone))
    (clone / "var").mkdir()
    shutil.copytree(both.settings.cache, clone / "var/cache")
    git(clone, "checkout", "-q", "beta@v1")
    done = dvc(clone, "checkout")
    assert done.returncode == 0, done.stderr
    expected = recorded(both, "beta@v1") | recorded(both, "alpha@v1")
    assert found(clone, expected) == expected
    assert git(clone, "status", "--porcelain") == ""
    shown = dvc(clone, "metrics", "show", "--json", "metrics/beta.json")
    assert json.loads(shown.stdout)[""]["data"]["metrics/beta.json"]["data"]["holdout"]["accuracy"] == 0.7
    git(clone, "checkout", "-q", "alpha@v1")  # made before beta had a version
    done = dvc(clone, "checkout", "--allow-missing")
    assert done.returncode == 0, done.stderr
    expected = recorded(both, "alpha@v1")
    assert found(clone, expected) == expected


def test_plain_dvc_pulls_a_version_from_the_remote_alone(both: Project, tmp_path: Path) -> None:
    project = both.copy(tmp_path / "project")
    shutil.rmtree(project.settings.cache)
    git(project.root, "checkout", "-q", "beta@v1")
    done = dvc(project.root, "pull")
    assert done.returncode == 0, done.stderr
    expected = recorded(project, "beta@v1")
    assert found(project.root, expected) == expected
    with pytest.raises(OwnData) as raised:
        pull_data(project.settings)
    assert str(raised.value) == (
        f"{project.root} has data of its own in git (data/raw/events.dvc); `dvc checkout` brings it, or "
        "`git switch main` first for the newest"
    )


def test_whoever_works_on_main_gets_the_newest_data_and_can_reproduce(project: Project) -> None:
    project.fill("2013-03", rows=11)
    project.ingest("2013-04-01")
    shutil.rmtree(project.settings.cache)
    before = project.refs()
    assert pull_data(project.settings) == ["data/raw/events"]
    expected = newest_data(project)
    assert len(expected) == 3
    assert found(project.root, expected) == expected
    assert git(project.root, "status", "--porcelain") == ""
    done = dvc(project.root, "repro", "validate@alpha")
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads((project.root / "reports/alpha/validation.json").read_text())
    assert report["partitions"] == [Path(path).name for path in expected]
    assert git(project.root, "status", "--porcelain") == "?? dvc.lock"
    assert project.refs() == before
    assert git(project.root, "symbolic-ref", "HEAD") == "refs/heads/main"


def test_pulling_again_brings_what_arrived_since(project: Project) -> None:
    pull_data(project.settings)
    project.fill("2013-02", rows=12)
    project.fill("2013-04")
    project.ingest("2013-05-01", since="2013-02-01")
    old = newest_data(project)
    assert found(project.root, old) != old
    pull_data(project.settings)
    assert len(old) == 4
    assert found(project.root, old) == old
    assert git(project.root, "status", "--porcelain") == ""


def test_a_pull_of_data_that_cannot_be_had_leaves_no_dirt(project: Project, tmp_path: Path, environments: Path) -> None:
    path, (md5, _) = sorted(newest_data(project).items())[0]
    shutil.rmtree(project.settings.cache)
    rot(stored(project, md5))
    with pytest.raises(ObjectCorrupt, match=f"^{path} \\(md5 {md5}\\) in {project.settings.var}/remote is not what"):
        pull_data(project.settings)
    assert git(project.root, "status", "--porcelain") == ""
    with pytest.raises(NoData, match="there is no data yet: the branch data does not exist; run `retrace ingest"):
        pull_data(Project.make(tmp_path / "empty", environments).settings)
