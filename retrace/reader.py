"""Where what git tells is read, and how a date of it is shown."""

from __future__ import annotations

from datetime import datetime, timedelta
from pathlib import Path

from retrace.config import Settings
from retrace.git import Git, Mirror


def reader(settings: Settings) -> Git:
    """Where the record is read: the repository itself where it is the origin, else this machine's mirror, fetched."""
    if Path(settings.origin) == settings.root:
        return Git(settings.root)
    mirror = Mirror.open(settings.mirror, settings.origin)
    mirror.fetch_record()
    return mirror


def last_day(through: datetime | None) -> str:
    """The last day of the data: `Data-Through` is the first moment after it."""
    return f"{through - timedelta(days=1):%Y-%m-%d}" if through else "?"
