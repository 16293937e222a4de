"""params.yaml and the settings: what is wrong is refused in one line that names the key, before anything happens."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from projects import TOY, Project

from retrace.config import ConfigError, NoProject, Settings, UnknownModel, find_root, parse_params
from retrace.git import GitError

VALID: dict[str, Any] = json.loads((TOY / "params.yaml").read_text())


def changed(change: Callable[[dict[str, Any]], object]) -> str:
    """The toy's params.yaml with one thing wrong."""
    params = copy.deepcopy(VALID)
    change(params)
    return json.dumps(params)


def refusal(text: str) -> str:
    """The one line with which a params.yaml is refused."""
    with pytest.raises(ConfigError) as raised:
        parse_params(text, "params.yaml of commit 12345678")
    assert "\n" not in str(raised.value)
    assert str(raised.value).startswith("params.yaml of commit 12345678")
    return str(raised.value)


def test_the_toy_and_the_demo_are_valid() -> None:
    assert parse_params(json.dumps(VALID)).model("alpha").timeout_minutes == 5
    assert parse_params((TOY.parents[1] / "params.yaml").read_text()).demo is not None


@pytest.mark.parametrize(
    ("change", "key", "complaint"),
    [
        (lambda p: p["ingest"].update(every="hour"), "ingest.every", "'month', 'week' or 'day'"),
        (lambda p: p["ingest"].update(start="soon"), "ingest.start", "soon"),
        (lambda p: p["ingest"].pop("connection"), "ingest.connection", "required"),
        (lambda p: p["ingest"].update(conection="x"), "ingest.conection", "unknown key; remove it or correct"),
        (lambda p: p.update(modles={}), "modles", "unknown key"),
        (lambda p: p["models"]["alpha"].update(timeout_minutes="long"), "models.alpha.timeout_minutes", "number"),
        (lambda p: p["models"]["alpha"].update(timeout_minutes=0), "models.alpha.timeout_minutes", "greater than 0"),
        (lambda p: p["models"]["alpha"].update(datasets="events"), "models.alpha.datasets", "tuple"),
        (lambda p: p["models"]["alpha"].update(datasets=[]), "models.alpha.datasets", "at least 1"),
        (lambda p: p["models"]["alpha"].update(datasets=["weather"]), "models.alpha.datasets", "'weather'"),
        (
            lambda p: p["models"]["alpha"].update(schedule={"cron": "daily"}),
            "models.alpha.schedule.cron",
            "five fields",
        ),
        (
            lambda p: p["models"]["alpha"].update(schedule={"crom": "@daily"}),
            "models.alpha.schedule.crom",
            "unknown key",
        ),
        (lambda p: p["models"]["alpha"].update(score=["$(id)"]), "models.alpha.score.0", "pattern"),
        (
            lambda p: p["models"]["alpha"]["gate"][0].update(at_most=1),
            "models.alpha.gate.0",
            "exactly one of at_least and at_most",
        ),
        (lambda p: p["models"]["alpha"]["gate"][0].update(at_least="best"), "models.alpha.gate.0.at_least", "number"),
        (lambda p: p["models"]["alpha"]["gate"][0].update(atleast=1), "models.alpha.gate.0.atleast", "unknown key"),
        (lambda p: p.update(models=["alpha"]), "models", "dictionary"),
        (lambda p: p.update(models={}), "models", "at least 1"),
        (lambda p: p["models"].update(alpha=None), "models.alpha", "dictionary"),
        (
            lambda p: p["ingest"]["datasets"]["events"]["columns"].update({"a b": "float"}),
            "ingest.datasets.events",
            "'a b'",
        ),
        (lambda p: p["ingest"]["datasets"]["events"]["columns"].update(size="double"), "columns.size", "'float'"),
        (lambda p: p["ingest"]["datasets"]["events"].update(key=["id"]), "ingest.datasets.events", "key names id"),
        (lambda p: p["ingest"]["datasets"]["events"].update(query="SELECT 1"), "ingest.datasets.events", ":start"),
        (lambda p: p["ingest"]["datasets"].update({"../x": {}}), "ingest.datasets", "'../x' is not a name"),
    ],
)
def test_a_wrong_params_yaml_is_refused_by_key(
    change: Callable[[dict[str, Any]], object], key: str, complaint: str
) -> None:
    message = refusal(changed(change))
    assert f": {key}" in message or f".{key}" in message
    assert complaint in message


@pytest.mark.parametrize("name", ["$(touch x)", "../x", "a b", "A", "1st", "a-b", "a@v1", "a#b", "", "é", "x" * 41])
def test_a_model_name_that_could_not_stand_in_a_command_ref_or_path_is_refused(name: str) -> None:
    message = refusal(changed(lambda params: params["models"].update({name: params["models"]["beta"]})))
    assert f"models: {name!r} is not a name" in message


@pytest.mark.parametrize("name", ["ingest", "audit", "sync", "monitor", "doctor", "data"])
def test_a_name_of_a_dag_of_retrace_is_refused(name: str) -> None:
    message = refusal(changed(lambda params: params["models"].update({name: params["models"]["beta"]})))
    assert f"models.{name}: the name {name!r} is reserved" in message
    assert "choose another" in message


@pytest.mark.parametrize("text", ["a: [", "", "- a", "\t"])
def test_what_is_no_mapping_is_refused(text: str) -> None:
    assert "params.yaml" in refusal(text)


def test_nothing_of_a_wrong_commit_is_run(project: Project) -> None:
    """The name would reach DVC's shell: it is refused before a ref is written or a workspace made."""
    project.edit_params(lambda params: params["models"].update({"$(touch x)": params["models"]["beta"]}))
    before = project.refs()
    with pytest.raises(ConfigError, match=r"params.yaml of commit \w{8}: models: '\$\(touch x\)' is not a name"):
        project.snapshot("alpha", "one")
    assert project.refs() == before
    assert not list(project.settings.workspaces.glob("*"))
    assert not list(project.root.rglob("x"))


def test_a_key_of_a_model_that_no_stage_reads_is_refused(project: Project) -> None:
    """A slip in one of Retrace's own keys would otherwise pass for a parameter of the domain, and do nothing."""
    project.edit_params(lambda params: params["models"]["alpha"].update(timeout_minute=5))
    before = project.refs()
    with pytest.raises(ConfigError) as raised:
        project.snapshot("beta", "one")
    commit = project.git.resolve("main") or ""
    assert str(raised.value) == (
        f"params.yaml of commit {commit[:8]}: models.alpha.timeout_minute: unknown key, neither Retrace's nor under "
        "`params` of a stage in dvc.yaml; correct its spelling or declare it there"
    )
    assert project.refs() == before


@pytest.mark.parametrize("name", ["gamma", "$(touch x)", "../x"])
def test_an_unknown_model_is_refused_and_the_known_ones_are_named(project: Project, name: str) -> None:
    before = project.refs()
    with pytest.raises(UnknownModel, match="no model .* in params.yaml; it has alpha, beta"):
        project.snapshot(name, "one")
    assert project.refs() == before


def test_a_commit_without_params_is_refused(project: Project) -> None:
    (project.root / "params.yaml").unlink()
    project.commit("lost")
    with pytest.raises(GitError, match=r"commit \w{8} has no params.yaml"):
        project.snapshot("alpha", "one")


def command(project: Project, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The command `retrace` in the project, as a user runs it."""
    environ = {key: value for key, value in os.environ.items() if not key.startswith(("RETRACE_", "AIRFLOW"))}
    return subprocess.run(
        [sys.executable, "-m", "retrace.cli", *arguments],
        cwd=project.root,
        env=environ | {"PYTHONPATH": str(TOY.parents[1])},
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_command_tells_what_is_unknown_in_one_line_and_fails(project: Project) -> None:
    before = project.refs()
    for arguments, complaint in (
        (("retrain", "gamma"), "error: no model 'gamma' in params.yaml; it has alpha, beta"),
        (("show", "alpha@v7"), "error: no version 'alpha@v7': `retrace log` lists what there is"),
        (("checkout", "../x@v1"), "error: no version '../x@v1': `retrace log` lists what there is"),
        (("promote", "alpha", "--because", "x"), "error: no version 'alpha': `retrace log` lists what there is"),
    ):
        done = command(project, *arguments)
        assert (done.returncode, done.stderr.strip(), done.stdout) == (1, complaint, "")
    assert project.refs() == before


def test_settings_come_from_the_environment_and_are_checked(tmp_path: Path) -> None:
    settings = Settings.load(tmp_path, {"RETRACE_VAR": str(tmp_path / "state"), "RETRACE_CODE_REF": "release"})
    assert (settings.cache, settings.code_ref) == (tmp_path / "state/cache", "release")
    assert settings.origin == str(tmp_path)
    for name, value in (("CODE_REF", "--upload-pack=x"), ("CODE_REF", "a..b"), ("PATIENCE", "long")):
        with pytest.raises(ConfigError, match=f"environment variable RETRACE_….*{name.lower()}"):
            Settings.load(tmp_path, {f"RETRACE_{name}": value})


def test_a_folder_that_is_no_project_is_named(tmp_path: Path) -> None:
    with pytest.raises(NoProject, match=f"{tmp_path} is in no Retrace project"):
        find_root(tmp_path, {})
    assert find_root(tmp_path, {"RETRACE_ROOT": "/elsewhere"}) == Path("/elsewhere")
