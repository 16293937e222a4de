"""What events say of the project that they are of: the same on every machine."""

from __future__ import annotations

import re
from pathlib import Path

from retrace.config import Settings
from retrace.git import Git, without_credentials
from retrace.lineage.event import Project
from retrace.workspace import NoRemote, remote_of

_ADDRESS = re.compile(r"[a-z+]+://|[^/\\s]+@[^/\\s]+:")


def project_at(settings: Settings, git: Git, commit: str, owner: str | None = None) -> Project:
    """The project as the events of a commit name it."""
    return Project(settings.namespace, _repository(settings), _storage(settings, git, commit), owner)


def _repository(settings: Settings) -> str | None:
    """The origin's address, or that of the clone's own `origin`; a folder of this machine is no address."""
    own = Git(settings.root).run("config", "--get", "remote.origin.url").stdout.decode().strip()
    for address in (settings.origin, own):
        if _ADDRESS.match(address) and not address.startswith("file:"):
            return without_credentials(address)
    return None


def _storage(settings: Settings, git: Git, commit: str) -> str:
    """Where DVC keeps the files: the remote's address, or its name where it is a folder of a machine."""
    config = git.read(commit, ".dvc/config")
    try:
        remote = remote_of(settings, config.decode() if config else "")
    except NoRemote:
        return "dvc:"
    return remote.shown if remote.folder is None else f"dvc:{remote.name}"


def places(settings: Settings, *more: tuple[Path, str]) -> list[tuple[str, str]]:
    """The folders of this machine and what stands for them in whatever leaves it."""
    known = [*more, (settings.var, "var"), (settings.root, "project"), (Path.home(), "~")]
    return [(str(folder), shown) for folder, shown in known if folder != Path("/")]
