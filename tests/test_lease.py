"""The lease on a model: one retrain at a time across machines, and nobody waits for the dead."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from handmade import Overtaken
from projects import ROOT, TOY, git

from retrace import lease
from retrace.airflow.embedded import environment, keys
from retrace.errors import TransientError
from retrace.git import Mirror
from retrace.lease import Lease, ModelBusy, holder, publication, release, take, this_process

BUSY = "alpha is being retrained by one; wait for it to end"


@pytest.fixture
def mirror(tmp_path: Path) -> Mirror:
    """The mirror of one machine; its origin is in the folder `origin`."""
    (tmp_path / "origin").mkdir()
    git(tmp_path / "origin", "init", "-q", "-b", "main")
    return Mirror.open(tmp_path / "mirror.git", str(tmp_path / "origin"))


@pytest.fixture
def other(mirror: Mirror, tmp_path: Path) -> Mirror:
    """The mirror of another machine."""
    return Mirror.open(tmp_path / "other.git", mirror.origin)


def holds(mirror: Mirror, model: str = "alpha") -> Lease:
    held = holder(mirror, model)
    assert held is not None
    return held[1]


def busy(mirror: Mirror, run_id: str = "two", process: str | None = None) -> str:
    """The message with which a run is turned away; the lease stays as it is."""
    before = holder(mirror, "alpha")
    with pytest.raises(ModelBusy) as raised:
        take(mirror, "alpha", run_id, 60, process)
    assert holder(mirror, "alpha") == before
    return str(raised.value)


@contextmanager
def program(mirror: Mirror, code: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A process on this machine that has run `code`, said something and lives until it is killed or the block ends."""
    begin = "import sys\nfrom pathlib import Path\nfrom retrace.git import Mirror\nfrom retrace.lease import *\n"
    begin += "mirror = Mirror.open(Path(sys.argv[1]), sys.argv[2])\n"
    command = [sys.executable, "-c", begin + code, str(mirror.directory), mirror.origin]
    started = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert started.stdout is not None
        yield started, started.stdout.readline().strip()
    finally:
        started.kill()
        started.communicate()


def test_a_lease_says_who_has_it_and_until_when(mirror: Mirror, other: Mirror) -> None:
    assert holder(mirror, "alpha") is None
    begun = datetime.now(UTC).replace(microsecond=0)
    take(mirror, "alpha", "one", 90)
    held = holds(other)
    assert (held.run_id, held.process, held.free()) == ("one", None, False)
    assert timedelta() <= datetime.fromisoformat(held.until) - timedelta(minutes=90) - begun <= timedelta(minutes=5)
    assert list(mirror.remote_refs()) == ["refs/locks/alpha"]


def test_a_model_that_is_being_retrained_is_busy_and_no_other_one_is(mirror: Mirror, other: Mirror) -> None:
    take(mirror, "alpha", "one", 60)
    assert busy(mirror) == busy(other) == BUSY
    assert issubclass(ModelBusy, TransientError)
    take(other, "beta", "two", 60)
    assert (holds(mirror).run_id, holds(mirror, "beta").run_id) == ("one", "two")


def test_the_run_that_has_it_renews_it_from_any_machine(mirror: Mirror, other: Mirror) -> None:
    take(mirror, "alpha", "one", 10)
    first = holds(mirror)
    take(other, "alpha", "one", 60)
    assert datetime.fromisoformat(holds(mirror).until) > datetime.fromisoformat(first.until)
    renewed = mirror.fetch_ref("refs/locks/alpha")
    take(other, "alpha", "one", 60)
    assert mirror.fetch_ref("refs/locks/alpha") == renewed, "nothing is written while nearly all of its time is left"
    take(mirror, "beta", "one", -1)
    take(other, "beta", "one", 60)
    assert not holds(mirror, "beta").free(), "it can be late, as long as nobody else has come"


def test_a_lease_whose_time_is_over_is_free(mirror: Mirror, other: Mirror) -> None:
    take(mirror, "alpha", "one", -1)
    assert holds(other).free()
    take(other, "alpha", "two", 60)
    assert holds(mirror).run_id == "two"
    assert busy(mirror, "one") == "alpha is being retrained by two; wait for it to end"


def test_a_run_in_one_process_keeps_it_while_the_process_lives_and_not_a_moment_longer(mirror: Mirror) -> None:
    with program(
        mirror, "take(mirror, 'alpha', 'one', -1, this_process()); print(this_process(), flush=True); input()"
    ) as (
        run,
        identity,
    ):
        assert holds(mirror).process == identity
        assert identity.startswith(f"{platform.node()} {run.pid} ")
        assert busy(mirror, process=this_process()) == BUSY, "its time is over, but it works"
        take(mirror, "alpha", "one", 60)
        assert holds(mirror).process == identity, "a task that renews the lease does not make it another's"
        run.kill()
        run.wait()
        take(mirror, "alpha", "two", 60, this_process())
    assert holds(mirror) == Lease("two", holds(mirror).until, this_process())


def test_the_same_run_in_another_process_has_to_wait(mirror: Mirror) -> None:
    """Two commands that come upon the same broken-off run: one of them goes on with it."""
    code = "take(mirror, 'alpha', 'one', 60, this_process()); print(flush=True); input()"
    with program(mirror, code) as (first, _):
        assert busy(mirror, "one", this_process()) == BUSY
        first.kill()
        first.wait()
        take(mirror, "alpha", "one", 60, this_process())
    take(mirror, "alpha", "one", 60, this_process())


def test_a_process_number_that_was_used_again_is_not_the_process(mirror: Mirror) -> None:
    host, number, start = this_process().rsplit(" ", 2)
    take(mirror, "alpha", "one", 60, f"{host} {number} {int(start) + 1}")
    take(mirror, "alpha", "two", 60)
    assert holds(mirror).run_id == "two"


@pytest.mark.parametrize("host", ["elsewhere", f"{platform.node()}2"])
def test_a_process_of_another_machine_has_its_time(mirror: Mirror, host: str) -> None:
    """Nobody here can see whether it lives."""
    take(mirror, "alpha", "one", 60, f"{host} 4194305 1")  # a number that no process has
    assert busy(mirror) == BUSY
    take(mirror, "alpha", "one", -1)
    assert holds(mirror).process == f"{host} 4194305 1"
    take(mirror, "alpha", "two", 60)
    assert holds(mirror) == Lease("two", holds(mirror).until, None)


def test_only_who_has_it_gives_it_up(mirror: Mirror, other: Mirror) -> None:
    release(mirror, "alpha", "one")
    take(mirror, "alpha", "one", 60)
    release(other, "alpha", "two")
    release(other, "beta", "one")
    assert holds(mirror).run_id == "one"
    release(other, "alpha", "one")
    assert holder(mirror, "alpha") is None
    assert mirror.remote_refs() == {}
    take(other, "alpha", "two", 60)


@pytest.mark.parametrize("before", [None, -1.0], ids=["free", "expired"])
def test_of_two_who_take_it_at_once_one_gets_it(mirror: Mirror, other: Mirror, before: float | None) -> None:
    if before is not None:
        take(mirror, "alpha", "old", before)
    late = Overtaken(mirror, lambda: take(other, "alpha", "faster", 60))
    with pytest.raises(ModelBusy) as raised:
        take(late, "alpha", "late", 60)
    assert str(raised.value) == "alpha is being retrained by another run, which was faster; wait for it to end"
    assert holds(mirror).run_id == "faster"


def test_whoever_gives_up_late_does_not_take_it_from_the_next(mirror: Mirror, other: Mirror) -> None:
    take(mirror, "alpha", "one", -1)
    release(Overtaken(mirror, lambda: take(other, "alpha", "two", 60)), "alpha", "one")
    assert holds(mirror).run_id == "two"


def test_one_writer_publishes_a_model_at_a_time(mirror: Mirror, other: Mirror) -> None:
    text = "^the versions of alpha are being written to MLflow by another process; wait for it to end$"
    with publication(mirror, "alpha"):
        for writer in (mirror, other):
            with pytest.raises(ModelBusy, match=text), publication(writer, "alpha"):
                pytest.fail("two writers at once")
        take(other, "alpha", "one", 60)  # a retrain may go on meanwhile
        with publication(other, "beta"):
            pass
    with publication(other, "alpha"):
        assert holder(mirror, "alpha.publish") is not None
    assert list(mirror.remote_refs()) == ["refs/locks/alpha"]


def test_a_writer_that_fails_or_dies_holds_nobody_up(mirror: Mirror) -> None:
    with pytest.raises(ZeroDivisionError), publication(mirror, "alpha"):
        raise ZeroDivisionError
    assert mirror.remote_refs() == {}
    with program(mirror, "with publication(mirror, 'alpha'): print('writes', flush=True); input()") as (writer, said):
        assert said == "writes"
        with pytest.raises(ModelBusy), publication(mirror, "alpha"):
            pytest.fail("two writers at once")
        writer.kill()
        writer.wait()
        with publication(mirror, "alpha"):
            assert holds(mirror, "alpha.publish").process == lease.this_process()


# The tasks of a model's DAG, each for a run of its own; there is nothing to work on, so that only the lease remains.
TASKS = """
import json, sys
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from retrace.airflow.factory import retrain_dags
from retrace.config import Settings
from retrace.errors import RetraceError
from retrace.git import Mirror
from retrace.lease import holder, release
from retrace.runs import Run, Task

settings = Settings.load(Path.cwd(), {"RETRACE_ORIGIN": sys.argv[1], "RETRACE_LEASE_MINUTES": sys.argv[2]})
mirror = Mirror.open(settings.mirror, settings.origin)
nothing = SimpleNamespace(conf={}, logical_date=None, run_type="manual", xcom_pull=lambda task_ids: None)
lasts = {}
for name in ("snapshot", "train", "register", "gate"):
    begun = datetime.now(UTC)
    try:
        task = Task(Run("alpha", name), name, name)
        retrain_dags(Path.cwd())["alpha"].get_task(name).work(settings, task, {"dag_run": nothing, "ti": nothing})
    except RetraceError:
        lasts[name] = (datetime.fromisoformat(holder(mirror, "alpha")[1].until) - begun).total_seconds() / 60
    release(mirror, "alpha", name)
print(json.dumps(lasts))
"""


@pytest.mark.parametrize(
    ("timeout", "minutes", "least"),
    [(5, 120, 120), (180, 120, 2 * 180 + 30), (180, 1000, 1000)],
    ids=["short stages", "long stages", "long leases"],
)
def test_a_lease_outlasts_every_task_of_its_model(
    timeout: int, minutes: int, least: int, mirror: Mirror, tmp_path: Path
) -> None:
    """Or it would end in the middle of a long stage, and a second run would begin instead of waiting."""
    project, var = tmp_path / "project", tmp_path / "var"
    shutil.copytree(TOY, project)
    params = json.loads((TOY / "params.yaml").read_text())
    params["models"]["alpha"]["timeout_minutes"] = timeout
    (project / "params.yaml").write_text(json.dumps(params))
    var.mkdir()
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("AIRFLOW", "RETRACE"))}
    environ = environment(var, project, {**kept, "PYTHONPATH": str(ROOT)}, more=keys(var))
    command = [sys.executable, "-P", "-c", TASKS, mirror.origin, str(minutes)]
    done = subprocess.run(command, cwd=project, env=environ, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    lasts = json.loads(done.stdout.splitlines()[-1])
    assert list(lasts) == ["snapshot", "train", "register", "gate"]
    assert all(least - 1 < length < least + 20 for length in lasts.values()), lasts
