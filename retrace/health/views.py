"""Whether MLflow and the lineage consumer show what git says; `retrace sync` mends what they lack."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import closing
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from retrace import verdicts, versions
from retrace.errors import RetraceError
from retrace.health.finding import Finding, Section, named
from retrace.health.scope import CONSUMER, MLFLOW, Scope
from retrace.health.services import SILENT
from retrace.lineage.settings import ConsumerSettings
from retrace.published import GIT_TAG, VERDICT, told_verdict
from retrace.registry.contact import sqlite_file
from retrace.verdicts import Verdict
from retrace.versions import CHAMPION, Version
from retrace.wording import counted

if TYPE_CHECKING:
    from retrace.lineage.consumer import Consumer
    from retrace.lineage.history import Told

_SECTION = "views"
_SYNC = "run `retrace sync`"
_BY_HAND = "delete the registered model in MLflow, then `retrace sync` writes it again"
_GRACE = timedelta(hours=1)  # the sync on a schedule will have been there by then


def views(scope: Scope, environ: Mapping[str, str] = os.environ) -> Section:
    """Compare each view with git, as far as it answers."""
    findings: list[Finding] = []
    said: list[str] = []
    if MLFLOW not in scope.silent:
        try:
            found = list(_registry(scope))
            findings += found
            said += [f"MLflow has {counted(len(scope.versions), 'version')}"] if not found else []
        except RetraceError as error:
            scope.silent[MLFLOW] = str(error)
            findings.append(Finding(SILENT, f"MLflow: {error}", facts={"service": MLFLOW}))
    if CONSUMER not in scope.silent and scope.origin_refs is not None:
        try:
            lacks = _lineage(scope, environ)
        except RetraceError as error:
            findings.append(Finding(SILENT, f"lineage: {error}", facts={"service": CONSUMER}))
        else:
            findings += [lacks] if isinstance(lacks, Finding) else []
            said += [lacks] if isinstance(lacks, str) else []
    return Section(_SECTION, ", ".join(said) or ("" if findings else "nothing to compare"), tuple(findings))


def _registry(scope: Scope) -> Iterator[Finding]:
    models: dict[str, list[Version]] = {}
    for version in scope.versions:
        models.setdefault(version.model, []).append(version)
    if not models:
        return
    file = sqlite_file(scope.settings.mlflow)
    if file is not None and not file.exists():
        yield _lacks([version.name for version in scope.versions])
        return
    from retrace.registry import Registry

    scope.follow("compares MLflow with git")
    registry = Registry(scope.settings.mlflow, scope.settings.mlflow_artifacts, scope.settings.patience)
    champions = versions.champions(scope.mirror, scope.versions)
    judged = verdicts.newest(scope.mirror, scope.versions)
    for model, own in sorted(models.items()):
        held = {alias: version for (name, alias), version in champions.items() if name == model}
        tags = registry.all_tags(model)
        yield from _versions(own, {number: told.get(GIT_TAG, "") for number, told in tags.items()})
        yield from _verdicts(own, judged, tags)
        yield from _aliases(model, held, registry.aliases(model))


def _lacks(names: list[str]) -> Finding:
    return Finding("mlflow-lacks", f"MLflow lacks {named(names)}; {_SYNC}", facts={"versions": names})


def _versions(own: list[Version], held: Mapping[int, str]) -> Iterator[Finding]:
    lacking = [version.name for version in own if version.number not in held]
    if lacking:
        yield _lacks(lacking)
    names = {version.number: version.name for version in own}
    for number, name in held.items():
        if name != names.get(number):
            model = own[0].model
            what = f"says that it is {name}" if name else "was made by hand"
            text = f"version {number} of {model} in MLflow {what}, which git does not know; {_BY_HAND}"
            yield Finding("mlflow-differs", text, facts={"model": model, "number": number})


def _verdicts(
    own: list[Version], judged: Mapping[str, Verdict], tags: Mapping[int, Mapping[str, str]]
) -> Iterator[Finding]:
    """Versions of which MLflow says something else than their last rebuild did, an hour ago or longer."""
    for version in own:
        verdict, told = judged.get(version.name), tags.get(version.number)
        if verdict is None or told is None or verdict.when > datetime.now(UTC) - _GRACE:
            continue
        wanted = told_verdict(verdict.verdict, verdict.when)
        if not wanted.items() <= told.items():
            there = told.get(VERDICT, "nothing")
            text = f"MLflow says {there} of the last rebuild of {version.name}, which was {verdict.verdict}; {_SYNC}"
            yield Finding("mlflow-verdict", text, facts={"version": version.name, "verdict": verdict.verdict})


def _aliases(model: str, held: Mapping[str, Version], shown: Mapping[str, int]) -> Iterator[Finding]:
    """Aliases that git assigns; others in MLflow are people's own."""
    for alias in sorted({*held, CHAMPION}):
        wanted = held[alias].number if alias in held else None
        if shown.get(alias) != wanted:
            there = f"v{shown[alias]}" if alias in shown else "nobody"
            way_out = _SYNC if wanted is not None else "take it away there"
            git = f"v{wanted}" if wanted is not None else "nobody"
            text = f"{alias} of {model} is {there} in MLflow and {git} in git; {way_out}"
            facts = {"model": model, "alias": alias, "mlflow": shown.get(alias), "git": wanted}
            yield Finding("mlflow-alias", text, facts=facts)


def _lineage(scope: Scope, environ: Mapping[str, str]) -> Finding | str | None:
    """How many finished runs the consumer lacks; a run of the last hour may still be on its way."""
    address = ConsumerSettings.of(environ)
    if address is None:
        return None
    from retrace.lineage.consumer import Consumer

    scope.follow("compares the lineage consumer with git")
    with closing(Consumer(address, scope.settings.patience)) as consumer:
        told, lacks = _lacking(scope, consumer)
    late = [event for event in lacks if event.started < datetime.now(UTC) - _GRACE]
    if not late:
        return f"the lineage consumer has {counted(told - len(lacks), 'run')}"
    text = f"the lineage consumer lacks {counted(len(late), 'run')}, such as of {late[0].job.name}; {_SYNC}"
    return Finding("lineage-lacks", text, facts={"runs": [event.run_id for event in late]})


def _lacking(scope: Scope, consumer: Consumer) -> tuple[int, list[Told]]:
    """How many runs git tells of, and those that the consumer does not hold.

    What the last sync saw there is not asked again, as long as the newest of each job still is.
    """
    from retrace.lineage.history import history
    from retrace.lineage.journal import Journal
    from retrace.lineage.sync import is_held

    seen = Journal.load(scope.settings.var / "lineage", consumer.settings.shown).held
    events = history(scope.mirror).events
    newest = {event.job: event.run_id for event in events if event.run_id in seen}
    trusted = all(is_held(consumer.run(run_id)) for run_id in newest.values())
    unknown = [event for event in events if not trusted or event.run_id not in seen]
    return len(events), [event for event in unknown if not is_held(consumer.run(event.run_id))]
