"""params.yaml and the settings: what is wrong is refused in one line that names the key, before anything happens."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import pytest
from croniter import croniter
from projects import TOY, Project

from retrace import yaml12
from retrace.config import ConfigError, NoProject, Settings, UnknownModel, find_root, parse_params
from retrace.git import GitError

VALID: dict[str, Any] = json.loads((TOY / "params.yaml").read_text())


def changed(change: Callable[[dict[str, Any]], object]) -> str:
    """The toy's params.yaml with one thing wrong."""
    params = copy.deepcopy(VALID)
    change(params)
    return yaml12.dump(params)


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


def at(path: str, value: Any) -> Callable[[dict[str, Any]], object]:
    """Set what stands at a path of the toy's params.yaml."""

    def change(params: dict[str, Any]) -> None:
        *around, last = path.split("/")
        found: Any = params
        for key in around:
            found = found[int(key) if isinstance(found, list) else key]
        found[last] = value

    return change


NUMBER = "takes a number, without quotes"
BOUND = "takes a number, without quotes, or champion"
FINITE = "takes a finite number"
TEXT = "takes a text; put it in quotes if it is one"
TRUTH = "takes true or false, without quotes"
DATE = 'takes a date in quotes, such as "2013-01-01"'
LIST = "takes a list, such as [x]"
MAPPING = "takes a mapping, such as {key: value}"
EMPTY = "is empty; it takes at least one entry"
UNKNOWN = "unknown key; remove it or correct its spelling"
SCHEDULE = 'takes `cron:` and/or `data:`, such as {cron: "0 7 3 * *", data: true}'
CONNECTION = "is not the id of an Airflow Connection here: use a letter, then letters, digits and _"
STAGE = "is not the name of a stage: use a letter, then letters, digits and _ (lower case)"
FIVE_FIELDS = 'is not a cron expression of five fields, such as "0 7 3 * *", or @daily'


@pytest.mark.parametrize(
    ("path", "value", "complaint"),
    [
        ("ingest/every", "hour", "takes 'month', 'week' or 'day'"),
        ("ingest/start", "soon", "'soon' is not a date, such as \"2013-01-01\""),
        ("ingest/start", 2013, DATE),
        ("ingest/start", 1356998400.0, DATE),
        ("ingest/start", True, DATE),
        ("ingest/start", None, DATE),
        ("ingest/connection", "a-b", f"'a-b' {CONNECTION}"),
        ("ingest/connection", 5, TEXT),
        ("ingest/conection", "x", UNKNOWN),
        ("ingest/datasets/events/columns", {}, EMPTY),
        (
            "ingest/datasets/events/columns/size",
            "double",
            "takes 'string', 'integer', 'float', 'boolean' or 'timestamp'",
        ),
        ("modles", {}, UNKNOWN),
        ("require_signature", "yes", TRUTH),
        ("models", ["alpha"], MAPPING),
        ("models", {}, EMPTY),
        ("models/alpha", None, MAPPING),
        ("models/alpha/timeout_minutes", "long", NUMBER),
        ("models/alpha/timeout_minutes", "30", NUMBER),
        ("models/alpha/timeout_minutes", True, NUMBER),
        ("models/alpha/timeout_minutes", float("inf"), FINITE),
        ("models/alpha/timeout_minutes", 0, "takes a number greater than 0"),
        ("models/alpha/timeout_minutes", 1e12, "takes a number of at most 527040"),
        ("models/alpha/owner", 5, TEXT),
        ("models/alpha/datasets", "events", LIST),
        ("models/alpha/datasets", [], EMPTY),
        ("models/alpha/datasets", ["events", "events"], "names 'events' more than once"),
        ("models/alpha/schedule", "0 7 3 * *", SCHEDULE),
        ("models/alpha/schedule", None, SCHEDULE),
        ("models/alpha/schedule/crom", "@daily", UNKNOWN),
        ("models/alpha/schedule/cron", "daily", f"'daily' {FIVE_FIELDS}"),
        ("models/alpha/schedule/cron", 5, TEXT),
        ("models/alpha/schedule/data", "yes", TRUTH),
        ("models/alpha/schedule/data", 1, TRUTH),
        ("models/alpha/gate", {"metric": "auc"}, LIST),
        ("models/alpha/gate/0/at_least", "best", BOUND),
        ("models/alpha/gate/0/at_least", "0.5", BOUND),
        ("models/alpha/gate/0/at_least", True, BOUND),
        ("models/alpha/gate/0/at_least", float("nan"), BOUND),
        ("models/alpha/gate/0/at_least", 10**400, BOUND),
        ("models/alpha/gate/0/atleast", 1, UNKNOWN),
        ("models/alpha/gate/0/tolerance", "0.1", NUMBER),
        ("models/alpha/gate/0/tolerance", float("nan"), FINITE),
        ("models/alpha/gate/0/tolerance", -1, "takes a number of at least 0"),
    ],
)
def test_a_wrong_value_is_refused_by_its_key_in_one_sentence(path: str, value: Any, complaint: str) -> None:
    message = refusal(changed(at(path, value)))
    assert message == f"params.yaml of commit 12345678: {path.replace('/', '.')}: {complaint}"


@pytest.mark.parametrize(
    ("change", "sentences"),
    [
        (lambda p: p["ingest"].pop("connection"), "ingest.connection: is missing; add it"),
        (at("models/alpha/score", ["$(id)"]), f"models.alpha.score.0: '$(id)' {STAGE}"),
        (at("doctor", {"keep_runs_days": 1e300}), "doctor.keep_runs_days: takes a number of at most 36525"),
        (at("audit", {"timeout_minutes": "6"}), f"audit.timeout_minutes: {NUMBER}"),
        (at("sync", {"schedule": "every day"}), f"sync.schedule: 'every day' {FIVE_FIELDS}"),
        (
            at("demo", {"source": "a-b", "through": [2013]}),
            f"demo.source: 'a-b' is not the name of a module, such as pipeline.source; demo.through.0: {DATE}",
        ),
        (
            at("models/alpha/gate/0/at_most", 1),
            "models.alpha.gate.0: give exactly one of at_least and at_most",
        ),
        (
            at("models/alpha/datasets", ["weather"]),
            "models.alpha.datasets names 'weather', which ingest.datasets does not",
        ),
        (
            at("ingest/datasets/events/columns/a b", "float"),
            "ingest.datasets.events: 'a b' is not a column name: letters, digits and _",
        ),
        (
            lambda p: p["ingest"]["datasets"]["events"]["columns"].update({5: "float"}),
            "ingest.datasets.events.columns.5: this key is no text; put it in quotes",
        ),
        (lambda p: p.update({5: 1}), "5: this key is no text; put it in quotes"),
        (
            at("ingest/datasets/events/key", ["id"]),
            "ingest.datasets.events: key names id, which columns does not",
        ),
        (
            at("ingest/datasets/events/query", "SELECT 1"),
            "ingest.datasets.events: query lacks the bound parameter :start",
        ),
        (
            lambda p: p["ingest"]["datasets"].update({"../x": {}}),
            "ingest.datasets: '../x' is not a name: use a letter, then letters, digits and _ (lower case, at most 40)",
        ),
    ],
)
def test_what_is_wrong_is_told_in_whole_sentences(change: Callable[[dict[str, Any]], object], sentences: str) -> None:
    assert refusal(changed(change)) == f"params.yaml of commit 12345678: {sentences}"


def test_numbers_dates_and_the_champion_are_taken() -> None:
    def change(params: dict[str, Any]) -> None:
        params["ingest"]["start"] = date(2013, 1, 1)
        params["models"]["alpha"]["timeout_minutes"] = 0.5
        params["models"]["alpha"]["gate"] = [{"metric": "m", "at_least": 1}, {"metric": "m", "at_most": "champion"}]

    params = parse_params(changed(change))
    assert params.ingest.start == datetime(2013, 1, 1, tzinfo=UTC)
    alpha = params.model("alpha")
    assert alpha.timeout_minutes == 0.5
    assert [(rule.at_least, rule.at_most) for rule in alpha.gate] == [(1.0, None), (None, "champion")]


def scheduled(cron: str) -> str:
    return changed(at("models/alpha/schedule", {"cron": cron}))


@pytest.mark.parametrize(
    "cron",
    [
        *("0 7 3 * *", "*/15 * * * *", "0  7 3 * *", "00 05 01 01 *", "1-5/2,30,*/20 22-2 1,31 * *", "59 23 31 12 7"),
        *("0 0 L * *", "0 0 15,l */3 *", "0 0 * jan-mar,DEC mon-Fri", "0 0 * * sun", "0 0 * * 0,6", "0 0 * * fri#2"),
        *("0 0 * * 3#1,3#3,L5", "5/15 * * * *", "0 */24 * * *", "@hourly", "@daily", "@weekly", "@monthly", "@yearly"),
    ],
)
def test_a_cron_expression_that_airflow_can_follow_is_taken(cron: str) -> None:
    croniter(cron).get_next()
    assert parse_params(scheduled(cron)).model("alpha").schedule.cron == cron


@pytest.mark.parametrize(
    "cron",
    [
        *("99 99 99 99 99", "a b c d e", "60 * * * *", "* 24 * * *", "* * 0 * *", "* * 32 * *", "* * * 0 *"),
        *("* * * 13 *", "* * * * 8", "*/0 * * * *", "1,,2 * * * *", "1- * * * *", "-5 * * * *", "1-2-3 * * * *"),
        *("* * jan * *", "* * * january *", "* * * * jan", "* * * * 5#6", "* * * * 1,5#2", "5#1 * * * *", "L * * * *"),
        *("* * * *", "* * * * * *", "", " * * * * *", "@reboot", "* * * * ſun", "١ * * * *", "H * * * *"),
    ],
)
def test_a_cron_expression_that_airflow_could_not_follow_is_refused(cron: str) -> None:
    assert f"models.alpha.schedule.cron: {cron!r} is not a cron expression" in refusal(scheduled(cron))


def test_the_wrong_field_of_a_cron_expression_is_told() -> None:
    assert refusal(scheduled("0 7 3 * mo")).endswith(
        ": models.alpha.schedule.cron: '0 7 3 * mo' is not a cron expression: its weekday, 'mo', takes * or 0 to 7 or "
        "sun to sat, or only such as fri#2 (the second) and L5 (the last), and lists (1,2), ranges (1-3) and steps "
        "(*/2) of them"
    )


@pytest.mark.parametrize("name", ["$(touch x)", "../x", "a b", "A", "1st", "a-b", "a@v1", "a#b", "", "é", "x" * 41])
def test_a_model_name_that_could_not_stand_in_a_command_ref_or_path_is_refused(name: str) -> None:
    message = refusal(changed(lambda params: params["models"].update({name: params["models"]["beta"]})))
    assert f"models: {name!r} is not a name" in message


@pytest.mark.parametrize("name", ["ingest", "audit", "sync", "monitor", "doctor", "data"])
def test_a_name_of_a_dag_of_retrace_is_refused(name: str) -> None:
    message = refusal(changed(lambda params: params["models"].update({name: params["models"]["beta"]})))
    assert f"models.{name}: the name {name!r} is reserved" in message
    assert "choose another" in message


@pytest.mark.parametrize("text", ["", "- a", "a", "3"])
def test_what_is_no_mapping_is_refused(text: str) -> None:
    assert refusal(text) == f"params.yaml of commit 12345678: {MAPPING}"


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("a: ]", "while parsing a block node"),
        ("\t", "while scanning"),
        ("a: 2013-13-01", "2013-13-01 cannot be read as a date"),
        ("a: !!int x", "x cannot be read as a whole number"),
        (f"a: {'9' * 5000}", f"{'9' * 40} cannot be read as a whole number"),
        ("? {a: 1}", "a key is a list or a mapping"),
        ("a: &a [*a]", "an alias stands inside what it names"),
    ],
)
def test_what_is_no_yaml_is_refused_with_its_line(text: str, problem: str) -> None:
    message = refusal(f"x: 1\n{text}")
    assert message.startswith(f"params.yaml of commit 12345678 is not YAML: {problem}")
    assert "line 2" in message


def test_a_date_that_there_is_not_is_refused() -> None:
    text = (TOY.parents[1] / "params.yaml").read_text().replace('start: "2013-01-01"', "start: 2013-02-30")
    line = text[: text.index("2013-02-30")].count("\n") + 1
    assert refusal(text) == (
        "params.yaml of commit 12345678 is not YAML: 2013-02-30 cannot be read as a date in "
        f'"<unicode string>", line {line}, column 10'
    )


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
    for name, value in (
        *(("CODE_REF", "--upload-pack=x"), ("CODE_REF", "a..b"), ("PATIENCE", "long"), ("PATIENCE", "inf")),
        *(("LEASE_MINUTES", "inf"), ("LEASE_MINUTES", "1e9"), ("STAGE_SLOTS", "two"), ("REQUIRE_SIGNATURE", "perhaps")),
    ):
        with pytest.raises(ConfigError, match=f"environment variable RETRACE_….*{name.lower()}"):
            Settings.load(tmp_path, {f"RETRACE_{name}": value})


def test_settings_are_read_from_texts(tmp_path: Path) -> None:
    texts = {"PATIENCE": "2.5", "LEASE_MINUTES": "90", "STAGE_SLOTS": "3", "REQUIRE_SIGNATURE": "true"}
    settings = Settings.load(tmp_path, {f"RETRACE_{name}": text for name, text in texts.items()})
    assert (settings.patience, settings.lease_minutes, settings.stage_slots) == (2.5, 90.0, 3)
    assert settings.require_signature is True


def test_a_folder_that_is_no_project_is_named(tmp_path: Path) -> None:
    with pytest.raises(NoProject, match=f"{tmp_path} is in no Retrace project"):
        find_root(tmp_path, {})
    assert find_root(tmp_path, {"RETRACE_ROOT": "/elsewhere"}) == Path("/elsewhere")
