"""A hand-made tree with one stage, and what a test needs to run it in views."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from retrace.rebuild.conditions import Conditions
from retrace.rebuild.declared import Declared
from retrace.rebuild.sandbox import Kind, kinds
from retrace.rebuild.stage import Outcome, Surroundings, run
from retrace.rebuild.twice import run_twice

KINDS = kinds()
SANDBOXES = tuple(kind for kind in KINDS if kind != "view")
PARAMS = """\
models:
  alpha:
    train: {rate: 0.10, depth: 3}  # as it is written
    evaluate: {rate: 7}
  beta:
    train: {secret: 1}
"""


@dataclass(frozen=True)
class Site:
    """A tree below `tree`, and beside it the place for views; in `home` lies what no stage may see."""

    folder: Path
    kind: Kind

    @classmethod
    def make(cls, folder: Path, kind: Kind) -> Site:
        site = cls(folder, kind)
        site.write("params.yaml", PARAMS)
        site.write("pipeline/__init__.py", "")
        site.write("pipeline/other.py", "RATE = 0.3\n")
        site.write("data/known.txt", "known\n")
        site.write("data/extra.txt", "extra\n")
        site.write("home/prices.txt", "1 2 3\n", below=folder)
        return site

    @property
    def tree(self) -> Path:
        return self.folder / "tree"

    @property
    def home(self) -> Path:
        return self.folder / "home"

    def write(self, path: str, text: str, below: Path | None = None) -> None:
        place = (below or self.tree) / path
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(text)

    def around(self, **more: Any) -> Surroundings:
        """Surroundings in the virtual environment of the tests, which has pandas."""
        settled = {"conditions": Conditions(), "timeout": 60.0, **more}
        return Surroundings(self.folder / "site", Path(sys.prefix), self.kind, logs=self.folder / "logs", **settled)

    def declared(self, **more: Any) -> Declared:
        """The stage `train@alpha`, which reads little and writes a model."""
        settled: dict[str, Any] = {
            "address": "train@alpha",
            "command": "python -m pipeline.train",
            "dependencies": ("pipeline/__init__.py", "pipeline/train.py", "data/known.txt"),
            "parameters": {"params.yaml": ("models.alpha.train",)},
            "outputs": ("models/alpha.txt",),
        }
        return Declared(**{**settled, **more})

    def stage(self, program: str, **more: Any) -> Declared:
        """The stage, with this program."""
        self.write("pipeline/train.py", PROGRAM.format(program=program, home=str(self.home)))
        return self.declared(**more)

    def run(self, program: str, **more: Any) -> Outcome:
        return run(self.tree, self.stage(program, **more), self.around())

    def twice(self, program: str, **more: Any) -> tuple[Outcome, list[str]]:
        return run_twice(self.tree, self.stage(program, **more), self.around())

    def log(self) -> str:
        return (self.folder / "logs/train@alpha.log").read_text()

    def files(self) -> Mapping[str, str]:
        """Path -> hash of all that the tree and the home hold."""
        found = [path for root in (self.tree, self.home) for path in root.rglob("*") if path.is_file()]
        return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in found}


PROGRAM = """\
from pathlib import Path
import json, os, random, shutil, socket, subprocess, sys, tempfile, time

HOME = Path({home!r})
OUT = Path("models/alpha.txt")
text = ""
{program}
if not OUT.exists():
    OUT.write_text(Path("data/known.txt").read_text() + str(text))
"""


def processes_in(folder: Path) -> list[str]:
    """The command lines of processes that were started for a folder, be it in a sandbox of their own."""
    found = []
    for place in Path("/proc").glob("[0-9]*"):
        try:
            line, environ = (place / "cmdline").read_bytes(), (place / "environ").read_bytes()
        except OSError:
            continue
        if str(folder).encode() in line + environ:
            found.append(line.replace(b"\0", b" ").decode())
    return found


@contextmanager
def small_disk(place: Path, megabytes: int) -> Iterator[Path]:
    """A file system of this size."""
    place.mkdir(parents=True, exist_ok=True)
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", place], check=False)
    if mounted.returncode != 0:
        pytest.skip("only root may mount a file system that is small enough to fill")
    try:
        yield place
    finally:
        subprocess.run(["umount", place], check=True)
