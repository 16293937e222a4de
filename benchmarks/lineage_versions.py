"""`retrace lineage VERSION` where a model has a thousand versions, each of one more day of data."""

from __future__ import annotations

from benchmarks.laboratory import MODEL, Laboratory, Table, limit, median, megabytes, seconds, tell, tool
from benchmarks.partitions import invented
from benchmarks.thousand import VERSIONS, make

LIMIT = 0.3


def measure(laboratory: Laboratory) -> list[Table]:
    folder = laboratory.folder / "growing"
    tell(f"lineage_versions: making {VERSIONS} versions")
    size = make(folder, [invented(name, VERSIONS) for name in ("flights", "weather")])
    commands = {
        f"`retrace lineage {MODEL}@v{VERSIONS}`": [f"{MODEL}@v{VERSIONS}"],
        f"`retrace lineage {MODEL}@v1`": [f"{MODEL}@v1"],
        f"`retrace lineage {MODEL}@champion --format mermaid`": [f"{MODEL}@champion", "--format", "mermaid"],
        f"`retrace lineage {MODEL}@v{VERSIONS} --format json`": [f"{MODEL}@v{VERSIONS}", "--format", "json"],
    }
    times: dict[str, list[float]] = {name: [] for name in commands}
    start: list[float] = []
    for repetition in range(max(7, laboratory.repetitions)):
        tell(f"lineage_versions {repetition + 1}")
        for name, arguments in commands.items():
            taken = laboratory.run([tool("retrace"), "lineage", *arguments], folder)
            if repetition:  # the first one compiles
                times[name].append(taken)
        start.append(laboratory.run([tool("retrace"), "--help"], folder))
    rows = [(name, seconds(taken)) for name, taken in times.items()]
    rows.append(("`retrace --help`: Python and the command's own start", seconds(start[1:])))
    worst = max(median(taken) for name, taken in times.items() if "json" not in name)
    notes = [
        limit(worst <= LIMIT, f"at most {LIMIT:g} s for the whole command, as text and as a picture"),
        f"{VERSIONS} versions, {VERSIONS} data commits, {megabytes(size)} of git; JSON names the commit of each of "
        f"{2 * VERSIONS} partitions, from as many events",
    ]
    return [Table("Lineage of one of a thousand versions (s)", ("", "median (from, to)"), rows, notes)]
