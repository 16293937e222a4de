"""`retrace attest` and `retrace show --format slsa`: a version's provenance for those who have no Retrace.

The envelope (DSSE) is signed with the SSH key that signs tags; its payload is the very text that `show` prints.
"""

from __future__ import annotations

import base64
import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from retrace import slsa, versions
from retrace.config import Settings
from retrace.errors import RetraceError
from retrace.git import Git, Mirror
from retrace.reader import reader
from retrace.signatures import key_of
from retrace.verify import require
from retrace.versions import Version

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.serialization import SSHPrivateKeyTypes
    from securesystemslib.signer import CryptoSigner, Key

PAYLOAD_TYPE = "application/vnd.in-toto+json"


class CannotAttest(RetraceError):
    """There is no key that an envelope can be signed with."""


class EnvelopeInvalid(RetraceError):
    """An envelope that does not say what it should, or is not signed by the key that it should."""


def statement_of(settings: Settings, version: str) -> str:
    """The in-toto statement of a version as JSON. Raises `UnknownVersion`, `GitError`, `StatementInvalid`."""
    git = reader(settings)
    return _text(git, versions.find(git, version))


def _text(git: Git, version: Version) -> str:
    # Of the library's own message JSON is not the same: it makes 7.0 of 7.
    return json.dumps(slsa.statement(git, version), indent=1, sort_keys=True)


def attest_version(settings: Settings, version: str) -> str:
    """The same in a DSSE envelope, signed and checked, as JSON.

    Raises `CannotAttest` and, where signatures are required and the version's do not hold, `NotVerified`.
    """
    from securesystemslib.dsse import Envelope

    signer = _signer(settings)
    mirror = Mirror.open(settings.mirror, settings.origin)
    mirror.fetch_record()
    found = versions.find(mirror, version)
    require(settings, mirror, found)
    envelope = Envelope(_text(mirror, found).encode(), PAYLOAD_TYPE, {})
    envelope.sign(signer)
    text = json.dumps(envelope.to_dict(), indent=1, sort_keys=True)
    check_envelope(text, signer.public_key, found)
    return text


def _signer(settings: Settings) -> CryptoSigner:
    from cryptography.exceptions import UnsupportedAlgorithm
    from securesystemslib.signer import CryptoSigner

    try:
        return CryptoSigner(_private_key(settings))
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise _unusable() from None


def _private_key(settings: Settings) -> SSHPrivateKeyTypes:
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.serialization import load_ssh_private_key

    key = key_of(settings)
    if key is None:
        raise CannotAttest("no key to sign with: set RETRACE_SIGNING_KEY to an SSH key (`retrace show` needs none)")
    try:
        _refuse_readable_by_others(key)
        return load_ssh_private_key(key.read_bytes(), password=None)
    except (ValueError, TypeError, OSError, UnsupportedAlgorithm):
        raise _unusable() from None


def _unusable() -> CannotAttest:
    return CannotAttest(
        "the file that RETRACE_SIGNING_KEY names is no private SSH key without a passphrase, which an envelope is "
        "signed with (an agent does not do it); name one such as ssh-keygen -t ed25519 makes"
    )


def fingerprint(settings: Settings) -> str:
    """Of the key that envelopes are signed with, as `ssh-keygen -l` prints it. Raises `CannotAttest`."""
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    public = _private_key(settings).public_key()
    blob = public.public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).split()[1]
    return "SHA256:" + base64.b64encode(hashlib.sha256(base64.b64decode(blob)).digest()).decode().rstrip("=")


def _refuse_readable_by_others(key: Path) -> None:
    """As `ssh-keygen` does."""
    if key.suffix != ".pub" and key.stat().st_mode & 0o077:
        raise CannotAttest("others may read the key that RETRACE_SIGNING_KEY names; run chmod 600 on it")


def check_envelope(text: str, key: Key, version: Version) -> dict[str, Any]:
    """The statement in an envelope that this key signed about this version.

    A good signature alone does not say what was signed. Raises `EnvelopeInvalid`, `StatementInvalid`.
    """
    from securesystemslib.dsse import Envelope
    from securesystemslib.exceptions import FormatError, VerificationError

    try:
        envelope = Envelope.from_dict(json.loads(text))
        envelope.verify([key], threshold=1)
    except (VerificationError, FormatError, KeyError, TypeError, ValueError) as error:
        raise EnvelopeInvalid(f"the envelope is not signed by this key: {' '.join(str(error).split())}") from None
    if envelope.payload_type != PAYLOAD_TYPE:
        raise EnvelopeInvalid(f"the envelope's payload is {envelope.payload_type!r}, not {PAYLOAD_TYPE!r}")
    statement: dict[str, Any] = json.loads(envelope.payload)
    slsa.check(statement, version)
    return statement
