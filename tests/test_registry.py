"""MLflow as a view: what a version looks like there, that it can be written again, and what an outage does."""

from __future__ import annotations

import hashlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import traceback
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy
import pandas
import pytest

from retrace.published import Artifact, Dataset, Entry, EntryError, Fingerprint, provenance
from retrace.registry import Registry, RegistryConflict, RegistryRefused, RegistryUnavailable, prepare
from retrace.registry.contact import address, explain
from retrace.registry.servable import ModelFileChanged

# MLflow and scikit-learn take seconds: who only collects these tests does without.
if TYPE_CHECKING:
    from mlflow import MlflowClient

ROOT = Path(__file__).parent.parent
COMMITS = {number: f"{number:x}" * 40 for number in range(1, 10)}
SCHEMA = (("carrier", "string"), ("distance", "integer"), ("wind", "float"))


@pytest.fixture(scope="session")
def features() -> pandas.DataFrame:
    random = numpy.random.default_rng(7)
    wind = random.normal(10, 4, 300)
    wind[::9] = numpy.nan
    return pandas.DataFrame(
        {"carrier": random.choice(["AA", "UA", "DL"], 300), "distance": random.integers(90, 4000, 300), "wind": wind}
    )


@pytest.fixture(scope="session")
def estimators(features: pandas.DataFrame) -> dict[str, Any]:
    from sklearn.compose import make_column_transformer
    from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import OrdinalEncoder, StandardScaler

    def pipeline(estimator: Any) -> Any:
        encoder = make_column_transformer((OrdinalEncoder(), ["carrier"]), remainder=StandardScaler())
        return make_pipeline(encoder, estimator)

    late = (features["distance"] % 7 > 3).to_numpy()
    minutes = features["distance"].to_numpy() / 7.3
    return {
        "late_arrival": pipeline(HistGradientBoostingClassifier(max_iter=8, random_state=1)).fit(features, late),
        "air_time": pipeline(HistGradientBoostingRegressor(max_iter=8, random_state=1)).fit(features, minutes),
    }


@pytest.fixture(scope="session")
def model_files(estimators: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    import skops.io

    folder = tmp_path_factory.mktemp("models")
    for model, estimator in estimators.items():
        skops.io.dump(estimator, folder / f"{model}.skops")
    return {model: folder / f"{model}.skops" for model in estimators}


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty store; each test that writes copies it, since making its tables takes seconds."""
    file = tmp_path_factory.mktemp("store") / "mlflow.db"
    prepare(f"sqlite:///{file}")
    return file


@pytest.fixture
def registry(template: Path, tmp_path: Path) -> Registry:
    file = tmp_path / "mlflow" / "mlflow.db"
    file.parent.mkdir()
    file.write_bytes(template.read_bytes())
    return Registry(f"sqlite:///{file}", artifact_root=str(tmp_path / "mlflow" / "artifacts"))


@pytest.fixture
def client(registry: Registry) -> MlflowClient:
    from mlflow import MlflowClient

    return MlflowClient(registry.uri)


def fingerprint(file: Path) -> Fingerprint:
    content = file.read_bytes()
    return Fingerprint(hashlib.md5(content).hexdigest(), hashlib.sha256(content).hexdigest())


def make_entry(model_file: Path, number: int = 1) -> Entry:
    import sklearn

    flights = Fingerprint("ab" * 16 + ".dir", "cd" * 32)
    return Entry(
        model=model_file.stem,
        number=number,
        commit=COMMITS[number],
        created=datetime(2013, 7, number, 6, 30, tzinfo=UTC),
        parameters={"train.trials": "20", "train.search.learning_rate": "[0.01, 0.3]"},
        metrics={"holdout.roc_auc": 0.791234, "validation.roc_auc": 0.8},
        model_file=model_file,
        model_fingerprint=fingerprint(model_file),
        requirements=[f"scikit-learn=={sklearn.__version__}", f"numpy=={numpy.__version__}", "skops==0.16.0"],
        input_schema=SCHEMA,
        input_example=[
            {"carrier": "AA", "distance": 700, "wind": None},
            {"carrier": "DL", "distance": 1200, "wind": 3.25},
        ],
        datasets=[Dataset("data/raw/flights", flights.md5, rows=336_776)],
        files=[Artifact(f"plots/{model_file.stem}/trials.csv", b"trial,value\n0,0.7\n")],
        provenance=provenance(
            features=Fingerprint("12" * 16 + ".dir", "34" * 32),
            datasets={"data/raw/flights": flights},
            environment="56" * 32,
            parameters="78" * 32,
            run_id="manual__2013-07-03",
        ),
    )


@pytest.fixture
def entry(model_files: Mapping[str, Path]) -> Entry:
    return make_entry(model_files["late_arrival"])


def everything(client: MlflowClient, model: str) -> dict[str, list[str]]:
    """What MLflow shows of a model, deleted runs included."""
    experiments = [found.experiment_id for found in client.search_experiments(filter_string=f"name = '{model}'")]
    return {
        "runs": sorted(run.info.run_id for run in client.search_runs(experiments, run_view_type=3)),
        "logged models": sorted(found.model_id for found in client.search_logged_models(experiments)),
        "versions": sorted(found.version for found in client.search_model_versions(f"name = '{model}'")),
    }


def load(registry: Registry, uri: str) -> Any:
    import mlflow

    mlflow.set_tracking_uri(registry.uri)
    try:
        return mlflow.pyfunc.load_model(uri)
    finally:
        mlflow.set_tracking_uri(None)  # it is in the environment of the whole process


# What a version looks like


def test_a_version_carries_its_whole_record(registry: Registry, client: MlflowClient, entry: Entry) -> None:
    run = client.get_run(registry.publish(entry))
    version = client.get_model_version("late_arrival", "1")
    assert version.run_id == run.info.run_id
    assert version.tags == entry.tags
    assert entry.tags.items() <= run.data.tags.items()
    assert run.data.tags["mlflow.source.git.commit"] == entry.commit
    assert run.info.run_name == "late_arrival@v1"
    assert run.info.status == "FINISHED"
    assert run.info.start_time == run.info.end_time == 1000 * int(entry.created.timestamp())
    assert run.data.params == entry.parameters
    assert run.data.metrics == entry.metrics
    [data] = run.inputs.dataset_inputs
    assert (data.dataset.name, data.dataset.digest) == ("data/raw/flights", "ab" * 16 + ".dir")
    assert json.loads(data.dataset.profile) == {"num_rows": 336_776}
    assert {tag.key: tag.value for tag in data.tags} == {"mlflow.data.context": "training"}
    trials = client.download_artifacts(run.info.run_id, "plots/late_arrival/trials.csv")
    assert Path(trials).read_bytes() == b"trial,value\n0,0.7\n"


@pytest.mark.parametrize("key", ["git.tag", "model.md5", "data/raw/flights.md5", "features.sha256", "environment.lock"])
def test_a_version_is_found_by_its_tags(
    registry: Registry, client: MlflowClient, model_files: Mapping[str, Path], key: str
) -> None:
    entry = make_entry(model_files["late_arrival"])
    registry.publish(entry)
    question = f"tags.`{key}` = '{entry.tags[key]}'"
    assert [found.version for found in client.search_model_versions(question)] == [1]
    experiment = client.get_experiment_by_name("late_arrival").experiment_id
    assert len(client.search_runs([experiment], question)) == 1


def test_the_artifact_is_the_tracked_file_byte_for_byte(
    registry: Registry, client: MlflowClient, entry: Entry, tmp_path: Path
) -> None:
    cached = tmp_path / "cache" / "ab" / "cdef"
    cached.parent.mkdir(parents=True)
    cached.write_bytes(entry.model_file.read_bytes())
    cached.chmod(0o444)
    registry.publish(replace(entry, model_file=cached))
    folder = Path(client.get_model_version("late_arrival", "1").source)
    assert folder.is_relative_to(tmp_path / "mlflow" / "artifacts")
    [served] = (folder / "artifacts").iterdir()
    assert served.name == "late_arrival.skops"
    assert not served.is_symlink()
    assert served.stat().st_mode & 0o200, "a second attempt must be able to write it again"
    assert fingerprint(served) == entry.model_fingerprint
    assert (folder / "requirements.txt").read_text().splitlines()[1:] == list(entry.requirements)


@pytest.mark.parametrize("model", ["late_arrival", "air_time"])
def test_served_numbers_are_the_models_own(
    registry: Registry,
    model_files: Mapping[str, Path],
    estimators: Mapping[str, Any],
    features: pandas.DataFrame,
    model: str,
) -> None:
    registry.publish(make_entry(model_files[model]))
    registry.alias(model, "champion", 1)
    estimator = estimators[model]
    expected = estimator.predict_proba(features)[:, 1] if model == "late_arrival" else estimator.predict(features)
    served = load(registry, f"models:/{model}@champion")
    assert served.predict(features).tobytes() == expected.tobytes()
    shuffled = features[["wind", "carrier", "distance"]]
    assert served.predict(shuffled).tobytes() == expected.tobytes()
    assert len(served.predict(served.input_example)) == 2


# Numbers, repetition, interruption


def test_numbers_follow_the_tags_and_nothing_is_written_twice(
    registry: Registry, client: MlflowClient, entry: Entry, model_files: Mapping[str, Path]
) -> None:
    assert registry.versions("late_arrival") == {}
    first = registry.publish(entry)
    registry.publish(make_entry(model_files["late_arrival"], 2))
    before = everything(client, "late_arrival")
    assert registry.publish(entry) == first
    assert everything(client, "late_arrival") == before
    assert registry.versions("late_arrival") == {1: "late_arrival@v1", 2: "late_arrival@v2"}


STEPS = ["create_run", "create_logged_model", "log_artifacts", "log_model_artifacts", "finalize_logged_model"]
STEPS += ["log_batch", "log_inputs", "log_outputs", "set_terminated", "create_registered_model", "create_model_version"]


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_killed_attempt_is_finished(
    registry: Registry, client: MlflowClient, entry: Entry, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    from mlflow import MlflowClient

    class Killed(BaseException):
        pass

    def die_at(step: str) -> Any:
        call = getattr(MlflowClient, step)

        def dying(*arguments: Any, **named: Any) -> None:
            if when == "after":
                call(*arguments, **named)
            raise Killed

        return dying

    for step in STEPS:
        with monkeypatch.context() as patched:
            patched.setattr(MlflowClient, step, die_at(step))
            with pytest.raises(Killed):
                registry.publish(entry)
    run = registry.publish(entry)
    found = everything(client, "late_arrival")
    assert [len(found[kind]) for kind in found] == [1, 1, 1]
    assert client.get_run(run).info.status == "FINISHED"
    assert [metric.value for metric in client.get_metric_history(run, "holdout.roc_auc")] == [0.791234]
    assert load(registry, "models:/late_arrival/1").predict(pandas.DataFrame(entry.input_example)).shape == (2,)


def test_a_registry_that_was_edited_by_hand_is_refused_with_the_way_out(
    registry: Registry, client: MlflowClient, entry: Entry, model_files: Mapping[str, Path]
) -> None:
    third = make_entry(model_files["late_arrival"], 3)
    registry.publish(entry)
    with pytest.raises(RegistryConflict, match=r"late_arrival@v3 as version 3 .*its versions are 1;.*retrace sync"):
        registry.publish(third)
    with pytest.raises(RegistryConflict, match=r"version 1 is late_arrival@v1 at 11111111, not ffffffff"):
        registry.publish(replace(entry, commit="f" * 40))
    client.create_model_version("late_arrival", "somewhere")
    assert registry.versions("late_arrival") == {1: "late_arrival@v1", 2: ""}
    with pytest.raises(RegistryConflict, match=r"version 2 is made by hand at no comm.*delete the registered model"):
        registry.publish(make_entry(model_files["late_arrival"], 2))
    client.delete_model_version("late_arrival", "2")
    with pytest.raises(RegistryConflict, match=r"the next number that it gives is 3.*delete the registered model"):
        registry.publish(make_entry(model_files["late_arrival"], 2))
    assert registry.versions("late_arrival") == {1: "late_arrival@v1"}


def test_the_way_out_works(
    registry: Registry, client: MlflowClient, entry: Entry, model_files: Mapping[str, Path]
) -> None:
    second = make_entry(model_files["late_arrival"], 2)
    runs = [registry.publish(entry), registry.publish(second)]
    experiment = client.get_run(runs[0]).info.experiment_id
    for binned in (lambda: client.delete_run(runs[0]), lambda: client.delete_experiment(experiment)):
        client.delete_registered_model("late_arrival")
        binned()
        assert [registry.publish(entry), registry.publish(second)] == runs
        assert registry.versions("late_arrival") == {1: "late_arrival@v1", 2: "late_arrival@v2"}
        assert [len(found) for found in everything(client, "late_arrival").values()] == [2, 2, 2]
        assert client.get_run(runs[0]).info.lifecycle_stage == "active"


def test_runs_left_by_lost_answers_are_removed(
    registry: Registry, client: MlflowClient, entry: Entry, tmp_path: Path
) -> None:
    experiment = client.create_experiment("late_arrival", artifact_location=str(tmp_path / "artifacts"))
    for _ in range(2):
        client.create_run(experiment, tags=entry.tags)
    run = registry.publish(entry)
    assert [found.info.run_id for found in client.search_runs([experiment])] == [run]


def test_two_processes_publish_two_models_into_one_new_store(model_files: Mapping[str, Path], tmp_path: Path) -> None:
    """Neither waits for ever or fails, though the store does not exist yet; and nobody else is called."""
    program = f"""
import sys
CALLS = "socket.connect", "socket.getaddrinfo"
sys.addaudithook(lambda event, of: print("CALLS", of) if event in CALLS else None)
from pathlib import Path
from tests.test_registry import make_entry
from retrace.registry import Registry
registry = Registry("sqlite:///{tmp_path}/mlflow.db", artifact_root="{tmp_path}/artifacts")
for number in 1, 2, 3:
    registry.publish(make_entry(Path(sys.argv[1]), number))
"""
    # MLflow tells its makers about its use, unless it finds itself under test or in CI.
    environment = {key: value for key, value in os.environ.items() if key not in ("PYTEST_CURRENT_TEST", "CI")}
    environment.pop("MLFLOW_DISABLE_TELEMETRY", None)
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", program, str(file)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env=environment,
        )
        for file in model_files.values()
    ]
    for process in processes:
        output, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
        assert "CALLS" not in output
    registry = Registry(f"sqlite:///{tmp_path}/mlflow.db")
    for model in model_files:
        assert registry.versions(model) == {number: f"{model}@v{number}" for number in (1, 2, 3)}


# Aliases


def test_aliases_are_set_moved_and_removed(registry: Registry, entry: Entry, model_files: Mapping[str, Path]) -> None:
    assert registry.aliases("late_arrival") == {}
    registry.publish(entry)
    registry.publish(make_entry(model_files["late_arrival"], 2))
    registry.alias("late_arrival", "champion", 1)
    registry.alias("late_arrival", "champion", 2)
    registry.alias("late_arrival", "previous", 1)
    assert registry.aliases("late_arrival") == {"champion": 2, "previous": 1}
    registry.remove_alias("late_arrival", "previous")
    registry.remove_alias("late_arrival", "previous")
    assert registry.aliases("late_arrival") == {"champion": 2}
    with pytest.raises(RegistryConflict, match=r"has no late_arrival@v7 yet; run `retrace sync`"):
        registry.alias("late_arrival", "champion", 7)


# What is not published or served


def test_a_file_that_is_not_the_recorded_one_is_not_published(
    registry: Registry, client: MlflowClient, entry: Entry, tmp_path: Path
) -> None:
    changed = tmp_path / "late_arrival.skops"
    changed.write_bytes(entry.model_file.read_bytes() + b" ")
    with pytest.raises(ModelFileChanged, match=r"is not the model of late_arrival@v1 .*pull it again"):
        registry.publish(replace(entry, model_file=changed))
    assert client.get_experiment_by_name("late_arrival") is None


def test_what_could_not_be_served_is_not_published(registry: Registry, entry: Entry) -> None:
    with pytest.raises(EntryError, match="pins no scikit-learn"):
        replace(entry, requirements=["numpy==2.4.6", "scikit-learn-extra==1.0"])
    with pytest.raises(EntryError, match="names no input columns"):
        replace(entry, input_schema=[])
    with pytest.raises(EntryError, match="column wind of late_arrival@v1 is of type 'category'; MLflow is told one of"):
        replace(entry, input_schema=[("wind", "category")])
    with pytest.raises(EntryError, match="cannot be the name of an artifact"):
        Artifact("../late_arrival.csv", b"")
    with pytest.raises(EntryError, match="the input example of late_arrival@v1 is not of the model's columns"):
        registry.publish(replace(entry, input_example=[{"carrier": "AA", "distance": None, "wind": 1.0}]))
    assert registry.versions("late_arrival") == {}


def test_a_file_changed_after_registration_is_not_opened(
    registry: Registry, client: MlflowClient, entry: Entry, monkeypatch: pytest.MonkeyPatch
) -> None:
    import skops.io

    registry.publish(entry)
    [served] = (Path(client.get_model_version("late_arrival", "1").source) / "artifacts").iterdir()
    content = bytearray(served.read_bytes())
    content[len(content) // 2] ^= 1
    served.write_bytes(content)
    for opener in "loads", "get_untrusted_types":
        monkeypatch.setattr(skops.io, opener, lambda *_, **__: pytest.fail("opened before it was checked"))
    with pytest.raises(Exception, match="was changed after it was registered .* was not opened"):
        load(registry, "models:/late_arrival/1")


def test_another_scikit_learn_is_refused(registry: Registry, entry: Entry) -> None:
    registry.publish(replace(entry, requirements=["scikit-learn==1.2.0"]))
    with pytest.raises(Exception, match=r"trained with scikit-learn 1\.2\.0 .*install scikit-learn==1\.2\.0"):
        load(registry, "models:/late_arrival/1")


@pytest.mark.parametrize("function", [os.system, numpy.load])
def test_a_file_that_names_foreign_code_is_refused(registry: Registry, tmp_path: Path, function: Any) -> None:
    import skops.io
    from sklearn.preprocessing import FunctionTransformer

    file = tmp_path / "late_arrival.skops"
    skops.io.dump(FunctionTransformer(func=function), file)
    registry.publish(make_entry(file))
    with pytest.raises(Exception, match="the model file holds .*not of scikit-learn; it was not loaded"):
        load(registry, "models:/late_arrival/1")


# Outages


@contextmanager
def listener(answer: bytes | None = None) -> Iterator[int]:
    """A port that accepts, and gives no answer (or this one)."""
    with closing(socket.create_server(("127.0.0.1", 0))) as server:
        port = server.getsockname()[1]
        pid = os.fork() if answer else None
        if pid == 0:
            while True:
                connection = server.accept()[0]
                connection.recv(65536)
                connection.sendall(answer or b"")
                connection.close()
        try:
            yield port
        finally:
            if pid:
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)


def free_port() -> int:
    with closing(socket.create_server(("127.0.0.1", 0))) as server:
        return int(server.getsockname()[1])


def assert_unavailable(uri: str, entry: Entry, shown: str) -> None:
    begin = time.monotonic()
    with pytest.raises(RegistryUnavailable) as caught:
        Registry(uri, patience=3).publish(entry)
    assert time.monotonic() - begin < 10
    message = str(caught.value)
    assert f"MLflow at {shown}" in message
    assert "\n" not in message
    assert "s3cret" not in "".join(traceback.format_exception(caught.value))


@pytest.mark.parametrize("scheme", ["http", "postgresql+psycopg2"])
def test_a_dead_server_is_noticed_at_once(entry: Entry, scheme: str) -> None:
    port = free_port()
    assert_unavailable(f"{scheme}://me:s3cret@127.0.0.1:{port}/x", entry, f"{scheme}://127.0.0.1:{port}/x")


@pytest.mark.parametrize("scheme", ["http", "postgresql+psycopg2"])
def test_a_server_that_never_answers_is_given_up(entry: Entry, scheme: str) -> None:
    with listener() as port:
        assert_unavailable(f"{scheme}://me:s3cret@127.0.0.1:{port}/x", entry, f"{scheme}://127.0.0.1:{port}/x")


@pytest.mark.parametrize("status", ["401 Unauthorized", "403 Forbidden", "500 Internal Server Error"])
def test_a_server_that_answers_with_an_error(entry: Entry, status: str) -> None:
    with listener(f"HTTP/1.1 {status}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".encode()) as port:
        assert_unavailable(f"http://me:s3cret@127.0.0.1:{port}", entry, f"http://127.0.0.1:{port}")


def test_an_artifact_store_that_cannot_be_written(registry: Registry, entry: Entry, tmp_path: Path) -> None:
    blocked = tmp_path / "full"
    blocked.write_text("a file where a folder should be")
    with pytest.raises(RegistryUnavailable, match="nothing is lost: `retrace sync` writes it later"):
        Registry(registry.uri, artifact_root=str(blocked)).publish(entry)


def test_an_artifact_store_that_never_answers(
    registry: Registry, entry: Entry, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"AWS_ACCESS_KEY_ID": "me", "AWS_SECRET_ACCESS_KEY": "s3cret"}.items():
        monkeypatch.setenv(name, value)
    with listener() as port:
        monkeypatch.setenv("MLFLOW_S3_ENDPOINT_URL", f"http://127.0.0.1:{port}")
        begin = time.monotonic()
        with pytest.raises(RegistryUnavailable, match=r"timeout.*nothing is lost"):
            Registry(registry.uri, artifact_root="s3://bucket/models", patience=2).publish(entry)
        assert time.monotonic() - begin < 10


def test_what_is_no_store_is_refused_at_once(entry: Entry, tmp_path: Path) -> None:
    with pytest.raises(RegistryRefused, match="is no MLflow address; use http"):
        Registry(str(tmp_path))
    with pytest.raises(RegistryRefused, match=r"driver of mssql\+pymssql://db/x is missing .*install it"):
        Registry("mssql+pymssql://me:s3cret@db/x").publish(entry)
    broken = tmp_path / "mlflow.db"
    broken.write_bytes(b"this is not a database" * 100)
    with pytest.raises(RegistryRefused, match="file is not a database"):
        Registry(f"sqlite:///{broken}").publish(entry)


def test_what_mlflow_refuses_is_said_once_and_not_retried(registry: Registry, entry: Entry) -> None:
    with pytest.raises(RegistryRefused, match="refused: .*a\\?b"):
        registry.publish(replace(entry, parameters={"a?b": "1"}))


@pytest.mark.parametrize(
    ("uri", "shown"),
    [
        ("https://me:p@ss/word#1@host:1/x?token=s3cret", "https://host:1/x"),
        ("postgresql+psycopg2://me:a#b@db/mlflow?password=s3cret", "postgresql+psycopg2://db/mlflow"),
        ("sqlite:////var/mlflow.db", "sqlite:////var/mlflow.db"),
    ],
)
def test_addresses_are_shown_without_credentials(uri: str, shown: str) -> None:
    assert address(uri) == shown


@pytest.mark.parametrize(
    ("uri", "reason"),
    [
        ("http://me:p%40ss@host/x", "http://me:p%40ss@host/x says p@ss is odd"),
        ("postgresql://db/mlflow?user=me&password=p@ss", "no option user=me&password=p@ss"),
    ],
)
def test_reasons_are_shown_without_credentials(uri: str, reason: str) -> None:
    from mlflow.exceptions import MlflowException

    shown = str(explain(MlflowException(reason), uri))
    assert "***" in shown
    assert not re.search("p@ss|p%40ss", shown)


# Servers, for real


@contextmanager
def mlflow_command(arguments: list[str], log: Path, uri: str = "") -> Iterator[subprocess.Popen[bytes]]:
    """An mlflow command in a process group of its own, which is ended whole."""
    settings = {**os.environ, "MLFLOW_TRACKING_URI": uri, "MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "true"}
    settings["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{settings['PATH']}"
    with open(log, "w") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "mlflow", *arguments],
            stdout=output,
            stderr=output,
            env=settings,
            cwd=log.parent,
            start_new_session=True,
        )
    try:
        yield process
    finally:
        end(process)


def end(process: subprocess.Popen[bytes]) -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def ask_until_up(question: urllib.request.Request | str, process: subprocess.Popen[bytes], log: Path) -> bytes:
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline and process.poll() is None:
        try:
            with urllib.request.urlopen(question, timeout=30) as answer:
                return bytes(answer.read())
        except (ConnectionError, urllib.error.URLError) as error:
            if isinstance(error, urllib.error.HTTPError):
                raise AssertionError(error.read().decode()) from None
            time.sleep(0.3)
    raise AssertionError(log.read_text())


def test_a_server_takes_versions_until_it_dies_halfway(
    template: Path, model_files: Mapping[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow import MlflowClient

    store, port, log = tmp_path / "mlflow.db", free_port(), tmp_path / "server.log"
    store.write_bytes(template.read_bytes())
    uri = f"http://127.0.0.1:{port}"
    arguments = ["server", "--backend-store-uri", f"sqlite:///{store}", "--host", "127.0.0.1", "--port", str(port)]
    arguments += ["--artifacts-destination", str(tmp_path / "artifacts"), "--workers", "1"]
    entry, registry = make_entry(model_files["late_arrival"]), Registry(uri, patience=5)
    with mlflow_command(arguments, log) as server:
        ask_until_up(f"{uri}/health", server, log)
        assert registry.publish(entry) == registry.publish(entry)
        registry.alias("late_arrival", "champion", 1)
        assert registry.aliases("late_arrival") == {"champion": 1}
        assert load(registry, "models:/late_arrival@champion").predict(pandas.DataFrame(entry.input_example)).size == 2
        monkeypatch.setattr(MlflowClient, "log_model_artifacts", lambda *_: end(server))
        with pytest.raises(RegistryUnavailable, match=f"{uri} is not available .(Connection|Remote)"):
            registry.publish(make_entry(model_files["late_arrival"], 2))
    assert Registry(f"sqlite:///{store}").versions("late_arrival") == {1: "late_arrival@v1"}


def test_mlflow_models_serve_answers(
    registry: Registry, entry: Entry, estimators: Mapping[str, Any], features: pandas.DataFrame, tmp_path: Path
) -> None:
    registry.publish(entry)
    registry.alias("late_arrival", "champion", 1)
    port, log = free_port(), tmp_path / "serve.log"
    arguments = ["models", "serve", "--env-manager", "local", "--workers", "1", "--host", "127.0.0.1"]
    arguments += ["--port", str(port), "--model-uri", "models:/late_arrival@champion"]
    rows = features.astype(object).where(features.notna(), None).to_dict("records")
    question = urllib.request.Request(
        f"http://127.0.0.1:{port}/invocations",
        json.dumps({"dataframe_records": rows}).encode(),
        {"Content-Type": "application/json"},
    )
    with mlflow_command(arguments, log, registry.uri) as server:
        answer = json.loads(ask_until_up(question, server, log))
    expected = estimators["late_arrival"].predict_proba(features)[:, 1]
    assert numpy.array(answer["predictions"]).tobytes() == expected.tobytes()
