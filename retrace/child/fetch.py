"""Bring objects from the remote into files of a checkout without touching any cache, and say which are no good."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from retrace.child.report import Reporter
from retrace.child.store import Store
from retrace.hashing import copy_and_hash, files_of

_AT_ONCE = 8


def fetch(repo: Any, store: Store, request: dict[str, Any], reporter: Reporter) -> dict[str, Any]:
    """`request["objects"]` are {"path", "md5", "sha256" or None}; a folder (`.dir`) stands for its files.

    The result has the paths that are `missing` or `corrupt`, and the md5 of each.
    """
    reporter.phase("pull")
    lost: list[dict[str, Any]] = []
    corrupt: list[dict[str, Any]] = []
    with store.reached(), ThreadPoolExecutor(_AT_ONCE) as pool:
        wanted = [file for item in request["objects"] for file in _files(store, item, lost, corrupt)]
        found = list(pool.map(lambda item: _bring(store, item), wanted))
    lost += [item for item, state in zip(wanted, found, strict=True) if state == "missing"]
    corrupt += [item for item, state in zip(wanted, found, strict=True) if state == "corrupt"]
    return {
        "missing": [item["path"] for item in lost],
        "corrupt": [item["path"] for item in corrupt],
        "md5s": {item["path"]: item["md5"] for item in (*lost, *corrupt)},
    }


def _files(
    store: Store, item: dict[str, Any], lost: list[dict[str, Any]], corrupt: list[dict[str, Any]]
) -> list[dict[str, Any]]:
    """What an object stands for; a folder whose list is no good is put with the lost or the corrupt ones."""
    if not item["md5"].endswith(".dir"):
        return [item]
    try:
        content: bytes = store.remote.fs.cat_file(store.remote.oid_to_path(item["md5"]))
    except FileNotFoundError:
        lost.append(item)
        return []
    files = files_of(content, item["md5"])
    if files is None:
        corrupt.append(item)
        return []
    return [{"path": f"{item['path']}/{name}", "md5": md5, "sha256": None} for name, md5 in files.items()]


def _bring(store: Store, item: dict[str, Any]) -> str:
    target = Path(item["path"])
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        with store.remote.fs.open(store.remote.oid_to_path(item["md5"]), "rb") as source:
            found = copy_and_hash(source, target)
    except FileNotFoundError:
        return "missing"
    return "sound" if found.md5 == item["md5"] and item["sha256"] in (None, found.sha256) else "corrupt"
