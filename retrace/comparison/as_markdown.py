"""A comparison as Markdown, for a pull request: tables, and the patch in a block that ends where it says."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence

from retrace.card import markdown
from retrace.comparison import wording
from retrace.comparison.compared import Comparison
from retrace.comparison.data import DatasetChange
from retrace.dvcfiles import RAW
from retrace.trace_text import printable
from retrace.wording import counted

_PARTITIONS = 20
_SAME = "The same."


def markdown_lines(found: Comparison) -> Iterator[str]:
    """The whole answer; a section whose two sides are the same says so."""
    names = [content.side.name for content in (found.a, found.b)]
    yield f"## {markdown(names[0])} → {markdown(names[1])}"
    yield ""
    sides = zip(names, (found.a, found.b), strict=True)
    yield from (f"- {markdown(name)}: {markdown(wording.side(content))}" for name, content in sides)
    if found.same_version:
        yield from ("", "The same version.")
        return
    yield from _section("Data", _data(found))
    yield from _section("Code", _code(found))
    yield from _section("Parameters", _parameters(found))
    yield from _section("Environment", _environment(found))
    yield from _section("Metrics", _metrics(found))
    title = wording.stages_title(found)
    yield from _section(f"{title[0].upper()}{title[1:]}", _stages(found))
    if found.patch:
        yield from ("", "<details><summary>Patch</summary>", "", *_block(found.patch), "", "</details>")


def _section(title: str, lines: Iterable[str]) -> Iterator[str]:
    yield from ("", f"### {title}", "")
    listed = list(lines)
    yield from listed or [_SAME]


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    if rows:
        yield f"| {' | '.join(map(markdown, header))} |"
        yield f"|{'---|' * len(header)}"
        yield from (f"| {' | '.join(map(markdown, row))} |" for row in rows)


def _block(patch: str) -> list[str]:
    """A fenced block; the fence is longer than any in the patch."""
    fence = "`" * max(3, 1 + max((len(run) for run in re.findall("`+", patch)), default=0))
    lines = ("\t".join(printable(part) for part in line.split("\t")) for line in patch.splitlines())
    return [f"{fence}diff", *lines, fence]


def _data(found: Comparison) -> Iterator[str]:
    changed = [change for change in found.data if not change.same]
    yield from _table(
        ("dataset", "partition", "change", "rows"), [row for change in changed for row in _dataset(change)]
    )
    psi = [
        (f"{RAW}/{change.name}, all rows", item.column, f"{item.value:.3f}", item.reading)
        for change in changed
        for item in change.psi or ()
        if item.reading != "stable"
    ]
    tables = [table for table in found.tables if table.before.part is None or all(item.psi is None for item in changed)]
    psi += [
        (f"{wording.table_name(table)}, estimated", item.column, f"{item.value:.3f}", item.reading)
        for table in tables
        for item in table.psi
        if item.reading != "stable"
    ]
    columns = [
        (wording.table_name(table), column.name, wording.from_to(column))
        for table in found.tables
        for column in table.columns
    ]
    for header, rows in ((("table", "column", "type"), columns), (("PSI of", "column", "PSI", "reading"), psi)):
        if rows:
            yield ""
            yield from _table(header, rows)
    if tables and not psi:
        yield from ("", "PSI: all columns below 0.1.")


def _dataset(change: DatasetChange) -> Iterator[tuple[str, ...]]:
    name, before, after = f"{RAW}/{change.name}", change.before, change.after
    counts = [f"{len(side.partitions):,} partitions" if side is not None else "none" for side in (before, after)]
    rows = [side.rows if side is not None else 0 for side in (before, after)]
    yield name, " -> ".join(dict.fromkeys(counts)), "in all", wording.rows(rows[0], rows[1])
    listed = [(item.path, "added", counted(item.rows, "row")) for item in change.added]
    listed += [(item.path, "removed", counted(item.rows, "row")) for item in change.removed]
    listed += [(new.path, "replaced", wording.rows(old.rows, new.rows)) for old, new in change.replaced]
    yield from ((name, *row) for row in listed[:_PARTITIONS])
    if len(listed) > _PARTITIONS:
        yield name, f"and {len(listed) - _PARTITIONS:,} more", "not listed", "-"


def _code(found: Comparison) -> Iterator[str]:
    rows: list[tuple[str, str, str]] = []
    rows += [(item.stage, file.path, file.kind) for item in found.code.stages for file in item.files]
    rows += [(item.stage, "command", wording.from_to(item.command)) for item in found.code.stages if item.command]
    rows += [("no stage", path, kind) for path, kind in wording.outside(found.code.outside)]
    yield from _table(("stage", "file", "change"), rows)


def _parameters(found: Comparison) -> Iterator[str]:
    rows = [
        (item.change.name, wording.from_to(item.change), ", ".join(item.stages) or "no stage")
        for item in found.parameters
    ]
    yield from _table(("parameter", "from, to", "read by"), rows)


def _stages(found: Comparison) -> Iterator[str]:
    idle = wording.idle(found)
    if idle is not None:
        yield f"Unchanged: {idle}."
        return
    yield from _table(("stage", "because"), [(stage.name, wording.stage(stage)) for stage in found.stages])


def _environment(found: Comparison) -> Iterator[str]:
    environment = found.environment
    changed = [*([environment.python] if environment.python is not None else []), *environment.packages]
    yield from _table(("package", "from, to"), [(change.name, wording.from_to(change)) for change in changed])
    if not environment.same and not changed:
        yield "The lock differs in nothing that is installed."


def _metrics(found: Comparison) -> Iterator[str]:
    note = wording.metrics_note(found)
    if note is not None:
        yield from (f"> {markdown(note)}", "")
    rows = [
        (
            value.name,
            wording.metric(value.before),
            wording.metric(value.after),
            wording.difference(value.difference) or "-",
        )
        for value in (found.metrics.values if found.a.trained and found.b.trained else ())
    ]
    yield from _table(("metric", found.a.side.name, found.b.side.name, "difference"), rows)
