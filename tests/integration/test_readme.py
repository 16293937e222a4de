"""Every command of the README, in its order, in a newcomer's checkout; fewer flights and less tuning than there."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

import pytest
import yaml
from checkouts import commit, copy_project, environ, share_environments
from projects import ROOT
from servers import free_port

from retrace.environment import EnvironmentLock, ensure

ELSEWHERE = {
    "make test": "this very suite",
    "make lint": "about the code, not what it does: 20 s of two cores' 15 minutes",
}
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
    "dvc plots show": [f"late_arrival, {plot}" for plot in ("the best trial so far", "roc", "calibration")],
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
    "make": ["demo-reset", "Run every test, with real servers"],
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
def checkout(tmp_path_factory: pytest.TempPathFactory, environments: Path) -> Path:
    """A newcomer's checkout after the installation; the stages' environment is a copy of what this session has."""
    root = tmp_path_factory.mktemp("readme") / "project"
    copy_project(root)
    make_short(root / "params.yaml")
    commit(root)
    own = tmp_path_factory.mktemp("environments")  # where others make theirs, a doctor finds some
    made = ensure(EnvironmentLock.of_folder(root), environments)
    subprocess.run(["cp", "--archive", "--link", str(made), str(own)], check=True)
    share_environments(root, own)
    (root / ".venv").symlink_to(sys.prefix)
    for marker in (".ready", ".ready-tests"):
        (root / ".venv" / marker).touch()
    for name in ("requirements.txt", "pyproject.toml", "tests/requirements.txt"):
        os.utime(root / name, (0, 0))
    return root


def typed_in(checkout: Path, command: str) -> subprocess.CompletedProcess[str]:
    variables = environ(checkout.parent / "home")
    typed = f"source .venv/bin/activate; {command}"
    return subprocess.run(
        ["bash", "-c", typed], cwd=checkout, env=variables, capture_output=True, text=True, check=False
    )


def run(checkout: Path, command: str) -> str:
    """What the command says, and what is on the pages that it names."""
    done = typed_in(checkout, command)
    assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
    pages = re.findall(r"^file://(\S+\.html)$", done.stdout, re.MULTILINE)
    return "\n".join([done.stdout, *(Path(page).read_text() for page in pages)])


def start(checkout: Path, command: str, **ports: int) -> subprocess.Popen[str]:
    """A command that goes on until it is stopped."""
    variables = environ(checkout.parent / "home") | {name: str(port) for name, port in ports.items()}
    return subprocess.Popen(
        ["bash", "-c", f"source .venv/bin/activate; exec env {command}"],
        cwd=checkout,
        env=variables,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def start_servers(checkout: Path) -> subprocess.Popen[str]:
    """`make up` until it says that all is ready."""
    servers = start(checkout, "make up", RETRACE_AIRFLOW_PORT=free_port(), RETRACE_MLFLOW_PORT=free_port())
    assert servers.stdout is not None
    for line in servers.stdout:
        if "Ctrl-C" in line:
            return servers
    raise AssertionError(f"make up ended with {servers.wait()}")


def listed(text: str) -> list[tuple[str, str]]:
    """The columns that a text's `retrace log` shows, then each version and its alias: all but what differs by run."""
    head, *rows = text.split("$ retrace log\n")[1].split("\n\n")[0].splitlines()
    alias = head.index("ALIAS")
    return [(" ".join(head.split()), "ALIAS"), *((row.split()[0], row[alias:].strip()) for row in rows)]


def check_demo(checkout: Path, told: str) -> None:
    """The page shows what the demo ends with, and the demo knows that it is done."""
    [shown] = re.findall(r"<!-- log -->\n```text\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert listed(shown) == listed(told)
    assert "everything is done already" in run(checkout, "make demo")


def check_reset(checkout: Path) -> None:
    """Nothing is taken away from servers that run."""
    refused = typed_in(checkout, "make demo-reset")
    assert refused.returncode != 0 and "are running; stop them with `make down` first" in refused.stderr


def check_serving(checkout: Path, command: str) -> None:
    """The champion's own example gets an answer; Ctrl-C ends the server."""
    serving = json.loads(run(checkout, "git show late_arrival@v3:reports/late_arrival/serving.json"))
    port = free_port()
    server = start(checkout, command, MLFLOW_PORT=port)
    try:
        wait_for(f"http://127.0.0.1:{port}/ping", server)
        records = json.dumps({"dataframe_records": serving["example"]}).encode()
        request = urllib.request.Request(f"http://127.0.0.1:{port}/invocations", records)
        request.add_header("Content-Type", "application/json")
        with urllib.request.urlopen(request, timeout=60) as answer:
            predictions = json.load(answer)["predictions"]
        assert len(predictions) == len(serving["example"]) > 0
    finally:
        os.killpg(server.pid, signal.SIGINT)
        stop(server)
    assert server.returncode != -signal.SIGKILL


def wait_for(address: str, server: subprocess.Popen[str]) -> None:
    """Return once a server answers."""
    until = time.monotonic() + 120
    while True:
        try:
            with urllib.request.urlopen(address, timeout=10):
                return
        except OSError:
            assert server.poll() is None and time.monotonic() < until, f"nothing answers at {address}"
            time.sleep(0.2)


def test_every_command_of_the_readme_works(checkout: Path) -> None:
    typed = commands()
    expected = dict(EXPECTED)
    assert set(expected) <= set(typed)
    servers = None
    try:
        for command in typed:
            if command in ELSEWHERE:
                continue
            if command == "make up":
                servers = start_servers(checkout)
                check_reset(checkout)
                continue
            if "mlflow models serve" in command:
                check_serving(checkout, command)
                continue
            told = run(checkout, command)
            if command == "make demo":
                check_demo(checkout, told)
            seen = expected.pop(command, [])
            assert [text for text in seen if text not in told] == [], f"{command}\n{told}"
    finally:
        if servers is not None:
            stop(servers)


def test_locking_anew_begins_with_what_people_ask_for(checkout: Path) -> None:
    """It needs the network and the newest of everything, so nothing but its recipe is looked at."""
    recipe = run(checkout, "make -n lock")
    asked = ("pyproject.toml", "pipeline/requirements.in", "tests/requirements.in")
    assert [name for name in asked if name not in recipe] == []
    assert "pyproject.toml pipeline/requirements.in -o .venv/joint.txt" in recipe, "one resolution for both sides"


def test_without_ssh_keygen_the_tests_say_what_to_install() -> None:
    """Whoever is not root cannot have it installed by `make test`."""
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        place.chmod(0o755)
        shutil.copy(ROOT / "Makefile", place)
        for name in ("requirements.txt", "pyproject.toml", "tests/requirements.txt"):
            touch(place / name, 0)
        for name in (".venv/bin/uv", ".venv/.ready", ".venv/.ready-tests"):
            touch(place / name, 1)
        for name in ("sh", "id"):
            found = shutil.which(name)
            assert found is not None
            (place / name).symlink_to(found)
        make = shutil.which("make")
        assert make is not None
        nobody = 65534 if os.geteuid() == 0 else None
        done = subprocess.run(
            [make, "test"], cwd=place, env={"PATH": folder}, user=nobody, capture_output=True, text=True, check=False
        )
    assert done.returncode != 0 and done.stdout == ""
    first, *_ = done.stderr.splitlines()
    assert first == "error: ssh-keygen is not here, which tests of signatures use; install openssh-client"


def touch(path: Path, moment: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    os.utime(path, (moment, moment))


def stop(servers: subprocess.Popen[str]) -> None:
    """What `make down` did not end is ended here, after a while."""
    until = time.monotonic() + 30
    while servers.poll() is None and time.monotonic() < until:
        time.sleep(0.2)
    if servers.poll() is None:
        os.killpg(servers.pid, signal.SIGKILL)
