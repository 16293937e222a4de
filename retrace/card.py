"""A version's model card in Markdown, from git alone: the same bytes for the same state of git.

Most of a card never changes and stands beside the version in MLflow; who holds an alias and what the gate said come
later, and only a card that is made on demand has them. What stands in git was written by others and is shown as text.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import PurePosixPath
from typing import Any

from retrace import versions
from retrace.config import Settings
from retrace.environment import EnvironmentLock
from retrace.git import Git
from retrace.reader import last_day, reader
from retrace.record import Record, read_record
from retrace.trace import Consequences, Sources, Trace, trace
from retrace.trace_text import by_dataset, decision, mermaid_lines, period, printable, sources_of_columns
from retrace.versions import Version

CARD = "card.md"
_POINTS = 9  # of a curve, in its table
_MARKUP = re.compile(r"[\\`*_{}\[\]<>()#|~&$!]")
_CODE = re.compile(r"[\w ./@#:+=,-]+", re.ASCII)


def card_of(settings: Settings, name: str) -> str:
    """The card of a version as things stand. Raises `UnknownVersion`, `NoLineage`."""
    git = reader(settings)
    return card(git, versions.find(git, name))


def card(git: Git, version: Version, *, lasting: bool = False) -> str:
    """The card of a version; a `lasting` one says nothing that may change later. Raises `NoLineage`, `GitError`."""
    found = trace(git, version.name, down=not lasting)
    record = read_record(git, version)
    assert found.sources is not None
    return "\n".join(_lines(git, record, found, found.sources)).rstrip() + "\n"


def _lines(git: Git, record: Record, found: Trace, sources: Sources) -> Iterator[str]:
    version = record.version
    yield from (f"# {markdown(version.name)}", "", _sentence(record), "")
    yield f"Made {_minute(version.created)} in the run {markdown(version.run_id)}."
    yield from ("", *_standing(version, found.consequences), "")
    picture = mermaid_lines(Trace(found.version, (), sources, None))
    yield from ("## Made of", "", "```mermaid", *picture, "```", "")
    yield from _data(record, sources)
    yield from _metrics(git, record)
    if found.consequences is not None:
        yield from _gate(found.consequences)
    yield from _plots(git, record)
    yield from ("## Parameters", "", *_fenced("json", json.dumps(record.parameters, indent=1, default=str)), "")
    yield from _features(record, sources)
    yield from _environment(git, record, sources)
    yield from _hashes(record)
    yield from ("## Get it back", "", *_fenced("sh", _commands(version)))


def markdown(text: str) -> str:
    """A text that Markdown shows as it is, on one line."""
    return _MARKUP.sub(lambda found: f"\\{found[0]}", printable(text))


def _code(text: str) -> str:
    """A name as code, if nothing in it could end the code or a table's cell."""
    return f"`{text}`" if _CODE.fullmatch(text) else markdown(text)


def _fenced(kind: str, text: str) -> list[str]:
    """A block of code whose fence is longer than any in the text."""
    fence = "`" * max(3, 1 + max((len(run) for run in re.findall("`+", text)), default=0))
    return [f"{fence}{kind}", text, fence]


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    yield f"| {' | '.join(header)} |"
    yield f"|{'---|' * len(header)}"
    yield from (f"| {' | '.join(row)} |" for row in rows)
    yield ""


def _minute(moment: datetime) -> str:
    return f"{moment.astimezone(UTC):%Y-%m-%d %H:%M} UTC"


def _number(value: object) -> str:
    return f"{value:.6g}" if isinstance(value, float) else markdown(str(value))


def _sentence(record: Record) -> str:
    """What it predicts, as far as the keys of params.yaml say it."""
    features, train = (record.parameters.get(stage) for stage in ("features", "train"))
    label = features.get("label") if isinstance(features, Mapping) else None
    estimator = train.get("estimator") if isinstance(train, Mapping) else None
    what = f"A {_code(str(estimator))}" if estimator else "A model"
    if isinstance(label, Mapping):
        what += f" that predicts {_code(str(label.get('name')))}"
        if label.get("column") is not None:
            at_least = f" of at least {_number(label['at_least'])}" if label.get("at_least") is not None else ""
            what += f" ({_code(str(label['column']))}{at_least})"
    return f"{what}, made of {' and '.join(_code(dataset.name) for dataset in record.datasets)}."


def _standing(version: Version, found: Consequences | None) -> Iterator[str]:
    if found is None:
        yield f"Who holds it under an alias, and what the gate said: `retrace card {version.name}`."
    elif not found.tenures:
        yield "It has never held an alias."
    for tenure in found.tenures if found is not None else ():
        held = tenure.assignment
        yield f"- {_code(held.alias)} {period(tenure, _minute)}, by {markdown(held.by)}: {markdown(held.because)}"


def _data(record: Record, sources: Sources) -> Iterator[str]:
    own = sources.own
    yield from ("## Data", "")
    older = ", older than the newest then" if own.backfill else ""
    yield from (f"Through {last_day(own.through)}{older}: commit {_code(own.data)} of the branch data.", "")
    rows = [
        (
            _code(dataset.name),
            f"{len(dataset.partitions)}",
            _code(_span(partition.path for partition in dataset.partitions)),
            f"{dataset.rows:,}",
        )
        for dataset in record.datasets
    ]
    features = f"data/features/{record.version.model}/"
    files = [path for path in record.files() if path.startswith(features)]
    yield from _table(("dataset", "partitions", "from, to", "rows"), rows)
    if files:
        yield from (f"Features were made for {len(files)} of them: {_code(_span(sorted(files)))}.", "")


def _span(paths: Iterable[str]) -> str:
    names = [PurePosixPath(path).stem for path in paths]
    return " .. ".join(dict.fromkeys((names[0], names[-1]))) if names else "none"


def _metrics(git: Git, record: Record) -> Iterator[str]:
    yield from ("## Metrics", "")
    parts = {name: values for name, values in record.metrics.items() if isinstance(values, Mapping)}
    names = dict.fromkeys(name for values in parts.values() for name in values)
    rows = [(_code(name), *(_number(values.get(name, "")) for values in parts.values())) for name in names]
    yield from _table(("metric", *map(markdown, parts)), rows)
    holdout = git.read(record.version.commit, f"reports/{record.version.model}/holdout.json")
    if holdout is not None:
        told = json.loads(holdout)
        said = [f"{markdown(name)} {_number(told[name])}" for name in ("partition", "rows") if name in told]
        yield from (f"The holdout: {', '.join(said)}.", "")


def _gate(found: Consequences) -> Iterator[str]:
    yield from ("## Gate", "")
    if found.gate is None:
        yield from ("It has not spoken.", "")
        return
    yield from (f"The gate says: {decision(found.gate)}.", "")
    yield from (
        f"- {'holds' if item['passed'] else 'fails'}: {markdown(item['text'])}" for item in found.gate["findings"]
    )
    yield ""


def _plots(git: Git, record: Record) -> Iterator[str]:
    paths = [path for path in sorted(record.files()) if path.startswith("plots/") and path.endswith(".csv")]
    contents = git.read_many([f"{record.version.commit}:{path}" for path in paths])
    shown = [(path, content) for path, content in zip(paths, contents, strict=True) if content is not None]
    if shown:
        yield from ("## Plots", "")
    for path, content in shown:
        header, *rows = csv.reader(io.StringIO(content.decode(errors="replace")))
        chosen = sorted({round(place * (len(rows) - 1) / (_POINTS - 1)) for place in range(_POINTS)}) if rows else []
        link = f"[{_code(path)}]({path})" if re.fullmatch(r"[\w./-]+", path, re.ASCII) else markdown(path)
        yield from (f"{link}, {len(chosen)} of its {len(rows)} rows:", "")
        yield from _table([markdown(name) for name in header], [_cells(rows[place], len(header)) for place in chosen])


def _cells(row: Sequence[str], width: int) -> list[str]:
    """The cells of a table's row: as many as its header has."""
    return [markdown(cell) for cell in (*row, *[""] * width)][:width]


def _features(record: Record, sources: Sources) -> Iterator[str]:
    yield from ("## Features and their source columns", "")
    told = sources_of_columns(sources)
    if not told:
        yield from (f"Not known: no stage wrote `reports/{record.version.model}/columns.json`.", "")
    for (name, _), columns in sorted(told.items()):
        yield from (f"Columns of {_code(name)}:", "")
        rows = [
            (_code(column), "; ".join(map(markdown, by_dataset(inputs)))) for column, inputs in sorted(columns.items())
        ]
        yield from _table(("column", "made of"), rows)


def _environment(git: Git, record: Record, sources: Sources) -> Iterator[str]:
    lock = EnvironmentLock.of_commit(git, record.version.commit)
    pinned = re.findall(r"^([A-Za-z0-9][\w.\[\],-]*==[^\s;\\]+)", lock.requirements.decode(), re.M)
    yield from ("## Environment", "")
    yield f"- Python {markdown(record.python)}, lock {_code(record.environment)}"
    machines = {
        json.dumps(job.facts["machine"], sort_keys=True) for job in sources.jobs.values() if "machine" in job.facts
    }
    for machine in map(json.loads, sorted(machines)):
        yield f"- made on {markdown(', '.join(str(machine[key]) for key in sorted(machine)))}"
    yield f"- pinned: {', '.join(map(markdown, pinned)) or 'nothing'}"
    yield ""


def _hashes(record: Record) -> Iterator[str]:
    version, outputs = record.version, record.outputs()
    rows: list[tuple[str, str, Any]] = [
        ("commit of the version", "git", version.commit),
        ("tag of the version", "git", version.tag_object),
        ("code", "git", record.code),
        ("data", "git", record.data),
    ]
    rows += [(f"data/raw/{dataset.name}", "md5", dataset.md5) for dataset in record.datasets]
    features = f"data/features/{version.model}"
    rows += [(features, "md5", outputs[features])] if features in outputs else []
    for path, file in sorted(record.files().items()):
        if path.startswith(f"models/{version.model}."):
            rows += [(path, "md5", file["md5"]), (path, "sha256", file["sha256"])]
    rows += [("parameters", "sha256", record.parameters_digest), ("environment", "sha256", record.environment)]
    yield from ("## Hashes", "")
    yield from _table(("of", "", "hash"), [(markdown(what), kind, _code(value)) for what, kind, value in rows])


def _commands(version: Version) -> str:
    return (
        f"retrace checkout {version.name}    # a new folder with its code, data, features and model\n"
        f"retrace show {version.name}        # its record\n"
        f"retrace lineage {version.name}     # what it was made of, and what it led to"
    )
