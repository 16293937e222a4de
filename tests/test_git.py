"""Plumbing on real repositories: compare-and-swap, tags that never move, no replace refs, no identity needed."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from projects import git, write_blob

from retrace.git import (
    ABSENT,
    Git,
    GitError,
    Mirror,
    OriginUnavailable,
    RefMoved,
    RefUpdate,
    TagMoved,
    escape_ref_part,
    is_commit_id,
    message,
    trailer,
    without_credentials,
)


@pytest.fixture
def origin(tmp_path: Path) -> Path:
    """A repository with one commit on main."""
    root = tmp_path / "origin"
    root.mkdir()
    git(root, "init", "-q", "-b", "main")
    (root / "file").write_text("one")
    git(root, "add", "-A")
    git(root, "commit", "-q", "-m", "one")
    return root


@pytest.fixture
def mirror(origin: Path, tmp_path: Path) -> Mirror:
    """A mirror that has fetched the origin."""
    opened = Mirror.open(tmp_path / "mirror.git", str(origin))
    opened.fetch_record()
    return opened


def refs(folder: Path) -> str:
    return git(folder, "for-each-ref", "--format=%(refname) %(objectname)")


def test_a_ref_is_changed_only_from_the_value_that_was_expected(mirror: Mirror, origin: Path) -> None:
    main = mirror.resolve("refs/heads/main")
    assert main is not None
    first = mirror.write_commit(main, {"a": b"1"}, [main], "first")
    second = mirror.write_commit(main, {"a": b"2"}, [main], "second")
    mirror.push([RefUpdate("refs/runs/m/x", first, ABSENT)])
    for old in (ABSENT, second, main):
        with pytest.raises(RefMoved, match="refs/runs/m/x moved in the meantime; nothing was changed"):
            mirror.push([RefUpdate("refs/runs/m/x", second, old)])
    assert mirror.fetch_ref("refs/runs/m/x") == first
    mirror.push([RefUpdate("refs/runs/m/x", second, first)])
    with pytest.raises(RefMoved):
        mirror.push([RefUpdate("refs/runs/m/x", ABSENT, first)])
    mirror.push([RefUpdate("refs/runs/m/x", ABSENT, second)])
    assert mirror.fetch_ref("refs/runs/m/x") is None
    assert git(origin, "status", "--porcelain") == ""


def test_several_refs_change_together_or_not_at_all(mirror: Mirror, origin: Path) -> None:
    main = mirror.resolve("refs/heads/main")
    assert main is not None
    mirror.push([RefUpdate("refs/runs/b", main, ABSENT)])
    before = refs(origin)
    commit = mirror.write_commit(main, {"a": b"1"}, [main], "more")
    with pytest.raises(RefMoved, match="refs/runs/a, refs/runs/b moved in the meantime"):
        mirror.push([RefUpdate("refs/runs/a", main, ABSENT), RefUpdate("refs/runs/b", commit, ABSENT)])
    assert refs(origin) == before


def test_the_last_of_two_writers_loses(origin: Path, tmp_path: Path) -> None:
    mirrors = [Mirror.open(tmp_path / f"{name}.git", str(origin)) for name in "ab"]
    for own in mirrors:
        own.fetch_record()
    main = mirrors[0].resolve("refs/heads/main")
    assert main is not None
    mirrors[0].push([RefUpdate("refs/tags/m@v1", mirrors[0].write_tag("m@v1", main, "one"), ABSENT)])
    with pytest.raises(RefMoved):
        mirrors[1].push([RefUpdate("refs/tags/m@v1", mirrors[1].write_tag("m@v1", main, "two"), ABSENT)])
    mirrors[1].fetch_record()
    assert mirrors[1].message("refs/tags/m@v1") == "one\n"


def test_a_refusal_that_is_no_race_says_so(mirror: Mirror, origin: Path) -> None:
    """A protected branch or a full disk there: taken for a lost race it would be tried again for ever."""
    hook = origin / ".git/hooks/pre-receive"
    hook.parent.mkdir(exist_ok=True)
    hook.write_text("#!/bin/sh\necho this tag is protected >&2\nexit 1\n")
    hook.chmod(0o755)
    main = mirror.resolve("refs/heads/main")
    assert main is not None
    with pytest.raises(GitError, match=r"the git origin .*origin refuses refs/runs/a: .*pre-receive hook declined"):
        mirror.push([RefUpdate("refs/runs/a", main, ABSENT)])
    hook.unlink()
    lock = origin / ".git/refs/runs/a.lock"
    lock.parent.mkdir(parents=True)
    lock.touch()
    with pytest.raises(OriginUnavailable, match=r"cannot push to the git origin .*a\.lock': File exists"):
        mirror.push([RefUpdate("refs/runs/a", main, ABSENT)])


def test_a_branch_that_somebody_has_checked_out_is_left_alone(mirror: Mirror, origin: Path) -> None:
    main = mirror.resolve("refs/heads/main")
    assert main is not None
    mirror.push([RefUpdate("refs/heads/data", main, ABSENT)])
    git(origin, "switch", "-q", "data")
    commit = mirror.write_commit(main, {"a": b"1"}, [main], "more")
    with pytest.raises(
        GitError, match=r"refs/heads/data is checked out in .*; switch to another one \(git switch main\)"
    ):
        mirror.push([RefUpdate("refs/heads/data", commit, main)])
    assert git(origin, "rev-parse", "data") == main


def test_a_tag_that_was_moved_in_the_origin_is_noticed(mirror: Mirror, origin: Path) -> None:
    git(origin, "tag", "-a", "-m", "one", "m@v1")
    mirror.fetch_record()
    kept = mirror.resolve("refs/tags/m@v1")
    git(origin, "commit", "-q", "--allow-empty", "-m", "other")
    git(origin, "tag", "-f", "-a", "-m", "moved", "m@v1")
    with pytest.raises(TagMoved, match=r"the tag m@v1 was moved in .*versions are never moved.*put the right one back"):
        mirror.fetch_record()
    assert mirror.resolve("refs/tags/m@v1") == kept


def test_replace_refs_change_nothing(mirror: Mirror, origin: Path) -> None:
    """`git replace` shows everybody another content under the same id: a record must not believe it."""
    main = git(origin, "rev-parse", "HEAD")
    blob = git(origin, "rev-parse", "HEAD:file")
    (origin / "other").write_text("forged")
    forged = git(origin, "hash-object", "-w", "other")
    git(origin, "replace", blob, forged)
    assert git(origin, "show", "HEAD:file") == "forged"
    assert Git(origin).read(main, "file") == b"one"
    mirror.fetch("+refs/replace/*:refs/replace/*")
    assert mirror.read(main, "file") == b"one"


def test_no_identity_is_needed_and_a_user_s_own_is_kept(
    mirror: Mirror, origin: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    main = mirror.resolve("refs/heads/main")
    assert main is not None
    home = tmp_path / "home"
    home.mkdir()
    for name, value in (("HOME", str(home)), ("GIT_CONFIG_NOSYSTEM", "1"), ("XDG_CONFIG_HOME", str(home))):
        monkeypatch.setenv(name, value)
    who = "--format=%an <%ae> %cn <%ce>"
    for config, expected in (
        ("", "Retrace <retrace@localhost> Retrace <retrace@localhost>"),
        ("[user]\n useConfigOnly = true\n", "Retrace <retrace@localhost> Retrace <retrace@localhost>"),
        ("[user]\n email = a@b.c\n useConfigOnly = true\n", "Retrace <retrace@localhost> Retrace <retrace@localhost>"),
        ("[user]\n name = Ann\n email = a@b.c\n", "Ann <a@b.c> Ann <a@b.c>"),
    ):
        (home / ".gitconfig").write_text(config)
        own = Mirror(mirror.directory, mirror.origin)
        commit = own.write_commit(main, {}, [main], "x")
        assert own.out("log", "-1", who, commit) == expected
        assert own.write_tag("m@v1", commit, "x")


def test_who_works_in_the_origin_is_who_writes_there_though_the_mirror_is_nobody_s(
    mirror: Mirror, origin: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("HOME", str(tmp_path)), ("GIT_CONFIG_NOSYSTEM", "1"), ("XDG_CONFIG_HOME", str(tmp_path))):
        monkeypatch.setenv(name, value)
    main = mirror.resolve("refs/heads/main")
    assert main is not None
    git(origin, "config", "user.name", "Bob of the night shift")
    git(origin, "config", "user.email", "bob@example.com")
    tag = mirror.write_tag("m@v1", main, "x")
    assert "tagger Bob of the night shift <bob@example.com>" in mirror.out("cat-file", "tag", tag)


def test_the_caller_s_git_environment_leads_nowhere_else(
    mirror: Mirror, origin: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a git hook GIT_DIR and GIT_INDEX_FILE are set: commands must not act on that repository."""
    main = mirror.resolve("refs/heads/main")
    index = (origin / ".git/index").read_bytes()
    monkeypatch.setenv("GIT_DIR", "/nowhere")
    monkeypatch.setenv("GIT_INDEX_FILE", str(origin / ".git/index"))
    own = Mirror(mirror.directory, mirror.origin)
    assert own.resolve("refs/heads/main") == main
    assert own.write_commit(main, {"new": b"1"}, [], "x")
    assert (origin / ".git/index").read_bytes() == index


def test_an_origin_that_is_away_is_named_without_its_password(tmp_path: Path) -> None:
    gone = Mirror.open(tmp_path / "mirror.git", str(tmp_path / "gone"))
    with pytest.raises(OriginUnavailable, match=r"cannot fetch from the git origin .*gone: .*; check RETRACE_ORIGIN"):
        gone.fetch_record()
    with pytest.raises(OriginUnavailable, match="cannot read the git origin"):
        gone.fetch_ref("refs/runs/a")
    secret = Mirror.open(tmp_path / "mirror.git", "https://ann:hunter2@127.0.0.1:9/x.git")
    with pytest.raises(OriginUnavailable, match="https://127.0.0.1:9/x.git") as raised:
        secret.fetch_record()
    assert "hunter2" not in str(raised.value)


def test_a_commit_is_written_without_a_work_tree(mirror: Mirror) -> None:
    main = mirror.resolve("refs/heads/main")
    assert main is not None
    blob = write_blob(mirror, b"by id")
    commit = mirror.write_commit(main, {"file": None, "b/c": b"\x00\xff", "a b": blob}, [main], "title\n\nKey: v\n")
    assert set(mirror.files(commit)) == {"b/c", "a b"}
    assert mirror.read_many([f"{commit}:b/c", f"{commit}:a b", f"{commit}:none", "0" * 40]) == [
        b"\x00\xff",
        b"by id",
        None,
        None,
    ]
    assert mirror.read(commit, "b/c") == b"\x00\xff"
    assert mirror.read(commit, "file") is None
    with pytest.raises(GitError, match="is not in"):
        mirror.message("0" * 40)


def test_names_and_messages_are_made_safe() -> None:
    assert escape_ref_part("manual__2013-07-01T00:00:00+00:00") == "manual__2013-07-01T00=3A00=3A00=2B00=3A00"
    assert escape_ref_part("../é @{") == "=2E=2E=2F=C3=A9=20=40=7B"
    assert (
        subprocess.run(
            ["git", "check-ref-format", f"refs/runs/m/{escape_ref_part('a..b.lock~^:?*[')}"], check=False
        ).returncode
        == os.EX_OK
    )
    text = message("title", {"Key": "two\nlines: Other: x", "Next": "y"})
    assert text == "title\n\nKey: two lines: Other: x\nNext: y\n"
    assert (trailer(text, "Next"), trailer(text, "Other")) == ("y", None)
    assert is_commit_id("a" * 40)
    assert not any(map(is_commit_id, ("a" * 39, "--upload-pack=x", "HEAD", "A" * 40, f"{'a' * 40}\n")))
    assert without_credentials("https://u:p@host/x") == "https://host/x"
