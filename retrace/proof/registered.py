"""Whether MLflow serves the very bytes that the signed commit lists, by the program that Retrace put beside them."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import yaml

from retrace.config import Settings
from retrace.git import Mirror
from retrace.hashing import hash_file
from retrace.proof.finding import Finding, fails, holds, unchecked
from retrace.proof.tracked import Tracked
from retrace.published import GIT_COMMIT, GIT_TAG
from retrace.registry import Registry, RegistryRefused, RegistryUnavailable
from retrace.registry.contact import address, sqlite_file
from retrace.registry.servable import SERVED
from retrace.runs import code_commit
from retrace.versions import Version

CHECK = "registry"
_LOADER = "mlflow.pyfunc.loaders.code_model"
_PROGRAM = "retrace/served.py"


def check_registered(
    settings: Settings, mirror: Mirror, version: Version, things: Sequence[Tracked], forgotten: str | None = None
) -> Iterator[Finding]:
    """What MLflow would load for the version, against its record. MLflow is a view: that it lags or is off is told.

    `forgotten` is the request on which the version's files were removed: that MLflow has none is in order then.
    """
    file = sqlite_file(settings.mlflow)
    if file is not None and not file.exists():
        yield unchecked(CHECK, "MLflow has no store on this machine: what it serves was not checked")
        return
    registry = Registry(settings.mlflow, settings.mlflow_artifacts, settings.patience)
    try:
        tags = registry.all_tags(version.model).get(version.number)
        if tags is None:
            yield unchecked(CHECK, f"MLflow has no {version.name} yet, so that nothing of it is served; `retrace sync`")
            return
        wrong = list(_served(settings, mirror, registry, version, things, tags))
    except RegistryUnavailable as error:
        yield unchecked(CHECK, f"MLflow does not answer, so that what it serves was not checked: {error}")
    except RegistryRefused as error:
        if forgotten is not None:
            return
        yield fails(CHECK, f"what MLflow serves as {version.name} cannot be read: {error}")
    else:
        yield from (fails(CHECK, f"MLflow at {address(settings.mlflow)} serves {text}") for text in wrong)
        if forgotten is not None:
            yield fails(CHECK, f"MLflow still serves {version.name}; repeat that `retrace forget`, it removes it there")
        elif not wrong:
            yield holds(CHECK, f"MLflow serves these very bytes as version {version.number} of {version.model}")


def _served(
    settings: Settings,
    mirror: Mirror,
    registry: Registry,
    version: Version,
    things: Sequence[Tracked],
    tags: Mapping[str, str],
) -> Iterator[str]:
    """What is not as recorded: the version's tags, the file's bytes, the program that checks and loads it."""
    if (tags.get(GIT_TAG), tags.get(GIT_COMMIT)) != (version.name, version.commit):
        yield f"{tags.get(GIT_TAG, 'something made by hand')} as version {version.number}"
    recorded = {
        file.sha256 for thing in things for file in thing.files if file.path.startswith(f"models/{version.model}.")
    }
    with tempfile.TemporaryDirectory(prefix="retrace-served-") as folder:

        def bring(name: str) -> Path:
            return registry.download(version.model, version.number, name, Path(folder))

        flavour = _flavour(bring("MLmodel"))
        if flavour is None:
            yield "it by another loader than Retrace's: its MLmodel was changed"
            return
        found = hash_file(bring(flavour["artifacts"]["model"]["path"])).sha256
        if found not in recorded:
            yield f"another file as its model (sha256 {found[:12]}…)"
        if flavour["config"]["sha256"] not in recorded:
            yield "it with another sha256 to check it by: its MLmodel was changed"
        program = bring(PurePosixPath(flavour["model_code_path"]).name)
        if program.read_bytes() != SERVED.read_bytes() and not _was_ours(settings, mirror, program):
            yield f"it by another program than Retrace's ({program.name} was changed)"


def _flavour(description: Path) -> Mapping[str, Any] | None:
    """How MLflow loads the model, if that is as Retrace wrote it and nothing else can be loaded."""
    flavours = yaml.safe_load(description.read_text()).get("flavors", {})
    flavour = flavours.get("python_function", {})
    file = PurePosixPath(flavour.get("artifacts", {}).get("model", {}).get("path", ".."))
    inside = not file.is_absolute() and ".." not in file.parts
    plain = flavours.keys() == {"python_function"} and flavour.get("code") is None
    return flavour if inside and plain and flavour.get("loader_module") == _LOADER else None


def _was_ours(settings: Settings, mirror: Mirror, program: Path) -> bool:
    """Whether the program is one that this project once had: published by the engine of that day."""
    blob = mirror.out("hash-object", "--no-filters", str(program))
    history = mirror.out("log", "--format=", "--raw", "--no-abbrev", code_commit(settings, mirror), "--", _PROGRAM)
    return any(line.split()[3] == blob for line in history.splitlines() if line.startswith(":"))
