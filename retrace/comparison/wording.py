"""How a comparison's parts are said, in text and in Markdown alike."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from pathlib import PurePosixPath
from typing import Any

from retrace.comparison.changes import Change
from retrace.comparison.code import File
from retrace.comparison.compared import Comparison
from retrace.comparison.content import Content
from retrace.comparison.psi import ColumnPsi
from retrace.comparison.reasons import Reason, StageReasons
from retrace.comparison.tables import TableChange
from retrace.reader import last_day
from retrace.wording import counted

SHORT = 12
_VALUE = 60
_HASH = re.compile(r"[0-9a-f]{32,}")
_FILES = 12  # more files of no stage than these are counted by folder


def value(given: Any) -> str:
    """A value on one line, cut where it is long; a hash by its beginning."""
    text = given if isinstance(given, str) else json.dumps(given, default=str)
    if _HASH.fullmatch(text):
        return text[:SHORT]
    text = " ".join(text.split()) or '""'
    return text if len(text) <= _VALUE else f"{text[: _VALUE - 1]}…"


def from_to(change: Change) -> str:
    """`1 -> 2`, `new: 2` or `was 1`."""
    if change.kind == "added":
        return f"new: {value(change.after)}"
    if change.kind == "removed":
        return f"was {value(change.before)}"
    return f"{value(change.before)} -> {value(change.after)}"


def side(content: Content) -> str:
    """What a side is made of: its code and its data."""
    data = content.data
    code = f"code {content.code[:SHORT]}"
    if content.edited:
        code += " with changes that are not committed"
    at = f" {data.commit[:SHORT]}" if data.commit is not None else ""
    through = f" through {last_day(data.through)}" if data.through is not None else ""
    newest = ", the newest of the branch data" if data.newest else ""
    return f"{code}; data{at}{through}{newest}{'' if content.trained else '; not trained'}"


def rows(before: int, after: int) -> str:
    """`10 -> 12 rows`, or `10 rows`."""
    return f"{before:,} -> {after:,} rows" if before != after else counted(after, "row")


def table_name(change: TableChange) -> str:
    """A table, and the partitions that its statistics are of."""
    old, new = change.before.part, change.after.part
    if old is None or new is None:
        return change.name
    names = [PurePosixPath(part).stem for part in (old, new)]
    return f"{change.name}, last brought: {' -> '.join(dict.fromkeys(names))}"


def psi(moved: Sequence[ColumnPsi]) -> str:
    """The columns that moved, the farthest first, and how many did not."""
    told = sorted((item for item in moved if item.reading != "stable"), key=lambda item: -item.value)
    stable = len(moved) - len(told)
    words = [f"{item.column} {item.value:.2f} {item.reading}" for item in told]
    if stable or not moved:
        words.append(f"{counted(stable, 'column')} below 0.1" if told else f"all {counted(stable, 'column')} below 0.1")
    return ", ".join(words) if moved else "no column that both sides have as numbers"


def outside(files: Sequence[File]) -> Iterator[tuple[str, str]]:
    """The files of no stage with what became of them, one by one or, where they are many, counted by folder."""
    if len(files) <= _FILES:
        yield from ((file.path, file.kind) for file in files)
        return
    for folder, group in groupby(files, key=lambda file: file.path.partition("/")[0] if "/" in file.path else ""):
        listed = list(group)
        if folder and len(listed) > 1:
            yield f"{folder}/ ({counted(len(listed), 'file')})", "changed"
        else:
            yield from ((file.path, file.kind) for file in listed)


def difference(number: float | None) -> str:
    """A metric's difference with its sign, to six decimals."""
    return "" if number is None else f"{number:+.6g}" if round(number, 9) else "0"


def metric(given: Any) -> str:
    """A metric's value; a side that has none shows a dash."""
    return "-" if given is None else f"{given:.6g}" if isinstance(given, float) else value(given)


def metrics_note(found: Comparison) -> str | None:
    """What must be known before the metrics are compared."""
    untrained = [content.side.name for content in (found.a, found.b) if not content.trained]
    if untrained:
        return f"none of {' and '.join(dict.fromkeys(untrained))} to compare"
    if found.metrics.comparable is None:
        return "whether both were measured on the same holdout is not known: a side has no report of it"
    if not found.metrics.comparable:
        differs = "; ".join(f"{change.name} {from_to(change)}" for change in found.metrics.holdout)
        return f"the holdouts differ, so these numbers are not comparable: {differs}"
    return None


def idle(found: Comparison) -> str | None:
    """What is said of stages that are all unchanged."""
    if any(stage.state != "unchanged" for stage in found.stages):
        return None
    return "none had to run" if found.b.trained else "none would run: a retrain would make nothing new"


def stages_title(found: Comparison) -> str:
    return "why each stage had to run" if found.b.trained else "why each stage would run"


def stage(found: StageReasons) -> str:
    """Why a stage had to run, in one sentence."""
    if found.state == "unchanged":
        return "unchanged"
    if found.state == "added":
        return "a new stage"
    if found.state == "removed":
        return "no longer a stage"
    if found.state == "not deterministic":
        where = f"; it ran on another machine: {', '.join(found.machine)}" if found.machine else ""
        return f"read the same and made something else: {', '.join(found.outputs)} (not deterministic{where})"
    said = "; ".join(_reasons(found.reasons))
    if any(reason.stage is not None for reason in found.reasons):
        made = {reason.what for reason in found.reasons if reason.stage is None}
        roots = [root for root in found.roots if root not in made]
        said += f" (in the end because of {', '.join(roots)})" if roots else ""
    return f"only if other bytes come of {said}" if found.state == "depends" else said


def _reasons(reasons: Iterable[Reason]) -> Iterator[str]:
    for reason in reasons:
        if reason.kind == "command":
            yield f"command {value(reason.before)} -> {value(reason.after)}"
        elif reason.kind == "parameter":
            yield f"{reason.what} {value(reason.before)} -> {value(reason.after)}"
        elif reason.kind == "dependency":
            yield f"{'now reads' if reason.before is None else 'no longer reads'} {reason.what}"
        elif reason.kind == "output":
            yield f"{reason.what} of {reason.stage}"
        else:
            yield reason.what
