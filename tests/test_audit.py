"""The audit: which versions are due, that their verdicts are kept, and what is said when one departs."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import pytest
from forgeries import with_program
from handmade import registered
from jsonschema import Draft202012Validator
from openlineage.client.serde import Serde
from projects import ROOT, Project

from retrace import verdicts, versions
from retrace.audit import NotReproduced, audit, due, require_identical
from retrace.git import ABSENT, RefUpdate
from retrace.lineage.facets import verdict_facet
from retrace.verdicts import DIFFERENT, IDENTICAL, IMPOSSIBLE
from retrace.versions import Version


def judged(project: Project, name: str, day: int, verdict: str = IDENTICAL, **facts: Any) -> None:
    """A verdict of an earlier day."""
    mirror = project.mirror
    version, ref = versions.find(mirror, name), verdicts.ref_of(name)
    told = {**facts, "version": name, "tag": version.tag_object, "verdict": verdict}
    told["when"] = datetime(2026, 1, day, tzinfo=UTC).isoformat()
    head = mirror.fetch_ref(ref)
    text = f"{name}: {verdict}\n\n{json.dumps(told)}\n"
    commit = mirror.write_commit(None, {}, [head] if head else [], text)
    mirror.push([RefUpdate(ref, commit, head or ABSENT)])


def names(found: list[Version]) -> list[str]:
    return [version.name for version in found]


@pytest.fixture
def four(trained: Project) -> Project:
    """alpha@v1, which is champion, and three later ones; beta@v1, which holds no alias."""
    for run in ("second", "third", "fourth"):
        registered(trained, run)
    registered(trained, "other", model="beta")
    return trained


def test_the_champion_and_the_version_that_waits_longest_are_due(four: Project) -> None:
    assert names(due(four.mirror, "alpha")) == ["alpha@v1", "alpha@v2"]
    judged(four, "alpha@v2", 2)
    judged(four, "alpha@v1", 2)
    assert names(due(four.mirror, "alpha")) == ["alpha@v1", "alpha@v3"]
    judged(four, "alpha@v3", 1)
    assert names(due(four.mirror, "alpha")) == ["alpha@v1", "alpha@v4"]
    judged(four, "alpha@v4", 3)
    assert names(due(four.mirror, "alpha")) == ["alpha@v1", "alpha@v3"]
    judged(four, "alpha@v3", 4, DIFFERENT)
    assert names(due(four.mirror, "alpha")) == ["alpha@v1", "alpha@v2"]


def test_a_model_without_a_champion_has_one_version_due_and_one_without_versions_none(four: Project) -> None:
    assert names(due(four.mirror, "beta")) == ["beta@v1"]
    assert due(four.mirror, "gamma") == []


def test_what_was_forgotten_on_request_is_never_due(four: Project) -> None:
    for name in ("alpha@v1", "alpha@v2"):
        judged(four, name, 1, IMPOSSIBLE, ticket="DSR-7")
    judged(four, "alpha@v3", 2, IMPOSSIBLE)
    assert names(due(four.mirror, "alpha")) == ["alpha@v4"]
    judged(four, "alpha@v4", 3)
    assert names(due(four.mirror, "alpha")) == ["alpha@v3"]


def test_an_audit_keeps_the_verdicts_and_says_which_version_departs(trained: Project) -> None:
    told: list[str] = []
    found = list(audit(trained.settings, "alpha", told.append))
    require_identical(found)
    assert [(item.version, item.verdict) for item in found] == [("alpha@v1", IDENTICAL)]
    assert told[0] == "rebuilds alpha@v1" and told[-1] == "alpha@v1: identical"
    assert any(line.startswith("train ") and line.endswith("identical") for line in told)

    with_program(trained, "train", 'sys.exit("bad luck")')
    found = list(audit(trained.settings, "alpha", told.append))
    assert [(item.version, item.verdict) for item in found] == [("alpha@v1", IDENTICAL), ("alpha@v2", DIFFERENT)]
    with pytest.raises(NotReproduced) as raised:
        require_identical(found)
    assert str(raised.value) == (
        "alpha@v2 is different: train@alpha ended with code 1: bad luck. Look closer with `retrace reproduce alpha@v2 "
        "--keep`"
    )
    [facet] = verdict_facet([item.facts for item in found]).values()
    assert [item["version"] for item in facet.verdicts] == ["alpha@v1", "alpha@v2"]  # type: ignore[attr-defined]
    schema = json.loads((ROOT / "docs/retrace-run-facet.json").read_text())
    Draft202012Validator(schema).validate(Serde.to_dict(facet))
    known = verdicts.newest(trained.mirror, versions.versions(trained.mirror, "alpha"))
    assert {name: item.verdict for name, item in known.items()} == {"alpha@v1": IDENTICAL, "alpha@v2": DIFFERENT}
