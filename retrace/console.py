"""What the command line runs through Airflow in its own process: ingestion, retrains, the demo; and the servers."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from retrace import environment, lease, versions
from retrace.config import ConfigError, Params, Settings, UnknownModel
from retrace.errors import RetraceError
from retrace.forkserver import forkserver
from retrace.git import Git, Mirror
from retrace.process import child_environment
from retrace.progress import Terminal
from retrace.reader import reader
from retrace.register import snapshot_facts
from retrace.registry.early import import_early, store_made_early
from retrace.runs import SNAPSHOT, Run, chain, code_commit, data_as_of, data_commits, discard, params_at
from retrace.show import log_lines, show_lines
from retrace.workspace import temporary_folder

if TYPE_CHECKING:
    from airflow.sdk import DAG

    from retrace.airflow.inprocess import TaskEvent


_LOCKS = "refs/locks/"
_OWN_REFS = (_LOCKS, *(f"refs/{name}/" for name in ("runs", "scores", "verdicts", "forgotten")))
_SENDER_SECONDS = 45.0  # a sender drops what has waited for 30 s


class StepFailed(RetraceError):
    """A step of the demo failed; its own message has been shown."""


class StillRunning(RetraceError):
    """Servers or a run work with what is to be removed."""


class Session:
    """Airflow in this process and a terminal to tell on; started once, for any number of runs."""

    def __init__(
        self, settings: Settings, mirror: Mirror, terminal: Terminal, dags: Mapping[str, DAG], log: Path
    ) -> None:
        self.settings, self.mirror, self.terminal, self.dags, self.log = settings, mirror, terminal, dags, log

    def run(self, dag: str, conf: dict[str, Any], kept: str, logical_date: datetime | None = None) -> bool:
        """Run a DAG; whether it succeeded. What failed has been told; what is `kept` of it is, and where the log is."""
        from retrace.airflow.inprocess import run_dag

        result = run_dag(self.dags[dag], logical_date=logical_date, conf=conf, follow=_import_mlflow_early)
        if not result.succeeded:
            self.terminal.line(f"  {dag} failed; {kept}; Airflow's log: {self.log}")
        return result.succeeded


def _import_mlflow_early(event: TaskEvent) -> None:
    """After a retrain's first task this process does little but wait for stages, and in the end it needs MLflow."""
    if event.task_id == SNAPSHOT and event.state == "success":
        import_early()


@contextmanager
def session(settings: Settings, mirror: Mirror) -> Iterator[Session]:
    """Start Airflow here, quietly, with its own output in a log file."""
    from retrace.airflow.inprocess import airflow, quiet

    code = code_commit(settings, mirror)
    embedded_environment(settings, params_at(mirror, code))
    os.environ["RETRACE_ROOT"] = str(settings.root)
    log = settings.logs / "airflow.log"
    with dag_files(settings, mirror, code) as folder, quiet(log) as stream:
        terminal = Terminal(stream)
        with (
            forkserver(child_environment(), settings.logs / "forkserver.log"),
            terminal.listening(),
            airflow(settings.var, folder, slots=settings.stage_slots) as dags,
        ):
            yield Session(settings, mirror, terminal, dags, log)


@contextmanager
def dag_files(settings: Settings, mirror: Mirror, code: str) -> Iterator[Path]:
    """`dags/`, params.yaml and dvc.yaml as the commit has them: what is not committed takes no part."""
    wanted = [path for path in mirror.files(code) if path.startswith("dags/") or path in ("params.yaml", "dvc.yaml")]
    with temporary_folder(settings, "dags") as folder:
        for path in wanted:
            content = mirror.read(code, path)
            assert content is not None
            target = folder / path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(content)
        yield folder / "dags"


def embedded_environment(settings: Settings, params: Params) -> None:
    """What tasks find in the environment when the user has not set it: the demo's source, lineage's namespace."""
    name = f"AIRFLOW_CONN_{params.ingest.connection.upper()}"
    if not os.environ.get(name) and source_file(settings).exists():
        os.environ[name] = json.dumps({"conn_type": "sqlite", "host": str(source_file(settings))})
    os.environ.setdefault("AIRFLOW__OPENLINEAGE__NAMESPACE", "retrace")


def source_file(settings: Settings) -> Path:
    """The demo's source database."""
    return settings.var / "source.db"


def _opened(settings: Settings) -> tuple[Mirror, str, Params]:
    mirror = Mirror.open(settings.mirror, settings.origin)
    mirror.fetch_record()
    code = code_commit(settings, mirror)
    return mirror, code, params_at(mirror, code)


def notices(settings: Settings, code: str) -> list[str]:
    """What to say of the commit that runs: that it is not main's, and what of the working copy it is without."""
    if Path(settings.origin) != settings.root:
        return []
    return [*_off_main(settings, code), *_left_out(settings, code)]


def _off_main(settings: Settings, code: str) -> list[str]:
    if settings.code_ref != "HEAD":
        return []
    git = Git(settings.root)
    branch = git.run("symbolic-ref", "--quiet", "--short", "HEAD").stdout.decode().strip()
    if not branch:
        return [f"running commit {code[:8]}; HEAD is detached"]
    if branch == "main" or git.resolve("refs/heads/main") in (None, code):
        return []
    return [f"running commit {code[:8]} of branch {branch}, not of main"]


def _left_out(settings: Settings, code: str) -> list[str]:
    # With a rename an entry would have two paths, the second of them without a status before it.
    status = Git(settings.root).out("status", "--porcelain", "--no-renames", "--untracked-files=all", "-z")
    entries = [entry for entry in status.split("\0") if entry]
    changed = [entry[3:] for entry in entries if not entry.startswith("??") or entry[3:] != "dvc.lock"]
    if not changed:
        return []
    shown = ", ".join(changed[:5]) + (f" and {len(changed) - 5} more" if len(changed) > 5 else "")
    return [f"the working copy is dirty: running commit {code[:8]} without {shown}; commit what should take part"]


def run_ingest(settings: Settings, until: datetime | None, since: datetime | None) -> int:
    """`retrace ingest`: the exit code."""
    mirror, _, _ = _opened(settings)
    with session(settings, mirror) as running:
        succeeded = _ingest(running, until or datetime.now(UTC), since)
        _tell_consumer(running)
        return 0 if succeeded else 1


def _ingest(running: Session, until: datetime, since: datetime | None) -> bool:
    running.terminal.line(f"ingest up to {until:%Y-%m-%d}")
    conf = {lease.IN_PROCESS: True, "until": until.isoformat()}
    conf |= {"since": since.isoformat()} if since else {}
    return running.run("ingest", conf, "the intervals before it are committed on data")


def run_retrain(settings: Settings, models: list[str], as_of: datetime | None) -> int:
    """`retrace retrain`: the exit code. Raises `UnknownModel`, `NoData` before anything is started."""
    mirror, code, params = _opened(settings)
    _refuse_unknown(settings, code, params, models)
    data_as_of(mirror, as_of)
    with store_made_early(settings.mlflow), session(settings, mirror) as running:
        for line in notices(settings, code):
            running.terminal.line(line)
        succeeded = [_retrain(running, model, as_of) for model in models]
        _tell_consumer(running)
        return 0 if all(succeeded) else 1


def _refuse_unknown(settings: Settings, code: str, params: Params, models: list[str]) -> None:
    try:
        for model in models:
            params.model(model)
    except UnknownModel as error:
        raise UnknownModel(f"{error}{_edited(settings, code)}") from None


def _edited(settings: Settings, code: str) -> str:
    """What to add to a complaint about a commit's params.yaml where the one in the working copy is another."""
    git = Git(settings.root)
    if Path(settings.origin) != settings.root or git.resolve("HEAD") != code:
        return ""
    if git.run("diff", "--quiet", code, "--", "params.yaml").returncode == 0:
        return ""
    return "; params.yaml is edited and not committed, and a run sees commits only: commit it first"


def _retrain(running: Session, model: str, as_of: datetime | None) -> bool:
    mirror = running.mirror
    when = _wait_for_turn(running, model, as_of)
    running.terminal.line(f"retrain {model}" + (f" as of {as_of:%Y-%m-%d}" if as_of else ""))
    run = Run(model, f"manual__{when.isoformat()}")
    conf = {lease.IN_PROCESS: True, "as_of": as_of.isoformat() if as_of else None}
    try:
        return running.run(model, conf, "what it had done is kept on its run's ref", when)
    except KeyboardInterrupt:
        discard(mirror, run)
        lease.release(mirror, model, run.run_id)
        raise


def _tell_consumer(running: Session) -> None:
    """Where a lineage consumer is set: bring it up to git now, as the DAG `sync` does where a scheduler runs.

    The work is done whether or not the consumer is there, so its absence is told and fails nothing.
    """
    from retrace.airflow.embedded import spool_folder
    from retrace.lineage.folder import SpoolFolder
    from retrace.lineage.settings import ConsumerSettings
    from retrace.lineage.sync import sync_lineage

    if ConsumerSettings.of(os.environ) is None:
        return
    try:
        # What is still on its way must not come after what is now sent: a late START sets a finished run back.
        with SpoolFolder(spool_folder(running.settings.var)).still(_SENDER_SECONDS):
            for line in sync_lineage(running.settings, running.mirror, lambda _: None, os.environ):
                running.terminal.line(line)
    except RetraceError as error:
        running.terminal.line(f"lineage: {error}; `retrace sync` tells it later, git has it all")


def _wait_for_turn(running: Session, model: str, as_of: datetime | None) -> datetime:
    """Take the model's lease, after another retrain of it if there is one; the date of the run that now holds it.

    It is the date of a run of this machine that was killed, to go on with it, or else now.
    """
    told = False
    while True:
        held = lease.holder(running.mirror, model)
        if held is None or held[1].free():
            killed = _killed_run(running, held[1], model, as_of) if held is not None else None
            when = killed or datetime.now(UTC)
            with suppress(lease.ModelBusy):  # somebody was faster: wait for them
                run_id = f"manual__{when.isoformat()}"
                lease.take(running.mirror, model, run_id, running.settings.lease_minutes, lease.this_process())
                if killed is not None:
                    running.terminal.line(f"going on with {run_id}, which was killed")
                return when
        elif not told:
            running.terminal.line(
                f"{model} is being retrained by {held[1].run_id}; waiting for it to end (Ctrl-C to leave)"
            )
            told = True
        time.sleep(1)


def _killed_run(running: Session, held: lease.Lease, model: str, as_of: datetime | None) -> datetime | None:
    if held.process is None or not _same_inputs(running, Run(model, held.run_id), as_of):
        return None
    return datetime.fromisoformat(held.run_id.removeprefix("manual__"))


def _same_inputs(running: Session, run: Run, as_of: datetime | None) -> bool:
    mirror = running.mirror
    head = mirror.fetch_ref(run.ref)
    if head is None or not run.run_id.startswith("manual__"):
        return False
    facts = snapshot_facts(mirror, chain(mirror, head)[0].commit, run.model)
    mirror.fetch_record()
    return facts["code"] == code_commit(running.settings, mirror) and facts["data"] == data_as_of(mirror, as_of).commit


def run_demo(settings: Settings) -> int:
    """`retrace demo`: fill the source, then for each date ingest and retrain all models; what is done is not redone."""
    mirror, code, params = _opened(settings)
    if params.demo is None:
        raise ConfigError("params.yaml has no section demo, which says what `make demo` plays")
    _fill_source(settings, mirror, code, params)
    if _remaining(mirror, params):
        with store_made_early(settings.mlflow), session(settings, mirror) as running:
            for line in notices(settings, code):
                running.terminal.line(line)
            _play(running, params)
            _tell_consumer(running)
    else:
        print("everything is done already; `make demo-reset` takes it back")
    _farewell(settings, params)
    return 0


def _fill_source(settings: Settings, mirror: Mirror, code: str, params: Params) -> None:
    assert params.demo is not None
    if source_file(settings).exists() or os.environ.get(f"AIRFLOW_CONN_{params.ingest.connection.upper()}"):
        return
    lock = environment.EnvironmentLock.of_commit(mirror, code)
    print(f"preparing the stages' environment ({lock.digest[:8]}) and the source database", flush=True)
    folder = environment.ensure(lock, settings.environments)
    partial = source_file(settings).with_suffix(".partial")
    partial.unlink(missing_ok=True)
    done = subprocess.run(
        [str(folder / "bin" / "python"), "-m", params.demo.source, f"sqlite:///{partial}"],
        cwd=settings.root,
        check=False,
    )
    if done.returncode != 0:
        raise StepFailed(f"{params.demo.source} could not fill the source database: it ended with {done.returncode}")
    partial.rename(source_file(settings))


def _remaining(mirror: Mirror, params: Params) -> list[tuple[datetime, list[str]]]:
    """Per date of the demo the models that have no version of it yet."""
    assert params.demo is not None
    mirror.fetch_record()
    made = {(version.model, version.through) for version in versions.versions(mirror)}
    steps = [(date, [model for model in params.models if (model, date) not in made]) for date in params.demo.through]
    return [(date, models) for date, models in steps if models]


def _play(running: Session, params: Params) -> None:
    for date, models in _remaining(running.mirror, params):
        known = data_commits(running.mirror)
        if (not known or known[0].through < date) and not _ingest(running, date, None):
            raise StepFailed(f"the ingestion up to {date:%Y-%m-%d} failed; see above")
        for model in models:
            newest = data_commits(running.mirror)[0].through
            if not _retrain(running, model, date if newest > date else None):
                raise StepFailed(f"the retrain of {model} failed; see above, mend it and run `make demo` again")
            running.mirror.fetch_record()


def _farewell(settings: Settings, params: Params) -> None:
    model = next(iter(params.models))
    print("\n$ retrace log")
    print("\n".join(log_lines(settings, None, as_json=False)))
    name = versions.versions(reader(settings), model)[-1].name
    print(f"\n$ retrace show {name}")
    print("\n".join(show_lines(settings, name, as_json=False)))
    following = {
        "source .venv/bin/activate": "",
        f"retrace checkout {name}": "its code, data and model in a folder beside this one, verified",
        f"retrace rollback {model} --because 'try it'": "v1 is champion again; git keeps the reason",
        f"retrace retrain {model}": "nothing changed: no stage runs, no version is made",
        "make up": "Airflow's and MLflow's pages",
    }
    width = max(map(len, following))
    print("\nNext:")
    print("\n".join(f"  {command:<{width}}  {what}".rstrip() for command, what in following.items()))


def run_reset(settings: Settings, ask: Callable[[str], str] | None) -> int:
    """`retrace demo-reset`: the exit code. `ask` puts a question and returns the answer; without it nobody is asked."""
    if Path(settings.origin) != settings.root:
        raise ConfigError(f"demo-reset is for a repository that is its own origin; this one's is {settings.origin}")
    _refuse_while_in_use(settings)
    if ask is not None and ask(f"{_what_goes(settings)}; go on? [y/N] ").strip().lower() not in ("y", "yes"):
        print("nothing is removed")
        return 1
    for line in _reset(settings):
        print(line)
    return 0


def _refuse_while_in_use(settings: Settings) -> None:
    """Raise `StillRunning` while a process works with what a reset removes: it would write into what is gone."""
    from retrace.airflow.services import are_running

    if are_running(settings):
        raise StillRunning(f"the servers of {settings.root} are running; stop them with `make down` first")
    mirror = Mirror.open(settings.mirror, settings.origin)
    for ref in mirror.remote_refs(f"{_LOCKS}*"):
        held = lease.holder(mirror, ref.removeprefix(_LOCKS))
        if held is not None and not held[1].free():
            model, _, publishes = ref.removeprefix(_LOCKS).partition(".")
            what = "being written to MLflow" if publishes else f"being retrained by {held[1].run_id}"
            raise StillRunning(
                f"{model} is {what}; wait for it to end, or if it was killed, give its lease up with "
                f"`git update-ref -d {ref}`"
            )


def _what_goes(settings: Settings) -> str:
    git = Git(settings.root)
    made = Counter(version.model for version in versions.versions(git))
    models = ", ".join(f"{number} of {model}" for model, number in made.items())
    return (
        f"this removes {_counted(made.total(), 'version')}{f' ({models})' if made else ''}, all runs and promotions, "
        f"the branch data ({_counted(len(data_commits(git)), 'commit')}) and all in {settings.var} but the stages' "
        "environments"
    )


def _counted(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def _reset(settings: Settings) -> Iterator[str]:
    """Take the demo back: versions, runs, the branch data, and all state below `var/` but the stages' environments."""
    git = Git(settings.root)
    names = git.out("for-each-ref", "--format=%(refname)").splitlines()
    tagged = {version.ref for version in versions.versions(git)}
    tagged |= {f"refs/tags/{assignment.name}" for assignment in versions.assignments(git)}
    own = [name for name in names if name in tagged or name == "refs/heads/data" or name.startswith(_OWN_REFS)]
    if own:
        git.out("update-ref", "--stdin", stdin="".join(f"delete {name}\n" for name in own).encode())
    yield f"removed {len(own)} refs (versions, assignments, runs, the branch data)"
    for folder in sorted(settings.var.iterdir()) if settings.var.exists() else ():
        if folder != settings.environments:
            shutil.rmtree(folder) if folder.is_dir() else folder.unlink()
    yield f"emptied {settings.var} (the stages' environments are kept)"


def run_up(settings: Settings) -> int:
    """`retrace up`: the exit code."""
    from retrace.airflow.services import up

    _, _, params = _opened(settings)
    embedded_environment(settings, params)
    up(settings)
    return 0


def run_down(settings: Settings) -> int:
    """`retrace down`: the exit code."""
    from retrace.airflow.services import down

    print("everything is stopped" if down(settings) else "nothing was running")
    return 0
