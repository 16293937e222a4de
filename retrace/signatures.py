"""Signed tags: versions and assignments carry an SSH signature when a key is configured, and are checked by it.

What plain `git verify-tag` accepts is not enough: it does not look which ref it was reached by, takes the tagger's word
for who signed, and lets text stand behind the signature. Whose signatures count is this machine's to say, never the
repository's: whoever can push there must not be able to appoint signers.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import yaml

from retrace import ssh, yaml12
from retrace.config import ConfigError, Settings
from retrace.errors import RetraceError
from retrace.git import Git, Mirror
from retrace.runs import code_commit
from retrace.ssh import BadSignature, CannotVerify, Signature, Signers

Signer = Callable[[bytes], bytes]
_TAG = re.compile(
    rb"object (?P<object>[0-9a-f]+)\ntype commit\ntag (?P<tag>[^\n]+)\n"
    rb"tagger (?P<tagger>[^\n]*) (?P<seconds>[0-9]{1,11}) [+-][0-9]{4}\n\n.*",
    re.DOTALL,
)


class NotSigned(BadSignature):
    """A tag without an SSH signature."""


class WrongTag(BadSignature):
    """A ref that names a tag object which is another tag's."""


class NoSigningKey(RetraceError):
    """Signatures are required and there is no key to sign with."""


def key_of(settings: Settings) -> Path | None:
    """Where the configured key is."""
    return _place(settings, settings.signing_key) if settings.signing_key is not None else None


def signer(settings: Settings) -> Signer | None:
    """What signs tag objects on this machine, if a key is configured."""
    key = key_of(settings)
    return partial(ssh.sign, key) if key is not None else None


def required_signer(settings: Settings, mirror: Mirror) -> Signer | None:
    """The same; a `NoSigningKey` where unsigned tags would be refused later."""
    found = signer(settings)
    if found is None and is_required(settings, mirror):
        raise NoSigningKey(
            "require_signature is on and this machine has no key to sign with; set RETRACE_SIGNING_KEY to an SSH key"
        )
    return found


def is_required(settings: Settings, mirror: Mirror) -> bool:
    """Whether only signed versions count: by this machine's setting, or by params.yaml of the code of today.

    What the version's own commit says does not matter: whoever forges one would turn it off there. Raises
    `ConfigError`.
    """
    if settings.require_signature:
        return True
    text = mirror.read(code_commit(settings, mirror), "params.yaml")
    try:
        tree = yaml12.load(text.decode()) if text is not None else None
    except yaml.YAMLError:
        raise ConfigError(
            "params.yaml of today's code is not YAML, so that nobody knows whether it requires signatures; correct it"
        ) from None
    return isinstance(tree, dict) and tree.get("require_signature", False) is not False


def signers_of(settings: Settings) -> Signers:
    """Whose signatures count on this machine.

    Raises `CannotVerify` when that is not configured, or is configured to be a file of the repository.
    """
    if settings.allowed_signers is None:
        raise CannotVerify(
            "cannot verify signatures: no allowed signers are configured; set RETRACE_ALLOWED_SIGNERS to a file of "
            "lines `who ssh-ed25519 AAAA...`"
        )
    files = [_place(settings, file) for file in (settings.allowed_signers, settings.revoked_signers) if file]
    for file in files:
        if _is_tracked(settings, file):
            raise CannotVerify(
                f"cannot verify signatures: {file.name} is a file of the repository, whose signers anybody who can "
                "push would appoint; keep it elsewhere and let RETRACE_ALLOWED_SIGNERS name that"
            )
    return Signers(files[0], files[1] if len(files) > 1 else None)


def _place(settings: Settings, file: Path) -> Path:
    return (settings.root / file.expanduser()).resolve()


def _is_tracked(settings: Settings, file: Path) -> bool:
    inside = Git(settings.root).run("ls-files", "--error-unmatch", "--", str(file))
    return inside.returncode == 0


def check_tag(git: Git, name: str, tag_object: str, commit: str, signers: Signers) -> tuple[Signature, str]:
    """Who signed the tag object that a tag of this name is, and whom it names as tagger, which proves nothing.

    Raises `NotSigned`, `WrongTag`, `BadSignature`, `CannotVerify`.
    """
    body = git.read_many([tag_object])[0]
    payload, armored = _split(name, body or b"")
    head = _TAG.fullmatch(payload)
    if head is None:
        raise WrongTag(f"{name} is not a tag object as Retrace writes them")
    if head["tag"].decode(errors="replace") != name or head["object"].decode() != commit:
        raise WrongTag(
            f"the ref {name} names a tag object that says it is {head['tag'].decode(errors='replace')} at "
            f"{head['object'].decode()[:8]}: somebody put another tag in its place"
        )
    when = datetime.fromtimestamp(int(head["seconds"]), UTC)
    try:
        found = ssh.verify(payload, armored, signers, when)
    except BadSignature as error:
        raise BadSignature(f"{name} does not verify: {error}") from None
    return found, head["tagger"].decode(errors="replace")


def _split(name: str, body: bytes) -> tuple[bytes, bytes]:
    """A tag object's signed part and its signature, which must be the end of it: what follows is signed by nobody."""
    start = body.rfind(b"\n" + ssh.BEGIN + b"\n") + 1
    if start == 0:
        raise NotSigned(f"{name} is not signed with an SSH key")
    payload, armored = body[:start], body[start:]
    if armored.find(ssh.END) + len(ssh.END) != len(armored.rstrip(b"\n")):
        raise BadSignature(f"{name} does not verify: text stands behind its signature, which signs none of it")
    return payload, armored
