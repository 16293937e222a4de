"""The objects of a DVC project: what a path is made of, whether cache and remote have it, and whether it is sound."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from retrace.child.remote import explain, watched
from retrace.child.report import Failure, Reporter
from retrace.hashing import FileHash, hash_file, is_directory_object


class Store:
    """The objects of a DVC project: what a path is made of, and whether cache and remote have it."""

    def __init__(self, repo: Any, request: dict[str, Any], reporter: Reporter) -> None:
        self.repo = repo
        self.shown: str = request["remote"]["shown"]
        self.endpoint: str | None = request["remote"]["endpoint"]
        self.forgotten: dict[str, str] = request["forgotten"]
        self.reporter = reporter
        self.opened = time.time()
        self.cache = repo.cache.local
        self.remote = repo.cloud.get_remote_odb()

    @contextmanager
    def reached(self) -> Iterator[None]:
        """Turn what a remote's client raises into one failure with a reason."""
        with watched(self.endpoint, self.shown, self.reporter):
            try:
                yield
            except Failure:
                raise
            except Exception as error:
                raise explain(error, self.shown) from error

    def directory(self, path: str, oid: str) -> list[tuple[str, str]]:
        """(relative path, md5) of each file of a directory object, from the cache or the remote."""
        place = Path(self.cache.oid_to_path(oid))
        content = place.read_bytes() if place.exists() else b""
        if not is_directory_object(content, oid):
            content = self._fetch_directory(path, oid)
            place.unlink(missing_ok=True)
            self.cache.add_bytes(oid, content)
        return [(str(entry["relpath"]), str(entry["md5"])) for entry in json.loads(content)]

    def _fetch_directory(self, path: str, oid: str) -> bytes:
        try:
            content: bytes = self.remote.fs.cat_file(self.remote.oid_to_path(oid))
        except FileNotFoundError:
            raise Failure("object-lost", remote=self.shown, path=path, md5=oid, count="1") from None
        if not is_directory_object(content, oid):
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
        self.refuse_forgotten(wanted)
        with self.reached():
            missing_directories = self.absent(self.cache, {oid for oid in wanted.values() if oid.endswith(".dir")})
            lost = self.absent(self.remote, missing_directories)
            self._refuse_lost(lost, wanted)
            files = {name: md5 for path, oid in wanted.items() for name, md5 in self.contents(path, oid).items()}
            self.refuse_forgotten(files)
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

    def refuse_forgotten(self, files: dict[str, str]) -> None:
        """Neither use nor push what was removed on a person's request; the cache of a machine that has it drops it."""
        met = {name: md5 for name, md5 in files.items() if md5 in self.forgotten}
        for oid in set(met.values()):
            self._drop(oid)
        if met:
            name, md5 = min(met.items())
            raise Failure("forgotten", path=name, md5=md5, ticket=self.forgotten[md5])

    def _drop(self, oid: str) -> None:
        """Take an object that was forgotten out of this machine's cache, with those of its files that were, too."""
        place = Path(self.cache.oid_to_path(oid))
        if oid.endswith(".dir") and place.exists():
            for entry in json.loads(place.read_bytes()):
                if entry["md5"] in self.forgotten:
                    Path(self.cache.oid_to_path(entry["md5"])).unlink(missing_ok=True)
        place.unlink(missing_ok=True)

    def _refuse_lost(self, lost: set[str], files: dict[str, str]) -> None:
        if lost:
            name, md5 = next((name, md5) for name, md5 in sorted(files.items()) if md5 in lost)
            raise Failure("object-lost", remote=self.shown, path=name, md5=md5, count=str(len(lost)))

    def _refuse_corrupt(self, fetched: set[str], files: dict[str, str], error: Exception | None) -> None:
        """DVC removes a fetched object whose md5 is wrong and does not say which: what is still absent was corrupt."""
        still = self.absent(self.cache, fetched)
        if still and (error is None or not self.absent(self.remote, still)):
            unreachable = error is not None and explain(error, self.shown).report["error"] != "remote-failed"
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

    def push(self, address: str, made: dict[str, str], *, remade: bool = False) -> None:
        """Push what a stage or a .dvc file tracks and make sure that the remote has every single object.

        `remade` is what comes from inputs that were all looked at: it holds nothing that was forgotten, whatever it is.
        """
        if not remade:
            self.refuse_forgotten(made)
        with self.reached():
            files = {name: md5 for path, oid in made.items() for name, md5 in self.contents(path, oid).items()}
            if not remade:
                self.refuse_forgotten(files)
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

    def discard_edited(self, files: dict[str, str]) -> None:
        """Remove from the cache what somebody changed through a hard link (file path -> md5): the remote has it."""
        for name, md5 in files.items():
            place = Path(self.cache.oid_to_path(md5))
            if os.path.exists(name) and place.exists() and place.samefile(name):
                place.unlink()

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
