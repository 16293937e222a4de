"""md5 (DVC's name for a file) and sha256 (what nobody can forge) of a file, in one pass over it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import BinaryIO

_BLOCK = 1 << 20


@dataclass(frozen=True)
class FileHash:
    """What identifies a file's bytes; `size` in bytes."""

    md5: str
    sha256: str
    size: int

    def as_dict(self) -> dict[str, str | int]:
        return {"md5": self.md5, "sha256": self.sha256, "size": self.size}


def md5_of(content: bytes) -> str:
    """The md5 of bytes in memory, as DVC names them."""
    return hashlib.md5(content, usedforsecurity=False).hexdigest()


def is_directory_object(content: bytes, oid: str) -> bool:
    """Whether these bytes are the list of files that DVC keeps under this name (it ends in `.dir`)."""
    return f"{md5_of(content)}.dir" == oid


def files_of(content: bytes, oid: str) -> dict[str, str] | None:
    """Relative path -> md5 of the files in a list that DVC keeps under this name; None if these bytes are another one,
    or if a path of it leads out of the folder."""
    if not is_directory_object(content, oid):
        return None
    found = {str(entry["relpath"]): str(entry["md5"]) for entry in json.loads(content)}
    paths = [PurePosixPath(path) for path in found]
    return None if any(path.is_absolute() or ".." in path.parts for path in paths) else found


def directory_oid(files: Mapping[str, str]) -> str:
    """DVC's name for a folder of these files (relative path -> md5): the md5 of their sorted list, and `.dir`."""
    return f"{md5_of(directory_object(files))}.dir"


def directory_object(files: Mapping[str, str]) -> bytes:
    """The list that DVC keeps of a folder of these files (relative path -> md5)."""
    entries = [{"md5": md5, "relpath": path} for path, md5 in sorted(files.items())]
    return json.dumps(entries, sort_keys=True).encode()


def oid_of(place: Path) -> str:
    """DVC's name for a file or a folder as it is on disk."""
    if not place.is_dir():
        return hash_file(place).md5
    files = [path for path in place.rglob("*") if path.is_file()]
    return directory_oid({path.relative_to(place).as_posix(): hash_file(path).md5 for path in files})


def hash_file(path: Path) -> FileHash:
    """Hash a file of any size in bounded memory."""
    with open(path, "rb") as source:
        return hash_stream(source)


def copy_and_hash(source: BinaryIO, target: Path) -> FileHash:
    """Write a stream to a new file and hash what went through."""
    with open(target, "xb") as copy:
        return hash_stream(source, copy)


def hash_stream(source: BinaryIO, copy: BinaryIO | None = None) -> FileHash:
    """Hash a stream of any size in bounded memory, and write it to `copy` on the way."""
    md5, sha256, size = hashlib.md5(usedforsecurity=False), hashlib.sha256(), 0
    while block := source.read(_BLOCK):
        md5.update(block)
        sha256.update(block)
        size += len(block)
        if copy is not None:
            copy.write(block)
    return FileHash(md5.hexdigest(), sha256.hexdigest(), size)
