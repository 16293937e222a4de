"""What the doctor finds in a project to which something was done, what it puts right, and what it leaves alone."""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from consumer import Consumer
from forgeries import with_program
from handmade import registered
from projects import ROOT, Project, git, processes_of
from remotes import credentials, stored, use_s3
from servers import S3Server

from retrace import lease, verdicts, versions
from retrace.config import Settings
from retrace.doctor import NeedsAttention, ServicesSilent, acted_on, examine, found, run_doctor
from retrace.dvcfiles import LOCK, lock_entries, object_path, output_md5s
from retrace.environment import EnvironmentLock
from retrace.health.finding import Finding, Section, named
from retrace.health.left_files import TEMPORARY
from retrace.health.needs import needs
from retrace.health.rehash import rehash
from retrace.health.scope import look
from retrace.published import told_verdict
from retrace.reproduce import PARTIAL, REBUILDS
from retrace.tombstones import Tombstone, bury
from retrace.verdicts import IDENTICAL
from retrace.workspace import passing_logs

MODEL = "models/alpha.skops"
FEBRUARY = "data/raw/events/2013-02.parquet"


def sections(settings: Settings, **wanted: Any) -> dict[str, Section]:
    """All that the doctor says, by subject; no lineage consumer is set unless the test says so."""
    wanted.setdefault("environ", {})
    return {section.name: section for section in examine(settings, lambda _: None, **wanted)}


def texts(section: Section, state: str = "found") -> list[str]:
    return [finding.text for finding in section.findings if finding.state == state]


@pytest.fixture
def project(with_a_version: Project, tmp_path: Path) -> Project:
    """alpha@v1 and its data; environments of its own, since what is left of them is removed here."""
    project = with_a_version.copy(tmp_path / "project")
    link = project.settings.environments
    shared = link.resolve()
    link.unlink()
    own = EnvironmentLock.of_folder(project.root).digest[:16]
    shutil.copytree(shared / own, link / own, symlinks=True)
    return project


def partition(project: Project, name: str = FEBRUARY) -> str:
    """The md5 of a raw partition."""
    manifest = git(project.root, "show", "data:data/raw/events.manifest")
    return next(line.split()[1] for line in manifest.splitlines() if line.startswith(name))


def output(project: Project, path: str = MODEL) -> str:
    lock = git(project.root, "show", f"alpha@v1:{LOCK}").encode()
    return output_md5s(lock_entries(lock))[path]


def lose(*places: Path) -> None:
    for place in places:
        place.chmod(0o644)
        place.unlink()


def rot(place: Path) -> None:
    content = place.read_bytes()
    place.chmod(0o644)
    place.write_bytes(bytes([content[0] ^ 1]) + content[1:])


def in_remote(project: Project, md5: str) -> Path:
    return object_path(project.settings.var / "remote", md5)


def in_cache(project: Project, md5: str) -> Path:
    return object_path(project.settings.cache, md5)


# Aliases


def test_a_champion_that_was_forgotten_or_departs_is_found(
    project: Project, capsys: pytest.CaptureFixture[str]
) -> None:
    version = versions.find(project.mirror, "alpha@v1")
    verdicts.keep(project.mirror, version, verdicts.IDENTICAL, {})
    assert sections(project.settings)["aliases"] == Section("aliases", "1 holder, none known to depart")
    verdicts.keep(project.mirror, version, verdicts.DIFFERENT, {"reason": f"train@alpha made other bytes: {'x' * 200}"})
    (told,) = texts(sections(project.settings)["aliases"])
    assert told.startswith("alpha@v1 is champion and its last rebuild was different: train@alpha made other bytes: xx")
    assert told.endswith("x…") and len(told) < 180
    verdicts.keep(project.mirror, version, verdicts.IMPOSSIBLE, {"reason": "gone", "ticket": "DSR-7"})
    assert run_doctor(project.settings, fix=False, stages=False, rehash=False, as_json=False) == 1
    assert "  ! alpha@v1 is champion and was forgotten on request DSR-7: promote another\n" in capsys.readouterr().out


# Objects


def test_a_project_to_which_nothing_was_done_is_well(project: Project) -> None:
    said = sections(project.settings, read_all=True)
    assert {name: texts(section) for name, section in said.items() if section.findings} == {
        "views": ["MLflow lacks alpha@v1; run `retrace sync`"]
    }
    assert said["objects"].summary == "10 objects, all in the remote"
    assert said["hashes"].summary.endswith("read, all are what their names say")
    assert said["services"].summary == "reached: git origin, DVC remote"


def test_a_lost_partition_is_named_with_the_versions_that_it_takes_along(project: Project) -> None:
    md5 = partition(project)
    lose(in_remote(project, md5), in_cache(project, md5))
    (finding,) = sections(project.settings, fix=True)["objects"].findings
    assert finding.text == (
        f"alpha@v1 cannot be rebuilt, the next retrain will fail: {FEBRUARY} (md5 {md5}) is missing in the remote "
        f"{project.settings.var / 'remote'}; push it from a machine that has it"
    )
    assert finding.facts["versions"] == ["alpha@v1"] and finding.facts["raw"] is True
    assert finding.facts["objects"] == [{"path": FEBRUARY, "md5": md5}]


def test_what_only_this_machine_has_is_pushed_back_on_request(project: Project) -> None:
    md5 = partition(project)
    content = in_remote(project, md5).read_bytes()
    lose(in_remote(project, md5))
    (told,) = texts(sections(project.settings)["objects"])
    assert told.endswith("this machine's cache has it: `retrace doctor --fix` pushes it back")
    assert not in_remote(project, md5).exists()
    section = sections(project.settings, fix=True)["objects"]
    assert texts(section) == [] and FEBRUARY in texts(section, "fixed")[0]
    assert in_remote(project, md5).read_bytes() == content
    assert texts(sections(project.settings)["objects"]) == []


def test_a_rotten_copy_is_not_offered(project: Project) -> None:
    md5 = partition(project)
    lose(in_remote(project, md5))
    rot(in_cache(project, md5))
    (told,) = texts(sections(project.settings, fix=True)["objects"])
    assert told.endswith("push it from a machine that has it") and not in_remote(project, md5).exists()


def test_a_lost_output_can_be_made_again_but_not_checked_out(project: Project) -> None:
    md5 = output(project)
    lose(in_remote(project, md5), in_cache(project, md5))
    (told,) = texts(sections(project.settings)["objects"])
    assert told.startswith(f"alpha@v1 cannot be checked out, but can be rebuilt: {MODEL} (md5 {md5}) is missing")


def test_the_files_of_a_folder_are_asked_for_one_by_one(project: Project) -> None:
    listing = json.loads(in_remote(project, output(project, "data/features/alpha")).read_text())
    for entry in listing[:2]:
        lose(in_remote(project, entry["md5"]), in_cache(project, entry["md5"]))
    (finding,) = sections(project.settings)["objects"].findings
    assert "data/features/alpha/2013-01.txt" in finding.text and " and 1 more object are missing" in finding.text
    assert {item["md5"] for item in finding.facts["objects"]} == {entry["md5"] for entry in listing[:2]}


def test_what_was_forgotten_on_request_is_no_loss_and_must_not_come_back(project: Project) -> None:
    md5 = partition(project)
    bury(project.mirror, [Tombstone(md5, None, "GDPR-7", "2026-01-01", FEBRUARY)], "GDPR-7")
    lose(in_remote(project, md5))
    said = sections(project.settings)
    assert texts(said["objects"]) == [] and texts(said["objects"], "noted")[0].startswith("forgotten on request GDPR-7")
    assert texts(said["forgotten"]) == [
        f"{FEBRUARY} (md5 {md5}), forgotten on request GDPR-7, is in this machine's cache: `retrace doctor --fix` "
        "removes it there"
    ]
    sections(project.settings, fix=True)
    assert not in_cache(project, md5).exists() and not in_remote(project, md5).exists()
    shutil.copy(in_remote(project, output(project)), in_remote(project, md5))
    assert "is in the remote again" in texts(sections(project.settings)["forgotten"])[0]


def test_a_remote_that_is_away_is_one_finding_and_no_loss(project: Project) -> None:
    (project.settings.var / "remote").rename(project.settings.var / "elsewhere")
    said = sections(project.settings, read_all=True)
    assert texts(said["objects"]) == [] and texts(said["hashes"]) == []
    (told,) = texts(said["services"])
    assert told.startswith("DVC remote: the folder ") and "is not there" in told


# Hashes


def test_a_corrupt_object_is_removed_from_the_cache_alone(project: Project) -> None:
    md5, other = partition(project), output(project)
    rot(in_cache(project, md5))
    rot(in_remote(project, other))
    assert texts(sections(project.settings)["objects"]) == []
    cached, remote = texts(sections(project.settings, read_all=True)["hashes"])
    assert cached.startswith(f"{FEBRUARY} (md5 {md5}, of alpha@v1, the newest data) is corrupt in this machine's cache")
    assert remote.startswith(f"{MODEL} (md5 {other}, of alpha@v1) is corrupt in the remote, at ")
    by_hand = f"cp -f {in_cache(project, other)} {in_remote(project, other)}"
    assert remote.endswith(f"this machine's cache has a sound copy: {by_hand}")
    section = sections(project.settings, read_all=True, fix=True)["hashes"]
    assert [finding.state for finding in section.findings] == ["fixed", "found"]
    assert not in_cache(project, md5).exists() and in_remote(project, other).exists()
    subprocess.run(by_hand, shell=True, check=True)
    assert sections(project.settings, read_all=True)["hashes"].findings == ()


def test_a_visit_on_schedule_reads_all_objects_where_params_say_so(project: Project) -> None:
    assert "hashes" not in sections(project.settings, read_all=None)
    project.edit_params(lambda params: params.update(doctor={"rehash": True}))
    rot(in_cache(project, partition(project)))
    (told,) = texts(sections(project.settings, read_all=None)["hashes"])
    assert "is corrupt in this machine's cache" in told


def test_bytes_of_the_right_md5_must_have_the_recorded_sha256_too(project: Project) -> None:
    """A published pair of files with one md5 can be swapped in a remote, and DVC delivers the other."""
    scope = look(project.settings, lambda _: None)
    needed, md5 = needs(scope), partition(project)
    assert rehash(scope, needed, fix=False).findings == ()
    needed.objects[md5].sha256 = "0" * 64
    assert len(rehash(scope, needed, fix=False).findings) == 2


@pytest.fixture(scope="module")
def s3() -> Iterator[S3Server]:
    with S3Server() as server:
        yield server


def test_a_remote_on_s3_is_asked_healed_and_read_like_a_folder(
    project: Project, s3: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in credentials(s3).items():
        monkeypatch.setenv(name, value)
    use_s3(project.root, s3, "doctor")
    shutil.copytree(project.settings.var / "remote", s3.folder / "doctor", dirs_exist_ok=True)
    md5, other = partition(project), output(project)
    lose(stored(s3, "doctor", md5))
    rot(stored(s3, "doctor", other))
    said = sections(project.settings, fix=True, read_all=True)
    assert texts(said["objects"]) == [] and FEBRUARY in texts(said["objects"], "fixed")[0]
    assert stored(s3, "doctor", md5).exists()
    (told,) = texts(said["hashes"])
    assert told.startswith(f"{MODEL} (md5 {other}, of alpha@v1) is corrupt in the remote, in s3://")
    assert told.endswith("sound copy: delete it there, then `retrace doctor --fix` pushes that copy")
    lose(stored(s3, "doctor", other))
    assert MODEL in texts(sections(project.settings, fix=True)["objects"], "fixed")[0]


# Packages


@contextmanager
def index(files: dict[str, list[tuple[str, str, str | None]]]) -> Iterator[str]:
    """A package index: package -> (file, sha256, why it was yanked); its address."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            served = files.get(self.path.strip("/").rpartition("/")[2])
            self.send_response(404 if served is None else 200)
            self.send_header("Content-Type", "text/html")
            self.end_headers()
            for name, sha256, yanked in served or ():
                why = f' data-yanked="{yanked}"' if yanked is not None else ""
                self.wfile.write(f'<a href="{name}#sha256={sha256}"{why}>{name}</a>'.encode())

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/simple"
        server.shutdown()


def lock(project: Project, *pins: tuple[str, str]) -> None:
    lines = [f"{pin} \\\n    --hash=sha256:{sha256}\n" for pin, sha256 in pins]
    (project.root / "pipeline/requirements.txt").write_text("".join(lines))
    project.commit("lock")


A, B, C = "a" * 64, "b" * 64, "c" * 64


def test_a_package_that_no_index_serves_is_named_with_its_versions(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock(project, ("sound==1.0", A), ("gone==2.0", A), ("swapped==3.0", A), ("Old.Name==4.0", A), ("nowhere==1.0", A))
    registered(project, "second")
    lock(project, ("sound==1.0", A), ("wind==1.0 ; sys_platform == 'win32'", A))
    served = {
        "sound": [("sound-1.0-py3-none-any.whl", A, None), ("sound-1.0.tar.gz", B, None)],
        "gone": [("gone-2.1-py3-none-any.whl", A, None)],
        "swapped": [("swapped-3.0-py3-none-any.whl", C, None)],
        "old-name": [("old_name-4.0-py3-none-any.whl", A, "broken metadata")],
    }
    with index(served) as address:
        monkeypatch.setenv("UV_DEFAULT_INDEX", address)
        section = sections(project.settings)["packages"]
    by = "alpha@v2 cannot be rebuilt on a new machine: "
    assert texts(section) == [
        f"{by}gone==2.0 is served by no index; serve it from an index of your own",
        f"{by}nowhere==1.0 is served by no index; serve it from an index of your own",
        f"{by}swapped==3.0 is served by the index with other hashes only; serve it from an index of your own",
    ]
    assert section.findings[0].facts["versions"] == ["alpha@v2"] and not section.findings[0].facts["todaysCode"]
    assert texts(section, "noted") == ["old-name==4.0, of alpha@v2, is yanked (broken metadata); it is still served"]


def test_an_index_that_is_silent_says_nothing_of_packages(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    lock(project, ("sound==1.0", A))
    monkeypatch.setenv("UV_DEFAULT_INDEX", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("UV_HTTP_RETRIES", "0")
    said = sections(project.settings)
    assert texts(said["packages"]) == []
    (told,) = texts(said["services"])
    assert told.startswith("package index: it did not answer: ") and "Connection refused" in told


def test_a_python_that_is_not_here_is_named(project: Project) -> None:
    (project.root / "pipeline/.python-version").write_text("3.5\n")
    project.commit("old Python")
    assert texts(sections(project.settings)["packages"]) == [
        "today's code cannot be rebuilt here: Python 3.5 is not installed on this machine; install it"
    ]


# Refs


def test_what_a_tag_names_must_be_there(project: Project) -> None:
    git(project.root, "update-ref", "-d", "refs/runs/alpha/first")
    registered(project, "by hand")
    assert texts(sections(project.settings)["refs"])[:1] == [
        "refs/runs/alpha/first of alpha@v1 is gone: what its gate said is lost",
    ]
    assert texts(sections(project.settings)["refs"])[1].startswith(
        "the record of alpha@v2 is not whole: its commit has no event that tells of models/alpha.skops (md5 "
    )


def test_tags_that_stand_for_nothing_are_told(project: Project) -> None:
    git(project.root, "tag", "alpha@v2")
    git(project.root, "tag", "-a", "-m", "x", "alpha@v03")
    git(project.root, "tag", "a-plain-tag-of-a-person")
    told = texts(sections(project.settings)["refs"])
    assert [text.split()[2] for text in told] == ["alpha@v03", "alpha@v2"]
    assert all("stands for nothing; remove it" in text for text in told)


def test_a_tag_that_was_moved_or_removed_in_the_origin_is_told_once_and_can_be_put_back(project: Project) -> None:
    for run in ("second", "third"):
        registered(project, run)
    sections(project.settings)
    known = project.refs()
    git(project.root, "tag", "-f", "-a", "-m", "mine", "alpha@v1", "main")
    git(project.root, "tag", "-d", "alpha@v2")
    moved, removed = texts(sections(project.settings)["refs"])[:2]
    assert moved.startswith(
        f"the tag alpha@v1 was moved in the origin: it is {project.refs()['refs/tags/alpha@v1'][:12]}"
    )
    assert removed.startswith("the tag alpha@v2 was removed from the origin; this machine still has it: git -C ")
    subprocess.run(removed.partition("still has it: ")[2].split(), check=True, capture_output=True)
    assert project.refs()["refs/tags/alpha@v2"] == known["refs/tags/alpha@v2"]


def test_a_number_that_is_missing_was_a_version(project: Project) -> None:
    for run in ("second", "third", "fourth"):
        registered(project, run)
    git(project.root, "tag", "-d", "alpha@v2", "alpha@v3")
    assert project.mirror  # as any other command brings it up to the origin
    (told,) = (text for text in texts(sections(project.settings)["refs"]) if "record" not in text)
    assert told == "there is no tag of alpha@v2 .. v3, though of later versions: push it from a clone that has it"


def test_without_the_origin_the_mirror_is_looked_at(project: Project, tmp_path: Path) -> None:
    sections(project.settings)
    gone = project.settings.model_copy(update={"origin": str(tmp_path / "gone")})
    said = sections(gone, fix=True)
    assert said["refs"].summary == "1 version, all whole"
    (told,) = texts(said["services"])
    assert told.startswith("git origin: cannot read the git origin")


# Leftovers


def left(settings: Settings, *, fix: bool = False) -> Section:
    return sections(settings, fix=fix)["leftovers"]


def make(folder: Path, *, days: float = 0, size: int = 1000) -> Path:
    """A folder with a file, both so old."""
    folder.mkdir(parents=True)
    (folder / "file").write_bytes(b"x" * size)
    when = (datetime.now() - timedelta(days=days)).timestamp()
    for place in (folder / "file", folder):
        os.utime(place, (when, when))
    return folder


def dead_process() -> int:
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    return child.pid


def test_a_workspace_that_a_process_holds_is_left_alone(project: Project) -> None:
    held, orphan = (project.settings.workspaces / name for name in ("alpha--one--1", "alpha--two--2"))
    for folder in (held, orphan):
        make(folder)
        folder.with_name(f"{folder.name}.lock").touch()
    make(orphan.with_name(f"{orphan.name}.site"))
    with open(held.with_name(f"{held.name}.lock")) as lock_file:
        fcntl.flock(lock_file, fcntl.LOCK_EX)
        assert texts(left(project.settings)) == [
            "1 workspace that no process holds: alpha--two--2; 2 kB; `retrace doctor --fix` removes them"
        ]
        assert orphan.exists()
        section = left(project.settings, fix=True)
        assert texts(section) == [] and texts(section, "fixed")[0].startswith("removed 1 workspace ")
        assert sorted(path.name for path in project.settings.workspaces.iterdir()) == [held.name, f"{held.name}.lock"]
    left(project.settings, fix=True)
    assert list(project.settings.workspaces.iterdir()) == []


def test_nothing_is_left_of_a_run_that_was_killed(project: Project) -> None:
    project.act("alpha", "features", "sleep")
    project.edit_params(lambda params: params.update(doctor={"keep_runs_days": 0}))
    program = f"""
from pathlib import Path
from projects import Project
from retrace.config import Settings
root = Path({str(project.root)!r})
Project(root, Settings.load(root, {{}})).stages("alpha", "killed")
"""
    environ = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"}
    before, caches = project.refs(), set((project.settings.cache / "files/md5").glob("*/*"))
    with subprocess.Popen([sys.executable, "-P", "-c", program], env=environ) as running:
        while not (project.settings.var / "scratch/alpha.pid").exists():
            assert running.poll() is None
            time.sleep(0.05)
        running.kill()
    while processes_of(project.root):
        time.sleep(0.05)
    assert list(project.settings.workspaces.iterdir())
    section = left(project.settings, fix=True)
    assert texts(section) == []
    assert list(project.settings.workspaces.iterdir()) == [] and project.refs() == before
    assert set((project.settings.cache / "files/md5").glob("*/*.tmp")) <= caches
    assert texts(left(project.settings)) == []


REBUILD = """
import os, shutil, signal, sys
from pathlib import Path
from retrace import versions
from retrace.config import Settings
from retrace.git import Mirror
from retrace.reproduce import reproduce

def moved_and_dead(source, target, move=shutil.move):
    move(source, target)
    os.kill(os.getpid(), signal.SIGKILL)

shutil.move = moved_and_dead
settings = Settings.load(Path.cwd(), {})
mirror = Mirror.open(settings.mirror, settings.origin)
reproduce(settings, versions.find(mirror, sys.argv[1]), mirror, lambda *_: None, keep=True)
"""


def rebuilding(project: Project, name: str) -> subprocess.Popen[bytes]:
    """A rebuild in a process of its own, which dies when it has put half of it where it is to stay."""
    environ = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen([sys.executable, "-P", "-c", REBUILD, name], cwd=project.root, env=environ)


def tree_of(settings: Settings) -> set[str]:
    """All that is below var/, but for what git keeps of the record."""
    places = (path.relative_to(settings.var) for path in settings.var.rglob("*"))
    return {str(path) for path in places if not path.is_relative_to(settings.mirror.name)}


def heal(project: Project) -> None:
    run_doctor(project.settings, fix=True, stages=False, rehash=False, as_json=False)


@pytest.mark.parametrize("moment", ["while a stage runs", "while it is kept"])
def test_the_doctor_leaves_nothing_of_a_rebuild_that_was_killed(project: Project, moment: str) -> None:
    with_program(project, "train", 'write("models/begun", ""); time.sleep(600)')
    with rebuilding(project, "alpha@v1") as first:  # of which there are folders that stay
        pass
    heal(project)
    before = tree_of(project.settings)
    with rebuilding(project, "alpha@v2" if "stage" in moment else "alpha@v1") as process:
        if "stage" in moment:
            while not list(project.settings.workspaces.glob("*.site/views/train@alpha/models/begun")):
                assert process.poll() is None
                time.sleep(0.05)
            process.kill()
    assert first.returncode == process.returncode == -signal.SIGKILL
    while processes_of(project.root):
        time.sleep(0.05)
    left_behind = tree_of(project.settings) - before
    assert any(name.startswith("logs/alpha/alpha--rebuild-") for name in left_behind)
    assert any(name.startswith("rebuilds/alpha@v1--") for name in left_behind) is ("kept" in moment)
    heal(project)
    assert tree_of(project.settings) == before


def test_what_a_rebuild_has_not_finished_is_left_alone_while_its_process_lives(project: Project) -> None:
    rebuilds, logs = project.settings.var / REBUILDS, project.settings.logs
    mine = make(rebuilds / f"alpha@v1--20130501T000000.0-{os.getpid()}{PARTIAL}")
    with passing_logs(logs / "alpha/alpha--rebuild-v1--1") as under_way:
        left(project.settings, fix=True)
        assert mine.exists() and under_way.folder.exists()
        under_way.needed = True
        (under_way.folder / "train@alpha.log").touch()
    left(project.settings, fix=True)
    assert [path.name for path in under_way.folder.iterdir()] == ["train@alpha.log"], "somebody may want to read it"


def test_rebuilds_that_somebody_kept_stay_and_are_counted(project: Project) -> None:
    rebuilds = project.settings.var / REBUILDS
    names = [f"alpha@v{number}--20130501T000000.0" for number in (1, 2)]
    for name in names:
        make(rebuilds / name / "tree", size=2_000_000)
    section = left(project.settings, fix=True)
    assert section.summary == "none" and acted_on([section]) == []
    assert texts(section, "noted") == [
        f"2 rebuilds kept by `retrace reproduce --keep`, 4 MB: remove from {rebuilds} what nobody needs any more"
    ]
    assert sorted(path.name for path in rebuilds.iterdir()) == section.findings[0].facts["names"] == names


def test_temporary_folders_of_the_dead_are_removed(project: Project) -> None:
    dead, alive = dead_process(), os.getpid()
    for name in TEMPORARY:
        make(project.settings.var / f"{name}-{dead}")
        make(project.settings.var / f"{name}-{alive}")
    mine = make(project.settings.var / f"backup-{dead}")
    left(project.settings, fix=True)
    assert {path.name for path in project.settings.var.glob("*-*[0-9]")} == {
        mine.name,
        *(f"{name}-{alive}" for name in TEMPORARY),
    }


def test_every_temporary_folder_is_known_to_the_doctor() -> None:
    code = "".join(path.read_text() for path in (ROOT / "retrace").rglob("*.py"))
    assert set(re.findall(r"temporary_folder\(\w+, \"(\w+)\"\)", code)) == set(TEMPORARY)


def test_environments_that_nothing_names_are_removed_and_those_of_versions_stay(project: Project) -> None:
    folder = project.settings.environments
    (used,) = (path for path in folder.iterdir() if path.is_dir())
    unused, half, making = (make(folder / name) for name in ("0" * 16, "1" * 16, "2" * 16))
    (unused / ".complete").touch()
    (folder / f"{half.name}.txt").touch()
    lock(project, ("new==1.0 ; sys_platform == 'win32'", A))
    git(project.root, "update-ref", "-d", "refs/runs/alpha/first")  # from here on, only the tag names `used`
    with open(folder / f"{making.name}.lock", "w") as lock_file:
        fcntl.flock(lock_file, fcntl.LOCK_EX)
        left(project.settings, fix=True)
    assert {path.name for path in folder.iterdir() if path.suffix != ".lock"} == {used.name, making.name}
    (used / ".complete").unlink()
    left(project.settings, fix=True)
    assert not used.exists(), "half-made"


def test_the_leases_of_the_dead_are_given_up(project: Project) -> None:
    mirror = project.mirror
    lease.take(mirror, "alpha", "running", 60, lease.this_process())
    lease.take(mirror, "beta", "killed", 60, lease.this_process().replace(f" {os.getpid()} ", f" {dead_process()} "))
    assert texts(left(project.settings))[0].startswith("1 lease that nobody holds any more: beta")
    left(project.settings, fix=True)
    assert [ref for ref in project.refs() if ref.startswith("refs/locks/")] == ["refs/locks/alpha"]


def test_old_runs_without_a_version_are_removed_and_those_of_versions_never(project: Project) -> None:
    project.snapshot("alpha", "failed")
    project.snapshot("alpha", "under way")
    lease.take(project.mirror, "alpha", "under way", 60)
    commit = git(project.root, "rev-parse", "main")
    git(project.root, "update-ref", "refs/scores/alpha/v1--x", commit)
    before = project.refs()
    left(project.settings, fix=True)
    assert project.refs() == before, "they are not older than 90 days"
    project.edit_params(lambda params: params.update(doctor={"keep_runs_days": 0}))
    assert [text.partition(":")[0] for text in texts(left(project.settings))] == [
        "1 run that made no version, older than doctor.keep_runs_days",
        "1 scoring older than doctor.keep_runs_days",
    ]
    left(project.settings, fix=True)
    gone = before.keys() - project.refs().keys()
    assert gone == {"refs/runs/alpha/failed", "refs/scores/alpha/v1--x"}
    assert texts(left(project.settings)) == []


def test_scratch_is_kept_for_a_day_and_while_anything_runs(project: Project) -> None:
    old, young = (make(project.settings.var / "scratch" / name, days=days) for name, days in (("a", 2), ("b", 0.5)))
    project.settings.workspaces.mkdir(exist_ok=True)
    held = project.settings.workspaces / "alpha--one--1.lock"
    with open(held, "w") as lock_file:
        fcntl.flock(lock_file, fcntl.LOCK_EX)
        left(project.settings, fix=True)
        assert old.exists()
    left(project.settings, fix=True)
    assert not old.exists() and young.exists()


def test_a_run_cache_is_left_when_its_run_is_over(project: Project) -> None:
    project.snapshot("alpha", "retried")
    names = ("refs=2Fruns=2Falpha=2Fretried", "refs=2Fruns=2Falpha=2Ffirst", "refs=2Fruns=2Falpha=2Fgone")
    retried, became, gone = (make(project.settings.var / "runs" / name) for name in names)
    left(project.settings, fix=True)
    assert retried.exists() and not became.exists() and not gone.exists()


def test_half_made_copies_are_removed_unless_somebody_writes_them(project: Project) -> None:
    folder = project.settings.cache / "files/md5/ab"
    written, killed = make(folder) / "written.tmp", folder / "killed.tmp"
    with open(written, "w") as handle:
        killed.touch()
        handle.write("x")
        for place in (written, killed):
            os.utime(place, (0, 0))
        left(project.settings, fix=True)
        assert written.exists() and not killed.exists()


# Services and views


def test_services_that_do_not_answer_are_named_with_the_reason(project: Project) -> None:
    database = project.settings.var / "mlflow/mlflow.db"
    database.parent.mkdir()
    database.write_text("no database")
    told = texts(sections(project.settings, environ={"OPENLINEAGE_URL": "http://127.0.0.1:9"})["services"])
    assert [text.partition(": ")[0] for text in told] == ["MLflow", "lineage consumer"]
    assert "cannot be read as SQLite" in told[0] and "Connection refused" in told[1]
    server = project.settings.model_copy(update={"mlflow": "http://ann:s3cret@127.0.0.1:9"})
    (told,) = (texts(sections(server)["services"]),)
    assert told == ["MLflow: http://127.0.0.1:9 does not answer (ConnectionError); check that it is up"]


def test_what_mlflow_shows_is_compared_with_git(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    from mlflow import MlflowClient

    from retrace.registry import prepare

    prepare(project.settings.mlflow, 60)
    client = MlflowClient(project.settings.mlflow)
    client.create_registered_model("alpha")
    client.create_model_version("alpha", "here", tags={"git.tag": "alpha@v1"})
    client.set_registered_model_alias("alpha", "champion", "1")
    client.set_registered_model_alias("alpha", "a-person", "1")
    assert sections(project.settings)["views"] == Section("views", "MLflow has 1 version", ())
    version = versions.find(project.mirror, "alpha@v1")
    kept = verdicts.keep(project.mirror, version, IDENTICAL, {})
    assert sections(project.settings)["views"] == Section("views", "MLflow has 1 version", ())
    monkeypatch.setattr("retrace.health.views._GRACE", timedelta(0))
    assert texts(sections(project.settings)["views"]) == [
        "MLflow says nothing of the last rebuild of alpha@v1, which was identical; run `retrace sync`"
    ]
    for key, value in told_verdict(IDENTICAL, kept.when).items():
        client.set_model_version_tag("alpha", "1", key, value)
    client.create_model_version("alpha", "here")
    client.set_registered_model_alias("alpha", "champion", "2")
    assert texts(sections(project.settings)["views"]) == [
        "version 2 of alpha in MLflow was made by hand, which git does not know; delete the registered model in "
        "MLflow, then `retrace sync` writes it again",
        "champion of alpha is v2 in MLflow and v1 in git; run `retrace sync`",
    ]
    registered(project, "second")
    registered(project, "third")
    assert "MLflow lacks alpha@v3; run `retrace sync`" in texts(sections(project.settings)["views"])


def test_runs_that_the_lineage_consumer_lacks_are_counted(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    from retrace.lineage.sync import sync_lineage

    with Consumer() as consumer:
        environ = {"OPENLINEAGE_URL": consumer.url}
        told = sections(project.settings, environ=environ)["views"]
        assert texts(told) == ["MLflow lacks alpha@v1; run `retrace sync`"] and "has 0 runs" in told.summary
        monkeypatch.setattr("retrace.health.views._GRACE", timedelta(0))
        lacks = texts(sections(project.settings, environ=environ)["views"])[1]
        assert lacks == "the lineage consumer lacks 10 runs, such as of ingest.ingest; run `retrace sync`"
        list(sync_lineage(project.settings, project.mirror, lambda _: None, environ))
        assert "has 10 runs" in sections(project.settings, environ=environ)["views"].summary
        consumer.empty()
        assert "lacks 10 runs" in texts(sections(project.settings, environ=environ)["views"])[1]


# The command


def test_the_command_ends_with_1_when_something_is_somebodys_to_act_on(
    project: Project, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OPENLINEAGE_URL", raising=False)
    options = {"fix": False, "stages": False, "rehash": False}
    assert run_doctor(project.settings, **options, as_json=True) == 1
    told = json.loads(capsys.readouterr().out)
    assert told["well"] is False
    assert [section["name"] for section in told["sections"]] == [
        "refs",
        "aliases",
        "objects",
        "packages",
        "services",
        "views",
        "leftovers",
    ]
    (finding,) = told["sections"][5]["findings"]
    assert finding["kind"] == "mlflow-lacks" and finding["versions"] == ["alpha@v1"] and finding["state"] == "found"
    assert run_doctor(project.settings, **options, as_json=False) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[-3:] == ["  ! MLflow lacks alpha@v1; run `retrace sync`", "leftovers  none", "1 finding"]


def test_a_project_without_versions_or_data_is_well(empty_project: Project, capsys: pytest.CaptureFixture[str]) -> None:
    empty_project.settings.environments.unlink()  # which other tests fill
    options = {"stages": False, "rehash": True, "as_json": False}
    assert run_doctor(empty_project.settings, fix=False, **options) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "all is well"


def test_a_task_tries_again_only_when_nothing_but_services_is_wrong() -> None:
    silent, lost = Finding("service-silent", "MLflow: gone"), Finding("object-missing", "x is missing")
    assert isinstance(found([silent]), ServicesSilent)
    assert isinstance(found([silent, lost]), NeedsAttention)
    assert str(found([silent, lost])) == "2 findings: MLflow: gone; x is missing"
    assert acted_on([Section("a", "", (Finding("leftover", "x", "fixed"), Finding("yanked", "y", "noted")))]) == []


def test_versions_are_named_in_one_phrase() -> None:
    names = ["a@v1", "a@v2", "a@v3", "a@v10", "b@v2", "the newest data"]
    assert named(names) == "a@v1 .. v3, a@v10, b@v2, the newest data"
