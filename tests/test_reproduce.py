"""`retrace reproduce`: a version made again, the verdict on it, and what is said when it cannot be."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import psutil
import pytest
from forgeries import (
    PROGRAM,
    beginning,
    forge,
    lock_of,
    partition,
    stored,
    with_event,
    with_files,
    with_lock,
    with_program,
)
from projects import ROOT, Project, git, write_blob
from views import KINDS, processes_in, small_disk

from retrace import environment, verdicts, versions, yaml12
from retrace.audit import due
from retrace.dvcfiles import LOCK
from retrace.environment import (
    PYTHON_VERSION,
    REQUIREMENTS,
    EnvironmentFailed,
    EnvironmentLock,
    IndexUnavailable,
    InstallerKilled,
)
from retrace.git import TagMoved, locked
from retrace.hashing import md5_of
from retrace.process import DiskFull, RemoteUnavailable, StageTimeout
from retrace.rebuild import raw
from retrace.rebuild.compare import metric_changes
from retrace.rebuild.sandbox import may_rename_host
from retrace.reproduce import EXIT_CODES, Reproduction, reproduce, run_reproduce
from retrace.tombstones import Tombstone, bury
from retrace.verdicts import DIFFERENT, EQUIVALENT, IDENTICAL, IMPOSSIBLE
from retrace.workspace import Remote, Workspace, sweep

VERDICTS = "refs/verdicts/"
PATIENCE = 60.0
CLI = "from retrace.cli import main; main()"


def rebuilt(project: Project, name: str = "alpha@v1", **more: Any) -> Reproduction:
    """Make a version again; nothing of the past may change, and nothing may be left behind."""
    before, objects = project.refs(), past(project)
    try:
        return reproduce(project.settings, versions.find(project.mirror, name), project.mirror, lambda *_: None, **more)
    finally:
        after = {ref: oid for ref, oid in project.refs().items() if not ref.startswith(VERDICTS)}
        assert after == {ref: oid for ref, oid in before.items() if not ref.startswith(VERDICTS)}
        assert past(project) == objects
        assert nothing_left(project)


def past(project: Project) -> dict[str, str]:
    """Every object of remote and cache, and what the working copy holds."""
    found = [path for store in ("remote", "cache") for path in (project.settings.var / store).rglob("*")]
    found += [path for path in project.root.iterdir() if path.is_file()] + list((project.root / "pipeline").iterdir())
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in found if path.is_file()}


def nothing_left(project: Project) -> bool:
    return not list(project.settings.workspaces.glob("*")) and not processes_in(project.root)


def without_verdict(project: Project, name: str = "alpha@v2") -> bool:
    return f"{VERDICTS}{name}" not in project.refs()


def reason(project: Project, name: str = "alpha@v2", verdict: str = IMPOSSIBLE, **more: Any) -> str:
    """Why the verdict on a version is what it must be."""
    found = rebuilt(project, name, **more).verdict
    assert found.verdict == verdict, found.reason
    assert str(project.root) not in json.dumps(dict(found.facts)), "no machine's path into git"
    return found.reason


# Identical


@pytest.mark.parametrize("kind", KINDS)
def test_a_version_is_made_again_from_git_and_the_remote_alone(trained: Project, kind: Any) -> None:
    shutil.rmtree(trained.settings.cache)
    shutil.rmtree(trained.settings.var / "statistics", ignore_errors=True)
    (trained.settings.var / "scratch").mkdir(exist_ok=True)
    found = rebuilt(trained, kind=kind)
    assert not trained.settings.cache.exists(), "nothing is put into the cache"
    version, facts = versions.find(trained.mirror, "alpha@v1"), found.verdict.facts
    assert found.verdict.verdict == facts["verdict"] == IDENTICAL
    assert (facts["version"], facts["tag"], facts["commit"]) == ("alpha@v1", version.tag_object, version.commit)
    assert facts["sandbox"] == kind and facts["varied"] == []
    assert facts["platform"].keys() == {"processor", "architecture", "system", "libc", "python"}
    assert [(stage["name"], stage["identical"]) for stage in facts["stages"]] == [
        (name, True) for name in ("validate", "features", "train", "evaluate")
    ]
    assert (found.verdict.reason, facts["first"], facts["missing"], facts["metrics"]) == ("", None, [], [])
    assert not list((trained.settings.logs / "alpha").glob("alpha--rebuild*"))
    [kept] = verdicts.verdicts(trained.mirror, version)
    assert dict(kept.facts) == dict(facts)


def test_each_step_is_told_and_the_end_says_how_it_was_made(
    trained: Project, capsys: pytest.CaptureFixture[str]
) -> None:
    version = versions.find(trained.mirror, "alpha@v1")
    assert run_reproduce(trained.settings, "alpha@champion", vary=False, keep=False, as_json=False) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"alpha@v1  commit {version.commit[:8]}, made {version.created:%Y-%m-%d}"
    assert re.fullmatch(r"  environment  [0-9a-f]{12}  Python 3\.11, 0 packages  here", lines[1])
    assert lines[2] == "  raw data     3 files, 0.0 MB from the remote, hashes as recorded"
    assert [line.split() for line in lines[3:7]] == [
        [name, line.split()[1], "s", "identical"]
        for name, line in zip(("validate", "features", "train", "evaluate"), lines[3:7], strict=True)
    ]
    assert lines[7] == "identical: 7 outputs of 4 stages, the same bytes"
    assert re.fullmatch(rf"in \d+\.\d s, sandbox: {KINDS[0]}; kept as refs/verdicts/alpha@v1", lines[8])
    assert len(lines) == 9


def test_a_version_is_the_same_where_all_is_changed_that_must_not_matter(
    trained: Project, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_reproduce(trained.settings, "alpha@v1", vary=True, keep=False, as_json=True) == 0
    out, err = capsys.readouterr()
    told = json.loads(out)
    assert told["verdict"] == IDENTICAL and told["kept"] is None
    for name in ("folder", "home", "hash seed", "time zone", "umask", "allocator fill", "one processor"):
        assert name in told["varied"]
    assert ("host name" in told["varied"]) is may_rename_host(KINDS[0])
    assert [name for name in told["varied"] if re.fullmatch(r"locale \(.+\)", name)]
    assert "  train" in err and "identical" in err


def test_a_verdict_says_of_a_sandbox_no_more_than_it_does(
    trained: Project, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Landlock of a kernel that knows nothing of the network."""
    monkeypatch.setattr("retrace.rebuild.box.landlock_version", lambda: 3)
    monkeypatch.setattr("retrace.reproduce.kinds", lambda: ("landlock", "view"))
    assert run_reproduce(trained.settings, "alpha@v1", vary=False, keep=False, as_json=False) == 0
    assert ", sandbox: landlock, network open; kept as " in capsys.readouterr().out.splitlines()[-1]
    [verdict] = verdicts.verdicts(trained.mirror, versions.find(trained.mirror, "alpha@v1"))
    assert verdict.facts["sandbox"] == "landlock, network open"


def test_what_was_rebuilt_is_kept_on_request_and_never_in_the_place_of_another(trained: Project) -> None:
    kept = [rebuilt(trained, keep=True, vary=vary).kept for vary in (False, True, False)]
    assert len(set(kept)) == 3
    for folder in kept:
        assert folder is not None and folder.parent == trained.settings.var / "rebuilds"
        assert (folder / "tree/data/raw/events/2013-02.parquet").is_file()
        made = (folder / "tree/models/alpha.skops").read_bytes()
        assert (folder / "views/train@alpha/models/alpha.skops").read_bytes() == made
        assert made == stored(trained, md5_of(made)).read_bytes()
        assert not (folder / "views/train@alpha/data/raw").exists()
    stored(trained, partition(trained, "2013-01")[1]).unlink()
    found = rebuilt(trained, keep=True)
    assert found.verdict.verdict == IMPOSSIBLE
    assert found.kept is not None and [path.name for path in found.kept.iterdir()] == ["tree"]


def test_a_working_copy_that_was_changed_does_not_matter(trained: Project) -> None:
    for name in (PROGRAM, "params.yaml", "dvc.yaml"):
        (trained.root / name).write_text("not of the version\n")
    (trained.root / "dvc.lock").write_text("mine\n")
    status = git(trained.root, "status", "--porcelain")
    assert rebuilt(trained).verdict.verdict == IDENTICAL
    assert git(trained.root, "status", "--porcelain") == status
    assert (trained.root / "dvc.lock").read_text() == "mine\n"


def environment_lock(project: Project) -> tuple[EnvironmentLock, Path]:
    """What alpha@v1 pins, and the file that whoever makes its environment holds."""
    lock = EnvironmentLock.of_commit(project.mirror, versions.find(project.mirror, "alpha@v1").commit)
    return lock, project.settings.environments / f"{lock.digest[:16]}.lock"


def test_two_rebuilds_at_once_that_lack_the_environment_both_keep_their_verdict(trained: Project) -> None:
    (trained.settings.var / "environments").unlink()
    command = [sys.executable, "-P", "-c", CLI, "reproduce", "alpha@v1", "--json"]
    variables = {**os.environ, "PYTHONPATH": str(ROOT)}
    _, file = environment_lock(trained)
    with locked(file):
        started = [
            subprocess.Popen(command, cwd=trained.root, env=variables, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
            for _ in range(2)
        ]
        for process in started:
            until(partial(has_opened, process.pid, file), "a rebuild that wants to make the environment")
    said = [process.communicate(timeout=PATIENCE) for process in started]
    assert [process.returncode for process in started] == [0, 0]
    assert all(b"made from its lock" in err for _, err in said)
    told = [json.loads(out) for out, _ in said]
    assert [facts["verdict"] for facts in told] == [IDENTICAL, IDENTICAL]
    known = verdicts.verdicts(trained.mirror, versions.find(trained.mirror, "alpha@v1"))
    assert sorted(json.dumps(dict(verdict.facts), sort_keys=True) for verdict in known) == sorted(
        json.dumps({key: value for key, value in facts.items() if key != "kept"}, sort_keys=True) for facts in told
    )
    assert nothing_left(trained)


def has_opened(pid: int, file: Path) -> bool:
    return str(file) in [item.path for item in psutil.Process(pid).open_files()]


def test_an_environment_that_was_left_half_made_is_made_again_and_told_so(trained: Project) -> None:
    (trained.settings.var / "environments").unlink()
    lock, file = environment_lock(trained)
    half = file.with_suffix("")
    (half / "bin").mkdir(parents=True)
    told: list[tuple[str, str]] = []
    version = versions.find(trained.mirror, "alpha@v1")
    found = reproduce(trained.settings, version, trained.mirror, lambda *step: told.append(step))
    assert found.verdict.verdict == IDENTICAL
    assert [text.rpartition("  ")[2] for step, text in told if step == "environment"] == [
        "is being made",
        "made from its lock",
    ]
    assert environment.is_made(lock, trained.settings.environments) and (half / "bin/python").exists()


# Equivalent and different

LOST = "FileNotFoundError: [Errno 2] No such file or directory:"
OTHER_BYTES = 'write(f"models/{model}.skops", f"{time.time_ns()}"); return'


def test_other_bytes_and_the_same_metrics_are_equivalent(trained: Project, capsys: pytest.CaptureFixture[str]) -> None:
    with_program(trained, "train", OTHER_BYTES)
    assert run_reproduce(trained.settings, "alpha@v2", vary=False, keep=False, as_json=False) == 3
    lines = capsys.readouterr().out.splitlines()
    assert "equivalent: train@alpha made other bytes: models/alpha.skops" in lines
    assert "  platform     processor, system, libc and Python are those of the run" in lines
    assert [line.split("s  ")[1] for line in lines if line.startswith("  train")] == ["differs: models/alpha.skops"]
    assert not [line for line in lines if line.startswith("  metric")]
    assert list((trained.settings.logs / "alpha").glob("alpha--rebuild*/train@alpha.log"))


def test_other_metrics_are_told_with_the_first_stage_and_the_platform(
    trained: Project, capsys: pytest.CaptureFixture[str]
) -> None:
    """The stage's event was written on another machine, and its program has changed since."""
    code = beginning(trained, "evaluate", "settings = lambda *_: {'quality': 0.85}")
    path = "lineage/alpha/evaluate.json"
    event = trained.mirror.read(versions.find(trained.mirror, "alpha@v1").commit, path) or b""
    lock = (trained.mirror.read(versions.find(trained.mirror, "alpha@v1").commit, LOCK) or b"").replace(
        md5_of((trained.root / PROGRAM).read_bytes()).encode(), md5_of(code).encode()
    )
    then = {"processor": "Z80", "system": "CP/M 2.2", "libc": "musl 1.2", "python": "3.11.0"}
    elsewhere = event
    for key, value in then.items():
        elsewhere, count = re.subn(rf'"{key}": "[^"]*"'.encode(), f'"{key}": "{value}"'.encode(), elsewhere)
        assert count == 1
    forge(trained, {PROGRAM: code, LOCK: lock, path: elsewhere})
    assert run_reproduce(trained.settings, "alpha@v2", vary=False, keep=False, as_json=False) == 4
    lines = capsys.readouterr().out.splitlines()
    assert "different: evaluate@alpha made other bytes: metrics/alpha.json" in lines
    assert "  metric       holdout.accuracy 0.8 -> 0.85 (+0.05)" in lines
    assert "  metric       holdout.cost 0.2 -> 0.15 (-0.05)" in lines
    [verdict] = verdicts.verdicts(trained.mirror, versions.find(trained.mirror, "alpha@v2"))
    now = verdict.facts["platform"]
    told = [line for line in lines if ", now " in line]
    assert sorted(told) == sorted(f"  {key:<12} then {value}, now {now[key]}" for key, value in then.items())
    assert not [line for line in lines if line.startswith("  platform")]
    assert verdict.facts["first"] == "evaluate@alpha"
    assert {change["name"]: change["found"] for change in verdict.facts["metrics"]}["holdout.accuracy"] == 0.85


def test_metrics_that_differ_after_the_rounding_only_are_the_same(trained: Project) -> None:
    with_program(trained, "evaluate", "settings = lambda *_: {'quality': 0.8 + 1e-9}")
    assert reason(trained, verdict=EQUIVALENT) == "evaluate@alpha made other bytes: metrics/alpha.json"


UNSETTLED = pytest.mark.parametrize(
    "value", ["time.time() % 1", "__import__('random').random()"], ids=["clock", "random"]
)


@UNSETTLED
def test_a_clock_or_a_random_number_without_a_seed_that_moves_a_metric_is_different(
    trained: Project, value: str
) -> None:
    with_program(trained, "evaluate", f"settings = lambda *_: {{'quality': {value}}}")
    found = rebuilt(trained, "alpha@v2").verdict
    assert (found.verdict, found.reason) == (DIFFERENT, "evaluate@alpha made other bytes: metrics/alpha.json")
    assert [change["name"] for change in found.facts["metrics"]] == ["holdout.accuracy", "holdout.cost"]


@UNSETTLED
def test_a_clock_or_a_random_number_without_a_seed_that_moves_no_metric_is_equivalent(
    trained: Project, value: str
) -> None:
    with_program(trained, "train", f'write(f"models/{{model}}.skops", str({value})); return')
    found = rebuilt(trained, "alpha@v2").verdict
    assert (found.verdict, found.reason) == (EQUIVALENT, "train@alpha made other bytes: models/alpha.skops")
    assert (found.facts["first"], found.facts["metrics"]) == ("train@alpha", [])


def test_metrics_that_are_written_by_half_make_a_version_different(trained: Project) -> None:
    half = 'text[:9] if path.startswith("metrics") else text'
    with_program(trained, "evaluate", f'write = lambda path, text: globals()["write"](path, {half})')
    found = rebuilt(trained, "alpha@v2").verdict
    assert (found.verdict, found.reason) == (DIFFERENT, "evaluate@alpha left metrics/alpha.json that is no JSON")
    assert [change["found"] for change in found.facts["metrics"]] == [None, None]


def test_the_files_of_a_folder_that_differ_are_named(trained: Project) -> None:
    with_program(trained, "features", 'write(f"data/features/{model}/more.txt", "x")')
    found = rebuilt(trained, "alpha@v2").verdict
    assert found.reason == "features@alpha made other bytes: data/features/alpha/more.txt"
    assert found.facts["stages"][0]["identical"] and not found.facts["stages"][1]["identical"]
    assert len(found.facts["stages"]) == 4, "the rebuild goes on with what it made"


@pytest.mark.parametrize(
    ("line", "text"),
    [
        ("return", "train@alpha made other bytes: models/alpha.skops"),
        ('sys.exit("bad luck")', "train@alpha ended with code 1: bad luck"),
        ("os.kill(os.getpid(), 15)", "train@alpha "),
        (
            'Path("dvc.yaml").read_text()',
            f"train@alpha ended with code 1: {LOST} 'dvc.yaml'; it reads dvc.yaml, which it does not declare",
        ),
        (
            'settings(model, "evaluate")',
            "train@alpha ended with code 1: KeyError: 'evaluate'; it reads the parameter models.alpha.evaluate, which "
            "it does not declare",
        ),
        (
            'Path.home().joinpath("prices.csv").read_text()',
            f"train@alpha ended with code 1: {LOST} './home/prices.csv'",
        ),
    ],
    ids=["makes nothing", "fails", "killed", "undeclared file", "undeclared parameter", "home"],
)
def test_a_stage_that_makes_nothing_makes_a_version_different(trained: Project, line: str, text: str) -> None:
    with_program(trained, "train", line)
    found = rebuilt(trained, "alpha@v2").verdict
    assert found.verdict == DIFFERENT
    assert found.reason.startswith(text) and (found.reason == text or text.endswith(" ")), found.reason
    assert [stage["name"] for stage in found.facts["stages"]] == ["validate", "features", "train"]
    assert found.facts["metrics"] == [
        {"name": "holdout.accuracy", "recorded": 0.8, "found": None},
        {"name": "holdout.cost", "recorded": pytest.approx(0.2), "found": None},
    ]
    assert str(trained.root) not in json.dumps(dict(found.facts))


def test_an_undeclared_input_is_told_even_of_a_version_that_is_identical(
    trained: Project, capsys: pytest.CaptureFixture[str]
) -> None:
    line = "\n    try: open('dvc.yaml')\n    except OSError: pass"
    with_program(trained, "train", line.strip())
    assert run_reproduce(trained.settings, "alpha@v2", vary=False, keep=False, as_json=False) == 0
    assert (
        "  undeclared   train@alpha reads dvc.yaml, which it does not declare" in capsys.readouterr().out.splitlines()
    )


@pytest.mark.parametrize(
    ("recorded", "found", "changes"),
    [
        ('{"a": {"b": 1.0}, "c": 2}', '{"a": {"b": 1.0000001}, "c": 2}', []),
        ('{"a": {"b": 1.0}}', '{"a": {"b": 1.5}}', ["a.b 1 -> 1.5 (+0.5)"]),
        ('{"a": 1}', '{"b": 2}', ["a 1 -> none", "b none -> 2"]),
        ('{"a": NaN, "b": Infinity}', '{"a": NaN, "b": Infinity}', []),
        ('{"a": NaN}', '{"a": 1}', ["a nan -> 1 (+nan)"]),
        ('{"a": "text", "b": [1]}', '{"a": "other", "b": [2]}', []),
        ('{"a": 0.25}', None, ["a 0.25 -> none"]),
        ('{"a": 0.25}', '{"a": 0.2', ["a 0.25 -> none"]),
    ],
)
def test_metrics_are_compared_by_value(recorded: str, found: str | None, changes: list[str]) -> None:
    told = metric_changes(recorded.encode(), found.encode() if found else None)
    assert [change.text for change in told] == changes


# Impossible, for objects


def rot(place: Path) -> None:
    content = place.read_bytes()
    place.chmod(0o644)
    place.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))


def test_every_object_that_is_lost_corrupt_or_exchanged_is_named_and_none_is_used(trained: Project) -> None:
    (lost, a), (corrupt, b), (exchanged, c) = (partition(trained, f"2013-0{month}") for month in (1, 2, 3))
    stored(trained, c).chmod(0o644)
    shutil.copy(stored(trained, a), stored(trained, c))
    rot(stored(trained, b))
    stored(trained, a).unlink()
    found = rebuilt(trained, keep=True)
    assert found.verdict.verdict == IMPOSSIBLE
    other = "is in the remote with other bytes than the record says; it was not used"
    assert found.verdict.facts["missing"] == [
        f"{lost} (md5 {a}) is not in the remote",
        f"{corrupt} (md5 {b}) {other}",
        f"{exchanged} (md5 {c}) {other}",
    ]
    assert found.verdict.facts["stages"] == []
    assert found.kept is not None and not list((found.kept / "tree/data/raw/events").glob("*"))


def test_a_file_whose_md5_alone_is_right_is_not_used(trained: Project) -> None:
    """md5 can be forged: what the manifest's sha256 does not know is another file."""
    mirror, (path, md5) = trained.mirror, partition(trained, "2013-02")
    listed = (mirror.read("refs/heads/data", "data/raw/events.manifest") or b"").decode()
    sha256 = next(line.split()[2] for line in listed.splitlines() if line.startswith(path))
    forge(trained, {"data/raw/events.manifest": listed.replace(sha256, "0" * 64).encode()})
    assert reason(trained) == (
        f"{path} (md5 {md5}) is in the remote with other bytes than the record says; it was not used"
    )


def test_what_is_wrong_with_this_machine_s_cache_does_not_matter(trained: Project) -> None:
    for place in (trained.settings.cache / "files/md5").rglob("*"):
        if place.is_file():
            rot(place)
    assert rebuilt(trained).verdict.verdict == IDENTICAL


def test_a_remote_that_is_not_there_is_no_verdict(trained: Project) -> None:
    remote = trained.settings.var / "remote"
    remote.rename(remote.with_name("unmounted"))
    with pytest.raises(
        RemoteUnavailable, match=f"^the DVC remote {remote} is not there; mount it, then run this again$"
    ):
        rebuilt(trained)
    assert without_verdict(trained, "alpha@v1")


def test_data_that_was_forgotten_is_not_used_and_the_version_is_not_audited_again(trained: Project) -> None:
    """Another machine's push brought the object back: it is still there."""
    path, md5 = partition(trained, "2013-02")
    bury(trained.mirror, [Tombstone(md5, None, "DSR-7", "2026-01-02", path)], "DSR-7")
    found = rebuilt(trained).verdict
    assert (found.verdict, found.reason) == (IMPOSSIBLE, f"{path} (md5 {md5}) was removed on request DSR-7")
    assert found.facts["ticket"] == "DSR-7"
    assert due(trained.mirror, "alpha") == []


@pytest.fixture
def with_a_folder(empty_project: Project) -> tuple[Project, Workspace, str]:
    """A checkout with a folder that DVC tracks without Retrace, in the remote; and the md5 of its list."""
    tree, files = empty_project.root, {"a.txt": b"a", "b/c d.txt": b"c"}
    listed = [{"md5": md5_of(content), "relpath": name} for name, content in files.items()]
    whole = json.dumps(listed).encode()
    oid = f"{md5_of(whole)}.dir"
    for md5, content in ((oid, whole), *((md5_of(content), content) for content in files.values())):
        stored(empty_project, md5).parent.mkdir(parents=True)
        stored(empty_project, md5).write_bytes(content)
    (tree / "data/lookup.dvc").write_text(f"outs:\n- md5: {oid}\n  path: lookup\n")
    return empty_project, Workspace(tree, "", tree / "var/site"), oid


def test_a_folder_without_a_manifest_is_brought_by_the_list_of_its_files(
    with_a_folder: tuple[Project, Workspace, str],
) -> None:
    project, tree, _ = with_a_folder
    for path in ("data", "data/lookup", "data/lookup/b"):
        wanted, contradictions = raw.tracked(tree.path, [path])
        assert [item.path for item in wanted] == ["data/lookup"] and contradictions == []
    found = raw.fetch(project.settings, tree, wanted, project.settings.logs / "raw.log")
    assert (found.size, found.missing) == (2, ())
    assert (tree.path / "data/lookup/b/c d.txt").read_bytes() == b"c"


@pytest.mark.parametrize("kind", ["folder", "server"])
def test_of_a_folder_the_list_or_a_file_may_be_lost_or_spoilt(
    with_a_folder: tuple[Project, Workspace, str], monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """What is no folder of this machine is read by DVC's process: here the same remote, as if it were a server."""
    if kind == "server":
        monkeypatch.setattr(raw, "remote_of", lambda *_: Remote("server", "s3://bucket", {}))
    project, tree, oid = with_a_folder
    wanted, _ = raw.tracked(tree.path, ["data/lookup"])
    inside = stored(project, md5_of(b"c"))
    for place, text in (
        (stored(project, oid), f"data/lookup (md5 {oid})"),
        (inside, f"data/lookup/b/c d.txt (md5 {md5_of(b'c')})"),
    ):
        kept = place.read_bytes()
        rot(place)
        assert missing(project, tree, wanted) == [
            f"{text} is in the remote with other bytes than the record says; it was not used"
        ]
        place.unlink()
        assert missing(project, tree, wanted) == [f"{text} is not in the remote"]
        place.write_bytes(kept)


def missing(project: Project, tree: Workspace, wanted: list[raw.Tracked]) -> list[str]:
    """What cannot be brought into an empty place."""
    shutil.rmtree(tree.path / "data/lookup", ignore_errors=True)
    return list(raw.fetch(project.settings, tree, wanted, project.settings.logs / "raw.log").missing)


# Impossible, for the record


def edit(stage: str, **changes: Any) -> Callable[[dict[str, Any]], object]:
    """Put something else into a stage's entry."""
    return lambda stages: stages[f"{stage}@alpha"].update(changes)


def md5_in(stage: str, kind: str, path: str, md5: str | None) -> Callable[[dict[str, Any]], object]:
    """Give a path of a stage's entry another md5, or (None) take it out."""

    def change(stages: dict[str, Any]) -> None:
        found = next(item for item in stages[f"{stage}@alpha"][kind] if item["path"] == path)
        found.update(md5=md5)
        if md5 is None:
            stages[f"{stage}@alpha"][kind].remove(found)

    return change


def reads_raw_data(stages: dict[str, Any]) -> None:
    """Let a stage have read, with the right md5, what another one did."""
    [raw_data] = [item for item in stages["features@alpha"]["deps"] if item["path"] == "data/raw/events"]
    stages["train@alpha"]["deps"].append(raw_data)


OTHER = "f" * 32


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (
            md5_in("train", "outs", "models/alpha.skops", OTHER),
            f"dvc.lock has md5 {OTHER} for models/alpha.skops of train@alpha, the stage's event has [0-9a-f]{{32}}",
        ),
        (
            md5_in("evaluate", "outs", "metrics/alpha.json", None),
            "dvc.lock has md5 none for metrics/alpha.json of evaluate@alpha, the stage's event has [0-9a-f]{32}",
        ),
        (lambda stages: stages.pop("evaluate@alpha"), "dvc.lock of commit [0-9a-f]{8} has no evaluate@alpha"),
        (
            lambda stages: stages.clear(),
            "dvc.lock of commit [0-9a-f]{8} has no validate@alpha; .* has no features@alpha; .*",
        ),
        (
            md5_in("train", "deps", PROGRAM, OTHER),
            f"dvc.lock says that train@alpha read {PROGRAM} with md5 {OTHER}; here it is [0-9a-f]{{32}}",
        ),
        (
            md5_in("train", "deps", "data/features/alpha", f"{OTHER}.dir"),
            f"dvc.lock says that train@alpha read data/features/alpha with md5 {OTHER}.dir; here it is [0-9a-f]{{32}}",
        ),
        (
            md5_in("features", "deps", "data/raw/events", f"{OTHER}.dir"),
            f"dvc.lock says that features@alpha read data/raw/events with md5 {OTHER}.dir; here it is [0-9a-f]{{32}}",
        ),
        (
            edit("train", deps=[{"path": "data/prices.csv", "md5": OTHER}]),
            "dvc.lock says that train@alpha read data/prices.csv, of which the stage's event has nothing; .*",
        ),
        (reads_raw_data, "dvc.lock says that train@alpha read data/raw/events, of which the stage's event has nothing"),
        (
            md5_in("train", "deps", PROGRAM, None),
            f"dvc.lock does not have {PROGRAM} among what train@alpha read$",
        ),
        (
            md5_in("train", "deps", "data/features/alpha", None),
            "dvc.lock does not have data/features/alpha among what train@alpha read$",
        ),
        (
            edit("train", cmd="python -m pipeline.stage train beta"),
            "dvc.lock says that train@alpha ran 'python -m pipeline.stage train beta'; dvc.yaml has "
            "'python -m pipeline.stage train alpha'$",
        ),
        (
            lambda stages: stages["train@alpha"]["params"]["params.yaml"]["models.alpha.train"].update(seed=2),
            "train@alpha ran with another models.alpha.train than params.yaml of its commit has$",
        ),
        (edit("train", params={}), "dvc.lock does not have params.yaml among the parameters of train@alpha$"),
        (
            lambda stages: stages["evaluate@alpha"]["params"]["params.yaml"].pop("models.alpha.train.quality"),
            "evaluate@alpha ran with another models.alpha.train.quality than params.yaml of its commit has; dvc.lock "
            "does not have models.alpha.train.quality of params.yaml among the parameters of evaluate@alpha$",
        ),
        (
            lambda stages: stages["train@alpha"]["params"].update({"more.yaml": {"a": 1}}),
            "train@alpha ran with parameters of more.yaml, which its commit does not have$",
        ),
        (
            lambda stages: stages["train@alpha"]["params"].update({"dvc.yaml": {"stages.train.foreach": "no"}}),
            "train@alpha ran with another stages.train.foreach than dvc.yaml of its commit has$",
        ),
        (
            edit("train", params={"params.yaml": {"models.alpha.evaluate": {}}}),
            "train@alpha ran with another models.alpha.evaluate than params.yaml of its commit has",
        ),
        (edit("train", cmd=None), "dvc.lock of commit [0-9a-f]{8}: the entry of train@alpha is not one that DVC wrote"),
        (
            edit("train", outs=[{"path": "../../../../home", "md5": OTHER}]),
            "train@alpha names '../../../../home', which is not a path inside the repository",
        ),
    ],
    ids=[
        *("an output", "an output taken out", "a stage taken out", "all taken out", "code", "an intermediate", "raw"),
        *("a dependency", "a dependency put in", "code taken out", "an intermediate taken out", "a command"),
        *("a parameter's value", "all parameters taken out", "a parameter taken out", "a parameter file"),
        *("another file's parameter", "a parameter", "no command", "out of the repository"),
    ],
)
def test_a_lock_that_was_edited_by_hand_is_found(
    trained: Project, change: Callable[[dict[str, Any]], object], text: str
) -> None:
    with_lock(trained, change)
    found = reason(trained)
    assert re.match(text, found), found


def test_a_pipeline_that_only_dvc_resolves_is_compared_as_dvc_resolves_it(trained: Project) -> None:
    first = versions.find(trained.mirror, "alpha@v1").commit
    text = (trained.mirror.read(first, "dvc.yaml") or b"").decode()
    resolved = text.replace("-m pipeline.stage train", "-m ${program} train") + "vars:\n- program: pipeline.stage\n"
    assert resolved.count("${program}") == 1
    forge(trained, {"dvc.yaml": resolved.encode()})
    assert rebuilt(trained, "alpha@v2").verdict.verdict == IDENTICAL


def test_a_lock_that_was_edited_with_its_pipeline_is_found_by_the_stage_s_event(trained: Project) -> None:
    first = versions.find(trained.mirror, "alpha@v1").commit
    pipeline = yaml12.load((trained.mirror.read(first, "dvc.yaml") or b"").decode())
    pipeline["stages"]["train"]["do"]["deps"].remove(PROGRAM)
    lock = lock_of(trained)
    md5_in("train", "deps", PROGRAM, None)(lock["stages"])
    forge(trained, {"dvc.yaml": yaml12.dump(pipeline).encode(), LOCK: yaml12.dump(lock).encode()})
    assert reason(trained) == f"dvc.lock does not have {PROGRAM} among what train@alpha read"


@pytest.mark.parametrize("minutes", ["soon", 0])
def test_a_timeout_that_is_no_time_is_found(trained: Project, minutes: object) -> None:
    params = trained.params
    params["models"]["alpha"]["timeout_minutes"] = minutes
    forge(trained, {"params.yaml": json.dumps(params).encode()})
    assert reason(trained) == (
        f"params.yaml of its commit has {minutes!r} as timeout_minutes of alpha, which is no time"
    )


def test_parameters_that_were_edited_in_the_commit_are_found(trained: Project) -> None:
    params = trained.params
    params["models"]["alpha"]["train"]["seed"] = 2
    forge(trained, {"params.yaml": json.dumps(params).encode()})
    assert reason(trained) == "train@alpha ran with another models.alpha.train than params.yaml of its commit has"


def test_a_lock_that_was_edited_with_its_event_makes_a_version_different(trained: Project) -> None:
    """Nothing contradicts it but what the stage makes."""
    first = versions.find(trained.mirror, "alpha@v1").commit
    path, lock = "lineage/alpha/train.json", trained.mirror.read(first, LOCK) or b""
    event = trained.mirror.read(first, path) or b""
    md5 = next(out["md5"] for out in lock_of(trained)["stages"]["train@alpha"]["outs"]).encode()
    forge(trained, {LOCK: lock.replace(md5, OTHER.encode()), path: event.replace(md5, OTHER.encode())})
    assert reason(trained, verdict=EQUIVALENT) == "train@alpha made other bytes: models/alpha.skops"


def test_a_file_of_another_sha256_is_another_file(trained: Project) -> None:
    def change(facts: dict[str, Any]) -> None:
        facts["outputs"][0]["files"][0]["sha256"] = "0" * 64

    with_event(trained, "train", change)
    assert reason(trained, verdict=EQUIVALENT) == "train@alpha made other bytes: models/alpha.skops"


@pytest.mark.parametrize(
    ("path", "content", "text"),
    [
        (LOCK, b"{", "dvc.lock is not YAML: .*"),
        (LOCK, None, "dvc.lock of commit [0-9a-f]{8} has no validate@alpha; .*"),
        ("dvc.yaml", b"stages: {}\n", "dvc.yaml of commit [0-9a-f]{8} has no stages"),
        ("lineage/alpha/train.json", None, "commit [0-9a-f]{8} lacks lineage/alpha/train.json: it is not a version .*"),
        ("lineage/alpha/train.json", b"{}", "the record in commit [0-9a-f]{8} is not one that Retrace wrote .*"),
        ("lineage/alpha/train.json", b"x", "the record in commit [0-9a-f]{8} is not one that Retrace wrote .*"),
        ("data/raw/events.manifest", b"x", "data/raw/events.manifest of [0-9a-f]{8}, line 1: 'x' is not 'path md5 .*"),
        (REQUIREMENTS, None, "commit [0-9a-f]{8} has no pipeline/requirements.txt, which locks the stages' .*"),
    ],
)
def test_a_commit_that_no_run_has_made_is_impossible(
    trained: Project, path: str, content: bytes | None, text: str
) -> None:
    forge(trained, {path: content})
    found = reason(trained)
    assert re.fullmatch(text, found), found


def test_a_manifest_that_is_not_what_its_pointer_names_is_found(trained: Project) -> None:
    listed = (trained.mirror.read("refs/heads/data", "data/raw/events.manifest") or b"").decode()
    forge(trained, {"data/raw/events.manifest": listed.splitlines(keepends=True)[0].encode()})
    assert re.fullmatch(
        r"data/raw/events.manifest is not what data/raw/events.dvc names \([0-9a-f]{32}.dir\)", reason(trained)
    )


def test_a_link_out_of_the_repository_is_not_followed(trained: Project, tmp_path: Path) -> None:
    """A rebuild removes what its stages will make: of a stranger's commit it may not remove anything else."""
    (tmp_path / "precious/alpha").mkdir(parents=True)
    (tmp_path / "precious/alpha/thesis.tex").touch()
    mirror = trained.mirror
    first = versions.find(mirror, "alpha@v1").commit
    link = write_blob(mirror, str(tmp_path / "precious").encode())
    index = {"GIT_INDEX_FILE": str(tmp_path / "index")}
    mirror.out("read-tree", first, environment=index)
    mirror.out("update-index", "--add", "--cacheinfo", f"120000,{link},data/features", environment=index)
    tree = mirror.out("write-tree", environment=index)
    commit = git(mirror.directory, "commit-tree", tree, "-p", first, "-m", "link")
    versions.create(mirror, "alpha", commit, "link", {})
    assert reason(trained) == "data/features/alpha is a link out of the repository"
    assert (tmp_path / "precious/alpha/thesis.tex").exists()


# Impossible, for tags


def test_a_tag_that_was_moved_is_refused_and_inherits_no_verdict(trained: Project) -> None:
    assert rebuilt(trained).verdict.verdict == IDENTICAL
    main = git(trained.root, "rev-parse", "main")
    git(trained.root, "tag", "-f", "-a", "-m", "moved", "alpha@v1", main)
    with pytest.raises(TagMoved, match="the tag alpha@v1 was moved in .*: versions are never moved"):
        run_reproduce(trained.settings, "alpha@v1", vary=False, keep=False, as_json=False)
    shutil.rmtree(trained.settings.mirror)  # a machine that has never seen it
    version = versions.find(trained.mirror, "alpha@v1")
    assert version.commit == main and verdicts.newest(trained.mirror, [version]) == {}
    assert reason(trained, "alpha@v1").startswith(f"commit {main[:8]} is not of a retrain of alpha")
    assert [verdict.verdict for verdict in verdicts.verdicts(trained.mirror, version)] == [IMPOSSIBLE]


def test_a_ref_that_names_another_version_s_tag_is_found(trained: Project) -> None:
    first = versions.find(trained.mirror, "alpha@v1")
    git(trained.root, "update-ref", "refs/tags/alpha@v2", first.tag_object)
    assert reason(trained) == (
        "the ref alpha@v2 names a tag object that says it is alpha@v1: somebody put it there by hand"
    )


# Impossible, for packages


class Index:
    """A package index with one package, whose page a test may change."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.page = folder / "simple/weather/index.html"
        self.page.parent.mkdir(parents=True)
        self.wheel = folder / "weather-1.0-py3-none-any.whl"
        with zipfile.ZipFile(self.wheel, "w") as archive:
            for name, text in (
                ("weather.py", "SUNNY = True\n"),
                ("weather-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: weather\nVersion: 1.0\n"),
                ("weather-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"),
                ("weather-1.0.dist-info/RECORD", ""),
            ):
                archive.writestr(zipfile.ZipInfo(name), text)
        handler = partial(_Quiet, directory=str(folder))
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.offer("")

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.wheel.read_bytes()).hexdigest()

    def offer(self, attributes: str) -> None:
        self.page.write_text(f'<a href="/{self.wheel.name}#sha256={self.sha256}" {attributes}>{self.wheel.name}</a>')

    def refuse(self, status: int, below: str = "/") -> None:
        """Answer so whatever is asked for below a path."""
        self.server.refusal = (below, status)  # type: ignore[attr-defined]

    def when_asked(self, action: Callable[[], None]) -> None:
        """Do something before each answer."""
        self.server.action = action  # type: ignore[attr-defined]

    def address(self, user: str = "") -> str:
        return f"http://{user}127.0.0.1:{self.server.server_port}/simple"

    def stop(self) -> None:
        self.server.shutdown()
        self.server.server_close()


class _Quiet(SimpleHTTPRequestHandler):
    def do_GET(self) -> None:
        getattr(self.server, "action", lambda: None)()
        below, status = getattr(self.server, "refusal", ("/", None))
        if status is None or not self.path.startswith(below):
            super().do_GET()
        else:
            self.send_error(status)

    def log_message(self, format: str, *arguments: Any) -> None:
        pass


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Index]:
    """The only index, on a machine that has downloaded nothing yet."""
    found = Index(tmp_path / "index")
    for name in [name for name in os.environ if name.startswith("UV_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("UV_DEFAULT_INDEX", found.address())
    monkeypatch.setenv("UV_CACHE_DIR", str(tmp_path / "uv"))
    monkeypatch.setenv("UV_NO_CONFIG", "1")
    monkeypatch.setenv("UV_HTTP_RETRIES", "0")
    yield found
    found.stop()


@pytest.fixture
def with_weather(trained: Project, index: Index) -> Project:
    """alpha@v2, whose lock names the package of the index, whose program needs it, and no environment of it yet."""
    requirements = f"weather==1.0 \\\n    --hash=sha256:{index.sha256}\n".encode()
    code = beginning(trained, "train", "import weather; assert weather.SUNNY")
    with_files(trained, {REQUIREMENTS: requirements, PROGRAM: code})
    (trained.settings.var / "environments").unlink()
    return trained


def test_a_package_that_was_yanked_is_installed_all_the_same(with_weather: Project, index: Index) -> None:
    index.offer('data-yanked="a bug"')
    assert rebuilt(with_weather, "alpha@v2").verdict.verdict == IDENTICAL
    index.stop()
    assert rebuilt(with_weather, "alpha@v2").verdict.verdict == IDENTICAL, "the environment is kept by its lock"


@pytest.mark.parametrize("variable", ["UV_DEFAULT_INDEX", "UV_INDEX_URL"])
@pytest.mark.parametrize("gone", ["page", "wheel"])
def test_a_package_that_the_index_no_longer_serves_is_named(
    with_weather: Project, index: Index, monkeypatch: pytest.MonkeyPatch, variable: str, gone: str
) -> None:
    monkeypatch.delenv("UV_DEFAULT_INDEX")
    monkeypatch.setenv(variable, index.address("ann:hunter2@"))
    (index.page if gone == "page" else index.wheel).unlink()
    found = reason(with_weather)
    assert "weather" in found and "pipeline/requirements.txt" in found
    assert "hunter2" not in found


def test_a_package_of_other_bytes_is_refused(with_weather: Project, index: Index) -> None:
    with zipfile.ZipFile(index.wheel, "a") as archive:
        archive.writestr("more.py", "")
    index.offer("")
    found = reason(with_weather)
    assert "weather" in found and "ash" in found


@pytest.mark.parametrize("status", ["down", "nowhere", 401, 403, 407, 408, 429, 503], ids=str)
def test_an_index_that_is_down_or_refuses_is_no_verdict(
    with_weather: Project, index: Index, monkeypatch: pytest.MonkeyPatch, status: int | str
) -> None:
    if status == "down":
        index.stop()
    elif status == "nowhere":
        monkeypatch.setenv("UV_DEFAULT_INDEX", "http://nowhere.invalid/simple")
    else:
        index.refuse(int(status))
    with pytest.raises(IndexUnavailable, match="^the package index did not answer"):
        rebuilt(with_weather, "alpha@v2")
    assert without_verdict(with_weather)


def pinned(*pins: str, sha256: str = "0" * 64) -> EnvironmentLock:
    return EnvironmentLock("3.11", "".join(f"{pin} --hash=sha256:{sha256}\n" for pin in pins).encode())


@pytest.mark.parametrize("status", [401, 403, 404, 407, 408, 410, 429, 451, 503])
def test_only_a_file_that_the_index_says_it_does_not_have_is_gone(tmp_path: Path, index: Index, status: int) -> None:
    index.refuse(status, below=f"/{index.wheel.name}")
    with pytest.raises(EnvironmentFailed if status in (404, 410, 451) else IndexUnavailable, match="weather"):
        environment.ensure(pinned("weather==1.0", sha256=index.sha256), tmp_path / "environments")


@pytest.mark.parametrize(
    "pin", ["snowflake-connector-python==3.0", "foo==2.401", "error-sending-request==1.429", "server-error==5.503"]
)
def test_a_lost_package_that_is_called_like_an_outage_is_lost(tmp_path: Path, index: Index, pin: str) -> None:
    with pytest.raises(EnvironmentFailed, match=f"{pin}, we can conclude"):
        environment.ensure(pinned(pin), tmp_path / "environments")


def test_a_machine_that_may_not_ask_the_index_says_nothing_of_a_package(
    tmp_path: Path, index: Index, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("UV_OFFLINE", "1")
    with pytest.raises(IndexUnavailable, match="network was disabled"):
        environment.ensure(pinned("weather==1.0", sha256=index.sha256), tmp_path / "environments")


def test_an_installer_that_is_killed_is_no_verdict(with_weather: Project, index: Index) -> None:
    def kill() -> None:
        for child in psutil.Process().children():
            if "sync" in child.cmdline():
                child.kill()

    index.when_asked(kill)
    with pytest.raises(InstallerKilled, match="^uv was killed by signal 9 while the stages' environment was made; run"):
        rebuilt(with_weather, "alpha@v2")
    assert without_verdict(with_weather)


def test_a_python_that_is_not_installed_is_named(trained: Project) -> None:
    with_files(trained, {PYTHON_VERSION: b"3.99\n"})
    assert reason(trained) == "this commit's stages need Python 3.99, which is not installed; install it"


# What says nothing about a version


def test_a_stage_that_takes_too_long_is_no_verdict(trained: Project) -> None:
    params = trained.params
    params["models"]["alpha"]["timeout_minutes"] = 0.05
    code = beginning(trained, "train", "time.sleep(600)")
    first = versions.find(trained.mirror, "alpha@v1").commit
    lock = (trained.mirror.read(first, LOCK) or b"").replace(
        md5_of((trained.root / PROGRAM).read_bytes()).encode(), md5_of(code).encode()
    )
    forge(trained, {PROGRAM: code, LOCK: lock, "params.yaml": json.dumps(params).encode()})
    with pytest.raises(StageTimeout, match="^train@alpha ran longer in its rebuild than the 0.05 minutes of its model"):
        rebuilt(trained, "alpha@v2")
    assert without_verdict(trained)


@contextmanager
def full_at(step: str, place: Path) -> Iterator[Callable[[str, str], None]]:
    """What follows a rebuild and fills the disk when it comes to a step."""

    def follow(name: str, text: str) -> None:
        if name == step and not text:
            with open(place / "ballast", "wb") as ballast, pytest.raises(OSError):
                while True:
                    ballast.write(bytes(1 << 16))
                    ballast.flush()

    yield follow


@pytest.mark.parametrize("step", ["raw data", "validate", "train"])
def test_a_full_disk_is_no_verdict_and_leaves_nothing(trained: Project, step: str) -> None:
    with (
        small_disk(trained.settings.workspaces, 8) as place,
        full_at(step, place) as follow,
    ):
        with pytest.raises(DiskFull, match="^no space left on this machine"):
            reproduce(trained.settings, versions.find(trained.mirror, "alpha@v1"), trained.mirror, follow)
        assert [path.name for path in place.iterdir()] == ["ballast"]
    assert without_verdict(trained, "alpha@v1")


def test_a_disk_that_is_full_while_the_environment_is_made_is_no_verdict(trained: Project) -> None:
    (trained.settings.var / "environments").unlink()
    with small_disk(trained.settings.environments, 1) as place:
        (place / "ballast").write_bytes(bytes((1 << 20) - 24 * 1024))  # there is room for a lock, not for a Python
        with pytest.raises(DiskFull, match="^no space left on this machine while the stages' environment was made"):
            rebuilt(trained)
    assert without_verdict(trained, "alpha@v1")


# A rebuild that is ended

WAITS = 'write("models/begun", ""); time.sleep(600)'
RUN = """
import sys
from pathlib import Path
from retrace import versions
from retrace.config import Settings
from retrace.git import Mirror
from retrace.reproduce import reproduce

settings = Settings.load(Path.cwd())
mirror = Mirror.open(settings.mirror, settings.origin)
reproduce(settings, versions.find(mirror, "alpha@v2"), mirror, lambda *_: None, kind=sys.argv[1])
"""


@contextmanager
def begun(project: Project, *command: str) -> Iterator[subprocess.Popen[str]]:
    """A rebuild in a process of its own that has come to a stage that waits."""
    with_program(project, "train", WAITS)
    variables = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        [sys.executable, "-P", *command],
        cwd=project.root,
        env=variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        until(lambda: bool(list(project.settings.workspaces.glob("*.site/views/train@alpha/models/begun"))), "a stage")
        assert [line for line in processes_in(project.root) if "pipeline.stage train alpha" in line]
        yield process
    finally:
        process.kill()
        process.communicate()


def until(condition: Callable[[], bool], what: str) -> None:
    """Wait for something that is sure to come, or fail."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, f"waited in vain for {what}"
        time.sleep(0.02)


def test_a_rebuild_that_is_interrupted_leaves_nothing(trained: Project) -> None:
    with begun(trained, "-c", CLI, "reproduce", "alpha@v2") as process:
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=PATIENCE)
    assert (process.returncode, err.strip()) == (130, "stopped"), out
    assert nothing_left(trained)
    assert without_verdict(trained)


@pytest.mark.parametrize("kind", KINDS)
def test_a_rebuild_that_is_killed_takes_its_stage_with_it(trained: Project, kind: str) -> None:
    with begun(trained, "-c", RUN, kind) as process:
        process.kill()
        process.wait()
        until(lambda: not processes_in(trained.root), "the end of the stage")
    assert list(trained.settings.workspaces.glob("*"))
    sweep(trained.settings)
    assert not list(trained.settings.workspaces.glob("*"))
    assert without_verdict(trained)
    assert rebuilt(trained).verdict.verdict == IDENTICAL


def test_verdicts_have_exit_codes_of_their_own(trained: Project) -> None:
    assert EXIT_CODES == {IDENTICAL: 0, EQUIVALENT: 3, DIFFERENT: 4, IMPOSSIBLE: 5}
    with_program(trained, "train", "sys.exit(1)")
    stored(trained, partition(trained, "2013-01")[1]).unlink()
    assert run_reproduce(trained.settings, "alpha@v2", vary=False, keep=False, as_json=True) == 5
