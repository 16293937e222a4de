"""`retrace verify`: whether a version is what somebody with a known key signed, down to every byte of it.

The tag's signature covers the commit; the commit lists the sha256 of every file; so each link is checked up to what
the remote and MLflow hold. Nothing here believes what it checks: signers, revocations and whether signatures are
required come from this machine.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from retrace import signatures, versions
from retrace.config import Settings
from retrace.errors import RetraceError
from retrace.git import Mirror, TagMoved
from retrace.proof.finding import Finding, Outcome, fails, holds, unchecked
from retrace.proof.objects import check_objects
from retrace.proof.record import check_record
from retrace.proof.registered import CHECK as REGISTRY
from retrace.proof.registered import check_registered
from retrace.proof.tracked import tracked
from retrace.record import read_record
from retrace.ssh import BadSignature, CannotVerify, Signature
from retrace.versions import Assignment, Version

_SIGNS = {Outcome.HOLDS: "+", Outcome.FAILS: "-", Outcome.UNCHECKED: "?"}


class NotVerified(RetraceError):
    """Signatures are required, and a version or an assignment does not verify."""


@dataclass(frozen=True)
class Verification:
    """All findings on a version. MLflow is a view: that it does not answer is told, and is no failure."""

    version: Version
    signature: Signature | None
    findings: tuple[Finding, ...]

    @property
    def in_the_way(self) -> list[Finding]:
        """The findings that keep the version from being verified."""
        return [
            finding
            for finding in self.findings
            if finding.outcome == Outcome.FAILS or (finding.outcome == Outcome.UNCHECKED and finding.check != REGISTRY)
        ]


def run_verify(settings: Settings, version: str, *, as_json: bool) -> int:
    """Print what holds of a version and what does not; 0 when all does, 1 otherwise. Raises `UnknownVersion`."""
    mirror = Mirror.open(settings.mirror, settings.origin)
    moved = []
    try:
        mirror.fetch_record()
    except TagMoved as error:
        moved = [fails("tag", str(error))]
    found = versions.find(mirror, version)
    signature, signed = _signed(settings, mirror, found)
    findings = (
        *moved,
        *signed,
        *_assignments(settings, mirror, found),
        *_replaced(mirror, found),
        *_contents(settings, mirror, found, objects=True, registry=True),
    )
    verification = Verification(found, signature, findings)
    print(_as_json(verification) if as_json else "\n".join(_as_text(verification)))
    return 1 if verification.in_the_way else 0


def require(settings: Settings, mirror: Mirror, version: Version, *, objects: bool = True) -> None:
    """Raise `NotVerified` when signatures are required and the version does not verify.

    MLflow is not asked, as it follows later. Without `objects` the remote is not read, for a caller who compares the
    file that matters with the record himself.
    """
    if not signatures.is_required(settings, mirror):
        return
    signature, signed = _signed(settings, mirror, version)
    checked = (*signed, *_replaced(mirror, version), *_contents(settings, mirror, version, objects, registry=False))
    wrong = Verification(version, signature, checked).in_the_way
    if wrong:
        raise NotVerified(
            f"{version.name} is refused, since require_signature is on: {wrong[0].text}; `retrace verify "
            f"{version.name}` tells all"
        )


def require_holder(settings: Settings, mirror: Mirror, version: Version, alias: str, *, objects: bool = True) -> None:
    """The same for a version as the holder of an alias: the assignment must be signed, too."""
    if not signatures.is_required(settings, mirror):
        return
    require(settings, mirror, version, objects=objects)
    given = [held for held in versions.assignments(mirror, version.model) if held.alias == alias]
    [finding] = _signatures(settings, mirror, [held for held in given if held.commit == version.commit][-1:])
    if finding.outcome != Outcome.HOLDS:
        raise NotVerified(
            f"{version.name} is refused as {alias}, since require_signature is on: {finding.text}; if nobody is behind "
            f"that tag, remove it from the origin, then `retrace promote` whom you trust"
        )


def _signed(settings: Settings, mirror: Mirror, version: Version) -> tuple[Signature | None, list[Finding]]:
    check = "signature"
    try:
        found, tagger = signatures.check_tag(
            mirror, version.name, version.tag_object, version.commit, signatures.signers_of(settings)
        )
    except CannotVerify as error:
        return None, [unchecked(check, str(error))]
    except BadSignature as error:
        return None, [fails(check, str(error))]
    claim = "" if f"<{found.principal}>" in tagger else f" (as tagger it names {tagger}, which proves nothing)"
    text = f"signed by {found.principal}, {found.kind} {found.fingerprint}{claim}"
    return found, [holds(check, text), holds("tag", f"the tag object says that it is {version.name}")]


def _assignments(settings: Settings, mirror: Mirror, version: Version) -> list[Finding]:
    given = [held for held in versions.assignments(mirror, version.model) if held.commit == version.commit]
    return list(_signatures(settings, mirror, given))


def _signatures(settings: Settings, mirror: Mirror, given: Sequence[Assignment]) -> Iterator[Finding]:
    check = "assignment"
    for held in given:
        tag_object = mirror.out("rev-parse", "--verify", f"refs/tags/{held.name}")
        try:
            signers = signatures.signers_of(settings)
            found, _ = signatures.check_tag(mirror, held.name, tag_object, held.commit, signers)
        except CannotVerify as error:
            yield unchecked(check, f"{held.name}: {error}")
        except BadSignature as error:
            yield fails(check, str(error))
        else:
            yield holds(check, f"{held.name} is signed by {found.principal}")


def _replaced(mirror: Mirror, version: Version) -> list[Finding]:
    """Retrace ignores replace refs; plain git would show a person other objects than those that were signed."""
    check = "replaced"
    prefix = "refs/replace/"
    replaced = {ref.removeprefix(prefix) for ref in mirror.remote_refs(f"{prefix}*")}
    if replaced:
        own = mirror.out("rev-list", "--objects", "--no-object-names", version.tag_object).split()
        hit = sorted(replaced & {version.tag_object, *own})
        if hit:
            return [fails(check, f"the origin has {prefix}{hit[0]}, which hides a part of this version from plain git")]
    return [holds(check, "no replace ref of the origin hides a part of it")]


def _contents(settings: Settings, mirror: Mirror, version: Version, objects: bool, registry: bool) -> Iterator[Finding]:
    try:
        record = read_record(mirror, version)
        things = tracked(record)
        yield from check_record(mirror, record, things)
    except (RetraceError, KeyError, TypeError, ValueError, AttributeError) as error:
        yield fails("record", f"its commit is not a version's: {' '.join(str(error).split()) or type(error).__name__}")
        return
    ticket = None
    if objects:
        for finding in check_objects(settings, mirror, version, things):
            ticket = ticket or finding.ticket
            yield finding
    if registry:
        yield from check_registered(settings, mirror, version, things, ticket)


def _as_text(verification: Verification) -> Iterator[str]:
    for finding in verification.findings:
        yield f"{_SIGNS[finding.outcome]} {finding.text}"
    name, wrong = verification.version.name, verification.in_the_way
    if not wrong:
        signature = verification.signature
        assert signature is not None
        yield f"{name} is what {signature.principal} signed"
    elif any(finding.outcome == Outcome.FAILS for finding in wrong):
        yield f"{name} does not verify"
    elif tickets := [finding.ticket for finding in wrong if finding.ticket is not None]:
        yield f"{name} can no longer be verified: it was forgotten on request {', '.join(tickets)}"
    else:
        yield f"{name} could not be verified here"


def _as_json(verification: Verification) -> str:
    version, signature = verification.version, verification.signature
    facts = {
        "version": version.name,
        "commit": version.commit,
        "tag": version.tag_object,
        "verified": not verification.in_the_way,
        "signer": None if signature is None else vars(signature),
        "findings": [
            {"check": finding.check, "outcome": str(finding.outcome), "text": finding.text}
            for finding in verification.findings
        ],
    }
    return json.dumps(facts, indent=1, sort_keys=True)
