"""What DVC and its remotes do otherwise in a child: each function changes one thing of this process."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import yaml

from retrace import yaml12


def read_yaml_faster() -> None:
    """DVC's own reader is written in Python: of the time that DVC takes around a stage it is the half.

    What ours refuses is left to DVC's, whose message says why.
    """
    from dvc.utils import serialize, strictyaml
    from dvc.utils.serialize import _yaml

    parse: Callable[..., Any] = _yaml.parse_yaml

    def parsed(text: str, path: str, typ: str = "safe") -> Any:
        if typ == "safe":
            with suppress(yaml.YAMLError):
                return yaml12.load(text) or {}
        return parse(text, path, typ)

    for module in (_yaml, serialize, strictyaml):
        module.parse_yaml = parsed


def tame_s3_client() -> None:
    """One retry each for the two layers that retry by themselves; Airflow's retry is the one that is seen."""
    os.environ.setdefault("AWS_MAX_ATTEMPTS", "2")
    if "s3fs" in sys.modules:
        sys.modules["s3fs"].S3FileSystem.retries = 2


def note_partial_copies() -> list[str]:
    """DVC leaves a half-made copy in the cache when the disk is full: note the names that it gives to such files."""
    from dvc_objects.fs import local, utils

    names: list[str] = []
    make_name = utils.tmp_fname

    def noted(prefix: str = "") -> str:
        name: str = make_name(prefix)
        names.append(os.path.basename(name))
        return name

    utils.tmp_fname = local.tmp_fname = noted  # type: ignore[attr-defined]
    return names


def leave_remotes_as_they_are() -> None:
    """DVC deletes an object of a remote that it finds corrupt, even where it only looks: that destroys evidence.

    To look is to see that an object is there; what is fetched is hashed before it is used. What is written is checked,
    and removed where the bytes did not arrive, as before.
    """
    from dvc_data.hashfile import db
    from dvc_data.hashfile.meta import Meta

    make_odb: Callable[..., Any] = db.get_odb  # by now of remotes only: the cache has been made

    def made(fs: Any, path: str, **config: Any) -> Any:
        odb = make_odb(fs, path, **config)
        check, add = odb.check, odb.add

        def look(oid: str, check_hash: bool = True, _info: dict[str, Any] | None = None) -> Any:
            return Meta.from_info(_info or odb.fs.info(odb.oid_to_path(oid)))

        def write(*arguments: Any, **options: Any) -> Any:
            odb.check = check
            try:
                return add(*arguments, **options)
            finally:
                odb.check = look

        odb.check, odb.add = look, write
        return odb

    db.get_odb = made
