"""SSH keys, and a project whose versions are signed, for the tests of signatures."""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from projects import ROOT, Project, git

from retrace import signatures, ssh
from retrace.config import Settings
from retrace.git import Git, message
from retrace.versions import Version, find

# A block of 128 bytes, and the bytes whose highest bit can be flipped together without another md5: the collision that
# Wang, Feng, Lai and Yu published in 2004.
BLOCK = bytes.fromhex(
    "d131dd02c5e6eec4693d9a0698aff95c2fcab58712467eab4004583eb8fb7f8955ad340609f4b30283e488832571415a085125e8f7cdc99f"
    "d91dbdf280373c5bd8823e3156348f5bae6dacd436c919c6dd53e2b487da03fd02396306d248cda0e99f33420f577ee8ce54b67080a80d1e"
    "c69821bcb6a8839396f9652b6ff72a70"
)
_FLIPPED = (19, 45, 59, 83, 109, 123)
COLLIDING = bytes(byte ^ 0x80 if place in _FLIPPED else byte for place, byte in enumerate(BLOCK))


@dataclass(frozen=True)
class Keys:
    """Keys in a folder outside every project; Ann's is the only one that is allowed."""

    folder: Path

    @classmethod
    def make(cls, folder: Path) -> Keys:
        folder.mkdir(parents=True, exist_ok=True)
        keys = cls(folder)
        for name in ("ann", "eve", "old"):
            make_key(folder / name)
        keys.allow("ann@example.com", "ann")
        return keys

    @property
    def allowed(self) -> Path:
        return self.folder / "allowed_signers"

    @property
    def revoked(self) -> Path:
        return self.folder / "revoked"

    def allow(self, principal: str, name: str, options: str = "") -> None:
        """Add a line to the allowed signers."""
        kind, key = (self.folder / f"{name}.pub").read_text().split()[:2]
        with open(self.allowed, "a") as lines:
            lines.write(" ".join(filter(None, (principal, options, kind, key))) + "\n")

    def revoke(self, name: str) -> None:
        with open(self.revoked, "a") as lines:
            lines.write((self.folder / f"{name}.pub").read_text())

    def sign(self, name: str, payload: bytes) -> bytes:
        return ssh.sign(self.folder / name, payload)

    def copy(self, folder: Path) -> Keys:
        shutil.copytree(self.folder, folder)
        return Keys(folder)

    def settings(self, project: Project, **more: Any) -> Settings:
        """A project's settings, with Ann's key to sign with."""
        own = {"signing_key": self.folder / "ann", "allowed_signers": self.allowed}
        return project.settings.model_copy(update=own | more)


def make_key(file: Path, passphrase: str = "") -> None:
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", passphrase, "-C", "", "-f", file], check=True)


@dataclass
class Signed:
    """A copy of a project with keys of its own, for one attack."""

    project: Project
    keys: Keys

    @property
    def git(self) -> Git:
        """The origin, as whoever can push there writes it."""
        return self.project.git

    @property
    def version(self) -> Version:
        return find(self.git, "alpha@v1")

    def put(self, name: str, tag_object: str) -> None:
        """Let a tag of the origin be this object, whatever it was."""
        git(self.project.root, "update-ref", f"refs/tags/{name}", tag_object)

    def another_machine(self) -> None:
        """Read the origin as a machine does that has never seen it."""
        shutil.rmtree(self.project.settings.mirror)

    def tag(self, name: str, commit: str, key: str | None) -> str:
        """A tag object as Retrace writes it for a version; its id."""
        text = message(name, {"Retrace-Run": "second", "Retrace-Run-Ref": "refs/runs/alpha/second"})
        sign = None if key is None else lambda payload: self.keys.sign(key, payload)
        return self.git.write_tag(name, commit, text, sign)

    def second(self, changes: dict[str, bytes | str | None], key: str | None = "ann") -> str:
        """alpha@v2: the first version's commit with some files changed; its commit."""
        commit = self.git.write_commit(self.version.commit, changes, [self.version.commit], "second\n")
        self.put("alpha@v2", self.tag("alpha@v2", commit, key))
        return commit


def make_signed(project: Project, keys: Keys) -> None:
    """Require signatures in a project that has data, let its model be a block that collides, and retrain it."""
    lock = (ROOT / "pipeline/requirements.txt").read_text()
    pinned = re.search(r"^scikit-learn==.*\n(?:    --hash.*\n)+", lock, re.MULTILINE)
    assert pinned is not None
    (project.root / "pipeline/requirements.txt").write_text(pinned[0])
    program = project.root / "pipeline/stage.py"
    code = program.read_text()
    writes = '    write(f"models/{model}.skops", f"{seed} {digest(Path(\'data/features\') / model)}\\n")\n'
    assert writes in code
    block = (
        "    Path('models').mkdir(exist_ok=True)\n"
        f"    Path(f'models/{{model}}.skops').write_bytes(bytes.fromhex('{BLOCK.hex()}'))\n"
    )
    reads = 'Path(f"models/{model}.skops").read_text()'
    assert reads in code
    program.write_text(code.replace(writes, block).replace(reads, reads.replace("read_text", "read_bytes")))
    project.edit_params(lambda params: params.update(require_signature=True), "signatures are required")
    project.settings = keys.settings(project)
    version, decision = project.retrain("alpha", "first")
    assert decision is not None and decision.promoted and version.name == "alpha@v1"
    assert signatures.is_required(project.settings, project.mirror)
