"""What a sync remembers of a consumer, to save questions: nothing that it could not ask again."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass
class Journal:
    """The runs that a consumer was seen to hold, in the order in which they were seen, and what was found of them.

    `wrong`: of the held runs, those that it binds to other versions than git does. `healed`: job -> its latest run
    when posting its last good run again had not mended its picture. `current`: dataset -> its current version by the
    consumer's id, and who made it.
    """

    path: Path
    held: dict[str, None] = field(default_factory=dict)
    wrong: set[str] = field(default_factory=set)
    healed: dict[str, str] = field(default_factory=dict)
    current: dict[str, tuple[str, str]] = field(default_factory=dict)

    @classmethod
    def load(cls, folder: Path, url: str) -> Journal:
        """The journal of a consumer; an empty one if there is none, or if it cannot be read."""
        journal = cls(folder / f"{hashlib.sha256(url.encode()).hexdigest()[:16]}.json")
        try:
            kept = json.loads(journal.path.read_text())
            journal.held = dict.fromkeys(_texts(kept["held"]))
            journal.wrong = set(_texts(kept["wrong"])) & journal.held.keys()
            journal.healed = {str(job): str(run) for job, run in kept["healed"].items()}
            journal.current = {str(name): (str(version), str(run)) for name, (version, run) in kept["current"].items()}
        except (OSError, ValueError, TypeError, KeyError, AttributeError):
            journal.forget()
        return journal

    def forget(self) -> None:
        """Start from nothing: the consumer is not the one that this was written of."""
        self.held, self.wrong, self.healed, self.current = {}, set(), {}, {}

    def drop(self, runs: Collection[str]) -> None:
        """Ask for these runs again."""
        self.held = {run: None for run in self.held if run not in runs}
        self.wrong -= set(runs)

    def save(self) -> None:
        """Write it, whole or not at all."""
        kept = {"held": list(self.held), "wrong": sorted(self.wrong), "healed": self.healed, "current": self.current}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        aside = self.path.with_suffix(".new")
        aside.write_text(json.dumps(kept))
        os.replace(aside, self.path)


def _texts(values: Iterable[Any]) -> Iterable[str]:
    return (str(value) for value in values)
