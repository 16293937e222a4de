"""One stage of a pipeline in a workspace: preflight, run, checks, push."""

from __future__ import annotations

import os
import re
import shutil
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path, PurePath
from typing import Any

from retrace import yaml12
from retrace.child.report import Failure, Reporter, disk_full
from retrace.child.store import Store
from retrace.hashing import FileHash, hash_file
from retrace.statistics import StatisticsFailed, kept

Snapshot = dict[str, tuple[int, ...]]


def _snapshot() -> Snapshot:
    """Every file of the workspace with what changes when it is written: size, inode, modification and change time."""
    seen: Snapshot = {}
    for parent, folders, names in os.walk("."):
        if parent == ".":
            folders[:] = [name for name in folders if name != ".git"]
        if parent == "./.dvc":
            folders[:] = [name for name in folders if name not in ("tmp", "cache")]
        for name in names:
            path = os.path.join(parent, name)[2:]
            info = os.lstat(path)
            seen[path] = (info.st_size, info.st_ino, info.st_mtime_ns, info.st_ctime_ns)
    return seen


def _linked_alone(path: str, before: Snapshot, after: Snapshot, hashes: dict[str, FileHash]) -> bool:
    """Whether nothing but the time of the inode changed: an input is a hard link to this machine's cache where the file
    system has no clones, and any other job that links the same object, or drops its link, changes that time."""
    known = hashes.get(path)
    if known is None or path not in before or path not in after or before[path][:-1] != after[path][:-1]:
        return False
    return hash_file(Path(path)).sha256 == known.sha256


def _below(path: str, roots: list[str]) -> bool:
    return any(path == root or path.startswith(f"{root}/") for root in roots)


@contextmanager
def _stage_environment(variables: dict[str, str]) -> Iterator[None]:
    """The stage sees these variables alone: no credential that DVC needs reaches the domain's code."""
    before = dict(os.environ)
    mask = os.umask(0o022)
    os.environ.clear()
    os.environ.update(variables)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)
        os.umask(mask)


class StageRun:
    """One stage of a pipeline in this workspace, from preflight to push."""

    def __init__(self, repo: Any, store: Store, request: dict[str, Any], reporter: Reporter) -> None:
        self.repo, self.store, self.request, self.reporter = repo, store, request, reporter
        # DVC remembers what its runs made, so that a try whose push failed need not run again. It does so per run here:
        # the shared cache also knows what `dvc repro` made in somebody's working copy, in whatever environment.
        repo.stage_cache.cache_dir = request["run_cache"]
        self.stage = repo.stage.get_target(request["address"])
        self.dependencies = [
            dep for dep in self.stage.deps if dep.protocol == "local" and dep.def_path != "params.yaml"
        ]
        self.parameters = [dep for dep in self.stage.deps if hasattr(dep, "params")]
        self.outputs: list[str] = [out.def_path for out in self.stage.outs]

    def produced(self) -> dict[str, str]:
        """Path -> md5 of what the dependencies are, according to who produces it (a stage of the lock, a .dvc file)."""
        wanted = {}
        for dependency in self.dependencies:
            owners = self._owners(dependency)
            if not owners and not os.path.exists(dependency.def_path):
                raise Failure("dependency-missing", path=dependency.def_path)
            for owner in owners:
                if owner.hash_info.value is None:
                    raise Failure("dependency-missing", path=dependency.def_path)
                wanted[os.path.relpath(owner.fs_path, self.repo.root_dir)] = owner.hash_info.value
        return wanted

    def _owners(self, dependency: Any) -> list[Any]:
        """The outputs that a dependency is, lies in or holds; none for what a checkout brought."""
        from dvc.exceptions import OutputNotFoundError

        if _in_git(dependency):
            return []
        try:
            return list(self.repo.find_outs_by_path(dependency.fs_path, recursive=True, strict=False))
        except OutputNotFoundError:
            return []

    def parts(self, wanted: dict[str, str]) -> dict[str, str]:
        """Of what is wanted, that which is no dependency itself but lies in one or holds one."""
        whole = {dependency.def_path for dependency in self.dependencies}
        return {path: oid for path, oid in wanted.items() if path not in whole}

    def current(self, wanted: dict[str, str]) -> bool:
        """Whether the lock's entry says all that would be found now, and every output can be had."""
        if self.stage.cmd_changed or any(parameter.status() for parameter in self.parameters):
            return False
        for dependency in self.dependencies:
            expected = wanted.get(dependency.def_path)
            if expected is None and dependency.status():
                return False
            if expected is not None and dependency.hash_info.value != expected:
                return False
        kept = [out for out in self.stage.outs if not out.use_cache]
        if any(out.hash_info.value is None for out in self.stage.outs) or any(out.status() for out in kept):
            return False
        return self.store.available(self.made())

    def made(self) -> dict[str, str]:
        """Cached output path -> md5 in the lock."""
        return {out.def_path: out.hash_info.value for out in self.stage.outs if out.use_cache}

    def run(self) -> dict[str, Any]:
        self.reporter.phase("check")
        wanted = self.produced()
        self.store.refuse_forgotten(wanted)
        self.store.pull(self.parts(wanted))  # the hash of a dependency of which these are parts needs the files
        if self.current(wanted):
            self.store.push(self.request["address"], self.made(), remade=True)
            return {"skipped": True}
        self.reporter.phase("pull")
        files = self.store.pull(wanted)
        hashes = self.store.verify(files, self.request["sha256"])
        before = _snapshot()
        self.reporter.phase("run")
        started = time.time()
        self.execute()
        if self.store.discard_rotten(self.store.objects(self.made())):
            self.execute(force=True)  # DVC had taken a rotten object of its cache for the result
        ended = time.time()
        entry = yaml12.load(Path("dvc.lock").read_text())["stages"][self.request["address"]]
        with ThreadPoolExecutor(1) as beside:
            described = beside.submit(self.statistics, entry)
            self.reporter.phase("check outputs")
            self.check(before, wanted, hashes, entry)
            record = self.describe(entry)
            self.reporter.phase("push")
            self.store.push(self.request["address"], self.made(), remade=True)
            statistics = described.result()
        inputs = [{"path": name, **hashes[name].as_dict()} for name in sorted(hashes)]
        code = {name for dep in self.dependencies for name in _files(dep.def_path)} - hashes.keys()
        inputs += [{"path": name, **hash_file(Path(name)).as_dict()} for name in sorted(code)]
        told = {"skipped": False, "started": started, "ended": ended, "inputs": inputs, "statistics": statistics}
        return told | record

    def execute(self, force: bool = False) -> None:
        from dvc.stage.exceptions import StageCmdFailedError

        print(f"--- {self.request['address']}", flush=True)
        try:
            with _stage_environment(self.request["environment"]):
                self.repo.reproduce(self.request["address"], single_item=True, run_cache=not force, force=force)
        except Exception as error:
            cause: BaseException | None = error
            while cause is not None and not isinstance(cause, StageCmdFailedError):
                cause = cause.__cause__
            if cause is None:
                raise self._explained(error) from error
            code = re.search(r"exited with (-?\d+)$", str(cause))
            raise Failure("stage-failed", code=code.group(1) if code else "1") from error
        self.stage = self.repo.stage.get_target(self.request["address"])

    def _explained(self, error: Exception) -> Exception:
        from dvc.output import OutputDoesNotExistError

        cause: BaseException | None = error
        while cause is not None:
            if isinstance(cause, OutputDoesNotExistError):
                missing = [path for path in self.outputs if not os.path.exists(path)]
                return Failure("output-missing", path=(missing or self.outputs)[0])
            cause = cause.__cause__
        return disk_full(error) or error

    def check(
        self, before: Snapshot, wanted: dict[str, str], hashes: dict[str, FileHash], entry: dict[str, Any]
    ) -> None:
        """Refuse what the stage may not have done; a second try must not take that from the run's cache unchecked."""
        try:
            self.refuse_side_effects(before, hashes)
            self.refuse_changed_lock(wanted, entry)
        except Failure:
            shutil.rmtree(self.request["run_cache"], ignore_errors=True)
            raise

    def refuse_side_effects(self, before: Snapshot, hashes: dict[str, FileHash]) -> None:
        """A stage may write its outputs and nothing else in the workspace."""
        allowed = [*self.outputs, "dvc.lock"]
        after = _snapshot()
        changed = sorted(
            path
            for path in before.keys() | after.keys()
            if before.get(path) != after.get(path)
            and not _below(path, allowed)
            and not _linked_alone(path, before, after, hashes)
        )
        if not changed:
            return
        inputs = [dep.def_path for dep in self.stage.deps]
        edited = [path for path in changed if _below(path, inputs)]
        self.store.discard_edited({path: hashes[path].md5 for path in edited if path in hashes})
        raise Failure("input-edited" if edited else "undeclared-write", path=(edited or changed)[0])

    def refuse_changed_lock(self, wanted: dict[str, str], entry: dict[str, Any]) -> None:
        for dependency in entry.get("deps", ()):
            expected = wanted.get(dependency["path"])
            if expected is not None and dependency["md5"] != expected:
                raise Failure("input-edited", path=dependency["path"])

    def describe(self, entry: dict[str, Any]) -> dict[str, Any]:
        """What was made: the lock's entry, and path, md5, sha256 and size of every output file."""
        outputs = []
        for out in entry["outs"]:
            files = [{"path": name, **hash_file(Path(name)).as_dict()} for name in _files(out["path"])]
            outputs.append({"path": out["path"], "md5": out["md5"], "files": files})
        uncached = [out.def_path for out in self.stage.outs if not out.use_cache]
        return {"lock": entry, "outputs": outputs, "uncached": uncached}

    def statistics(self, entry: dict[str, Any]) -> dict[str, dict[str, Any]]:
        """Output path -> what is in its columns, for outputs that are tables. No stage fails for want of them."""
        store, found = Path(self.request["statistics"]), {}
        for out in entry["outs"]:
            if not _may_be_table(out["path"]):
                continue
            try:
                columns = kept(store, out["md5"], Path.cwd(), out["path"])
            except StatisticsFailed as failure:
                print(f"--- no statistics of {out['path']}: {failure}", flush=True)
                continue
            if columns is not None:
                found[out["path"]] = columns.as_dict()
        return found


def _may_be_table(path: str) -> bool:
    """A Parquet file, or a folder, which may hold some: told by the name, since looking costs slow imports."""
    return PurePath(path).suffix in ("", ".parquet")


def _files(path: str) -> list[str]:
    """A file itself, or every file below a folder."""
    root = Path(path)
    return sorted(name.as_posix() for name in root.rglob("*") if name.is_file()) if root.is_dir() else [path]


def _in_git(dependency: Any) -> bool:
    """Code is in git: a path that a checkout brought and that no output owns."""
    return os.path.isfile(dependency.def_path)
