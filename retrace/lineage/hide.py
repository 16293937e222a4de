"""Events without the paths of the machine that sends them: they say where a thing is in the project, not on a disk."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TypeVar
from urllib.parse import quote

_Value = TypeVar("_Value")
# A path begins where no other path goes on (`/srv/home/me` does not hold `/home/me`), or after the slashes of a URL
# without a host (`file:///home/me`); it ends where its last name does.
_BEGIN = r"(?:(?<![\w.\-~/])|(?<=//))"
_END = r"(?![\w\-+@~%])(?!\.\w)"


def hide(value: _Value, places: Sequence[tuple[str, str]]) -> _Value:
    """A JSON value in which each of the given path prefixes is replaced by what stands for it, the longest first."""
    names = dict(_spellings(places))
    if not names:
        return value
    longest_first = sorted(names, key=len, reverse=True)
    pattern = re.compile(f"{_BEGIN}(?:{'|'.join(map(re.escape, longest_first))}){_END}")
    hidden: _Value = _hidden(value, pattern, names)  # type: ignore[assignment]  # JSON in, the same kind of JSON out
    return hidden


def _spellings(places: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    """Each prefix as it stands in text and in URLs; the root of the file system is none."""
    usable = [(prefix.rstrip("/"), name) for prefix, name in places if prefix.rstrip("/")]
    return [(quote(prefix), name) for prefix, name in usable] + usable


def _hidden(value: object, pattern: re.Pattern[str], names: Mapping[str, str]) -> object:
    if isinstance(value, str):
        return pattern.sub(lambda found: names[found[0]], value)
    if isinstance(value, Mapping):
        return {_hidden(key, pattern, names): _hidden(item, pattern, names) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_hidden(item, pattern, names) for item in value]
    return value
