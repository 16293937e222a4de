"""md5 (DVC's name for a file) and sha256 (what nobody can forge) of a file, in one pass over it."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

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


def hash_file(path: Path) -> FileHash:
    """Hash a file of any size in bounded memory."""
    md5, sha256, size = hashlib.md5(usedforsecurity=False), hashlib.sha256(), 0
    with open(path, "rb") as handle:
        while block := handle.read(_BLOCK):
            md5.update(block)
            sha256.update(block)
            size += len(block)
    return FileHash(md5.hexdigest(), sha256.hexdigest(), size)
