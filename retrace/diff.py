"""`retrace diff`: what differs between two versions, a version and code, or a version and the working copy.

retrace diff late_arrival@v1 late_arrival@v2      two versions
retrace diff late_arrival@champion main           what a retrain of main on the newest data would change
retrace diff late_arrival@v2 . --patch            what has been edited since, with the code's changes line by line
"""

from __future__ import annotations

from collections.abc import Iterator

from retrace.comparison.compared import Comparison, compared
from retrace.comparison.objects import repository
from retrace.comparison.sides import WORKING_COPY, model_of, side
from retrace.config import Settings


def diff_lines(settings: Settings, a: str, b: str, *, form: str, patch: bool, exact: bool) -> Iterator[str]:
    """What differs from A to B as `text`, `json` or `markdown`; each is a version, a git revision or `.`.

    `exact` computes PSI of raw columns from the partitions themselves. Raises `NotComparable`, `UnknownVersion`,
    `UnknownRevision`, `ObjectsMissing` and what reading a side does.
    """
    found = _compared(settings, a, b, patch=patch, exact=exact)
    if form == "json":
        from retrace.comparison.as_json import json_text

        yield json_text(found)
    elif form == "markdown":
        from retrace.comparison.as_markdown import markdown_lines

        yield from markdown_lines(found)
    else:
        from retrace.comparison.as_text import text_lines

        yield from text_lines(found)


def _compared(settings: Settings, a: str, b: str, *, patch: bool, exact: bool) -> Comparison:
    model = model_of(a, b)
    ignored = [f"metrics/{model}.json", f"reports/{model}/holdout.json"]  # results that a `dvc repro` leaves there
    with repository(settings, ignored if WORKING_COPY in (a, b) else None) as (git, tree):
        first, second = (side(git, settings, model, asked, tree) for asked in (a, b))
        return compared(settings, git, model, first, second, with_patch=patch, exact=exact)
