"""Packages: which versions' environments pin some release, by the lock of their commits."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from retrace.environment import PYTHON_VERSION, REQUIREMENTS
from retrace.errors import RetraceError
from retrace.usage.answer import Answer, Use
from retrace.usage.holdings import Holdings

if TYPE_CHECKING:
    from packaging.requirements import Requirement

_PIN = re.compile(
    r"^(?P<name>[A-Za-z0-9][A-Za-z0-9._-]*)(?:\[[^\]]*\])?\s*={2,3}\s*(?P<version>[^\s;\\]+)\s*(?:;\s*(?P<marker>[^\\\n]*))?",
    re.MULTILINE,
)
_SHOWN_PINS = 8
_PLATFORMS = [
    {"sys_platform": name, "platform_system": system, "os_name": family, "platform_machine": machine}
    for name, system, family, machines in (
        ("linux", "Linux", "posix", ("x86_64", "aarch64")),
        ("darwin", "Darwin", "posix", ("x86_64", "arm64")),
        ("win32", "Windows", "nt", ("AMD64", "ARM64")),
    )
    for machine in machines
]


class PackageRefused(RetraceError):
    """Not the name of a package with versions."""


@dataclass(frozen=True, order=True)
class _Pin:
    version: str
    marker: str


def about_package(holdings: Holdings, asked: str) -> Answer:
    """The answer about `name`, `name==1.2.3` or `name>=1,<2`. Raises `PackageRefused`.

    A pin for another platform than this machine's counts, too: a worker may have it. One for another Python does not.
    """
    from packaging.requirements import InvalidRequirement, Requirement
    from packaging.utils import canonicalize_name

    try:
        requirement = Requirement(asked)
    except InvalidRequirement:
        raise PackageRefused(f'{asked!r} is not a package: write "scikit-learn==1.9.1", a name or a range') from None
    if requirement.url or requirement.marker:
        raise PackageRefused(f"{asked!r}: give a name and versions alone, without an address or a marker")
    wanted = canonicalize_name(requirement.name)
    pins = _pins_of_versions(holdings, wanted)
    uses, others = [], set()
    for name, pinned in pins.items():
        found = [pin for pin in pinned if _admits(requirement, pin)]
        others |= {pin.version for pin in pinned if pin not in found}
        if found:
            facts = {"pins": [{"name": wanted, "version": pin.version, "marker": pin.marker or None} for pin in found]}
            uses.append(
                Use(holdings.named[name], ", ".join(dict.fromkeys(f"{wanted}=={pin.version}" for pin in found)), facts)
            )
    notes = []
    if others:
        shown = sorted(others)[:_SHOWN_PINS]
        notes.append(f"other versions pin {wanted} {', '.join(shown)}{', …' if len(others) > len(shown) else ''}")
    elif not uses:
        notes.append(f"no version's {REQUIREMENTS} names {wanted}")
    asking = {"kind": "package", "package": str(requirement)}
    return Answer(str(requirement), asking, uses, notes=notes, more={"otherPins": sorted(others)})


def _pins_of_versions(holdings: Holdings, wanted: str) -> dict[str, list[_Pin]]:
    """Version name -> what its lock pins of a package for its Python; each distinct lock is read once."""
    locks, pythons = holdings.at(REQUIREMENTS), holdings.at(PYTHON_VERSION)
    pins = {oid: _pins(content.decode(errors="replace"), wanted) for oid, content in holdings.contents(locks.values())}
    python = {oid: content.decode(errors="replace").strip() for oid, content in holdings.contents(pythons.values())}
    found: dict[tuple[str, str], list[_Pin]] = {}
    for name, oid in locks.items():
        key = oid, python.get(pythons.get(name, ""), "")
        if key not in found:
            found[key] = [pin for pin in pins[oid] if _installed(pin, key[1])]
    return {name: found[oid, python.get(pythons.get(name, ""), "")] for name, oid in locks.items()}


def _installed(pin: _Pin, python: str) -> bool:
    """Whether a pin applies under this Python on any of the platforms that workers have."""
    from packaging.markers import InvalidMarker, Marker, UndefinedEnvironmentName

    if not pin.marker or not re.fullmatch(r"\d+\.\d+(\.\d+)?", python):
        return True
    full = python if python.count(".") == 2 else f"{python}.0"
    here = {"python_version": ".".join(python.split(".")[:2]), "python_full_version": full}
    try:
        marker = Marker(pin.marker)
        return any(marker.evaluate({**here, **platform}) for platform in _PLATFORMS)
    except (InvalidMarker, UndefinedEnvironmentName):
        return True


def _pins(lock: str, wanted: str) -> list[_Pin]:
    """The releases of a package that a lock pins: several, where they differ by platform."""
    from packaging.utils import canonicalize_name

    return sorted(
        _Pin(match["version"], (match["marker"] or "").strip())
        for match in _PIN.finditer(lock)
        if canonicalize_name(match["name"]) == wanted
    )


def _admits(requirement: Requirement, pin: _Pin) -> bool:
    from packaging.version import InvalidVersion

    try:
        return requirement.specifier.contains(pin.version, prereleases=True)
    except InvalidVersion:
        return not requirement.specifier
