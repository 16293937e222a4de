"""What surrounds a rebuild and must not matter; `varied` changes all of it at once, as reprotest does.

https://reproducible-builds.org/docs/env-variations/
"""

from __future__ import annotations

import os
import subprocess
from dataclasses import dataclass, field


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


def varied() -> Conditions:
    """Another folder, HOME, host name, hash seed, time zone, locale, umask, allocator fill, and one processor."""
    locale = _another_locale()
    return Conditions(
        folder="another place/deeper",
        home="somebody else",
        host="elsewhere",
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
            "host name",
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
    listed = subprocess.run(["locale", "-a"], capture_output=True, text=True, check=False).stdout.split()
    return next((name for name in listed if name.lower() not in ("c", "posix", "c.utf8", "c.utf-8")), "C")
