"""Signed versions: what `retrace verify` accepts, and each way to deceive plain git, DVC or MLflow that it does not."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from handmade import finish
from projects import Project, git, write_blob
from remotes import credentials
from servers import S3Server
from signing import BLOCK, COLLIDING, Keys, Signed, make_key, make_signed

from retrace import signatures, versions
from retrace.config import ConfigError, Settings
from retrace.dvcfiles import LOCK, lock_entries, object_path, output_md5s, pointer_md5
from retrace.gate import gate
from retrace.git import Git
from retrace.lineage import event
from retrace.promote import promote_version, roll_back
from retrace.publish import publish_model
from retrace.register import register
from retrace.show import show_lines
from retrace.signatures import NoSigningKey
from retrace.ssh import CannotSign
from retrace.tombstones import Tombstone, bury
from retrace.verify import NotVerified, require, run_verify

CHECKS = {"signature", "tag", "assignment", "replaced", "record", "objects", "registry"}
MODEL = "models/alpha.skops"


@dataclass(frozen=True)
class Said:
    """What `retrace verify` said."""

    code: int
    facts: dict[str, Any]

    def outcome(self, check: str) -> str:
        """The worst outcome of a check."""
        found = {finding["outcome"] for finding in self.facts["findings"] if finding["check"] == check}
        return next(outcome for outcome in ("fails", "unchecked", "holds", "") if outcome in found or not outcome)

    def outcomes(self, *checks: str) -> set[str]:
        return {self.outcome(check) for check in checks}

    @property
    def failures(self) -> str:
        return "\n".join(finding["text"] for finding in self.facts["findings"] if finding["outcome"] == "fails")


@pytest.fixture(scope="module")
def original(ingested: Project, tmp_path_factory: pytest.TempPathFactory) -> Signed:
    """alpha@v1 is signed, champion, and in MLflow. Whoever changes something of it puts it back."""
    folder = tmp_path_factory.mktemp("signed")
    keys = Keys.make(folder / "keys")
    project = ingested.copy(folder / "project")
    make_signed(project, keys)
    assert publish_model(project.settings, "alpha", lambda _: None) == ["alpha@v1 written", "champion -> v1"]
    return Signed(project, keys)


@pytest.fixture
def signed(original: Signed, tmp_path: Path) -> Signed:
    """A copy to attack; its MLflow has no store."""
    keys = original.keys.copy(tmp_path / "keys")
    project = original.project.copy(tmp_path / "project")
    shutil.rmtree(project.settings.var / "mlflow")
    project.settings = keys.settings(project)
    return Signed(project, keys)


@pytest.fixture
def verify(capsys: pytest.CaptureFixture[str]) -> Any:
    def run(signed: Signed, name: str = "alpha@v1", **changed: Any) -> Said:
        settings = signed.project.settings.model_copy(update=changed)
        capsys.readouterr()
        code = run_verify(settings, name, as_json=True)
        facts = json.loads(capsys.readouterr().out)
        assert facts["verified"] is (code == 0)
        return Said(code, facts)

    return run


def git_accepts(signed: Signed, name: str) -> bool:
    """Whether plain git is content with a tag."""
    allowed = f"gpg.ssh.allowedSignersFile={signed.keys.allowed}"
    command = ["git", "-C", str(signed.project.root), "-c", allowed, "verify-tag", name]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def test_a_signed_version_verifies_and_plain_git_agrees(original: Signed, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_verify(original.project.settings, "alpha@champion", as_json=False) == 0
    *lines, last = capsys.readouterr().out.splitlines()
    assert all(line.startswith("+ ") for line in lines) and len(lines) == len(CHECKS)
    assert last == "alpha@v1 is what ann@example.com signed"
    assert "+ alpha#champion#1 is signed by ann@example.com" in lines
    assert git_accepts(original, "alpha@v1") and git_accepts(original, "alpha#champion#1")
    shown = "\n".join(show_lines(original.project.settings, "alpha@v1", as_json=False))
    assert "run          first" in shown and "SIGNATURE" not in shown
    told = versions.event_of(original.git, "refs/tags/alpha@v1")
    assert told is not None and told["job"]["name"] == "alpha.register"


def test_what_programs_read_has_stable_keys(original: Signed, verify: Any) -> None:
    said = verify(original)
    assert said.facts.keys() == {"version", "commit", "tag", "verified", "signer", "findings"}
    assert {finding["check"] for finding in said.facts["findings"]} == CHECKS
    assert all(finding.keys() == {"check", "outcome", "text"} for finding in said.facts["findings"])
    assert said.facts["signer"]["principal"] == "ann@example.com"
    assert said.facts["signer"]["fingerprint"].startswith("SHA256:")
    assert str(original.project.root) not in json.dumps(said.facts)


# The signature


@pytest.mark.parametrize(("key", "why"), [(None, "not signed"), ("eve", "do not list")])
def test_a_tag_without_a_signature_that_counts_is_found(signed: Signed, verify: Any, key: str | None, why: str) -> None:
    signed.put("alpha@v1", signed.tag("alpha@v1", signed.version.commit, key))
    signed.another_machine()
    said = verify(signed)
    assert (said.code, said.outcome("signature"), said.facts["signer"]) == (1, "fails", None)
    assert why in said.failures
    assert said.outcomes("record", "objects") == {"holds"}


def test_a_tag_that_was_moved_is_found_by_a_machine_that_knew_it(signed: Signed, verify: Any) -> None:
    commit = signed.git.write_commit(signed.version.commit, {}, [signed.version.commit], "another\n")
    signed.put("alpha@v1", signed.tag("alpha@v1", commit, "ann"))
    said = verify(signed)
    assert (said.code, said.outcome("tag")) == (1, "fails")
    assert "alpha@v1 was moved" in said.failures


def test_a_ref_that_names_another_versions_tag_object_is_found(signed: Signed, verify: Any) -> None:
    signed.put("alpha@v2", signed.version.tag_object)
    assert git_accepts(signed, "alpha@v2")
    said = verify(signed, "alpha@v2")
    assert said.code == 1
    assert f"says it is alpha@v1 at {signed.version.commit[:8]}" in said.failures


def test_the_signer_is_told_and_not_whom_the_tag_claims(signed: Signed, verify: Any) -> None:
    signed.keys.allow("eve@example.com", "eve")
    git(signed.project.root, "config", "user.name", "Ann")
    git(signed.project.root, "config", "user.email", "ann@example.com")
    signed.put("alpha@v1", signed.tag("alpha@v1", signed.version.commit, "eve"))
    signed.another_machine()
    said = verify(signed)
    assert said.facts["signer"]["principal"] == "eve@example.com"
    [text] = [finding["text"] for finding in said.facts["findings"] if finding["check"] == "signature"]
    assert "Ann <ann@example.com>, which proves nothing" in text


def test_an_expired_key_signs_in_the_past_until_it_is_revoked(signed: Signed, verify: Any) -> None:
    signed.keys.allow("old@example.com", "old", 'valid-before="20200101"')
    forge_in(signed, 2019, "old")
    assert git_accepts(signed, "alpha@v1")
    assert verify(signed).facts["signer"]["principal"] == "old@example.com"
    signed.keys.revoke("old")
    said = verify(signed, revoked_signers=signed.keys.revoked)
    assert (said.code, said.outcome("signature")) == (1, "fails")
    assert "is revoked" in said.failures
    forge_in(signed, 2021, "old")
    assert "do not list for its date" in verify(signed).failures


def forge_in(signed: Signed, year: int, key: str) -> None:
    """Sign alpha@v1 with a tagger of an earlier time."""
    seconds = int(datetime(year, 6, 1, tzinfo=UTC).timestamp())
    head = f"object {signed.version.commit}\ntype commit\ntag alpha@v1\n"
    body = f"{head}tagger Ann <ann@example.com> {seconds} +0000\n\nalpha@v1\n".encode()
    signed.put("alpha@v1", signed.git.out("mktag", stdin=body + signed.keys.sign(key, body)))
    signed.another_machine()


def test_a_revocation_does_not_touch_other_keys(signed: Signed, verify: Any) -> None:
    signed.keys.revoke("eve")
    assert verify(signed, revoked_signers=signed.keys.revoked).code == 0
    signed.keys.revoke("ann")
    assert "ann@example.com that signed it" in verify(signed, revoked_signers=signed.keys.revoked).failures


@pytest.mark.parametrize("where", ["before", "behind"])
def test_text_that_was_added_to_a_signed_tag_is_found(signed: Signed, verify: Any, where: str) -> None:
    body = signed.git.read_many([signed.version.tag_object])[0]
    assert body is not None
    added = b"Retrace-Because: we like it\n"
    changed = body + added if where == "behind" else body.replace(b"-----BEGIN", added + b"-----BEGIN")
    signed.put("alpha@v1", signed.git.out("mktag", stdin=changed))
    signed.another_machine()
    assert git_accepts(signed, "alpha@v1") is (where == "behind")
    said = verify(signed)
    assert (said.code, said.outcome("signature")) == (1, "fails")
    assert ("text stands behind" if where == "behind" else "does not fit") in said.failures


def test_a_replace_ref_changes_nothing_and_is_told(signed: Signed, verify: Any) -> None:
    bad = write_blob(signed.git, b"{}")
    metrics = git(signed.project.root, "rev-parse", f"{signed.version.commit}:metrics/alpha.json")
    for repository in (signed.git, Git(signed.project.settings.mirror)):
        target = write_blob(repository, b"{}")
        repository.out("update-ref", f"refs/replace/{metrics}", target)
    assert git(signed.project.root, "show", f"{signed.version.commit}:metrics/alpha.json") == "{}"
    said = verify(signed)
    assert (said.code, said.outcome("replaced")) == (1, "fails")
    assert said.outcomes("signature", "record", "objects") == {"holds"}
    signed.git.out("update-ref", "-d", f"refs/replace/{metrics}")
    signed.git.out("update-ref", f"refs/replace/{bad}", write_blob(signed.git, b"of no version"))
    assert verify(signed).code == 0


def test_signers_that_the_repository_appoints_are_never_used(signed: Signed, verify: Any) -> None:
    own = signed.project.root / "allowed_signers"
    shutil.copy(signed.keys.allowed, own)
    signed.project.commit("our signers")
    for allowed in (None, own, Path("allowed_signers")):
        said = verify(signed, allowed_signers=allowed)
        assert (said.code, said.outcome("signature"), said.failures) == (1, "unchecked", "")
    assert "a file of the repository" in json.dumps(said.facts)
    assert verify(signed, allowed_signers=Path("../keys/allowed_signers")).code == 0


def test_a_machine_that_cannot_check_does_not_call_it_forged(
    signed: Signed, verify: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = verify(signed, allowed_signers=signed.keys.folder / "gone")
    assert (said.code, said.outcome("signature")) == (1, "unchecked")
    without_ssh = tmp_path / "bin"
    without_ssh.mkdir()
    (without_ssh / "git").symlink_to(str(shutil.which("git")))
    monkeypatch.setenv("PATH", str(without_ssh))
    assert run_verify(signed.project.settings, "alpha@v1", as_json=False) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("? cannot verify signatures: there is no ssh-keygen on PATH")
    assert not any(line.startswith("- ") for line in lines)
    assert lines[-1] == "alpha@v1 could not be verified here"


# The record, the remote


@dataclass(frozen=True)
class Remote:
    """A project whose objects are in a folder that the test can reach, whoever serves it."""

    signed: Signed
    folder: Path


@pytest.fixture(scope="module")
def s3() -> Iterator[S3Server]:
    with S3Server() as server:
        yield server


@pytest.fixture(params=["folder", "s3"])
def remote(request: pytest.FixtureRequest, signed: Signed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Remote:
    """A remote that is a folder is read in place; of a server's, everything is fetched."""
    folder = signed.project.settings.var / "remote"
    if request.param == "folder":
        return Remote(signed, folder)
    server: S3Server = request.getfixturevalue("s3")
    moved = server.folder / tmp_path.name
    folder.rename(moved)
    local = f"['remote \"storage\"']\nendpointurl = {server.endpoint}\nregion = {server.region}\n"
    (signed.project.root / ".dvc/config.local").write_text(local)
    for name, value in credentials(server).items():
        monkeypatch.setenv(name, value)
    address = f"s3://{server.bucket}/{tmp_path.name}"
    signed.project.settings = signed.project.settings.model_copy(update={"remote": address})
    return Remote(signed, moved)


def edited(signed: Signed, path: str, old: str, new: str) -> dict[str, bytes | str | None]:
    content = signed.git.read(signed.version.commit, path)
    assert content is not None and old.encode() in content
    return {path: content.replace(old.encode(), new.encode())}


@pytest.mark.parametrize("what", ["lock", "read", "event", "manifest", "pointer", "metrics", "code"])
def test_a_commit_that_contradicts_itself_is_found_however_well_it_is_signed(
    signed: Signed, verify: Any, what: str
) -> None:
    md5 = hashlib.md5(BLOCK).hexdigest()
    locked = output_md5s(lock_entries(signed.git.read(signed.version.commit, LOCK)))
    pointer = signed.git.read(signed.version.commit, "data/raw/events.dvc")
    assert pointer is not None
    path, old, new = {
        "lock": (LOCK, locked["data/predictions/alpha.txt"], "0" * 32),  # an output that no stage reads
        "read": (LOCK, md5, "0" * 32),
        "event": (event.path("alpha", "train"), md5, "0" * 32),
        "manifest": ("data/raw/events.manifest", "2013-03", "2013-05"),
        "pointer": ("data/raw/events.dvc", pointer_md5(pointer, ""), "0" * 32 + ".dir"),
        "metrics": ("metrics/alpha.json", "0.8", "0.9"),
        "code": ("pipeline/stage.py", "import", "import  "),
    }[what]
    signed.second(edited(signed, path, old, new))
    said = verify(signed, "alpha@v2")
    assert (said.code, said.outcome("signature"), said.outcome("record")) == (1, "holds", "fails")


def test_a_commit_that_is_no_versions_is_found(signed: Signed, verify: Any) -> None:
    signed.second({event.path("alpha", "train"): b"[]"})
    said = verify(signed, "alpha@v2")
    assert (said.code, said.outcome("record")) == (1, "fails")


def replaced(remote: Path, md5: str, content: bytes | None) -> None:
    """Let the remote have something else under a name, or nothing."""
    place = object_path(remote, md5)
    place.chmod(0o644)
    place.unlink() if content is None else place.write_bytes(content)


def test_another_file_of_the_same_md5_in_the_remote_is_found(remote: Remote, verify: Any) -> None:
    assert verify(remote.signed).code == 0
    assert BLOCK != COLLIDING and hashlib.md5(BLOCK).digest() == hashlib.md5(COLLIDING).digest()
    replaced(remote.folder, hashlib.md5(BLOCK).hexdigest(), COLLIDING)
    said = verify(remote.signed)
    assert (said.code, said.outcome("objects"), said.outcome("record")) == (1, "fails", "holds")
    assert f"{MODEL} in the DVC remote is another file" in said.failures
    assert "somebody made a collision" in said.failures
    assert said.failures.count("\n") == 0


def test_what_the_remote_lacks_or_lists_otherwise_is_found(remote: Remote, verify: Any) -> None:
    pointer = remote.signed.git.read(remote.signed.version.commit, "data/raw/events.dvc")
    assert pointer is not None
    listing = pointer_md5(pointer, "data/raw/events.dvc")
    replaced(remote.folder, hashlib.md5(BLOCK).hexdigest(), None)
    replaced(remote.folder, listing, b"[]")
    said = verify(remote.signed)
    assert (said.code, said.outcome("objects")) == (1, "fails")
    found = said.failures.splitlines()
    assert len(found) == 2
    assert "data/raw/events (md5" in found[0] and f"{MODEL} (md5" in found[1]


def test_what_was_forgotten_is_told_as_that_and_proves_nothing(
    signed: Signed, verify: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    md5 = hashlib.md5(BLOCK).hexdigest()
    bury(signed.project.mirror, [Tombstone(md5, None, "T-7", "2013-09-01", MODEL)], "T-7")
    assert verify(signed).code == 0
    replaced(signed.project.settings.var / "remote", md5, COLLIDING)
    assert verify(signed).outcome("objects") == "fails"
    replaced(signed.project.settings.var / "remote", md5, None)
    said = verify(signed)
    assert (said.code, said.outcome("objects"), said.failures) == (1, "unchecked", "")
    assert "alpha@v1 was forgotten on request T-7: its files are gone" in json.dumps(said.facts)
    assert run_verify(signed.project.settings, "alpha@v1", as_json=False) == 1
    closing = capsys.readouterr().out.splitlines()[-1]
    assert closing == "alpha@v1 can no longer be verified: it was forgotten on request T-7"


def test_a_remote_that_does_not_answer_is_no_failure_and_no_proof(
    remote: Remote, verify: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "another")
    shutil.rmtree(remote.signed.project.settings.var / "remote", ignore_errors=True)
    said = verify(remote.signed)
    assert (said.code, said.outcome("objects"), said.failures) == (1, "unchecked", "")


# MLflow


@contextmanager
def changed(place: Path, content: bytes) -> Iterator[None]:
    before = place.read_bytes()
    place.write_bytes(content)
    try:
        yield
    finally:
        place.write_bytes(before)


def test_what_mlflow_would_serve_instead_is_found(original: Signed, verify: Any) -> None:
    [description] = original.project.settings.var.glob("mlflow/artifacts/alpha/models/*/artifacts/MLmodel")
    model, program = description.parent / "artifacts/alpha.skops", description.parent / "served.py"
    text = description.read_bytes()
    sha256 = hashlib.sha256(BLOCK).hexdigest().encode()
    (model.parent / "other.skops").write_bytes(COLLIDING)
    attacks: Mapping[str, tuple[Path, bytes]] = {
        "another file as its model": (model, COLLIDING),
        "another file as its model (": (description, text.replace(b"artifacts/alpha.skops", b"artifacts/other.skops")),
        "another sha256 to check it by": (description, text.replace(b"sha256: " + sha256, b"sha256: " + b"0" * 64)),
        "another program than Retrace's": (program, program.read_bytes() + b"\nprint()\n"),
        "another loader": (description, text.replace(b"code: null", b"code: code")),
        "another loader than": (description, text.replace(b"loaders.code_model", b"loaders.other")),
        "another loader than Retrace's": (description, text.replace(b"path: artifacts/a", b"path: ../artifacts/a")),
        "cannot be read": (description, text.replace(b"artifacts/alpha.skops", b"artifacts/gone.skops")),
    }
    for words, (place, content) in attacks.items():
        assert content != place.read_bytes()
        with changed(place, content):
            said = verify(original)
        assert (said.code, said.outcome("registry")) == (1, "fails"), words
        assert words in said.failures
    assert verify(original).code == 0


def test_a_version_of_mlflow_that_is_another_commits_is_found(original: Signed, verify: Any) -> None:
    from mlflow import MlflowClient

    client = MlflowClient(original.project.settings.mlflow)
    client.set_model_version_tag("alpha", "1", "git.tag", "alpha@v7")
    said = verify(original)
    client.set_model_version_tag("alpha", "1", "git.tag", "alpha@v1")
    assert (said.code, said.outcome("registry")) == (1, "fails")
    assert "alpha@v7 as version 1" in said.failures


def test_the_program_of_an_earlier_engine_is_known_from_the_projects_history(
    signed: Signed, original: Signed, verify: Any
) -> None:
    [program] = original.project.settings.var.glob("mlflow/artifacts/alpha/models/*/artifacts/served.py")
    earlier = program.read_bytes() + b"# as it was\n"
    with changed(program, earlier):
        assert verify(signed, mlflow=original.project.settings.mlflow).code == 1
        (signed.project.root / "retrace").mkdir()
        for content in (earlier, b"# as it is\n"):
            (signed.project.root / "retrace/served.py").write_bytes(content)
            signed.project.commit("engine")
        assert verify(signed, mlflow=original.project.settings.mlflow).code == 0


@pytest.mark.parametrize("mlflow", ["http://127.0.0.1:9", "sqlite:////nonexistent/mlflow.db"])
def test_a_version_verifies_with_mlflow_switched_off(signed: Signed, verify: Any, mlflow: str) -> None:
    said = verify(signed, mlflow=mlflow)
    assert (said.code, said.outcome("registry")) == (0, "unchecked")


# What is refused


def test_with_signatures_required_nobody_promotes_what_is_not_signed(signed: Signed) -> None:
    commit = signed.second({}, key=None)
    signed.project.snapshot("alpha", "second")
    before = signed.project.refs()
    with pytest.raises(NotVerified, match=r"alpha@v2 is refused, .*: alpha@v2 is not signed .*retrace verify alpha@v2"):
        list(promote_version(signed.project.settings, "alpha@v2", "I like it"))
    with pytest.raises(NotVerified, match="alpha@v2 is not signed"):
        gate(signed.project.settings, signed.project.task("alpha", "second", "gate"), commit)
    assert signed.project.refs() == before


def test_nobody_rolls_back_to_what_no_longer_verifies(signed: Signed) -> None:
    signed.second({})
    settings = signed.project.settings.model_copy(update={"mlflow": "http://127.0.0.1:9"})
    promotion = promote_version(settings, "alpha@v2", "newer")
    assert next(promotion) == "alpha@v2 is champion of alpha (alpha#champion#2)"
    replaced(settings.var / "remote", hashlib.md5(BLOCK).hexdigest(), COLLIDING)
    with pytest.raises(NotVerified, match=r"alpha@v1 is refused, .*models/alpha.skops in the DVC remote is another"):
        list(roll_back(settings, "alpha", "older"))


def test_the_gate_measures_by_no_champion_whom_nobody_signed(signed: Signed, verify: Any) -> None:
    commit = signed.second({})
    signed.project.snapshot("alpha", "second")
    task = signed.project.task("alpha", "second", "gate")
    signed.put("alpha#champion#2", signed.tag("alpha#champion#2", signed.version.commit, None))
    with pytest.raises(NotVerified, match=r"alpha@v1 is refused as champion, .*alpha#champion#2 is not signed"):
        gate(signed.project.settings, task, commit)
    assert "alpha#champion#2 is not signed" in verify(signed).failures
    git(signed.project.root, "update-ref", "-d", "refs/tags/alpha#champion#2")
    decision = gate(signed.project.settings, task, commit)
    assert decision is not None and decision.promoted
    assert verify(signed, "alpha@v2").outcomes("signature", "assignment") == {"holds"}


def test_mlflow_gets_no_version_and_no_alias_that_is_not_signed(signed: Signed, original: Signed) -> None:
    settings = signed.project.settings.model_copy(update={"mlflow": original.project.settings.mlflow})
    signed.second({})
    signed.put("alpha#champion#2", signed.tag("alpha#champion#2", versions.find(signed.git, "alpha@v2").commit, None))
    signed.put("alpha@v2", signed.tag("alpha@v2", versions.find(signed.git, "alpha@v2").commit, "eve"))
    with pytest.raises(NotVerified, match=r"alpha@v2 is refused, .*do not list"):
        publish_model(settings, "alpha", lambda _: None)
    git(signed.project.root, "update-ref", "-d", "refs/tags/alpha@v2")
    signed.put("alpha#shadow#1", signed.tag("alpha#shadow#1", signed.version.commit, None))
    with pytest.raises(NotVerified, match=r"alpha@v1 is refused as shadow, .*alpha#shadow#1 is not signed"):
        publish_model(settings, "alpha", lambda _: None)


def test_signatures_are_required_by_either_setting(signed: Signed) -> None:
    signed.second({}, key=None)
    project, off = signed.project, {"require_signature": False}
    version = versions.find(project.mirror, "alpha@v2")
    project.edit_params(lambda params: params.update(require_signature=False))
    require(project.settings, project.mirror, version)
    with pytest.raises(NotVerified):
        require(project.settings.model_copy(update={"require_signature": True}), project.mirror, version)
    project.edit_params(lambda params: params.update(require_signature=True))
    with pytest.raises(NotVerified):
        require(project.settings.model_copy(update=off), project.mirror, version)


def test_a_machine_without_a_key_makes_no_version_that_would_be_refused(signed: Signed) -> None:
    project = signed.project
    keyless = project.settings.model_copy(update={"signing_key": None})
    signed.second({})
    with pytest.raises(NoSigningKey, match="set RETRACE_SIGNING_KEY"):
        list(promote_version(keyless, "alpha@v2", "newer"))
    before = project.refs()
    commit = finish(project, "third")
    task = project.task("alpha", "third", "register")
    with pytest.raises(NoSigningKey, match="set RETRACE_SIGNING_KEY"):
        register(keyless, task, commit)
    assert project.refs().keys() - before.keys() == {"refs/runs/alpha/third"}
    assert register(project.settings, task, commit).version.name == "alpha@v3"
    assert git_accepts(signed, "alpha@v3")


def test_params_that_cannot_be_read_require_signatures_or_nothing_goes_on(signed: Signed) -> None:
    (signed.project.root / "params.yaml").write_text("models: [")
    signed.project.commit("broken")
    with pytest.raises(ConfigError, match="whether it requires signatures"):
        list(promote_version(signed.project.settings, "alpha@v1", "again"))


# The key


def test_a_key_that_does_not_sign_is_told_with_the_way_out(
    signed: Signed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    ann = signed.keys.folder / "ann"
    make_key(tmp_path / "locked", "secret")
    (tmp_path / "junk").write_text("junk")
    (tmp_path / "junk").chmod(0o600)
    shutil.copy(f"{ann}.pub", tmp_path / "lonely.pub")
    refusals = {
        tmp_path / "gone": "names a file that is not here",
        tmp_path / "locked": "add it to ssh-agent",
        tmp_path / "lonely.pub": "run ssh-add",
        tmp_path / "junk": "name a private SSH key",
    }
    for key, words in refusals.items():
        assert_no_signature(signed.project.settings, key, words)
    ann.chmod(0o644)
    assert_no_signature(signed.project.settings, ann, "chmod 600")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert_no_signature(signed.project.settings, ann, "no ssh-keygen on PATH")


def assert_no_signature(settings: Settings, key: Path, words: str) -> None:
    sign = signatures.signer(settings.model_copy(update={"signing_key": key}))
    assert sign is not None
    with pytest.raises(CannotSign, match=words) as raised:
        sign(b"text")
    assert str(key) not in str(raised.value)


def test_an_agent_may_hold_the_key(
    signed: Signed, verify: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ann = signed.keys.folder / "ann"
    agent = subprocess.Popen(["ssh-agent", "-D", "-a", tmp_path / "agent"], stdout=subprocess.DEVNULL)
    try:
        monkeypatch.setenv("SSH_AUTH_SOCK", str(tmp_path / "agent"))
        while not (tmp_path / "agent").exists():
            assert agent.poll() is None
        subprocess.run(["ssh-add", "-q", ann], check=True)
        ann.rename(tmp_path / "away")
        settings = signed.project.settings.model_copy(update={"signing_key": Path(f"{ann}.pub")})
        sign = signatures.signer(settings)
        signed.put("alpha@v1", signed.git.write_tag("alpha@v1", signed.version.commit, "by the agent", sign))
        signed.another_machine()
        assert verify(signed).code == 0
    finally:
        agent.terminate()
        agent.wait()
