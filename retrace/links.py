"""A file of the cache in a checkout: shared with the cache where the file system can, else as a copy."""

from __future__ import annotations

import fcntl
import os
import shutil
from pathlib import Path

_CLONE = 0x40049409  # FICLONE, see ioctl_ficlonerange(2)


def link(source: Path, target: Path) -> None:
    """Put a file at a new place: as a clone that shares its blocks, as a hard link, or as a copy.

    Root gets no hard link: it could write through one into the cache, whatever the file's mode.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    if cloned(source, target):
        return
    if os.geteuid() != 0:
        try:
            os.link(source, target)
        except OSError:
            pass  # another file system
        else:
            return
    shutil.copyfile(source, target)


def cloned(source: Path, target: Path) -> bool:
    """Make `target` a clone of a file; whether the file system can."""
    with open(source, "rb") as original, open(target, "xb") as clone:
        try:
            fcntl.ioctl(clone.fileno(), _CLONE, original.fileno())
        except OSError:
            pass
        else:
            return True
    target.unlink()
    return False
