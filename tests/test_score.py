"""How an old version does on other data: by its own code, kept on a ref of its own, and only where it makes sense."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from projects import Project, git

from retrace import stage
from retrace.runs import NoData
from retrace.score import NoNewerData, UnknownData, score_lines
from retrace.versions import UnknownVersion

pytestmark = pytest.mark.usefixtures("forked")

REF = "refs/scores/alpha/v1--data-"


@pytest.fixture(scope="module")
def scored(with_a_version: Project, tmp_path_factory: pytest.TempPathFactory) -> tuple[Project, list[str], set[str]]:
    """A project with newer data and newer code; what scoring alpha@v1 there said, and the refs before it."""
    project = with_a_version.copy(tmp_path_factory.mktemp("scored") / "project")
    project.fill("2013-04")
    project.ingest("2013-05-01")
    project.edit_params(lambda params: params["models"]["alpha"]["train"].update(quality=0.1))
    before = set(project.refs())
    return project, said(project, "alpha@v1"), before


def said(project: Project, version: str, data: str = "latest", as_json: bool = False) -> list[str]:
    return list(score_lines(project.settings, version, data, as_json))


def newest(project: Project) -> str:
    return git(project.root, "rev-parse", "refs/heads/data")


def test_both_holdouts_stand_side_by_side(scored: tuple[Project, list[str], set[str]]) -> None:
    project, lines, _ = scored
    commit = newest(project)
    assert lines == [
        f"alpha@v1 on the data of {commit[:12]} (events 2013-01 .. 2013-04), by its own code and environment",
        "                     ITS OWN  THIS DATA  CHANGE",
        "  holdout partition  2013-03    2013-04",
        "  holdout rows             1          1",
        "  accuracy               0.8        0.8      +0",
        "  cost                   0.2        0.2      +0",
        f"kept on {REF}{commit}",
        "and nowhere else: its dvc.lock joins an old model with new features, so it never becomes a version",
    ]


def test_nothing_but_the_ref_of_the_score_is_new(scored: tuple[Project, list[str], set[str]]) -> None:
    project, _, before = scored
    assert set(project.refs()) - before == {f"{REF}{newest(project)}"}
    assert list(project.settings.workspaces.iterdir()) == []


def test_a_second_call_runs_nothing(
    scored: tuple[Project, list[str], set[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    project, lines, _ = scored
    refs = project.refs()
    monkeypatch.setattr("retrace.stage.workspace", None)  # no stage can begin without one
    assert said(project, "alpha@champion", newest(project)[:10]) == lines
    assert project.refs() == refs


def test_programs_get_the_same(scored: tuple[Project, list[str], set[str]]) -> None:
    project, _, _ = scored
    told = json.loads("\n".join(said(project, "alpha@v1", as_json=True)))
    assert told["data"] == {
        "commit": newest(project),
        "through": "2013-05-01T00:00:00+00:00",
        "partitions": {"events": "2013-01 .. 2013-04"},
    }
    assert told["own"]["holdout"]["partition"] == "2013-03" and told["other"]["holdout"]["partition"] == "2013-04"
    assert told["own"]["metrics"] == told["other"]["metrics"] == {"accuracy": 0.8, "cost": pytest.approx(0.2)}
    assert told["kept"] == {"ref": f"{REF}{newest(project)}", "commit": project.refs()[f"{REF}{newest(project)}"]}


def test_what_makes_no_sense_is_refused_with_a_sentence(scored: tuple[Project, list[str], set[str]]) -> None:
    project, _, _ = scored
    refs = project.refs()
    with pytest.raises(UnknownVersion, match="it has v1 to v1"):
        said(project, "alpha@v9")
    for name in ("nonsense", "f" * 40, "--all", "main;ls", ""):
        with pytest.raises(
            UnknownData, match=r"no such commit; name one of the branch data \(git log refs/heads/data\)"
        ):
            said(project, "alpha@v1", name)
    with pytest.raises(NoData, match="has no data of events, which alpha@v1 reads"):
        said(project, "alpha@v1", "main")
    with pytest.raises(NoNewerData, match="was made of this very data .through 2013-03-31.: its own metrics"):
        said(project, "alpha@v1", f"{newest(project)}~1")
    with pytest.raises(NoNewerData, match=r"\(through 2013-02-28\) is older than that of alpha@v1 \(through 2013-03"):
        said(project, "alpha@v1", f"{newest(project)}~2")
    assert project.refs() == refs


def test_without_newer_data_latest_is_refused(with_a_version: Project, tmp_path: Path) -> None:
    with pytest.raises(NoNewerData, match="`retrace ingest` brings newer data"):
        said(with_a_version.copy(tmp_path / "project"), "alpha@v1")


def test_a_score_that_broke_off_is_finished_by_the_next(
    with_a_version: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project = with_a_version.copy(tmp_path / "project")
    project.fill("2013-04")
    project.ingest("2013-05-01")

    def breaks(settings: object, call: stage.StageCall) -> stage.StageResult:
        if call.stage == "evaluate":
            raise KeyboardInterrupt
        return stage.run_stage(project.settings, call)

    with monkeypatch.context() as patched:
        patched.setattr("retrace.gate.run_stage", breaks)
        with pytest.raises(KeyboardInterrupt):
            said(project, "alpha@v1")
    done = project.refs()[f"{REF}{newest(project)}"]
    said(project, "alpha@v1")
    git(project.root, "merge-base", "--is-ancestor", done, f"{REF}{newest(project)}")
    assert list(project.settings.workspaces.iterdir()) == []
