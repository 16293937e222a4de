"""`retrace log` and `retrace show`: versions and records as text or JSON, from git alone."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

from retrace import verdicts, versions
from retrace.config import Settings
from retrace.git import Git, Mirror
from retrace.reader import last_day, reader
from retrace.record import Record, StageRecord, read_record
from retrace.register import gate_facts
from retrace.verdicts import Verdict
from retrace.versions import Assignment, Version

_SHORT = 12
_SHOWN_METRICS = 2  # the gate's come first; `retrace show` has them all


def _aliases(git: Git, known: Iterable[Version]) -> dict[str, list[str]]:
    held: dict[str, list[str]] = {}
    for (_, alias), version in versions.champions(git, known).items():
        held.setdefault(version.name, []).append(alias)
    return held


def log_lines(settings: Settings, model: str | None, as_json: bool) -> Iterator[str]:
    """A line a version, newest last. Raises `UnknownModel`."""
    git = reader(settings)
    known = versions.versions(git) if model is None else versions.versions_of(git, model)
    held, judged = _aliases(git, known), verdicts.newest(git, known)
    if as_json:
        told = [_summary(item, held.get(item.name, []), judged.get(item.name)) for item in known]
        yield json.dumps(told, indent=1)
        return
    if not known:
        yield "no versions yet; `retrace retrain MODEL` makes the first"
        return
    rows = [("VERSION", "MADE", "DATA THROUGH", "HOLDOUT METRICS", "VERDICT", "ALIAS")]
    for version in known:
        metrics = "  ".join(f"{name} {value:.4g}" for name, value in list(version.metrics.items())[:_SHOWN_METRICS])
        made = f"{version.created.astimezone():%Y-%m-%d %H:%M}"
        verdict = judged[version.name].verdict if version.name in judged else "-"
        aliases = " ".join(held.get(version.name, []))
        rows.append((version.name, made, last_day(version.through), metrics, verdict, aliases))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        yield "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()


def _summary(version: Version, aliases: list[str], verdict: Verdict | None) -> dict[str, Any]:
    return {
        "version": version.name,
        "commit": version.commit,
        "created": version.created.isoformat(),
        "dataThrough": version.through.isoformat() if version.through else None,
        "metrics": version.metrics,
        "aliases": aliases,
        "verdict": _verdict(verdict) if verdict else None,
    }


def _verdict(verdict: Verdict) -> dict[str, Any]:
    return {"verdict": verdict.verdict, "when": verdict.when.isoformat(), "reason": verdict.reason}


def show_lines(settings: Settings, name: str, as_json: bool) -> Iterator[str]:
    """The whole record of a version. Raises `UnknownVersion`."""
    git = reader(settings)
    version = versions.find(git, name)
    record = read_record(git, version)
    head = git.fetch_ref(version.run_ref) if isinstance(git, Mirror) else git.resolve(version.run_ref)
    decision = gate_facts(git, version, head)
    given = [held for held in versions.assignments(git, version.model) if held.commit == version.commit]
    judged = verdicts.verdicts(git, version)
    if as_json:
        more = {
            "gate": decision and _gate(decision),
            "assignments": [_assignment(held) for held in given],
            "verdicts": [dict(verdict.facts) for verdict in judged],
        }
        yield json.dumps(record.as_dict() | more, indent=1, sort_keys=True)
        return
    yield from _text(git, record, decision)
    if given:
        yield "  assignments"
    for held in given:
        yield f"    {held.name}  {held.created.astimezone():%Y-%m-%d %H:%M}  by {held.by}: {held.because}"
    if judged:
        yield "  verdicts"
    for verdict in judged:
        said = f"{verdict.verdict}: {verdict.reason}" if verdict.reason else verdict.verdict
        yield f"    {verdict.when.astimezone():%Y-%m-%d %H:%M}  {said}"


def _gate(decision: dict[str, Any]) -> dict[str, Any]:
    return {key: decision[key] for key in ("passed", "promoted", "champion", "findings")}


def _assignment(held: Assignment) -> dict[str, str]:
    return {
        "name": held.name,
        "alias": held.alias,
        "created": held.created.isoformat(),
        "by": held.by,
        "because": held.because,
    }


def _text(git: Git, record: Record, decision: dict[str, Any] | None) -> Iterator[str]:
    version = record.version
    yield f"{version.name}  {' '.join(record.aliases)}".rstrip()
    yield f"  commit       {version.commit[:_SHORT]}  made {version.created.astimezone():%Y-%m-%d %H:%M:%S}"
    yield f"  run          {version.run_id}"
    subject = git.out("log", "-1", "--format=%s", record.code) if git.has(record.code) else ""
    yield f"  code         {record.code[:_SHORT]}  {subject[:70]}"
    yield f"  data         {record.data[:_SHORT]}  through {last_day(version.through)}"
    for dataset in record.datasets:
        parts = dataset.partitions
        span = f"{Path(parts[0].path).stem} .. {Path(parts[-1].path).stem}" if parts else "empty"
        yield f"    {dataset.name:<10} md5 {dataset.md5:<36}  {len(parts)} partitions {span}, {dataset.rows:,} rows"
    yield f"  environment  {record.environment[:_SHORT]}  Python {record.python}, {len(record.packages)} packages"
    yield f"  parameters   {record.parameters_digest[:_SHORT]}"
    for part, values in record.metrics.items():
        shown = "  ".join(f"{key} {value:g}" for key, value in values.items())
        yield f"  {part:<11}  {shown}"
    yield "  stages"
    for stage in record.stages:
        yield from _stage_text(stage)
    if decision is not None:
        yield f"  gate         {'promoted' if decision['promoted'] else 'not promoted'}"
        for finding in decision["findings"]:
            yield f"    {'+' if finding['passed'] else '-'} {finding['text']}"


def _stage_text(stage: StageRecord) -> Iterator[str]:
    seconds = (datetime.fromisoformat(stage.ended) - datetime.fromisoformat(stage.started)).total_seconds()
    yield f"    {stage.name:<10} {seconds:6.1f} s  {stage.facts['machine']['processor']}"
    for output in stage.facts["outputs"]:
        size = sum(int(file["size"]) for file in output["files"])
        yield f"      {output['path']:<38} md5 {output['md5']:<36} {size:>12,} bytes"
