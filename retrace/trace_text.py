"""A version's lineage for people: as a tree for a terminal, and as the flowchart that Mermaid draws.

What stands in git was written by others: nothing of it reaches a terminal or Mermaid but as text.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from retrace.config import Settings
from retrace.lineage.event import Read
from retrace.reader import last_day, reader
from retrace.trace import Carrier, Consequences, Dataset, Job, Snapshot, Sources, Tenure, Trace, trace

WIDTH = 110
_SHORT, _RUN = 12, 8  # of a hash; of the end of a run id, which begins with a time
_FEW = 3  # more versions than these are named by the first and the last
_PLAIN = re.compile(r"[^\w ./:,+()=-]", re.ASCII)


def printable(text: str) -> str:
    """The text with whatever a terminal would obey, or show as nothing, written as an escape."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def maker(job: Job, retrain: str) -> str:
    """Who made something: the job and its run, and the version, if that was in another retrain."""
    if job.carried_from is not None:
        return f"{job.short_name} {job.run[-_RUN:]} of {job.carried_from}"
    return f"{job.short_name} {job.run[-_RUN:]}" + (f" of run {job.made_in}" if job.made_in != retrain else "")


def named(carriers: Sequence[Carrier]) -> Iterator[tuple[str, str]]:
    """(versions, jobs) of those who carry the same results; many versions by the first and the last."""
    for jobs in dict.fromkeys(carrier.jobs for carrier in carriers):
        names = [carrier.version for carrier in carriers if carrier.jobs == jobs]
        shown = ", ".join(names) if len(names) <= _FEW else f"{names[0]} .. {names[-1]} ({len(names)} versions)"
        yield shown, ", ".join(jobs)


def decision(gate: object) -> str:
    """What the gate decided, in a word or two."""
    return "promoted" if isinstance(gate, dict) and gate["promoted"] else "not promoted"


@dataclass(frozen=True)
class _Node:
    """A line of the tree, and what hangs on it."""

    name: str
    version: str = ""
    said: str = ""
    below: Sequence[_Node] = ()


def lineage_lines(settings: Settings, name: str, *, up: bool, down: bool, columns: bool, form: str) -> Iterator[str]:
    """The lineage of a version as `text`, `json` or `mermaid`. Raises `UnknownVersion`, `NoLineage`."""
    git = reader(settings)
    found = trace(git, name, up=up, down=down)
    if form == "json":
        from retrace.trace_json import json_text

        yield json_text(git, found)
    elif form == "mermaid":
        yield from mermaid_lines(found)
    else:
        yield from text_lines(found, columns=columns)


def text_lines(trace: Trace, *, columns: bool = False) -> Iterator[str]:
    """The tree, at most `WIDTH` wide where names allow it."""
    version, sources = trace.version, trace.sources
    yield printable(f"{version.name}  {' '.join(trace.aliases)}".rstrip())
    made = f"  made {_minute(version.created)}, commit {version.commit[:_SHORT]}, in the run {version.run_id}"
    yield _cut(printable(made), WIDTH)
    if sources is not None:
        own = sources.own
        yield _cut(printable(f"  code {own.code[:_SHORT]}  {own.subject}"), WIDTH)
        old = "  (older than the newest then)" if own.backfill else ""
        yield _cut(printable(f"  data {own.data[:_SHORT]}  through {last_day(own.through)}{old}"), WIDTH)
        yield ""
        yield "made of: each dataset with its md5, and the job and run that made it"
        yield from _drawn(_reads(sources, sources.registration, {}))
    if trace.consequences is not None:
        yield ""
        yield "led to:"
        yield from _drawn(_led_to(trace.consequences) or [_Node("nothing yet")])
    if columns and sources is not None:
        yield ""
        yield from _columns(sources, version.model)


def _minute(moment: datetime) -> str:
    return f"{moment.astimezone():%Y-%m-%d %H:%M}"


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else f"{text[: width - 1]}…"


def _in_order(reads: Iterable[Read]) -> list[Read]:
    """The model first: its metrics are made of it."""
    return sorted(reads, key=lambda read: (not read.name.startswith("models/"), read.name))


def _reads(sources: Sources, job: Job, shown: dict[Dataset, bool]) -> list[_Node]:
    nodes = []
    for read in _in_order(job.reads):
        dataset = (read.name, read.version)
        above = dataset in shown
        shown[dataset] = True
        nodes.append(_Node(read.name, "", "as above") if above else _dataset(sources, read, shown))
    return nodes


def _dataset(sources: Sources, read: Read, shown: dict[Dataset, bool]) -> _Node:
    dataset, job = (read.name, read.version), sources.maker(read)
    run = f"ingest {read.run[-_RUN:]}" if read.run is not None else "made by a run that git does not know"
    if raw := sources.raw.get(dataset):
        count, span, rows = raw.summary
        leaf = _Node(f"{count:,} partitions", "", f"{span}, {rows:,} rows")
        return _Node(read.name, read.version[:_SHORT], run, [leaf])
    if job is None:
        return _Node(read.name, read.version[:_SHORT], run)
    said = maker(job, sources.registration.made_in)
    if snapshot := sources.snapshots.get(dataset):
        others = [node for node in _reads(sources, job, shown) if node.said != "as above"]
        return _Node(read.name, "", said, [*_meeting(snapshot), *others])
    return _Node(read.name, read.version[:_SHORT], said + _size(job, dataset), _reads(sources, job, shown))


def _meeting(snapshot: Snapshot) -> list[_Node]:
    return [
        _Node("code", snapshot.code[:_SHORT], snapshot.subject),
        _Node("data", snapshot.data[:_SHORT], f"through {last_day(snapshot.through)}"),
    ]


def _size(job: Job, dataset: Dataset) -> str:
    files = job.outputs[dataset].get("files", ()) if dataset in job.outputs else ()
    if not files:
        return ""
    size = f"{sum(int(file['size']) for file in files):,} bytes"
    return f", {size}" if len(files) == 1 else f", {len(files)} files, {size}"


def _led_to(found: Consequences) -> list[_Node]:
    nodes = []
    if found.gate is not None:
        said = [_Node(f"{'+' if item['passed'] else '-'} {item['text']}") for item in found.gate["findings"]]
        nodes.append(_Node("gate", "", f"{decision(found.gate)}, run {found.gate['run'][-_RUN:]}", said))
    nodes += [_tenure(tenure) for tenure in found.tenures]
    nodes += [_Node(versions, "", f"carries over its {jobs}") for versions, jobs in named(found.carriers)]
    return nodes


def _tenure(tenure: Tenure) -> _Node:
    held = tenure.assignment
    because = _Node(f"by {held.by}: {held.because}")
    return _Node(held.alias, "", f"{held.name}, {period(tenure, _minute)}", [because])


def period(tenure: Tenure, shown: Callable[[datetime], str]) -> str:
    """Since when an alias was held, and until when."""
    since = f"since {shown(tenure.assignment.created)}"
    if tenure.until is None:
        return since
    return f"{since} until {shown(tenure.until.created)}, then {tenure.until_version or 'another'}"


def _drawn(nodes: Sequence[_Node]) -> Iterator[str]:
    """The lines of a tree, names and versions in columns; a node of a name alone takes the whole line."""
    rows = [(printable(name), printable(node.version), printable(node.said)) for name, node in _branches(nodes, "")]
    tabular = [row for row in rows if row[1] or row[2]]
    names = max((len(row[0]) for row in tabular), default=0)
    versions = max((len(row[1]) for row in tabular), default=0)
    for name, version, said in rows:
        line = f"{name.ljust(names)}  {version.ljust(versions)}{'  ' if versions else ''}{said}".rstrip()
        yield _cut(line, max(WIDTH, names + versions + _SHORT))


def _branches(nodes: Sequence[_Node], indent: str) -> Iterator[tuple[str, _Node]]:
    for place, node in enumerate(nodes, start=1):
        last = place == len(nodes)
        yield f"{indent}{'└─' if last else '├─'} {node.name}", node
        yield from _branches(node.below, indent + ("   " if last else "│  "))


def sources_of_columns(sources: Sources) -> dict[Dataset, Mapping[str, Sequence[Dataset]]]:
    """Dataset -> column -> (dataset, column) it was made of, where an event on the way to the version tells that."""
    return {dataset: columns for job in sources.jobs.values() for dataset, columns in job.columns.items()}


def _columns(sources: Sources, model: str) -> Iterator[str]:
    told = sources_of_columns(sources)
    if not told:
        yield f"columns: not known; no stage of this version wrote reports/{model}/columns.json"
    for (name, version), columns in sorted(told.items()):
        yield printable(f"columns of {name} {version[:_SHORT]}:")
        width = max(len(printable(column)) for column in columns)
        for column, inputs in sorted(columns.items()):
            label = printable(column)
            for text in by_dataset(inputs) if inputs else ("nothing",):
                for line in textwrap.wrap(printable(text), max(WIDTH - width - 4, _SHORT), subsequent_indent="  "):
                    yield f"  {label.ljust(width)}  {line}"
                    label = ""


def by_dataset(inputs: Iterable[Dataset]) -> Iterator[str]:
    """`data/raw/flights: carrier, origin` for each dataset that columns come from."""
    found: dict[str, list[str]] = {}
    for dataset, column in inputs:
        found.setdefault(dataset, []).append(column)
    return (f"{dataset}: {', '.join(columns)}" for dataset, columns in sorted(found.items()))


def mermaid_lines(trace: Trace) -> Iterator[str]:
    """A flowchart from the sources to the version and on: a node for each dataset's version and each job's run."""
    chart = _Chart()
    version = chart.node(("version", ""), "([{}])", [trace.version.name, *trace.aliases])
    if trace.sources is not None:
        _draw_sources(chart, trace.sources, version)
    if trace.consequences is not None:
        _draw_consequences(chart, trace.consequences, version)
    yield "flowchart LR"
    yield from (f"  {line}" for line in (*chart.nodes, *chart.edges))


@dataclass
class _Chart:
    """Nodes and edges so far; a node is named by what it stands for, and is drawn once."""

    names: dict[tuple[str, str], str] = field(default_factory=dict)
    nodes: list[str] = field(default_factory=list)
    edges: dict[str, None] = field(default_factory=dict)

    def node(self, key: tuple[str, str], shape: str, lines: Iterable[str]) -> str:
        if key not in self.names:
            self.names[key] = f"n{len(self.names) + 1}"
            label = "<br/>".join(mermaid_text(line) for line in lines if line)
            self.nodes.append(self.names[key] + shape.format(f'"{label}"'))
        return self.names[key]

    def edge(self, source: str, target: str, label: str = "") -> None:
        arrow = f'-. "{mermaid_text(label)}" .->' if label else "-->"
        self.edges[f"{source} {arrow} {target}"] = None


def mermaid_text(text: str) -> str:
    """A text that Mermaid shows as it is: all but plain characters as the numbers of characters."""
    return _PLAIN.sub(lambda found: f"#{ord(found[0])};", printable(text))


def _draw_sources(chart: _Chart, sources: Sources, version: str) -> None:
    retrain = sources.registration.made_in
    waiting, done = [(sources.registration, version)], set()
    while waiting:
        job, target = waiting.pop(0)
        known = ("job", job.run) in chart.names
        of = f"of {job.carried_from}" if job.carried_from else f"of run {job.made_in}" if job.made_in != retrain else ""
        source = chart.node(("job", job.run), "[{}]", [job.name, f"run {job.run[-_RUN:]}", of])
        chart.edge(source, target)
        if known:
            continue
        for read in _in_order(job.reads):
            dataset = (read.name, read.version)
            node = chart.node(dataset, "[({})]", [read.name, *_essentials(sources, dataset)])
            chart.edge(node, source)
            maker_of_it = sources.maker(read)
            if maker_of_it is not None:
                waiting.append((maker_of_it, node))
            elif read.run is not None and dataset not in done:
                chart.edge(chart.node(("job", read.run), "[{}]", ["ingest.ingest", f"run {read.run[-_RUN:]}"]), node)
            done.add(dataset)


def _essentials(sources: Sources, dataset: Dataset) -> list[str]:
    if raw := sources.raw.get(dataset):
        count, span, _ = raw.summary
        return [dataset[1][:_SHORT], f"{count:,} partitions", span]
    if snapshot := sources.snapshots.get(dataset):
        return [f"code {snapshot.code[:_SHORT]}", f"data {snapshot.data[:_SHORT]}"]
    return [dataset[1][:_SHORT]]


def _draw_consequences(chart: _Chart, found: Consequences, version: str) -> None:
    if found.gate is not None:
        run = found.gate["run"]
        chart.edge(version, chart.node(("job", run), "[{}]", ["gate", f"run {run[-_RUN:]}", decision(found.gate)]))
    for tenure in found.tenures:
        held = tenure.assignment
        lines = [held.name, *period(tenure, lambda moment: f"{moment:%Y-%m-%d}").split(", "), f"by {held.by}"]
        chart.edge(version, chart.node(("alias", held.name), "{{{{{}}}}}", lines))
    for versions, jobs in named(found.carriers):
        chart.edge(version, chart.node(("carrier", versions), "([{}])", [versions]), f"carries over its {jobs}")
