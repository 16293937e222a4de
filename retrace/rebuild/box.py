"""The process around a stage in a rebuild: `python -I -S box.py`, with one line of JSON on standard input.

With a host name as its argument it only says, by its exit code, whether it may take that name.

It changes what is to be changed (host name, processors, umask), shuts the stage in by Landlock where it is asked to,
says the stage's exit code on the descriptor that it is given, and waits to be ended with all that the stage has left.
When its own standard input closes it ends the whole process group itself: a stage does not outlive a rebuild that was
killed. Standard library only, and no import of Retrace: it starts in 20 ms.

Landlock: https://docs.kernel.org/userspace-api/landlock.html
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import socket
import sys
import threading
from typing import Any

_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_PATH_BENEATH = 1
FAILED = "the sandbox could not be made"  # what is said when it was not
_NO_NEW_PRIVILEGES = 38
_NEW_USER, _NEW_HOST = 0x10000000, 0x04000000
# The rights of each version of the interface, by bit.
_READ = 1 << 0 | 1 << 2 | 1 << 3  # execute, read a file, read a folder
_FILE = 1 << 0 | 1 << 1 | 1 << 2 | 1 << 14 | 1 << 15  # those that a single file can be given
_FILE_RIGHTS = {1: (1 << 13) - 1, 2: (1 << 14) - 1, 3: (1 << 15) - 1, 5: (1 << 16) - 1}
_TCP = 1 << 0 | 1 << 1
_TCP_SINCE = 4  # Linux 6.7


class _Ruleset(ctypes.Structure):
    _fields_ = [("files", ctypes.c_uint64), ("network", ctypes.c_uint64)]


class _Beneath(ctypes.Structure):
    _pack_ = 1
    _fields_ = [("access", ctypes.c_uint64), ("parent", ctypes.c_int32)]


def landlock_version() -> int:
    """The version of Landlock that this kernel has; 0 for none."""
    return max(0, int(ctypes.CDLL(None).syscall(_CREATE_RULESET, None, 0, 1)))


def landlock_shuts_network() -> bool:
    """Whether this kernel's Landlock knows of the network at all."""
    return landlock_version() >= _TCP_SINCE


def _called(library: Any, *arguments: Any) -> int:
    result = int(library.syscall(*arguments))
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result


def shut_in(readable: list[str], writable: list[str]) -> None:
    """Let this process and all that it starts read and write below these paths only.

    Where the kernel knows how, it reaches no server by TCP either.
    """
    library = ctypes.CDLL(None, use_errno=True)
    version = landlock_version()
    known = max(right for since, right in _FILE_RIGHTS.items() if since <= version)
    ruleset = _Ruleset(known, _TCP if version >= _TCP_SINCE else 0)
    size = ctypes.sizeof(ruleset) if version >= _TCP_SINCE else 8
    rules = _called(library, _CREATE_RULESET, ctypes.byref(ruleset), size, 0)
    for paths, wanted in ((readable, _READ), (writable, known)):
        for path in paths:
            if os.path.exists(path):
                _allow(library, rules, path, wanted & known)
    if library.prctl(_NO_NEW_PRIVILEGES, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "no_new_privs")
    _called(library, _RESTRICT_SELF, rules, 0)
    os.close(rules)


def _allow(library: Any, rules: int, path: str, rights: int) -> None:
    place = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        rule = _Beneath(rights if os.path.isdir(path) else rights & _FILE, place)
        _called(library, _ADD_RULE, rules, _PATH_BENEATH, ctypes.byref(rule), 0)
    finally:
        os.close(place)


def rename_host(name: str) -> bool:
    """Give this process a host name of its own; whether this machine lets it."""
    library = ctypes.CDLL(None)
    try:
        if library.unshare(_NEW_HOST) != 0:
            _unshare_unprivileged(library, os.getuid(), os.getgid())
        socket.sethostname(name)
    except OSError:
        return False
    return True


def _unshare_unprivileged(library: Any, user: int, group: int) -> None:
    """Get the namespace of a host name by one of users, in which this process stays who it is."""
    if library.unshare(_NEW_USER | _NEW_HOST) != 0:
        raise PermissionError("no namespaces for this user")
    for file, line in (("setgroups", "deny"), ("uid_map", f"{user} {user} 1"), ("gid_map", f"{group} {group} 1")):
        with open(f"/proc/self/{file}", "w") as handle:
            handle.write(line)


def _die_with_parent(group: int) -> None:
    sys.stdin.buffer.read()
    os.killpg(group, signal.SIGKILL)


def main() -> None:
    if sys.argv[1:]:
        sys.exit(0 if rename_host(sys.argv[1]) else 1)
    request = json.loads(sys.stdin.buffer.readline())
    if request["host"]:
        rename_host(request["host"])  # before there is a thread: then a process may not leave its user namespace
    threading.Thread(target=_die_with_parent, args=(os.getpgrp(),), daemon=True).start()
    os.chdir(request["folder"])
    os.umask(request["umask"])
    if request["processors"]:
        os.sched_setaffinity(0, request["processors"])
    stage = os.fork()
    if stage == 0:
        os.close(request["report_to"])
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        try:
            if request["landlock"]:
                shut_in(request["landlock"]["readable"], request["landlock"]["writable"])
            os.execve(request["command"][0], request["command"], request["environment"])
        except OSError as error:
            print(f"{FAILED}: {error}", file=sys.stderr, flush=True)
            os._exit(126)
    _, status = os.waitpid(stage, 0)
    os.write(request["report_to"], b"%d" % os.waitstatus_to_exitcode(status))
    os.close(request["report_to"])
    signal.pause()


if __name__ == "__main__":
    main()
