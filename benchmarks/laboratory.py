"""What the measurements share: a copy of the project in a temporary folder, its states, timed commands, tables."""

from __future__ import annotations

import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[1]
MODEL = "late_arrival"
STAGES = ("validate", "features", "train", "evaluate")
JUNE, JULY = "2013-07-01", "2013-08-01"  # data up to here, exclusive
_FOREIGN = ("RETRACE_", "AIRFLOW", "MLFLOW", "OPENLINEAGE", "GIT_", "PYTHON", "AWS_", "DVC_", "VIRTUAL_ENV")


class Failed(Exception):
    """A command of a measurement failed: there is no figure."""


@dataclass(frozen=True)
class Table:
    """One figure of the report."""

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    notes: Sequence[str] = ()

    def markdown(self) -> str:
        lines = [f"### {self.title}", "", _row(self.header), _row(["---", *["---:"] * (len(self.header) - 1)])]
        lines += [_row(row) for row in self.rows]
        return "\n".join([*lines, *([""] if self.notes else []), *(f"- {note}" for note in self.notes), ""])


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def seconds(values: Sequence[float]) -> str:
    """The median of repetitions, and from where to where they went."""
    middle = f"{statistics.median(values):.2f}"
    return middle if len(values) == 1 else f"{middle} ({min(values):.2f} to {max(values):.2f})"


def median(values: Sequence[float]) -> float:
    return statistics.median(values)


def megabytes(size: float) -> str:
    return f"{size / 1e6:.2f} MB"


def limit(holds: bool, text: str) -> str:
    """How a figure stands to its limit."""
    return f"{'within' if holds else '**OVER**'} the limit: {text}"


def tell(text: str) -> None:
    """Progress, on standard error: the tables alone go to standard output."""
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


@dataclass
class Laboratory:
    """A project of one's own in `folder`, which can be set back to the same state before every repetition.

    It always stands in the same place, since MLflow stores absolute addresses.
    """

    folder: Path
    repetitions: int
    small: bool = False
    first_times: dict[str, float] = field(default_factory=dict)

    @property
    def project(self) -> Path:
        return self.folder / "project"

    @property
    def var(self) -> Path:
        return self.project / "var"

    @property
    def environments(self) -> Path:
        return self.folder / "environments"

    @property
    def stage_environment(self) -> Path:
        """The stages' virtual environment."""
        return next(path.parent for path in self.environments.glob("*/.complete"))

    def environ(self, **more: str) -> dict[str, str]:
        """The environment of every command: nothing of the caller's that would change what is measured.

        The copy of Retrace is imported from the project, with its bytecode compiled like an installed package's.
        """
        kept = {name: value for name, value in os.environ.items() if not name.startswith(_FOREIGN)}
        bin_folder = Path(sys.executable).parent
        return {**kept, "PATH": f"{bin_folder}:{kept['PATH']}", "PYTHONPATH": str(self.project), **more}

    def run(self, command: Sequence[str], cwd: Path | None = None, environ: Mapping[str, str] | None = None) -> float:
        """Run a command and return its wall time; what it says goes to a file. Raises `Failed`."""
        os.sync()
        log = self.folder / "command.log"
        with open(log, "wb") as output:
            start = time.perf_counter()
            code = subprocess.call(
                command, cwd=cwd or self.project, env=environ or self.environ(), stdout=output, stderr=output
            )
            taken = time.perf_counter() - start
        if code:
            end = "\n".join(log.read_text(errors="replace").splitlines()[-15:])
            raise Failed(f"`{' '.join(command)}` ended with {code}:\n{end}")
        return taken

    def output(self) -> str:
        """What the last command said."""
        return (self.folder / "command.log").read_text(errors="replace")

    def retrace(self, *arguments: str, cwd: Path | None = None) -> float:
        return self.run([tool("retrace"), *arguments], cwd)

    def git(self, *arguments: str, cwd: Path | None = None) -> str:
        identity = ["-c", "user.name=Benchmark", "-c", "user.email=benchmark@localhost"]
        done = subprocess.run(
            ["git", *identity, *arguments], cwd=cwd or self.project, env=self.environ(), capture_output=True, text=True
        )
        if done.returncode:
            raise Failed(f"git {' '.join(arguments)}: {done.stderr}")
        return done.stdout.strip()

    def restore(self, state: str) -> None:
        """Set the project to a state: `new`, `ingested` (data of June), `pulled` (raw data in the checkout, too) or
        `trained` (one version). States are made once, each from the one before."""
        saved = self.folder / "states" / state
        if not saved.exists():
            tell(f"making the state {state}")
            _STATES[state](self)
            copy_tree(self.project, saved)
        else:
            remove_tree(self.project)
            copy_tree(saved, self.project)

    def new_copy(self, target: Path) -> None:
        """The repository as it stands in this working copy, committed as a project of its own, with no state."""
        listing = ["git", "ls-files", "-co", "--exclude-standard", "-z"]
        names = subprocess.run(listing, cwd=ROOT, capture_output=True, check=True, text=True).stdout.split("\0")
        for name in names:
            if name and (ROOT / name).is_file():
                (target / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(ROOT / name, target / name)
        if self.small:
            params = target / "params.yaml"
            params.write_text(re.sub(r"tuning_rows: \d+", "tuning_rows: 2000", params.read_text()))
        self.git("init", "--quiet", "--initial-branch=main", cwd=target)
        self.git("add", "--all", cwd=target)
        self.git("commit", "--quiet", "--message=project", cwd=target)
        self.run([sys.executable, "-m", "compileall", "-q", "retrace"], target)

    def edit(self, path: str, change: Callable[[str], str]) -> None:
        """Edit a file of the project and commit it."""
        file = self.project / path
        before = file.read_text()
        file.write_text(change(before))
        if file.read_text() == before:
            raise Failed(f"the edit of {path} changed nothing")
        self.git("commit", "--quiet", "--all", f"--message=edit {path}")


def tool(name: str) -> str:
    """A program of the virtual environment that runs this."""
    return str(Path(sys.executable).with_name(name))


def copy_tree(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    subprocess.run(["cp", "-a", str(source), str(target)], check=True)


def remove_tree(folder: Path) -> None:
    """Also what DVC's cache made read-only."""
    if folder.exists():
        subprocess.run(["chmod", "-R", "u+w", str(folder)], check=True)
        shutil.rmtree(folder)


def _make_new(laboratory: Laboratory) -> None:
    laboratory.new_copy(laboratory.project)
    laboratory.var.mkdir()
    laboratory.environments.mkdir()
    (laboratory.var / "environments").symlink_to(laboratory.environments)
    lock = "from retrace import environment as e; from pathlib import Path; import sys; "
    lock += "l = e.EnvironmentLock(Path(e.PYTHON_VERSION).read_text().strip(), Path(e.REQUIREMENTS).read_bytes()); "
    lock += "e.ensure(l, Path('var/environments'))"
    laboratory.first_times["the stages' environment (packages already downloaded)"] = laboratory.run(
        [sys.executable, "-c", lock]
    )


def _make_ingested(laboratory: Laboratory) -> None:
    laboratory.restore("new")
    params = yaml.safe_load((laboratory.project / "params.yaml").read_text())
    source = laboratory.var / "source.db"
    python = str(laboratory.stage_environment / "bin/python")
    taken = laboratory.run([python, "-m", params["demo"]["source"], f"sqlite:///{source}"])
    laboratory.first_times["the demo's source database"] = taken
    prepare = "from pathlib import Path; from retrace.airflow.database import prepare_embedded; import sys; "
    prepare += "prepare_embedded(Path('var').resolve(), 2)"
    laboratory.first_times["Airflow's database (SQLite)"] = laboratory.run([sys.executable, "-c", prepare])
    taken = laboratory.retrace("ingest", "--until", JUNE)
    laboratory.first_times["`retrace ingest` of six months"] = taken


def _make_pulled(laboratory: Laboratory) -> None:
    laboratory.restore("ingested")
    laboratory.retrace("data", "pull")


def _make_trained(laboratory: Laboratory) -> None:
    laboratory.restore("ingested")
    laboratory.retrace("retrain", MODEL)


_STATES: dict[str, Callable[[Laboratory], None]] = {
    "new": _make_new,
    "ingested": _make_ingested,
    "pulled": _make_pulled,
    "trained": _make_trained,
}


@contextmanager
def laboratory(repetitions: int, small: bool) -> Iterator[Laboratory]:
    """A laboratory that is removed at the end, whatever happens."""
    folder = Path(tempfile.mkdtemp(prefix="retrace-benchmark-"))
    try:
        yield Laboratory(folder, repetitions, small)
    finally:
        remove_tree(folder)
