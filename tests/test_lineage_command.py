"""`retrace lineage`: what a version was made of and what it led to, against dvc.lock, the manifests and git itself."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from checkouts import retrace
from handmade import registered
from projects import Project, git

from retrace import versions
from retrace.promote import promote_version, roll_back
from retrace.trace import NoLineage, trace
from retrace.trace_text import WIDTH, lineage_lines, mermaid_text, printable
from retrace.versions import UnknownVersion

pytestmark = pytest.mark.usefixtures("forked")

HOSTILE = 'ugly "] --> x`code` | %%{init}%% <b>\x1b[31m\u202ered\x07 #quot; $x$'
COLUMNS = {"data/features/alpha": {"size": [["data/raw/events", "moment"], ["data/raw/events", "size"]]}}
FORMATS = ("text", "json", "mermaid")


@pytest.fixture(scope="module")
def story(with_a_version: Project, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """alpha@v1; v2, of the same data, promoted; v3, of older data; v4, of replaced and new data, with columns and a
    plot, promoted by hand; and rolled back to v2."""
    project = with_a_version.copy(tmp_path_factory.mktemp("story") / "project")
    project.edit_params(lambda params: params["models"]["alpha"]["train"].update(quality=0.9), "better `quality`")
    project.retrain("alpha", "second")
    project.retrain("alpha", "older", as_of="2013-03-01", backfill=True)
    project.fill("2013-02", rows=12)
    project.fill("2013-04")
    project.ingest("2013-05-01", since="2013-02-01")
    for rows in (11, 10):  # January changes, and is what it was again
        project.fill("2013-01", rows)
        project.ingest("2013-02-01", since="2013-01-01")
    write_more(project)
    project.edit_params(lambda params: params["models"]["alpha"]["train"].update(quality=0.7), HOSTILE)
    project.retrain("alpha", "fourth")
    list(as_person(project, promote_version(project.settings, "alpha@v4", HOSTILE)))
    list(as_person(project, roll_back(project.settings, "alpha", "v4 was a mistake")))
    return project


def as_person(project: Project, lines: Iterator[str]) -> Iterator[str]:
    """What promotion writes to git, without MLflow, to which the rest of it goes."""
    yield next(lines)


def write_more(project: Project) -> None:
    """Let the toy's features tell their source columns, and its evaluation write a curve."""
    pipeline, program = project.root / "dvc.yaml", project.root / "pipeline/stage.py"
    text = pipeline.read_text()
    text = text.replace(
        "        - data/features/${key}\n  train",
        "        - data/features/${key}\n        - reports/${key}/columns.json: {cache: false}\n  train",
    )
    text += "      plots:\n        - plots/${key}/curve.csv: {cache: false}\n"
    pipeline.write_text(text)
    code = program.read_text()
    code = code.replace(
        "def train(", f"    write(f'reports/{{model}}/columns.json', json.dumps({COLUMNS!r}))\n\n\ndef train("
    )
    rows = "".join(f"{x},{x * x}|`\n" for x in range(40))
    code = code.replace(
        "    print(f", f"    write(f'plots/{{model}}/curve.csv', {'x,y' + chr(10) + rows!r})\n    print(f", 1
    )
    program.write_text(code)


def lines(project: Project, name: str, form: str = "text", **options: bool) -> list[str]:
    chosen = {"up": True, "down": True, "columns": False} | options
    found = lineage_lines(project.settings, name, form=form, **chosen)
    return [line for text in found for line in text.split("\n")]


def told(project: Project, name: str, **options: bool) -> dict[str, Any]:
    return dict(json.loads("\n".join(lines(project, name, "json", **options))))


def lock_of(project: Project, name: str) -> dict[str, dict[str, Any]]:
    stages = yaml.safe_load(git(project.root, "show", f"{name}:dvc.lock"))["stages"]
    return {address: entry for address, entry in stages.items() if address.endswith("@alpha")}


def event_of(project: Project, name: str, job: str) -> dict[str, Any]:
    return dict(json.loads(git(project.root, "show", f"{name}:lineage/alpha/{job}.json")))


def manifest_of(project: Project, commit: str) -> list[str]:
    return git(project.root, "show", f"{commit}:data/raw/events.manifest").splitlines()


def named(path: str) -> str:
    return path.removeprefix("data/") if not path.startswith("data/raw/") else path


def brought_by(project: Project, data: str) -> dict[str, str]:
    """A line of the manifest -> the data commit that added it, by comparing each commit with the one before."""
    found, before = {}, set()
    for commit in git(project.root, "rev-list", "--reverse", "--first-parent", data).split():
        now = set(manifest_of(project, commit))
        found |= dict.fromkeys(now - before, commit)
        before = now
    return found


VERSIONS = [f"alpha@v{number}" for number in range(1, 5)]


@pytest.mark.parametrize("name", VERSIONS)
def test_json_has_every_output_and_every_dependency_of_the_lock(story: Project, name: str) -> None:
    up, lock = told(story, name)["up"], lock_of(story, name)
    assert len(lock) == 4
    jobs = {job["run"]: job for job in up["jobs"]}
    datasets = {(item["dataset"], item["version"]): item for item in up["datasets"]}
    for address, entry in lock.items():
        run = event_of(story, name, address.partition("@")[0])["run"]["runId"]
        job = jobs[run]
        assert job["stage"] == address
        assert {(out["path"], out["md5"]) for out in job["outputs"]} == {(o["path"], o["md5"]) for o in entry["outs"]}
        for out in entry["outs"]:
            dataset = datasets[named(out["path"]), out["md5"]]
            assert dataset["run"] == run
            assert sum(file["size"] for file in dataset["files"]) == out["size"]
            assert all(len(file["sha256"]) == 64 for file in dataset["files"])
        deps = {(named(dep["path"]), dep["md5"]) for dep in entry["deps"] if not dep["path"].startswith("pipeline/")}
        read = {
            (item["dataset"], item["version"]) for item in job["reads"] if not item["dataset"].startswith("snapshot/")
        }
        assert read == deps
        files = {item["path"]: item["md5"] for item in job["inputs"]}
        assert all(files[dep["path"]] == dep["md5"] for dep in entry["deps"] if dep["path"].startswith("pipeline/"))


@pytest.mark.parametrize("name", VERSIONS)
def test_json_has_every_partition_and_what_brought_it(story: Project, name: str) -> None:
    data = git(story.root, "for-each-ref", "--format=%(contents)", f"refs/tags/{name}")
    commit = re.search(r"^Retrace-Data: (\w{40})$", data, re.M)[1]
    pointer = yaml.safe_load(git(story.root, "show", f"{name}:data/raw/events.dvc"))["outs"][0]["md5"]
    up = told(story, name)["up"]
    [raw] = [item for item in up["datasets"] if item["version"] == pointer]
    found = [f"{part['path']} {part['md5']} {part['sha256']} {part['rows']}" for part in raw["partitions"]]
    assert found == manifest_of(story, name) == manifest_of(story, commit)
    commits = brought_by(story, commit)
    for line, part in zip(found, raw["partitions"], strict=True):
        brought = json.loads(git(story.root, "show", f"{commits[line]}:data/raw/ingest.json"))
        assert part["ingestion"]["commit"] == commits[line]
        assert part["ingestion"]["run"] == brought["run"]["runId"]
    assert up["data"]["commit"] == commit


def partition(project: Project, name: str, month: str) -> dict[str, Any]:
    [raw] = [item for item in told(project, name)["up"]["datasets"] if item["dataset"] == "data/raw/events"]
    return dict(next(part for part in raw["partitions"] if part["path"].endswith(f"{month}.parquet")))


def test_a_partition_that_was_replaced_came_by_the_later_commit(story: Project) -> None:
    before, after = (partition(story, name, "2013-02") for name in ("alpha@v1", "alpha@v4"))
    assert (before["rows"], after["rows"]) == (10, 12)
    assert before["ingestion"]["commit"] != after["ingestion"]["commit"]
    january = [partition(story, name, "2013-01") for name in ("alpha@v1", "alpha@v4")]
    assert january[0]["md5"] == january[1]["md5"]
    assert january[0]["ingestion"]["commit"] != january[1]["ingestion"]["commit"]


def test_the_tree_of_a_version(story: Project) -> None:
    runs = {job: event_of(story, "alpha@v1", job)["run"]["runId"][-8:] for job in (*STAGES, "snapshot")}
    md5s = {out["path"]: out["md5"][:12] for entry in lock_of(story, "alpha@v1").values() for out in entry["outs"]}
    sizes = {out["path"]: out["size"] for entry in lock_of(story, "alpha@v1").values() for out in entry["outs"]}
    raw = yaml.safe_load(git(story.root, "show", "alpha@v1:data/raw/events.dvc"))["outs"][0]["md5"][:12]
    code, data = git(story.root, "rev-parse", "refs/runs/alpha/first~5^1", "refs/runs/alpha/first~5^2").split()
    ingest = json.loads(git(story.root, "show", f"{data}:data/raw/ingest.json"))["run"]["runId"][-8:]
    model, features, metrics = "models/alpha.skops", "data/features/alpha", "metrics/alpha.json"
    validation = "reports/alpha/validation.json"
    found = lines(story, "alpha@v1", down=False)
    assert found[0] == "alpha@v1"
    assert found[2:4] == [f"  code {code[:12]}  project", f"  data {data[:12]}  through 2013-03-31"]
    assert found[6:] == [
        f"├─ models/alpha.skops                   {md5s[model]}  train {runs['train']}, {sizes[model]} bytes",
        f"│  └─ features/alpha                    {md5s[features]}  features {runs['features']}, 3 files, 192 bytes",
        f"│     ├─ data/raw/events                {raw}  ingest {ingest}",
        "│     │  └─ 3 partitions                              2013-01 .. 2013-03, 30 rows",
        f"│     ├─ reports/alpha/validation.json  {md5s[validation]}  validate {runs['validate']}, "
        f"{sizes[validation]} bytes",
        "│     │  ├─ data/raw/events                           as above",
        f"│     │  └─ snapshot/alpha                            snapshot {runs['snapshot']}",
        f"│     │     ├─ code                     {code[:12]}  project",
        f"│     │     └─ data                     {data[:12]}  through 2013-03-31",
        "│     └─ snapshot/alpha                               as above",
        f"└─ metrics/alpha.json                   {md5s[metrics]}  evaluate {runs['evaluate']}, {sizes[metrics]} bytes",
        "   ├─ models/alpha.skops                              as above",
        "   └─ features/alpha                                  as above",
    ]


STAGES = ("validate", "features", "train", "evaluate")


def test_what_a_version_did_not_make_again_is_of_the_older_run_and_its_code(story: Project) -> None:
    jobs = {job["stage"]: job for job in told(story, "alpha@v2")["up"]["jobs"] if job["stage"]}
    assert {stage: job["carriedFrom"] for stage, job in jobs.items()} == {
        "validate@alpha": "alpha@v1",
        "features@alpha": "alpha@v1",
        "train@alpha": None,
        "evaluate@alpha": None,
    }
    for stage, job in jobs.items():
        shown = json.loads(git(story.root, "show", job["event"]))
        assert shown == event_of(story, job["carriedFrom"] or "alpha@v2", stage.partition("@")[0])
    runs = ("first~5", "second~3")  # the snapshots: the stages and the gate came after them
    first, second = (git(story.root, "rev-parse", f"refs/runs/alpha/{run}^1") for run in runs)
    assert first != second
    up = told(story, "alpha@v2")["up"]
    assert up["code"] == {"commit": second, "subject": "better `quality`"}
    read = {item["version"] for item in jobs["features@alpha"]["reads"] if item["dataset"] == "snapshot/alpha"}
    [snapshot] = [item for item in up["datasets"] if item["version"] in read]
    assert snapshot["snapshot"]["code"] == first
    shown = lines(story, "alpha@v2")
    run = event_of(story, "alpha@v1", "features")["run"]["runId"][-8:]
    assert any(f"features {run} of alpha@v1" in line for line in shown)
    assert any(
        re.search(rf"└─ code +{first[:12]}  project$", line) or f"{first[:12]}  project" in line for line in shown
    )


def test_a_backfill_has_the_older_data_alone(story: Project) -> None:
    up = told(story, "alpha@v3")["up"]
    assert up["data"]["backfill"] is True
    assert up["data"]["through"] == "2013-03-01T00:00:00+00:00"
    paths = [part["path"] for item in up["datasets"] for part in item["partitions"] or ()]
    assert paths == ["data/raw/events/2013-01.parquet", "data/raw/events/2013-02.parquet"]
    assert any("through 2013-02-28  (older than the newest then)" in line for line in lines(story, "alpha@v3"))


def test_who_held_an_alias_since_when_until_when_and_why(story: Project) -> None:
    tags = git(story.root, "for-each-ref", "--format=%(*objectname)", "refs/tags/alpha#*").split()
    assert tags == [git(story.root, "rev-parse", f"alpha@v{number}^{{commit}}") for number in (1, 2, 4, 2)]
    held = {name: told(story, name)["down"]["assignments"] for name in VERSIONS}
    names = {name: [item["name"] for item in found] for name, found in held.items()}
    assert names == {
        "alpha@v1": ["alpha#champion#1"],
        "alpha@v2": ["alpha#champion#2", "alpha#champion#4"],
        "alpha@v3": [],
        "alpha@v4": ["alpha#champion#3"],
    }
    [by_gate], [second, back], [by_hand] = held["alpha@v1"], held["alpha@v2"], held["alpha@v4"]
    ends = [(item["until"]["name"], item["until"]["version"]) for item in (by_gate, second, by_hand)]
    assert ends == [
        ("alpha#champion#2", "alpha@v2"),
        ("alpha#champion#3", "alpha@v4"),
        ("alpha#champion#4", "alpha@v2"),
    ]
    assert back["until"] is None
    assert [item["job"] for item in (by_gate, second, by_hand, back)] == [None, None, "alpha.promote", "alpha.rollback"]
    assert (back["because"], by_hand["because"]) == ("v4 was a mistake", HOSTILE)
    assert [lines(story, name)[0] for name in VERSIONS] == ["alpha@v1", "alpha@v2  champion", "alpha@v3", "alpha@v4"]


def test_which_versions_carry_its_results(story: Project) -> None:
    found = {name: told(story, name)["down"]["carriedOverBy"] for name in VERSIONS}
    assert found["alpha@v1"] == [{"version": "alpha@v2", "jobs": ["features", "validate"]}]
    assert found["alpha@v4"] == []
    assert any(
        "alpha@v2" in line and "carries over its features, validate" in line for line in lines(story, "alpha@v1")
    )


def test_each_result_is_told_of_with_the_version_that_made_it(story: Project, tmp_path: Path) -> None:
    project = story.copy(tmp_path / "project")
    mirror = project.mirror
    second = versions.find(mirror, "alpha@v2")
    commit = mirror.write_commit(second.commit, {"more.txt": b"more"}, [second.commit], "all that v2 has, and more")
    told_by_tag = mirror.message(second.ref).partition("\n\n")[2].replace("Retrace-Run: second", "Retrace-Run: more")
    versions.create(mirror, "alpha", commit, "more", dict(line.split(": ", 1) for line in told_by_tag.splitlines()))
    assert told(project, "alpha@v1")["down"]["carriedOverBy"] == [
        {"version": name, "jobs": ["features", "validate"]} for name in ("alpha@v2", "alpha@v5")
    ]
    own = ["evaluate", "snapshot", "train"]
    assert told(project, "alpha@v2")["down"]["carriedOverBy"] == [{"version": "alpha@v5", "jobs": own}]


def test_what_the_gate_said(story: Project) -> None:
    said = {name: told(story, name)["down"]["gate"] for name in VERSIONS}
    assert [said[name]["promoted"] for name in VERSIONS] == [True, True, False, False]
    event = json.loads(git(story.root, "show", "refs/runs/alpha/older:lineage/alpha/gate.json"))
    assert said["alpha@v3"]["findings"] == event["run"]["facets"]["retrace"]["findings"]
    assert any("a backfill never promotes" in line for line in lines(story, "alpha@v3", up=False))


def test_one_direction_alone(story: Project) -> None:
    up, down = (told(story, "alpha@v1", up=up, down=not up) for up in (True, False))
    assert (up["down"], down["up"]) == (None, None)
    assert {**up, "down": down["down"]} == told(story, "alpha@v1")
    assert "led to:" not in lines(story, "alpha@v1", down=False)
    assert not any("models/" in line for line in lines(story, "alpha@v1", up=False))
    assert not any("champion" in line for line in lines(story, "alpha@v1", "mermaid", down=False))
    assert not any("features" in line for line in lines(story, "alpha@v3", "mermaid", up=False))


def test_columns_are_those_that_the_stage_declared(story: Project) -> None:
    told_lines = lines(story, "alpha@v4", columns=True)
    place = next(number for number, line in enumerate(told_lines) if line.startswith("columns of features/alpha "))
    assert told_lines[place + 1 :] == ["  size  data/raw/events: moment, size"]
    [columns] = [item["columns"] for item in told(story, "alpha@v4")["up"]["datasets"] if item["columns"]]
    assert columns == COLUMNS["data/features/alpha"]
    assert "columns: not known" in lines(story, "alpha@v1", columns=True)[-1]


@pytest.mark.parametrize("name", [*VERSIONS, "alpha@champion", "alpha@latest"])
def test_a_version_is_found_as_everywhere(story: Project, name: str) -> None:
    assert trace(story.git, name).version == versions.find(story.git, name)


@pytest.mark.parametrize(
    "name", ["", "alpha@v5", "alpha@v01", "alpha", "alpha@", "beta@v1", "alpha@none", "*@v1", "alpha@v*", "-x@v1"]
)
def test_a_version_that_there_is_not(story: Project, name: str) -> None:
    with pytest.raises(UnknownVersion):
        lines(story, name)


def test_a_version_that_retrace_did_not_make_is_told_of(project: Project) -> None:
    git(project.root, "tag", "-a", "-m", "by hand", "alpha@v1", "main")
    with pytest.raises(NoLineage, match="alpha@v1 has no events"):
        lines(project, "alpha@v1")
    registered(project, "by hand")
    git(project.root, "tag", "-a", "-m", "by hand", "alpha@v3", "alpha@v2^{commit}")
    with pytest.raises(NoLineage, match="alpha@v3"):
        lines(project, "alpha@v3")


def forge(project: Project, change: Callable[[dict[str, Any]], object], **trailers: str) -> None:
    """A version alpha@v9 whose snapshot's event, or whose tag, somebody has forged."""
    told_event = event_of(project, "alpha@v1", "snapshot")
    change(told_event["run"]["facets"]["retrace"])
    mirror = project.mirror
    head = versions.find(mirror, "alpha@v1").commit
    changes: dict[str, bytes | str | None] = {"lineage/alpha/snapshot.json": json.dumps(told_event).encode()}
    commit = mirror.write_commit(head, changes, [head], "forged")
    text = mirror.message("refs/tags/alpha@v1")
    for key, value in trailers.items():
        text = re.sub(rf"(?m)^{key.replace('_', '-')}: .*$", f"{key.replace('_', '-')}: {value}", text)
    git(project.root, "fetch", "-q", str(project.settings.mirror), commit)
    git(project.root, "tag", "-f", "-a", "-m", text, "alpha@v9", commit)


FORGED: list[Callable[[dict[str, Any]], object]] = [
    lambda facts: facts.update(code="--output=owned"),
    lambda facts: facts.update(data="x\nHEAD"),
    lambda facts: facts.pop("data"),
    lambda facts: facts.update(reads=[{"dataset": "data/raw/x\x1b\nHEAD", "version": "1", "run": None}]),
    lambda facts: facts.update(reads=[{"dataset": "data/raw/none", "version": "1", "run": None}]),
    lambda facts: facts.update(reads="none"),
]


@pytest.mark.parametrize("change", FORGED)
def test_a_forged_event_reaches_no_command_and_no_terminal(
    story: Project, tmp_path: Path, change: Callable[[dict[str, Any]], object]
) -> None:
    project = story.copy(tmp_path / "project")
    forge(project, change)
    try:
        shown = lines(project, "alpha@v9")
    except NoLineage as error:
        shown = [str(error)]
    assert all(line.isprintable() for line in shown)
    assert not list(project.root.rglob("owned"))


def test_a_forged_ref_of_a_run_reaches_no_command(story: Project, tmp_path: Path) -> None:
    project = story.copy(tmp_path / "project")
    forge(project, lambda facts: None, Retrace_Run_Ref=f"--upload-pack=touch {tmp_path}/owned;")
    git(tmp_path, "clone", "-q", str(project.root), "clone")
    settings = project.settings.model_copy(update={"root": tmp_path / "clone", "var": tmp_path / "var"})
    assert told(Project(tmp_path / "clone", settings), "alpha@v9")["down"]["gate"] is None
    assert not (tmp_path / "owned").exists()


@pytest.mark.parametrize("name", VERSIONS)
def test_what_people_wrote_is_shown_as_text(story: Project, name: str) -> None:
    for form in ("text", "mermaid"):
        shown = lines(story, name, form, columns=True)
        assert all(line.isprintable() for line in shown)
        assert form == "mermaid" or max(map(len, shown)) <= WIDTH
    assert any("\\x1b[31m\\u202ered" in line for line in lines(story, "alpha@v4"))


@pytest.mark.parametrize("name", VERSIONS)
def test_the_flowchart_is_one_that_mermaid_reads(story: Project, name: str) -> None:
    head, *body = lines(story, name, "mermaid")
    assert head == "flowchart LR"
    label = r'"(?:[\w ./:,+()=-]|#\d+;|<br/>)+"'
    nodes = [
        re.fullmatch(rf"  (n\d+)(?:\[{label}\]|\[\({label}\)\]|\(\[{label}\]\)|\{{\{{{label}\}}\}})", line)
        for line in body
    ]
    edges = [re.fullmatch(rf"  (n\d+) (?:-->|-\. {label} \.->) (n\d+)", line) for line in body]
    assert all(bool(node) != bool(edge) for node, edge in zip(nodes, edges, strict=True))
    declared = [node[1] for node in nodes if node]
    ends = {end for edge in edges if edge for end in edge.groups()}
    assert len(declared) == len(set(declared))
    assert ends == set(declared)
    assert len([edge[0] for edge in edges if edge]) == len({edge[0] for edge in edges if edge})


def test_the_flowchart_has_a_node_for_each_dataset_and_job_on_the_way(story: Project) -> None:
    chart = "\n".join(lines(story, "alpha@v2", "mermaid", down=False))
    up = told(story, "alpha@v2")["up"]
    on_the_way = reached(up)
    for job in up["jobs"]:
        assert (f"run {job['run'][-8:]}" in chart) == (job["run"] in on_the_way), job["job"]
    assert chart.count("partitions") == len({item["version"] for item in up["datasets"] if item["partitions"]})
    assert "of alpha#64;v1" in chart


def reached(up: dict[str, Any]) -> set[str]:
    jobs = {job["run"]: job for job in up["jobs"]}
    found, waiting = set(), [up["registration"]]
    while waiting:
        run = waiting.pop()
        if run in jobs and run not in found:
            found.add(run)
            waiting += [read["run"] for read in jobs[run]["reads"]]
    return found


@pytest.mark.parametrize("text", ["a\nb", 'a"b', "a`b", "a#b;", "a@b", "%%{init}", "</script>", "\u2028", "é|"])
def test_no_character_is_special(text: str) -> None:
    assert re.fullmatch(r"(?:[\w ./:,+()=-]|#\d+;)*", mermaid_text(text), re.ASCII)
    decoded = re.sub(r"#(\d+);", lambda found: chr(int(found[1])), mermaid_text(text))
    assert decoded == printable(text)


def test_git_alone_is_asked(story: Project, tmp_path: Path) -> None:
    project = story.copy(tmp_path / "project")
    expected = {form: lines(project, "alpha@v2", form) for form in FORMATS}
    for gone in (project.settings.var, project.root / ".dvc"):
        shutil.rmtree(gone)
    assert {form: lines(project, "alpha@v2", form) for form in FORMATS} == expected


def test_a_clone_that_has_another_origin_tells_the_same(story: Project, tmp_path: Path) -> None:
    git(tmp_path, "clone", "-q", str(story.root), "clone")
    settings = story.settings.model_copy(update={"root": tmp_path / "clone", "var": tmp_path / "var"})
    clone = Project(tmp_path / "clone", settings)
    for form in FORMATS:
        assert lines(clone, "alpha@v1", form) == lines(story, "alpha@v1", form)


def test_the_command(story: Project, tmp_path: Path) -> None:
    shown = retrace(story.root, tmp_path / "home", "lineage", "alpha@champion", "--up", "--columns")
    assert shown.splitlines() == lines(story, "alpha@v2", down=False, columns=True)
    assert "no version" in retrace(story.root, tmp_path / "home", "lineage", "alpha@v99", expect=1)
    chart = retrace(story.root, tmp_path / "home", "lineage", "alpha@v1", "--format", "mermaid")
    assert chart.splitlines() == lines(story, "alpha@v1", "mermaid")
