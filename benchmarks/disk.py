"""What the second retrain, a month later, adds to this machine's cache and to the DVC remote, object by object."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from pathlib import Path

import yaml

from benchmarks.laboratory import JULY, MODEL, Laboratory, Table, megabytes, tell

_STORES = ("cache", "remote")


def measure(laboratory: Laboratory) -> list[Table]:
    laboratory.restore("trained")
    tell("disk_second_retrain")
    before = {store: _objects(laboratory.var / store) for store in _STORES}
    laboratory.retrace("ingest", "--until", JULY)
    laboratory.retrace("retrain", MODEL)
    names = _names(laboratory)
    tables = []
    for store in _STORES:
        after = _objects(laboratory.var / store)
        tables.append(_table(laboratory, store, after, after.keys() - before[store].keys(), names))
    return tables


def _objects(store: Path) -> dict[Path, int]:
    """Every file of a store and its size."""
    return {path.relative_to(store): path.stat().st_size for path in sorted(store.rglob("*")) if path.is_file()}


def _table(
    laboratory: Laboratory, store: str, after: dict[Path, int], added: set[Path], names: dict[str, set[str]]
) -> Table:
    rows = []
    other = 0
    for path in sorted(added, key=lambda item: -after[item]):
        known = names.get("".join(path.parts[-2:]))
        if known is None:
            other += after[path]
        else:
            rows.append(("; ".join(sorted(known)), megabytes(after[path])))
    if other:
        rows.append(("DVC's records of runs (which inputs gave which outputs)", megabytes(other)))
    rows.append(("**in all**", f"**{megabytes(sum(after[path] for path in added))}**"))
    contents = Counter(_sha256(laboratory.var / store / path) for path in after)
    twice = sum(count - 1 for count in contents.values())
    notes = (
        f"{len(added)} objects added to {megabytes(sum(after[path] for path in after.keys() - added))}",
        f"{len(after)} objects in var/{store}, {twice} of them with a content that is there already",
    )
    return Table(f"What the second retrain added to var/{store}", ("", "size"), rows, notes)


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _names(laboratory: Laboratory) -> dict[str, set[str]]:
    """md5 -> the paths that it is known by in any version, run or score."""
    names: dict[str, set[str]] = {}
    patterns = ("refs/tags/*@v*", "refs/runs", "refs/scores", "refs/heads/data")
    refs = laboratory.git("for-each-ref", "--format=%(objecttype) %(refname)", *patterns).splitlines()
    for ref in (line.split()[1] for line in refs):
        whose = " (the champion scored on the new data)" if ref.startswith("refs/scores/") else ""
        for path, md5 in _tracked(laboratory, ref).items():
            if not any(name.startswith(path) for name in names.get(md5, ())):
                names.setdefault(md5, set()).add(f"{path}{'/ (list of files)' if md5.endswith('.dir') else ''}{whose}")
    for md5 in [md5 for md5 in names if md5.endswith(".dir")]:
        file = laboratory.var / "cache/files/md5" / md5[:2] / md5[2:]
        folder = next(iter(names[md5])).partition("/ (")[0]
        for entry in json.loads(file.read_text()):
            names.setdefault(entry["md5"], set()).add(f"{folder}/{entry['relpath']}")
    return names


def _tracked(laboratory: Laboratory, ref: str) -> dict[str, str]:
    """Path -> md5 of what a commit's dvc.lock and raw data pointers name."""
    tracked = {}
    for path in laboratory.git("ls-tree", "-r", "--name-only", ref).splitlines():
        if path == "dvc.lock":
            for stage in yaml.safe_load(laboratory.git("show", f"{ref}:{path}"))["stages"].values():
                tracked.update({out["path"]: out["md5"] for out in stage["outs"]})
        elif path.startswith("data/raw/") and path.endswith(".dvc"):
            pointer = yaml.safe_load(laboratory.git("show", f"{ref}:{path}"))
            tracked[path.removesuffix(".dvc")] = pointer["outs"][0]["md5"]
    return tracked
