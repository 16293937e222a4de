"""What was made of what, from the committed events: which runs used some raw data, at first or at any remove."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

_COMPLETE = "COMPLETE"
_NO_DATA = "snapshot/"  # code and data that met: what a stage read of the data it names itself


@dataclass(frozen=True)
class Made:
    """What one finished run of a stage says: its inputs' md5s, the runs that it read from, and all that it made.

    `outputs` maps each path of the lock and each file below it to md5 and sha256 (None for a folder).
    """

    run: str
    job: str
    inputs: frozenset[str]
    reads: tuple[tuple[str, str | None], ...]
    outputs: Mapping[str, tuple[str, str | None]] = field(hash=False)

    @property
    def objects(self) -> frozenset[str]:
        """The md5 of everything that it made."""
        return frozenset(md5 for md5, _ in self.outputs.values())


def made_by(content: bytes) -> Made | None:
    """What an event says of a run; None for a failure, and for what is no event of Retrace's."""
    try:
        told = json.loads(content)
        facts = told["run"]["facets"]["retrace"]
        if told["eventType"] != _COMPLETE:
            return None
        return Made(
            run=str(told["run"]["runId"]),
            job=str(told["job"]["name"]),
            inputs=frozenset(str(file["md5"]) for file in facts.get("inputs", ())),
            reads=tuple(
                (str(read["version"]), read["run"])
                for read in facts.get("reads", ())
                if not str(read["dataset"]).startswith(_NO_DATA)
            ),
            outputs=dict(_outputs(facts)),
        )
    except (ValueError, KeyError, TypeError):
        return None


def _outputs(facts: Mapping[str, Any]) -> Iterator[tuple[str, tuple[str, str | None]]]:
    for output in facts.get("outputs", ()):
        yield str(output["path"]), (str(output["md5"]), None)
        for file in output["files"]:
            yield str(file["path"]), (str(file["md5"]), str(file["sha256"]))


def tainted(events: Iterable[Made], raw: Collection[str], suspects: Collection[str] = ()) -> set[str]:
    """The runs that used any of these raw objects (partitions or lists of them), or what such a run made.

    `suspects` are md5s that count as such where the run that made them is none of these.
    """
    waiting = {made.run: made for made in events}
    known = frozenset(waiting)
    found: set[str] = set()
    bad = set(suspects)
    while True:
        new = [made for made in waiting.values() if _uses(made, raw, found, known, bad)]
        if not new:
            return found
        for made in new:
            del waiting[made.run]
            found.add(made.run)
            bad |= made.objects


def _uses(
    made: Made, raw: Collection[str], found: Collection[str], known: Collection[str], bad: Collection[str]
) -> bool:
    if any(md5 in raw for md5 in made.inputs):
        return True
    return any(version in raw or run in found or (run not in known and version in bad) for version, run in made.reads)
