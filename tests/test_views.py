"""Stages in views and sandboxes: what they may do, and that what they read undeclared is found and named."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from projects import ROOT, STAGES, Project, git
from views import KINDS, SANDBOXES, Site, processes_in, small_disk

from retrace import yaml12
from retrace.dvcfiles import PipelineError
from retrace.hashing import directory_oid, files_of, md5_of, oid_of
from retrace.process import DiskFull, StageTimeout
from retrace.pull import pull_data
from retrace.rebuild import view
from retrace.rebuild.conditions import varied
from retrace.rebuild.culprits import culprits
from retrace.rebuild.declared import Declared, of_lock
from retrace.rebuild.sandbox import Kind, SandboxFailed, in_words, interpreter_folders
from retrace.rebuild.stage import disk_full_told, run
from retrace.rebuild.view import NotThere, cut
from retrace.stage_check import check_stages
from retrace.testing import assert_deterministic
from retrace.workspace import UNFINISHED


@pytest.fixture(params=KINDS)
def site(request: pytest.FixtureRequest, tmp_path: Path) -> Site:
    """A tree with one stage, for each sandbox that this machine has."""
    return Site.make(tmp_path, request.param)


def test_this_machine_has_a_real_sandbox() -> None:
    """Else the tests below prove little."""
    assert SANDBOXES and KINDS[-1] == "view"


# What a stage may do

MODEST = """
assert sorted(str(path) for path in Path().rglob("*") if path.is_file()) == [
    "data/known.txt", "params.yaml", "pipeline/__init__.py", "pipeline/train.py"]
assert json.loads(subprocess.run(
    [sys.executable, "-c", "import json; print(json.dumps([1]))"], stdout=-1, check=True).stdout) == [1]
from multiprocessing import get_context
with get_context("spawn").Pool(2) as pool:
    assert pool.map(abs, [-1, -2]) == [1, 2]
(Path.home() / ".cache").mkdir(exist_ok=True)
(Path.home() / ".cache/mine").write_text("x")
assert (Path.home() / ".cache/mine").read_text() == "x"
with tempfile.TemporaryFile() as handle:
    handle.write(b"x")
Path(os.environ["RETRACE_SCRATCH"], "trial").write_text("x")
Path("models/more/deep").mkdir(parents=True)
shutil.rmtree("models/more")
handle, name = tempfile.mkstemp(dir="models")
os.write(handle, Path("params.yaml").read_bytes())
os.replace(name, OUT)
"""


def test_a_stage_that_keeps_to_what_it_declares_lacks_nothing(site: Site) -> None:
    """Processes, temporary files, a cache in its home and a file that is put in place whole are its own affair."""
    stage = site.stage(MODEST)
    program = (site.tree / "pipeline/train.py").read_text()
    body = "\n".join(f"    {line}" for line in program.splitlines())  # what is spawned imports it again
    site.write("pipeline/train.py", f'if __name__ == "__main__":\n{body}\n')
    before = site.files()
    around = site.around()
    first = run(site.tree, stage, around)
    assert (first.code, first.said, first.undeclared) == (0, "", ()), site.log()
    second = run(site.tree, stage, replace(around, conditions=varied(site.kind)))
    assert (second.code, second.undeclared) == (0, ()), site.log()
    assert (first.view / "models/alpha.txt").read_text() == (second.view / "models/alpha.txt").read_text()
    assert (first.view / "models/alpha.txt").read_text() == "models:\n  alpha:\n    train: {rate: 0.10, depth: 3}\n"
    assert site.files() == before
    assert not processes_in(site.folder)


def test_a_sandbox_stands_around_the_whole_stage_and_not_only_around_python(site: Site) -> None:
    told = f"cat {site.home}/prices.txt > models/alpha.txt"
    outcome = run(site.tree, site.declared(command=told, dependencies=("data/known.txt",)), site.around())
    if site.kind == "view":
        assert outcome.code == 0
    else:
        assert outcome.code != 0 and f"{site.home}/prices.txt" in outcome.said


def test_several_command_lines_run_in_turn_up_to_one_that_fails(tmp_path: Path) -> None:
    entry = {"cmd": ["cd data", "pwd > models/alpha.txt", "exit 3", "pwd > models/b"], "outs": []}
    [stage] = of_lock({"train@alpha": entry}, "dvc.lock")
    site = Site.make(tmp_path, KINDS[0])
    outcome = run(site.tree, site.declared(command=stage.command, dependencies=("data/known.txt",)), site.around())
    assert outcome.code == 3
    assert (outcome.view / "models/alpha.txt").read_text() == f"{outcome.view}\n"
    assert not (outcome.view / "models/b").exists()


# Undeclared inputs


@pytest.mark.parametrize(
    ("program", "culprit"),
    [
        ("from pipeline import other", "reads pipeline/other.py, which it does not declare"),
        ("from pipeline.other import RATE", "reads pipeline/other.py, which it does not declare"),
        ('text = open("data/extra.txt").read()', "reads data/extra.txt, which it does not declare"),
        ('text = open("models/../data/extra.txt").read()', "reads data/extra.txt, which it does not declare"),
        (
            "import yaml; text = yaml.safe_load(open('params.yaml'))['models']['alpha']['evaluate']['rate']",
            "reads the parameter models.alpha.evaluate, which it does not declare",
        ),
        (
            "sys.exit('params.yaml has no models.alpha.evaluate.rate; add it')",
            "reads the parameter models.alpha.evaluate.rate, which it does not declare",
        ),
        (
            "text = subprocess.run(['cat', 'data/extra.txt'], check=True, stdout=-1).stdout",
            "ends with code 1: subprocess.CalledProcessError: Command '['cat', 'data/extra.txt']' returned",
        ),
    ],
    ids=["module", "name of a module", "file", "roundabout", "parameter", "named in full", "another program"],
)
def test_what_the_repository_has_and_a_stage_does_not_declare_is_not_there_and_is_named(
    site: Site, program: str, culprit: str
) -> None:
    outcome, found = site.twice(program)
    assert outcome.code == 1
    assert any(text.startswith(f"train@alpha {culprit}") for text in found), found
    assert any(text.startswith("train@alpha ends with code 1: ") for text in found)


@pytest.mark.parametrize("place", ["absolute", "home"])
def test_a_file_in_the_home_directory_is_not_there_and_is_named(site: Site, place: str) -> None:
    """By its own way, or by `~`, which is an empty folder in a rebuild."""
    where = "HOME" if place == "absolute" else "Path.home()"
    outcome, found = site.twice(f'text = open({where} / "prices.txt").read()')
    if place == "absolute":
        assert f"train@alpha reads {site.home}/prices.txt, outside the repository" in found
    if place == "absolute" and site.kind == "view":
        assert outcome.code == 0, "nothing keeps it from that"
    else:
        assert outcome.code == 1
        [ended] = [text for text in found if text.startswith("train@alpha ends with code 1: ")]
        assert "home/prices.txt" in ended


def test_a_file_that_pyarrow_reads_in_the_home_directory_is_named_by_a_sandbox(site: Site) -> None:
    """No hook of Python sees it: without a sandbox it is not found, which is why a verdict tells what was in force."""
    import pandas

    pandas.DataFrame({"price": [1.5]}).to_parquet(site.home / "prices.parquet")
    outcome, found = site.twice('import pandas; text = pandas.read_parquet(HOME / "prices.parquet")["price"][0]')
    if site.kind == "view":
        assert (outcome.code, found) == (0, [])
    else:
        assert outcome.code == 1
        [ended] = found
        assert ended.startswith("train@alpha ends with code 1: ") and f"{site.home}/prices.parquet" in ended


LEAVES = """
places = [Path.home(), Path(tempfile.gettempdir()), Path(os.environ["TMPDIR"]), Path(os.environ["RETRACE_SCRATCH"])]
places += [Path(place) for place in sys.path if place.endswith("watch")]
assert len(set(places)) == 4, places
for place in places:
    (place / "deep").mkdir(exist_ok=True)
    (place / "deep/left.txt").write_text("x")
    (place / "deep").chmod(0o500)
"""


@pytest.mark.parametrize(
    "place",
    ["Path.home()", "Path(os.environ['TMPDIR'])", "Path(os.environ['RETRACE_SCRATCH'])", "Path(sys.path[1])"],
    ids=["home", "temporary", "scratch", "watch"],
)
def test_a_stage_reads_nothing_that_an_earlier_one_left_outside_its_outputs(site: Site, place: str) -> None:
    around = site.around()
    first = run(site.tree, site.stage(LEAVES), around)
    assert (first.code, first.undeclared) == (0, ()), site.log()
    second = site.stage(f"text = ({place} / 'deep/left.txt').read_text()", address="evaluate@alpha")
    outcome = run(site.tree, second, around)
    assert outcome.code == 1 and outcome.said.startswith("FileNotFoundError: "), outcome.said
    assert outcome.said.endswith("/deep/left.txt'")


def test_a_file_of_the_machine_s_own_settings_is_named(site: Site) -> None:
    outcome, found = site.twice("""
for name in ("hostname", "machine-id", "resolv.config"):
    try: open(f"/etc/{name}").read()
    except OSError: pass
""")
    assert outcome.code == 0
    assert found == [
        f"train@alpha reads /etc/{name}, outside the repository" for name in ("hostname", "machine-id", "resolv.config")
    ]


def test_what_python_reads_of_the_machine_s_settings_by_itself_is_not_named(site: Site) -> None:
    outcome, found = site.twice("""
import getpass, mimetypes, pwd, ssl, zoneinfo
if os.path.exists("/etc/ssl/certs/ca-certificates.crt"):
    ssl.create_default_context().load_verify_locations("/etc/ssl/certs/ca-certificates.crt")
    open("/etc/ssl/certs/ca-certificates.crt").close()
mimetypes.init()
getpass.getuser(), pwd.getpwuid(os.getuid()), time.localtime(), zoneinfo.ZoneInfo("UTC"), Path.home()
for name in ("hosts", "passwd", "nsswitch.conf"):
    Path("/etc", name).read_text()
""")
    assert (outcome.code, found) == (0, []), site.log()


def test_a_sandbox_that_leaves_the_network_open_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """Landlock knows of TCP from its version 4 on."""
    monkeypatch.setattr("retrace.rebuild.box.landlock_version", lambda: 4)
    kinds: tuple[Kind, ...] = ("bubblewrap", "landlock", "view")
    assert [in_words(kind) for kind in kinds] == ["bubblewrap", "landlock", "view"]
    monkeypatch.setattr("retrace.rebuild.box.landlock_version", lambda: 3)
    assert [in_words(kind) for kind in kinds] == ["bubblewrap", "landlock, network open", "view"]


@pytest.fixture
def server() -> Iterator[tuple[int, list[str]]]:
    """The port of a server on this machine, and who has called it."""
    listener = socket.create_server(("127.0.0.1", 0))
    calls: list[str] = []

    def serve() -> None:
        while True:
            try:
                connection, address = listener.accept()
            except OSError:
                return
            calls.append(address[0])
            connection.sendall(b"weather")
            connection.close()

    threading.Thread(target=serve, daemon=True).start()
    yield listener.getsockname()[1], calls
    listener.close()


def test_a_call_over_the_network_is_named_and_a_sandbox_lets_none_through(
    site: Site, server: tuple[int, list[str]]
) -> None:
    port, calls = server
    outcome, found = site.twice(f'text = socket.create_connection(("127.0.0.1", {port}), 5).recv(99)')
    assert f"train@alpha calls 127.0.0.1:{port}" in found
    assert (outcome.code == 0) is bool(calls) is (site.kind == "view")


@pytest.mark.parametrize(
    "program",
    [
        "text = time.time_ns()",
        "text = random.random()",
        "import numpy; text = numpy.random.default_rng().normal()",
        "text = list({'a', 'b', 'c', 'd', 'e', 'f', 'g'})",
        "text = socket.gethostname()",
        "text = Path.cwd()",
        "text = Path.home()",
        "text = time.localtime(0).tm_hour",
        "OUT.touch(); text = OUT.stat().st_mode; OUT.unlink()",
        "text = len(os.sched_getaffinity(0))",
        "text = os.environ['RETRACE_WORKERS']",
        "text = os.environ['LC_ALL']",
    ],
    ids=[
        *(
            "clock",
            "random",
            "numpy",
            "hash seed",
            "host",
            "folder",
            "home",
            "time zone",
            "umask",
            "processors",
            "workers",
        ),
        "locale",
    ],
)
def test_a_result_that_hangs_on_what_must_not_matter_is_found(site: Site, program: str) -> None:
    outcome, found = site.twice(program)
    assert outcome.code == 0
    assert found == ["train@alpha is not deterministic: models/alpha.txt has other bytes when it runs again"]


def test_a_stage_that_fails_only_elsewhere_is_found_with_what_was_changed(site: Site) -> None:
    outcome, found = site.twice('assert "somebody else" not in str(Path.home()), "I want to go home"')
    assert outcome.code == 0
    [text] = found
    assert text.startswith("train@alpha ends with code 1 where another folder, home, host name, hash seed, ")
    assert text.endswith(" is set: AssertionError: I want to go home")


def test_a_host_name_that_cannot_be_changed_is_not_said_to_be_another(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "host name" in varied("bubblewrap").names and varied("bubblewrap").host
    monkeypatch.setattr("retrace.rebuild.conditions.may_rename_host", lambda kind: False)
    assert "host name" not in varied("view").names and varied("view").host is None


def test_a_machine_without_the_program_locale_has_the_plain_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    assert varied("bubblewrap").variables["LC_ALL"] == "C"


def test_a_last_line_of_any_length_is_searched_for_culprits(tmp_path: Path) -> None:
    """A file's name ends at 255 bytes, what a stage says does not."""
    site = Site.make(tmp_path, "view")
    assert culprits(f"KeyError: '{'x' * 500}' '\0' 'secret' '../home/prices.txt'", site.tree, site.declared()) == []
    assert culprits("FileNotFoundError: data/extra.txt", site.tree, site.declared()) == [
        "reads data/extra.txt, which it does not declare"
    ]


# What a stage may not do


@pytest.mark.parametrize("path", ["data/known.txt", "models/start.txt"])
def test_a_stage_cannot_write_through_its_view(site: Site, path: str) -> None:
    """Not even to what lies beside its outputs, where it may write."""
    site.write(path, "known\n")
    stage = site.stage(f'os.chmod("{path}", 0o644); open("{path}", "a").write("more")')
    stage = replace(stage, dependencies=tuple(dict.fromkeys((*stage.dependencies, path))))
    before = site.files()
    outcome = run(site.tree, stage, site.around())
    assert site.files() == before
    assert outcome.code == (0 if site.kind == "view" or "models" in path else 1), site.log()


def test_a_stage_that_runs_too_long_is_ended_with_all_that_it_started(site: Site) -> None:
    command = "echo begun > models/begun; sleep 600 & sleep 600"
    stage = site.declared(command=command, dependencies=("data/known.txt",))
    with pytest.raises(StageTimeout) as raised:
        run(site.tree, stage, site.around(timeout=1.5))
    assert str(raised.value) == (
        "train@alpha ran longer in its rebuild than the 0.025 minutes of its model's timeout_minutes and was stopped; "
        f"run this on a machine that is less busy; its log is {site.folder}/logs/train@alpha.log"
    )
    assert (site.folder / "site/views/train@alpha/models/begun").exists()
    assert not processes_in(site.folder)


def test_what_a_stage_leaves_running_ends_with_it(site: Site) -> None:
    outcome = site.run('subprocess.Popen(["sleep", "600"])')
    assert outcome.code == 0
    assert not processes_in(site.folder)


def test_a_stage_that_is_killed_is_told_by_its_signal(site: Site) -> None:
    assert site.run("os.kill(os.getpid(), 9)").code in (-9, 128 + 9)  # the shell, or the sandbox, may tell it for it


# When the machine is to blame


@pytest.mark.parametrize("program", ["OUT.write_bytes(os.urandom(64 << 20))", "sys.exit('bad luck')"])
def test_a_full_disk_says_nothing_of_the_stage(tmp_path: Path, program: str) -> None:
    """The log is on it, too: the stage cannot even say what it died of."""
    with small_disk(tmp_path / "small", 16) as place:
        site = Site.make(place, KINDS[0])
        if "exit" in program:
            (place / "ballast").write_bytes(bytes((16 << 20) - (900 << 10)))
        with pytest.raises(DiskFull, match="no space left on this machine while train@alpha was rebuilt; free some"):
            site.run(program)


def test_a_disk_that_fills_while_a_folder_is_copied_is_told_and_nothing_else_is(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data/big").write_bytes(bytes(4 << 20))
    with small_disk(tmp_path / "small", 2) as place, pytest.raises(DiskFull) as raised, disk_full_told(tmp_path):
        view.place(tmp_path / "data", place / "data", linked=False)
    assert str(raised.value) == f"no space left on this machine; free some below {tmp_path} and run this again"
    for other in (PermissionError(13, "x"), shutil.Error([("a", "b", "[Errno 13] x")])):
        with pytest.raises(type(other)), disk_full_told(tmp_path):
            raise other


def test_a_sandbox_that_cannot_be_made_says_nothing_of_the_stage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/bwrap").write_text("#!/bin/sh\necho 'bwrap: No permissions to create new namespace' >&2; exit 1\n")
    (tmp_path / "bin/bwrap").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    site = Site.make(tmp_path / "site", "bubblewrap")
    with pytest.raises(SandboxFailed) as raised:
        site.run("")
    assert str(raised.value) == (
        "train@alpha could not be shut in: bwrap: No permissions to create new namespace; see whether this machine can "
        "do it at all"
    )


def test_an_interpreter_that_is_reached_over_links_can_be_reached_in_a_sandbox(tmp_path: Path) -> None:
    """As uv makes it: the environment's python leads to `cpython-3.11`, and that to `cpython-3.11.7`."""
    real, minor, environment = tmp_path / "cpython-3.11.7", tmp_path / "cpython-3.11", tmp_path / "environment"
    (real / "bin").mkdir(parents=True)
    (real / "bin/python3.11").touch()
    minor.symlink_to(real)
    (environment / "bin").mkdir(parents=True)
    (environment / "bin/python").symlink_to(minor / "bin/python3.11")
    (environment / "pyvenv.cfg").write_text(f"home = {real}/bin\n")
    assert set(interpreter_folders(environment)) == {environment, minor, real}
    (environment / "pyvenv.cfg").write_text("home = /usr/bin\n")
    (environment / "bin/python").unlink()
    (environment / "bin/python").symlink_to("/usr/bin/python3")
    assert interpreter_folders(environment) == (environment,)


# What a view holds


@pytest.mark.parametrize("linked", [True, False])
@pytest.mark.parametrize("order", [1, -1])
def test_a_dependency_may_hold_another(tmp_path: Path, linked: bool, order: int) -> None:
    site = Site.make(tmp_path, "view")
    site.write("pipeline/__pycache__/other.pyc", "stale")
    (site.tree / "pipeline/other.py").chmod(0o444)
    stage = site.declared(dependencies=("pipeline", "pipeline/other.py")[::order], outputs=("out.txt",))
    view.make(site.tree, stage, tmp_path / "view", linked)
    found = {path.relative_to(tmp_path / "view").as_posix() for path in (tmp_path / "view").rglob("*.*")}
    assert found == {"pipeline/__init__.py", "pipeline/other.py", "params.yaml"}
    place = tmp_path / "view/pipeline/other.py"
    assert not place.samefile(site.tree / "pipeline/other.py"), "it lies in the folder of an output"


def test_a_view_costs_no_copies_in_a_sandbox(tmp_path: Path) -> None:
    site = Site.make(tmp_path, "view")
    view.make(site.tree, site.stage(""), tmp_path / "view", linked=True)
    assert (tmp_path / "view/data/known.txt").samefile(site.tree / "data/known.txt")


def test_a_dependency_that_is_not_there_is_named(tmp_path: Path) -> None:
    site = Site.make(tmp_path, "view")
    with pytest.raises(
        NotThere, match="^train@alpha depends on data/absent.csv, which is not in .*; `retrace data pul"
    ):
        view.make(site.tree, site.declared(dependencies=("data/absent.csv",)), tmp_path / "view", True)


@pytest.mark.parametrize(
    ("path", "kind"), [("/etc/passwd", "dependencies"), ("../x", "outputs"), ("a/../../x", "outputs"), (".", "outputs")]
)
def test_a_path_that_leads_out_of_the_repository_is_refused(path: str, kind: str) -> None:
    whole: dict[str, tuple[str, ...]] = {"dependencies": (), "outputs": (), kind: (path,)}
    with pytest.raises(PipelineError, match=f"^train@alpha names '{path}', which is not a path inside the repository"):
        Declared("train@alpha", "true", whole["dependencies"], {}, whole["outputs"])
    with pytest.raises(PipelineError, match="'../x@alpha' is no name of a stage"):
        Declared("../x@alpha", "true", (), {}, ())


@pytest.mark.parametrize("entry", [{}, {"cmd": "x", "outs": [{"path": "y"}]}, {"cmd": "x", "deps": ["y"]}, "x", None])
def test_an_entry_of_a_lock_that_dvc_did_not_write_is_refused(entry: object) -> None:
    with pytest.raises(PipelineError, match="^dvc.lock of now: the entry of train@alpha is not one that DVC wrote"):
        of_lock({"train@alpha": entry}, "dvc.lock of now")  # type: ignore[dict-item]


# Parameters


def test_every_value_stands_as_it_was_written(tmp_path: Path) -> None:
    text = (
        "a: 0.10  # one\nb: {c: 1e-3, d: 'on', e: off}\nf:\n- 007\n- \"\\u00e9\"\n- é\n"
        "g: |\n  two\n  lines\nh: >-\n  folded\n  text\n"
    )
    assert cut(text, ["g", "a", "f"]) == 'g: |\n  two\n  lines\na: 0.10\nf:\n- 007\n- "é"\n- é\n'
    assert cut(text, ["b.d", "b.c"]) == "b: {d: 'on', c: 1e-3}\n"
    assert cut(text, ["b.c", "b"]) == "b: {c: 1e-3, d: 'on', e: off}\n"
    assert cut(text, ["b", "b.c"]) == "b: {c: 1e-3, d: 'on', e: off}\n"


def test_what_is_not_there_is_left_out() -> None:
    assert cut("a: 1\nb: {c: 2}\n", ["x", "b.x.y", "a.z"]) == "b: {}\na: {}\n"


def test_anchors_and_merges_hold_in_what_is_left() -> None:
    text = "base: &base {rate: 1, depth: 2}\nalpha: {<<: *base, depth: 3}\nbeta: *base\nlist: [*base, *base]\n"
    assert yaml.safe_load(cut(text, ["alpha"])) == {"alpha": {"rate": 1, "depth": 3}}
    assert yaml.safe_load(cut(text, ["alpha.rate", "alpha.depth"])) == {"alpha": {"rate": 1, "depth": 3}}
    assert yaml.safe_load(cut(text, ["beta", "list"])) == {
        "beta": {"rate": 1, "depth": 2},
        "list": [{"rate": 1, "depth": 2}] * 2,
    }


def test_json_stays_json() -> None:
    text = json.dumps({"a": {"b": [1, 2.5, None, True, "é\n" * 99]}, "c": 1}, indent=1)
    assert json.loads(cut(text, ["a.b"])) == {"a": {"b": [1, 2.5, None, True, "é\n" * 99]}}
    assert json.loads(cut(text, ["x"])) == {}


def test_a_file_of_another_form_is_seen_whole(tmp_path: Path) -> None:
    site = Site.make(tmp_path, "view")
    site.write("more.toml", "[a]\nb = 1\n")
    stage = site.stage("KeyError", parameters={"more.toml": ("a",)})
    view.make(site.tree, stage, tmp_path / "view", True)
    assert (tmp_path / "view/more.toml").read_text() == "[a]\nb = 1\n"
    assert culprits("KeyError: 'b'", site.tree, stage) == []


def test_a_cut_of_the_demo_s_parameters_is_what_dvc_records(tmp_path: Path) -> None:
    text = (ROOT / "params.yaml").read_text()
    models = yaml12.load(text)["models"]
    for model, settings in models.items():
        for key, value in settings.items():
            assert yaml12.load(cut(text, [f"models.{model}.{key}"])) == {"models": {model: {key: value}}}


# Names of folders


def test_a_folder_has_the_name_that_dvc_gives_it(project: Project) -> None:
    """The partitions were added by DVC itself."""
    pointer = yaml.safe_load(project.mirror.read("refs/heads/data", "data/raw/events.dvc") or b"")
    oid = pointer["outs"][0]["md5"]
    stored = project.settings.var / "remote/files/md5" / oid[:2] / oid[2:]
    listed = files_of(stored.read_bytes(), oid)
    assert listed is not None and sorted(listed) == ["2013-01.parquet", "2013-02.parquet", "2013-03.parquet"]
    assert directory_oid(listed) == oid
    pull_data(project.settings)
    assert oid_of(project.root / "data/raw/events") == oid


def test_a_list_of_files_that_leads_out_of_its_folder_is_none() -> None:
    for path in ("../x", "/etc/x", "a/../../x"):
        content = json.dumps([{"md5": "a" * 32, "relpath": path}]).encode()
        assert files_of(content, f"{md5_of(content)}.dir") is None
    assert files_of(b"[]", "a" * 32 + ".dir") is None


# Today's pipeline


def spoil(project: Project, stage: str, line: str) -> None:
    """Let a stage of the toy begin with this line."""
    program = project.root / "pipeline/stage.py"
    code = program.read_text()
    head = f"def {stage}(model: str) -> None:\n"
    assert head in code
    program.write_text(code.replace(head, f"{head}    {line}\n"))


def test_the_toy_s_stages_are_as_they_should_be(project: Project) -> None:
    """A report of an earlier time, which somebody has committed, is none of today's."""
    spoil(project, "features", 'assert json.loads(Path(f"reports/{model}/validation.json").read_text())["passed"]')
    (project.root / "reports/alpha").mkdir(parents=True)
    (project.root / "reports/alpha/validation.json").write_text('{"passed": false}')
    git(project.root, "add", "-f", "reports")
    project.commit()
    before = project.refs()
    told: list[str] = []
    assert check_stages(project.settings, told.append) == []
    assert sorted(told) == sorted(f"runs {name}@{model} twice" for name in STAGES for model in ("alpha", "beta"))
    assert project.refs() == before
    assert not list(project.settings.workspaces.glob("*"))
    assert not list(project.settings.logs.glob("doctor*"))


def test_what_is_wrong_with_today_s_stages_is_told_and_what_comes_after_a_broken_one_is_left_out(
    project: Project,
) -> None:
    spoil(project, "features", 'if model == "alpha": open("dvc.yaml").read()')
    spoil(
        project, "train", 'if model == "beta": print(time.time_ns(), file=open(f"models/{model}.skops", "w")); return'
    )
    project.commit()
    told: list[str] = []
    found = check_stages(project.settings, told.append)
    logs = project.settings.logs / f"doctor--stages--{os.getpid()}"
    assert found == [
        f"features@alpha reads dvc.yaml, which it does not declare (log: {logs}/features@alpha.log)",
        "features@alpha ends with code 1: FileNotFoundError: [Errno 2] No such file or directory: 'dvc.yaml' "
        f"(log: {logs}/features@alpha.log)",
        "train@beta is not deterministic: models/beta.skops has other bytes when it runs again "
        f"(log: {logs}/train@beta.log)",
    ]
    assert "FileNotFoundError" in (logs / "features@alpha.log").read_text()
    assert not list(logs.glob(f"{UNFINISHED}*"))
    assert "runs train@alpha twice" not in told and "runs evaluate@beta twice" in told


def test_a_project_s_own_test_says_whether_a_stage_is_deterministic(project: Project) -> None:
    pull_data(project.settings)
    before = {path: path.read_bytes() for path in project.root.glob("data/raw/events/*")}
    logs = project.settings.logs / f"views-{os.getpid()}"
    assert_deterministic("validate@alpha", project.root)
    with pytest.raises(AssertionError, match="^dvc.yaml has no stage 'fit@alpha'; it has .*validate@alpha"):
        assert_deterministic("fit@alpha", project.root)
    with pytest.raises(NotThere, match="^train@alpha depends on data/features/alpha, which is not in"):
        assert_deterministic("train@alpha", project.root)
    assert not logs.exists(), "nothing was found of a stage"
    spoil(project, "validate", "open('/proc/1/cmdline'); open('dvc.lock')")
    with pytest.raises(
        AssertionError, match="^validate@alpha reads dvc.lock, which it does not declare\nvalidate@alpha"
    ) as raised:
        assert_deterministic("validate@alpha", project.root)
    assert str(raised.value).endswith(f"\nits log is {logs}/validate@alpha.log")
    assert "dvc.lock" in (logs / "validate@alpha.log").read_text()
    assert {path: path.read_bytes() for path in project.root.glob("data/raw/events/*")} == before
    assert not list(project.settings.var.glob("views-*"))


def test_a_project_s_own_test_fails_for_a_stage_whose_bytes_change(project: Project) -> None:
    pull_data(project.settings)
    spoil(project, "validate", 'write(f"reports/{model}/validation.json", str(time.time_ns())); return')
    with pytest.raises(AssertionError) as raised:
        assert_deterministic("validate@alpha", project.root)
    assert str(raised.value).splitlines()[0] == (
        "validate@alpha is not deterministic: reports/alpha/validation.json has other bytes when it runs again"
    )


# Where it all happens


def without_root() -> list[str]:
    """What a command begins with, to have no more rights than the owner of the files here, who may be root."""
    if os.geteuid() != 0:
        return []
    command = ["unshare", "--user", "--map-user=1000", "--map-group=1000"]
    if subprocess.run([*command, "true"], capture_output=True, check=False).returncode != 0:
        pytest.skip("this machine makes no namespace of users, and the tests run as root")
    return command


LEAVES_READ_ONLY = """
import os
from pathlib import Path
from retrace.config import Settings
from retrace.workspace import temporary_folder

settings = Settings.load(Path.cwd(), {})
for place in ("open", "closed"):
    with temporary_folder(settings, "views") as folder:
        (folder / "home/deep").mkdir(parents=True)
        (folder / "home/deep/file").touch()
        for part in ("home/deep", "home", "") if place == "closed" else ("home",):
            (folder / part).chmod(0o300 if part == "home" else 0o500)
try:
    Path("mine/new").touch()
except PermissionError:
    print(sorted(path.name for path in settings.var.iterdir()))
"""


def test_a_user_without_root_s_rights_gets_rid_of_read_only_folders(project: Project) -> None:
    """Those that a stage leaves, and those of a process that was killed."""
    for place in (
        project.root / "mine",
        project.settings.var / f"views-{2**22 + 1}/deep",
    ):  # no process has this number
        place.mkdir(parents=True)
        (place / "file").touch()
        place.chmod(0o500)
    before = {path.name for path in project.settings.var.iterdir()} - {f"views-{2**22 + 1}"}
    told = subprocess.run(
        [*without_root(), sys.executable, "-P", "-c", LEAVES_READ_ONLY],
        cwd=project.root,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert told.stdout.strip() == str(sorted(before)), told.stderr
