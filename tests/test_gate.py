"""The gate: what its rules say, whom a version is compared with, and what is kept of the answer."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
from handmade import HOLDOUT, registered
from projects import Project, git

from retrace import gate as gates
from retrace import versions
from retrace.config import GateRule
from retrace.gate import Decision, Finding, HoldoutMismatch, MetricUnknown, check
from retrace.git import Mirror, RefUpdate
from retrace.lineage import event
from retrace.register import gate_facts
from retrace.runs import Run, chain
from retrace.versions import CHAMPION, Version

pytestmark = pytest.mark.usefixtures("forked")

ACCURATE = Finding(True, "accuracy 0.8 >= 0.5")


def judge(project: Project, version: Version, follow: Callable[[str], None] | None = None) -> Decision | None:
    return gates.gate(project.settings, project.task("alpha", version.run_id, "gate"), version.commit, follow)


def candidate(project: Project, run_id: str, **result: Any) -> Version:
    """A version by hand that nobody has judged."""
    return registered(project, run_id, **result).version


def scores(accuracy: float = 0.8, cost: float = 0.2, **more: float) -> dict[str, Any]:
    return {"holdout": {"accuracy": accuracy, "cost": cost, **more}}


def champion(project: Project) -> str | None:
    held = versions.champions(project.mirror).get(("alpha", CHAMPION))
    return held.name if held is not None else None


def told(project: Project, version: Version) -> dict[str, Any] | None:
    """What the gate's event on the run's ref says."""
    mirror = project.mirror
    return gate_facts(mirror, version, mirror.fetch_ref(version.run_ref))


def same_holdout(project: Project) -> dict[str, Any]:
    """The holdout on which alpha@v1 was evaluated."""
    return dict(json.loads(project.mirror.read("refs/tags/alpha@v1", "reports/alpha/holdout.json") or b""))


def refs(project: Project, kind: str) -> dict[str, str]:
    return {ref: oid for ref, oid in project.refs().items() if ref.startswith(f"refs/{kind}/")}


@pytest.mark.parametrize(
    ("rule", "value", "expected"),
    [
        ({"at_least": 0.5}, 0.5, Finding(True, "m 0.5 >= 0.5")),
        ({"at_least": 0.5}, 0.49, Finding(False, "m 0.49 < 0.5")),
        ({"at_most": 2}, 2.0, Finding(True, "m 2 <= 2")),
        ({"at_most": 2}, 2.25, Finding(False, "m 2.25 > 2")),
        ({"at_least": 0.5, "tolerance": 0.25}, 0.25, Finding(True, "m 0.25 >= 0.25")),
        ({"at_most": 0.5, "tolerance": 0.25}, 0.76, Finding(False, "m 0.76 > 0.75")),
        ({"at_least": 0.5}, float("nan"), Finding(False, "m nan < 0.5")),
        ({"at_most": 0.5}, float("nan"), Finding(False, "m nan > 0.5")),
    ],
)
def test_a_bound_passes_or_fails_with_the_numbers(rule: dict[str, Any], value: float, expected: Finding) -> None:
    assert check(GateRule(metric="m", **rule), {"m": value}, None) == expected


@pytest.mark.parametrize(
    ("rule", "value", "expected"),
    [
        ({"at_least": "champion"}, 0.75, Finding(True, "m 0.75 >= champion's 0.75")),
        ({"at_least": "champion"}, 0.5, Finding(False, "m 0.5 < champion's 0.75")),
        ({"at_least": "champion", "tolerance": 0.25}, 0.5, Finding(True, "m 0.5 >= champion's 0.75 - 0.25")),
        ({"at_least": "champion", "tolerance": 0.25}, 0.49, Finding(False, "m 0.49 < champion's 0.75 - 0.25")),
        ({"at_most": "champion"}, 0.75, Finding(True, "m 0.75 <= champion's 0.75")),
        ({"at_most": "champion", "tolerance": 0.25}, 1.0, Finding(True, "m 1 <= champion's 0.75 + 0.25")),
        ({"at_most": "champion", "tolerance": 0.25}, 1.01, Finding(False, "m 1.01 > champion's 0.75 + 0.25")),
    ],
)
def test_not_worse_than_the_champion_is_a_bound_too(rule: dict[str, Any], value: float, expected: Finding) -> None:
    assert check(GateRule(metric="m", **rule), {"m": value}, {"m": 0.75}) == expected
    assert check(GateRule(metric="m", **rule), {"m": value}, None) == Finding(True, f"m {value:g}: no champion yet")


def test_a_metric_that_nobody_wrote_is_told() -> None:
    with pytest.raises(MetricUnknown) as raised:
        check(GateRule(metric="auc", at_least=0.5), {"cost": 1, "accuracy": 1}, None)
    assert str(raised.value) == ("the gate's rule on 'auc' in params.yaml: the evaluation wrote accuracy, cost only")
    with pytest.raises(MetricUnknown) as raised:
        check(GateRule(metric="auc", at_least="champion"), {"auc": 1}, {"cost": 1})
    assert str(raised.value) == "the champion's evaluation has no metric 'auc'; drop the rule for one version"


def test_the_first_version_that_passes_is_champion(project: Project) -> None:
    poor = candidate(project, "poor", metrics=scores(accuracy=0.4))
    findings = (Finding(False, "accuracy 0.4 < 0.5"), Finding(True, "cost 0.2: no champion yet"))
    assert judge(project, poor) == Decision("alpha@v1", False, False, None, findings)
    assert champion(project) is None
    good = candidate(project, "good")
    decision = judge(project, good)
    assert decision == Decision("alpha@v2", True, True, None, (ACCURATE, findings[1]))
    assert decision.reason == "accuracy 0.8 >= 0.5; cost 0.2: no champion yet"
    (given,) = versions.assignments(project.mirror)
    assert (given.name, given.commit) == ("alpha#champion#1", good.commit)
    assert given.because == "gate: accuracy 0.8 >= 0.5; cost 0.2: no champion yet"


def test_a_version_that_does_not_pass_stays_a_version_and_its_run_says_why(trained: Project) -> None:
    dear = candidate(trained, "dear", metrics=scores(cost=0.25), holdout=same_holdout(trained))
    findings = (ACCURATE, Finding(False, "cost 0.25 > champion's 0.2 + 0.01"))
    decision = judge(trained, dear)
    assert decision == Decision("alpha@v2", False, False, "alpha@v1", findings)
    assert decision.reason == "cost 0.25 > champion's 0.2 + 0.01"
    assert champion(trained) == "alpha@v1"
    assert versions.find(trained.mirror, "alpha@v2") == dear
    mirror = trained.mirror
    head = mirror.fetch_ref(dear.run_ref)
    assert head is not None
    assert [link.stage for link in chain(mirror, head)] == ["snapshot", "evaluate@alpha", "gate@alpha"]
    assert git(trained.root, "log", "-1", "--format=%s", head) == (
        "gate@alpha: alpha@v2 does not pass: cost 0.25 > champion's 0.2 + 0.01"
    )
    content = json.loads(mirror.read(head, event.path("alpha", "gate")) or b"")
    assert (content["eventType"], content["job"]["name"]) == ("COMPLETE", "alpha.gate")
    assert content["run"]["runId"] == trained.task("alpha", "dear", "gate").lineage_run_id
    facts = told(trained, dear) or {}
    assert {key: facts[key] for key in ("version", "passed", "promoted", "champion")} == {
        "version": "alpha@v2",
        "passed": False,
        "promoted": False,
        "champion": "alpha@v1",
    }
    assert facts["findings"] == [vars(finding) for finding in findings]


def test_on_the_same_holdout_the_champion_is_not_scored_again(trained: Project) -> None:
    near = candidate(trained, "near", metrics=scores(cost=0.205), holdout=same_holdout(trained))
    decision = judge(trained, near)
    passed = Finding(True, "cost 0.205 <= champion's 0.2 + 0.01")
    assert decision == Decision("alpha@v2", True, True, "alpha@v1", (ACCURATE, passed))
    assert champion(trained) == "alpha@v2"
    assert not refs(trained, "scores")


def test_judging_twice_gives_the_same_decision_and_no_second_tag(trained: Project) -> None:
    good = candidate(trained, "good", holdout=same_holdout(trained))
    dear = candidate(trained, "dear", metrics=scores(cost=0.3), holdout=same_holdout(trained))
    first = judge(trained, good), judge(trained, dear)
    assert champion(trained) == "alpha@v2"
    before = trained.refs()
    assert (judge(trained, good), judge(trained, dear)) == first
    assert trained.refs() == before


def test_a_gate_that_is_run_again_does_not_bring_an_old_champion_back(trained: Project) -> None:
    first = candidate(trained, "second", holdout=same_holdout(trained))
    decision = judge(trained, first)
    assert decision is not None and decision.promoted
    later = candidate(trained, "third", holdout=same_holdout(trained))
    judge(trained, later)
    assert champion(trained) == later.name
    assert judge(trained, first) == decision
    assert champion(trained) == later.name


def test_what_is_no_version_or_was_judged_in_an_earlier_run_is_not_judged(trained: Project) -> None:
    first = versions.find(trained.mirror, "alpha@v1")
    commit = trained.snapshot("alpha", "again")
    kept = trained.refs()
    for judged in (commit, first.commit):
        assert gates.gate(trained.settings, trained.task("alpha", "again", "gate"), judged) is None
    assert trained.refs() == kept


def test_a_version_whose_gate_failed_is_judged_by_the_rules_of_the_next_run_that_ends_in_it(project: Project) -> None:
    project.edit_params(lambda params: params["models"]["alpha"]["gate"][0].update(metric="acuracy"))
    version = candidate(project, "slip", made="this")
    with pytest.raises(MetricUnknown, match="the gate's rule on 'acuracy' in params.yaml"):
        judge(project, version)
    assert told(project, version) is None
    project.edit_params(lambda params: params["models"]["alpha"]["gate"][0].update(metric="accuracy"))
    again = registered(project, "corrected", made="this")
    assert (again.version, again.new) == (version, False)
    decision = gates.gate(project.settings, project.task("alpha", "corrected", "gate"), again.version.commit)
    assert decision is not None and decision.promoted and champion(project) == version.name
    said = told(project, version)
    assert said is not None and said["promoted"]
    assert gates.gate(project.settings, project.task("alpha", "corrected", "gate"), version.commit) is None


def test_older_data_never_make_a_champion(project: Project) -> None:
    """By a date, by Airflow's backfill, with and without a champion, however good the metrics are."""
    older = Finding(False, "made of older data than the newest (a backfill never promotes)")
    for run_id, how in (("as of", {"as_of": "2013-03-01"}), ("backfill", {"backfill": True})):
        version = candidate(project, run_id, **how)
        decision = judge(project, version)
        assert decision is not None
        assert (decision.passed, decision.promoted, decision.findings[-1]) == (False, False, older)
        assert (told(project, version) or {})["findings"][-1] == vars(older)
    assert champion(project) is None
    newest = candidate(project, "as of now", as_of="2013-04-01")
    judge(project, newest)
    assert champion(project) == newest.name
    better = candidate(project, "better", as_of="2013-02-01", metrics=scores(accuracy=0.99, cost=0.01))
    decision = judge(project, better)
    assert decision is not None
    assert decision.reason == older.text
    assert champion(project) == newest.name


def test_without_rules_every_version_on_the_newest_data_is_champion(project: Project) -> None:
    version = registered(project, "one", model="beta").version
    task = project.task("beta", "one", "gate")
    decision = gates.gate(project.settings, task, version.commit)
    assert decision == Decision("beta@v1", True, True, None, ())
    assert decision.reason == "no rules"
    backfill = registered(project, "two", model="beta", backfill=True).version
    decision = gates.gate(project.settings, project.task("beta", "two", "gate"), backfill.commit)
    assert decision is not None
    assert (decision.champion, decision.promoted) == ("beta@v1", False)


def test_the_rules_are_those_of_the_version_s_commit(project: Project) -> None:
    strict = candidate(project, "strict", metrics=scores(accuracy=0.6))
    project.edit_params(lambda params: params["models"]["alpha"].update(gate=[{"metric": "accuracy", "at_least": 0.9}]))
    assert judge(project, strict) == Decision(
        "alpha@v1", True, True, None, (Finding(True, "accuracy 0.6 >= 0.5"), Finding(True, "cost 0.2: no champion yet"))
    )


def test_a_rule_on_an_unknown_metric_promotes_nobody(project: Project) -> None:
    version = candidate(project, "one", metrics={"holdout": {"accuracy": 0.9, "rmse": 1.0}})
    before = project.refs()
    with pytest.raises(MetricUnknown) as raised:
        judge(project, version)
    assert str(raised.value) == "the gate's rule on 'cost' in params.yaml: the evaluation wrote accuracy, rmse only"
    assert project.refs() == before


def test_a_metric_that_the_champion_did_not_have_is_told(trained: Project) -> None:
    rule = {"metric": "auc", "at_least": "champion"}
    trained.edit_params(lambda params: params["models"]["alpha"]["gate"].append(rule))
    version = candidate(trained, "auc", metrics=scores(auc=0.9), holdout=same_holdout(trained))
    with pytest.raises(MetricUnknown, match="^the champion's evaluation has no metric 'auc'; drop the rule for one v"):
        judge(trained, version)
    assert champion(trained) == "alpha@v1"


def test_without_a_holdout_there_is_no_comparison(project: Project) -> None:
    """Two versions that do not say what they were scored on were not scored on the same."""
    judge(project, candidate(project, "one", holdout=None))
    assert champion(project) == "alpha@v1"
    second = candidate(project, "two", holdout=None)
    with pytest.raises(HoldoutMismatch) as raised:
        judge(project, second)
    assert str(raised.value) == (
        f"reports/alpha/holdout.json is not in commit {second.commit[:8]}, so that alpha@v2 cannot be compared with "
        "the champion; the evaluate stage must write it"
    )
    assert champion(project) == "alpha@v1"


class Broken(Mirror):
    """A mirror that breaks off at its push of a run's ref: the machine dies between the tag and the event."""

    def push(self, updates: Iterable[RefUpdate]) -> None:
        updates = list(updates)
        if any(update.ref.startswith("refs/runs/") for update in updates):
            raise KeyboardInterrupt
        super().push(updates)


def test_a_gate_that_breaks_off_after_its_tag_finishes_the_next_time(
    trained: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = candidate(trained, "good", holdout=same_holdout(trained))
    monkeypatch.setattr(gates, "Mirror", Broken)
    with pytest.raises(KeyboardInterrupt):
        judge(trained, good)
    monkeypatch.undo()
    assert (champion(trained), told(trained, good)) == ("alpha@v2", None)
    tags = refs(trained, "tags")
    decision = judge(trained, good)
    assert decision is not None
    assert (decision.version, decision.promoted) == ("alpha@v2", True)
    assert (told(trained, good) or {})["promoted"] is True
    assert refs(trained, "tags") == tags


def test_what_a_person_promoted_before_the_gate_spoke_stays_champion(trained: Project) -> None:
    dear = candidate(trained, "dear", metrics=scores(cost=0.9), holdout=same_holdout(trained))
    versions.assign(trained.mirror, dear, CHAMPION, "we need it")
    tags = refs(trained, "tags")
    decision = judge(trained, dear)
    assert decision is not None
    assert (decision.promoted, decision.reason) == (True, "is the champion already")
    assert refs(trained, "tags") == tags
    assert (told(trained, dear) or {})["promoted"] is True


NEW_CODE = (
    'write(f"metrics/{model}.json", json.dumps({"holdout": {"accuracy": quality, "cost": 1 - quality}}))',
    'write(f"metrics/{model}.json", json.dumps({"holdout": {"accuracy": quality, "cost": 1.1 - quality, "new": 1}}))',
)


@pytest.fixture(scope="module")
def with_april(with_a_version: Project, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """Evaluation has other code since alpha@v1, and April has arrived; nobody's to change."""
    project = with_a_version.copy(tmp_path_factory.mktemp("april") / "project")
    project.fill("2013-04")
    project.ingest("2013-05-01")
    source = project.root / "pipeline/stage.py"
    assert NEW_CODE[0] in source.read_text()
    source.write_text(source.read_text().replace(*NEW_CODE))
    project.edit_params(lambda params: params["models"]["alpha"]["train"].update(quality=0.85))
    return project


@pytest.fixture
def april(with_april: Project, tmp_path: Path) -> Project:
    return with_april.copy(tmp_path / "project")


def test_the_champion_meets_new_data_with_its_own_code_parameters_and_model(april: Project) -> None:
    """By the new code the champion's cost would be 0.3, and 0.25 would do; by its own it is 0.2."""
    version, decision = april.retrain("alpha", "new")
    findings = (Finding(True, "accuracy 0.85 >= 0.5"), Finding(False, "cost 0.25 > champion's 0.2 + 0.01"))
    assert decision == Decision("alpha@v2", False, False, "alpha@v1", findings)
    assert champion(april) == "alpha@v1"
    ((ref, score),) = refs(april, "scores").items()
    assert ref == "refs/scores/alpha/v1--new"
    mirror = april.mirror
    mirror.fetch_ref(ref)
    old = versions.find(mirror, "alpha@v1").commit
    assert [link.stage for link in chain(mirror, score)] == ["snapshot", "features@alpha", "evaluate@alpha"]
    for path in ("pipeline/stage.py", "params.yaml", "pipeline/requirements.txt"):
        assert mirror.read(score, path) == mirror.read(old, path) != b""
    assert json.loads(mirror.read(score, "metrics/alpha.json") or b"")["holdout"] == {
        "accuracy": 0.8,
        "cost": pytest.approx(0.2),
    }
    for path in ("data/raw/events.dvc", "data/raw/events.manifest", "reports/alpha/holdout.json"):
        assert mirror.read(score, path) == mirror.read(version.commit, path) != mirror.read(old, path)
    assert [found.name for found in versions.versions(mirror)] == ["alpha@v1", "alpha@v2"]


def test_a_holdout_that_the_champion_s_code_chooses_differently_is_no_comparison(april: Project) -> None:
    other = {**HOLDOUT, "partition": "2013-04", "costs": {"missed": 4.0}}
    version = candidate(april, "other rows", holdout=other)
    heard: list[str] = []
    with pytest.raises(HoldoutMismatch) as raised:
        judge(april, version, heard.append)
    assert heard == ["scores alpha@v1 on the new holdout"]
    (score,) = (oid for ref, oid in refs(april, "scores").items() if ref.endswith("other=20rows"))
    mirror = april.mirror
    mirror.fetch_ref("refs/scores/alpha/v1--other=20rows")
    digest = json.loads(mirror.read(score, "reports/alpha/holdout.json") or b"")["digest"]
    assert str(raised.value) == (
        f"alpha@v1 and {version.name} were not scored on the same holdout (digest {digest[:40]} against {'d' * 40}; "
        "costs None against {'missed': 4.0}): their code or params.yaml chooses rows, labels or what a mistake costs "
        f"differently; compare them in another way, and promote by hand: retrace promote {version.name} --because TEXT"
    )
    assert champion(april) == "alpha@v1"
    before = april.refs()
    with pytest.raises(HoldoutMismatch):  # and what was scored once is not scored again
        judge(april, version)
    assert april.refs() == before
    assert told(april, version) is None
    assert Run("alpha", "other rows").ref in before
