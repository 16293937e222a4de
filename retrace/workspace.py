"""A throw-away checkout of one commit, with this machine's DVC cache linked in and the remote made absolute.

A workspace is keyed by model, run and process, and held by a lock that the kernel frees when the process ends: what no
process holds is an orphan, and `sweep` removes it.
"""

from __future__ import annotations

import configparser
import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from retrace.config import Settings
from retrace.errors import RetraceError
from retrace.git import Git, GitError, Mirror, escape_ref_part, without_credentials

_DVC_CONFIG = Path(".dvc/config")
_LOCAL_CONFIG = Path(".dvc/config.local")
UNFINISHED = ".unfinished-"  # and the number of the process that has not yet said whether its logs are needed


class NoRemote(RetraceError):
    """.dvc/config names no remote to push to."""


@dataclass(frozen=True)
class Workspace:
    """A checkout of `commit` in `path`; `site` is for one in a folder of the user's, beside which nothing may lie."""

    path: Path
    commit: str
    site: Path | None = None

    @property
    def site_cache(self) -> Path:
        """DVC's own state for this checkout, beside it so that it goes with it."""
        return self.site or self.path.with_name(self.path.name + ".site")


@dataclass(frozen=True)
class Remote:
    """The DVC remote of a project: its name, its absolute address and the options that .dvc/config gives it."""

    name: str
    url: str
    options: dict[str, str]

    @property
    def shown(self) -> str:
        """The address for messages and records: no credentials."""
        return without_credentials(self.url)

    @property
    def folder(self) -> Path | None:
        """Where it is, if it is a folder of this machine."""
        return None if "://" in self.url else Path(self.url)


def _read_config(*texts: str) -> configparser.ConfigParser:
    parser = configparser.ConfigParser(interpolation=None, strict=False)
    for text in texts:
        parser.read_string("\n".join(line.strip() for line in text.splitlines()))
    return parser


def _local_config(settings: Settings) -> str:
    path = settings.root / _LOCAL_CONFIG
    return path.read_text() if path.is_file() else ""


def remote_of(settings: Settings, committed: str) -> Remote:
    """The remote that a commit's .dvc/config, this machine's config.local and RETRACE_REMOTE name.

    Raises `NoRemote`.
    """
    parser = _read_config(committed, _local_config(settings))
    name = parser.get("core", "remote", fallback=None)
    section = f"'remote \"{name}\"'"
    url = settings.remote or parser.get(section, "url", fallback=None)
    if name is None or url is None:
        raise NoRemote(".dvc/config names no default remote; set one with `dvc remote add --default NAME URL`")
    if "://" not in url and not os.path.isabs(url):
        base = settings.root / ("" if settings.remote else ".dvc")
        url = os.path.normpath(base / url)
    return Remote(name, url, dict(parser.items(section)) if parser.has_section(section) else {})


def _write_config(settings: Settings, workspace: Path) -> None:
    committed = workspace / _DVC_CONFIG
    if not committed.is_file():
        raise GitError(f"the commit in {workspace.name} has no {_DVC_CONFIG}: it is no DVC project")
    remote = remote_of(settings, committed.read_text())
    parser = _read_config(_local_config(settings))
    section = f"'remote \"{remote.name}\"'"
    wanted = {
        "core": {"analytics": "false", "autostage": "false", "check_update": "false"},
        "cache": {"dir": str(settings.cache), "type": "reflink,copy" if os.geteuid() == 0 else "reflink,hardlink,copy"},
        section: {"url": remote.url, "verify": "true"},
    }
    if remote.url.startswith("s3://"):
        wanted[section] |= {"connect_timeout": "5", "read_timeout": "15"}
    for name, options in wanted.items():
        if not parser.has_section(name):
            parser.add_section(name)
        for key, value in options.items():
            parser.set(name, key, value)
    descriptor = os.open(workspace / _LOCAL_CONFIG, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with open(descriptor, "w") as handle:
        parser.write(handle)


@contextmanager
def workspace(settings: Settings, mirror: Mirror, commit: str, key: str) -> Iterator[Workspace]:
    """Check a commit out for as long as the block lasts; `key` names who uses it (model and run)."""
    settings.workspaces.mkdir(parents=True, exist_ok=True)
    path = settings.workspaces / f"{escape_ref_part(key)}--{os.getpid()}"
    with open(path.with_name(path.name + ".lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        held = Workspace(path, commit)
        try:
            _drop(held)
            checkout(settings, mirror, commit, path)
            yield held
        finally:
            _drop(held)
            Path(lock.name).unlink(missing_ok=True)


def checkout(settings: Settings, mirror: Mirror, commit: str, path: Path, shared: bool = True) -> None:
    """Clone the mirror into `path` at a commit and tell DVC where cache and remote are.

    A clone by reference (`shared`) is the quickest, and breaks when the mirror is removed.
    """
    by_reference = ["--shared"] if shared else []
    mirror.out("clone", "--quiet", *by_reference, "--no-checkout", str(mirror.directory), str(path))
    git = Git(path)
    git.out("checkout", "--quiet", "--detach", commit)
    _write_config(settings, path)


def _drop(held: Workspace) -> None:
    for folder in (held.path, held.site_cache):
        if folder.exists():
            remove_folder(folder)


def remove_folder(folder: Path) -> None:
    """Remove a folder in which a stage may have worked, and left others read-only."""
    _make_writable(folder)
    shutil.rmtree(folder)


def _make_writable(folder: Path) -> None:
    """Without this the owner of read-only folders could not remove what is in them."""
    _open_up(folder)
    for parent, folders, _ in os.walk(folder):
        for name in folders:
            _open_up(Path(parent, name))


def _open_up(folder: Path) -> None:
    if not folder.is_symlink() and not os.access(folder, os.R_OK | os.W_OK | os.X_OK):
        folder.chmod(0o700)


def _remove_as_far_as_possible(folder: Path) -> None:
    """For what the doctor looks for, too: it is no reason to fail when another process or user holds some of it."""
    with suppress(OSError):
        _make_writable(folder)
    shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def temporary_folder(settings: Settings, name: str) -> Iterator[Path]:
    """An empty folder below var/ for as long as the block lasts; those of processes that were killed are removed."""
    settings.var.mkdir(parents=True, exist_ok=True)
    for left in settings.var.glob(f"{name}-*"):
        process = left.name.removeprefix(f"{name}-")
        if process.isdecimal() and not lives(int(process)):
            _remove_as_far_as_possible(left)
    folder = settings.var / f"{name}-{os.getpid()}"
    _remove_as_far_as_possible(folder)
    folder.mkdir()
    try:
        yield folder
    finally:
        _remove_as_far_as_possible(folder)


@dataclass
class PassingLogs:
    """Logs in `folder` that are `needed` when something was found."""

    folder: Path
    needed: bool = False


@contextmanager
def passing_logs(folder: Path) -> Iterator[PassingLogs]:
    """A folder for logs that goes when the block ends, unless they are needed, or an error is raised that names them.

    Until then it bears a mark, by which the doctor knows those of processes that were killed.
    """
    logs = PassingLogs(folder)
    shutil.rmtree(folder, ignore_errors=True)  # of an earlier process of the same number
    folder.mkdir(parents=True)
    mark = folder / f"{UNFINISHED}{os.getpid()}"
    mark.touch()
    try:
        yield logs
    except RetraceError as error:
        logs.needed = str(folder) in str(error)
        raise
    finally:
        mark.unlink(missing_ok=True)
        if not logs.needed or not any(folder.glob("*")):
            shutil.rmtree(folder, ignore_errors=True)


def lives(process: int) -> bool:
    """Whether there is a process of this number, be it somebody else's."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def sweep(settings: Settings, prefix: str = "") -> list[str]:
    """Remove the workspaces that no process holds any more (of one run, by `prefix`); their names."""
    removed = []
    for lock in sorted(settings.workspaces.glob(f"{escape_ref_part(prefix) if prefix else ''}*.lock")):
        if remove_orphan(lock):
            removed.append(lock.stem)
    return removed


def orphans(settings: Settings) -> list[Path]:
    """The locks of the workspaces that no process holds any more; `sweep` and `remove_orphan` remove them."""
    found = []
    for lock in sorted(settings.workspaces.glob("*.lock")):
        with tried_lock(lock) as free:
            if free:
                found.append(lock)
    return found


def remove_orphan(lock: Path) -> bool:
    """Remove the workspace of a lock unless a process holds it; whether it was removed."""
    with tried_lock(lock) as free:
        if free:
            _drop(orphan_of(lock))
            lock.unlink(missing_ok=True)
        return free


def orphan_of(lock: Path) -> Workspace:
    """The workspace that a lock is of."""
    return Workspace(lock.with_suffix(""), "")


@contextmanager
def tried_lock(path: Path) -> Iterator[bool]:
    """Whether the lock that a file is could be had at once; it is held then until the block ends."""
    try:
        handle = open(path)  # noqa: SIM115 - closed below
    except FileNotFoundError:
        yield False
        return
    with handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        yield True
