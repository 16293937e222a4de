"""The time machine: rebuilding, checking out, and asking about past versions."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.laboratory import (
    MODEL,
    ROOT,
    Failed,
    Laboratory,
    Table,
    limit,
    median,
    megabytes,
    remove_tree,
    seconds,
    tell,
    tool,
)
from benchmarks.partitions import CONDITION, SOUGHT_EVERY, Partitions, day, real, store_listings
from benchmarks.thousand import VERSIONS, make
from retrace.config import parse_params
from retrace.dvcfiles import RAW, object_path
from retrace.git import Git
from retrace.links import cloned

OVERHEAD, CHECKOUT, QUESTION = 0.05, 1.3, 0.3
_BEFORE = 999  # partitions before the first version's own: from the first version on there are a thousand
_VERDICT_EVERY = 5
_ROWS, _MANY_ROWS = 300, 10_000  # in a partition
_WHERE, _ALONE = "`retrace impact --where`", "DuckDB alone"


def measure_reproduce(laboratory: Laboratory) -> list[Table]:
    """`retrace reproduce` against what its stages take."""
    rows, notes = [], []
    for options in ((), ("--vary",)):
        walls, own = [], []
        for repetition in range(laboratory.repetitions):
            laboratory.restore("trained")
            name = " ".join(("retrace reproduce", *options))
            tell(f"{name} {repetition + 1}")
            walls.append(laboratory.retrace("reproduce", f"{MODEL}@v1", "--json", *options))
            text = laboratory.output()
            verdict = json.loads(text[text.index("{\n") :])
            own.append(sum(float(stage["seconds"]) for stage in verdict["stages"]))
        over = [wall - stages for wall, stages in zip(walls, own, strict=True)]
        share = median(over) / median(own)
        rows.append((f"`{name}`", seconds(walls), seconds(own), seconds(over), f"{share:.1%}"))
        notes.append(f"`{name}`: " + limit(share <= OVERHEAD, f"at most {OVERHEAD:.0%} over the stages' own time"))
    notes.append(f"verdict {verdict['verdict']}, sandbox {verdict['sandbox']}; the stages' environment was there")
    header = ("", "the command", "its stages", "over them", "of the stages")
    return [Table("Rebuilding a version (s)", header, rows, notes)]


def measure_checkout(laboratory: Laboratory) -> list[Table]:
    """`retrace checkout` against a worktree of git's and DVC's own checkout, from the same warm cache."""
    laboratory.restore("trained")
    ours, theirs = laboratory.folder / "checked-out", laboratory.folder / "worktree"
    environ = laboratory.environ(DVC_SITE_CACHE_DIR=str(laboratory.folder / "site"))
    steps = [
        f"git worktree add -q --detach {shlex.quote(str(theirs))} {MODEL}@v1",
        f"cd {shlex.quote(str(theirs))}",
        f"printf '[cache]\\n    dir = {laboratory.var / 'cache'}\\n' >.dvc/config.local",
        "dvc checkout -q --allow-missing",
    ]
    ours_taken, theirs_taken = [], []
    for repetition in range(max(5, laboratory.repetitions) + 1):
        tell(f"checkout {repetition}")
        for folder in (ours, theirs):
            remove_tree(folder)
        laboratory.git("worktree", "prune")
        ours_taken.append(laboratory.retrace("checkout", f"{MODEL}@v1", str(ours)))
        theirs_taken.append(laboratory.run(["/bin/sh", "-c", " && ".join(steps)], environ=environ))
    rows = [
        ("`retrace checkout`", seconds(ours_taken[1:])),  # the first ones fill the cache of the file system
        ("`git worktree add`, `dvc checkout`", seconds(theirs_taken[1:])),
    ]
    times = median(ours_taken[1:]) / median(theirs_taken[1:])
    notes = [limit(times <= CHECKOUT, f"at most {CHECKOUT:g} times; {times:.2f} times"), _links(laboratory, ours)]
    _refuse_difference(ours, theirs)
    return [Table("Checking a version out, with all its data (s)", ("", "median (from, to)"), rows, notes)]


def _refuse_difference(ours: Path, theirs: Path) -> None:
    """Raises `Failed` if the two sides did not make the same files."""
    mine, others = (
        {
            str(file.relative_to(folder)): file.stat().st_size
            for top in ("data", "models")
            for file in (folder / top).rglob("*")
            if file.is_file()
        }
        for folder in (ours, theirs)
    )
    if mine != others:
        raise Failed(f"the two checkouts differ: {sorted(mine.items() ^ others.items())[:5]}")


def _links(laboratory: Laboratory, folder: Path) -> str:
    """How the data came: as links where the file system and the user can."""
    files = [file for file in folder.rglob("*.parquet") if file.is_file()]
    linked = sum(file.stat().st_size for file in files if file.stat().st_nlink > 1)
    size = megabytes(sum(file.stat().st_size for file in files))
    trial = laboratory.folder / "trial"
    clones = cloned(files[0], trial)
    trial.unlink(missing_ok=True)
    if clones:
        return f"{size} of tables, none copied: clones that share the cache's blocks"
    why = " (root gets no hard links: it could write through them)" if os.geteuid() == 0 else ""
    return f"{size} of tables, of it {megabytes(linked)} as hard links{why}; the file system has no clones"


def measure_questions(laboratory: Laboratory) -> list[Table]:
    """What is asked of git alone, among a thousand versions of a thousand partitions."""
    folder = laboratory.folder / "thousand"
    tell(f"thousand_versions: making {VERSIONS} versions of {_BEFORE + 1} to {_BEFORE + VERSIONS} partitions")
    datasets = _partitions(folder, laboratory.folder / "scratch", _ROWS)
    size = make(folder, datasets, _VERDICT_EVERY)
    _refuse_untrue(folder, datasets)
    commands = {
        **{f"`retrace {' '.join(command)}`": [tool("retrace"), *command] for command in _questions(datasets[0])},
        **_searches(folder, datasets[0]),
    }
    start = "`retrace --help`: Python and the command's own start"
    times = _timed(laboratory, folder, {start: [tool("retrace"), "--help"], **commands})
    begun = median(times[start])
    over = {name: median(taken) - begun for name, taken in times.items()}
    rows = [(name, seconds(taken), f"{over[name]:.2f}" if name in commands else "") for name, taken in times.items()]
    late = [name for name in commands if name not in (_WHERE, _ALONE) and over[name] > QUESTION]
    told = f"at most {QUESTION:g} s beyond the start" + (f"; not so {', '.join(late)}" if late else "")
    notes = [
        limit(not late, told),
        _compared(times, datasets[0], _ROWS),
        f"{VERSIONS} versions, {VERSIONS // _VERDICT_EVERY} verdicts, {len(datasets)} datasets of {_BEFORE + 1} to "
        f"{_BEFORE + VERSIONS} partitions, {_BEFORE + VERSIONS} data commits, {megabytes(size)} of git; no index",
    ]
    return [Table("Asking about a thousand versions (s)", ("", "median (from, to)", "beyond the start"), rows, notes)]


def measure_search(laboratory: Laboratory) -> list[Table]:
    """The search of records where there are many: what is fixed for a command weighs less."""
    folder = laboratory.folder / "searched"
    tell(f"search: making {_BEFORE + VERSIONS} partitions of {_MANY_ROWS} rows")
    datasets = _partitions(folder, laboratory.folder / "scratch", _MANY_ROWS)
    make(folder, datasets)
    times = _timed(laboratory, folder, _searches(folder, datasets[0]))
    rows = [(name, seconds(taken)) for name, taken in times.items()]
    return [
        Table("Searching records (s)", ("", "median (from, to)"), rows, [_compared(times, datasets[0], _MANY_ROWS)])
    ]


def _searches(folder: Path, dataset: Partitions) -> dict[str, list[str]]:
    """The same search by Retrace, and by DuckDB alone, which is told where the objects are."""
    return {
        _WHERE: [tool("retrace"), "impact", "--where", CONDITION, "--dataset", dataset.name],
        _ALONE: [sys.executable, str(_bare_scan(folder, dataset))],
    }


def _compared(times: Mapping[str, Sequence[float]], dataset: Partitions, rows: int) -> str:
    return (
        f"{_WHERE} takes {median(times[_WHERE]) / median(times[_ALONE]):.2f} times what DuckDB alone does, whole "
        f"commands; both read {len(dataset.items)} partitions of {rows} rows and count the rows of each"
    )


def _questions(flights: Partitions) -> list[list[str]]:
    first, before, last = (f"{MODEL}@v{number}" for number in (1, VERSIONS - 1, VERSIONS))
    partition = flights.items[VERSIONS // 2]
    return [
        ["log"],
        ["log", MODEL],
        ["show", last],
        ["diff", first, last],
        ["diff", before, last],
        ["impact", partition.path],
        ["impact", partition.md5],
        ["impact", flights.items[-1].path],
        ["impact", "pipeline/features.py"],
    ]


def _timed(laboratory: Laboratory, folder: Path, commands: Mapping[str, Sequence[str]]) -> dict[str, list[float]]:
    """All commands in turns; the first turn compiles and is left out."""
    times: dict[str, list[float]] = {name: [] for name in commands}
    for repetition in range(max(7, laboratory.repetitions) + 1):
        tell(f"thousand_versions {repetition}")
        for name, command in commands.items():
            taken = laboratory.run(command, folder)
            if repetition:
                times[name].append(taken)
    return times


def _partitions(folder: Path, scratch: Path, rows: int) -> list[Partitions]:
    """Every dataset of params.yaml, its objects in the cache of the project that is to be in `folder`."""
    cache = folder / "var/cache"
    params = parse_params((ROOT / "params.yaml").read_text())
    datasets = [
        real(settings, _BEFORE + VERSIONS, rows, scratch, cache) for settings in params.ingest.datasets.values()
    ]
    for dataset in datasets:
        store_listings(dataset, _BEFORE + 1, cache)
    shutil.rmtree(scratch)
    return datasets


def _bare_scan(folder: Path, dataset: Partitions) -> Path:
    """A program that searches the same objects by DuckDB alone."""
    files = [str(object_path(folder / "var/cache", item.md5)) for item in dataset.items]
    program = folder / "var/scan.py"
    query = f"SELECT filename, count(*) FROM read_parquet(?, filename=true) WHERE {CONDITION} GROUP BY filename"
    program.write_text(
        f"import duckdb\nfound = duckdb.execute({query!r}, [{files!r}]).fetchall()\n"
        f"assert len(found) == {len(files) // SOUGHT_EVERY}, len(found)\n"
    )
    return program


def _refuse_untrue(folder: Path, datasets: Sequence[Partitions]) -> None:
    """Raises `Failed` if the repository is not the one that is told of: figures of another would be none."""
    git, version = Git(folder), f"{MODEL}@v1"
    for dataset in datasets:
        pointer, rows = git.read_many([f"{version}:{RAW}/{dataset.name}{suffix}" for suffix in (".dvc", ".manifest")])
        listing = object_path(folder / "var/cache", dataset.directory(_BEFORE + 1)).read_text()
        lines = (rows or b"").decode().splitlines()
        same = len(json.loads(listing)) == len(lines) == _BEFORE + 1 and day(_BEFORE + 1) in lines[-1]
        if not same or pointer is None or dataset.directory(_BEFORE + 1).encode() not in pointer:
            raise Failed(f"{version} is not of {_BEFORE + 1} partitions of {dataset.name}")
