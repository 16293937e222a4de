"""SSH signatures in git's namespace, by `ssh-keygen`: what `gpg.format ssh` writes and `git verify-tag` reads."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from retrace.errors import RetraceError

BEGIN, END = b"-----BEGIN SSH SIGNATURE-----", b"-----END SSH SIGNATURE-----"
_NAMESPACE = ("-n", "git")
_NO_PROGRAM = "there is no ssh-keygen on PATH; install OpenSSH's client (Debian: openssh-client)"
_KEY = re.compile(r"with (\S+) key (\S+)$", re.MULTILINE)


class CannotSign(RetraceError):
    """The configured key does not sign."""


class CannotVerify(RetraceError):
    """This machine lacks what a signature is checked with; it says nothing of the signature."""


class BadSignature(RetraceError):
    """A signature that does not count: forged, by an unknown signer, or by a revoked key."""


@dataclass(frozen=True)
class Signers:
    """Whose signatures count, in the files that `ssh-keygen` reads."""

    allowed: Path
    revoked: Path | None


@dataclass(frozen=True)
class Signature:
    """Who signed: the principal that the allowed signers give to the key, and the key's type and fingerprint."""

    principal: str
    kind: str
    fingerprint: str


def sign(key: Path, payload: bytes) -> bytes:
    """The armored signature of a payload; of a public key the agent must hold the private half. Raises `CannotSign`."""
    if not key.is_file():
        raise CannotSign("RETRACE_SIGNING_KEY names a file that is not here; name an SSH key, or its .pub for an agent")
    # A session of its own has no terminal: a passphrase is never asked for in the middle of a run.
    quiet = {"SSH_ASKPASS_REQUIRE": "never"}
    try:
        done = _run(["-Y", "sign", *_NAMESPACE, "-f", str(key)], payload, quiet)
    except FileNotFoundError:
        raise CannotSign(f"versions are to be signed (RETRACE_SIGNING_KEY is set), and {_NO_PROGRAM}") from None
    if done.returncode == 0:
        return done.stdout
    raise CannotSign(
        f"the key that RETRACE_SIGNING_KEY names does not sign: {_why(done.stderr.decode('utf-8', 'replace'))}"
    )


def _why(said: str) -> str:
    """What `ssh-keygen` said, as something to do; it names paths, which must not get into logs."""
    if "UNPROTECTED PRIVATE KEY" in said or "too open" in said:
        return "others may read it, so that ssh-keygen refuses it; run chmod 600 on it"
    if "passphrase" in said:
        return "it has a passphrase; add it to ssh-agent and name its public half (.pub)"
    if "No private key found" in said:
        return "it is a public key whose private half no ssh-agent holds (SSH_AUTH_SOCK); run ssh-add"
    return "ssh-keygen cannot read it; name a private SSH key such as ssh-keygen -t ed25519 makes"


def _run(
    arguments: list[str], payload: bytes, environment: dict[str, str] | None = None
) -> subprocess.CompletedProcess[bytes]:
    program = shutil.which("ssh-keygen")
    if program is None:
        raise FileNotFoundError("ssh-keygen")
    return subprocess.run(
        [program, *arguments],
        input=payload,
        capture_output=True,
        env={**os.environ, "LC_ALL": "C", **(environment or {})},
        start_new_session=True,
        check=False,
    )


def verify(payload: bytes, armored: bytes, signers: Signers, when: datetime) -> Signature:
    """Who signed the payload; `when` is its claim of its date, at which the signer's key must have been valid.

    Raises `BadSignature`, or `CannotVerify` when this machine lacks `ssh-keygen` or a file.
    """
    for file in (signers.allowed, signers.revoked):
        if file is not None and not os.access(file, os.R_OK):
            variable = "RETRACE_ALLOWED_SIGNERS" if file == signers.allowed else "RETRACE_REVOKED_SIGNERS"
            raise CannotVerify(f"cannot verify signatures: {variable} names a file that cannot be read")
    try:
        with _kept(armored) as file:
            return _verify(payload, ["-s", str(file)], signers, when)
    except FileNotFoundError:
        raise CannotVerify(f"cannot verify signatures: {_NO_PROGRAM}") from None


@contextmanager
def _kept(content: bytes) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="retrace-signature-") as folder:
        file = Path(folder, "signature")
        file.write_bytes(content)
        yield file


def _verify(payload: bytes, signature: list[str], signers: Signers, when: datetime) -> Signature:
    fits = _run(["-Y", "check-novalidate", *_NAMESPACE, *signature], payload)
    key = _KEY.search(fits.stdout.decode())
    if fits.returncode != 0 or key is None:
        raise BadSignature("its signature does not fit it: it was changed after it was signed, or never was")
    kind, fingerprint = key.groups()
    allowed = ["-f", str(signers.allowed), f"-Overify-time={when.astimezone():%Y%m%d%H%M%S}", *signature]
    known = _run(["-Y", "find-principals", *allowed], b"").stdout.decode().splitlines()
    for principal in known:
        check = ["-Y", "verify", *_NAMESPACE, "-I", principal, *allowed]
        if _run(check, payload).returncode == 0:
            if signers.revoked is not None and _run([*check, "-r", str(signers.revoked)], payload).returncode != 0:
                raise BadSignature(
                    f"the key of {principal} that signed it ({fingerprint}) is revoked, says the revocation file"
                )
            return Signature(principal, kind, fingerprint)
    raise BadSignature(
        f"it is signed by a key that the allowed signers do not list for its date ({kind} {fingerprint})"
    )
