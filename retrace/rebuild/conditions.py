"""What surrounds a rebuild and must not matter; `varied` changes all of it at once, as reprotest does.

https://reproducible-builds.org/docs/env-variations/
"""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass, field

from retrace.rebuild.sandbox import Kind, may_rename_host


@dataclass(frozen=True)
class Conditions:
    """The surroundings of a rebuild; `names` says what differs from those of a run."""

    folder: str = "views"
    home: str = "home"
    host: str | None = None
    umask: int = 0o022
    processors: tuple[int, ...] = ()
    variables: dict[str, str] = field(default_factory=dict)
    names: tuple[str, ...] = ()


def varied(kind: Kind) -> Conditions:
    """Another folder, HOME, host name, hash seed, time zone, locale, umask, allocator fill, and one processor.

    The host name stays where this machine lets nobody change it in such a sandbox.
    """
    locale, renamed = _another_locale(), may_rename_host(kind)
    return Conditions(
        folder="another place/deeper",
        home="somebody else",
        host="elsewhere" if renamed else None,
        umask=0o077,
        processors=(min(os.sched_getaffinity(0)),),
        variables={
            "PYTHONHASHSEED": "20130701",
            "TZ": "RTR-5:45",  # POSIX: 5 hours and 45 minutes ahead of UTC, without a zone file
            "LC_ALL": locale,
            "LANG": locale,
            "MALLOC_PERTURB_": "165",
            "RETRACE_WORKERS": "1",
        },
        names=(
            "folder",
            "home",
            *(["host name"] if renamed else []),
            "hash seed",
            "time zone",
            f"locale ({locale})",
            "umask",
            "allocator fill",
            "one processor",
        ),
    )


def _another_locale() -> str:
    """One that is not the runs' C.UTF-8 and that this machine has; plain C where it has no other."""
    program = shutil.which("locale")
    listed = subprocess.run([program, "-a"], capture_output=True, check=False).stdout if program else b""
    names = listed.decode("ascii", errors="ignore").split()  # a few are in encodings of their own
    return next((name for name in names if name.lower() not in ("c", "posix", "c.utf8", "c.utf-8")), "C")
