"""The gate: may a new version take the champion's place? Rules stand in params.yaml, the answer in git.

A bound is a number or the champion's value on the same holdout. The champion is scored by its own code, environment and
model, at its commit, on the new data: its tree with `data/raw` of the new run, through the same stages and workspaces,
on a ref of its own (`refs/scores/...`) that never becomes a version.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime

from retrace import signatures, verdicts, versions
from retrace.config import GateRule, Params, Settings
from retrace.errors import RetraceError
from retrace.git import ABSENT, Mirror, RefMoved, RefUpdate, escape_ref_part, message
from retrace.lineage import event
from retrace.lineage.jobs import documentation
from retrace.register import gate_facts, holdout, holdout_metrics, registered, snapshot_facts
from retrace.runs import COMPLETE, SNAPSHOT, Task, chain, end_of, params_at, project_of, raw_files, with_data
from retrace.stage import StageCall, run_stage
from retrace.verify import require, require_holder
from retrace.versions import CHAMPION, Version

_BY_GATE = "gate: "


class HoldoutMismatch(RetraceError):
    """Champion and candidate were not scored on the same rows and labels, or not with the same costs."""


class MetricUnknown(RetraceError):
    """A gate rule names a metric that the evaluation did not write."""


@dataclass(frozen=True)
class Finding:
    """What one rule found, in words for a person."""

    passed: bool
    text: str


@dataclass(frozen=True)
class Decision:
    """The gate's answer for a version."""

    version: str
    passed: bool
    promoted: bool
    champion: str | None
    findings: tuple[Finding, ...]

    @property
    def reason(self) -> str:
        """One line: why it was or was not promoted."""
        failed = [finding.text for finding in self.findings if not finding.passed]
        return "; ".join(failed or [finding.text for finding in self.findings]) or "no rules"


def check(rule: GateRule, metrics: dict[str, float], champion: dict[str, float] | None) -> Finding:
    """Apply a rule. Without a champion a rule against it holds. Raises `MetricUnknown`."""
    if rule.metric not in metrics:
        raise MetricUnknown(
            f"the gate's rule on {rule.metric!r} in params.yaml: the evaluation wrote {', '.join(sorted(metrics))} only"
        )
    value, least = metrics[rule.metric], rule.at_least is not None
    bound = rule.at_least if least else rule.at_most
    if bound == CHAMPION:
        if champion is None:
            return Finding(True, f"{rule.metric} {value:g}: no champion yet")
        if rule.metric not in champion:
            raise MetricUnknown(
                f"the champion's evaluation has no metric {rule.metric!r}; drop the rule for one version"
            )
        reference = champion[rule.metric]
        limit = reference - rule.tolerance if least else reference + rule.tolerance
        shown = f"champion's {reference:g}" + (f" {'-' if least else '+'} {rule.tolerance:g}" if rule.tolerance else "")
    else:
        assert isinstance(bound, float)
        limit = bound - rule.tolerance if least else bound + rule.tolerance
        shown = f"{limit:g}"
    passed = value >= limit if least else value <= limit
    sign = (">=" if passed else "<") if least else ("<=" if passed else ">")
    return Finding(passed, f"{rule.metric} {value:g} {sign} {shown}")


def gate(settings: Settings, task: Task, commit: str, follow: Callable[[str], None] | None = None) -> Decision | None:
    """Judge the version at a commit and promote it if it passes; None when that was done in an earlier run.

    The rules are those of the run that judges, so that a version whose gate failed is judged again by corrected ones.
    Raises `HoldoutMismatch`, `MetricUnknown`, `NotVerified`, `NoSigningKey`, and what scoring the champion may raise.
    """
    mirror = Mirror.open(settings.mirror, settings.origin)
    mirror.fetch_record()
    started = datetime.now(UTC)
    version = next((held for held in versions.versions(mirror, task.run.model) if held.commit == commit), None)
    if version is None:
        return None
    said = gate_facts(mirror, version, mirror.fetch_ref(version.run_ref))
    if said is not None:
        if version.run_id != task.run.run_id:
            return None
        told = tuple(Finding(finding["passed"], finding["text"]) for finding in said["findings"])
        return Decision(said["version"], said["passed"], said["promoted"], said["champion"], told)
    require(settings, mirror, version)
    params = params_at(mirror, chain(mirror, end_of(mirror, task.run.ref))[0].commit)
    champion = _incumbent(mirror, version)
    if champion is not None and champion.commit == version.commit:
        decision = Decision(version.name, True, True, champion.name, (Finding(True, "is the champion already"),))
        _keep(settings, mirror, task, version, decision, started)
        return decision
    rules = params.models[version.model].gate
    reference = None
    if champion is not None and any(rule.against_champion for rule in rules):
        require_holder(settings, mirror, champion, CHAMPION)
        reference = _champion_metrics(settings, mirror, task, version, champion, params, follow)
    metrics = holdout_metrics(mirror, commit, version.model)
    findings = [check(rule, metrics, reference) for rule in rules]
    if snapshot_facts(mirror, commit, version.model).get("backfill"):
        findings.append(Finding(False, "made of older data than the newest (a backfill never promotes)"))
    passed = all(finding.passed for finding in findings)
    decision = Decision(version.name, passed, passed, champion.name if champion else None, tuple(findings))
    if passed:
        sign = signatures.required_signer(settings, mirror)
        versions.assign(mirror, version, CHAMPION, f"{_BY_GATE}{decision.reason}", sign=sign)
    _keep(settings, mirror, task, version, decision, started)
    return decision


def _incumbent(mirror: Mirror, version: Version) -> Version | None:
    """The champion that a version has to beat: the one before, if an earlier try of its gate broke off after it had
    put the version in that place and before it could say so."""
    given = [assignment for assignment in versions.assignments(mirror, version.model) if assignment.alias == CHAMPION]
    if given and given[-1].commit == version.commit and given[-1].because.startswith(_BY_GATE):
        del given[-1]
    known = {held.commit: held for held in versions.versions(mirror, version.model)}
    return next((known[assignment.commit] for assignment in reversed(given) if assignment.commit in known), None)


def _champion_metrics(
    settings: Settings,
    mirror: Mirror,
    task: Task,
    version: Version,
    champion: Version,
    params: Params,
    follow: Callable[[str], None] | None,
) -> dict[str, float]:
    """The champion's metrics on the candidate's holdout: as recorded if it was the same, else by scoring it."""
    wanted = holdout(mirror, version.commit, version.model)
    if not wanted:
        raise HoldoutMismatch(
            f"reports/{version.model}/holdout.json is not in commit {version.commit[:8]}, so that {version.name} "
            "cannot be compared with the champion; the evaluate stage must write it"
        )
    commit = champion.commit
    found = holdout(mirror, commit, version.model)
    if found != wanted:
        ticket = verdicts.ticket_of(mirror, champion)
        if ticket is not None:
            raise HoldoutMismatch(
                f"{champion.name} was forgotten on request {ticket} and cannot be scored on the data of "
                f"{version.name}; if that is good enough, promote it by hand: retrace promote {version.name} --because "
                "TEXT"
            )
        if follow is not None:
            follow(f"scores {champion.name} on the new holdout")
        commit = score(settings, task, champion, version.commit, params.models[version.model].timeout_minutes * 60)
        found = holdout(mirror, commit, version.model)
    if found != wanted:
        raise HoldoutMismatch(
            f"{champion.name} and {version.name} were not scored on the same holdout ({_difference(found, wanted)}): "
            "their code or params.yaml chooses rows, labels or what a mistake costs differently; compare them in "
            f"another way, and promote by hand: retrace promote {version.name} --because TEXT"
        )
    return holdout_metrics(mirror, commit, version.model)


def _difference(found: dict[str, object], wanted: dict[str, object]) -> str:
    keys = [key for key in {**wanted, **found} if found.get(key) != wanted.get(key)]
    return "; ".join(f"{key} {_short(found.get(key))} against {_short(wanted.get(key))}" for key in keys)


def _short(value: object) -> str:
    return str(value)[:40]


def score(settings: Settings, task: Task, version: Version, data: str, timeout: float) -> str:
    """Run an old version's own stages, all but its training, on the raw data of another commit.

    Returns the commit that holds the metrics; it is on `refs/scores/<model>/<version>--<data>`.
    """
    mirror = Mirror.open(settings.mirror, settings.origin)
    ref = f"refs/scores/{version.model}/v{version.number}--{escape_ref_part(task.run.run_id)}"
    commit = _score_base(mirror, ref, task, version, data)
    for stage in params_at(mirror, version.commit).models[version.model].score:
        job = Task(task.run, f"score-{stage}", event.fallback_run_id(ref, stage), task.attempt)
        call = StageCall(task=job, ref=ref, commit=commit, stage=stage, timeout=timeout)
        commit = run_stage(settings, call).commit
    return commit


def _score_base(mirror: Mirror, ref: str, task: Task, version: Version, data: str) -> str:
    text = message(
        f"{version.name} meets the data of {data[:8]}",
        {"Retrace-Stage": SNAPSHOT, "Retrace-State": COMPLETE, "Retrace-Run": task.run.run_id},
    )
    changes = with_data(mirror, version.commit, None) | raw_files(mirror, data)
    head = mirror.fetch_ref(ref)
    if head is None:
        commit = mirror.write_commit(version.commit, changes, [version.commit], text)
        try:
            mirror.push([RefUpdate(ref, commit, ABSENT)])
        except RefMoved:
            head = mirror.fetch_ref(ref)
        else:
            return commit
    assert head is not None
    first = mirror.out("log", "--first-parent", "--format=%H %P", head, f"^{version.commit}").splitlines()[-1]
    return first.split()[0]


def _keep(
    settings: Settings, mirror: Mirror, task: Task, version: Version, decision: Decision, started: datetime
) -> None:
    """Extend the ref of the run that made the version by the gate's event: the version's tag stands already."""
    from retrace.lineage.facets import as_json  # the client of OpenLineage is slow to import

    facts = {
        "version": decision.version,
        "passed": decision.passed,
        "promoted": decision.promoted,
        "champion": decision.champion,
        "findings": [{"passed": finding.passed, "text": finding.text} for finding in decision.findings],
    }
    told = event.Event(
        "COMPLETE",
        task.lineage_run_id,
        f"{version.model}.gate",
        started,
        datetime.now(UTC),
        inputs=[registered(mirror, version)],
        facts=facts,
        parent=task.parent,
        documentation=documentation(version.model, "gate"),
        code="params.yaml",
        commit=version.commit,
    )
    content = as_json(told, project_of(settings, mirror, version.commit, version.model))
    text = message(
        f"gate@{version.model}: {version.name} {'passes' if decision.passed else 'does not pass'}: {decision.reason}",
        {
            "Retrace-Stage": f"gate@{version.model}",
            "Retrace-State": COMPLETE,
            "Retrace-Run": task.run.run_id,
        },
    )
    while True:
        head = mirror.fetch_ref(version.run_ref)
        assert head is not None
        if gate_facts(mirror, version, head) is not None:
            return  # an earlier try, long dead, had this on its way
        commit = mirror.write_commit(head, {event.path(version.model, "gate"): content}, [head], text)
        try:
            mirror.push([RefUpdate(version.run_ref, commit, head)])
        except RefMoved:
            continue
        return
