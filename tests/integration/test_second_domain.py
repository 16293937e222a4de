"""Promise 5: the demo is replaced by replacing `pipeline/`, `params.yaml` and the stages in `dvc.yaml`."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from checkouts import commit, copy_project, retrace, share_environments
from projects import ROOT

SECOND = ROOT / "tests/second_domain"
KEPT = ("requirements.in", "requirements.txt", ".python-version")


@pytest.fixture(scope="module")
def clinic(tmp_path_factory: pytest.TempPathFactory, environments: Path) -> Path:
    """The project after the README's steps 1 to 4, committed."""
    root = tmp_path_factory.mktemp("second") / "clinic"
    copy_project(root)
    for path in (root / "pipeline").iterdir():
        if path.name not in KEPT:
            path.unlink() if path.is_file() else shutil.rmtree(path)
    shutil.copytree(SECOND / "pipeline", root / "pipeline", dirs_exist_ok=True)
    for name in ("params.yaml", "dvc.yaml"):
        shutil.copy(SECOND / name, root / name)
    commit(root, "our own domain")
    share_environments(root, environments)
    return root


def test_another_domain_runs_without_an_edit_of_the_engine(clinic: Path, tmp_path: Path) -> None:
    home = tmp_path / "home"
    assert "malignant@v1 is champion" in retrace(clinic, home, "demo")
    assert "biopsies adds 124 rows" in retrace(clinic, home, "ingest", "--until", "2020-04-01")
    assert "malignant@v2 is champion" in retrace(clinic, home, "retrain", "malignant")
    log = json.loads(retrace(clinic, home, "log", "--json"))
    assert [entry["version"] for entry in log] == ["malignant@v1", "malignant@v2"]
    assert log[1]["aliases"] == ["champion"] and log[1]["metrics"]["accuracy"] > 0.7
    shown = json.loads(retrace(clinic, home, "show", "malignant@v2", "--json"))
    assert [stage["name"] for stage in shown["stages"]] == ["train", "evaluate"]
    assert [item["partitions"][-1]["path"] for item in shown["data"]["datasets"]] == [
        "data/raw/biopsies/2020-03.parquet"
    ]
