"""Which contents the partitions of a dataset had, manifest by manifest. A content is a line of a manifest.

A thousand manifests of a thousand partitions are long to read, and the event of an ingestion names what it brought. So
a manifest is read where no event tells how it came from the one before. What events tell is checked against manifests:
the size of each, the last that an event tells of, and those where the contents in question came and went. Where they
contradict each other the manifests are right, and all are read.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from retrace.usage.holdings import Holdings

Wanted = Callable[[bytes], bool]

_ITEM = re.compile(rb'"md5": "(\w{32})",\s+"path": "([^"\\\s]+)",\s+"rows": (\d+),\s+"sha256": "(\w{64})"')


@dataclass(frozen=True)
class Step:
    """A manifest's id (None: there is none any more), and the lines it got by an event (None: no event tells)."""

    manifest: str | None
    brought: Sequence[bytes] | None = None


class _Contradiction(Exception):
    """A manifest holds something else than the events tell."""


def brought(event: bytes) -> list[bytes]:
    """The lines that an ingestion's event names, without parsing all of it; they are checked by those who use them.

    None of them if it is not written as Retrace writes events: the manifest is read then.
    """
    start = event.rfind(b'"partitions": [')
    found = _ITEM.findall(event, start) if start >= 0 else ()
    return [b"%s %s %s %s" % (path, md5, sha256, rows) for md5, path, rows, sha256 in found]


def contents(holdings: Holdings, steps: Sequence[Step], wanted: Wanted | None) -> dict[bytes, int]:
    """Line -> the steps whose manifests have it, as a number with a bit for each; of all lines, or the wanted ones."""
    try:
        lines = _replayed(holdings, steps)
        found = _chosen(lines, wanted)
        _check(holdings, steps, lines, {_path(line) for line in found} if wanted is not None and found else None)
    except _Contradiction:
        found = _chosen(_replayed(holdings, [replace(step, brought=None) for step in steps]), wanted)
    return found


def _chosen(lines: Mapping[bytes, int], wanted: Wanted | None) -> dict[bytes, int]:
    return {line: held for line, held in lines.items() if wanted is None or wanted(line)}


def _replayed(holdings: Holdings, steps: Sequence[Step]) -> dict[bytes, int]:
    """All lines, as the events tell and as the manifests have it that no event tells of. Raises `_Contradiction`."""
    told = [step.manifest for step in steps if step.manifest is not None and step.brought is not None]
    sizes = dict(zip(told, holdings.sizes(told), strict=True))
    told_next = [*(step.brought is not None for step in steps[1:]), False]
    read = [step.brought is None or not following for step, following in zip(steps, told_next, strict=True)]
    manifests = holdings.stream(step.manifest for step, here in zip(steps, read, strict=True) if here and step.manifest)
    found: dict[bytes, int] = defaultdict(int)
    since: dict[bytes, int] = {}
    current: dict[bytes, bytes] = {}
    size = 0
    for number, (step, here) in enumerate(zip(steps, read, strict=True)):
        content = next(manifests)[1] if here and step.manifest else b""
        lines = set(_lines(content)) if here else set()
        new: Collection[bytes]
        if step.brought is None:
            new, gone = lines - since.keys(), since.keys() - lines
        else:
            new, gone = step.brought, {current[path] for path in map(_path, step.brought) if path in current}
        for line in gone:
            found[line] |= (1 << number) - (1 << since.pop(line))
            current.pop(_path(line), None)
            size -= len(line) + 1
        for line in new:
            since[line] = number
            current[_path(line)] = line
            size += len(line) + 1
        if step.brought is None:
            size = len(content)
        elif size != sizes.get(step.manifest or "") or (here and lines != since.keys()):
            raise _Contradiction
    for line, start in since.items():
        found[line] |= (1 << len(steps)) - (1 << start)
    return found


def _check(
    holdings: Holdings, steps: Sequence[Step], lines: Mapping[bytes, int], paths: Collection[bytes] | None
) -> None:
    """Read the manifests before and after each change of these paths, or else of all that had several contents.

    Raises `_Contradiction`.
    """
    own: dict[bytes, dict[bytes, int]] = defaultdict(dict)
    for line, held in lines.items():
        own[_path(line)][line] = held
    chosen = paths if paths is not None else [path for path, found in own.items() if len(found) > 1]
    places: dict[int, list[bytes]] = defaultdict(list)
    for path in chosen:
        changes = 0
        for held in own[path].values():
            changes |= held ^ (held << 1)
        for number in _numbers(changes | changes >> 1):
            if number < len(steps) and steps[number].manifest is not None:
                places[number].append(path)
    numbers = sorted(places)
    manifests = holdings.stream(manifest for number in numbers if (manifest := steps[number].manifest) is not None)
    for number, (_, content) in zip(numbers, manifests, strict=True):
        for path in places[number]:
            expected = next((line for line, held in own[path].items() if held >> number & 1), None)
            if _line(content, path) != expected:
                raise _Contradiction


def _numbers(bits: int) -> Iterator[int]:
    while bits:
        lowest = bits & -bits
        yield lowest.bit_length() - 1
        bits ^= lowest


def _line(content: bytes, path: bytes) -> bytes | None:
    """The line of a path in a manifest."""
    start = 0 if content.startswith(path + b" ") else content.find(b"\n" + path + b" ") + 1
    return content[start : content.find(b"\n", start)] if start or content.startswith(path + b" ") else None


def _lines(content: bytes) -> Iterable[bytes]:
    return filter(None, content.split(b"\n"))


def _path(line: bytes) -> bytes:
    return line.partition(b" ")[0]
