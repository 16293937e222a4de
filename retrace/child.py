"""DVC's work on one workspace, in a process of its own that can be killed whole.

Started by `retrace.process` as `python -m retrace.child` in a session of its own, with the workspace as its working
directory. It reads one request from standard input, says what it is doing in JSON lines on the descriptor that the
request names, and ends. Standard input stays open as long as the parent lives: when it closes, everything that was
started here is killed, so a stage never outlives a task that was killed with -9.
"""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO
from urllib.parse import urlsplit

from retrace.hashing import FileHash, hash_file

# A server that hangs is given up after three questions of three seconds each.
_PROBE_TIMEOUT = 3.0
_PROBE_FAILURES = 3
_PROBE_PAUSE = 2.0
_PROBE_PAUSE_AFTER_FAILURE = 1.0


class Failure(Exception):
    """What the parent is to raise: a kind that it knows, and the facts for its message."""

    def __init__(self, kind: str, **facts: str) -> None:
        super().__init__(kind)
        self.report = {"error": kind, **facts}


class Reporter:
    """The channel back to the parent: one JSON object a line."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._lock = threading.Lock()

    def say(self, message: dict[str, Any]) -> None:
        with self._lock:
            self._stream.write(json.dumps(message) + "\n")
            self._stream.flush()

    def phase(self, name: str) -> None:
        self.say({"phase": name})


def _die_with_parent() -> None:
    sys.stdin.buffer.read()
    os.killpg(0, signal.SIGKILL)


def _answers(url: str) -> bool:
    """Whether anything at all answers HTTP at the address: an error status is a sign of life, too."""
    parts = urlsplit(url)
    kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    connection = kind(parts.hostname or "", parts.port, timeout=_PROBE_TIMEOUT)
    try:
        connection.request("HEAD", "/")
        connection.getresponse()
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()
    return True


@contextmanager
def _watched(endpoint: str | None, shown: str, reporter: Reporter) -> Iterator[None]:
    """End this process when the remote's server stops answering, instead of sitting through every retry."""
    if endpoint is None:
        yield
        return
    done = threading.Event()

    def watch() -> None:
        failures = 0
        while not done.is_set():
            failures = 0 if _answers(endpoint) else failures + 1
            if failures >= _PROBE_FAILURES and not done.is_set():
                reporter.say({"error": "remote-unavailable", "remote": shown, "reason": "the server does not answer"})
                os.killpg(0, signal.SIGKILL)
            done.wait(_PROBE_PAUSE_AFTER_FAILURE if failures else _PROBE_PAUSE)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()


class Store:
    """The objects of a DVC project: what a path is made of, and whether cache and remote have it."""

    def __init__(self, repo: Any, request: dict[str, Any], reporter: Reporter) -> None:
        self.repo = repo
        self.shown: str = request["remote"]["shown"]
        self.endpoint: str | None = request["remote"]["endpoint"]
        self.reporter = reporter
        self.opened = time.time()
        self.cache = repo.cache.local
        self.remote = repo.cloud.get_remote_odb()

    @contextmanager
    def reached(self) -> Iterator[None]:
        """Turn what a remote's client raises into one failure with a reason."""
        with _watched(self.endpoint, self.shown, self.reporter):
            try:
                yield
            except Failure:
                raise
            except Exception as error:
                raise self._explain(error) from error

    def _explain(self, error: BaseException) -> Failure:
        chain: list[BaseException] = []
        current: BaseException | None = error
        while current is not None and current not in chain:
            chain.append(current)
            current = current.__cause__ or current.__context__
        text = " ".join(str(link) for link in chain)
        names = {kind.__name__ for link in chain for kind in type(link).__mro__}
        reason = " ".join(str(chain[-1]).split())[:300]
        if any(getattr(link, "errno", None) == 28 for link in chain):
            return Failure("disk-full", reason=reason)
        if names & {"HTTPClientError", "ConnectionError", "TimeoutError", "EndpointConnectionError", "gaierror"}:
            return Failure("remote-unavailable", remote=self.shown, reason=reason)
        if "PermissionError" in names or "NoCredentialsError" in names or "Forbidden" in text or "(403)" in text:
            return Failure("remote-refused", remote=self.shown, reason=reason)
        return Failure("remote-failed", remote=self.shown, reason=f"{type(error).__name__}: {reason}")

    def directory(self, path: str, oid: str) -> list[tuple[str, str]]:
        """(relative path, md5) of each file of a directory object, from the cache or the remote."""
        place = Path(self.cache.oid_to_path(oid))
        content = place.read_bytes() if place.exists() else b""
        if not _is_directory(content, oid):
            content = self._fetch_directory(path, oid)
            place.unlink(missing_ok=True)
            self.cache.add_bytes(oid, content)
        return [(str(entry["relpath"]), str(entry["md5"])) for entry in json.loads(content)]

    def _fetch_directory(self, path: str, oid: str) -> bytes:
        try:
            content: bytes = self.remote.fs.cat_file(self.remote.oid_to_path(oid))
        except FileNotFoundError:
            raise Failure("object-lost", remote=self.shown, path=path, md5=oid, count="1") from None
        if not _is_directory(content, oid):
            raise Failure("object-corrupt", where=self.shown, path=path, md5=oid)
        return content

    def contents(self, path: str, oid: str) -> dict[str, str]:
        """File path -> md5 for a tracked file or directory."""
        if not oid.endswith(".dir"):
            return {path: oid}
        return {f"{path}/{name}": md5 for name, md5 in self.directory(path, oid)}

    def absent(self, odb: Any, oids: set[str]) -> set[str]:
        """Which of the objects a cache or remote does not have; asks afresh."""
        forget = getattr(getattr(odb.fs, "fs", None), "invalidate_cache", None)
        if forget is not None:
            forget()
        return oids - set(odb.oids_exist(list(oids))) if oids else set()

    def pull(self, wanted: dict[str, str]) -> dict[str, str]:
        """Bring paths (path -> md5) into the workspace; file path -> md5 of all that was brought."""
        if not wanted:  # DVC takes no paths for all paths
            return {}
        with self.reached():
            missing_directories = self.absent(self.cache, {oid for oid in wanted.values() if oid.endswith(".dir")})
            lost = self.absent(self.remote, missing_directories)
            self._refuse_lost(lost, wanted)
            files = {name: md5 for path, oid in wanted.items() for name, md5 in self.contents(path, oid).items()}
            missing = self.absent(self.cache, set(files.values()))
            self._refuse_lost(self.absent(self.remote, missing), files)
            if missing:
                try:
                    self.repo.fetch(list(wanted))
                except Exception as error:
                    self._refuse_corrupt(missing, files, error)
                    raise
                self._refuse_corrupt(missing, files, None)
        self.repo.checkout(list(wanted), force=True)
        return files

    def _refuse_lost(self, lost: set[str], files: dict[str, str]) -> None:
        if lost:
            name, md5 = next((name, md5) for name, md5 in sorted(files.items()) if md5 in lost)
            raise Failure("object-lost", remote=self.shown, path=name, md5=md5, count=str(len(lost)))

    def _refuse_corrupt(self, fetched: set[str], files: dict[str, str], error: Exception | None) -> None:
        """DVC removes a fetched object whose md5 is wrong and does not say which: what is still absent was corrupt."""
        still = self.absent(self.cache, fetched)
        if still and (error is None or not self.absent(self.remote, still)):
            unreachable = error is not None and self._explain(error).report["error"] != "remote-failed"
            if not unreachable:
                name, md5 = next((name, md5) for name, md5 in sorted(files.items()) if md5 in still)
                raise Failure("object-corrupt", where=self.shown, path=name, md5=md5)

    def verify(self, files: dict[str, str], sha256: dict[str, str]) -> dict[str, FileHash]:
        """Hash every file that was brought and compare it with the record; a rotten cache object is replaced once."""
        found = {}
        for name, md5 in files.items():
            actual = hash_file(Path(name))
            if actual.md5 != md5 or actual.sha256 != sha256.get(name, actual.sha256):
                actual = self._again(name, md5, sha256.get(name))
            found[name] = actual
        return found

    def _again(self, name: str, md5: str, sha256: str | None) -> FileHash:
        with self.reached():
            if self.absent(self.remote, {md5}):
                raise Failure("object-corrupt", where="this machine's cache", path=name, md5=md5)
            os.unlink(self.cache.oid_to_path(md5))
            os.unlink(name)
            with self.remote.fs.open(self.remote.oid_to_path(md5), "rb") as source, open(name, "wb") as target:
                while block := source.read(1 << 20):
                    target.write(block)
        actual = hash_file(Path(name))
        if actual.md5 != md5 or (sha256 is not None and actual.sha256 != sha256):
            raise Failure("object-corrupt", where=self.shown, path=name, md5=md5)
        return actual

    def push(self, address: str, made: dict[str, str]) -> None:
        """Push what a stage or a .dvc file tracks and make sure that the remote has every single object."""
        with self.reached():
            files = {name: md5 for path, oid in made.items() for name, md5 in self.contents(path, oid).items()}
            oids = {*files.values(), *made.values()}
            absent = self.absent(self.remote, oids)
            if not absent:
                return
            self._refuse_lost(self.absent(self.cache, absent), {**files, **made})
            for md5 in self.discard_rotten(absent):
                name = next(name for name, oid in {**files, **made}.items() if oid == md5)
                raise Failure("object-corrupt", where="this machine's cache", path=name, md5=md5)
            self.repo.push([address])
            # DVC takes a directory whose .dir object is there for complete.
            for oid in self.absent(self.remote, set(files.values())):
                self.remote.add(self.cache.oid_to_path(oid), self.cache.fs, oid)
            self._refuse_lost(self.absent(self.remote, oids), {**files, **made})

    def available(self, made: dict[str, str]) -> bool:
        """Whether every object of these outputs is in the cache or the remote."""
        with self.reached():
            absent = self.absent(self.cache, {oid for oid in made.values() if oid.endswith(".dir")})
            if self.absent(self.remote, absent):
                return False
            only_here = self.absent(self.remote, self.objects(made))
            return not self.absent(self.cache, only_here) and not self.discard_rotten(only_here)

    def objects(self, made: dict[str, str]) -> set[str]:
        """The md5s of all that these outputs are made of."""
        return {*made.values(), *(md5 for path, oid in made.items() for md5 in self.contents(path, oid).values())}

    def discard_rotten(self, oids: set[str]) -> set[str]:
        """Remove those objects from the cache whose bytes are not what their name says, and return them.

        DVC trusts an object that is read-only. What this process has written itself need not be hashed again.
        """
        rotten = set()
        for oid in oids - self.absent(self.cache, oids):
            place = Path(self.cache.oid_to_path(oid))
            if place.stat().st_mtime < self.opened and hash_file(place).md5 != oid.removesuffix(".dir"):
                place.unlink()
                rotten.add(oid)
        return rotten


def _is_directory(content: bytes, oid: str) -> bool:
    return f"{hashlib.md5(content, usedforsecurity=False).hexdigest()}.dir" == oid


def _snapshot() -> dict[str, tuple[int, ...]]:
    """Every file of the workspace with what changes when it is written: size, inode, modification and change time."""
    seen: dict[str, tuple[int, ...]] = {}
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
    """One stage of a pipeline in this workspace, from preflight to push (DESIGN section 5)."""

    def __init__(self, repo: Any, store: Store, request: dict[str, Any], reporter: Reporter) -> None:
        self.repo, self.store, self.request, self.reporter = repo, store, request, reporter
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
        self.store.pull(self.parts(wanted))  # the hash of a dependency of which these are parts needs the files
        if self.current(wanted):
            self.store.push(self.request["address"], self.made())
            return {"skipped": True}
        self.reporter.phase("pull")
        files = self.store.pull(wanted)
        hashes = self.store.verify(files, self.request["sha256"])
        before = _snapshot()
        self.reporter.phase("run")
        started = time.time()
        self.execute()
        if self.store.discard_rotten(self.store.objects(self.made())):
            self.execute(force=True, run_cache=False)  # DVC had taken a rotten object of its cache for the result
        ended = time.time()
        self.reporter.phase("check outputs")
        self.refuse_side_effects(before)
        record = self.describe()
        self.refuse_changed_lock(wanted, record["lock"])
        self.reporter.phase("push")
        self.store.push(self.request["address"], self.made())
        inputs = [{"path": name, **hashes[name].as_dict()} for name in sorted(hashes)]
        code = {name for dep in self.dependencies for name in _files(dep.def_path)} - hashes.keys()
        inputs += [{"path": name, **hash_file(Path(name)).as_dict()} for name in sorted(code)]
        return {"skipped": False, "started": started, "ended": ended, "inputs": inputs, **record}

    def execute(self, **options: bool) -> None:
        from dvc.stage.exceptions import StageCmdFailedError

        print(f"--- {self.request['address']}", flush=True)
        try:
            with _stage_environment(self.request["environment"]):
                self.repo.reproduce(self.request["address"], single_item=True, **options)
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
        return _disk_full(error) or error

    def refuse_side_effects(self, before: dict[str, tuple[int, ...]]) -> None:
        """A stage may write its outputs and nothing else in the workspace."""
        allowed = [*self.outputs, "dvc.lock"]
        after = _snapshot()
        changed = sorted(
            path
            for path in before.keys() | after.keys()
            if before.get(path) != after.get(path) and not _below(path, allowed)
        )
        if not changed:
            return
        inputs = [dep.def_path for dep in self.stage.deps]
        edited = [path for path in changed if _below(path, inputs)]
        raise Failure("input-edited" if edited else "undeclared-write", path=(edited or changed)[0])

    def refuse_changed_lock(self, wanted: dict[str, str], entry: dict[str, Any]) -> None:
        for dependency in entry.get("deps", ()):
            expected = wanted.get(dependency["path"])
            if expected is not None and dependency["md5"] != expected:
                raise Failure("input-edited", path=dependency["path"])

    def describe(self) -> dict[str, Any]:
        """What was made: the lock's entry, and path, md5, sha256 and size of every output file."""
        from ruamel.yaml import YAML

        entry = YAML(typ="safe").load(Path("dvc.lock").read_text())["stages"][self.request["address"]]
        outputs = []
        for out in entry["outs"]:
            files = [{"path": name, **hash_file(Path(name)).as_dict()} for name in _files(out["path"])]
            outputs.append({"path": out["path"], "md5": out["md5"], "files": files})
        uncached = [out.def_path for out in self.stage.outs if not out.use_cache]
        return {"lock": entry, "outputs": outputs, "uncached": uncached}


def _files(path: str) -> list[str]:
    """A file itself, or every file below a folder."""
    root = Path(path)
    return sorted(name.as_posix() for name in root.rglob("*") if name.is_file()) if root.is_dir() else [path]


def _in_git(dependency: Any) -> bool:
    """Code is in git: a path that a checkout brought and that no output owns."""
    return os.path.isfile(dependency.def_path)


def _disk_full(error: BaseException | None) -> Failure | None:
    while error is not None:
        if getattr(error, "errno", None) == 28:
            return Failure("disk-full", reason=str(error))
        error = error.__cause__ or error.__context__
    return None


def _run_stage(repo: Any, store: Store, request: dict[str, Any], reporter: Reporter) -> dict[str, Any]:
    return StageRun(repo, store, request, reporter).run()


def _add_partitions(repo: Any, store: Store, request: dict[str, Any], reporter: Reporter) -> dict[str, Any]:
    """Add new files to tracked directories of which the workspace has only those files, and push."""
    for directory, paths in sorted(request["add"].items()):
        pointer = Path(f"{directory}.dvc")
        if pointer.exists():
            with store.reached():
                store.directory(directory, repo.find_outs_by_path(directory)[0].hash_info.value)
        reporter.phase(f"add {directory}")
        repo.add(paths if pointer.exists() else [directory])
    pointers = {}
    for directory in sorted(request["add"]):
        reporter.phase(f"push {directory}")
        store.push(f"{directory}.dvc", {directory: repo.find_outs_by_path(directory)[0].hash_info.value})
        pointers[f"{directory}.dvc"] = Path(f"{directory}.dvc").read_text()
    return {"pointers": pointers}


def _bring(repo: Any, store: Store, request: dict[str, Any], reporter: Reporter) -> dict[str, Any]:
    """Bring tracked paths into a checkout and verify each file against the record."""
    reporter.phase("pull")
    wanted = {}
    for path in request["paths"]:
        wanted[path] = repo.find_outs_by_path(path)[0].hash_info.value
    store.verify(store.pull(wanted), request["sha256"])
    return {"paths": sorted(wanted)}


_OPERATIONS = {"stage": _run_stage, "add": _add_partitions, "bring": _bring}


def _tame_s3_client() -> None:
    """One retry each for the two layers that retry by themselves; Airflow's retry is the one that is seen."""
    os.environ.setdefault("AWS_MAX_ATTEMPTS", "2")
    if "s3fs" in sys.modules:
        sys.modules["s3fs"].S3FileSystem.retries = 2


def _note_partial_copies() -> list[str]:
    """DVC leaves a half-made copy in the cache when the disk is full: note the names that it gives to such files."""
    from dvc_objects.fs import local, utils

    names: list[str] = []
    make_name = utils.tmp_fname

    def noted(prefix: str = "") -> str:
        name: str = make_name(prefix)
        names.append(os.path.basename(name))
        return name

    utils.tmp_fname = local.tmp_fname = noted  # type: ignore[attr-defined]
    return names


def _remove_partial_copies(repo: Any, names: list[str]) -> None:
    for path in Path(repo.cache.local.path).glob("*/*.tmp"):
        if path.name in names:
            path.unlink(missing_ok=True)


def main() -> None:
    request = json.loads(sys.stdin.buffer.readline())
    reporter = Reporter(os.fdopen(request["report_to"], "w"))
    threading.Thread(target=_die_with_parent, daemon=True).start()
    try:
        from dvc.repo import Repo

        if request["remote"]["endpoint"] is not None:
            import s3fs  # noqa: F401
        _tame_s3_client()
        repo = Repo(".")
        repo.scm_context.quiet = True
        partial_copies = _note_partial_copies()
        store = Store(repo, request, reporter)
        try:
            result = _OPERATIONS[request["operation"]](repo, store, request, reporter)
        except Exception:
            _remove_partial_copies(repo, partial_copies)
            raise
        reporter.say({"done": result})
    except Failure as failure:
        reporter.say(failure.report)
    except Exception as error:
        failed = _disk_full(error)
        if failed is None:
            reporter.say({"error": "unexpected", "reason": f"{type(error).__name__}: {' '.join(str(error).split())}"})
            raise
        reporter.say(failed.report)


if __name__ == "__main__":
    main()
