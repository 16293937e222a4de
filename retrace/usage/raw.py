"""Raw data: the versions that a dataset, a partition, or some contents of one went into."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from pathlib import PurePosixPath

from retrace.dvcfiles import RAW, PipelineError
from retrace.manifest import Partition
from retrace.usage.answer import SHORT, Answer, Content, UnknownThing, Use, counted
from retrace.usage.holdings import Holdings
from retrace.usage.raw_data import MANIFEST, POINTER, RawData, by_version

_POINTED = re.compile(rb"^- md5: (?P<md5>[0-9a-f]{32}\.dir)\n(?:  .*\n)*?  nfiles: (?P<files>\d+)\n", re.MULTILINE)


def partition_answer(title: str, asked: Mapping[str, object], raw: RawData, found: Mapping[Partition, int]) -> Answer:
    """The answer about some contents of partitions, each with the manifests that have it."""
    held = raw.held(found)
    several = len({partition.path for partition in found}) > 1
    uses = []
    for version, items in by_version(raw.holdings, held).items():
        parts = [item.partition for item in items]
        told = (f"{part.path} md5 {part.md5[:SHORT]}" if several else f"md5 {part.md5[:SHORT]}" for part in parts)
        facts = {"partitions": [{"path": part.path, "md5": part.md5} for part in parts]}
        uses.append(Use(raw.holdings.named[version], ", ".join(told), facts))
    contents = []
    for item in held:
        text = f"md5 {item.partition.md5}  {item.partition.rows:,} rows"
        text = f"{item.partition.path}  {text}" if several else text
        contents.append(Content(text + (_NEWEST if item.in_newest else ""), item.facts, item.versions))
    return Answer(title, asked, uses, contents)


_NEWEST = "  (in the newest data)"


def about_path(holdings: Holdings, path: str, revision: str | None) -> Answer:
    """The answer about a dataset or a partition, with all contents it ever had, or that of a commit.

    Raises `UnknownThing`.
    """
    raw = RawData(holdings)
    known = ", ".join(f"{RAW}/{name}" for name in raw.datasets) or "none yet; run `retrace ingest`"
    parts = PurePosixPath(path).relative_to(RAW).parts
    dataset = parts[0].removesuffix(POINTER).removesuffix(MANIFEST) if parts else ""
    if dataset not in raw.datasets:
        raise UnknownThing(f"no dataset {path}; there are {known}")
    if len(parts) == 1:
        return _about_dataset(raw, dataset, revision)
    begin = f"{path} ".encode()
    found = raw.contents(lambda line: line.startswith(begin), dataset)
    if revision is not None:
        here = raw.manifests(oid for oid in holdings.ids([f"{revision}:{RAW}/{dataset}{MANIFEST}"]) if oid is not None)
        found = {partition: manifests for partition, manifests in found.items() if manifests & here}
    if not found:
        when = f" as of {revision[:SHORT]}" if revision else ""
        raise UnknownThing(
            f"{RAW}/{dataset} has had no partition {path}{when}; `retrace show VERSION --json` lists them"
        )
    asked = {"kind": "partition", "path": path, "commit": revision}
    return partition_answer(_titled(path, revision, len(found)), asked, raw, found)


def _titled(path: str, revision: str | None, contents: int) -> str:
    if revision is not None:
        return f"{path} as of {revision[:SHORT]}"
    return path if contents == 1 else f"{path}, {counted(contents, 'content')}"


def _about_dataset(raw: RawData, dataset: str, revision: str | None) -> Answer:
    path = f"{RAW}/{dataset}"
    pointers = [oid for oid, name in raw.pointers.items() if name == dataset]
    if revision is not None:
        here = raw.holdings.ids([f"{revision}:{path}{POINTER}"])[0]
        if here is None:
            raise UnknownThing(f"commit {revision[:SHORT]} has no {path}{POINTER}; name one of the branch data")
        pointers = [here]
    asked = {"kind": "dataset", "path": path, "commit": revision}
    return dataset_answer(_titled(path, revision, len(pointers)), asked, raw, pointers)


def dataset_answer(title: str, asked: Mapping[str, object], raw: RawData, pointers: Collection[str]) -> Answer:
    """The answer about some contents of a dataset, by the pointers that name them."""
    told = {oid: _pointed(content) for oid, content in raw.holdings.contents(pointers)}
    md5s = {oid: md5 for oid, (md5, _) in told.items()}
    having = raw.holding(md5s)
    uses = []
    for version, used in having.items():
        found = [md5s[oid] for oid in sorted(used)]
        uses.append(Use(raw.holdings.named[version], ", ".join(f"md5 {_short(md5)}" for md5 in found), {"md5": found}))
    contents = []
    for oid, md5 in md5s.items():
        newest = oid in raw.newest
        held = tuple(version for version, used in having.items() if oid in used)
        files = told[oid][1]
        text = f"md5 {md5}  {counted(files, 'partition')}" + ("  (the newest data)" if newest else "")
        contents.append(Content(text, {"md5": md5, "partitions": files, "inNewestData": newest}, held))
    return Answer(title, asked, uses, contents)


def _pointed(content: bytes) -> tuple[str, int]:
    """The md5 and the number of files in a pointer, as DVC writes it: parsing a thousand takes a second."""
    match = _POINTED.search(content)
    if match is None:
        raise PipelineError(f"a {POINTER} file of {RAW} names no folder; restore it from git (branch data)")
    return match["md5"].decode(), int(match["files"])


def _short(md5: str) -> str:
    return md5[:SHORT] + (".dir" if md5.endswith(".dir") else "")
