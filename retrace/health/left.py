"""One thing that was left behind."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path


@dataclass(frozen=True)
class Left:
    """A folder, file or ref; `since` when it was last touched, `size` in bytes where it has one.

    `remove` looks again whether anybody holds it, and returns whether it is gone.
    """

    name: str
    since: datetime
    remove: Callable[[], bool]
    size: int | None = None


def size_below(*places: Path) -> int:
    """The bytes of files, and of folders with all that is in them."""
    total = 0
    for place in places:
        if place.is_file():
            total += place.stat().st_size
        for parent, _, files in os.walk(place):
            total += sum(os.lstat(os.path.join(parent, name)).st_size for name in files)
    return total


def touched(place: Path) -> datetime:
    """When a file or folder, not what is in it, was changed last."""
    return datetime.fromtimestamp(place.lstat().st_mtime, UTC)


def touched_below(place: Path) -> datetime:
    """When anything in a folder was changed last."""
    inside = (touched(Path(parent, name)) for parent, folders, files in os.walk(place) for name in (*folders, *files))
    return max(inside, default=touched(place))
