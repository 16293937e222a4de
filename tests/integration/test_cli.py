"""The command line through Airflow in one process: what a user sees, and what is left after whatever goes wrong."""

from __future__ import annotations

import json
import os
import re
import signal
import sqlite3
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from command import Command, Done, hold, left_behind, let_go, retrace, runs, served, until, wait_for_stage
from handmade import registered
from projects import STAGES, Project, git, processes_of
from servers import free_port, hanging_server

from retrace import lease
from retrace.config import ConfigError, Settings, UnknownModel
from retrace.console import StillRunning, notices, run_reset, run_retrain
from retrace.git import locked
from retrace.runs import COMPLETE, chain
from retrace.show import show_lines
from retrace.versions import champions, versions

NO_CONSUMER = "lineage: no consumer is set (OPENLINEAGE_URL); the events are in git"
STEPS = ("snapshot", *STAGES, "register", "gate", "publish")
# What libraries say on a terminal when they are let: levels, dates of log lines, warnings.
NOISE = re.compile(r"INFO|WARN|DEBUG|Traceback|\d\d:\d\d:\d\d[.,]\d+ |\x1b|\[info|alembic")


def said(text: str) -> list[str]:
    """The lines without their seconds, which differ each time."""
    assert not NOISE.search(text.replace("manual__", "").replace("+00:00", "")), text
    return [re.sub(r" +\d+\.\d s$", "", line).rstrip() for line in text.splitlines()]


def steps(text: str) -> dict[str, str]:
    """What each step of the last run said; a line that is too long for the terminal goes on below."""
    whole = "\n".join(said(text)).replace("\n" + 14 * " ", " ")
    return dict(re.findall(r"^  [ !] ([a-z]+) +(\S.*)$", whole, re.MULTILINE))


def completed(project: Project, ref: str) -> list[str]:
    mirror = project.mirror
    head = mirror.fetch_ref(ref)
    assert head is not None
    return [link.stage for link in chain(mirror, head) if link.state == COMPLETE]


def one_line(done: Done, *parts: str) -> None:
    """An error as it must be: one line, exit code not 0, no traceback, nothing on standard output."""
    assert done.code not in (0, None) and done.out == ""
    assert re.fullmatch(r"error: .+\n", done.err), done.err
    assert all(part in done.err for part in parts), done.err


class Story:
    """A project that has played its demo; killed in the middle, then played again. What the kill left is noted."""

    def __init__(self, project: Project) -> None:
        self.project = project
        project.edit_params(
            lambda params: params.update(demo={"source": "pipeline.source", "through": ["2013-03-01", "2013-04-01"]})
        )
        project.act("beta", "train", "wait")
        self.killed_ref = self.kill_in_the_middle()
        let_go(project, "beta")
        self.demo = retrace(project, "demo")
        self.again = retrace(project, "demo")

    def kill_in_the_middle(self) -> str:
        command = Command(self.project.root, "demo")
        stage = wait_for_stage(self.project, "beta")
        os.kill(command.process.pid, signal.SIGKILL)
        command.done()
        until(lambda: not runs(stage) and processes_of(self.project.root) == [], "the stage's processes to be gone")
        (ref,) = (ref for ref in self.project.refs() if ref.startswith("refs/runs/beta/"))
        self.completed_before = completed(self.project, ref)
        self.killed_process = command.process.pid
        self.dags_left = self.dags()
        return ref

    def dags(self) -> list[str]:
        """The folders from which processes have read their DAGs."""
        return [path.name for path in self.project.settings.var.glob("dags-*")]


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory, environments: Path, seeded: Path) -> Story:
    return Story(served(tmp_path_factory.mktemp("story") / "project", environments, seeded))


@pytest.fixture(scope="module")
def rough(tmp_path_factory: pytest.TempPathFactory, environments: Path, seeded: Path) -> Project:
    """A project with data and no version, for what goes wrong."""
    project = served(tmp_path_factory.mktemp("rough") / "project", environments, seeded)
    project.ingest("2013-04-01")
    return project


def test_a_demo_that_was_killed_half_way_continues_where_it_was(story: Story) -> None:
    assert story.demo.code == 0, story.demo.err
    lines = said(story.demo.out)
    killed = re.sub(r"=([0-9A-F]{2})", lambda code: chr(int(code[1], 16)), story.killed_ref.rpartition("/")[2])
    going_on = lines.index(f"going on with {killed}, which was killed")
    head = lines[: going_on + 5]
    assert not any("retrain alpha" in line for line in head), "alpha had its version before the kill"
    assert head[-3:] == [
        f"    snapshot  {lines[going_on + 2].split(maxsplit=1)[1]}",
        "    validate  unchanged, not run",
        "    features  unchanged, not run",
    ]
    assert story.completed_before == ["snapshot", "validate@beta", "features@beta"]
    assert completed(story.project, story.killed_ref) == [
        "snapshot",
        *(f"{stage}@beta" for stage in STAGES),
        "gate@beta",
    ]
    assert versions(story.project.mirror, "beta")[0].run_ref == story.killed_ref
    assert left_behind(story.project) == []
    assert story.dags_left == [f"dags-{story.killed_process}"]
    assert story.dags() == [], "those of the killed process are gone as well"


def test_the_demo_tells_each_step_and_ends_with_its_versions(story: Story) -> None:
    lines = said(story.demo.out)
    last = lines[lines.index("ingest up to 2013-04-01") :]
    text = "\n".join(last)
    assert re.search(r"\n  +2013-03 +events adds 10 rows\n", text)
    assert last.index("retrain alpha") < last.index("retrain beta")
    assert list(steps("\n".join(last[last.index("retrain beta") : last.index("$ retrace log")]))) == list(STEPS)
    told = steps("\n".join(last[last.index("retrain alpha") : last.index("retrain beta")]))
    assert told["evaluate"] == "evaluated alpha: accuracy 0.8" and told["register"] == "alpha@v2"
    assert told["gate"].startswith("alpha@v2 is champion: accuracy 0.8 >= 0.5; cost 0.2 <= champion's 0.2 + 0.01")
    assert told["publish"] == "alpha@v2 written; champion -> v2"
    assert re.search(r"\nalpha@v2 +\S+ \S+ +2013-03-31 +accuracy 0.8 +cost 0.2 +- +champion\n", text)
    assert story.demo.err == ""
    assert (story.again.code, story.again.err) == (0, "")
    assert story.again.out.startswith("everything is done already")


def test_what_an_outage_of_mlflow_left_out_is_written_by_a_sync(story: Story) -> None:
    """Versions and promotions stand in git whether MLflow answers or not; who could not write it says so at once."""
    project = story.project
    down = {"MLFLOW_TRACKING_URI": f"http://127.0.0.1:{free_port()}"}
    project.edit_params(lambda params: params["models"]["alpha"]["evaluate"].update(note="MLflow is down"))
    done = retrace(project, "retrain", "alpha", **down)
    assert done.code == 1 and "Traceback" not in done.out + done.err
    told = steps(done.out)
    assert told["register"] == "alpha@v3" and told["gate"].startswith("alpha@v3 is champion")
    outage = f"MLflow at {down['MLFLOW_TRACKING_URI']} is not available (Connection refused); nothing is lost: `retrace"
    assert told["publish"].startswith(outage), told["publish"]
    assert left_behind(project) == []

    promoted = retrace(project, "promote", "alpha@v1", "--because", "an outage is no reason to wait", **down)
    assert promoted.code == 1 and said(promoted.out)[0] == "alpha@v1 is champion of alpha (alpha#champion#4)"
    assert promoted.err.startswith(f"error: {outage}") and promoted.err.count("\n") == 1
    assert champions(project.mirror)["alpha", "champion"].name == "alpha@v1"
    assert said(retrace(project, "sync").out) == ["alpha: alpha@v3 written", "alpha: champion -> v1", NO_CONSUMER]
    assert said(retrace(project, "sync", "alpha").out) == ["MLflow is up to date"]


def test_a_retrain_is_not_held_up_by_an_mlflow_that_never_answers(story: Story) -> None:
    with hanging_server() as port:
        address = f"http://127.0.0.1:{port}"
        started = time.monotonic()
        done = retrace(story.project, "retrain", "alpha", MLFLOW_TRACKING_URI=address, RETRACE_PATIENCE="1")
        assert time.monotonic() - started < 60, "MLflow's own client waits for two minutes, and tries again"
    assert (done.code, done.err) == (1, "")
    told = steps(done.out)
    assert list(told) == list(STEPS) and told["register"].startswith("nothing changed since alpha@v")
    outage = f"MLflow at {address} is not available (timed out); nothing is lost: `retrace sync` writes it later"
    assert told["publish"].startswith(outage), told["publish"]
    assert left_behind(story.project) == []


def test_versions_are_listed_shown_promoted_rolled_back_and_synchronised(story: Story) -> None:
    project = story.project
    listed = retrace(project, "log", "alpha")
    assert [line.split()[0] for line in listed.out.splitlines()] == ["VERSION", "alpha@v1", "alpha@v2", "alpha@v3"]
    assert "beta@v1" in retrace(project, "log").out
    (first, *_) = json.loads(retrace(project, "log", "--json").out)
    assert first["version"] == "alpha@v1" and first["metrics"] == {"accuracy": 0.8, "cost": pytest.approx(0.2)}
    shown = retrace(project, "show", "alpha@champion").out
    assert shown.startswith("alpha@v1  champion\n") and "2013-01 .. 2013-02, 20 rows" in shown
    record = json.loads(retrace(project, "show", "alpha@v2", "--json").out)
    assert record["gate"]["promoted"] is True and [stage["name"] for stage in record["stages"]] == list(STAGES)

    promoted = retrace(project, "promote", "alpha@v3", "--because", "March was best")
    assert promoted.code == 0 and said(promoted.out) == [
        "alpha@v3 is champion of alpha (alpha#champion#5)",
        "MLflow: champion -> v3",
    ]
    back = retrace(project, "rollback", "alpha", "--because", "it was not")
    assert back.code == 0 and said(back.out)[0] == "alpha@v1 is champion of alpha (alpha#champion#6)"
    by_gate, given = json.loads(retrace(project, "show", "alpha@v3", "--json").out)["assignments"]
    tag = git(project.root, "for-each-ref", "--format=%(taggerdate:iso-strict)%09%(taggername)", "refs/tags/*#*#5")
    created, by = tag.split("\t")
    name, because = "alpha#champion#5", "March was best"
    assert given == {"name": name, "alias": "champion", "created": created, "by": by, "because": because}
    assert by_gate["name"] == "alpha#champion#3"
    *_, title, by_gate, _, by_hand = show_lines(project.settings, "alpha@v1", as_json=False)
    assert title == "  assignments"
    when, by = r"\d{4}-\d\d-\d\d \d\d:\d\d", re.escape(by)
    assert re.fullmatch(rf"    alpha#champion#1  {when}  by {by}: gate: accuracy 0\.8 >= 0\.5; cost .*", by_gate)
    assert re.fullmatch(rf"    alpha#champion#6  {when}  by {by}: it was not", by_hand)
    database = project.settings.var / "mlflow/mlflow.db"
    with sqlite3.connect(database) as connection:
        connection.execute("UPDATE registered_model_aliases SET version = 2 WHERE name = 'alpha'")
    assert said(retrace(project, "sync").out) == ["alpha: champion -> v1", NO_CONSUMER]


def test_a_version_is_checked_out_and_new_data_pulled(story: Story, tmp_path: Path) -> None:
    project = story.project
    done = retrace(project, "checkout", "alpha@v1", str(tmp_path / "v1"))
    assert done.code == 0 and done.out.startswith(f"alpha@v1 is in {tmp_path / 'v1'} (commit ")
    partitions = sorted(path.name for path in (tmp_path / "v1/data/raw/events").iterdir())
    assert partitions == ["2013-01.parquet", "2013-02.parquet"]
    assert (tmp_path / "v1/models/alpha.skops").is_file()
    one_line(retrace(project, "checkout", "alpha@v1", str(tmp_path / "v1")), "exists already")

    pulled = retrace(project, "data", "pull")
    assert pulled.code == 0 and pulled.out == "data/raw/events is here\n"
    assert len(list((project.root / "data/raw/events").iterdir())) == 3
    assert git(project.root, "status", "--porcelain") == ""


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (("retrain", "gamma"), ("no model 'gamma' in params.yaml", "alpha, beta")),
        (("retrain", "alpha", "--as-of", "2013-01-15"), ("no data was known as of 2013-01-15", "2013-02-01")),
        (("show", "alpha@v9"), ("no version 'alpha@v9'",)),
        (("checkout", "$(touch x)@v1"), ("no version '$(touch x)@v1'",)),
        (("log", "gamma"), ("no versions of 'gamma'",)),
        (("promote", "alpha@v9", "--because", "x"), ("no version 'alpha@v9'",)),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, tuple) else None,
)
def test_what_does_not_exist_is_refused_in_one_line(
    rough: Project, arguments: tuple[str, ...], parts: tuple[str, ...]
) -> None:
    before = rough.refs()
    one_line(retrace(rough, *arguments), *parts)
    assert rough.refs() == before


def test_outside_a_project_and_with_a_wrong_date(rough: Project, tmp_path: Path) -> None:
    one_line(Command(tmp_path, "log").done(), "is in no Retrace project", "cd into one")
    wrong = retrace(rough, "retrain", "alpha", "--as-of", "tomorrow")
    assert wrong.code == 2 and "'tomorrow' is not a date such as 2013-07-01" in wrong.err


@pytest.mark.parametrize(
    ("var", "arguments"),
    [
        ("/proc/x", ("retrain", "alpha")),
        ("/proc/x/y", ("checkout", "alpha@v1")),
        ("/proc", ("up",)),
        ("params.yaml", ("doctor",)),
        ("params.yaml/var", ("demo-reset", "--yes")),
    ],
    ids=["not made", "nor its parent", "not written", "a file", "below a file"],
)
def test_a_var_that_takes_no_files_is_named(project: Project, var: str, arguments: tuple[str, ...]) -> None:
    before = project.refs()
    refused = retrace(project, *arguments, RETRACE_VAR=var)
    one_line(refused, f"error: {project.root / var} takes none of Retrace's files (", "set RETRACE_VAR to a folder")
    assert project.refs() == before


@pytest.mark.parametrize(
    "arguments",
    [("checkout", "alpha@v1", "../v1"), ("score", "alpha@v1"), ("data", "pull"), ("doctor",)],
    ids=lambda arguments: arguments[0],
)
def test_ctrl_c_is_answered_alike_by_commands_of_every_kind(project: Project, arguments: tuple[str, ...]) -> None:
    before = project.refs()
    lock = project.settings.mirror / "fetch.lock"
    with locked(lock):
        command = Command(project.root, *arguments)
        opened = psutil.Process(command.process.pid).open_files
        until(
            lambda: runs(command.process.pid) and str(lock) in [file.path for file in opened()], "a command that waits"
        )
        _terminal(command)
        done = command.done()
    assert (done.code, done.out, done.err) == (130, "", "stopped\n")
    assert project.refs() == before and not (project.root.parent / "v1").exists()


def test_the_demo_of_another_repository_ends_with_that_ones_versions(trained: Project, tmp_path: Path) -> None:
    """The checkout that it is called in has none."""

    def only_alpha(params: dict[str, Any]) -> None:
        del params["models"]["beta"]
        params["demo"] = {"source": "pipeline.source", "through": ["2013-04-01"]}

    trained.edit_params(only_alpha)
    git(tmp_path, "clone", "-q", "--no-tags", "--single-branch", str(trained.root), "clone")
    elsewhere = {"RETRACE_ORIGIN": str(trained.root), "RETRACE_VAR": str(trained.settings.var)}
    done = Command(tmp_path / "clone", "demo", **elsewhere).done()
    assert (done.code, done.err) == (0, "")
    assert "\n$ retrace show alpha@v1\nalpha@v1  champion\n" in done.out
    assert "  retrace checkout alpha@v1  " in done.out


def test_records_are_forgotten_by_a_condition_from_the_input(trained: Project) -> None:
    with sqlite3.connect(trained.source) as database:
        database.execute("DELETE FROM events WHERE name = 'event 3'")

    def forget(*arguments: str) -> Done:
        source = json.dumps({"conn_type": "sqlite", "host": str(trained.source)})
        typed = ("forget", "--dataset", "events", "--ticket", "DPO-2013-17", *arguments)
        command = Command(trained.root, *typed, stdin=subprocess.PIPE, AIRFLOW_CONN_EVENTS=source)
        assert command.process.stdin is not None
        command.process.stdin.write("name = 'event 3'\n")
        return command.done()

    before = trained.refs()
    asked = forget()
    assert (asked.code, asked.err) == (1, "")
    assert "nothing is changed; answer y at a terminal, or add --yes" in asked.out
    assert trained.refs() == before
    done = forget("--yes")
    assert (done.code, done.err) == (0, "") and "3 partitions of events replaced" in done.out
    shown = retrace(trained, "log").out
    assert re.search(r"^alpha@v1 .* impossible +champion$", shown, re.MULTILINE), shown


def add_model(params: dict[str, Any]) -> None:
    params["models"]["very_late"] = params["models"]["beta"]


def test_a_model_that_only_an_uncommitted_params_yaml_has_is_refused_with_the_reason(
    project: Project, tmp_path: Path
) -> None:
    def refusal(settings: Settings) -> str:
        with pytest.raises(UnknownModel) as raised:
            run_retrain(settings, ["alpha", "very_late"], None)
        return str(raised.value)

    plain = "no model 'very_late' in params.yaml; it has alpha, beta"
    assert refusal(project.settings) == plain
    edited = project.params
    add_model(edited)
    (project.root / "params.yaml").write_text(json.dumps(edited))
    told = f"{plain}; params.yaml is edited and not committed, and a run sees commits only: commit it first"
    assert refusal(project.settings) == told
    git(project.root, "add", "params.yaml")
    assert refusal(project.settings) == told, "in the index it is in no commit yet"
    git(tmp_path, "clone", "-q", "--bare", str(project.root), "origin.git")
    elsewhere = project.settings.model_copy(update={"origin": str(tmp_path / "origin.git")})
    assert refusal(elsewhere) == plain, "another repository's commits are what counts"
    git(project.root, "commit", "-q", "-m", "very late")
    of_old = project.settings.model_copy(update={"code_ref": git(project.root, "rev-parse", "HEAD~1")})
    assert refusal(of_old) == plain, "it is committed, and an older commit was asked for"


def test_a_run_of_another_commit_than_main_s_says_so(empty_project: Project) -> None:
    project = empty_project
    main = git(project.root, "rev-parse", "HEAD")
    assert notices(project.settings, main) == []
    git(project.root, "switch", "-q", "-c", "feature-x")
    assert notices(project.settings, main) == [], "it is the commit of main, too"
    code = project.commit("a feature")
    assert notices(project.settings, code) == [f"running commit {code[:8]} of branch feature-x, not of main"]
    (project.root / "notes.txt").touch()
    git(project.root, "switch", "-q", "--detach")
    assert notices(project.settings, code) == [
        f"running commit {code[:8]}; HEAD is detached",
        f"the working copy is dirty: running commit {code[:8]} without notes.txt; commit what should take part",
    ]
    (project.root / "notes.txt").unlink()
    git(project.root, "mv", "params.yaml", "params-renamed.yaml")
    (project.root / "dvc.yaml").unlink()
    assert notices(project.settings, code)[1:] == [
        f"the working copy is dirty: running commit {code[:8]} without dvc.yaml, params-renamed.yaml, params.yaml; "
        "commit what should take part"
    ]
    git(project.root, "reset", "-q", "--hard")
    for chosen in ({"code_ref": "main"}, {"origin": "git@example.com:team/project.git"}):
        assert notices(project.settings.model_copy(update=chosen), code) == []


def test_what_goes_with_the_demo_is_told_and_nobody_is_surprised(ingested: Project, tmp_path: Path) -> None:
    project = ingested.copy(tmp_path / "project")
    for run, model in (("one", "alpha"), ("two", "alpha"), ("one", "beta")):
        registered(project, run, model=model)
    before, var = project.refs(), sorted(path.name for path in project.settings.var.iterdir())
    asked: list[str] = []

    def answer(text: str) -> Callable[[str], str]:
        return lambda question: asked.append(question) or text

    for text in ("", "n", "nein", "yes, but later"):
        assert run_reset(project.settings, answer(text)) == 1
    assert (project.refs(), sorted(path.name for path in project.settings.var.iterdir())) == (before, var)
    assert set(asked) == {
        "this removes 3 versions (2 of alpha, 1 of beta), all runs and promotions, the branch data (3 commits) and all "
        f"in {project.settings.var} but the stages' environments; go on? [y/N] "
    }
    with pytest.raises(ConfigError, match="demo-reset is for a repository that is its own origin"):
        run_reset(project.settings.model_copy(update={"origin": "elsewhere"}), answer("y"))
    assert run_reset(project.settings, answer("Y\n")) == 0
    assert project.refs().keys() == {"refs/heads/main"}
    assert [path.name for path in project.settings.var.iterdir()] == ["environments"]
    assert run_reset(project.settings, answer("no")) == 1 and asked[-1].startswith("this removes 0 versions, all runs")


def nobody_is_asked(question: str) -> str:
    pytest.fail(question)


def in_use(project: Project) -> str:
    """Why nothing is removed; nothing is."""
    before, var = project.refs(), sorted(path.name for path in project.settings.var.iterdir())
    with pytest.raises(StillRunning) as raised:
        run_reset(project.settings, nobody_is_asked)
    assert (project.refs(), sorted(path.name for path in project.settings.var.iterdir())) == (before, var)
    return str(raised.value)


@pytest.fixture
def recorded(project: Project) -> Iterator[subprocess.Popen[bytes]]:
    """A process that stands in the record of servers, as one that `retrace up` has started."""
    server = subprocess.Popen(["sleep", "600"], start_new_session=True)
    entry = {"name": "mlflow", "pid": server.pid, "born": psutil.Process(server.pid).create_time()}
    record = project.settings.var / "run/services.json"
    record.parent.mkdir()
    record.write_text(json.dumps([{"name": "up", "pid": server.pid, "born": 1.0}, entry]))
    yield server
    server.kill()
    server.wait()


def test_nothing_is_removed_under_servers(project: Project, recorded: subprocess.Popen[bytes]) -> None:
    said = f"the servers of {project.root} are running; stop them with `make down` first"
    assert in_use(project) == said
    one_line(retrace(project, "demo-reset", "--yes"), said)
    recorded.kill()
    recorded.wait()
    assert run_reset(project.settings, None) == 0


def test_nothing_is_removed_under_a_run(project: Project) -> None:
    mirror = project.mirror
    lease.take(mirror, "beta", "of yesterday", -1)
    lease.take(mirror, "alpha", "tonight", -1, lease.this_process())
    assert in_use(project) == (
        "alpha is being retrained by tonight; wait for it to end, or if it was killed, give its lease up with "
        "`git update-ref -d refs/locks/alpha`"
    )
    git(project.root, "update-ref", "-d", "refs/locks/alpha")
    with lease.publication(mirror, "beta"):
        assert in_use(project).startswith("beta is being written to MLflow; wait for it to end, or if it was killed")
    assert run_reset(project.settings, None) == 0
    assert project.refs().keys() == {"refs/heads/main"}


@pytest.mark.parametrize(
    ("typed", "arguments", "code"),
    [(b"n\n", (), 1), (b"\x04", (), 1), (b"y\n", (), 0), (b"", ("--yes",), 0), (None, (), 0)],
    ids=["no", "ctrl-d", "yes", "--yes", "no terminal"],
)
def test_a_reset_asks_on_a_terminal_alone(
    project: Project, typed: bytes | None, arguments: tuple[str, ...], code: int
) -> None:
    keyboard, terminal = os.openpty()
    if typed:
        os.write(keyboard, typed)
    command = Command(project.root, "demo-reset", *arguments, stdin=subprocess.DEVNULL if typed is None else terminal)
    done = command.done()
    os.close(keyboard)
    os.close(terminal)
    assert (done.code, done.err) == (code, "")
    assert ("[y/N]" in done.out) is bool(typed)
    assert ("nothing is removed" in done.out) is (code == 1)
    assert ("refs/heads/data" in project.refs()) is (code == 1)
    assert project.source.exists() is (code == 1)


def test_what_may_pass_is_told_and_not_tried_again_while_somebody_watches(rough: Project) -> None:
    before = rough.refs()
    down = {"conn_type": "postgres", "host": "127.0.0.1", "port": 9, "login": "ann", "password": "hidden"}
    done = retrace(rough, "ingest", "--until", "2013-05-01", AIRFLOW_CONN_EVENTS=json.dumps(down))
    text = " ".join(done.out.split())
    assert (done.code, done.err) == (1, "")
    assert text.count("is not available") == 1 and "then try again" in text and "hidden" not in done.out
    assert done.out.splitlines()[-1] == (
        "  ingest failed; the intervals before it are committed on data; "
        f"Airflow's log: {rough.settings.logs / 'airflow.log'}"
    )
    assert rough.refs() == before and left_behind(rough) == []


def _terminal(command: Command) -> None:
    """Ctrl-C: the whole foreground group hears of it."""
    os.killpg(command.process.pid, signal.SIGINT)


@pytest.mark.parametrize(
    ("strike", "code"),
    [
        (_terminal, 130),
        (lambda command: os.kill(command.process.pid, signal.SIGTERM), 143),
    ],
    ids=["ctrl-c", "sigterm"],
)
def test_an_interrupt_in_a_stage_leaves_the_state_as_it_was(
    rough: Project, strike: Callable[[Command], Any], code: int
) -> None:
    rough.act("alpha", "features", "wait")
    hold(rough, "alpha")
    before = rough.refs()
    command = Command(rough.root, "retrain", "alpha")
    stage = wait_for_stage(rough, "alpha")
    strike(command)
    done = command.done()
    assert (done.code, done.err) == (code, "stopped\n")
    assert list(steps(done.out)) == ["snapshot", "validate"], "no step after it, no second try"
    assert not runs(stage) and left_behind(rough) == []
    assert rough.refs() == before


class Rush:
    """Three retrains at once, from a dirty copy: of alpha, held; of alpha again; of beta, whose output nobody reads."""

    def __init__(self, project: Project) -> None:
        self.project = project
        project.act("alpha", "train", "wait")
        hold(project, "alpha")
        self.code = git(project.root, "rev-parse", "HEAD")[:8]
        (project.root / "notes.txt").write_text("not committed")
        (project.root / "params.yaml").write_text((project.root / "params.yaml").read_text() + "\n")
        self.before = project.refs().keys()
        alphas = [Command(project.root, "retrain", "alpha") for _ in range(2)]
        wait_for_stage(project, "alpha")
        self.beta = Command(project.root, "retrain", "beta")
        self.beta.line("retrain beta")
        assert self.beta.process.stdout is not None and self.beta.process.stderr is not None
        self.beta.process.stdout.close()
        self.beta_said = self.beta.process.stderr.read()
        self.beta_code = self.beta.process.wait()
        let_go(project, "alpha")
        ended = [command.done() for command in alphas]
        self.waited, self.made = sorted(ended, key=lambda done: "waiting for it to end" not in done.out)

    def runs(self, model: str) -> list[list[str]]:
        """What each of the runs completed."""
        new = self.project.refs().keys() - self.before
        return sorted(completed(self.project, ref) for ref in new if ref.startswith(f"refs/runs/{model}/"))


@pytest.fixture(scope="module")
def rush(rough: Project) -> Rush:
    rough.act("alpha", "features", None)
    return Rush(rough)


def test_of_two_retrains_of_a_model_the_second_waits_and_another_model_does_not(rush: Rush) -> None:
    assert [(done.code, done.err) for done in (rush.made, rush.waited)] == [(0, "")] * 2, (rush.made, rush.waited)
    assert "is being retrained by manual__" in said(rush.waited.out)[1] and "waiting" not in rush.made.out
    assert steps(rush.made.out)["register"] == "alpha@v1"
    assert steps(rush.waited.out)["register"] == "nothing changed since alpha@v1: no new version"
    assert left_behind(rush.project) == []


def test_a_run_goes_on_when_nobody_reads_what_it_says(rush: Rush) -> None:
    """It ended while alpha was held."""
    assert (rush.beta_code, rush.beta_said) == (0, "")
    assert rush.runs("beta") == [["snapshot", *(f"{stage}@beta" for stage in STAGES), "gate@beta"]]


def test_a_retrain_where_nothing_changed_runs_no_stage_and_names_what_a_dirty_copy_leaves_out(rush: Rush) -> None:
    first, _, third, *_ = said(rush.waited.out)
    assert first.startswith("the working copy is dirty: running commit " + rush.code)
    assert "params.yaml" in first and "notes.txt" in first and "commit what should take part" in first
    assert third == "retrain alpha"
    told = steps(rush.waited.out)
    assert {told[stage] for stage in STAGES} == {"unchanged, not run"}
    assert told["gate"] == "no new version to judge" and told["publish"] == "MLflow is up to date"
    assert rush.runs("alpha")[0] == ["snapshot"] and len(rush.runs("alpha")) == 2
