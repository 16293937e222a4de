"""`retrace show --format slsa` and `retrace attest`: provenance for those who have no Retrace."""

from __future__ import annotations

import base64
import copy
import hashlib
import json
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from checkouts import environ
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import load_ssh_public_key
from projects import ROOT, Project, git
from securesystemslib.dsse import Envelope
from securesystemslib.signer import CryptoSigner
from signing import Keys, make_key

from retrace import slsa, versions
from retrace.attest import (
    PAYLOAD_TYPE,
    CannotAttest,
    EnvelopeInvalid,
    attest_version,
    check_envelope,
    fingerprint,
    statement_of,
)
from retrace.signatures import key_of
from retrace.slsa import StatementInvalid
from retrace.verify import NotVerified
from retrace.versions import Version

PINS = """\
scikit-learn==1.5.0 ; python_full_version < '3.14' \\
    --hash=sha256:{a} \\
    --hash=sha256:{b}
Typing.Extensions==4.12.0 \\
    --hash=sha256:{c}
old-only==1.0 ; python_full_version < '3' \\
    --hash=sha256:{d}
""".format(a="a" * 64, b="b" * 64, c="c" * 64, d="d" * 64)


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Keys:
    return Keys.make(tmp_path_factory.mktemp("keys") / "keys")


@pytest.fixture(scope="module")
def attested(with_a_version: Project, keys: Keys, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """alpha@v1, and v2, whose lock pins packages; nobody's to change."""
    project = with_a_version.copy(tmp_path_factory.mktemp("attested") / "project")
    commit = versions.find(project.git, "alpha@v1").commit
    changes: dict[str, bytes | str | None] = {"pipeline/requirements.txt": PINS.encode()}
    pinned = project.git.write_commit(commit, changes, [commit], "pins\n")
    git(project.root, "tag", "-a", "-m", git(project.root, "tag", "-l", "--format=%(contents)"), "alpha@v2", pinned)
    project.settings = keys.settings(project)
    return project


def version_of(project: Project, name: str) -> Version:
    return versions.find(project.git, name)


def test_the_statement_says_what_was_made_and_of_what(attested: Project) -> None:
    found = json.loads(statement_of(attested.settings, "alpha@champion"))
    version = version_of(attested, "alpha@v1")
    model = attested.settings.cache
    assert (found["_type"], found["predicateType"]) == (slsa.STATEMENT_TYPE, slsa.PREDICATE_TYPE)
    first, second = found["subject"]
    assert first == {"name": "alpha@v1", "digest": {"gitCommit": version.commit}}
    assert second["name"] == "models/alpha.skops"
    md5 = next(path for path in model.rglob("*") if path.is_file() and sha256(path) == second["digest"]["sha256"])
    assert md5.is_file()
    definition, run = found["predicate"]["buildDefinition"], found["predicate"]["runDetails"]
    assert definition["buildType"].startswith("https://github.com/") and run["builder"]["id"].startswith("https://git")
    assert definition["externalParameters"]["parameters"]["train"] == {"seed": 1, "quality": 0.8}
    needed = {item["name"]: item["digest"] for item in definition["resolvedDependencies"]}
    assert needed["code"] == {"gitCommit": git(attested.root, "rev-parse", "main")}
    assert needed["data"] == {"gitCommit": git(attested.root, "rev-parse", "refs/heads/data")}
    manifest = git(attested.root, "show", "data:data/raw/events.manifest").splitlines()
    partitions = {line.split()[0]: {"sha256": line.split()[2]} for line in manifest}
    assert len(partitions) == 3 and partitions.items() <= needed.items()
    lock = (attested.root / "pipeline/requirements.txt").read_bytes()
    assert needed["pipeline/requirements.txt"] == {"sha256": hashlib.sha256(lock).hexdigest()}
    assert run["metadata"]["invocationId"] == "refs/runs/alpha/first"
    made = {item["name"] for item in run["byproducts"]}
    assert {"metrics/alpha.json", "data/features/alpha/2013-01.txt"} <= made and "models/alpha.skops" not in made


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_packages_are_told_with_the_hashes_that_the_lock_admits(attested: Project) -> None:
    found = slsa.statement(attested.git, version_of(attested, "alpha@v2"))
    needed = found["predicate"]["buildDefinition"]["resolvedDependencies"]
    packages = [item for item in needed if "uri" in item]
    assert packages == [
        {
            "name": "scikit-learn",
            "uri": "pkg:pypi/scikit-learn@1.5.0",
            "annotations": {"sha256OneOf": ["a" * 64, "b" * 64]},
        },
        {"name": "Typing.Extensions", "uri": "pkg:pypi/typing-extensions@4.12.0", "digest": {"sha256": "c" * 64}},
    ]


def test_the_statement_names_no_machine_no_user_and_no_path(attested: Project) -> None:
    text = statement_of(attested.settings, "alpha@v2")
    for secret in (str(attested.root), str(Path.home()), socket.gethostname(), "Ann", "ann@example.com"):
        assert secret not in text
    assert text == statement_of(attested.settings, "alpha@v2")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda made: made.update(_type="https://in-toto.io/Statement/v0.1"), "its types are"),
        (lambda made: made.update(predicateType="https://slsa.dev/provenance/v0.2"), "its types are"),
        (lambda made: made["subject"].clear(), "At least one subject"),
        (lambda made: made["subject"][1]["digest"].clear(), "At least one digest"),
        (lambda made: made["subject"][1]["digest"].update(sha256="F00"), "no sha256 of models/alpha.skops"),
        (lambda made: made["subject"][0].update(name="alpha@v2"), "it is about alpha@v2"),
        (lambda made: made["subject"][0]["digest"].update(gitCommit="0" * 40), "another commit"),
        (lambda made: made["predicate"]["runDetails"].update(by="me"), "no field named"),
        (lambda made: made["predicate"]["runDetails"]["metadata"].update(startedOn="soon"), "ParseError"),
        (lambda made: made["predicate"].pop("buildDefinition"), "buildDefinition"),
    ],
)
def test_a_statement_of_another_form_or_of_something_else_is_refused(
    attested: Project, change: Any, words: str
) -> None:
    version = version_of(attested, "alpha@v1")
    made = copy.deepcopy(slsa.statement(attested.git, version))
    slsa.check(made, version)
    change(made)
    with pytest.raises(StatementInvalid, match=words):
        slsa.check(made, version)


def test_an_envelope_is_signed_by_the_ssh_key_and_holds_what_show_prints(attested: Project, keys: Keys) -> None:
    """Checked by hand, as the specification of DSSE has it, with the key as `ssh-keygen` wrote it."""
    envelope = json.loads(attest_version(attested.settings, "alpha@v1"))
    listed = subprocess.run(["ssh-keygen", "-lf", key_of(attested.settings) or ""], capture_output=True, text=True)
    assert fingerprint(attested.settings) == listed.stdout.split()[1]
    payload = base64.b64decode(envelope["payload"])
    assert payload.decode() == statement_of(attested.settings, "alpha@v1")
    assert envelope["payloadType"] == PAYLOAD_TYPE
    [signature] = envelope["signatures"]
    signed = b"DSSEv1 %d %b %d %b" % (len(PAYLOAD_TYPE), PAYLOAD_TYPE.encode(), len(payload), payload)
    for name, right in (("ann", True), ("eve", False)):
        key = load_ssh_public_key((keys.folder / f"{name}.pub").read_bytes())
        assert isinstance(key, Ed25519PublicKey)
        if right:
            key.verify(base64.b64decode(signature["sig"]), signed)
        else:
            with pytest.raises(InvalidSignature):
                key.verify(base64.b64decode(signature["sig"]), signed)


def signer(keys: Keys, name: str) -> CryptoSigner:
    from cryptography.hazmat.primitives.serialization import load_ssh_private_key

    return CryptoSigner(load_ssh_private_key((keys.folder / name).read_bytes(), None))


def test_an_envelope_that_says_something_else_is_refused(attested: Project, keys: Keys) -> None:
    ann, version = signer(keys, "ann"), version_of(attested, "alpha@v1")
    text = attest_version(attested.settings, "alpha@v1")
    assert check_envelope(text, ann.public_key, version)["subject"][0]["name"] == "alpha@v1"
    with pytest.raises(EnvelopeInvalid, match="not signed by this key"):
        check_envelope(text, signer(keys, "eve").public_key, version)
    with pytest.raises(StatementInvalid, match="it is about alpha@v1"):
        check_envelope(text, ann.public_key, version_of(attested, "alpha@v2"))
    tampered = json.loads(text)
    tampered["payload"] = base64.b64encode(base64.b64decode(tampered["payload"]).replace(b"0.8", b"0.9")).decode()
    with pytest.raises(EnvelopeInvalid, match="not signed by this key"):
        check_envelope(json.dumps(tampered), ann.public_key, version)
    other = Envelope(base64.b64decode(json.loads(text)["payload"]), "text/plain", {})
    other.sign(ann)
    with pytest.raises(EnvelopeInvalid, match="payload is 'text/plain'"):
        check_envelope(json.dumps(other.to_dict()), ann.public_key, version)
    with pytest.raises(EnvelopeInvalid):
        check_envelope("{}", ann.public_key, version)


def test_without_a_key_that_signs_there_is_no_envelope(attested: Project, keys: Keys, tmp_path: Path) -> None:
    make_key(tmp_path / "locked", "secret")
    make_key(tmp_path / "open")
    (tmp_path / "open").chmod(0o640)
    refusals: dict[Path | None, str] = {
        None: "set RETRACE_SIGNING_KEY",
        keys.folder / "ann.pub": "no private SSH key",
        tmp_path / "locked": "without a passphrase",
        tmp_path / "gone": "no private SSH key",
        tmp_path / "open": "chmod 600",
    }
    for key, words in refusals.items():
        settings = attested.settings.model_copy(update={"signing_key": key})
        with pytest.raises(CannotAttest, match=words):
            attest_version(settings, "alpha@v1")
        assert statement_of(settings, "alpha@v1")


def test_what_does_not_verify_is_not_attested_where_signatures_are_required(attested: Project) -> None:
    settings = attested.settings.model_copy(update={"require_signature": True})
    with pytest.raises(NotVerified, match="alpha@v1 is not signed"):
        attest_version(settings, "alpha@v1")


def test_the_commands_print_and_write(attested: Project, keys: Keys, tmp_path: Path) -> None:
    def retrace(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        command = [str(Path(sys.executable).parent / "retrace"), *arguments]
        variables = {**environ(tmp_path / "home"), "PYTHONPATH": str(ROOT), **environment}
        return subprocess.run(command, cwd=attested.root, env=variables, capture_output=True, text=True, check=False)

    shown = retrace("show", "alpha@v1", "--format", "slsa").stdout
    file = tmp_path / "envelope.json"
    refused = retrace("attest", "alpha@v1", str(file))
    assert refused.returncode == 1 and "set RETRACE_SIGNING_KEY" in refused.stderr and not file.exists()
    assert retrace("attest", "alpha@v1", str(file), RETRACE_SIGNING_KEY=str(keys.folder / "ann")).returncode == 0
    assert base64.b64decode(json.loads(file.read_text())["payload"]).decode() == shown.rstrip("\n")
    said = retrace("verify", "alpha@v1", RETRACE_ALLOWED_SIGNERS=str(keys.allowed))
    assert said.returncode == 1
    assert said.stdout.splitlines()[0] == "- alpha@v1 is not signed with an SSH key"
    assert said.stdout.splitlines()[-1] == "alpha@v1 does not verify"
