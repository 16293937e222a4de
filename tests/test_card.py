"""`retrace card`: a version's model card, the same bytes for the same state of git, beside the version in MLflow."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from checkouts import retrace
from projects import Project, git

from retrace import versions
from retrace.card import CARD, card, card_of, markdown
from retrace.git import Git
from retrace.promote import promote_version
from retrace.publish import entry_of
from retrace.trace_text import lineage_lines
from retrace.versions import UnknownVersion

pytestmark = pytest.mark.usefixtures("forked")

HOSTILE = "a|b `c` <img> [x](y) *z* ```\x1b[31m"
ROWS = [(x, x * x) for x in range(40)]


@pytest.fixture(scope="module")
def described(with_a_version: Project, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """alpha@v1, and v2, which has a plot, source columns, and what somebody wrote to break a page."""
    project = with_a_version.copy(tmp_path_factory.mktemp("described") / "project")
    pipeline, program = project.root / "dvc.yaml", project.root / "pipeline/stage.py"
    plots = "      plots:\n        - plots/${key}/curve.csv: {cache: false}\n"
    report = "        - reports/${key}/columns.json: {cache: false}\n"
    pipeline.write_text(pipeline.read_text().replace("  train:\n", f"{report}  train:\n") + plots)
    columns = {"data/features/alpha": {HOSTILE: [["data/raw/events", "size"]]}}
    rows = "x,y|\n" + "".join(f"{x},{y}\n" for x, y in ROWS)
    code = program.read_text()
    code = code.replace(
        "\n\n\ndef train(", f"\n    write('reports/alpha/columns.json', {json.dumps(columns)!r})\n\n\ndef train("
    )
    code = code.replace("    print(f", f"    write('plots/alpha/curve.csv', {rows!r})\n    print(f", 1)
    program.write_text(code)
    label = {"name": "late", "column": "delay", "at_least": 15}

    def change(params: dict[str, Any]) -> None:
        params["models"]["alpha"]["features"].update(label=label, note=HOSTILE)
        params["models"]["alpha"]["train"].update(quality=0.9, estimator="Some|Classifier`")

    project.edit_params(change, HOSTILE)
    project.retrain("alpha", "second")
    return project


def section(text: str, title: str) -> list[str]:
    """The lines below a heading."""
    return text.partition(f"\n## {title}\n")[2].partition("\n## ")[0].strip().splitlines()


def cells(line: str) -> list[str]:
    """The cells of a table's row, as Markdown splits it."""
    return [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]


def table(lines: list[str]) -> list[list[str]]:
    return [cells(line) for line in lines if line.startswith("|")][2:]


def show(project: Project, name: str) -> str:
    return git(project.root, "show", name)


def test_a_card_has_what_git_says(described: Project) -> None:
    text = card_of(described.settings, "alpha@v1")
    lock = yaml.safe_load(show(described, "alpha@v1:dvc.lock"))["stages"]
    md5s = {out["path"]: out["md5"] for entry in lock.values() for out in entry["outs"]}
    trained = json.loads(show(described, "alpha@v1:lineage/alpha/train.json"))["run"]["facets"]["retrace"]
    [model] = [file for output in trained["outputs"] for file in output["files"]]
    raw = yaml.safe_load(show(described, "alpha@v1:data/raw/events.dvc"))["outs"][0]["md5"]
    requirements = show(described, "alpha@v1:pipeline/requirements.txt") + "\n"
    python = show(described, "alpha@v1:pipeline/.python-version")
    snapshot = f"{described.refs()['refs/runs/alpha/first']}~5"
    expected = {
        "commit of the version": git(described.root, "rev-parse", "alpha@v1^{commit}"),
        "tag of the version": git(described.root, "rev-parse", "alpha@v1"),
        "code": git(described.root, "rev-parse", f"{snapshot}^1"),
        "data": git(described.root, "rev-parse", f"{snapshot}^2"),
        "data/raw/events": raw,
        "data/features/alpha": md5s["data/features/alpha"],
        "models/alpha.skops": md5s["models/alpha.skops"],
        "environment": hashlib.sha256(f"{python}\n{requirements}".encode()).hexdigest(),
    }
    hashes = [(what, kind, value.strip("`")) for what, kind, value in table(section(text, "Hashes"))]
    found = {what: value for what, kind, value in hashes if (what, kind) != ("models/alpha.skops", "sha256")}
    assert {what: found[what] for what in expected} == expected
    assert ("models/alpha.skops", "sha256", model["sha256"]) in hashes
    manifest = show(described, "alpha@v1:data/raw/events.manifest").splitlines()
    rows = sum(int(line.split()[3]) for line in manifest)
    assert table(section(text, "Data")) == [["`events`", str(len(manifest)), "`2013-01 .. 2013-03`", str(rows)]]
    assert "Through 2013-03-31" in section(text, "Data")[0]
    metrics = json.loads(show(described, "alpha@v1:metrics/alpha.json"))["holdout"]
    assert {name.strip("`"): float(value) for name, value in table(section(text, "Metrics"))} == pytest.approx(metrics)
    parameters = "\n".join(section(text, "Parameters")[1:-1])
    assert json.loads(parameters) == json.loads(show(described, "alpha@v1:params.yaml"))["models"]["alpha"]
    assert "retrace checkout alpha@v1 " in "\n".join(section(text, "Get it back"))
    assert section(text, "Gate")[2:] == ["- holds: accuracy 0.8 \\>= 0.5", "- holds: cost 0.2: no champion yet"]


def test_the_picture_is_that_of_the_lineage(described: Project) -> None:
    fence, *picture, end = section(card_of(described.settings, "alpha@v2"), "Made of")
    assert (fence, end) == ("```mermaid", "```")
    chart = lineage_lines(described.settings, "alpha@v2", up=True, down=False, columns=False, form="mermaid")
    assert picture == [line.replace("<br/>champion", "") for line in chart]


def test_a_card_says_what_the_model_predicts(described: Project) -> None:
    first, second = (card_of(described.settings, f"alpha@v{number}").splitlines()[2] for number in (1, 2))
    assert first == "A model, made of `events`."
    assert second == "A Some\\|Classifier\\` that predicts `late` (`delay` of at least 15), made of `events`."


def test_a_plot_is_a_table_of_a_few_of_its_rows(described: Project) -> None:
    lines = section(card_of(described.settings, "alpha@v2"), "Plots")
    assert lines[0] == "[`plots/alpha/curve.csv`](plots/alpha/curve.csv), 9 of its 40 rows:"
    points = [(int(x), int(y)) for x, y in table(lines)]
    assert (points[0], points[-1], len(points)) == (ROWS[0], ROWS[-1], 9)
    assert set(points) <= set(ROWS)
    assert section(card_of(described.settings, "alpha@v1"), "Plots") == []


def test_a_card_names_the_source_columns_or_says_that_nobody_did(described: Project) -> None:
    title = "Features and their source columns"
    assert table(section(card_of(described.settings, "alpha@v2"), title)) == [
        [markdown(HOSTILE), "data/raw/events: size"]
    ]
    assert section(card_of(described.settings, "alpha@v1"), title) == [
        "Not known: no stage wrote `reports/alpha/columns.json`."
    ]


def test_the_same_state_of_git_has_the_same_card(described: Project, tmp_path: Path) -> None:
    git(tmp_path, "clone", "-q", "--mirror", str(described.root), "mirror")
    expected = card_of(described.settings, "alpha@v2")
    assert card_of(described.settings, "alpha@v2") == expected
    mirror = Git(tmp_path / "mirror")
    assert card(mirror, versions.find(mirror, "alpha@v2")) == expected


def test_what_people_wrote_breaks_no_page(described: Project) -> None:
    text = card_of(described.settings, "alpha@v2")
    assert all(line.isprintable() for line in text.splitlines())
    widths: set[int] = set()
    for line in text.splitlines():
        widths = widths | {len(cells(line))} if line.startswith("|") else set()
        assert len(widths) <= 1, line
    outside = re.sub(r"(?ms)^(`{3,})\w+$.*?^\1$", "", text)
    assert not re.search(r"(?<!\\)<|(?<!\\)```|^~~~", outside, re.MULTILINE)
    assert json.loads("\n".join(section(text, "Parameters")[1:-1]))["features"]["note"] == HOSTILE
    fence = section(text, "Parameters")[0]
    assert fence == "````json"


def test_who_holds_an_alias_stands_on_a_card_made_on_demand_alone(described: Project, tmp_path: Path) -> None:
    project = described.copy(tmp_path / "project")
    version = versions.find(project.git, "alpha@v1")
    before, lasting = card(project.git, version), card(project.git, version, lasting=True)
    next(promote_version(project.settings, "alpha@v1", HOSTILE))
    after = card_of(project.settings, "alpha@v1")
    assert after != before
    [line] = [line for line in after.splitlines() if line.endswith(markdown(HOSTILE))]
    assert line.startswith("- `champion` since ")
    assert card(project.git, version, lasting=True) == lasting
    assert "champion" not in lasting.replace('"champion"', "")
    assert "## Gate" not in lasting


def test_mlflow_gets_the_card_that_lasts(trained: Project) -> None:
    mirror = trained.mirror
    first = versions.find(mirror, "alpha@v1")
    lock = b"scikit-learn==1.5.0 \\\n    --hash=sha256:0\n"
    commit = mirror.write_commit(first.commit, {"pipeline/requirements.txt": lock}, [first.commit], "pinned")
    told = mirror.message(first.ref).partition("\n\n")[2]
    trailers = dict(line.split(": ", 1) for line in told.splitlines())
    version = versions.create(mirror, "alpha", commit, "pinned", trailers)
    with entry_of(trained.settings, mirror, version) as entry:
        [shown] = [file for file in entry.files if file.name == CARD]
    assert shown.read().decode() == card(mirror, version, lasting=True)
    assert "- pinned: scikit-learn==1.5.0" in shown.read().decode()


def test_the_command(described: Project, tmp_path: Path) -> None:
    assert retrace(described.root, tmp_path / "home", "card", "alpha@v1") == card_of(described.settings, "alpha@v1")
    with pytest.raises(UnknownVersion):
        card_of(described.settings, "alpha@v99")
