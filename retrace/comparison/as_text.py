"""A comparison for people at a terminal: what is the same takes one line."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Iterator, Sequence

from retrace.comparison import wording
from retrace.comparison.compared import Comparison
from retrace.comparison.data import DatasetChange
from retrace.comparison.tables import TableChange
from retrace.dvcfiles import RAW
from retrace.trace_text import WIDTH, printable
from retrace.wording import counted

_SAME = "the same"
_PARTITIONS = 12  # of one kind of one dataset


def text_lines(found: Comparison) -> Iterator[str]:
    """The whole answer, about `WIDTH` wide; the patch comes last."""
    names = [content.side.name for content in (found.a, found.b)]
    yield printable(f"{names[0]} -> {names[1]}")
    yield from _rows([(name, wording.side(content)) for name, content in zip(names, (found.a, found.b), strict=True)])
    yield ""
    if found.same_version:
        yield "the same version"
        return
    yield from _section("data", _data(found))
    yield from _section("code", _code(found))
    yield from _section("parameters", _parameters(found))
    yield from _section("environment", _environment(found))
    yield from _section("metrics", _metrics(found))
    yield from _stages(found)
    if found.patch:
        yield ""
        yield from (_shown(line) for line in found.patch.splitlines())


def _shown(line: str) -> str:
    """A line of a patch: its tabs are its own, whatever else a terminal would obey is not."""
    return "\t".join(printable(part) for part in line.split("\t"))


def _section(title: str, lines: Iterable[str]) -> Iterator[str]:
    listed = list(lines)
    if not listed:
        yield f"{title:<13}{_SAME}"
        return
    yield title
    yield from listed


def _rows(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Columns under each other, the last one wrapped."""
    widths = [max((len(row[place]) for row in rows), default=0) for place in range(len(rows[0]) - 1)] if rows else []
    for row in rows:
        head = "".join(f"{cell.ljust(width)}  " for cell, width in zip(row, widths, strict=False))
        yield from _wrapped(f"  {head}", row[-1])


def _wrapped(head: str, text: str) -> Iterator[str]:
    indent = " " * min(len(head), WIDTH // 2)
    width = max(WIDTH - len(head), WIDTH // 3)
    lines = textwrap.wrap(printable(text), width, break_long_words=False, break_on_hyphens=False) or [""]
    yield printable(f"{head}{lines[0]}").rstrip()
    yield from (f"{indent}{line}" for line in lines[1:])


def _data(found: Comparison) -> Iterator[str]:
    for change in found.data:
        yield from _dataset(change)
    exact = any(change.psi is not None for change in found.data)
    for table in found.tables:
        estimated = not exact or table.before.part is None
        if estimated or table.columns:
            yield from _table(table, estimated)


def _dataset(change: DatasetChange) -> Iterator[str]:
    if change.same:
        return
    name = f"{RAW}/{change.name}"
    before, after = change.before, change.after
    if before is None or after is None:
        there = before or after
        assert there is not None
        what = f"{counted(len(there.partitions), 'partition')}, {counted(there.rows, 'row')}"
        yield printable(f"  {name}  {'new' if before is None else 'no longer read'}: {what}")
        return
    old, new = len(before.partitions), len(after.partitions)
    partitions = f"{old:,} -> {new:,} partitions" if old != new else counted(new, "partition")
    yield printable(f"  {name}  {partitions}, {wording.rows(before.rows, after.rows)}")
    yield from _few([f"    + {item.path}  {counted(item.rows, 'row')}" for item in change.added])
    yield from _few([f"    - {item.path}  {counted(item.rows, 'row')}" for item in change.removed])
    yield from _few(
        [
            f"    ~ {new.path}  {wording.rows(old.rows, new.rows)}, md5 {old.md5[:8]} -> {new.md5[:8]}"
            for old, new in change.replaced
        ]
    )
    if change.psi is not None:
        yield from _wrapped("    PSI of all rows: ", wording.psi(change.psi))


def _few(lines: Sequence[str]) -> Iterator[str]:
    yield from map(printable, lines[:_PARTITIONS])
    if len(lines) > _PARTITIONS:
        yield f"    {lines[0].strip()[0]} and {len(lines) - _PARTITIONS:,} more"


def _table(table: TableChange, estimated: bool) -> Iterator[str]:
    yield printable(f"  {wording.table_name(table)}  {wording.rows(table.before.rows, table.after.rows)}")
    for column in table.columns:
        yield printable(f"    column {column.name}  {wording.from_to(column)}")
    if estimated and table.psi:
        yield from _wrapped("    PSI, estimated: ", wording.psi(table.psi))


def _code(found: Comparison) -> Iterator[str]:
    rows = []
    for item in found.code.stages:
        said = [_file(file.path, file.kind) for file in item.files]
        if item.command is not None:
            said.append(f"command {wording.from_to(item.command)}")
        rows.append((item.stage, ", ".join(said)))
    if found.code.outside:
        rows.append(("no stage", ", ".join(_file(*file) for file in wording.outside(found.code.outside))))
    yield from _rows(rows)


def _file(path: str, kind: str) -> str:
    return path if kind == "changed" else f"{path} {kind}"


def _parameters(found: Comparison) -> Iterator[str]:
    yield from _rows(
        [
            (item.change.name, wording.from_to(item.change), f"read by {', '.join(item.stages) or 'no stage'}")
            for item in found.parameters
        ]
    )


def _environment(found: Comparison) -> Iterator[str]:
    environment = found.environment
    if environment.same:
        return
    changed = [*([environment.python] if environment.python is not None else []), *environment.packages]
    yield from _rows([(change.name, wording.from_to(change)) for change in changed])
    if not changed:
        yield "  the lock differs in nothing that is installed"


def _metrics(found: Comparison) -> Iterator[str]:
    note = wording.metrics_note(found)
    values = found.metrics.values if found.a.trained and found.b.trained else ()
    if note is None and all(value.before == value.after for value in values):
        return
    shown = [
        (value.name, wording.metric(value.before), wording.metric(value.after), wording.difference(value.difference))
        for value in values
    ]
    yield from _rows(shown)
    if note is not None:
        yield from _wrapped("  ! " if found.metrics.comparable is False else "  ", note)


def _stages(found: Comparison) -> Iterator[str]:
    idle = wording.idle(found)
    if idle is not None:
        yield f"{'stages':<13}unchanged: {idle}"
        return
    yield wording.stages_title(found)
    yield from _rows([(stage.name, wording.stage(stage)) for stage in found.stages])
