"""What a stage opens and whom it calls, as far as Python is asked: names for a report, and no proof.

`SITE` becomes `sitecustomize.py` on the stage's path. It sees `open` and sockets with their host; it does not see what
pyarrow or DuckDB read in their own code.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

VARIABLE = "RETRACE_WATCHED"
# What Python and its libraries read by themselves, for names of users and hosts, for TLS, time zones and file types.
_SYSTEM_FILES = (
    "/etc/apache2/mime.types",
    "/etc/ca-certificates",
    "/etc/gai.conf",
    "/etc/group",
    "/etc/host.conf",
    "/etc/hosts",
    "/etc/httpd",
    "/etc/ld.so.cache",
    "/etc/ld.so.conf",
    "/etc/ld.so.conf.d",
    "/etc/ld.so.preload",
    "/etc/locale.alias",
    "/etc/localtime",
    "/etc/mime.types",
    "/etc/nsswitch.conf",
    "/etc/passwd",
    "/etc/pki",
    "/etc/protocols",
    "/etc/resolv.conf",
    "/etc/services",
    "/etc/ssl",
    "/etc/timezone",
)

SITE = f'''\
import json
import os
import sys


def _watch():
    told = os.open(os.environ["{VARIABLE}"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    quiet = (sys.prefix, sys.base_prefix, "/usr/", "/lib", "/proc/", "/sys/", "/dev/")

    def hook(event, arguments):
        if event == "open":
            path, mode, flags = arguments
            if isinstance(path, bytes):
                path = os.fsdecode(path)
            if not isinstance(path, str) or flags & (os.O_WRONLY | os.O_RDWR):
                return
            if "__pycache__" in path or path.endswith((".pyx", ".pxi")):  # a traceback looks for Cython's sources
                return
            # Without a mode it is `os.open`: its relative path may be one below another folder's descriptor.
            if not path.startswith(quiet) and (mode is not None or os.path.isabs(path)):
                say("file", os.path.normpath(os.path.join(os.getcwd(), path)))
        elif event == "socket.getaddrinfo":
            say("host", str(arguments[0]))
        elif event == "socket.connect" and isinstance(arguments[1], tuple):
            say("host", ":".join(str(part) for part in arguments[1][:2]))

    def say(kind, name):
        os.write(told, (json.dumps([kind, name]) + "\\n").encode())

    sys.addaudithook(hook)


_watch()
'''


@dataclass(frozen=True)
class Watched:
    """What a stage asked Python for: absolute paths of files that it opened to read, and hosts."""

    files: tuple[str, ...]
    hosts: tuple[str, ...]


def read(told: Path) -> Watched:
    """What the watch of a stage wrote down, each name once."""
    lines = [json.loads(line) for line in told.read_text().splitlines()] if told.exists() else []
    names: dict[str, dict[str, None]] = {"file": {}, "host": {}}
    for kind, name in lines:
        names[kind][name] = None
    return Watched(tuple(names["file"]), tuple(names["host"]))


def undeclared(watched: Watched, view: Path, allowed: Iterable[Path], declared: Iterable[str]) -> list[str]:
    """In words, what a stage asked for that it does not declare: files of the repository, files elsewhere, hosts.

    `declared` are paths below the view; below `allowed`, and of the system's own files, everything may be read.
    """
    roots = [*map(str, allowed), *_SYSTEM_FILES]
    own = tuple(declared)
    found = []
    for name in watched.files:
        path = Path(name)
        if path.is_relative_to(view):
            inside = path.relative_to(view).as_posix()
            if not any(inside == root or inside.startswith(f"{root}/") for root in own):
                found.append(f"reads {inside}, which it does not declare")
        elif not any(path.is_relative_to(root) for root in roots):
            found.append(f"reads {name}, outside the repository")
    return found + [f"calls {host}" for host in watched.hosts]
