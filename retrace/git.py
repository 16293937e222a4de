"""The few git plumbing calls that everything else is written in.

Replace refs are ignored, tags are never moved, and every write to the origin is a compare-and-swap: it names the value
that it replaces and is refused when somebody else was faster.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from retrace.errors import RetraceError, TransientError

ABSENT = ""
_IDENTITY = {"NAME": "Retrace", "EMAIL": "retrace@localhost"}
_LOCKED = re.compile(r"Unable to create '([^']+\.lock)': File exists")
_LOCK_SECONDS = 10.0  # git holds the lock of a ref for milliseconds
_COMMIT = re.compile(r"[0-9a-f]{40}([0-9a-f]{24})?")


class GitError(RetraceError):
    """A git command failed in a way that another try will not mend."""


class OriginUnavailable(TransientError):
    """The git origin does not answer."""


class RefMoved(RetraceError):
    """A compare-and-swap was lost: the ref no longer has the value that was expected."""


class TagMoved(GitError):
    """The origin has another object under a tag that this machine knows already."""


def is_commit_id(text: str) -> bool:
    """Whether the text is a full object id, so that it may be handed to git as an argument."""
    return _COMMIT.fullmatch(text) is not None


def escape_ref_part(text: str) -> str:
    """One component of a ref name: bytes outside ``[A-Za-z0-9_-]`` become ``=XX`` (git refuses ``:`` and others)."""
    return "".join(
        chr(byte) if chr(byte).isascii() and (chr(byte).isalnum() or chr(byte) in "_-") else f"={byte:02X}"
        for byte in text.encode()
    )


def message(title: str, trailers: Mapping[str, str]) -> str:
    """A commit or tag message with trailers; line ends in values are taken out."""
    lines = "\n".join(f"{key}: {' '.join(value.split())}" for key, value in trailers.items())
    return f"{title}\n\n{lines}\n"


def trailer(text: str, key: str) -> str | None:
    """The value of a trailer in a message, or None."""
    found = re.search(rf"^{re.escape(key)}: (.*)$", text, re.MULTILINE)
    return found.group(1) if found else None


@dataclass(frozen=True)
class RefUpdate:
    """A ref of the origin that is to change from `old` (`ABSENT`: does not exist) to `new` (`ABSENT`: deleted)."""

    ref: str
    new: str
    old: str


class Git:
    """One repository, addressed by its folder (a work tree or a bare repository)."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._environment: dict[str, str] | None = None
        self._who: dict[str, str] | None = None

    def run(
        self, *arguments: str, stdin: bytes | None = None, environment: Mapping[str, str] | None = None
    ) -> subprocess.CompletedProcess[bytes]:
        """Run git and return the finished process, whatever its exit code."""
        return subprocess.run(
            ["git", "-C", str(self.directory), *arguments],
            input=stdin,
            stdin=subprocess.DEVNULL if stdin is None else None,
            capture_output=True,
            env={**self.base_environment(), **(environment or {})},
            check=False,
        )

    def out(self, *arguments: str, stdin: bytes | None = None, environment: Mapping[str, str] | None = None) -> str:
        """The output of a git command without the last newline. Raises `GitError`."""
        done = self.run(*arguments, stdin=stdin, environment=environment)
        if done.returncode != 0:
            raise GitError(f"git {arguments[0]} failed in {self.directory}: {_last_line(done.stderr)}")
        return done.stdout.decode().rstrip("\n")

    def base_environment(self) -> dict[str, str]:
        """The caller's environment without what would point git elsewhere."""
        if self._environment is None:
            kept = {
                key: value
                for key, value in os.environ.items()
                if not key.startswith("GIT_") or key.startswith(("GIT_SSH", "GIT_SSL", "GIT_ASKPASS", "GIT_CONFIG"))
            }
            self._environment = kept | {"GIT_NO_REPLACE_OBJECTS": "1", "GIT_TERMINAL_PROMPT": "0", "LC_ALL": "C"}
        return self._environment

    def _identity(self) -> dict[str, str]:
        """Who commits and tags: whom git's configuration names, or else Retrace."""
        if self._who is None:
            lines = Git(self._configured).run("config", "--get-regexp", r"^user\.(name|email)$").stdout.decode()
            pairs = (line.partition(" ") for line in lines.splitlines())
            named = {key.removeprefix("user.").upper(): who for key, _, who in pairs}
            known = named if named.keys() == _IDENTITY.keys() else _IDENTITY
            self._who = {f"GIT_{role}_{key}": who for role in ("AUTHOR", "COMMITTER") for key, who in known.items()}
        return self._who

    @property
    def _configured(self) -> Path:
        """The repository whose configuration says who works here."""
        return self.directory

    def resolve(self, revision: str) -> str | None:
        """The id of the commit that a revision names, or None."""
        done = self.run("rev-parse", "--verify", "--quiet", "--end-of-options", f"{revision}^{{commit}}")
        return done.stdout.decode().strip() if done.returncode == 0 else None

    def has(self, commit: str) -> bool:
        """Whether the commit is in this repository."""
        return self.run("cat-file", "-e", f"{commit}^{{commit}}").returncode == 0

    def read(self, commit: str, path: str) -> bytes | None:
        """The bytes of a file of a commit, or None if the commit has no such file."""
        done = self.run("cat-file", "blob", f"{commit}:{path}")
        return done.stdout if done.returncode == 0 else None

    def read_many(self, names: Sequence[str]) -> list[bytes | None]:
        """The contents of many objects (`commit:path`, tags, …) in one process; None for those that are missing."""
        request = "".join(f"{name}\n" for name in names).encode()
        done = self.run("cat-file", "--batch", "--buffer", stdin=request)
        return list(_batch(done.stdout, len(names)))

    def files(self, commit: str, path: str = "") -> dict[str, str]:
        """Path -> blob id of every file of a commit below `path`."""
        listing = self.out("ls-tree", "-r", "-z", "--full-tree", commit, *(["--", path] if path else []))
        entries = (entry.split("\t", 1) for entry in listing.split("\0") if entry)
        return {name: head.split()[2] for head, name in entries}

    def message(self, name: str) -> str:
        """The message of a commit, or of an annotated tag."""
        body = self.read_many([name])[0]
        if body is None:
            raise GitError(f"{name} is not in {self.directory}")
        return body.decode().split("\n\n", 1)[-1]

    def write_commit(
        self, base: str | None, changes: Mapping[str, bytes | str | None], parents: Sequence[str], message: str
    ) -> str:
        """Write a commit: the tree of `base` with files replaced or added (bytes, or the id of a blob that is here)
        or removed (None). Returns its id."""
        with tempfile.TemporaryDirectory(prefix="retrace-index-") as folder:
            index = {"GIT_INDEX_FILE": f"{folder}/index"}
            self.out("read-tree", *([f"{base}^{{tree}}"] if base else ["--empty"]), environment=index)
            blobs = self._write_blobs({path: it for path, it in changes.items() if isinstance(it, bytes)}, Path(folder))
            lines = []
            for path, content in sorted(changes.items()):
                blob = blobs[path] if isinstance(content, bytes) else content
                lines.append(f"100644 {blob}\t{path}" if blob is not None else f"0 {'0' * 40}\t{path}")
            if lines:
                self.out(
                    "update-index", "-z", "--index-info", stdin="\0".join([*lines, ""]).encode(), environment=index
                )
            tree = self.out("write-tree", environment=index)
        arguments = [argument for parent in parents for argument in ("-p", parent)]
        return self.out(
            "commit-tree", tree, *arguments, "-F", "-", stdin=message.encode(), environment=self._identity()
        )

    def _write_blobs(self, contents: Mapping[str, bytes], folder: Path) -> dict[str, str]:
        """Store the bytes of many files in one process; path -> the blob's id. `folder` is for a moment's use."""
        if not contents:
            return {}
        files = [folder / str(number) for number in range(len(contents))]
        for file, content in zip(files, contents.values(), strict=True):
            file.write_bytes(content)
        request = "".join(f"{file}\n" for file in files).encode()
        blobs = self.out("hash-object", "-w", "--no-filters", "--stdin-paths", stdin=request).splitlines()
        return dict(zip(contents, blobs, strict=True))

    def write_tag(self, name: str, target: str, message: str, sign: Callable[[bytes], bytes] | None = None) -> str:
        """Write an annotated tag object (no ref yet), signed by `sign` if that is given, and return its id."""
        tagger = self.out("var", "GIT_COMMITTER_IDENT", environment=self._identity())
        body = f"object {target}\ntype commit\ntag {name}\ntagger {tagger}\n\n{message.rstrip()}\n".encode()
        return self.out("mktag", stdin=body + sign(body) if sign is not None else body)


def _batch(output: bytes, count: int) -> Iterator[bytes | None]:
    position = 0
    for _ in range(count):
        end = output.index(b"\n", position)
        header = output[position:end].split()
        position = end + 1
        if header[-1] == b"missing" or len(header) < 3:
            yield None
            continue
        size = int(header[2])
        yield output[position : position + size]
        position += size + 1


def _last_line(text: bytes) -> str:
    lines = [line.strip() for line in text.decode(errors="replace").splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith(("fatal:", "error:", "remote: error"))]
    return without_credentials((errors or lines or ["no message"])[0])


def without_credentials(address: str) -> str:
    """The address with a user name and password taken out, for messages and records."""
    return re.sub(r"(?<=://)[^/@]*@", "", address)


class Mirror(Git):
    """This machine's bare copy of the origin: everything is read from it, and every write goes through it."""

    def __init__(self, directory: Path, origin: str) -> None:
        super().__init__(directory)
        self.origin = origin

    @property
    def _configured(self) -> Path:
        """The user's own repository, where that is the origin: a mirror is nobody's."""
        return Path(self.origin) if Path(self.origin).is_dir() else self.directory

    @classmethod
    def open(cls, directory: Path, origin: str) -> Mirror:
        """The mirror in `directory`, made if it is not there."""
        if not (directory / "HEAD").exists():
            directory.parent.mkdir(parents=True, exist_ok=True)
            with locked(directory.parent / f"{directory.name}.lock"):
                if not (directory / "HEAD").exists():
                    aside = directory.with_name(f"{directory.name}.new")
                    shutil.rmtree(aside, ignore_errors=True)
                    Git(directory.parent).out("init", "--quiet", "--bare", str(aside))
                    Git(aside).out("config", "gc.auto", "0")
                    aside.rename(directory)
        return cls(directory, origin)

    def _remote(self, arguments: Sequence[str]) -> subprocess.CompletedProcess[bytes]:
        stall = {"GIT_HTTP_LOW_SPEED_LIMIT": "1", "GIT_HTTP_LOW_SPEED_TIME": "20"}
        done = self.run(*arguments, environment=stall)
        while done.returncode != 0 and self._freed(done.stderr.decode(errors="replace")):
            done = self.run(*arguments, environment=stall)
        return done

    def _freed(self, text: str) -> bool:
        """Whether a lock that git complains of is gone now: one that a killed git has left on a ref is removed.

        In the mirror a young one is waited for; in an origin that is a folder here it may be a person's, and is told.
        """
        places = (self.directory, Path(self.origin, "refs"), Path(self.origin, ".git/refs"))
        for name in _LOCKED.findall(text):
            lock = Path(name)
            if not any(lock.is_relative_to(place) for place in places):
                return False
            with suppress(FileNotFoundError):
                left = lock.stat().st_mtime
                rest = left + _LOCK_SECONDS - time.time()
                if rest > 0 and not lock.is_relative_to(self.directory):
                    return False
                time.sleep(max(0.0, rest))
                if lock.stat().st_mtime == left:
                    lock.unlink()
        return _LOCKED.search(text) is not None

    def _unavailable(self, what: str, done: subprocess.CompletedProcess[bytes]) -> OriginUnavailable:
        return OriginUnavailable(
            f"cannot {what} the git origin {without_credentials(self.origin)}: {_last_line(done.stderr)}; "
            "check RETRACE_ORIGIN and that it can be reached"
        )

    def remote_refs(self, *patterns: str) -> dict[str, str]:
        """Ref -> object id of the origin's refs that match the patterns. Raises `OriginUnavailable`."""
        done = self._remote(["ls-remote", "--refs", self.origin, *patterns])
        if done.returncode != 0:
            raise self._unavailable("read", done)
        lines = (line.split("\t") for line in done.stdout.decode().splitlines())
        return {name: oid for oid, name in lines}

    def fetch(self, *refspecs: str) -> None:
        """Fetch into the mirror. Raises `OriginUnavailable`, or `TagMoved` when a tag is not what it was."""
        with locked(self.directory / "fetch.lock"):
            # Not --quiet: it would hide which tag was rejected, and why.
            done = self._remote(["fetch", "--no-tags", "--no-write-fetch-head", self.origin, *refspecs])
        if done.returncode == 0:
            return
        text = done.stderr.decode(errors="replace")
        moved = re.search(r"rejected\]\s+(\S+)", text)
        if "would clobber existing tag" in text:
            raise TagMoved(
                f"the tag {moved.group(1) if moved else ''} was moved in {without_credentials(self.origin)}: versions "
                f"are never moved; compare it with the one kept in {self.directory} and put the right one back"
            )
        raise self._unavailable("fetch from", done)

    def fetch_record(self) -> None:
        """Fetch the record of versions: all branches and tags, verdicts, and what was forgotten. The refs of runs are
        fetched one by one when needed."""
        named = ("heads", "verdicts", "forgotten")
        self.fetch(*(f"+refs/{name}/*:refs/{name}/*" for name in named), "refs/tags/*:refs/tags/*", "--prune")

    def fetch_ref(self, ref: str) -> str | None:
        """Fetch one ref; its commit id, or None when the origin does not have it."""
        found = self.remote_refs(ref).get(ref)
        if found is not None and not self.has(found):
            self.fetch(f"+{ref}:{ref}")
        return found

    def push(self, updates: Iterable[RefUpdate]) -> None:
        """Change refs of the origin, all or none. Raises `RefMoved` or `OriginUnavailable`."""
        updates = list(updates)
        leases = [f"--force-with-lease={update.ref}:{update.old}" for update in updates]
        specs = [f"{update.new}:{update.ref}" for update in updates]
        done = self._remote(["push", "--quiet", "--atomic", "--porcelain", *leases, self.origin, *specs])
        if done.returncode == 0:
            return
        text = (done.stdout + done.stderr).decode(errors="replace")
        names = ", ".join(update.ref for update in updates)
        if "branch is currently checked out" in text:
            raise GitError(
                f"{names} is checked out in {self.origin}: that branch belongs to Retrace; "
                "switch to another one (git switch main) and run this again"
            )
        if "rejected]" in text:
            self._refuse_moved(updates, names)
        declined = re.search(r"\[remote rejected\] \((.*(?:declined|denied|prohibited).*)\)", text)
        if declined:
            raise GitError(
                f"the git origin {without_credentials(self.origin)} refuses {names}: {declined.group(1)}; "
                "its rules must let Retrace write there"
            )
        raise self._unavailable("push to", done)

    def _refuse_moved(self, updates: Sequence[RefUpdate], names: str) -> None:
        """Whether a rejection was a lost race is for the refs to say: git's reasons differ by server and version."""
        found = self.remote_refs(*(update.ref for update in updates))
        if any(found.get(update.ref, ABSENT) != update.old for update in updates):
            raise RefMoved(f"{names} moved in the meantime; nothing was changed")


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold an advisory lock on this machine; the kernel frees it when the process ends, however it ends."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
