"""The demo as in production: git elsewhere, the DVC remote and artifacts on S3, source and MLflow on PostgreSQL.

Two machines share nothing but these servers. Every secret is in the environment, and is searched for in all that the
runs have left behind.
"""

from __future__ import annotations

import hashlib
import io
import json
import secrets
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas
import pytest
import sqlalchemy
import yaml
from command import Command, Done, copy_seed
from projects import ROOT, day, git
from remotes import credentials, stored, use_s3
from servers import HOST, PostgresServer, S3Server

from retrace import environment, manifest
from retrace.config import parse_params
from retrace.dvcfiles import entries_of, lock_entries, output_md5s
from retrace.environment import EnvironmentLock
from retrace.git import Git, trailer
from retrace.intervals import intervals
from retrace.sources.sql import fetch_partition

PREFIX = "production"
MODEL = "late_arrival"
EXPORT = """
import sys
from pipeline.source import flights, weather
tables = {"flights": (flights(), "scheduled_departure", 8), "weather": (weather(), "observed", 1)}
for name, (table, time, step) in tables.items():
    table[table[time] < "2013-04-01"].iloc[::step].to_csv(f"{sys.argv[1]}/{name}.csv", index=False)
"""


@dataclass
class Production:
    """The servers, what every machine has in its environment, and what the commands said."""

    folder: Path
    origin: Git
    variables: dict[str, str]
    mlflow: sqlalchemy.URL
    secrets: tuple[str, ...]
    rows: Path
    said: dict[str, Done]

    def machine(self, name: str) -> Path:
        return self.folder / name

    def run(self, machine: str, *arguments: str) -> Done:
        done = Command(self.machine(machine), *arguments, **self.variables).done()
        assert done.code == 0, done.out + done.err + self._logs(machine)
        return done

    def _logs(self, machine: str) -> str:
        return (self.machine(machine) / "var/logs/airflow.log").read_text()[-5000:]


def cheap(root: Path) -> None:
    """One trial on few rows, and no more is asked of the data or the model."""
    path = root / "params.yaml"
    params = yaml.safe_load(path.read_text())
    model = params["models"][MODEL]
    model["gate"][0]["at_least"] = 0.5
    model["validate"]["flights"]["rows"]["at_least"] = 100
    model["train"] |= {"trials": 1, "batch": 1, "fixed": {"max_iter": 5, "early_stopping": False}}
    path.write_text(yaml.safe_dump(params, sort_keys=False))


def export(environments: Path, folder: Path) -> None:
    """Every eighth flight of three months, with the weather, as CSV files, by the demo's own program."""
    lock = EnvironmentLock(
        (ROOT / "pipeline/.python-version").read_text().strip(), (ROOT / "pipeline/requirements.txt").read_bytes()
    )
    python = environment.ensure(lock, environments) / "bin/python"
    subprocess.run([str(python), "-c", EXPORT, str(folder)], cwd=ROOT, check=True)


def fill(url: sqlalchemy.URL, folder: Path) -> None:
    """A source database with these rows; numbers are numbers, all else is text, as the demo has it."""
    engine = sqlalchemy.create_engine(url)
    kinds = {"str": sqlalchemy.Text(), "int64": sqlalchemy.Integer(), "float64": sqlalchemy.Float()}
    for name in ("flights", "weather"):
        rows = pandas.read_csv(folder / f"{name}.csv")
        columns = [sqlalchemy.Column(str(key), kinds[str(kind)]) for key, kind in rows.dtypes.items()]
        table = sqlalchemy.Table(name, sqlalchemy.MetaData(), *columns)
        with engine.begin() as connection:
            table.create(connection)
            connection.execute(table.insert(), rows.astype(object).where(rows.notna(), None).to_dict("records"))
    engine.dispose()


@pytest.fixture(scope="module")
def production(
    s3: S3Server, postgres: PostgresServer, environments: Path, seeded: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Production]:
    folder = tmp_path_factory.mktemp("production")
    rows = folder / "rows"
    rows.mkdir()
    export(environments, rows)
    names = [f"{kind}_{secrets.token_hex(4)}" for kind in ("source", "mlflow")]
    source, mlflow = (postgres.create_database(name) for name in names)
    fill(source, rows)
    connection = {"conn_type": "postgres", "host": HOST, "port": postgres.port, "schema": source.database}
    connection |= {"login": postgres.user, "password": postgres.password}
    variables = {
        **credentials(s3),
        "AIRFLOW_CONN_FLIGHTS": json.dumps(connection),
        "MLFLOW_TRACKING_URI": mlflow.render_as_string(hide_password=False),
        "MLFLOW_S3_ENDPOINT_URL": s3.endpoint,
        "RETRACE_MLFLOW_ARTIFACTS": f"s3://{s3.bucket}/mlflow",
        "RETRACE_ORIGIN": str(folder / "origin.git"),
        "RETRACE_CODE_REF": "main",
    }
    origin = publish_code(folder, s3)
    for machine in ("one", "two"):
        git(folder, "clone", "-q", str(origin.directory), machine)
        (folder / machine / "var").mkdir()
        (folder / machine / "var/environments").symlink_to(environments)
        copy_seed(seeded, folder / machine / "var")
    found = Production(folder, origin, variables, mlflow, (s3.secret_key, postgres.password), rows, {})
    found.said["ingest"] = found.run("one", "ingest", "--until", "2013-04-01")
    found.said["retrain"] = found.run("one", "retrain", MODEL)
    found.said["checkout"] = found.run("two", "checkout", f"{MODEL}@v1", str(folder / "version"))
    found.said["again"] = found.run("two", "retrain", MODEL)
    yield found
    for name in names:
        postgres.drop_database(name)


def publish_code(folder: Path, s3: S3Server) -> Git:
    """A bare repository whose branch main is this project, its DVC remote on S3."""
    work = folder / "author"
    work.mkdir()
    tracked = git(ROOT, "ls-files", "-co", "--exclude-standard", "-z", ".dvc", "dags", "data", "pipeline").split("\0")
    for path in [*filter(None, tracked), ".dvcignore", ".gitignore", "params.yaml", "dvc.yaml"]:
        if (ROOT / path).is_file() and not path.endswith(("dvc", "manifest")):
            (work / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / path, work / path)
    cheap(work)
    git(work, "init", "-q", "-b", "main")
    git(work, "add", "-A")
    git(work, "commit", "-q", "-m", "the project")
    use_s3(work, s3, PREFIX)
    git(folder, "clone", "-q", "--bare", str(work), "origin.git")
    return Git(folder / "origin.git")


def md5(content: bytes) -> str:
    return hashlib.md5(content).hexdigest()


def text_of(production: Production, commit: str, path: str) -> str:
    return (production.origin.read(commit, path) or b"").decode()


def outputs(production: Production, commit: str) -> dict[str, str]:
    """Path -> md5 of what the model's stages made, by the lock in the origin."""
    lock = lock_entries(production.origin.read(commit, "dvc.lock"))
    return output_md5s(entries_of(lock, MODEL))


def version(production: Production) -> str:
    """The commit of the first version."""
    commit = production.origin.resolve(f"refs/tags/{MODEL}@v1")
    assert commit is not None
    return commit


def test_the_same_rows_are_the_same_bytes_as_from_sqlite(production: Production, tmp_path: Path) -> None:
    url = sqlalchemy.URL.create("sqlite", database=str(tmp_path / "source.db"))
    fill(url, production.rows)
    params = parse_params((ROOT / "params.yaml").read_text())
    for name, dataset in params.ingest.datasets.items():
        found = text_of(production, "refs/heads/data", f"data/raw/{name}.manifest")
        months = [
            fetch_partition(url, dataset, month.start, month.end, tmp_path, f"data/raw/{name}/{month.name}.parquet")
            for month in intervals(params.ingest.start, day("2013-04-01"), "month")
        ]
        assert manifest.parse_manifest(found, name) == tuple(months)
        assert len(months) == 3 and all(month.rows > 1000 for month in months)


def test_the_version_is_in_the_origin_and_every_object_in_the_bucket(production: Production, s3: S3Server) -> None:
    commit = version(production)
    assert production.origin.out("cat-file", "-t", f"refs/tags/{MODEL}@v1") == "tag"
    assert production.origin.resolve(f"refs/tags/{MODEL}#champion#1") == commit
    made = outputs(production, commit)
    cached = [f"data/features/{MODEL}", f"models/{MODEL}.skops", f"data/predictions/{MODEL}.parquet"]
    wanted = {made[path] for path in cached}
    for name in ("flights", "weather"):
        rows = manifest.parse_manifest(text_of(production, commit, f"data/raw/{name}.manifest"), name)
        wanted |= {row.md5 for row in rows}
    for entry in json.loads(stored(s3, PREFIX, made[cached[0]]).read_bytes()):
        wanted.add(entry["md5"])
    for oid in wanted:
        assert f"{md5(stored(s3, PREFIX, oid).read_bytes())}.dir".startswith(oid)


@pytest.fixture(scope="module")
def client(production: Production) -> Iterator[Any]:
    """MLflow on PostgreSQL, artifacts on S3."""
    import boto3
    import mlflow

    with pytest.MonkeyPatch.context() as patch:
        for name, value in production.variables.items():
            patch.setenv(name, value)
        boto3.setup_default_session()  # another test of this process may have left one with its own credentials
        mlflow.set_tracking_uri(production.variables["MLFLOW_TRACKING_URI"])
        yield mlflow.MlflowClient()


def test_mlflow_shows_the_whole_record_of_the_version(production: Production, client: Any) -> None:
    commit = version(production)
    run_id = trailer(production.origin.message(f"refs/tags/{MODEL}@v1"), "Retrace-Run")
    found = client.get_model_version(MODEL, "1")
    made = outputs(production, commit)
    wanted = {
        "git.commit": commit,
        "git.tag": f"{MODEL}@v1",
        "model.md5": made[f"models/{MODEL}.skops"],
        "features.md5": made[f"data/features/{MODEL}"],
        "airflow.run_id": run_id,
    }
    pointers = {
        f"data/raw/{name}": text_of(production, commit, f"data/raw/{name}.dvc") for name in ("flights", "weather")
    }
    raw = {path: yaml.safe_load(text)["outs"][0]["md5"] for path, text in pointers.items()}
    wanted |= {f"{path}.md5": oid for path, oid in raw.items()}
    assert {name: found.tags.get(name) for name in wanted} == wanted
    hashes = {"model.sha256", "features.sha256", "environment.lock", "params.sha256"} | {
        f"{path}.sha256" for path in raw
    }
    assert all(len(found.tags[name]) == 64 for name in hashes)
    assert found.tags.keys() == wanted.keys() | hashes | {"lineage.run_id"}
    run = client.get_run(found.run_id)
    assert found.tags.items() <= run.data.tags.items()
    assert {data.dataset.name: data.dataset.digest for data in run.inputs.dataset_inputs} == raw
    metrics = json.loads(text_of(production, commit, f"metrics/{MODEL}.json"))
    assert metrics["holdout"].items() <= run.data.metrics.items()
    assert run.data.params["train.trials"] == "1"
    assert list(found.aliases) == ["champion"]
    trials = Path(client.download_artifacts(run.info.run_id, f"plots/{MODEL}/trials.csv")).read_text()
    assert trials == text_of(production, commit, f"plots/{MODEL}/trials.csv")


def test_the_champion_predicts_what_was_predicted_offline(production: Production, client: Any, s3: S3Server) -> None:
    import mlflow

    files = production.folder / "version"
    served = mlflow.pyfunc.load_model(f"models:/{MODEL}@champion")
    offline = pandas.read_parquet(files / f"data/predictions/{MODEL}.parquet")["prediction"].to_numpy()
    rows = pandas.read_parquet(files / f"data/features/{MODEL}/2013-03.parquet")
    columns = [column.name for column in served.metadata.get_input_schema().inputs]
    assert served.predict(rows[columns]).tobytes() == offline.tobytes()
    assert served.predict(served.input_example).tolist() == offline[:3].tolist()
    [artifact] = (s3.folder / "mlflow" / MODEL).rglob(f"{MODEL}.skops")
    tracked = stored(s3, PREFIX, outputs(production, version(production))[f"models/{MODEL}.skops"])
    assert artifact.read_bytes() == tracked.read_bytes() == (files / f"models/{MODEL}.skops").read_bytes()


def test_a_second_machine_has_the_same_files_and_finds_nothing_to_do(production: Production, client: Any) -> None:
    files = production.folder / "version"
    assert git(files, "rev-parse", "HEAD") == version(production)
    assert git(files, "status", "--porcelain") == ""
    said = production.said["again"].out
    assert said.count("unchanged, not run") == 4
    assert f"nothing changed since {MODEL}@v1: no new version" in said
    assert list((production.machine("two") / "var/logs" / MODEL).rglob("train.log")) != []
    assert production.origin.out("tag", "--list").splitlines() == [f"{MODEL}#champion#1", f"{MODEL}@v1"]
    assert len(client.search_model_versions(f"name = '{MODEL}'")) == 1


def test_an_event_names_the_bucket_that_its_files_are_in(production: Production) -> None:
    told = json.loads(text_of(production, version(production), f"lineage/{MODEL}/train.json"))
    storage = {output["facets"]["dataSource"]["uri"] for output in told["outputs"]}
    assert storage == {f"s3://retrace/{PREFIX}"}


def test_no_secret_is_left_anywhere(production: Production, postgres: PostgresServer, s3: S3Server) -> None:
    hay = {"the origin": objects_of(production.origin.directory), "MLflow's database": dump(production.mlflow)}
    assert version(production).encode() in hay["MLflow's database"]
    for folder in (production.folder, s3.folder):
        for path in folder.rglob("*"):
            if path.is_file() and not path.is_symlink() and "environments" not in path.parts:
                hay[str(path)] = path.read_bytes()
    for machine in ("one", "two"):
        hay[f"the mirror of {machine}"] = objects_of(production.machine(machine) / "var/mirror.git")
    assert any(name.endswith("events.jsonl") for name in hay)
    found = [name for name, content in hay.items() for secret in production.secrets if secret.encode() in content]
    assert found == []


def objects_of(repository: Path) -> bytes:
    """Every object of a git repository, unpacked."""
    return Git(repository).run("cat-file", "--batch-all-objects", "--batch").stdout


def dump(url: sqlalchemy.URL) -> bytes:
    """All rows of a PostgreSQL database, as text."""
    engine = sqlalchemy.create_engine(url)
    target = io.BytesIO()
    with engine.connect() as connection:
        for table in sqlalchemy.inspect(connection).get_table_names():
            cursor = connection.connection.cursor()
            cursor.copy_expert(f'COPY "{table}" TO STDOUT', target)
    engine.dispose()
    return target.getvalue()
