"""What differs between two versions, a version and code, a version and the working copy."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from projects import Project, git

from retrace import versions
from retrace.comparison import as_json
from retrace.comparison.exact import PartitionsUnreadable, psi_of_files
from retrace.comparison.partitions import ObjectsMissing
from retrace.comparison.psi import ColumnPsi, psi, psi_of_quantiles
from retrace.comparison.sides import NotComparable, UnknownRevision
from retrace.config import ConfigError, Settings, UnknownModel
from retrace.diff import diff_lines
from retrace.dvcfiles import LOCK, object_path
from retrace.environment import EnvironmentFailed
from retrace.git import GitError
from retrace.versions import UnknownVersion

STAGE = "pipeline/stage.py"
APRIL = "data/raw/events/2013-04.parquet"
FEBRUARY = "data/raw/events/2013-02.parquet"


def text(project: Project, a: str, b: str, **options: Any) -> str:
    return "\n".join(diff_lines(project.settings, a, b, form="text", **({"patch": False, "exact": False} | options)))


def answer(project: Project, a: str, b: str, **options: Any) -> dict[str, Any]:
    lines = diff_lines(project.settings, a, b, form="json", **({"patch": False, "exact": False} | options))
    return dict(json.loads("\n".join(lines)))


def markdown(project: Project, a: str, b: str, **options: Any) -> str:
    options = {"patch": False, "exact": False} | options
    return "\n".join(diff_lines(project.settings, a, b, form="markdown", **options))


def by(items: list[dict[str, Any]], key: str) -> dict[str, dict[str, Any]]:
    return {item[key]: item for item in items}


def edit(project: Project, path: str, old: str, new: str) -> None:
    place = project.root / path
    content = place.read_text()
    assert old in content
    place.write_text(content.replace(old, new))


def tagged(project: Project, changes: dict[str, bytes | str | None], base: str = "alpha@v1") -> str:
    """A version by hand: another one's commit with files replaced."""
    mirror = project.mirror
    start = versions.find(mirror, base).commit
    commit = mirror.write_commit(start, changes, [start], "by hand")
    return versions.create(mirror, "alpha", commit, "by hand", {"Retrace-Data": versions.find(mirror, base).data}).name


@pytest.fixture(scope="module")
def moved(with_a_version: Project, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """alpha@v2 has a month more, February anew, another parameter; main has moved on since. Nobody's to change."""
    project = with_a_version.copy(tmp_path_factory.mktemp("moved") / "project")
    project.fill("2013-02", rows=12, size=5.0)
    project.fill("2013-04", rows=20)
    project.ingest("2013-05-01", since="2013-02-01")
    project.edit_params(lambda params: params["models"]["alpha"]["train"].update(quality=0.9))
    project.retrain("alpha", "second")
    edit(project, "dvc.yaml", "stage train ${key}\n", "stage train ${key} \n")
    edit(project, "dvc.yaml", "python -m pipeline.stage evaluate", "python -O -m pipeline.stage evaluate")
    edit(project, STAGE, "import time\n", "import time  # as ever\n")
    (project.root / "dags/other.py").write_text("# none\n")
    (project.root / "pipeline/requirements.txt").write_text(
        "numpy==2.4.6\npandas==3.1.1 ; python_version >= '3.8'\nold==1 ; python_version < '3'\n"
    )
    (project.root / "pipeline/.python-version").write_text("3.12\n")

    def more(params: dict[str, Any]) -> None:
        events = params["ingest"]["datasets"]["events"]
        events["query"] = events["query"].replace("size FROM", "size, 1 AS weight FROM")
        events["columns"]["weight"] = "integer"
        params["models"]["alpha"]["owner"] = "team:a"

    project.edit_params(more)
    project.fill("2013-05", rows=30, size=2.0)
    project.ingest("2013-06-01", since="2013-05-01")
    return project


def test_partitions_are_told_as_added_and_replaced_with_their_rows(moved: Project) -> None:
    (events,) = answer(moved, "alpha@v1", "alpha@v2")["data"]["datasets"]
    assert [(item["path"], item["rows"]) for item in events["added"]] == [(APRIL, 20)]
    (february,) = events["replaced"]
    assert (february["path"], february["from"]["rows"], february["to"]["rows"]) == (FEBRUARY, 10, 12)
    assert february["from"]["md5"] != february["to"]["md5"]
    assert (events["from"]["rows"], events["to"]["rows"], events["removed"]) == (30, 52, [])
    (back,) = answer(moved, "alpha@v2", "alpha@v1")["data"]["datasets"]
    assert [item["path"] for item in back["removed"]] == [APRIL]
    shown = text(moved, "alpha@v1", "alpha@v2")
    assert "data/raw/events  3 -> 4 partitions, 30 -> 52 rows" in shown
    assert f"+ {APRIL}  20 rows" in shown and f"~ {FEBRUARY}  10 -> 12 rows, md5 " in shown


def test_parameters_are_told_with_the_stages_that_read_them(moved: Project) -> None:
    (quality,) = answer(moved, "alpha@v1", "alpha@v2")["parameters"]
    assert quality == {
        "name": "train.quality",
        "change": "changed",
        "from": 0.8,
        "to": 0.9,
        "stages": ["train", "evaluate"],
    }


def test_metrics_on_other_holdouts_come_with_a_warning(moved: Project) -> None:
    metrics = answer(moved, "alpha@v1", "alpha@v2")["metrics"]
    accuracy = by(metrics["values"], "name")["holdout.accuracy"]
    assert (accuracy["from"], accuracy["to"]) == (0.8, 0.9) and accuracy["difference"] == pytest.approx(0.1)
    assert metrics["comparable"] is False
    assert by(metrics["holdout"], "name")["partition"]["to"] == "2013-04"
    shown = text(moved, "alpha@v1", "alpha@v2")
    assert re.search(r"holdout.accuracy +0.8 +0.9 +\+0.1", shown)
    assert "! the holdouts differ, so these numbers are not comparable" in shown
    assert re.search(r"digest [0-9a-f]{12} -> [0-9a-f]{12}\b", " ".join(shown.split()))


def test_metrics_on_the_same_holdout_come_without_a_warning(moved: Project) -> None:
    project = moved
    assert answer(project, "alpha@v1", "alpha@v1")["metrics"]["comparable"] is True
    assert "comparable" not in text(project, "alpha@v1", "alpha@v1")


def test_each_stage_says_why_it_had_to_run_and_what_that_goes_back_to(moved: Project) -> None:
    stages = by(answer(moved, "alpha@v1", "alpha@v2")["stages"], "stage")
    assert list(stages) == ["validate", "features", "train", "evaluate"]
    told = {
        name: [(reason["kind"], reason["what"], reason["stage"]) for reason in stage["reasons"]]
        for name, stage in stages.items()
    }
    assert told["validate"] == [("data", "data/raw/events", None)]
    assert told["features"] == [
        ("data", "data/raw/events", None),
        ("output", "reports/alpha/validation.json", "validate"),
    ]
    assert told["train"] == [
        ("output", "data/features/alpha", "features"),
        ("parameter", "models.alpha.train.quality", None),
    ]
    assert stages["evaluate"]["roots"] == ["data/raw/events", "models.alpha.train.quality"]
    shown = text(moved, "alpha@v1", "alpha@v2")
    assert "why each stage had to run" in shown
    assert "train     data/features/alpha of features; models.alpha.train.quality 0.8 -> 0.9" in shown


def test_a_version_beside_itself_is_the_same_in_few_lines(moved: Project) -> None:
    lines = text(moved, "alpha@v2", "alpha@latest").splitlines()
    assert lines[-1] == "the same version" and len(lines) == 5
    assert markdown(moved, "alpha@v2", "alpha@latest").splitlines()[-1] == "The same version."


def test_an_alias_alone_is_of_the_other_sides_model(moved: Project) -> None:
    assert answer(moved, "alpha@v1", "@champion")["b"]["name"] == "alpha@v2"
    assert answer(moved, "@v1", "alpha@v2")["a"]["name"] == "alpha@v1"


def test_code_is_compared_on_the_newest_data_and_has_no_metrics(moved: Project) -> None:
    told = answer(moved, "alpha@v2", "main")
    side = told["b"]
    assert (side["kind"], side["trained"], side["data"]["newest"]) == ("commit", False, True)
    assert side["data"]["commit"] == git(moved.root, "rev-parse", "refs/heads/data")
    assert [item["path"] for item in told["data"]["datasets"][0]["added"]] == ["data/raw/events/2013-05.parquet"]
    assert told["metrics"]["values"][0]["to"] is None and told["metrics"]["comparable"] is None
    shown = " ".join(text(moved, "alpha@v2", "main").split())
    assert "through 2013-05-31, the newest of the branch data; not trained" in shown
    assert "metrics none of main to compare" in shown and shown.count("not trained") == 1
    assert "why each stage would run" in shown


def test_code_is_told_stage_by_stage_and_what_is_of_no_stage_apart(moved: Project) -> None:
    code = answer(moved, "alpha@v2", "main")["code"]
    stages = by(code["stages"], "stage")
    for name in ("validate", "features", "train", "evaluate"):
        paths = [file["path"] for file in stages[name]["files"]]
        assert paths == ["pipeline/.python-version", "pipeline/requirements.txt", STAGE]
    assert stages["evaluate"]["command"] == {
        "from": "python -m pipeline.stage evaluate alpha",
        "to": "python -O -m pipeline.stage evaluate alpha",
    }
    assert stages["train"]["command"] is None, "a blank at the end is none of the command"
    assert code["outside"] == [
        {"path": "dags/other.py", "change": "added"},
        {"path": "dvc.yaml", "change": "changed"},
        {"path": "params.yaml", "change": "changed"},
    ]
    assert code["patch"] is None


def test_what_stages_and_the_engine_write_is_no_code(moved: Project) -> None:
    assert answer(moved, "alpha@v1", "alpha@v2")["code"] == {
        "stages": [],
        "outside": [],  # params.yaml: its keys are told as parameters
        "patch": None,
    }


def test_a_patch_is_gits_own_and_of_code_alone(moved: Project) -> None:
    patch = answer(moved, "alpha@v2", "main", patch=True)["code"]["patch"]
    assert "-import time\n+import time  # as ever\n" in patch
    files = re.findall(r"^diff --git a/(\S+)", patch, re.M)
    assert files == ["dags/other.py", "dvc.yaml", "params.yaml", "pipeline/.python-version"] + [
        "pipeline/requirements.txt",
        STAGE,
    ]
    assert "+import time  # as ever" in text(moved, "alpha@v2", "main", patch=True)
    assert "```diff\ndiff --git" in markdown(moved, "alpha@v2", "main", patch=True)


def test_packages_are_told_from_and_to_as_far_as_they_are_installed(moved: Project) -> None:
    environment = answer(moved, "alpha@v2", "main")["environment"]
    assert environment["python"] == {"from": "3.11", "to": "3.12"}
    assert [(item["name"], item["change"], item["to"]) for item in environment["packages"]] == [
        ("numpy", "added", "2.4.6"),
        ("pandas", "added", "3.1.1"),
    ]
    assert not environment["same"]
    assert re.search(r"python +3.11 -> 3.12", text(moved, "alpha@v2", "main"))
    assert re.search(r"pandas +was 3.1.1", text(moved, "main", "alpha@v2"))


def test_a_new_column_is_told_from_the_events_of_ingestion(moved: Project) -> None:
    (events,) = answer(moved, "alpha@v2", "main")["data"]["tables"]
    assert events["name"] == "data/raw/events" and events["to"]["partition"] == "data/raw/events/2013-05.parquet"
    assert [(item["name"], item["change"]) for item in events["columns"]] == [("weight", "added")]
    assert [item["column"] for item in events["psi"]] == ["size"], "moments move by nature, and names are no numbers"
    for options in ({}, {"exact": True}):
        assert "column weight  new: int64" in text(moved, "alpha@v2", "main", **options)


def test_every_key_of_the_json_is_documented(moved: Project) -> None:
    def keys(tree: Any) -> set[str]:
        if isinstance(tree, dict):
            return set(tree) | {key for value in tree.values() for key in keys(value)}
        return {key for item in tree for key in keys(item)} if isinstance(tree, list) else set()

    told = answer(moved, "alpha@v1", "main", patch=True, exact=True)
    del told["parameters"][0]["from"]  # a parameter's value has keys of its own
    words = set(re.findall(r"\w+", as_json.__doc__ or ""))
    assert keys(told) <= words
    assert list(told) == [
        *("model", "a", "b", "data", "code", "parameters", "environment", "metrics", "stages"),
    ]


def test_markdown_has_a_table_for_what_differs_and_a_word_for_what_does_not(moved: Project) -> None:
    lines = markdown(moved, "alpha@v1", "alpha@v2").splitlines()
    assert lines[0] == "## alpha@v1 → alpha@v2"
    assert f"| data/raw/events | {APRIL} | added | 20 rows |" in lines
    assert "| train.quality | 0.8 -\\> 0.9 | train, evaluate |" in lines
    place = lines.index("### Environment")
    assert lines[place + 2] == "The same."
    tables = [line for line in lines if line.startswith("|")]
    assert all(line.endswith("|") and all(cell.strip() for cell in line[1:-1].split(" | ")) for line in tables)
    assert "| no stage | dags/other.py | added |" in markdown(moved, "alpha@v2", "main").splitlines()


@pytest.mark.parametrize(
    ("a", "b", "error", "said"),
    [
        ("main", ".", NotComparable, "neither 'main' nor '.' is a version"),
        ("@champion", "main", NotComparable, "one must be"),
        ("alpha@v1", "beta@v1", NotComparable, "of different models"),
        ("alpha@v9", "main", UnknownVersion, "no version 'alpha@v9'"),
        ("alpha@v1", "nowhere", UnknownRevision, "'nowhere' is no version"),
        ("alpha@v1", "--output=stolen", UnknownRevision, "'--output=stolen' is no version"),
        ("alpha@v1", "data", GitError, "data has no params.yaml"),
    ],
)
def test_sides_that_cannot_be_compared_are_refused(
    moved: Project, a: str, b: str, error: type[Exception], said: str
) -> None:
    with pytest.raises(error, match=re.escape(said)):
        text(moved, a, b)
    assert not (moved.root / "stolen").exists()


def test_code_without_the_model_is_refused(trained: Project) -> None:
    trained.edit_params(lambda params: params["models"].pop("alpha"))
    with pytest.raises(UnknownModel, match="params.yaml of main has no model 'alpha'"):
        text(trained, "alpha@v1", "main")


def test_datasets_that_are_no_list_are_refused(trained: Project) -> None:
    trained.edit_params(lambda params: params["models"]["alpha"].update(datasets="events"))
    with pytest.raises(ConfigError, match="params.yaml of main: the datasets of a model are a list"):
        text(trained, "alpha@v1", "main")


def test_a_lock_that_cannot_be_read_is_told(trained: Project) -> None:
    (trained.root / "pipeline/requirements.txt").write_text("numpy=!2\n")
    with pytest.raises(EnvironmentFailed, match="requirements.txt of working copy"):
        text(trained, "alpha@v1", ".")


def test_the_working_copy_is_compared_as_it_lies_there_and_left_alone(trained: Project) -> None:
    edit(trained, STAGE, "import time\n", "import time  # mine\n")
    edit(trained, "dvc.yaml", "pipeline/stage.py, pipeline/req", "pipeline/stage.py, pipeline/new.py, pipeline/req")
    (trained.root / "pipeline/new.py").write_text("x = 1\n")
    (trained.root / ".gitignore").open("a").write("/ignored.py\n")
    (trained.root / "ignored.py").write_text("no\n")
    git(trained.root, "add", "pipeline/new.py")
    (trained.root / "pipeline/new.py").write_text("x = 2\n")

    def state() -> list[str]:
        objects = sorted(str(path) for path in (trained.root / ".git/objects").rglob("*"))
        return [git(trained.root, "status", "--porcelain"), *objects]

    before = state()
    told = answer(trained, "alpha@v1", ".", patch=True)
    assert state() == before
    assert told["b"]["kind"] == "working copy" and told["b"]["edited"] and not told["b"]["trained"]
    validate = by(told["code"]["stages"], "stage")["validate"]
    assert validate["files"] == [{"path": "pipeline/new.py", "change": "added"}, {"path": STAGE, "change": "changed"}]
    assert "+x = 2" in told["code"]["patch"] and "ignored.py" not in json.dumps(told["code"]["outside"])
    stages = by(told["stages"], "stage")
    assert [(reason["kind"], reason["what"]) for reason in stages["validate"]["reasons"]] == [
        ("dependency", "pipeline/new.py"),
        ("code", STAGE),
    ]
    assert "now reads pipeline/new.py; pipeline/stage.py" in text(trained, "alpha@v1", ".")


def test_a_clean_working_copy_would_run_nothing(trained: Project) -> None:
    told = answer(trained, "alpha@v1", ".")
    assert not told["b"]["edited"]
    assert {stage["state"] for stage in told["stages"]} == {"unchanged"}
    shown = text(trained, "alpha@v1", ".")
    assert "stages       unchanged: none would run: a retrain would make nothing new" in shown
    assert " ".join(shown.split()).count("not trained") == 1


def test_a_stage_that_only_might_run_says_what_it_depends_on(trained: Project) -> None:
    trained.edit_params(lambda params: params["models"]["alpha"]["features"].update(width=3))
    stages = by(answer(trained, "alpha@v1", "main")["stages"], "stage")
    assert [stage["state"] for stage in stages.values()] == ["unchanged", "changed", "depends", "depends"]
    assert stages["train"]["roots"] == ["models.alpha.features.width"]
    shown = " ".join(text(trained, "alpha@v1", "main").split())
    assert "train only if other bytes come of data/features/alpha of features (in the end because of" in shown


def test_what_was_made_in_the_working_copy_counts_if_it_is_of_what_lies_there(trained: Project) -> None:
    """As `dvc repro` leaves it: an untracked lock, and metrics that git ignores."""
    for path in (LOCK, "metrics/alpha.json", "reports/alpha/holdout.json"):
        content = trained.git.read("alpha@v1", path)
        assert content is not None
        (trained.root / path).parent.mkdir(parents=True, exist_ok=True)
        (trained.root / path).write_bytes(content)
    told = answer(trained, "alpha@v1", ".")
    assert told["b"]["trained"] and told["metrics"]["comparable"]
    assert not told["b"]["edited"], "results are no edits"
    assert by(told["metrics"]["values"], "name")["holdout.accuracy"]["difference"] == 0
    (trained.root / "metrics/alpha.json").write_text('{"holdout": {"accuracy": 1.0}}')
    values = answer(trained, "alpha@v1", ".")["metrics"]["values"]
    assert {value["to"] for value in values} == {None}, "these metrics are not what the lock says was made"
    edit(trained, STAGE, "import time\n", "import time  # mine\n")
    assert not answer(trained, "alpha@v1", ".")["b"]["trained"]


def test_a_commit_of_a_run_has_data_and_results_of_its_own(moved: Project) -> None:
    commit = git(moved.root, "rev-parse", "alpha@v1^{commit}")
    told = answer(moved, "alpha@v1", commit)
    assert told["b"]["kind"] == "commit" and told["b"]["trained"] and not told["b"]["data"]["newest"]
    assert {stage["state"] for stage in told["stages"]} == {"unchanged"}


def test_the_same_inputs_with_another_output_are_called_not_deterministic(trained: Project) -> None:
    lock = (trained.git.read("alpha@v1", LOCK) or b"").decode()
    model = re.search(r"path: models/alpha.skops\n +hash: md5\n +md5: (\w+)", lock)
    assert model is not None
    event = json.loads(trained.git.read("alpha@v1", "lineage/alpha/train.json") or b"")
    event["run"]["facets"]["retrace"]["machine"]["processor"] = "abacus"
    other = lock.replace(model[1], "0" * 32).encode()
    name = tagged(trained, {LOCK: other, "lineage/alpha/train.json": json.dumps(event).encode()})
    stages = by(answer(trained, "alpha@v1", name)["stages"], "stage")
    assert stages["train"]["state"] == "not deterministic" and stages["train"]["outputs"] == ["models/alpha.skops"]
    assert stages["evaluate"]["roots"] == ["train (not deterministic)"]
    shown = " ".join(text(trained, "alpha@v1", name).split())
    assert "read the same and made something else: models/alpha.skops (not deterministic; it ran on another" in shown
    assert "-> abacus" in shown


def test_nothing_in_git_reaches_the_terminal_but_as_text(trained: Project) -> None:
    trained.edit_params(lambda params: params["models"]["alpha"]["train"].update(note="\x1b]0;owned\x07"))
    (trained.root / "dags/\x1b[2J.py").write_text("\x1b[31m\n")
    trained.commit()
    assert "\x1b" not in text(trained, "alpha@v1", "main", patch=True)
    assert "\x1b" not in markdown(trained, "alpha@v1", "main", patch=True)


def test_a_project_whose_origin_is_elsewhere_compares_its_own_branches(trained: Project, tmp_path: Path) -> None:
    origin = tmp_path / "origin.git"
    git(trained.root, "clone", "-q", "--mirror", str(trained.root), str(origin))
    shutil.rmtree(trained.settings.mirror)
    for name in git(trained.root, "tag").splitlines():
        git(trained.root, "tag", "-d", name)
    git(trained.root, "switch", "-q", "-c", "mine")
    edit(trained, STAGE, "import time\n", "import time  # mine\n")
    trained.commit()
    edit(trained, STAGE, "import sys\n", "import sys  # too\n")
    project = Project(trained.root, Settings.load(trained.root, {"RETRACE_ORIGIN": str(origin)}))
    assert by(answer(project, "alpha@v1", "mine")["code"]["stages"], "stage")["train"]["files"][0]["path"] == STAGE
    patch = answer(project, "alpha@v1", ".", patch=True)["code"]["patch"]
    assert "+import time  # mine" in patch and "+import sys  # too" in patch


def test_two_versions_are_compared_by_few_processes_of_git(moved: Project, tmp_path: Path) -> None:
    real = shutil.which("git")
    log = tmp_path / "log"
    (tmp_path / "git").write_text(f'#!/bin/sh\necho "$3" >> {log}\nexec {real} "$@"\n')
    (tmp_path / "git").chmod(0o755)
    code = "import sys; from retrace.cli import main; sys.argv = ['retrace', 'diff', 'alpha@v1', 'alpha@v2']; main()"
    code += "; assert not {'duckdb', 'mlflow', 'pandas', 'openlineage', 'dvc'} & sys.modules.keys()"
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    subprocess.run([sys.executable, "-P", "-c", code], cwd=moved.root, env=environment, check=True, capture_output=True)
    assert len(log.read_text().splitlines()) <= 10


def quantiles(values: np.ndarray[Any, Any]) -> dict[str, Any]:
    """What an event holds of a column."""
    there = np.sort(values[~np.isnan(values)])
    shares = ("0.05", "0.25", "0.5", "0.75", "0.95")
    return {
        "nullCount": int(np.isnan(values).sum()),
        "min": float(there[0]),
        "max": float(there[-1]),
        "quantiles": {share: float(there[int(float(share) * (len(there) - 1))]) for share in shares},
    }


def test_the_index_is_the_sum_over_the_bins() -> None:
    assert psi([50, 50], [50, 50]) == 0
    assert psi([0.5, 0.5], [0.25, 0.75]) == pytest.approx(-0.25 * np.log(0.5) + 0.25 * np.log(1.5))
    assert psi([1, 0], [0, 1]) == pytest.approx(2 * (1 - 1e-4) * np.log(1 / 1e-4)), "a share of 0 counts as 1e-4"
    assert [ColumnPsi("x", value).reading for value in (0.09, 0.1, 0.25)] == ["stable", "moderate", "large"]


@pytest.mark.parametrize("shift", [0.0, 0.2, 0.5, 1.0])
def test_the_estimate_from_quantiles_comes_near_the_index_of_the_values(shift: float) -> None:
    random = np.random.default_rng(7)
    before, after = random.normal(size=20_000), random.normal(size=20_000) + shift
    edges = [-np.inf, *np.quantile(before, [0.05, 0.25, 0.5, 0.75, 0.95]), np.inf]
    exact = psi(*(np.histogram(values, edges)[0].tolist() for values in (before, after)))
    estimate = psi_of_quantiles(quantiles(before), 20_000, quantiles(after), 20_000)
    assert estimate == pytest.approx(exact, abs=0.03 + 0.15 * exact)


def test_missing_values_move_the_estimate_and_no_numbers_have_none() -> None:
    values = np.arange(1000.0)
    gaps = np.where(np.arange(1000) % 2 == 0, np.nan, values)
    estimate = psi_of_quantiles(quantiles(values), 1000, quantiles(gaps), 1000)
    assert estimate is not None and estimate > 3
    text_column = {"nullCount": 0, "quantiles": {}}
    assert psi_of_quantiles(text_column, 10, text_column, 10) is None


def test_a_value_that_is_most_of_a_column_is_no_change_by_itself() -> None:
    zeros = dict.fromkeys(("0.05", "0.25", "0.5", "0.75", "0.95"), 0.0)
    dry: dict[str, Any] = {"nullCount": 0, "min": 0.0, "max": 0.9, "quantiles": zeros}
    wet = {**dry, "quantiles": {**zeros, "0.95": 0.07}}
    for pair in ((dry, wet), (wet, dry), (dry, dry)):
        estimate = psi_of_quantiles(pair[0], 1000, pair[1], 1000)
        assert estimate is not None and estimate < 0.05
    rain = {**dry, "quantiles": {"0.05": 0, "0.25": 0.2, "0.5": 0.3, "0.75": 0.4, "0.95": 0.5}}
    assert (psi_of_quantiles(dry, 1000, rain, 1000) or 0) > 0.25


def values_of(project: Project, name: str) -> pd.DataFrame:
    """All raw rows of a version, by pandas."""
    commit = versions.find(project.git, name).commit
    lines = (project.git.read(commit, "data/raw/events.manifest") or b"").decode().splitlines()
    return pd.concat(pd.read_parquet(object_path(project.settings.cache, line.split()[1])) for line in lines)


def test_the_exact_index_is_that_of_all_rows(moved: Project) -> None:
    (events,) = answer(moved, "alpha@v1", "alpha@v2", exact=True)["data"]["datasets"]
    found = {item["column"]: item["psi"] for item in events["psi"]}
    before, after = (values_of(moved, name)["size"].to_numpy() for name in ("alpha@v1", "alpha@v2"))
    deciles = [np.sort(before)[int(np.ceil(share * len(before))) - 1] for share in np.arange(1, 10) / 10]
    edges = np.unique(deciles)
    counts = [np.bincount(np.searchsorted(edges, side), minlength=len(edges) + 1).tolist() for side in (before, after)]
    assert found["size"] == pytest.approx(psi(*counts), abs=1e-6)
    names = [values_of(moved, name)["name"] for name in ("alpha@v1", "alpha@v2")]
    top = names[0].unique().tolist()
    shares = [[*(int((side == one).sum()) for one in top), int((~side.isin(top)).sum())] for side in names]
    assert found["name"] == pytest.approx(psi(*shares), abs=1e-6)
    assert "moment" not in found
    assert "PSI of all rows: " in text(moved, "alpha@v1", "alpha@v2", exact=True)


def test_the_index_of_many_rows_is_of_bins_near_the_deciles_and_always_the_same(tmp_path: Path) -> None:
    random = np.random.default_rng(7)
    sides, columns = [], []
    for number, shift in enumerate((0.0, 0.5)):
        values = random.normal(size=200_000) + shift
        values[: 2_000 + 18_000 * number] = np.nan
        columns.append(values)
        frame = pd.DataFrame({"x": values, "kind": random.choice(["a", "b", "c"], 200_000), "on": values > 0})
        frame['strange name, quoted "*"'] = frame["x"].rank().fillna(0).astype("int64") % 10
        table = pa.table({name: pa.array(frame[name].to_numpy()) for name in frame})  # pandas would write NaN as null
        pq.write_table(table, tmp_path / f"[{number}]*")
        sides.append([tmp_path / f"[{number}]*"])
    found, again, exact = (psi_of_files(*sides, exact=exact) for exact in (False, False, True))
    assert found == again
    assert [item.column for item in found] == ["x", "kind", "on", 'strange name, quoted "*"']
    for one, other in zip(found, exact, strict=True):
        assert one.value == pytest.approx(other.value, rel=0.02, abs=1e-3)
    edges = [-np.inf, *np.nanquantile(columns[0], np.arange(1, 10) / 10), np.inf]
    counts = [[np.isnan(side).sum(), *np.histogram(side, edges)[0]] for side in columns]
    assert exact[0].value == pytest.approx(psi(*counts), abs=1e-3) and exact[1].value < 1e-3


def test_the_exact_index_reads_a_remote_that_is_a_folder(moved: Project, tmp_path: Path) -> None:
    project = moved.copy(tmp_path / "project")
    shutil.rmtree(project.settings.cache)
    here = answer(project, "alpha@v1", "alpha@v2", exact=True)["data"]
    assert here == answer(moved, "alpha@v1", "alpha@v2", exact=True)["data"]


def test_objects_that_are_nowhere_are_named_with_the_way_to_get_them(moved: Project, tmp_path: Path) -> None:
    project = moved.copy(tmp_path / "project")
    shutil.rmtree(project.settings.cache)
    rows = (project.git.read("alpha@v2", "data/raw/events.manifest") or b"").decode().splitlines()
    april = next(row.split()[1] for row in rows if row.startswith(APRIL))
    object_path(project.settings.var / "remote", april).unlink()
    with pytest.raises(ObjectsMissing, match=rf"{APRIL} \(md5 {april[:12]}\).*`retrace checkout alpha@v2` brings them"):
        text(project, "alpha@v1", "alpha@v2", exact=True)
    assert answer(project, "alpha@v1", "alpha@v2")["data"]["datasets"][0]["psi"] is None


def test_a_damaged_partition_is_told_in_a_sentence(moved: Project, tmp_path: Path) -> None:
    project = moved.copy(tmp_path / "project")
    rows = (project.git.read("alpha@v2", "data/raw/events.manifest") or b"").decode().splitlines()
    place = object_path(project.settings.cache, rows[0].split()[1])
    place.chmod(0o644)
    place.write_bytes(b"no table")
    with pytest.raises(PartitionsUnreadable, match="data/raw/events cannot be read"):
        text(project, "alpha@v1", "alpha@v2", exact=True)
