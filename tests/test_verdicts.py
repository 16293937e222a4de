"""Verdicts in git: kept by everybody at once, bound to the tag that they judged, and shown where versions are."""

from __future__ import annotations

import json
import threading
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from handmade import Overtaken, registered
from mlflow import MlflowClient
from projects import Project, git

from retrace import verdicts, versions
from retrace.git import ABSENT, GitError, Mirror, RefUpdate
from retrace.publish import publish_model
from retrace.published import GIT_TAG, VERDICT, VERDICT_WHEN
from retrace.registry import prepare
from retrace.reproduce import reproduce
from retrace.show import log_lines, show_lines
from retrace.verdicts import DIFFERENT, EQUIVALENT, IDENTICAL, IMPOSSIBLE, keep
from retrace.versions import Version

REF = "refs/verdicts/alpha@v1"


def first(project: Project) -> Version:
    return versions.find(project.mirror, "alpha@v1")


def said(project: Project, version: Version) -> list[str]:
    return [verdict.verdict for verdict in verdicts.verdicts(project.mirror, version)]


def test_that_a_version_was_forgotten_is_the_last_word_on_it(trained: Project) -> None:
    """A rebuild that had begun before may end after it."""
    version = first(trained)
    keep(trained.mirror, version, IMPOSSIBLE, {"ticket": "DSR-1"})
    keep(trained.mirror, version, IDENTICAL, {})
    assert verdicts.newest(trained.mirror, [version])[version.name].ticket == "DSR-1"
    assert verdicts.ticket_of(trained.mirror, version) == "DSR-1"
    assert verdicts.forgotten(trained.mirror, [version]) == {version.name: "DSR-1"}


def test_a_version_that_is_forgotten_while_it_is_made_again_gets_no_other_verdict(trained: Project) -> None:
    version = first(trained)

    def follow(step: str, text: str) -> None:
        if step == "evaluate" and not text:
            keep(trained.mirror, version, IMPOSSIBLE, {"ticket": "DSR-1"})

    found = reproduce(trained.settings, version, trained.mirror, follow, keep=True)
    assert (found.verdict.verdict, found.verdict.ticket, found.kept) == (IMPOSSIBLE, "DSR-1", None)
    assert said(trained, version) == [IMPOSSIBLE, IMPOSSIBLE]
    assert list((trained.settings.var / "rebuilds").glob("*")) == []


def test_a_version_that_nobody_has_made_again_has_no_verdict(trained: Project) -> None:
    assert said(trained, first(trained)) == []
    assert verdicts.newest(trained.mirror, [first(trained)]) == {}
    assert verdicts.newest(trained.git, [first(trained)]) == {}


def test_verdicts_are_a_chain_of_empty_commits_with_json_in_them(trained: Project) -> None:
    mirror, version = trained.mirror, first(trained)
    before = datetime.now(UTC)
    kept = [keep(mirror, version, verdict, {"reason": f"it is {verdict}"}) for verdict in (IDENTICAL, DIFFERENT)]
    found = verdicts.verdicts(trained.mirror, version)
    assert [(item.verdict, item.reason) for item in found] == [
        (IDENTICAL, "it is identical"),
        (DIFFERENT, "it is different"),
    ]
    assert [vars(item) for item in found] == [vars(item) for item in kept]
    for item in found:
        assert (item.version, item.tag_object) == ("alpha@v1", version.tag_object)
        assert before <= item.when <= datetime.now(UTC)
    assert [line.split() for line in git(trained.root, "log", "--format=%T %s", REF).splitlines()] == [
        [git(trained.root, "hash-object", "-t", "tree", "/dev/null"), "alpha@v1:", verdict]
        for verdict in (DIFFERENT, IDENTICAL)
    ]
    told = json.loads(git(trained.root, "log", "-1", "--format=%b", REF))
    assert told == dict(kept[1].facts) and told["commit"] == version.commit


def test_facts_cannot_stand_in_for_what_every_verdict_says(trained: Project) -> None:
    keep(trained.mirror, first(trained), IMPOSSIBLE, {"verdict": IDENTICAL, "tag": "mine", "more": "\x1e\n\né\udc80"})
    [found] = verdicts.verdicts(trained.mirror, first(trained))
    assert (found.verdict, found.tag_object) == (IMPOSSIBLE, first(trained).tag_object)
    assert found.facts["more"] == "\x1e\n\né\udc80"


def test_the_newest_verdict_of_each_version_is_found(trained: Project) -> None:
    second = registered(trained, "second").version
    other = registered(trained, "other", model="beta").version
    for version, verdict in ((first(trained), IDENTICAL), (second, DIFFERENT), (first(trained), EQUIVALENT)):
        keep(trained.mirror, version, verdict, {})
    found = verdicts.newest(trained.mirror, [first(trained), second, other])
    assert {name: item.verdict for name, item in found.items()} == {"alpha@v1": EQUIVALENT, "alpha@v2": DIFFERENT}
    assert list(verdicts.newest(trained.mirror, [second])) == ["alpha@v2"]


def test_a_tag_that_was_moved_inherits_none(trained: Project) -> None:
    before = first(trained)
    keep(trained.mirror, before, IDENTICAL, {})
    git(trained.root, "tag", "-f", "-a", "-m", "again", "alpha@v1", "alpha@v1^{commit}")
    moved = versions.find(trained.git, "alpha@v1")
    assert moved.commit == before.commit and moved.tag_object != before.tag_object
    assert verdicts.verdicts(trained.git, moved) == []
    assert verdicts.newest(trained.git, [moved]) == {}


def test_who_is_overtaken_adds_to_what_the_other_has_kept(trained: Project) -> None:
    version = first(trained)
    rival = Mirror.open(trained.settings.var / "rival.git", trained.settings.origin)
    for _ in range(2):  # the first verdict at all, and one more
        overtaken = Overtaken(trained.mirror, lambda: keep(rival, version, IDENTICAL, {}))
        keep(overtaken, version, IDENTICAL, {})
    assert said(trained, version) == [IDENTICAL] * 4


def test_many_at_once_on_several_machines_lose_nothing(trained: Project, tmp_path: Path) -> None:
    version = first(trained)
    mirrors = [Mirror.open(tmp_path / f"{name}.git", trained.settings.origin) for name in ("ann", "eve")]
    threads = [
        threading.Thread(target=keep, args=(mirrors[number % 2], version, IDENTICAL, {"number": number}))
        for number in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = verdicts.verdicts(trained.mirror, version)
    assert sorted(verdict.facts["number"] for verdict in found) == list(range(8))


@pytest.mark.parametrize(
    "text", ["hello\n", "alpha@v1: identical\n\nnot json\n", 'x\n\n{"version": "alpha@v1"}\n', "x\n\n[]\n"]
)
def test_a_commit_that_is_no_verdict_is_named(trained: Project, text: str) -> None:
    mirror = trained.mirror
    mirror.push([RefUpdate(REF, mirror.write_commit(None, {}, [], text), ABSENT)])
    with pytest.raises(GitError) as raised:
        said(trained, first(trained))
    assert str(raised.value) == (
        f"a commit below refs/verdicts ({text.splitlines()[0]!r}) holds no verdict; remove its ref from the origin"
    )


# Where they are shown


def test_log_and_show_tell_the_verdict(trained: Project) -> None:
    second = registered(trained, "second").version
    keep(trained.mirror, second, IDENTICAL, {"reason": ""})
    kept = keep(trained.mirror, second, DIFFERENT, {"reason": "train@alpha made other bytes: x"})
    head, *rows = (line.split() for line in log_lines(trained.settings, None, False))
    place = head.index("VERDICT") - len(head)
    assert [row[0] for row in rows] == ["alpha@v1", "alpha@v2"]
    assert rows[0][-2:] == ["-", "champion"] and "champion" not in rows[1]
    assert rows[1][place + 1] == DIFFERENT
    told = json.loads("".join(log_lines(trained.settings, "alpha", True)))
    assert [item["verdict"] for item in told] == [
        None,
        {
            "verdict": DIFFERENT,
            "when": kept.when.isoformat(),
            "reason": "train@alpha made other bytes: x",
        },
    ]
    keep(trained.mirror, first(trained), IMPOSSIBLE, {"reason": "x is not in the remote"})
    keep(trained.mirror, first(trained), IDENTICAL, {"reason": ""})
    lines = list(show_lines(trained.settings, "alpha@v1", False))
    shown = lines[lines.index("  verdicts") + 1 :]
    assert [line[4 + len("2026-01-01 00:00") :].strip() for line in shown] == [
        "impossible: x is not in the remote",
        "identical",
    ]
    whole = json.loads("".join(show_lines(trained.settings, "alpha@v1", True)))
    assert [item["verdict"] for item in whole["verdicts"]] == [IMPOSSIBLE, IDENTICAL]


def test_mlflow_shows_the_newest_verdict(trained: Project) -> None:
    """The version stands in MLflow already; each verdict is told once."""
    settings = trained.settings
    prepare(settings.mlflow)
    client = MlflowClient(settings.mlflow)
    client.create_registered_model("alpha")
    client.create_model_version("alpha", "file:///nowhere", tags={GIT_TAG: "alpha@v1"})

    def published() -> list[str]:
        return publish_model(settings, "alpha", lambda _: None)

    def tags() -> dict[str, Any]:
        return dict(client.get_model_version("alpha", "1").tags)

    assert published() == ["champion -> v1"]
    assert tags() == {GIT_TAG: "alpha@v1"}
    for verdict in (IDENTICAL, DIFFERENT):
        kept = keep(trained.mirror, first(trained), verdict, {})
        assert published() == [f"the last rebuild of alpha@v1 was told: {verdict}"]
        assert tags() == {
            GIT_TAG: "alpha@v1",
            VERDICT: verdict,
            VERDICT_WHEN: kept.when.isoformat(timespec="seconds"),
        }
        assert published() == []
