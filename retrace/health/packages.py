"""Whether an index still serves every pinned package, with a hash that the lock accepts: what another machine needs."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name

from retrace.environment import PYTHON_VERSION, REQUIREMENTS, EnvironmentFailed, EnvironmentLock
from retrace.health.finding import Finding, Section, named
from retrace.health.scope import INDEX, Scope, object_ids
from retrace.wording import counted

_SECTION = "packages"
_TODAY = "today's code"
_HASH = re.compile(r"--hash=sha256:([0-9a-f]{64})")
_YANKED = re.compile(r"warning: `([^`]+)` is yanked(?: \(reason: \"(.*)\"\))?")
# Only pins are asked for: what uv names so in its explanation is what it could not have.
_UNSERVED = re.compile(r"([A-Za-z0-9][\w.-]*)(?===| was not found in the package registry)")
_NO_ANSWER = re.compile(r"Failed to fetch|error sending request|valid authentication credentials|timed out")


@dataclass(frozen=True)
class _Pin:
    """One line of a lock: a package at a version, for a Python."""

    name: str
    version: str
    python: str

    @property
    def text(self) -> str:
        return f"{self.name}=={self.version}"


@dataclass
class _Served:
    """What the index has said so far: pin -> hashes of what it serves (none: not served); yanked pin -> reason."""

    hashes: dict[_Pin, frozenset[str]] = field(default_factory=dict)
    yanked: dict[str, str] = field(default_factory=dict)
    silent: str | None = None


@dataclass(frozen=True)
class _Locked:
    """A distinct lock, the packages that it pins with the hashes that it accepts, and whose it is."""

    lock: EnvironmentLock
    pins: Mapping[_Pin, frozenset[str]]
    options: tuple[str, ...]
    by: list[str]


def packages(scope: Scope) -> Section:
    """Ask the index for what each distinct lock pins; an environment that is here already does not count."""
    locked, findings = _locks(scope)
    served = _Served()
    if any(item.pins for item in locked):
        scope.asked.append(INDEX)
    for number, item in enumerate(locked, start=1):
        scope.follow(f"asks the package index for lock {number} of {len(locked)}")
        _ask(served, item)
        if served.silent is not None:
            scope.silent[INDEX] = served.silent
            return Section(_SECTION, "the index does not answer", tuple(findings))
    findings += [*_pythons(locked), *_not_served(locked, served), *_yanked(locked, served)]
    pins = {pin.text for item in locked for pin in item.pins}
    summary = f"{counted(len(pins), 'package')} of {counted(len(locked), 'lock')}"
    return Section(_SECTION, summary if findings else f"{summary}, all served", tuple(findings))


def _locks(scope: Scope) -> tuple[list[_Locked], list[Finding]]:
    """The distinct locks of all versions and of today's code; and versions whose commit has none."""
    commits = [(version.name, version.commit) for version in scope.versions]
    commits += [(_TODAY, scope.code)] if scope.code is not None else []
    places = [tuple(f"{commit}:{path}" for path in _FILES) for _, commit in commits]
    ids = object_ids(scope.mirror, (place for pair in places for place in pair))
    found: dict[tuple[str | None, ...], _Locked] = {}
    findings = []
    for (name, commit), pair in zip(commits, places, strict=True):
        key = tuple(ids.get(place) for place in pair)
        try:
            if key not in found:
                lock = EnvironmentLock.of_commit(scope.mirror, commit)
                found[key] = _Locked(lock, *_pins(lock), [])
            found[key].by.append(name)
        except EnvironmentFailed as error:
            findings.append(Finding("lock-unreadable", f"{name} cannot be rebuilt: {error}", facts=_whose([name])))
    return list(found.values()), findings


_FILES = (PYTHON_VERSION, REQUIREMENTS)


def _pins(lock: EnvironmentLock) -> tuple[dict[_Pin, frozenset[str]], tuple[str, ...]]:
    """What a lock pins for its Python on this machine, with the hashes that it accepts; and its options."""
    full = lock.python if lock.python.count(".") == 2 else f"{lock.python}.0"
    here = {"python_version": ".".join(lock.python.split(".")[:2]), "python_full_version": full}
    pins: dict[_Pin, frozenset[str]] = {}
    options = []
    for line in lock.requirements.decode().replace("\\\n", " ").splitlines():
        text, _, _ = line.partition(" --hash=")
        if line.startswith("--"):
            options.append(line)
        if not line[:1].isalnum():
            continue
        try:
            item = Requirement(text.strip())
        except InvalidRequirement:
            continue  # uv refuses it when the environment is made
        exact = [part.version for part in item.specifier if part.operator == "=="]
        if exact and (item.marker is None or item.marker.evaluate(here)):
            pin = _Pin(canonicalize_name(item.name), exact[0], lock.python)
            pins[pin] = frozenset(_HASH.findall(line))
    return pins, tuple(options)


def _ask(served: _Served, item: _Locked) -> None:
    """Ask for what was not asked yet; what uv names as not to be had is taken out, and the rest asked again."""
    wanted = {pin.name: pin for pin in item.pins if pin not in served.hashes}
    while wanted:
        done = _compile(item, wanted.values())
        if done.returncode == 0:
            for name, hashes in _answered(done.stdout):
                if name in wanted:
                    served.hashes[wanted.pop(name)] = hashes
            served.yanked.update(_YANKED.findall(done.stderr))
            served.hashes |= dict.fromkeys(wanted.values(), frozenset())
            return
        said = " ".join(done.stderr.split())
        if _NO_ANSWER.search(said):
            served.silent = f"it did not answer: {_reason(done.stderr)}"
            return
        lost = wanted.keys() & {canonicalize_name(name) for name in _UNSERVED.findall(said)}
        if not lost:
            served.silent = f"uv could not ask it: {_reason(done.stderr)}"
            return
        served.hashes |= {wanted.pop(name): frozenset() for name in lost}


def _compile(item: _Locked, pins: Iterable[_Pin]) -> subprocess.CompletedProcess[str]:
    """What the index serves of some pins, by uv: without dependencies it builds and downloads nothing."""
    lines = [*item.options, *(pin.text for pin in pins)]
    kept = {key: value for key, value in os.environ.items() if key not in ("VIRTUAL_ENV", "PYTHONPATH")}
    flags = ["--no-deps", "--generate-hashes", "--no-header", "--no-annotate", "--no-cache", "--no-python-downloads"]
    python = ["--python", sys.executable, "--python-version", item.lock.python]
    return subprocess.run(
        [sys.executable, "-m", "uv", "pip", "compile", *flags, *python, "-"],
        input="\n".join(lines) + "\n",
        capture_output=True,
        text=True,
        env=kept,
        check=False,
    )


def _answered(output: str) -> Iterable[tuple[str, frozenset[str]]]:
    for line in output.replace("\\\n", " ").splitlines():
        if line[:1].isalnum():
            yield canonicalize_name(line.partition("==")[0]), frozenset(_HASH.findall(line))


def _reason(stderr: str) -> str:
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    causes = [line for line in lines if line.startswith(("error:", "cause:"))] or lines
    return " ".join(causes)[:300]


def _whose(by: list[str]) -> dict[str, object]:
    return {"versions": [name for name in by if name != _TODAY], "todaysCode": _TODAY in by}


def _pythons(locked: Iterable[_Locked]) -> Iterable[Finding]:
    needed: dict[str, list[str]] = {}
    for item in locked:
        needed.setdefault(item.lock.python, []).extend(item.by)
    for python, by in sorted(needed.items()):
        found = subprocess.run(
            [sys.executable, "-m", "uv", "python", "find", "--quiet", "--no-python-downloads", "--no-project", python],
            capture_output=True,
            check=False,
        )
        if found.returncode != 0:
            text = f"{named(by)} cannot be rebuilt here: Python {python} is not installed on this machine; install it"
            yield Finding("python-missing", text, facts={"python": python, **_whose(by)})


def _not_served(locked: Iterable[_Locked], served: _Served) -> Iterable[Finding]:
    gone: dict[tuple[str, bool], list[str]] = {}
    for item in locked:
        for pin, accepted in item.pins.items():
            answer = served.hashes[pin]
            if not answer or (accepted and not accepted & answer):
                gone.setdefault((pin.text, bool(answer)), []).extend(item.by)
    for (package, other), by in sorted(gone.items()):
        how = "is served by the index with other hashes only" if other else "is served by no index"
        text = f"{named(by)} cannot be rebuilt on a new machine: {package} {how}; serve it from an index of your own"
        yield Finding("package-missing", text, facts={"package": package, "otherHashes": other, **_whose(by)})


def _yanked(locked: Iterable[_Locked], served: _Served) -> Iterable[Finding]:
    for yanked, reason in sorted(served.yanked.items()):
        by = sorted({name for item in locked if yanked in {own.text for own in item.pins} for name in item.by})
        text = f"{yanked}, of {named(by)}, is yanked{f' ({reason})' if reason else ''}; it is still served"
        yield Finding("package-yanked", text, "noted", {"package": yanked, **_whose(by)})
