"""`retrace impact`: from a thing to the versions it went into, for every kind of thing, and what is said of nothing."""

from __future__ import annotations

import hashlib
import io
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import handmade
import pytest
from projects import Project, git
from remotes import credentials, use_s3
from servers import S3Server

from retrace import tombstones, verdicts, versions
from retrace.cli import app
from retrace.config import Settings
from retrace.dvcfiles import LOCK, entries_of, lock_entries, object_path, output_md5s, pointer_md5
from retrace.git import Git, message
from retrace.impact import NotOneThing, impact_lines
from retrace.manifest import LINE, Partition, format_manifest, parse_manifest
from retrace.runs import INGEST_EVENT
from retrace.search import ConditionRefused
from retrace.usage.answer import UnknownThing
from retrace.usage.contents import Wanted, brought
from retrace.usage.holdings import Holdings
from retrace.usage.packages import PackageRefused
from retrace.usage.raw_data import RawData
from retrace.usage.records import DatasetUnclear

FEBRUARY = "data/raw/events/2013-02.parquet"
CODE = "pipeline/stage.py"
PERSON = "event 7"
EVENTS = "data/raw/events.manifest"
MANIFEST_LINE = re.compile(LINE.pattern.encode())


def lines(
    project: Project,
    thing: str | None = None,
    *,
    package: str | None = None,
    where: str | None = None,
    dataset: str | None = None,
    as_json: bool = False,
) -> list[str]:
    found = impact_lines(project.settings, thing, package=package, where=where, dataset=dataset, as_json=as_json)
    return list(found)


def asked(project: Project, thing: str | None = None, **options: Any) -> dict[str, Any]:
    (text,) = lines(project, thing, **options, as_json=True)
    return dict(json.loads(text))


def names(project: Project, thing: str | None = None, **options: Any) -> list[str]:
    return [version["version"] for version in asked(project, thing, **options)["versions"]]


def partitions(project: Project, commit: str, dataset: str = "events") -> dict[str, Partition]:
    text = git(project.root, "show", f"{commit}:data/raw/{dataset}.manifest") + "\n"
    return {item.path: item for item in parse_manifest(text, dataset)}


class History:
    """What happened: alpha@v1 by a real run; February replaced, a dataset `sizes` that only beta reads, and a change of
    code, alpha@v2; another lock, beta@v1; and data and files that no version has yet."""

    def __init__(self, project: Project) -> None:
        self.project = project
        self.first_code = git(project.root, "rev-parse", "HEAD")
        self.first_data = git(project.root, "rev-parse", "refs/heads/data")
        project.fill("2013-02", rows=12)
        project.edit_params(_with_sizes, "sizes")
        project.ingest("2013-04-01", since="2013-01-01")
        self.second_data = git(project.root, "rev-parse", "refs/heads/data")
        (project.root / CODE).write_text((project.root / CODE).read_text() + "\n# changed\n")
        self.second_code = project.commit("a change of the stages")
        handmade.registered(project, "two")
        lock = project.root / "pipeline/requirements.txt"
        lock.write_text(lock.read_text() + _LOCKED)
        project.commit("lock")
        handmade.registered(project, "three", model="beta")
        project.fill("2013-04")
        project.ingest("2013-05-01")
        (project.root / "notes.txt").write_text("of no version yet\n")
        project.commit("notes")

    def commit(self, name: str) -> str:
        return versions.find(self.project.git, name).commit


_LOCKED = """
Scikit_Learn==1.9.1 ; sys_platform == 'win32' \\
    --hash=sha256:83490def1f723413db5096591f7609ac52544805be93849170088ed04f5a2e0b
numpy==2.4.6 ; python_full_version < '3.12'
numpy==2.5.5 ; python_full_version >= '3.12'
"""


def _with_sizes(params: dict[str, Any]) -> None:
    events = params["ingest"]["datasets"]["events"]
    params["ingest"]["datasets"]["sizes"] = events | {
        "query": "SELECT moment, size FROM events WHERE moment >= :start AND moment < :end",
        "key": ["moment"],
        "columns": {"moment": "timestamp", "size": "float"},
    }
    params["models"]["beta"]["datasets"] = ["events", "sizes"]


@pytest.fixture(scope="module")
def history(with_a_version: Project, tmp_path_factory: pytest.TempPathFactory) -> History:
    return History(with_a_version.copy(tmp_path_factory.mktemp("impact") / "project"))


@pytest.fixture(scope="module")
def project(history: History) -> Project:
    """Nobody's to change; `changed` is a copy."""
    return history.project


@pytest.fixture
def changed(project: Project, tmp_path: Path) -> Project:
    return project.copy(tmp_path / "project")


# Raw data


def test_a_partition_is_told_with_every_content_it_had_and_the_versions_of_each(
    history: History, project: Project
) -> None:
    first, second = (partitions(project, commit)[FEBRUARY] for commit in (history.first_data, history.second_data))
    found = asked(project, FEBRUARY)
    assert [(item["md5"], item["rows"], item["versions"], item["inNewestData"]) for item in found["contents"]] == [
        (first.md5, 10, ["alpha@v1"], False),
        (second.md5, 12, ["alpha@v2", "beta@v1"], True),
    ]
    assert [version["version"] for version in found["versions"]] == ["alpha@v1", "alpha@v2", "beta@v1"]
    assert found["versions"][0]["what"] == {"partitions": [{"path": FEBRUARY, "md5": first.md5}]}
    assert found["ofVersions"] == 3


@pytest.mark.parametrize("revision", ["first_data", "alpha@v1"])
def test_a_partition_as_of_a_commit_is_that_content_alone(history: History, project: Project, revision: str) -> None:
    assert names(project, f"{FEBRUARY}@{getattr(history, revision, revision)}") == ["alpha@v1"]


@pytest.mark.parametrize("form", ["md5", "sha256"])
def test_a_hash_of_a_partition_finds_the_versions_of_that_content(
    history: History, project: Project, form: str
) -> None:
    partition = partitions(project, history.second_data)[FEBRUARY]
    found = asked(project, getattr(partition, form).upper())
    assert [version["version"] for version in found["versions"]] == ["alpha@v2", "beta@v1"]
    assert found["contents"][0]["path"] == FEBRUARY


def test_a_dataset_went_only_into_versions_of_models_that_read_it(project: Project) -> None:
    """Every commit has all datasets; what a model does not read did not go into its versions."""
    assert "sizes.manifest" in git(project.root, "show", "alpha@v2:data/raw")
    assert names(project, "data/raw/events") == ["alpha@v1", "alpha@v2", "beta@v1"]
    assert names(project, "data/raw/sizes/2013-01.parquet") == ["beta@v1"]
    assert names(project, "data/raw/sizes/") == ["beta@v1"]


def test_a_dataset_has_a_content_for_each_state_of_it_by_the_md5_of_its_pointer(
    history: History, project: Project
) -> None:
    found = asked(project, "data/raw/events.dvc")["contents"]
    assert [item["partitions"] for item in found] == [1, 2, 3, 3, 4]
    assert [item["versions"] for item in found] == [[], [], ["alpha@v1"], ["alpha@v2", "beta@v1"], []]
    md5 = pointer_md5(git(project.root, "show", f"{history.first_data}:data/raw/events.dvc").encode(), "events.dvc")
    assert found[2]["md5"] == md5
    for form in (md5, md5.removesuffix(".dir")):
        assert names(project, form) == ["alpha@v1"]


def test_a_partition_that_no_version_has_is_told_as_that(project: Project) -> None:
    found = lines(project, "data/raw/events/2013-04.parquet")
    assert found[-1] == "0 of 3 versions"
    assert "(in the newest data)  in no version" in found[1]


# Hashes and files of stages


def test_what_a_stage_made_is_found_by_md5_by_sha256_and_by_path(history: History, project: Project) -> None:
    event = json.loads(git(project.root, "show", "alpha@v1:lineage/alpha/features.json"))
    file = event["run"]["facets"]["retrace"]["outputs"][0]["files"][0]
    for form in ("md5", "sha256", "path"):
        first, second = asked(project, file[form])["versions"]
        assert (first["version"], second["version"]) == ("alpha@v1", "alpha@v2")  # which took it over, unchanged
        told = {(item["path"], item["verb"], item["stage"]) for item in first["what"]["files"]}
        assert {(file["path"], "made by", "features"), (file["path"], "read by", "train")} <= told


def test_a_folder_that_stages_read_is_found_by_its_md5(project: Project) -> None:
    lock = entries_of(lock_entries(project.git.read("alpha@v1", LOCK)), "alpha")
    md5 = output_md5s(lock)["data/features/alpha"]
    assert md5.endswith(".dir")
    text = "\n".join(lines(project, md5))
    assert "data/features/alpha (made by features, read by evaluate, read by train)" in text


def test_a_hash_that_only_a_lock_has_is_found(project: Project) -> None:
    md5 = output_md5s(lock_entries(project.git.read("beta@v1", LOCK)))["models/beta.skops"]
    (version,) = asked(project, md5)["versions"]
    assert version["version"] == "beta@v1"
    assert version["what"] == {
        "files": [{"path": "models/beta.skops", "md5": md5, "verb": "made by", "stage": "train"}]
    }


def test_another_models_entries_that_a_lock_carries_are_not_its_versions(project: Project) -> None:
    md5 = output_md5s(lock_entries(project.git.read("alpha@v2", LOCK)))["models/alpha.skops"]
    assert md5.encode() in (project.git.read("beta@v1", LOCK) or b"")
    assert names(project, md5) == ["alpha@v2"]


def test_a_hash_that_nothing_has_ends_well_and_says_so(project: Project) -> None:
    found = lines(project, "f" * 32)
    assert found[-1] == "0 of 3 versions"
    assert any(line.startswith("no manifest or pointer of the raw data has this hash") for line in found)


# Code and commits


def test_a_file_of_code_is_told_with_its_contents_and_the_stages_that_read_it(
    history: History, project: Project
) -> None:
    found = asked(project, CODE)
    assert [(item["code"], item["versions"]) for item in found["contents"]] == [
        (history.first_code, ["alpha@v1"]),
        (history.second_code, ["alpha@v2", "beta@v1"]),
    ]
    assert found["versions"][0]["what"]["stages"] == ["validate", "features", "train", "evaluate"]


def test_a_file_as_of_a_commit_finds_the_versions_with_the_same_content(history: History, project: Project) -> None:
    assert names(project, f"{CODE}@{history.first_code[:9]}") == ["alpha@v1"]
    assert names(project, f"{CODE}@main") == ["alpha@v2", "beta@v1"]
    assert names(project, f"pipeline@{history.first_code}") == ["alpha@v1"]
    assert names(project, str(project.root / CODE) + "@alpha@v1") == ["alpha@v1"]


def test_a_file_that_no_stage_declares_is_said_to_be_such(project: Project) -> None:
    found = asked(project, "dags/retrain.py")
    assert {tuple(version["what"]["stages"]) for version in found["versions"]} == {()}
    assert "no stage of dvc.yaml declares dags/retrain.py" in found["notes"][0]


def test_the_parameters_are_said_to_be_read_by_key(project: Project) -> None:
    found = asked(project, "params.yaml")
    assert {tuple(version["what"]["stages"]) for version in found["versions"]} == {
        ("validate", "features", "train", "evaluate")
    }
    (note,) = found["notes"]
    assert note.startswith("a stage reads the keys of params.yaml that its params: in dvc.yaml name")
    assert "`retrace diff`" in note
    assert any(
        "keys of it read by validate, features, train, evaluate" in line for line in lines(project, "params.yaml")
    )


def test_a_file_that_only_a_branch_has_went_into_nothing(project: Project) -> None:
    found = asked(project, "notes.txt")
    assert found["versions"] == []
    assert found["notes"] == ["a branch has this path, but no version does"]


def test_a_commit_of_code_or_data_is_in_the_versions_that_descend_from_it(history: History, project: Project) -> None:
    assert names(project, history.first_code) == ["alpha@v1", "alpha@v2", "beta@v1"]
    assert names(project, history.second_code[:8]) == ["alpha@v2", "beta@v1"]
    data = asked(project, history.first_data)
    assert data["asked"]["of"] == "data"
    assert [version["what"]["how"] for version in data["versions"]] == [
        "its data",
        "in the history of its data",
        "in the history of its data",
    ]
    assert names(project, git(project.root, "rev-parse", "main")) == []


def test_a_commit_of_a_run_is_in_the_version_that_the_run_made(history: History, project: Project) -> None:
    own = history.commit("alpha@v1")
    (version,) = asked(project, own)["versions"]
    assert (version["version"], version["what"]["how"]) == ("alpha@v1", "the version's own commit")
    (version,) = asked(project, git(project.root, "rev-parse", f"{own}~1"))["versions"]
    assert (version["version"], version["what"]["how"]) == ("alpha@v1", "a commit of its run")


# Packages


@pytest.mark.parametrize(
    ("package", "found"),
    [
        ("scikit-learn==1.9.1", ["beta@v1"]),
        ("scikit.LEARN", ["beta@v1"]),
        ("scikit-learn>=1.0,<1.9", []),
        ("scikit-learn>=1.9", ["beta@v1"]),
        ("numpy", ["beta@v1"]),
        ("numpy==2.5.5", []),
        ("never-heard-of", []),
    ],
)
def test_a_package_is_found_where_a_lock_pins_it_for_its_python(
    project: Project, package: str, found: list[str]
) -> None:
    assert names(project, package=package) == found


def test_other_pins_of_a_package_are_told(project: Project) -> None:
    found = asked(project, package="scikit-learn<1.9")
    assert found["otherPins"] == ["1.9.1"]
    assert found["notes"] == ["other versions pin scikit-learn 1.9.1"]
    assert asked(project, package="never-heard-of")["notes"] == [
        "no version's pipeline/requirements.txt names never-heard-of"
    ]


@pytest.mark.parametrize("package", ["scikit learn", "==1", "a @ https://example.com/a.whl", "a; python_version > '3'"])
def test_what_is_no_package_is_refused(project: Project, package: str) -> None:
    with pytest.raises(PackageRefused):
        lines(project, package=package)


# Records


def test_records_are_found_in_each_distinct_partition_and_the_versions_it_went_into(
    history: History, project: Project
) -> None:
    found = asked(project, where=f"name = '{PERSON}'", dataset="events")
    first, second = (partitions(project, commit)[FEBRUARY].md5 for commit in (history.first_data, history.second_data))
    february = {item["md5"]: item for item in found["contents"] if item["path"] == FEBRUARY}
    assert {md5: item["versions"] for md5, item in february.items()} == {
        first: ["alpha@v1"],
        second: ["alpha@v2", "beta@v1"],
    }
    assert {item["matching"] for item in found["contents"]} == {1}
    assert len(found["contents"]) == 5  # January, February twice, March, April
    assert [version["what"] for version in found["versions"]] == [{"rows": 3, "partitions": 3}] * 3
    assert names(project, where="name = 'event 11'", dataset="events") == ["alpha@v2", "beta@v1"]
    assert names(project, where="name = 'nobody'", dataset="data/raw/events") == []


@pytest.fixture
def on_s3(changed: Project, monkeypatch: pytest.MonkeyPatch) -> Iterator[Project]:
    """The project on a machine with an empty cache, its remote on S3."""
    with S3Server() as server:
        for name, value in credentials(server).items():
            monkeypatch.setenv(name, value)
        use_s3(changed.root, server, "impact")
        shutil.copytree(changed.settings.var / "remote", server.folder / "impact", dirs_exist_ok=True)
        shutil.rmtree(changed.settings.cache)
        yield changed


def test_a_partition_that_only_a_remote_folder_has_is_searched_there(changed: Project) -> None:
    shutil.rmtree(changed.settings.cache)
    condition = f"name = '{PERSON}'"
    assert names(changed, where=condition, dataset="events") == ["alpha@v1", "alpha@v2", "beta@v1"]


def test_what_only_s3_has_is_fetched_for_the_search_and_nothing_of_it_or_of_the_condition_is_kept(
    history: History, project: Project, on_s3: Project
) -> None:
    condition = f"name = '{PERSON}'"
    (told,) = lines(on_s3, where=condition, dataset="events", as_json=True)
    found = json.loads(told)
    assert found == asked(project, where=condition, dataset="events")
    assert found["unsearchable"] == []
    with pytest.raises(ConditionRefused) as refused:
        lines(on_s3, where=f"{condition}; SELECT 1", dataset="events")
    assert PERSON not in told + str(refused.value)
    assert list(on_s3.settings.workspaces.iterdir()) == []
    assert not any(object_path(on_s3.settings.cache, item["md5"]).exists() for item in found["contents"])
    files = [file for file in on_s3.root.rglob("*") if file.is_file() and file.name != "source.db"]
    assert [file for file in files if condition.encode() in file.read_bytes()] == []


def test_what_cannot_be_searched_is_named_with_the_reason(history: History, changed: Project) -> None:
    lost, forgotten = (partitions(changed, commit)[FEBRUARY] for commit in (history.first_data, history.second_data))
    for store in (changed.settings.cache, changed.settings.var / "remote"):
        object_path(store, lost.md5).unlink()
    stone = tombstones.Tombstone(forgotten.md5, forgotten.sha256, "T-1", "2026-01-01", forgotten.path)
    tombstones.bury(changed.mirror, [stone], "T-1")
    found = asked(changed, where=f"name = '{PERSON}'", dataset="events")
    assert {item["md5"]: item["why"] for item in found["unsearchable"]} == {
        lost.md5: "is neither in this machine's cache nor in the DVC remote; push it from a machine that has it",
        forgotten.md5: "was forgotten on request T-1",
    }
    assert len(found["contents"]) == 3
    assert sum(line.startswith("not searched: ") for line in lines(changed, where="size = 1", dataset="events")) == 2


def test_a_flipped_byte_is_found_and_counts_for_nothing(history: History, changed: Project) -> None:
    condition = {"where": f"name = '{PERSON}'", "dataset": "events"}
    before = asked(changed, **condition)
    md5 = next(item["md5"] for item in before["contents"] if item["path"] == FEBRUARY)
    stores = (changed.settings.cache, changed.settings.var / "remote")
    rot(object_path(stores[0], md5))
    assert asked(changed, **condition) == before, "the remote has a sound copy"
    rot(object_path(stores[1], md5))
    after = asked(changed, **condition)
    assert [item["why"] for item in after["unsearchable"]] == [
        "has other bytes on this machine than the record says; `retrace doctor --rehash` says where"
    ]
    assert [item for item in before["contents"] if item["md5"] != md5] == after["contents"]


def rot(file: Path) -> None:
    content = file.read_bytes()
    place = len(content) // 2
    file.chmod(0o644)
    file.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
    file.chmod(0o444)


def test_a_condition_of_several_lines_is_read_from_input_whole(
    project: Project, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Cut off after a line, a request to forget would remove other records than those that were asked for."""
    import retrace.cli_past  # noqa: F401 - adds its commands

    monkeypatch.chdir(project.root)
    told = []
    for condition in (f"name = '{PERSON}'\nAND size < 0\n", f"name = '{PERSON}' AND size < 0", f"name = '{PERSON}'"):
        monkeypatch.setattr(sys, "stdin", io.StringIO(condition))
        app(["impact", "--dataset", "events", "--where", "-"], standalone_mode=False)
        told.append(capsys.readouterr().out)
    assert told[0] == told[1] != told[2]


def test_the_dataset_must_be_clear(history: History, project: Project, with_a_version: Project) -> None:
    with pytest.raises(DatasetUnclear, match="events, sizes"):
        lines(project, where="size = 1")
    with pytest.raises(UnknownThing, match="no dataset nothing; there are events, sizes"):
        lines(project, where="size = 1", dataset="nothing")
    assert names(with_a_version, where="size = 1") == ["alpha@v1"]


def test_a_column_that_one_dataset_lacks_is_told_with_those_it_has(project: Project) -> None:
    with pytest.raises(ConditionRefused, match="the columns are moment, size"):
        lines(project, where="name = 'x'", dataset="sizes")


# What events tell of raw data, and what manifests do


def content(path: str, number: int) -> Partition:
    """One of the contents of a partition; its line is as long as those of the others below ten."""
    name = f"data/raw/{path}.parquet"
    text = f"{name} {number}".encode()
    return Partition(name, hashlib.md5(text).hexdigest(), hashlib.sha256(text).hexdigest(), number)


class RawHistory:
    """A branch data by hand, and versions whose commits have raw data of some state of it."""

    def __init__(self, folder: Path) -> None:
        git(folder.parent, "init", "-q", "-b", "main", str(folder))
        self.git = Git(folder)
        self.tip: str | None = None
        self.number = 0

    def ingest(
        self,
        *items: Partition,
        told: Sequence[Partition] | None = None,
        gone: Sequence[str] = (),
        silent: bool = False,
        parents: Sequence[str] = (),
    ) -> str:
        """Commit partitions on the branch, with an event of them, or of what is `told`, or with none of its own."""
        rows = self.rows(self.tip) if self.tip else {}
        rows = {path: item for path, item in (rows | {item.path: item for item in items}).items() if path not in gone}
        files = _raw_files(rows.values())
        if not silent:
            facts = {"partitions": [vars(item) for item in (items if told is None else told)], "run": f"{self.number}"}
            event = {"run": {"facets": {"retrace": facts}, "runId": f"{self.number}"}}
            files["data/raw/ingest.json"] = (json.dumps(event, indent=1, sort_keys=True) + "\n").encode()
        self.number += 1
        return self.commit(files, parents)

    def commit(self, files: Mapping[str, bytes | str | None], parents: Sequence[str] = ()) -> str:
        first = [self.tip] if self.tip else []
        self.tip = self.git.write_commit(self.tip, files, [*first, *parents], "data\n")
        self.git.out("update-ref", "refs/heads/data", self.tip)
        return self.tip

    def version(self, files: Mapping[str, bytes | str | None] | None = None) -> None:
        """A version of the newest data, or of that with some files replaced; alpha reads events, beta sizes, too."""
        params = b"models:\n  alpha: {datasets: [events]}\n  beta: {datasets: [events, sizes]}\n"
        commit = self.git.write_commit(self.tip, {"params.yaml": params, **(files or {})}, [], "run\n")
        for model in ("alpha", "beta"):
            name = f"{model}@v{len(versions.versions(self.git, model)) + 1}"
            tag = self.git.write_tag(name, commit, message(name, {"Retrace-Run": name}))
            self.git.out("update-ref", f"refs/tags/{name}", tag)

    def rows(self, commit: str, datasets: Sequence[str] = ("events", "sizes")) -> dict[str, Partition]:
        """What the manifests of a commit have."""
        texts = [self.git.read(commit, f"data/raw/{dataset}.manifest") or b"" for dataset in datasets]
        return {item.path: item for text in texts for item in parse_manifest(text.decode(), "manifest")}

    def truth(self) -> dict[Partition, tuple[list[str], bool]]:
        """Every content that a manifest has: the versions that it went into, and whether it is in the newest data."""
        found: dict[Partition, tuple[list[str], bool]] = {}
        newest = self.rows("refs/heads/data").values() if self.tip else ()
        for commit in git(self.git.directory, "rev-list", "--first-parent", "data").split() if self.tip else ():
            for item in self.rows(commit).values():
                found.setdefault(item, ([], item in newest))
        for version in versions.versions(self.git):
            read = ["events", "sizes"] if version.model == "beta" else ["events"]
            for item in self.rows(version.commit).values():
                users, _ = found.setdefault(item, ([], False))
                if item.path.split("/")[2] in read:
                    users.append(version.name)
        return found

    def told(self, wanted: Wanted | None) -> dict[Partition, tuple[list[str], bool]]:
        """The same as the code has it."""
        raw = RawData(Holdings(self.git))
        return {item.partition: ([*item.versions], item.in_newest) for item in raw.held(raw.contents(wanted))}


def _raw_files(rows: Iterable[Partition]) -> dict[str, bytes | str | None]:
    files: dict[str, list[Partition]] = {"events": [], "sizes": []}
    for item in rows:
        files[item.path.split("/")[2]].append(item)
    return {f"data/raw/{name}.manifest": format_manifest(own).encode() for name, own in files.items() if own}


def honest(history: RawHistory) -> None:
    """All that may become of a branch where each event is of its own commit."""
    history.ingest(content("events/2013-01", 1))
    history.version()
    history.ingest(content("events/2013-02", 1), content("sizes/2013-02", 1))
    second = history.ingest(content("events/2013-03", 1))
    history.version()
    history.ingest(content("events/2013-02", 2))  # replaced
    history.version()
    history.ingest(content("events/2013-02", 1), content("events/2013-04", 10))  # and back
    history.version()
    history.ingest(content("events/2013-03", 2), gone=["data/raw/events/2013-01.parquet"], silent=True)  # by hand
    history.version()
    history.ingest(content("sizes/2013-03", 1))
    history.version(_raw_files([content("events/2013-01", 3), content("sizes/2013-01", 3)]))  # of another history
    side = history.git.write_commit(second, {}, [second], "side\n")
    history.ingest(
        content("events/2013-05", 1), content("events/2013-06", 1), told=[content("events/2013-05", 1)], parents=[side]
    )  # merged
    history.version()
    kept = history.git.files(second, "data/raw")
    history.commit(dict.fromkeys(history.git.files(str(history.tip), "data/raw")) | kept)  # reverted, with the event
    history.version()
    history.ingest(content("events/2013-02", 4))
    history.commit({"data/raw/ingest.json": None})
    history.ingest(content("events/2013-02", 5), silent=True)
    history.version()
    history.commit({"data/raw/sizes.manifest": None})
    history.version()


def replaced_in_secret(history: RawHistory) -> None:
    history.ingest(content("events/2013-01", 1))
    history.ingest(content("events/2013-01", 2), content("events/2013-02", 1), told=[content("events/2013-02", 1)])
    history.version()
    history.ingest(content("events/2013-01", 3))


def brought_in_secret(history: RawHistory) -> None:
    history.ingest(content("events/2013-01", 1))
    history.ingest(content("events/2013-02", 1), content("events/2013-03", 1), told=[content("events/2013-02", 1)])
    history.version()
    history.ingest(content("events/2013-03", 2))


def told_of_another_content(history: RawHistory) -> None:
    history.ingest(content("events/2013-01", 1), told=[content("events/2013-01", 2)])
    history.version()
    history.ingest(content("events/2013-02", 1))


def told_of_what_did_not_come(history: RawHistory) -> None:
    history.ingest(content("events/2013-01", 1))
    history.ingest(content("events/2013-02", 1), told=[content("events/2013-02", 1), content("events/2013-03", 1)])
    history.version()


def told_of_it_too_late(history: RawHistory) -> None:
    history.ingest(content("events/2013-01", 1))
    history.ingest(content("events/2013-01", 2), content("events/2013-02", 1), told=[content("events/2013-02", 1)])
    history.version()
    history.ingest(content("events/2013-03", 1), told=[content("events/2013-03", 1), content("events/2013-01", 2)])


def without_a_branch(history: RawHistory) -> None:
    for number in range(1, 4):
        history.version(_raw_files([content("events/2013-01", number), content("sizes/2013-01", number % 2)]))


@pytest.mark.parametrize(
    "story",
    [
        honest,
        replaced_in_secret,
        brought_in_secret,
        told_of_another_content,
        told_of_what_did_not_come,
        told_of_it_too_late,
        without_a_branch,
    ],
)
def test_whatever_events_tell_the_manifests_are_right(story: Callable[[RawHistory], None], tmp_path: Path) -> None:
    history = RawHistory(tmp_path / "raw")
    story(history)
    truth = history.truth()
    assert any(users for users, _ in truth.values())
    assert history.told(None) == truth
    for item in truth:
        of_path = {other: held for other, held in truth.items() if other.path == item.path}
        assert history.told(lambda line, path=item.path: line.startswith(f"{path} ".encode())) == of_path
        for value in (item.md5, item.sha256):
            assert history.told(lambda line, value=value: value.encode() in line) == {item: truth[item]}


def test_what_an_ingestion_tells_is_understood(project: Project) -> None:
    commits = git(project.root, "rev-list", "--reverse", "refs/heads/data").split()
    before: set[bytes] = set()
    for commit in commits:
        manifests = [project.git.read(commit, f"data/raw/{name}.manifest") or b"" for name in ("events", "sizes")]
        lines = {line for text in manifests for line in text.splitlines()}
        assert set(brought(project.git.read(commit, INGEST_EVENT) or b"")) == lines - before
        before = lines
    assert len(commits) > 1


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """The ids of the manifests that are read."""
    found: set[str] = set()
    stream = Holdings.stream

    def watched(self: Holdings, ids: Iterable[str]) -> Iterator[tuple[str, bytes]]:
        for oid, text in stream(self, ids):
            found.update([oid] if MANIFEST_LINE.match(text) else [])
            yield oid, text

    monkeypatch.setattr(Holdings, "stream", watched)
    return found


def test_commits_without_an_event_of_their_own_are_read_and_the_others_believed(tmp_path: Path, read: set[str]) -> None:
    history = RawHistory(tmp_path / "raw")
    honest(history)
    history.told(lambda line: b"events/2013-05" in line)
    of_ingestions = [git(history.git.directory, "rev-parse", f"data~{back}:{EVENTS}") for back in (12, 11, 9)]
    assert read and read.isdisjoint(of_ingestions)


def test_where_events_tell_it_hardly_a_manifest_is_read(project: Project, read: set[str]) -> None:
    april = partitions(project, "data")["data/raw/events/2013-04.parquet"]
    for thing in (april.path, april.md5, april.sha256):
        assert names(project, thing) == []
    manifests = [git(project.root, "rev-parse", f"data:data/raw/{name}.manifest") for name in ("events", "sizes")]
    before = git(project.root, "rev-parse", "data~1:data/raw/events.manifest")
    assert read == {before, *manifests}, "the newest of each dataset, and that before the content came"


# What is said, and how it ends


def test_the_text_names_the_versions_who_holds_an_alias_and_what_they_have(history: History, project: Project) -> None:
    md5 = partitions(project, history.first_data)[FEBRUARY].md5
    found = lines(project, FEBRUARY)
    assert found[:2] == [f"{FEBRUARY}, 2 contents", f"  md5 {md5}  10 rows  in alpha@v1"]
    header, first = found[4].split(), found[5].split()
    assert header == ["VERSION", "MADE", "DATA", "THROUGH", "ALIAS", "WHAT"]
    assert [first[0], first[3], first[4], first[-1]] == ["alpha@v1", "2013-03-31", "champion", md5[:12]]
    assert found[-1] == "3 of 3 versions; alpha@v1 is champion"
    assert lines(project, "data/raw/sizes")[-1] == "1 of 3 versions; none of them holds an alias"


def test_a_version_that_can_no_longer_be_rebuilt_is_said_to_be_such(changed: Project) -> None:
    version = versions.find(changed.git, "alpha@v1")
    verdicts.keep(changed.mirror, version, verdicts.IMPOSSIBLE, {"reason": "a partition is lost"})
    assert [item["verdict"] for item in asked(changed, FEBRUARY)["versions"]] == ["impossible", None, None]
    assert lines(changed, FEBRUARY)[-1] == "alpha@v1 can no longer be rebuilt: a partition is lost"


def test_the_json_is_the_same_each_time(project: Project) -> None:
    for thing in (FEBRUARY, CODE, "data/raw/events", "models/alpha.skops"):
        assert lines(project, thing, as_json=True) == lines(project, thing, as_json=True)


@pytest.mark.parametrize(
    "thing",
    [
        "nothing/here.py",
        "deadbeef",
        "data/raw/nothing",
        "data/raw/events/2099-01.parquet",
        f"{CODE}@nothing",
        f"{CODE}@",
        "nothing.py@main",
        "alpha@v1",
        "../elsewhere.py",
        "/etc/passwd",
        "a\nb",
        "",
        "--all",
        "-",
    ],
)
def test_what_git_does_not_know_is_told_in_one_line(project: Project, thing: str) -> None:
    with pytest.raises(UnknownThing) as told:
        lines(project, thing)
    assert "\n" not in str(told.value)


def test_one_thing_is_asked_at_a_time(project: Project) -> None:
    for call in ({}, {"package": "a", "where": "b = 1"}, {"package": "a", "dataset": "events"}):
        with pytest.raises(NotOneThing):
            lines(project, **call)
    with pytest.raises(NotOneThing):
        lines(project, CODE, package="numpy")


def test_a_repository_without_versions_or_data_answers(empty_project: Project) -> None:
    assert lines(empty_project, package="numpy")[-1] == "0 of 0 versions"
    assert lines(empty_project, "f" * 64)[-1] == "0 of 0 versions"
    assert lines(empty_project, CODE)[-1] == "0 of 0 versions"
    with pytest.raises(UnknownThing, match="run `retrace ingest"):
        lines(empty_project, where="a = 1")


def test_an_origin_elsewhere_is_asked_through_the_mirror(changed: Project, tmp_path: Path) -> None:
    origin = tmp_path / "origin.git"
    git(tmp_path, "clone", "-q", "--mirror", str(changed.root), str(origin))
    for name in ("alpha@v1", "alpha@v2"):
        git(changed.root, "tag", "-d", name)
    elsewhere = Project(changed.root, Settings.load(changed.root, {"RETRACE_ORIGIN": str(origin)}))
    assert names(elsewhere, FEBRUARY) == ["alpha@v1", "alpha@v2", "beta@v1"]


def test_git_is_asked_no_more_often_for_many_versions(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    run = Git.run

    def counted(self: Git, *arguments: str, **options: Any) -> subprocess.CompletedProcess[bytes]:
        calls.append(arguments[0])
        return run(self, *arguments, **options)

    monkeypatch.setattr(Git, "run", counted)
    lines(project, FEBRUARY)
    assert len(calls) <= 10, calls


def test_the_command_prints_it(project: Project) -> None:
    command = [str(Path(sys.executable).with_name("retrace")), "impact"]
    done = subprocess.run([*command, CODE], cwd=project.root, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "3 of 3 versions; alpha@v1 is champion"
    condition = f"name = '{PERSON}'"
    done = subprocess.run(
        [*command, "--where", "-", "--dataset", "events"],
        cwd=project.root,
        input=f"{condition}\n",
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.splitlines()[-1] == "3 of 3 versions; alpha@v1 is champion"
    done = subprocess.run([*command, "nothing"], cwd=project.root, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
