"""Every command of the README, in its order, in a newcomer's checkout; fewer flights and less tuning than there."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from checkouts import commit, copy_project, environ, share_environments
from projects import ROOT
from servers import free_port

ELSEWHERE = {"make test": "this very suite"}
EXPECTED = {
    "make demo": ["late_arrival@v2", "air_time@v2", "champion", "$ retrace show late_arrival@v2", "Next:"],
    "retrace show late_arrival@v2": ["environment", "gate", "models/late_arrival.skops"],
    "retrace lineage late_arrival@v2": ["data/raw/flights", "features/late_arrival", "champion"],
    "retrace lineage late_arrival@v2 --up --columns": ["aircraft_away_minutes", "tail_number"],
    "retrace lineage late_arrival@v2 --format mermaid": ["flowchart"],
    "retrace card late_arrival@v2": ["# late\\_arrival@v2", "roc_auc", "flowchart"],
    "git show late_arrival@v2:lineage/late_arrival/train.json": ['"eventType": "COMPLETE"', "late_arrival.train"],
    "retrace checkout late_arrival@v1 ../late_arrival-v1": ["all hashes verified"],
    "dvc metrics show": ["metrics/late_arrival.json"],
    "retrace reproduce late_arrival@v1": ["identical: 11 outputs of 4 stages", "refs/verdicts/late_arrival@v1"],
    "retrace diff late_arrival@v1 late_arrival@v2": ["data/raw/flights/2013-07.parquet", "why each stage had to run"],
    "retrace impact data/raw/flights/2013-02.parquet": ["4 of 4 versions", "champion"],
    'retrace impact --package "scikit-learn>=1.9"': ["4 of 4 versions"],
    "retrace impact --dataset flights --where \"tail_number = 'N14228'\"": ["records of data/raw/flights"],
    "retrace score late_arrival@v1 --data latest": ["ITS OWN", "refs/scores/late_arrival"],
    "retrace doctor": ["all is well"],
    "retrace ingest --until 2013-09-01": ["2013-08", "flights adds"],
    "retrace retrain late_arrival": ["late_arrival@v3"],
    "retrace retrain air_time --as-of 2013-07-01": ["nothing changed since air_time@v1"],
    'retrace rollback late_arrival --because "complaints from the night shift"': ["is champion of late_arrival"],
    'retrace promote late_arrival@latest --because "the complaints had another cause"': ["late_arrival@v3 is champion"],
    "retrace sync": ["MLflow is up to date"],
    "git for-each-ref --format='%(refname) %(subject)' refs/runs/late_arrival": ["gate@late_arrival: late_arrival@v3"],
    "git log --oneline refs/heads/data": ["data: 2013-08: flights adds"],
    "retrace data pull": ["data/raw/flights is here"],
    "make down": ["everything is stopped"],
    "make demo-reset": ["removed"],
}


def told(page: str) -> list[str]:
    """The lines that a page tells a reader to type."""
    blocks = re.findall(r"```console\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)
    return [line.removeprefix("$ ") for block in blocks for line in block.splitlines() if line.startswith("$ ")]


def commands() -> list[str]:
    """The README's, and where it first speaks of lineage those of the page about it."""
    readme = told("README.md")
    here = readme.index("retrace card late_arrival@v2")
    return [*readme[:here], *told("docs/lineage.md"), *readme[here:]]


def make_short(path: Path) -> None:
    """The flights of two airlines, of four months, and one trial."""
    params = yaml.safe_load(path.read_text())
    params["ingest"]["datasets"]["flights"]["query"] += " AND carrier IN ('DL', 'UA')"
    for model in params["models"].values():
        model["window"]["train"] = 2
        model["validate"]["flights"]["rows"]["at_least"] = 5000
        model["train"] |= {"trials": 1, "batch": 1, "tuning_rows": 4000, "fixed": {"max_iter": 20}}
    path.write_text(yaml.safe_dump(params, sort_keys=False))


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A newcomer's checkout after the installation."""
    root = tmp_path_factory.mktemp("readme") / "project"
    copy_project(root)
    make_short(root / "params.yaml")
    commit(root)
    share_environments(root, tmp_path_factory.mktemp("environments"))  # where others make theirs, a doctor finds some
    (root / ".venv").symlink_to(sys.prefix)
    for marker in (".ready", ".ready-tests"):
        (root / ".venv" / marker).touch()
    for name in ("requirements.txt", "pyproject.toml", "tests/requirements.txt"):
        os.utime(root / name, (0, 0))
    return root


def run(checkout: Path, command: str) -> str:
    variables = environ(checkout.parent / "home")
    typed = f"source .venv/bin/activate; {command}"
    done = subprocess.run(
        ["bash", "-c", typed], cwd=checkout, env=variables, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
    return done.stdout


def start_servers(checkout: Path) -> subprocess.Popen[str]:
    """`make up` until it says that all is ready."""
    variables = environ(checkout.parent / "home")
    variables |= {"RETRACE_AIRFLOW_PORT": str(free_port()), "RETRACE_MLFLOW_PORT": str(free_port())}
    servers = subprocess.Popen(
        ["make", "up"], cwd=checkout, env=variables, stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    assert servers.stdout is not None
    for line in servers.stdout:
        if "Ctrl-C" in line:
            return servers
    raise AssertionError(f"make up ended with {servers.wait()}")


def test_every_command_of_the_readme_works(checkout: Path) -> None:
    typed = commands()
    assert set(EXPECTED) <= set(typed)
    servers = None
    try:
        for command in typed:
            if command in ELSEWHERE:
                continue
            if command == "make up":
                servers = start_servers(checkout)
                continue
            told = run(checkout, command)
            if command == "make demo":
                assert "everything is done already" in run(checkout, command)
            seen = EXPECTED.pop(command, [])
            assert [text for text in seen if text not in told] == [], f"{command}\n{told}"
    finally:
        if servers is not None:
            stop(servers)


def stop(servers: subprocess.Popen[str]) -> None:
    """What `make down` did not end is ended here, after a while."""
    until = time.monotonic() + 30
    while servers.poll() is None and time.monotonic() < until:
        time.sleep(0.2)
    if servers.poll() is None:
        os.killpg(servers.pid, signal.SIGKILL)
