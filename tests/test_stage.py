"""A stage task: the protocol, step by step."""

from __future__ import annotations

from projects import Project

from retrace import versions


def test_a_retrain_makes_a_version_and_the_first_one_is_champion(project: Project) -> None:
    version, decision = project.retrain("alpha", "one")
    assert version.name == "alpha@v1"
    assert decision is not None and decision.promoted
    assert versions.champions(project.mirror)["alpha", "champion"] == version
