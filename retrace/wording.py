"""Words that several commands say alike."""

from __future__ import annotations


def counted(number: int, one: str, many: str | None = None) -> str:
    """`1 object`, `1,204 objects`; `many` where it is not `one` with an s."""
    return f"{number:,} {one if number == 1 else many or f'{one}s'}"
